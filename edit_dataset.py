"""Datasets of image pairs with an instruction, as the published training and evaluation read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ldm.data.formats import SHARES, pair_paths, read_examples, read_picture, read_prompt, split_examples
from ldm.images import to_tensor
from ldm.util import UserError


def choose(items: Sequence[Any]) -> Any:
    """One of the items, drawn by torch's generator."""
    return items[int(torch.randint(len(items), ()))]


def resized(image: Image.Image, size: int) -> Tensor:
    """The picture at size x size pixels, [3, size, size] in [-1, 1]."""
    return to_tensor(image.resize((size, size), Image.Resampling.LANCZOS))[0]


class EditDataset(Dataset):
    """Training pairs: ``{edited, edit: {c_concat, c_crossattn}}``, pictures [3, size, size] in [-1, 1].

    Args:
        path: dataset folder (see `ldm.data.formats`).
        split: train, val or test.
        splits: shares of the three, by index over the sorted examples.
        min_resize_res, max_resize_res: pictures are resized to a square of a size drawn between these.
        crop_res: then cropped to a square of this size, both pictures of a pair alike.
        flip_prob: chance that both are mirrored.
        cache_dir, cache_name, min_text_sim, min_image_sim, min_direction_sim, max_samples_per_prompt,
            output_as_edit, real_input: historical, no effect; published configs carry them.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        splits: Sequence[float] = SHARES,
        min_resize_res: int = 256,
        max_resize_res: int = 256,
        crop_res: int = 256,
        flip_prob: float = 0.0,
        cache_dir: str | None = None,
        cache_name: str | None = None,
        min_text_sim: float | None = None,
        min_image_sim: float | None = None,
        min_direction_sim: float | None = None,
        max_samples_per_prompt: int | None = None,
        output_as_edit: bool | None = None,
        real_input: bool | None = None,
    ) -> None:
        if not 0 < crop_res <= min_resize_res <= max_resize_res:
            raise UserError(
                "dataset: expected crop_res <= min_resize_res <= max_resize_res, "
                f"got {crop_res}, {min_resize_res}, {max_resize_res}"
            )
        self.sizes = range(min_resize_res, max_resize_res + 1)
        self.crop_res = crop_res
        self.flip_prob = flip_prob
        self.examples = split_examples(read_examples(path), split, splits)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> dict[str, Any]:
        example = self.examples[i]
        size = choose(self.sizes)
        files = pair_paths(example.folder, choose(example.seeds))
        pair = torch.stack([resized(read_picture(file), size) for file in files])  # [2, 3, size, size]
        top, left = (int(torch.randint(size - self.crop_res + 1, ())) for _ in range(2))
        pair = pair[:, :, top : top + self.crop_res, left : left + self.crop_res]
        if torch.rand(()) < self.flip_prob:
            pair = pair.flip(3)
        edit = {"c_concat": pair[0], "c_crossattn": read_prompt(example.folder).edit}
        return {"edited": pair[1], "edit": edit}


class EditDatasetEval(Dataset):
    """Evaluation inputs: ``{image_0, input_prompt, edit, output_prompt}``, picture [3, res, res] in [-1, 1].

    Args:
        path, split, splits: as for `EditDataset`.
        res: side of the square that the first picture is resized to.
    """

    def __init__(
        self, path: str, split: str = "train", splits: Sequence[float] = SHARES, res: int = 256
    ) -> None:
        self.res = res
        self.examples = split_examples(read_examples(path), split, splits)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> dict[str, Any]:
        example = self.examples[i]
        prompt = read_prompt(example.folder)
        before, _ = pair_paths(example.folder, choose(example.seeds))
        return {
            "image_0": resized(read_picture(before), self.res),
            "input_prompt": prompt.input,
            "edit": prompt.edit,
            "output_prompt": prompt.output,
        }
