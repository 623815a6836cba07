"""What an evaluation edits: pictures of a split with their captions and instructions, in a fixed order.

Datasets in the published layout, and parquet with the columns of the hub's copy. Nothing depends on how many
samples are asked for: more of them begin with the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ldm.data.edit_dataset import EditDatasetEval
from ldm.data.formats import INDEX, SHARES, read_picture, split_examples
from ldm.data.hub import open_table, picture_bytes
from ldm.pictures.fitting import to_tensor
from ldm.sampling.noise import derived_seed
from ldm.util import UserError

# Columns of the hub's copy: picture before; caption before, instruction, caption after.
PICTURE = "original_image"
TEXTS = ("original_prompt", "edit_prompt", "edited_prompt")

ALL = "all"


@dataclass(frozen=True)
class EvalSample:
    """A picture to edit.

    Attributes:
        number: its place in the split.
        name: of its folder, or of its row.
        before: the picture, [3, H, W] in [-1, 1].
        input, edit, output: caption before, instruction, caption after.
    """

    number: int
    name: str
    before: Tensor
    input: str
    edit: str
    output: str


class EvalSamples:
    """Samples of a split of a dataset, drawn without repetition.

    Args:
        path: folder with a ``seeds.json``, else what `ldm.data.hub.open_table` takes.
        split: train, val or test, by the published shares, or all of it.
        count: how many, at most.
        resolution: side of the square that pictures are resized to, as published.
        seed: of the order, as published, and of the pair that is taken where an example has several.

    Attributes:
        numbers: of the samples, in order.
        available: samples of the split.

    Raises:
        UserError: no such dataset or split, or nothing in it.
    """

    def __init__(self, path: str, split: str, count: int, resolution: int, seed: int) -> None:
        self.seed = seed
        if (Path(path) / INDEX).is_file():
            self._source: _Folder | _Table = _Folder(path, split, resolution)
        else:
            self._source = _Table(path, split, resolution)
        self.available = len(self._source)
        if not self.available:
            raise UserError(f"dataset {path}: expected samples in split {split}, got none")
        order = torch.randperm(self.available, generator=torch.Generator().manual_seed(seed))
        self.numbers = order[:count].tolist()

    def read(self, number: int) -> EvalSample:
        """A sample.

        Raises:
            UserError: a picture that is broken, or a text that is missing.
        """
        return self._source.read(number, derived_seed(self.seed, "pair", number))


def _shares(split: str) -> tuple[str, tuple[float, float, float]]:
    """A split and the shares of all three of which it is what was asked for."""
    return ("train", (1.0, 0.0, 0.0)) if split == ALL else (split, SHARES)


class _Folder:
    """A split in the published layout."""

    def __init__(self, path: str, split: str, resolution: int) -> None:
        self.dataset = EditDatasetEval(path, *_shares(split), res=resolution)

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, number: int, seed: int) -> EvalSample:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the dataset draws one of the example's pairs
            item = self.dataset[number]
        name = self.dataset.examples[number].folder.name
        return EvalSample(
            number, name, item["image_0"], item["input_prompt"], item["edit"], item["output_prompt"]
        )


class _Table:
    """A split of rows of a table, each with one pair."""

    def __init__(self, path: str, split: str, resolution: int) -> None:
        self.path, self.resolution = path, resolution
        self.table = open_table(path, [(PICTURE, "pictures"), *((name, "text") for name in TEXTS)])
        self.rows = split_examples(range(len(self.table)), *_shares(split))

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, number: int, seed: int) -> EvalSample:
        index = self.rows[number]
        row, name = self.table[index], f"{self.path}, row {index}"
        missing = [text for text in TEXTS if row[text] is None]
        if missing:
            raise UserError(f"dataset {name}: expected text in {missing[0]}, got null")
        picture = read_picture(BytesIO(picture_bytes(row[PICTURE])), f"{name}, {PICTURE}")
        picture = picture.resize((self.resolution, self.resolution), Image.Resampling.LANCZOS)
        return EvalSample(number, f"row {index}", to_tensor(picture)[0], *(row[text] for text in TEXTS))
