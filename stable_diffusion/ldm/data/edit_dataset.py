"""Datasets of image pairs with an instruction, as the published training and evaluation read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from ldm.data.formats import (
    SHARES,
    Example,
    pair_paths,
    read_examples,
    read_picture,
    read_prompt,
    split_examples,
)
from ldm.data.pairs import PairTransform
from ldm.pictures.fitting import to_tensor


def draw_seed(example: Example) -> str:
    """One of the example's seeds, drawn by torch's global generator."""
    return example.seeds[int(torch.randint(len(example.seeds), ()))]


class EditDataset(Dataset):
    """Training pairs: ``{edited, edit: {c_concat, c_crossattn}}``, pictures [3, height, width] in [-1, 1].

    Args:
        path: dataset folder (see `ldm.data.formats`).
        split: train, val or test.
        splits: shares of the three, by index over the sorted examples.
        min_resize_res, max_resize_res: pictures are resized to a square of a size drawn between these.
        crop_res: then cropped to a square of this size, both pictures of a pair alike; [height, width] gives
            any other shape, with the resizing that `PairTransform` describes.
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
        crop_res: int | Sequence[int] = 256,
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
        self.transform = PairTransform(min_resize_res, max_resize_res, crop_res, flip_prob)
        self.crop_res = self.transform.crop_res
        self.examples = split_examples(read_examples(path), split, splits)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> dict[str, Any]:
        example = self.examples[i]
        files = pair_paths(example.folder, draw_seed(example))
        instruction = read_prompt(example.folder).edit
        before, after = (read_picture(file) for file in files)
        return self.transform(before, after, instruction)


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
        before, _ = pair_paths(example.folder, draw_seed(example))
        picture = read_picture(before).resize((self.res, self.res), Image.Resampling.LANCZOS)
        return {
            "image_0": to_tensor(picture)[0],
            "input_prompt": prompt.input,
            "edit": prompt.edit,
            "output_prompt": prompt.output,
        }
