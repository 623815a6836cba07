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
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from ldm.files import replacing
from ldm.util import UserError, one_line

SPLITS = ("train", "val", "test")
SHARES = (0.9, 0.05, 0.05)  # of the splits, as published

FOLDER = re.compile(r"[0-9]{7,}")  # of a prompt, by its number
INDEX = "seeds.json"
PROMPT = "prompt.json"
METADATA = "metadata.jsonl"
JPEG_QUALITY = 100
CAPTION_KEYS = ("input", "caption")  # of the caption before: released prompts, self-made ones

T = TypeVar("T")


@dataclass(frozen=True)
class Triple:
    """The texts of an edit: caption before, instruction, caption after; where the picture is."""

    caption: str
    edit: str
    output: str
    url: str | None = field(default=None, compare=False)

    @property
    def texts(self) -> dict[str, str]:
        """The three by name."""
        return {"caption": self.caption, "edit": self.edit, "output": self.output}


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


def write_index(root: Path, rows: Mapping[str, Sequence[str | int]]) -> None:
    """Write ``seeds.json``, sorted, in place of one that is there; errors as of `ldm.files.replacing`.

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
        raise UserError(f"dataset: cannot read {root}: {one_line(error)}") from error
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


def fields_in(content: bytes) -> dict[str, Any]:
    """The JSON object that a ``prompt.json`` or a line of a file holds.

    Raises:
        ValueError: what was expected and what was given.
    """
    shown = repr(content.strip().decode(errors="replace"))[:60]
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON, got {shown}: {one_line(error)}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object, got {shown}")
    return fields


def triple_in(fields: Mapping[str, Any]) -> Triple:
    """The triple of an object with ``input`` or ``caption``, ``edit``, ``output``; errors as `fields_in`."""
    names = (next((key for key in CAPTION_KEYS if key in fields), CAPTION_KEYS[0]), "edit", "output")
    for name in names:
        if not isinstance(fields.get(name), str):
            raise ValueError(f"expected a text under {name!r}, got {fields.get(name, 'nothing')!r:.60}")
    url = fields.get("url")
    caption, edit, output = (fields[name] for name in names)
    return Triple(caption, edit, output, url if isinstance(url, str) else None)


def read_fields(folder: Path) -> dict[str, Any]:
    """All that a folder's ``prompt.json`` says.

    Raises:
        UserError: it is not there, or not what `triple_in` reads.
    """
    file = folder / PROMPT
    try:
        fields = fields_in(file.read_bytes())
        triple_in(fields)
        return fields
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: expected input (or caption), edit and output: {one_line(error)}") from error


def read_prompt(folder: Path) -> Triple:
    """The texts of a folder; errors as of `read_fields`."""
    return triple_in(read_fields(folder))


def write_prompt(
    folder: Path,
    fields: Mapping[str, Any],
    pictures: Mapping[str, bytes],
    lines: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write a prompt's folder, which is there complete or not at all; one that is there already stays.

    Args:
        fields: of ``prompt.json``.
        pictures: files by their name, see `pair_names`.
        lines: of ``metadata.jsonl``; None: without that file.

    Raises:
        UserError: it cannot be written; nothing of it is left behind.
    """
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    try:
        aside.mkdir(parents=True)
        (aside / PROMPT).write_text(json.dumps(fields))
        for name, content in pictures.items():
            (aside / name).write_bytes(content)
        if lines is not None:
            (aside / METADATA).write_text("".join(json.dumps(line) + "\n" for line in lines))
        os.rename(aside, folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        if not folder.exists():
            raise UserError(
                f"cannot write {folder}: {one_line(error)}; nothing is lost, the same command goes on"
            ) from error


def jpeg(pixels: np.ndarray, **options: Any) -> bytes:
    """The file of a picture [H, W, 3] uint8, of the quality that is published.

    Args:
        options: more of Pillow's for the format.
    """
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY, **options)
    return file.getvalue()


def folder_name(number: int) -> str:
    """Of a prompt."""
    return f"{number:07d}"


def pair_names(seed: str | int) -> tuple[str, str]:
    """What the files of the pictures before and after are called."""
    return f"{seed}_0.jpg", f"{seed}_1.jpg"


def pair_paths(folder: Path, seed: str | int) -> tuple[Path, Path]:
    """Files of the pictures before and after."""
    before, after = pair_names(seed)
    return folder / before, folder / after


def seeds_on_disk(folder: Path) -> list[str]:
    """Seeds of the pairs in a prompt's folder, of which at least a half is there, as texts in order."""
    return sorted({file.name.rpartition("_")[0] for file in folder.glob("*_[01].jpg")})


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
