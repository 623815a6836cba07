"""Where a loaded model computes, in which precision, and what is said when its memory does not suffice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoint import load_model
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import UserError, keep_freed_memory
from ldm.weights_file import Weights

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_for_sampling(
    config: str | Path,
    ckpt: str | Path | Weights,
    vae_ckpt: str | Path | Weights | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> LatentDiffusion:
    """A model ready to sample, its memory laid out as suits the device.

    Args:
        config: YAML file of the model.
        ckpt, vae_ckpt: as of `load_model`.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "mps", or any name torch knows.
        precision: "auto" (fp16 on CUDA, else fp32), "fp32", "fp16" or "bf16".

    Raises:
        UserError: no such device or precision, or files that do not fit.
    """
    place = choose_device(device)
    dtype = DTYPES[choose_precision(precision, place)]
    model = load_model(config, ckpt, vae_ckpt=vae_ckpt, device=place, dtype=dtype)
    if place.type == "cpu":  # where a copy in another layout would not pay
        keep_freed_memory()
    else:
        for network in (model.model, model.first_stage_model):
            network.to(memory_format=torch.channels_last)
    return model


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
