"""A file mapped into memory, seen as tensors: how weights are read without copying them."""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from torch import Tensor


class MappedFile:
    """Numbers of a file as tensors that are views of it; what is not touched costs no memory.

    The mapping is private and writable: an optimizer may write to a tensor, and the file stays as it is.

    Attributes:
        bytes: the whole file.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._copies: dict[tuple[int, int, torch.dtype], Tensor] = {}

    def numbers(self, dtype: torch.dtype, start: int, count: int) -> Tensor:
        """Return `count` numbers from byte `start` on, a tensor of one axis; asked again, the same memory."""
        if count == 0:
            return torch.empty(0, dtype=dtype)
        if start % dtype.itemsize == 0:
            return torch.frombuffer(self.bytes, dtype=dtype, count=count, offset=start)
        key = (start, count, dtype)  # processors want numbers at multiples of their size: copy them, once
        if key not in self._copies:
            run = bytearray(self.bytes[start : start + count * dtype.itemsize])
            self._copies[key] = torch.frombuffer(run, dtype=dtype, count=count)
        return self._copies[key]

    def release(self) -> None:
        """Take the file's pages out of this process's memory.

        The system keeps them cached as long as it has room, and maps them again where a tensor is used. Not
        after writing to a tensor: its numbers would be those of the file again.
        """
        if hasattr(self.bytes, "madvise"):  # not on Windows
            self.bytes.madvise(mmap.MADV_DONTNEED)
