"""Pickled weights files, made by torch or by hand."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.util import UserError
from ldm.weights.pickled import PickledWeights


def save(obj: Any, path: Path, zipped: bool = True) -> Path:
    torch.save(obj, path, _use_new_zipfile_serialization=zipped)
    return path


def zip_around(program: bytes, path: Path) -> Path:
    """A file as `torch.save` writes it, around a hand-made pickle program."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
    return path


def text(value: str) -> bytes:
    """The pickle instruction that pushes a string."""
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def asks_for(module: str, name: str, then: bytes = b".") -> bytes:
    """A pickle program that looks up a global name (protocol 4, which walks dots) and goes on with `then`."""
    return b"\x80\x04" + text(module) + text(name) + b"\x93" + then


def refusal(path: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(UserError) as error:
        PickledWeights(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)
