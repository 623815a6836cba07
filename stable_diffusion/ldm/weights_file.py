"""Weights files: opening one of any kind, told apart by what is in it, and writing safetensors.

PyTorch's pickled files (``.ckpt``, ``.pt``, ``.pth``), safetensors, and diffusers' folders, here or on the
hub; a state dict may be bare or stand under Lightning's ``state_dict``. A file stays on disk until a tensor
of it is asked for.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm.mapped_file import MappedFile
from ldm.safe_pickle import PickledWeights
from ldm.util import UserError, replacing

# The noise schedule follows from the configuration, so a model computes it and a file may or may not have it.
SCHEDULE = frozenset(
    """betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod
    log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance
    posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2""".split()
)
EMA_SETTINGS = frozenset({"model_ema.decay", "model_ema.num_updates"})

_DOWNLOADS = {
    "instruct-pix2pix": "scripts/download_checkpoints.sh",
    "v1-5-pruned": "scripts/download_pretrained_sd.sh",
    "sd-v1-": "scripts/download_pretrained_sd.sh",
    "vae-ft-": "scripts/download_pretrained_sd.sh",
}
_SUFFIXES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")  # of files, which no name on the hub has


_SAFETENSORS_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Weights(Protocol):
    """An opened weights file: name → shape of every tensor in it, and a reader of one of them.

    Tensors are views of the mapped file; `release` is `MappedFile.release`.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> Tensor: ...

    def release(self) -> None: ...


class SafetensorsWeights:
    """The weights of a safetensors file. See `Weights`.

    Attributes:
        metadata: the text that stands beside the weights, by name.

    Raises:
        UserError: the file is truncated or its header is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        given = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = file.read(min(length, given))
        self._start = expected = 8 + length
        try:
            if len(header) == length:
                tensors = json.loads(header)
                self.metadata = tensors.pop("__metadata__", {})
                self.shapes = {name: tuple(entry["shape"]) for name, entry in tensors.items()}
                self._entries = {
                    name: (entry["dtype"], *entry["data_offsets"]) for name, entry in tensors.items()
                }
                expected += max((end for _, _, end in self._entries.values()), default=0)
            if given >= expected:
                with safe_open(path, framework="pt"):  # checks shapes, types and places against each other
                    self._file = MappedFile(path)
        except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"cannot read {path}: its header is damaged{_again(path)}") from error
        if given < expected:
            raise UserError(f"cannot read {path}: truncated, {given} of {expected} bytes{_again(path)}")

    def read(self, name: str) -> Tensor:
        """Return one tensor, on the CPU, a view of the mapped file.

        Raises:
            UserError: its numbers are of a type that weights never have.
        """
        kind, start, end = self._entries[name]
        if kind not in _SAFETENSORS_TYPES:
            raise UserError(f"cannot read {self.path}: tensor {name} is of type {kind}")
        dtype = _SAFETENSORS_TYPES[kind]
        return self._file.numbers(dtype, self._start + start, (end - start) // dtype.itemsize).view(
            self.shapes[name]
        )

    def release(self) -> None:
        """See `MappedFile.release`."""
        self._file.release()


def open_weights(path: str | Path) -> Weights:
    """Open a weights file of any kind; no tensor is read yet.

    Args:
        path: a file or a diffusers folder; where there is none, a model's name on the hub, owner/name.

    Raises:
        UserError: there is no such file, it is not a weights file, it is damaged, or it asks for code to run.
    """
    # They open the single files of a folder with this function.
    from ldm.diffusers_format import DiffusersWeights, fetch, is_hub_name

    path = either_suffix(path)
    if not path.exists() and path.suffix not in _SUFFIXES and is_hub_name(path.as_posix()):
        path = fetch(path.as_posix())
    if path.is_dir():
        return DiffusersWeights(path)
    if not path.exists():
        raise UserError(f"there is no file {path}{_again(path).replace(' again', '')}")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"cannot read {path}: expected a weights file, got: {error.strerror}") from error
    if head[4:9] == b"\0\0\0\0{":  # a length of 8 bytes, whose first ones may be anything, and JSON
        return SafetensorsWeights(path)
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return PickledWeights(path)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        got = "an empty file"
    elif text.startswith(b"<"):
        got = "a web page (HTML)"
    elif text.startswith(b"version https://git-lfs"):
        got = "a Git LFS pointer"
    elif head[257:262] == b"ustar":
        got = "a tar archive"
    else:
        got = f"a file that starts with {head[:8]!r}"
    raise UserError(f"cannot read {path}: expected weights, got {got}{_again(path)}")


def either_suffix(path: str | Path) -> Path:
    """The file, or where there is none its twin: published weights come as .ckpt and as .safetensors."""
    path = Path(path)
    twin = path.with_suffix({".ckpt": ".safetensors", ".safetensors": ".ckpt"}.get(path.suffix, path.suffix))
    return twin if twin.is_file() and not path.exists() else path


def file_facts(path: str | Path | None) -> list[Any] | None:
    """What tells weights from others without reading them: their name, and the size in bytes of what is here.

    Raises:
        UserError: there is no such file, and it can be no name on the hub.
    """
    from ldm.diffusers_format import is_hub_name

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


def ema_name(name: str) -> str:
    """Return under which name a file keeps the EMA copy of ``model.…``: published names lost their dots."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def stored_dtype(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Return the type of a weight in a file of that precision; single numbers and the schedule keep it."""
    converted = dtype and tensor.is_floating_point() and tensor.ndim and name not in SCHEDULE
    return dtype if converted else tensor.dtype


def save_safetensors(
    state: Mapping[str, Tensor],
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write named tensors to a safetensors file; an existing one is replaced when the new one is complete.

    One tensor after the other is converted and written, so that no second copy of all is ever held.

    Args:
        state: name → tensor of any device and layout; tensors that share memory are written in full.
        path: the file; its folder is made.
        metadata: text to store beside the weights.
        dtype: precision of floating-point weights. Single numbers and the noise schedule keep theirs.

    Raises:
        UserError: the file cannot be written.
    """
    kinds = {dtype: kind for kind, dtype in _SAFETENSORS_TYPES.items()}
    dtypes = {name: stored_dtype(name, tensor, dtype) for name, tensor in state.items()}
    names = sorted(state, key=lambda name: -dtypes[name].itemsize)  # all stand at multiples of their size
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name in names:
        start, end = end, end + state[name].numel() * dtypes[name].itemsize
        shape = list(state[name].shape)
        header[name] = {"dtype": kinds[dtypes[name]], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(Path(path)) as part, part.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            numbers = state[name].detach().cpu().to(dtypes[name]).contiguous()
            file.write(numbers.flatten().view(torch.uint8).numpy())


def _again(path: Path) -> str:
    """Return how to fetch a published file again; nothing for any other."""
    script = next((script for start, script in _DOWNLOADS.items() if path.name.startswith(start)), None)
    return f"; fetch it again with: bash {script}" if script else ""
