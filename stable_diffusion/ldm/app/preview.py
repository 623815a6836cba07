"""What a latent shows, without the decoder: a linear map from its channels to colours, enough to watch."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor


class Previewer:
    """Shows latents.

    Args:
        colours: of `About.preview`.
        device: where the latents are.
    """

    def __init__(self, colours: Sequence[Sequence[float]], device: torch.device | str) -> None:
        rows = torch.tensor(colours, device=device)
        self.colours, self.zero = rows[:4], rows[4]

    def __call__(self, latents: Tensor) -> list[Image.Image]:
        """RGB pictures of h x w pixels for latents [B, 4, h, w]."""
        rgb = torch.einsum("bchw,cr->bhwr", latents.float(), self.colours) + self.zero  # [B, h, w, 3]
        pixels = (rgb.nan_to_num().clamp(-1, 1) * 127.5 + 127.5).to(torch.uint8).cpu().numpy()
        return [Image.fromarray(picture) for picture in pixels]


def data_url(picture: Image.Image) -> str:
    """A small picture as an address that holds the picture itself, for an <img> without a file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
