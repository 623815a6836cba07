"""Single weights files: opening pickled ones (``.ckpt``) and safetensors, writing the latter."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm.files import replacing
from ldm.util import UserError
from ldm.weights.mapped import MappedFile
from ldm.weights.names import stored_dtype
from ldm.weights.pickled import PickledWeights

_DOWNLOADS = {
    "instruct-pix2pix": "scripts/download_checkpoints.sh",
    "v1-5-pruned": "scripts/download_pretrained_sd.sh",
    "sd-v1-": "scripts/download_pretrained_sd.sh",
    "vae-ft-": "scripts/download_pretrained_sd.sh",
}
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
            raise UserError(f"cannot read {path}: its header is damaged{how_to_fetch(path)}") from error
        if given < expected:
            raise UserError(f"cannot read {path}: truncated, {given} of {expected} bytes{how_to_fetch(path)}")

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


def open_file(path: Path) -> Weights:
    """Open a single file; no tensor is read yet.

    Raises:
        UserError: it is not a weights file, it is damaged, or it asks for code to run.
    """
    if not path.exists():
        raise UserError(f"there is no file {path}{how_to_fetch(path, 'fetch it')}")
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
    raise UserError(f"cannot read {path}: expected weights, got {got}{how_to_fetch(path)}")


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
            file.write(numbers.flatten().view(torch.uint8).numpy().data)


def how_to_fetch(path: Path, words: str = "fetch it again") -> str:
    """Return how to fetch a published file; nothing for any other."""
    script = next((script for start, script in _DOWNLOADS.items() if path.name.startswith(start)), None)
    return f"; {words} with: bash {script}" if script else ""
