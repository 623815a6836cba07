"""Where a loaded model computes, in which precision, and what is said when its memory does not suffice."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ldm.util import UserError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """The device of that name; for "auto" a GPU if there is one.

    Raises:
        UserError: torch knows no such device, or there is none here.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"expected device auto, cpu, cuda or mps, got {name!r}") from None
    if not available.get(device.type, True):
        raise UserError(f"device {name!r}: torch finds no such GPU here; expected auto or cpu")
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """A key of `DTYPES`: `name`, or for "auto" what suits the device.

    Raises:
        UserError: no such precision.
    """
    if name == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if name not in DTYPES:
        raise UserError(f"expected precision auto, {', '.join(DTYPES)}, got {name!r}")
    return name


def precision_of(weight: Tensor) -> str:
    """The key of `DTYPES` that a weight is stored as."""
    return next(name for name, dtype in DTYPES.items() if dtype == weight.dtype)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is one of torch's several errors for too little memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in words)


@contextmanager
def memory_errors(task: str) -> Iterator[None]:
    """Turn running out of memory into one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"too little memory to {task}: try a lower resolution, precision fp16, or another device"
        ) from error


def keep_freed_memory() -> None:
    """Have the C library keep freed memory, up to 1 GB of it, for the blocks to come; Linux only.

    By default glibc returns every block of over 32 MB to the system, and on a CPU the fresh pages of the next
    one can cost as much as the convolution that needs it.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # musl has none
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block gets a mapping of its own
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD
