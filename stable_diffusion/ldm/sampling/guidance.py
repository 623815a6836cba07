"""Classifier-free guidance: denoisers that weigh several conditionings of one UNet against each other.

A denoiser is a function of (z, sigma) as samplers call it: z is the latent at noise level sigma, in the
parametrisation x_0 + sigma noise, and the result is the expected x_0. The UNet predicts noise, so
D(z, sigma) = z - sigma eps(z / sqrt(sigma^2 + 1), t(sigma)).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.sampling.schedule import sigma_to_t


class Branch(NamedTuple):
    """One conditioning of the UNet, and what its prediction counts for.

    Attributes:
        weight: a number or [B, 1, 1, 1].
        text: conditioning, [B or 1, L, D].
        image: latent of a picture, [B or 1, 4, h, w], or None for a model without one.
    """

    weight: float | Tensor
    text: Tensor
    image: Tensor | None = None


class GuidedDenoiser:
    """A weighted sum of UNet branches that differ in conditioning, run as one batch.

    Branches of weight zero are not computed: the sum is the same without them.

    Args:
        unet: predicts the noise.
        sigmas: of every training timestep, rising, [timesteps].
        branches: their weights add up to 1.
    """

    def __init__(self, unet: UNetModel, sigmas: Tensor, *branches: Branch) -> None:
        self.unet, self.sigmas = unet, sigmas
        self.branches = [one for one in branches if isinstance(one.weight, Tensor) or one.weight != 0]

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        """Denoised latents [B, 4, h, w] for z [B, 4, h, w] at sigma [B]."""
        n, batch = len(self.branches), len(z)
        t = sigma_to_t(self.sigmas, sigma).repeat(n)  # [n B]
        sigma = sigma[:, None, None, None]
        x = (z / (sigma.square() + 1).sqrt()).repeat(n, 1, 1, 1)
        images = [branch.image for branch in self.branches if branch.image is not None]
        if images:
            x = torch.cat([x, _batched(images, batch)], dim=1)  # [n B, 8, h, w]
        text = _batched([branch.text for branch in self.branches], batch)  # [n B, L, D]
        dtype = self.unet.dtype
        eps = self.unet(x.to(dtype), t, text.to(dtype)).to(z.dtype)
        guided = torch.zeros_like(z)
        for branch, e in zip(self.branches, eps.chunk(n), strict=True):
            guided = guided + branch.weight * e
        return z - sigma * guided


def _batched(values: list[Tensor], batch: int) -> Tensor:
    """One conditioning of all branches, one after another, each for the whole batch, [n B, …]."""
    return torch.cat([value.expand(batch, *value.shape[1:]) for value in values])


class EditDenoiser(GuidedDenoiser):
    """InstructPix2Pix's guidance by text and by picture (Brooks et al. 2022, equation 3).

    With c both conditionings, i the picture alone and u neither: u + s_T (c - i) + s_I (i - u).

    Args:
        unet, sigmas: of the edit model, see `GuidedDenoiser`.
        text: conditioning of the instruction, [B or 1, L, D].
        image: unscaled latent of the picture, [B or 1, 4, h, w].
        null_text: conditioning of the empty text, [1, L, D].
        cfg_text, cfg_image: guidance scales s_T and s_I, one for all or [B, 1, 1, 1]; below 1 is allowed.
    """

    def __init__(
        self,
        unet: UNetModel,
        sigmas: Tensor,
        text: Tensor,
        image: Tensor,
        null_text: Tensor,
        cfg_text: float | Tensor,
        cfg_image: float | Tensor,
    ) -> None:
        super().__init__(
            unet,
            sigmas,
            Branch(cfg_text, text, image),
            Branch(cfg_image - cfg_text, null_text, image),
            Branch(1.0 - cfg_image, null_text, torch.zeros_like(image)),
        )


class TextDenoiser(GuidedDenoiser):
    """Guidance by text alone (Ho and Salimans 2021): u + s (c - u).

    Args:
        unet, sigmas: see `GuidedDenoiser`.
        text: conditioning [B or 1, L, D].
        null_text: conditioning of the empty text, [1, L, D].
        cfg_text: guidance scale s, one for all or [B, 1, 1, 1].
    """

    def __init__(
        self, unet: UNetModel, sigmas: Tensor, text: Tensor, null_text: Tensor, cfg_text: float | Tensor
    ) -> None:
        super().__init__(unet, sigmas, Branch(cfg_text, text), Branch(1.0 - cfg_text, null_text))
