"""The latent autoencoder with a KL-regularised posterior (Rombach et al. 2022, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.model import DDConfig, Decoder, Encoder
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.sampling.noise import ExampleNoise
from ldm.util import UserError, instantiate_from_config, reject_unknown


class AutoencoderKL(nn.Module):
    """Images to latents and back.

    Args:
        ddconfig: fields of `DDConfig`.
        lossconfig: target of the training loss; ``torch.nn.Identity`` where the model is not trained.
        embed_dim: channels of the latent that the diffusion model sees.
        ckpt_path: weights to start a training from; read by the trainer.
        image_key: name of the image in a training batch.
        monitor: metric that picks the best checkpoint of a training.
        scheduler_config: target of the learning-rate schedule.
        freeze_encoder: train the decoder alone; latents, and what was trained on them, stay as they are.
        latent_noise: in training the decoder sees posterior means with noise of this standard deviation,
            as a diffusion model's latents are never exact; None: samples of the posterior.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        embed_dim: int,
        ckpt_path: str | None = None,
        image_key: str = "image",
        monitor: str | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        freeze_encoder: bool = False,
        latent_noise: float | None = None,
    ) -> None:
        super().__init__()
        reject_unknown("AutoencoderKL's ddconfig", DDConfig, ddconfig)
        sizes = DDConfig(**ddconfig)
        if not sizes.double_z:
            raise UserError("AutoencoderKL needs double_z: true (mean and log variance), got false")
        if sizes.ch % 32:
            raise UserError(f"AutoencoderKL: expected ch to be a multiple of 32, got {sizes.ch}")
        self.image_key = image_key
        self.ckpt_path = ckpt_path
        self.monitor = monitor
        self.scheduler_config = scheduler_config
        self.encoder = Encoder(sizes)
        self.decoder = Decoder(sizes)
        self.loss = instantiate_from_config(lossconfig)
        self.quant_conv = nn.Conv2d(2 * sizes.z_channels, 2 * embed_dim, kernel_size=1)
        self.post_quant_conv = nn.Conv2d(embed_dim, sizes.z_channels, kernel_size=1)
        if freeze_encoder:
            for module in (self.encoder, self.quant_conv):
                module.requires_grad_(False)
        self.latent_noise = latent_noise
        self.downsampling = 2 ** (len(sizes.ch_mult) - 1)

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        """Posterior over [B, embed_dim, H/f, W/f] for images [B, 3, H, W] in [-1, 1]."""
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """Images [B, 3, H, W], about [-1, 1], for unscaled latents [B, embed_dim, H/f, W/f]."""
        return self.decoder(self.post_quant_conv(z))

    def training_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss on ``batch[image_key]`` ([B, 3, H, W] in [-1, 1]) and the parts of it to log."""
        x = batch[self.image_key]
        posterior = self.encode(x)
        noise = ExampleNoise.of_batch(batch, self.image_key)
        if self.latent_noise is None:
            z = posterior.sample(noise)
        else:
            z = posterior.mode() + self.latent_noise * noise(posterior.mode())
        return self.loss(x, self.decode(z), posterior)

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
        """Pictures and their reconstructions, [n, 3, H, W] in [-1, 1]."""
        x = batch[self.image_key][:n]
        return {"truth": x, "reconstruction": self.decode(self.encode(x).mode())}
