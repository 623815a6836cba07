"""Latent diffusion: autoencoder, text encoder and noise-predicting UNet under one roof.

Denoising diffusion (Ho et al. 2020) in the latent space of an autoencoder (Rombach et al. 2022), conditioned
on text. This is the text-to-image model; `ddpm_edit` adds what InstructPix2Pix needs. Sampling is not here:
see `ldm.sampling`.

B batch, H W pixels, h w latent size, L tokens, D width of the conditioning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.ema import LitEma
from ldm.sampling.guidance import TextDenoiser
from ldm.sampling.noise import ExampleNoise
from ldm.sampling.samplers import sample_euler_ancestral
from ldm.sampling.schedule import get_sigmas, make_beta_schedule, model_sigmas
from ldm.util import UserError, instantiate_from_config

Conditioning = Mapping[str, list[Tensor]]

LOGGED_SAMPLE_STEPS = 20


class DiffusionWrapper(nn.Module):
    """The UNet and the way its conditioning reaches it; gives published keys their ``model.`` level."""

    def __init__(self, unet_config: Mapping[str, Any], conditioning_key: str) -> None:
        super().__init__()
        if conditioning_key not in ("crossattn", "hybrid"):
            raise UserError(f"conditioning_key: expected crossattn or hybrid, got {conditioning_key!r}")
        self.diffusion_model: UNetModel = instantiate_from_config(unet_config)
        self.conditioning_key = conditioning_key

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        if self.conditioning_key == "hybrid":
            x = torch.cat([x, *cond["c_concat"]], dim=1)  # [B, 8, h, w]
        return self.diffusion_model(x, t, torch.cat(cond["c_crossattn"], dim=1))


class LatentDiffusion(nn.Module):
    """Text-to-image latent diffusion.

    Args:
        first_stage_config, cond_stage_config, unet_config: targets of autoencoder, text encoder and UNet.
        timesteps, linear_start, linear_end: noise schedule, see `make_beta_schedule`.
        conditioning_key: ``crossattn`` (text) or ``hybrid`` (text, and an image latent at the input).
        scale_factor: latents of the autoencoder times this have about unit variance.
        first_stage_key, cond_stage_key: names of picture and text in a training batch.
        cond_stage_trainable: train the text encoder together with the UNet.
        channels: of the latent.
        use_ema: keep a moving average of the UNet's weights (training).
        ema_decay: upper limit of its decay.
        load_ema: start the average from the file's own average, where `ckpt_path` has one.
        ckpt_path: weights to start a training from; read by the trainer.
        monitor: metric that picks the best checkpoint of a training.
        scheduler_config: target of the learning-rate schedule.
        image_size: historical, no effect: any latent size works.
        num_timesteps_cond, log_every_t: historical, no effect.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor

    def __init__(
        self,
        first_stage_config: Mapping[str, Any],
        cond_stage_config: Mapping[str, Any],
        unet_config: Mapping[str, Any],
        timesteps: int = 1000,
        linear_start: float = 0.00085,
        linear_end: float = 0.012,
        conditioning_key: str = "crossattn",
        scale_factor: float = 1.0,
        first_stage_key: str = "image",
        cond_stage_key: str = "caption",
        cond_stage_trainable: bool = False,
        channels: int = 4,
        use_ema: bool = True,
        ema_decay: float = 0.9999,
        load_ema: bool = True,
        ckpt_path: str | None = None,
        monitor: str | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        num_timesteps_cond: int | None = None,
        log_every_t: int | None = None,
    ) -> None:
        super().__init__()
        self.timesteps, self.linear_start, self.linear_end = timesteps, linear_start, linear_end
        self.scale_factor = scale_factor
        self.first_stage_key, self.cond_stage_key = first_stage_key, cond_stage_key
        self.channels = channels
        self.load_ema = load_ema
        self.ckpt_path = ckpt_path
        self.monitor = monitor
        self.scheduler_config = scheduler_config

        self.model = DiffusionWrapper(unet_config, conditioning_key)
        self.first_stage_model: AutoencoderKL = instantiate_from_config(first_stage_config)
        self.cond_stage_model = instantiate_from_config(cond_stage_config)
        self.frozen = [self.first_stage_model] + ([] if cond_stage_trainable else [self.cond_stage_model])
        for module in self.frozen:
            module.eval().requires_grad_(False)
        self.use_ema = use_ema
        if use_ema:
            self.model_ema = LitEma(self.model, ema_decay)
        self.register_schedule()

    def register_schedule(self) -> None:
        """(Re)compute the noise schedule's buffers, all float32 [timesteps], under their published names."""
        with torch.device("cpu"):  # also when the model itself is built without data, on the meta device
            betas = make_beta_schedule(self.timesteps, self.linear_start, self.linear_end)
            alphas_cumprod = torch.cumprod(1 - betas, dim=0)  # a_t
            previous = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])  # a_(t-1)
        posterior_variance = betas * (1 - previous) / (1 - alphas_cumprod)  # Ho et al. 2020, equation 7
        buffers = {
            "betas": betas,
            "alphas_cumprod": alphas_cumprod,
            "alphas_cumprod_prev": previous,
            "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - alphas_cumprod).sqrt(),
            "log_one_minus_alphas_cumprod": (1 - alphas_cumprod).log(),
            "sqrt_recip_alphas_cumprod": (1 / alphas_cumprod).sqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / alphas_cumprod - 1).sqrt(),
            "posterior_variance": posterior_variance,
            "posterior_log_variance_clipped": posterior_variance.clamp(min=1e-20).log(),
            "posterior_mean_coef1": betas * previous.sqrt() / (1 - alphas_cumprod),
            "posterior_mean_coef2": (1 - previous) * (1 - betas).sqrt() / (1 - alphas_cumprod),
        }
        for name, values in buffers.items():
            self.register_buffer(name, values.float())

    def train(self, mode: bool = True) -> LatentDiffusion:
        """Set training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    @property
    def unet(self) -> UNetModel:
        return self.model.diffusion_model

    @property
    def sigmas(self) -> Tensor:
        """Noise level of every training timestep, rising, float32, [timesteps]."""
        return model_sigmas(self.alphas_cumprod.float())

    # --- the published interface ---

    def get_learned_conditioning(self, c: list[str]) -> Tensor:
        """Text conditioning of B texts, [B, L, D]."""
        return self.cond_stage_model(c)

    def encode_first_stage(self, x: Tensor) -> DiagonalGaussianDistribution:
        """Posterior over unscaled latents [B, 4, h, w] of images [B, 3, H, W] in [-1, 1]."""
        return self.first_stage_model.encode(x)

    def get_first_stage_encoding(
        self, posterior: DiagonalGaussianDistribution, noise: Callable[[Tensor], Tensor] = torch.randn_like
    ) -> Tensor:
        """A sample of the posterior, scaled as the UNet expects it, [B, 4, h, w]."""
        return self.scale_factor * posterior.sample(noise)

    def decode_first_stage(self, z: Tensor) -> Tensor:
        """Images [B, 3, H, W], about [-1, 1], of scaled latents [B, 4, h, w]."""
        return self.first_stage_model.decode(z / self.scale_factor)

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Predicted noise [B, 4, h, w].

        Args:
            x_noisy: scaled noisy latents [B, 4, h, w].
            t: timesteps [B].
            cond: ``{"c_crossattn": [[B, L, D], …]}`` and, for editing, ``"c_concat": [[B, 4, h, w], …]``.
        """
        return self.model(x_noisy, t, cond)

    @contextmanager
    def ema_scope(self, context: str | None = None) -> Iterator[None]:
        """Within the context the UNet holds the averaged weights. `context` is historical, no effect."""
        if not self.use_ema:
            yield
            return
        with self.model_ema.swapped_into(self.model):
            yield

    # --- training ---

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Latents noised to timesteps `t` [B] (Ho et al. 2020, equation 4)."""
        mean = self.sqrt_alphas_cumprod[t][:, None, None, None] * x_start
        return mean + self.sqrt_one_minus_alphas_cumprod[t][:, None, None, None] * noise

    def p_losses(
        self, x_start: Tensor, cond: Conditioning, t: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the predicted noise (Ho et al. 2020, equation 14), and what to log."""
        noise = torch.randn_like(x_start) if noise is None else noise
        predicted = self.apply_model(self.q_sample(x_start, t, noise), t, cond)
        loss = (predicted.float() - noise).square().mean()
        return loss, {"loss_simple": loss.detach()}

    def get_input(
        self, batch: Mapping[str, Any], noise: ExampleNoise | None = None
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Scaled latents [B, 4, h, w] and conditioning of a training batch.

        Args:
            noise: what is drawn; by default by `ExampleNoise.of_batch`.
        """
        noise = noise or ExampleNoise.of_batch(batch, self.first_stage_key)
        x = self.get_first_stage_encoding(self.posterior(batch[self.first_stage_key]), noise)
        return x, {"c_crossattn": [self.get_learned_conditioning(list(batch[self.cond_stage_key]))]}

    def posterior(self, x: Tensor) -> DiagonalGaussianDistribution:
        """Posterior over unscaled latents in float32, whatever the precision of the networks.

        Args:
            x: images [B, 3, H, W] in [-1, 1], or posterior parameters [B, 8, h, w] computed before.
        """
        parameters = self.encode_first_stage(x).parameters.float() if x.shape[1] == 3 else x
        return DiagonalGaussianDistribution(parameters)

    def training_loss(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss on a batch at random timesteps, and what to log."""
        noise = ExampleNoise.of_batch(batch, self.first_stage_key)
        x, cond = self.get_input(batch, noise)
        t = noise.integers(self.timesteps).to(x.device)
        return self.p_losses(x, cond, t, noise(x))

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Any], n: int) -> dict[str, Tensor | list[str]]:
        """Truth, caption and sample: n texts, and pictures [n, 3, H, W] in [-1, 1]."""
        x = self.get_first_stage_encoding(self.posterior(batch[self.first_stage_key][:n]))
        captions = list(batch[self.cond_stage_key])[:n]
        text = self.get_learned_conditioning(captions)
        with self.ema_scope():
            null_text = self.get_learned_conditioning([""])
            denoiser = TextDenoiser(self.unet, self.sigmas, text, null_text, cfg_text=7.5)
            return {
                "truth": self.decode_first_stage(x),
                "caption": captions,
                "sample": self.sample_latent(denoiser, x),
            }

    def sample_latent(self, denoiser: Any, like: Tensor) -> Tensor:
        """Pictures sampled in a few steps for logging, for latents of the shape of `like`."""
        sigmas = get_sigmas(self.sigmas, LOGGED_SAMPLE_STEPS)
        z = sample_euler_ancestral(denoiser, torch.randn_like(like) * sigmas[0], sigmas)
        return self.decode_first_stage(z)
