"""Pictures for a model: the published sizing rule, and RGB ↔ tensor in [-1, 1].

torch is only imported where a tensor is made, so that a program can check its input and output files before
it pays for that import.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from ldm.pictures.reading import check_size
from ldm.util import UserError

if TYPE_CHECKING:
    from torch import Tensor

MULTIPLE = 64  # both sides of a picture given to the model are multiples of this


def fit_to_model(image: Image.Image, resolution: int) -> Image.Image:
    """Resize (and crop the little that is over) to multiples of 64 with the longer side near `resolution`.

    The published rule: scale the longer side to `resolution`, then up until the shorter side is a multiple of
    64, then cut both sides down to multiples of 64.

    Raises:
        UserError: a resolution under 64, or a picture that `check_size` refuses.
    """
    if resolution < MULTIPLE:
        raise UserError(f"expected a resolution of at least {MULTIPLE} pixels, got {resolution}")
    check_size(image)
    width, height = image.size
    factor = resolution / max(width, height)
    factor = math.ceil(min(width, height) * factor / MULTIPLE) * MULTIPLE / min(width, height)
    # Floating point leaves one shorter side in twelve a hair under its multiple (667 * (384 / 667) < 384),
    # which costs 64 pixels. Published seeds depend on it, so it stays; `max` keeps a side from becoming 0.
    width = max(MULTIPLE, math.floor(width * factor / MULTIPLE) * MULTIPLE)
    height = max(MULTIPLE, math.floor(height * factor / MULTIPLE) * MULTIPLE)
    return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> Tensor:
    """Turn an RGB picture into a float32 tensor [1, 3, H, W] in [-1, 1]."""
    import torch  # late: see the head of this file

    pixels = 2 * torch.from_numpy(np.array(image.convert("RGB"))).float() / 255 - 1
    return pixels.permute(2, 0, 1)[None].contiguous()  # [1, 3, H, W]


def to_image(pixels: Tensor) -> Image.Image:
    """Turn a tensor [3, H, W] in [-1, 1] (clamped) into RGB, cutting off fractions as the published code."""
    scaled = 255 * ((pixels.detach().float() + 1) / 2).clamp(0, 1)
    return Image.fromarray(scaled.permute(1, 2, 0).cpu().numpy().astype(np.uint8))  # [H, W, 3]
