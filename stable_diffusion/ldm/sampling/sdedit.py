"""SDEdit: editing with a text-to-image model alone (Meng et al. 2022), the paper's baseline.

The picture is noised to a level, and denoised from there towards the caption that it is to have.

B pictures, h w latent size, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm.sampling.guidance import TextDenoiser
from ldm.sampling.noise import ExampleNoise
from ldm.sampling.samplers import DEFAULT, sample
from ldm.sampling.schedule import append_zero, t_to_sigma

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion


def strength_sigmas(sigmas: Tensor, steps: int, strength: float) -> Tensor:
    """The noise levels from that of a strength down to 0.

    The level does not depend on the number of steps, only how finely the way down from it is divided.

    Args:
        sigmas: of `model_sigmas`.
        steps: of a whole denoising; of the part, that share of them, rounded, at least one.
        strength: share of the training timesteps, 0 (nothing to do: [0]) to 1 (all).
    """
    if strength == 0:
        return sigmas.new_zeros(1)
    start = strength * (len(sigmas) - 1)
    count = max(1, round(strength * steps))
    return append_zero(t_to_sigma(sigmas, torch.linspace(start, 0, count, device=sigmas.device)))


@torch.inference_mode()
def sdedit_batch(
    model: LatentDiffusion,
    images: Tensor,
    captions: Sequence[str],
    *,
    steps: int,
    strength: float,
    cfg_text: float,
    seeds: Sequence[int],
    sampler: str = DEFAULT,
) -> Tensor:
    """Edit pictures of one size together; what one becomes does not depend on the others.

    Args:
        model: a text-to-image model.
        images: [B, 3, H, W] in [-1, 1], both sides multiples of what the networks need, on the model's device
            and of its type.
        captions: of the B results.
        steps, strength: see `strength_sigmas`. At 0 a picture comes back as the autoencoder has it; at 1
            nothing is left of it.
        cfg_text: guidance scale.
        seeds: of the B edits.
        sampler: a name of `ldm.sampling.samplers.sampler_names`.

    Returns:
        [B, 3, H, W], about [-1, 1].
    """
    z = model.scale_factor * model.encode_first_stage(images).mode().float()  # [B, 4, h, w]
    sigmas = strength_sigmas(model.sigmas, steps, strength)
    if len(sigmas) > 1:
        noise = ExampleNoise.seeded(seeds, images.device)
        # The highest level of training is not infinite: at strength 1 a trace would be left.
        z = (z if strength < 1 else 0) + noise(z) * sigmas[0]
        *texts, no_text = model.get_learned_conditioning([*captions, ""]).split(1)  # [1, L, D] each
        denoise = TextDenoiser(model.unet, model.sigmas, torch.cat(texts), no_text, cfg_text)
        z = sample(sampler, denoise, z, sigmas, noise=noise)
    return model.decode_first_stage(z.to(images.dtype))
