"""How near an edit is to another picture and to a text, as MagicBrush's evaluation measures it (Zhang et al.
2023): L1, L2, CLIP and DINO.

Not here: which pictures and texts a benchmark compares (`magicbrush`, `emu_edit` beside this).

H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from metrics.clip_similarity import ClipSimilarity
from metrics.editsets import dino

DINO_RESIZED = 256  # the shorter side, before the square is cut out


class ImageScores:
    """Compares pictures and texts with one CLIP model, and with DINO if there is one."""

    def __init__(self, clip: ClipSimilarity, dino: dino.Dino | None = None) -> None:
        self.clip = clip
        self.dino = dino

    def __call__(
        self,
        output: Image.Image,
        reference: Image.Image,
        caption: str | None = None,
        reference_caption: str | None = None,
    ) -> dict[str, float]:
        """Scores of one edit.

        Args:
            output: the edit.
            reference: the true result, or the input.
            caption: of what `output` should be.
            reference_caption: of `reference`; goes with `caption`.

        Returns:
            ``l1`` and ``l2``, mean differences of a range of 1, and the cosines ``clip_image`` and ``dino``
            of output and reference, ``clip_text`` of output and caption, ``clip_direction`` of both changes
            (0 where either is none). Those for which something is missing are left out.
        """
        l1, l2 = distances(output, reference)
        before, after = self._clip_images(reference, output)
        scores = {"l1": l1, "l2": l2, "clip_image": _cosine(before, after)}
        if self.dino is not None:
            squares = [centre_square(image, DINO_RESIZED, dino.SIDE) for image in (reference, output)]
            scores["dino"] = _cosine(*self.dino(torch.stack(squares)))
        if caption is not None:
            (text,) = self.clip.encode_text([caption])
            scores["clip_text"] = _cosine(after, text)
            if reference_caption is not None:
                (reference_text,) = self.clip.encode_text([reference_caption])
                scores["clip_direction"] = _cosine(after - before, text - reference_text)
        return scores

    def _clip_images(self, *images: Image.Image) -> Tensor:
        """Embeddings [B, D] of pictures resized and cut as by OpenAI's own `preprocess`.

        `ClipSimilarity` alone would squeeze them whole, which the figures of the paper are made with.
        """
        size = self.clip.size
        side = size if isinstance(size, int) else max(size)
        return self.clip.encode_image(torch.stack([centre_square(image, side, side) for image in images]))


def distances(output: Image.Image, reference: Image.Image) -> tuple[float, float]:
    """Mean absolute and mean squared difference, of a range of 1; `output` is resized to `reference`."""
    resized = output.resize(reference.size, Image.Resampling.BICUBIC)
    difference = transforms.to_tensor(resized) - transforms.to_tensor(reference)  # [3, H, W]
    return difference.abs().mean().item(), difference.square().mean().item()


def centre_square(image: Image.Image, resized: int, side: int) -> Tensor:
    """The middle [3, side, side] in [0, 1] of an RGB picture, its shorter side resized to `resized`."""
    image = transforms.resize(image, [resized], InterpolationMode.BICUBIC)
    return transforms.to_tensor(transforms.center_crop(image, [side]))


def _cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a, b, dim=0).item()
