"""Datasets of image pairs with an instruction, as the published training and evaluation read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from ldm.data.formats import Example, pair_paths, read_picture, read_prompt
from ldm.data.pairs import PairDataset, SplitDataset, draw_seed
from ldm.pictures.fitting import to_tensor


@dataclass(eq=False, repr=False)
class EditDataset(PairDataset):
    """Training pairs in the published layout; items and arguments as of `PairDataset`.

    Args:
        cache_dir, cache_name, min_text_sim, min_image_sim, min_direction_sim, max_samples_per_prompt,
            output_as_edit, real_input: historical, no effect; published configs carry them.
    """

    cache_dir: str | None = None
    cache_name: str | None = None
    min_text_sim: float | None = None
    min_image_sim: float | None = None
    min_direction_sim: float | None = None
    max_samples_per_prompt: int | None = None
    output_as_edit: bool | None = None
    real_input: bool | None = None

    def read(self, example: Example) -> tuple[Image.Image, Image.Image, str]:
        before, after = pair_paths(example.folder, example.seeds[draw_seed(example)])
        return read_picture(before), read_picture(after), read_prompt(example.folder).edit


@dataclass(eq=False, repr=False)
class EditDatasetEval(SplitDataset):
    """Evaluation inputs: ``{image_0, input_prompt, edit, output_prompt}``, picture [3, res, res] in [-1, 1].

    Args:
        path, split, splits: as for `SplitDataset`.
        res: side of the square that the first picture is resized to.
    """

    res: int = 256

    def __getitem__(self, i: int) -> dict[str, Any]:
        example = self.examples[i]
        prompt = read_prompt(example.folder)
        before, _ = pair_paths(example.folder, example.seeds[draw_seed(example)])
        picture = read_picture(before).resize((self.res, self.res), Image.Resampling.LANCZOS)
        return {
            "image_0": to_tensor(picture)[0],
            "input_prompt": prompt.caption,
            "edit": prompt.edit,
            "output_prompt": prompt.output,
        }
