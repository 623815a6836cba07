"""DINO's ViT-S/16 (Caron et al. 2021), whose embeddings benchmarks of editing compare pictures by.

H W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.util import UserError, one_line
from ldm.weights.opening import read_state_dict

MODEL = "vit_small_patch16_224.dino"  # of timm
SIDE = 224  # pixels of the square that it sees

_LONGEST = 200  # characters of torch's list of weights that do not fit


class Dino(nn.Module):
    """Embeds pictures, frozen and in float32.

    Args:
        weights: file of the published backbone, as its authors or timm have it; None downloads timm's.
        device: where the model goes.

    Raises:
        UserError: a download that failed, a file that cannot be read, or one that does not fit.
    """

    mean: Tensor
    std: Tensor
    network: Any  # timm's

    def __init__(self, weights: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        super().__init__()
        # First, so that a wrong file is told of before the model is made.
        state = read_state_dict(weights) if weights is not None else None
        try:
            self.network = timm.create_model(MODEL, pretrained=state is None)
        except Exception as error:  # a download fails in any way there is
            raise UserError(f"cannot download {MODEL}: {one_line(error)}") from error
        if state is not None:
            try:
                self.network.load_state_dict(state)
            except RuntimeError as error:
                raise UserError(f"{weights} does not fit {MODEL}: {one_line(error)[:_LONGEST]}") from error
        for name in ("mean", "std"):
            numbers = torch.tensor(self.network.pretrained_cfg[name], dtype=torch.float32)
            self.register_buffer(name, numbers.view(3, 1, 1), persistent=False)
        self.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Embed pictures [B, 3, SIDE, SIDE] in [0, 1], [B, 384] of length 1."""
        return F.normalize(self.network((images.to(self.mean) - self.mean) / self.std))
