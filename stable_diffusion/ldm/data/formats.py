"""The dataset layout on disk: the only place that reads or writes it.

A dataset is a folder with ``seeds.json`` = ``[[directory, [seed, …]], …]``, sorted, and for every directory
``prompt.json`` (``input`` or ``caption``, ``edit``, ``output``) and the pair ``{seed}_0.jpg`` (before) and
``{seed}_1.jpg`` (after). Generated pairs also have a line each in ``metadata.jsonl``: how they were made, and
their CLIP similarities.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from PIL import Image, UnidentifiedImageError

from ldm.util import UserError, replacing

SPLITS = ("train", "val", "test")
SHARES = (0.9, 0.05, 0.05)  # of the splits, as published

FOLDER = re.compile(r"[0-9]{7,}")  # of a prompt, by its number
INDEX = "seeds.json"
METADATA = "metadata.jsonl"

T = TypeVar("T")


@dataclass(frozen=True)
class Prompt:
    """The texts of an example: caption before, instruction, caption after."""

    input: str
    edit: str
    output: str


@dataclass(frozen=True)
class Example:
    """One line of ``seeds.json``: a prompt folder and the seeds of its image pairs."""

    folder: Path
    seeds: tuple[str, ...]


def read_examples(path: str | Path) -> list[Example]:
    """All examples of a dataset, in the order of its ``seeds.json``.

    Raises:
        UserError: no dataset there, or a ``seeds.json`` that is not as described above.
    """
    root = Path(path)
    index = root / INDEX
    try:
        rows = json.loads(index.read_text(encoding="utf-8"))
        examples = [Example(root / name, tuple(str(seed) for seed in seeds)) for name, seeds in rows]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"dataset: expected {index}, which is not there") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"dataset: expected [[directory, [seed, …]], …] in {index}: {error}") from error
    empty = [example.folder.name for example in examples if not example.seeds]
    if empty:
        raise UserError(f"dataset: expected at least one seed for {empty[0]} in {index}")
    return examples


def split_examples(examples: Sequence[T], split: str, splits: Sequence[float]) -> Sequence[T]:
    """The part of the examples that belongs to `split`; boundaries by index, rounded down.

    Args:
        splits: shares of train, val and test; they add up to 1.
    """
    if split not in SPLITS:
        raise UserError(f"dataset split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if len(splits) != len(SPLITS) or abs(sum(splits) - 1) > 1e-6:
        raise UserError(f"dataset splits: expected three shares that add up to 1, got {tuple(splits)}")
    position = SPLITS.index(split)
    low, high = (int(sum(splits[:p]) * len(examples)) for p in (position, position + 1))
    return examples[low : len(examples) if split == SPLITS[-1] else high]


def write_index(root: Path, rows: Mapping[str, Sequence[str]]) -> None:
    """Write ``seeds.json``, sorted, in place of one that is there; errors as of `ldm.util.replacing`.

    Args:
        rows: seeds by the name of their folder.
    """
    content = [[name, sorted(rows[name], key=int)] for name in sorted(rows)]
    with replacing(root / INDEX) as part:
        part.write_text(json.dumps(content), encoding="utf-8")


def prompt_folders(root: Path) -> list[Path]:
    """The folders of prompts in a dataset, by name.

    Raises:
        UserError: no such dataset.
    """
    try:
        with os.scandir(root) as entries:
            names = [entry.name for entry in entries if FOLDER.fullmatch(entry.name) and entry.is_dir()]
    except OSError as error:
        raise UserError(f"dataset: cannot read {root}: {error.strerror}") from error
    return [root / name for name in sorted(names)]


def read_metadata(folder: Path) -> list[dict[str, Any]]:
    """What ``metadata.jsonl`` says of a prompt's pairs, each with its ``seed``; nothing without that file.

    Raises:
        UserError: a line is not that.
    """
    file = folder / METADATA
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: expected JSON lines: {error}") from error
    if not all(isinstance(line, dict) and isinstance(line.get("seed"), int) for line in lines):
        raise UserError(f"{file}: expected JSON objects with a seed")
    return lines


def read_fields(folder: Path) -> dict[str, Any]:
    """All that ``prompt.json`` says.

    Raises:
        UserError: it is not there, or no JSON object.
    """
    file = folder / "prompt.json"
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError(f"got {str(fields)[:60]}")
        return fields
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: expected a JSON object: {error}") from error


def read_prompt(folder: Path) -> Prompt:
    """The texts of an example's folder; self-made datasets call the first caption ``caption``."""
    file = folder / "prompt.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        caption = data["input"] if "input" in data else data["caption"]
        texts = (caption, data["edit"], data["output"])
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(f"got {texts}")
        return Prompt(*texts)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: expected input (or caption), edit and output: {error!r}") from error


def pair_paths(folder: Path, seed: str) -> tuple[Path, Path]:
    """Files of the pictures before and after."""
    return folder / f"{seed}_0.jpg", folder / f"{seed}_1.jpg"


def read_picture(file: Path | BinaryIO, name: str | None = None) -> Image.Image:
    """A picture of a dataset as RGB.

    Args:
        file: its path, or its content as a file.
        name: what an error calls it; the path when absent.

    Raises:
        UserError: it is missing or broken.
    """
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except Exception as error:  # broken files make Pillow's decoders raise almost any type
        # Pillow's own message would show an open file by its address in memory.
        reason = "it is of no known format" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"dataset: cannot read the picture {name or file}: {reason}") from error
