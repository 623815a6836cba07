"""Pairs of pictures from pairs of captions (Brooks et al. 2022, section 3.1, second stage).

Every sample follows from its seed, by the published draws: the start noise, then how long attention is
shared, then the guidance scale, then one noise a step for both pictures. Not here: which samples are kept
(`clip_filter`) and how they are stored.

B samples, L tokens, D width of the conditioning, h w latent size, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.sampling.noise import ExampleNoise
from ldm.sampling.prompt_to_prompt import PairDenoiser, last_shared_sigma
from ldm.sampling.samplers import DEFAULT, sample, sampler_names
from ldm.sampling.schedule import get_sigmas
from ldm.util import UserError

STEPS = 100
RESOLUTION = 512
# Its steps depend on the error of the whole batch, so a sample would depend on its neighbours.
ADAPTIVE = "dpm_adaptive"


@dataclass(frozen=True)
class PairSettings:
    """What makes a sample again, under the names of ``metadata.jsonl``.

    Attributes:
        seed: of its random numbers, 0 to 2^32 - 1.
        p2p_threshold: share of the steps in which attention is shared, 0 to 1.
        cfg_scale: guidance scale.
    """

    seed: int
    p2p_threshold: float
    cfg_scale: float


@dataclass(frozen=True)
class Ranges:
    """What a sample's settings are drawn from, evenly: lowest and highest value of each."""

    p2p_threshold: tuple[float, float] = (0.1, 0.9)
    cfg_scale: tuple[float, float] = (7.5, 15.0)


class PairSampler:
    """Samples pairs with one model.

    Args:
        model: a text-to-image model.
        steps: denoising steps, at least 2.
        resolution: side of the pictures in pixels; a multiple of what the networks need.
        sampler: of `ldm.sampling.samplers.sampler_names`, without `ADAPTIVE`.

    Attributes:
        latent_shape: of one picture.

    Raises:
        UserError: an edit model, or a setting that cannot be.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        steps: int = STEPS,
        resolution: int = RESOLUTION,
        sampler: str = DEFAULT,
    ) -> None:
        if model.model.conditioning_key != "crossattn":
            raise UserError("expected a text-to-image model, got an edit model")
        check_pair_sampler(sampler)
        multiple = model.first_stage_model.downsampling * model.unet.downsampling
        if resolution < multiple or resolution % multiple:
            raise UserError(f"resolution: expected a multiple of {multiple} pixels, got {resolution}")
        side = resolution // model.first_stage_model.downsampling
        self.model = model
        self.latent_shape = (model.channels, side, side)
        self.sampler = sampler
        self.device = model.betas.device
        self._null_text: Tensor | None = None
        self.set_steps(steps)

    def set_steps(self, steps: int) -> None:
        """Choose the number of denoising steps; errors as for the class."""
        if steps < 2:
            raise UserError(f"steps: expected at least 2, got {steps}")
        self.sigmas = get_sigmas(self.model.sigmas, steps)  # [steps + 1]

    def sample(
        self, captions: tuple[str, str], seeds: Sequence[int], ranges: Ranges
    ) -> tuple[list[PairSettings], Tensor]:
        """Draw B samples.

        Returns:
            Their settings, and the pictures [B, 2, 3, H, W] in [-1, 1], float32.
        """
        noise, z, drawn = self.draw(seeds)
        settings = [
            PairSettings(seed, _between(p2p, ranges.p2p_threshold), _between(cfg, ranges.cfg_scale))
            for seed, (p2p, cfg) in zip(seeds, drawn, strict=True)
        ]
        return settings, self.denoise(captions, settings, noise, z)

    def replay(self, captions: tuple[str, str], settings: Sequence[PairSettings]) -> Tensor:
        """Make samples again, [B, 2, 3, H, W] in [-1, 1]."""
        noise, z, _ = self.draw([one.seed for one in settings])
        return self.denoise(captions, settings, noise, z)

    def draw(self, seeds: Sequence[int]) -> tuple[ExampleNoise, Tensor, list[tuple[float, float]]]:
        """Noise of every sample, its start [B, 4, h, w], and two numbers in [0, 1) for each."""
        noise = ExampleNoise.seeded(seeds, self.device)
        # The published code draws numbers from the CPU's generator and noise from the device's: on a CPU
        # these are one.
        numbers = noise if self.device.type == "cpu" else ExampleNoise.seeded(seeds)
        z = noise(torch.empty(len(seeds), *self.latent_shape, device=self.device))
        p2p, cfg = numbers.uniform().tolist(), numbers.uniform().tolist()
        return noise, z, list(zip(p2p, cfg, strict=True))

    @torch.inference_mode()
    def denoise(
        self, captions: tuple[str, str], settings: Sequence[PairSettings], noise: ExampleNoise, z: Tensor
    ) -> Tensor:
        """Pictures [B, 2, 3, H, W] in [-1, 1], float32, of two captions.

        Args:
            settings: of the B samples.
            noise: what every step adds to both pictures of a sample.
            z: start noise of standard deviation 1, [B, 4, h, w].
        """
        model = self.model
        if self._null_text is None:
            self._null_text = model.get_learned_conditioning([""])  # [1, L, D]
        denoiser = PairDenoiser(
            model.unet,
            model.sigmas,
            model.get_learned_conditioning(list(captions)),  # [2, L, D]
            self._null_text,
            torch.tensor([one.cfg_scale for one in settings], device=self.device),
            last_shared_sigma(self.sigmas, [one.p2p_threshold for one in settings]),
        )
        pairs = len(settings)
        z = (z * self.sigmas[0]).repeat(2, 1, 1, 1)  # [2 B, 4, h, w]
        z = sample(
            self.sampler, denoiser, z, self.sigmas, noise=lambda like: noise(like[:pairs]).repeat(2, 1, 1, 1)
        )
        dtype = next(model.first_stage_model.parameters()).dtype
        # Two at a time: a decoder in full resolution needs more memory than all of the denoising.
        pictures = torch.cat([model.decode_first_stage(part) for part in z.to(dtype).split(2)])
        return pictures.float().clamp(-1, 1).unflatten(0, (2, pairs)).transpose(0, 1)


def check_pair_sampler(name: str) -> None:
    """Raise `UserError` for a sampler that does not exist or mixes the samples of a batch."""
    if name == DEFAULT:
        return
    names = [known for known in sampler_names() if known != ADAPTIVE]
    if name not in names:
        raise UserError(f"sampler: expected one of {', '.join(names)}, got {name!r}")


def _between(share: float, ends: tuple[float, float]) -> float:
    low, high = ends
    return low + share * (high - low)
