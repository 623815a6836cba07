"""Classifier-free guidance: denoisers that weigh several conditionings of one UNet against each other.

A denoiser is a function of (z, sigma) as samplers call it: z is the latent at noise level sigma, in the
parametrisation x_0 + sigma noise, and the result is the expected x_0. The UNet predicts noise, so
D(z, sigma) = z - sigma eps(z / sqrt(sigma^2 + 1), t(sigma)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm.sampling.schedule import model_sigmas, sigma_to_t

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion


class GuidedDenoiser:
    """A weighted sum of UNet branches that differ in conditioning, run as one batch.

    Branches of weight zero are not computed: the sum is the same without them.

    Args:
        model: gives the UNet and the noise schedule.
        branches: of each branch its weight, a number or [B, 1, 1, 1], text conditioning [B or 1, L, D], and
            image latent [B or 1, 4, h, w] or None for a model without one. The weights add up to 1.
    """

    def __init__(
        self, model: LatentDiffusion, branches: list[tuple[float | Tensor, Tensor, Tensor | None]]
    ) -> None:
        self.unet = model.model.diffusion_model
        self.sigmas = model_sigmas(model.alphas_cumprod.float())
        self.branches = [branch for branch in branches if isinstance(branch[0], Tensor) or branch[0] != 0]

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        """Denoised latents [B, 4, h, w] for z [B, 4, h, w] at sigma [B]."""
        n, batch = len(self.branches), len(z)
        t = sigma_to_t(self.sigmas, sigma).repeat(n)  # [n B]
        sigma = sigma[:, None, None, None]
        x = (z / (sigma.square() + 1).sqrt()).repeat(n, 1, 1, 1)
        if self.branches[0][2] is not None:
            x = torch.cat([x, self._batched(2, batch)], dim=1)  # [n B, 8, h, w]
        dtype = self.unet.out[2].weight.dtype
        eps = self.unet(x.to(dtype), t, self._batched(1, batch).to(dtype)).to(z.dtype)
        guided = sum(weight * e for (weight, _, _), e in zip(self.branches, eps.chunk(n), strict=True))
        return z - sigma * guided

    def _batched(self, part: int, batch: int) -> Tensor:
        """That conditioning of all branches, one after another, each for the whole batch."""
        values = (branch[part] for branch in self.branches)
        return torch.cat([value.expand(batch, *value.shape[1:]) for value in values])


class EditDenoiser(GuidedDenoiser):
    """InstructPix2Pix's guidance by text and by picture (Brooks et al. 2022, equation 3).

    With c both conditionings, i the picture alone and u neither: u + s_T (c - i) + s_I (i - u).

    Args:
        model: the edit model.
        text: conditioning of the instruction, [B or 1, L, D].
        image: unscaled latent of the picture, [B or 1, 4, h, w].
        null_text: conditioning of the empty text, [1, L, D].
        cfg_text, cfg_image: guidance scales s_T and s_I, one for all or [B, 1, 1, 1]; below 1 is allowed.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        text: Tensor,
        image: Tensor,
        null_text: Tensor,
        cfg_text: float | Tensor,
        cfg_image: float | Tensor,
    ) -> None:
        super().__init__(
            model,
            [
                (cfg_text, text, image),
                (cfg_image - cfg_text, null_text, image),
                (1.0 - cfg_image, null_text, torch.zeros_like(image)),
            ],
        )


class TextDenoiser(GuidedDenoiser):
    """Guidance by text alone (Ho and Salimans 2021): u + s (c - u).

    Args:
        text: conditioning [B or 1, L, D].
        null_text: conditioning of the empty text, [1, L, D].
        cfg_text: guidance scale s, one for all or [B, 1, 1, 1].
    """

    def __init__(
        self, model: LatentDiffusion, text: Tensor, null_text: Tensor, cfg_text: float | Tensor
    ) -> None:
        super().__init__(model, [(cfg_text, text, None), (1.0 - cfg_text, null_text, None)])
