"""Opening weights of any kind: a single file, or a folder of diffusers, here or on the hub.

A state dict may be bare or stand under Lightning's ``state_dict``. A file stays on disk until a tensor of it
is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.util import UserError
from ldm.weights.diffusers_folder import DiffusersWeights, fetch, is_hub_name
from ldm.weights.single_file import Weights, open_file

_SUFFIXES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")  # of files, which no name on the hub has


def open_weights(path: str | Path) -> Weights:
    """Open a weights file of any kind; no tensor is read yet.

    Args:
        path: a file or a diffusers folder; where there is none, a model's name on the hub, owner/name.

    Raises:
        UserError: there is no such file, it is not a weights file, it is damaged, or it asks for code to run.
    """
    path = either_suffix(path)
    if not path.exists() and path.suffix not in _SUFFIXES and is_hub_name(path.as_posix()):
        path = fetch(path.as_posix())
    if path.is_dir():
        return DiffusersWeights(path)
    return open_file(path)


def either_suffix(path: str | Path) -> Path:
    """The file, or where there is none its twin: published weights come as .ckpt and as .safetensors."""
    path = Path(path)
    twin = path.with_suffix({".ckpt": ".safetensors", ".safetensors": ".ckpt"}.get(path.suffix, path.suffix))
    return twin if twin.is_file() and not path.exists() else path


def published_file(path: Path, hub_name: str) -> Path:
    """The file by `either_suffix`, or where there is none the one that programs of the hub have fetched.

    Args:
        path: where it belongs.
        hub_name: the model on the hub, owner/name, that has a file of this name.
    """
    if (file := either_suffix(path)).is_file():
        return file
    from huggingface_hub.constants import HF_HUB_CACHE  # and no more of it, which takes 0.3 s

    model = Path(HF_HUB_CACHE, f"models--{hub_name.replace('/', '--')}")
    newest = model / "refs/main"
    cached = either_suffix(model / "snapshots" / newest.read_text() / path.name) if newest.is_file() else path
    return cached if cached.is_file() else path


def file_facts(path: str | Path | None) -> list[Any] | None:
    """What tells weights from others without reading them: their name, and the size in bytes of what is here.

    Raises:
        UserError: there is no such file, and it can be no name on the hub.
    """
    if path is None:
        return None
    file = either_suffix(path)
    if file.is_dir():
        return [file.name, sum(part.stat().st_size for part in file.rglob("*") if part.is_file())]
    if not file.exists() and file.suffix not in _SUFFIXES and is_hub_name(file.as_posix()):
        return [file.as_posix()]
    try:
        return [file.name, file.stat().st_size]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return all named weights of a file, on the CPU, each mapped from the file until its numbers are used.

    Raises:
        UserError: as `open_weights`.
    """
    weights = open_weights(path)
    return {name: weights.read(name) for name in weights.shapes}
