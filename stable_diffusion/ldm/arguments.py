"""What the command lines that edit pictures share: number types, options of the model, errors in one line.

Nothing here takes time to import.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NoReturn

from ldm.util import UserError


class Parser(argparse.ArgumentParser):
    """Mistakes are one line, as `run_main` prints them."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists all options)")


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """An argparse type for whole numbers from `low` to `high`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, got {text!r}")
        return value

    return convert


def finite_number(text: str) -> float:
    """Convert an argument to a float that is neither infinite nor NaN."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return value


def add_model_options(group: argparse._ArgumentGroup) -> None:
    """Options that `ldm.editor.find_model` and `ImageEditor.load` take."""
    add = group.add_argument
    add("--config", metavar="FILE", help="configuration of the model (default: configs/generate.yaml)")
    add(
        "--ckpt",
        metavar="FILE",
        help="weights: .ckpt, .safetensors, a diffusers folder, or its name on the hub (default: "
        "checkpoints/instruct-pix2pix-00-22000.ckpt; without that file, the small embedded model)",
    )
    add("--vae-ckpt", metavar="FILE", help="autoencoder weights to use instead (default: none)")
    add(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="LoRA to add, of diffusers or kohya, 1 where no weight is given; may be given several times "
        "(default: none)",
    )
    add(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="where to compute; auto takes a GPU if there is one (default: %(default)s)",
    )
    add(
        "--precision",
        choices=("auto", "fp32", "fp16", "bf16"),
        default="auto",
        help="number format of the model; auto is fp16 on CUDA, else fp32 (default: %(default)s)",
    )
