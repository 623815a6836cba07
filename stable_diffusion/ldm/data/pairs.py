"""Datasets of a split, and how a pair of pictures becomes a training example, the published way.

What is random is drawn from torch's global generator, in the published order: size, crop, flip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from ldm.data.formats import SHARES, Example, read_examples, split_examples
from ldm.pictures.fitting import to_tensor
from ldm.util import UserError

PIXELS_PER_LATENT = 8  # of the autoencoder: the least that both sides of a picture are multiples of


@dataclass(eq=False, repr=False)
class SplitDataset(Dataset):
    """The examples of a split, in the published layout.

    Args:
        path: dataset folder (see `ldm.data.formats`).
        split: train, val or test.
        splits: shares of the three, by index over the sorted examples.
    """

    path: str
    split: str = "train"
    splits: Sequence[float] = SHARES

    def __post_init__(self) -> None:
        split_examples((), self.split, self.splits)  # a mistake in them is told before the files are read
        self.examples = split_examples(self.read_all(), self.split, self.splits)

    def read_all(self) -> Sequence[Any]:
        """The examples of all splits."""
        return read_examples(self.path)

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(eq=False, repr=False)
class PairDataset(SplitDataset):
    """Training pairs: ``{edited, edit: {c_concat, c_crossattn}}``, pictures [3, height, width] in [-1, 1].

    Both pictures of a pair are resized, cropped and mirrored alike. A square crop is cut from pictures
    resized to a square, whatever their proportions, as published. Any other crop is cut from pictures that
    keep their proportions: the first is scaled until it just covers the rectangle that has the crop's
    proportions and the drawn size as its shorter side; the second is resized to the same size in pixels.

    Args:
        path, split, splits: as for `SplitDataset`.
        min_resize_res, max_resize_res: the size is drawn between these, both included.
        crop_res: sides of the crop, one number for a square or [height, width]; multiples of 8, the shorter
            one at most `min_resize_res`.
        flip_prob: chance that both pictures are mirrored.
    """

    min_resize_res: int = 256
    max_resize_res: int = 256
    crop_res: int | Sequence[int] = 256
    flip_prob: float = 0.0

    def __post_init__(self) -> None:
        sides, sizes = crop_sides(self.crop_res), (self.min_resize_res, self.max_resize_res)
        whole = all(isinstance(size, int) for size in sizes)
        if not (whole and min(sides) <= self.min_resize_res <= self.max_resize_res):
            raise UserError(
                "dataset: expected crop_res <= min_resize_res <= max_resize_res (of crop_res the shorter "
                f"side), got {self.crop_res}, {self.min_resize_res}, {self.max_resize_res}"
            )
        check_share("flip_prob", self.flip_prob)
        self.crop_res = sides
        super().__post_init__()

    def read(self, example: Any) -> tuple[Image.Image, Image.Image, str]:
        """RGB pictures before and after, and the instruction."""
        raise NotImplementedError

    def resized_sides(self, image: Image.Image, size: int) -> tuple[int, int]:
        """Height and width that `image` is resized to before the crop, for a drawn `size`."""
        height, width = crop_sides(self.crop_res)
        if height == width:
            return size, size
        scale = size / min(height, width)
        factor = max(height * scale / image.height, width * scale / image.width)
        return max(height, round(image.height * factor)), max(width, round(image.width * factor))

    def __getitem__(self, i: int) -> dict[str, Any]:
        before, after, instruction = self.read(self.examples[i])
        height, width = crop = crop_sides(self.crop_res)
        size = int(torch.randint(self.min_resize_res, self.max_resize_res + 1, ()))
        sides = self.resized_sides(before, size)
        top = left = 0
        if sides != crop:  # nothing is drawn where there is nothing to choose, as published
            top, left = (int(torch.randint(sides[axis] - crop[axis] + 1, ())) for axis in (0, 1))
        box = (left, top, left + width, top + height)
        flip = bool(torch.rand(()) < self.flip_prob)
        pair = []
        for image in (before, after):
            image = image.resize(sides[::-1], Image.Resampling.LANCZOS).crop(box)
            pixels = to_tensor(image)[0]  # [3, height, width]
            pair.append(pixels.flip(2) if flip else pixels)
        return {"edited": pair[1], "edit": {"c_concat": pair[0], "c_crossattn": instruction}}


def crop_sides(crop_res: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of the crop that a config asks for.

    Raises:
        UserError: neither a number nor two, or a side that the autoencoder cannot take.
    """
    sides = (
        list(crop_res) if isinstance(crop_res, Sequence) and not isinstance(crop_res, str) else [crop_res] * 2
    )
    good = [s for s in sides if isinstance(s, int) and s > 0 and s % PIXELS_PER_LATENT == 0]
    if len(sides) != 2 or good != sides:
        raise UserError(
            f"dataset: expected crop_res as one number or [height, width], multiples of {PIXELS_PER_LATENT}, "
            f"got {crop_res!r}"
        )
    return sides[0], sides[1]


def check_share(name: str, value: float) -> None:
    """Raise `UserError` for what is no share of the examples."""
    if not (isinstance(value, int | float) and 0 <= value <= 1):
        raise UserError(f"dataset: expected {name} from 0 to 1, got {value!r}")


def draw_seed(example: Example) -> int:
    """Which of the example's seeds, by its place, is drawn by torch's global generator."""
    return int(torch.randint(len(example.seeds), ()))
