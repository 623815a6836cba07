"""The diffusion UNet (Dhariwal and Nichol 2021, with the text transformers of Rombach et al. 2022).

InstructPix2Pix is this network with 8 input channels: the noisy latent and, behind it, the image latent
(Brooks et al. 2022, section 3.2). Names of parameters are the published ones, since checkpoints hold them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.model import Upsample
from ldm.util import UserError


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding: [B] (whole or fractional steps) -> [B, dim], cosines first."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps[:, None].float() * torch.exp(-math.log(10000.0) * exponent)  # [B, half]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


def group_norm(channels: int) -> nn.GroupNorm:
    """The normalisation of residual blocks: 32 groups, epsilon 1e-5."""
    return nn.GroupNorm(32, channels)


def zero_init(layer: nn.Conv2d) -> nn.Conv2d:
    """Zero a convolution, so that its branch starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Downsample(nn.Module):
    """Halve height and width by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)  # [B, C, h, w] -> [B, C, h/2, w/2]


class ResBlock(nn.Module):
    """Residual block that adds the timestep embedding between its two convolutions.

    Args:
        channels, out_channels: widths in and out.
        emb_channels: width of the timestep embedding.
        use_checkpoint: recompute activations in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            group_norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, kernel_size=3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            group_norm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_init(nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, kernel_size=1)
        )
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[B, channels, h, w], [B, emb_channels] -> [B, out_channels, h, w]."""
        if self.use_checkpoint and self.training:
            return checkpoint(self._forward, x, emb, use_reentrant=False)
        return self._forward(x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class TimestepEmbedSequential(nn.Sequential):
    """A sequence that hands each layer what it takes: the timestep embedding, the text, or neither."""

    def forward(  # type: ignore[override]  # a sequence of one input is what its class has in mind
        self, x: Tensor, emb: Tensor, context: Tensor | None = None
    ) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class UNetModel(nn.Module):
    """Noise prediction from a noisy latent, a timestep and text.

    Args:
        image_size: historical, no effect: the network takes any size divisible by its downsampling.
        in_channels: 4 for text-to-image, 8 for editing (noisy latent, then image latent).
        model_channels: width of the first level, a multiple of 32.
        out_channels: channels of the predicted noise.
        num_res_blocks: residual blocks a level.
        attention_resolutions: downsampling factors at which blocks are followed by a transformer.
        channel_mult: width of each level as a multiple of `model_channels`.
        use_checkpoint: recompute activations in the backward pass (slower, much less memory).
        num_heads, num_head_channels: heads of the attentions, by number or by the width of one.
        use_spatial_transformer: must be true: attention is always the text transformer.
        transformer_depth: transformer blocks at each place.
        context_dim: width of the text conditioning.
        legacy: historical, no effect with the text transformer.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        use_checkpoint: bool = False,
        num_heads: int = -1,
        num_head_channels: int = -1,
        use_spatial_transformer: bool = True,
        transformer_depth: int = 1,
        context_dim: int | None = None,
        legacy: bool = True,
    ) -> None:
        super().__init__()
        if not use_spatial_transformer or context_dim is None:
            raise UserError("UNetModel: expected use_spatial_transformer: true and a context_dim")
        if (num_heads == -1) == (num_head_channels == -1):
            raise UserError("UNetModel: expected either num_heads or num_head_channels")
        if model_channels % 32:
            raise UserError(f"UNetModel: expected model_channels a multiple of 32, got {model_channels}")
        self.in_channels = in_channels
        self.downsampling = 2 ** (len(channel_mult) - 1)
        self.out_channels = out_channels
        self.model_channels = model_channels
        emb_channels = 4 * model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )

        def residual(width_in: int, width_out: int) -> ResBlock:
            return ResBlock(width_in, emb_channels, dropout, width_out, use_checkpoint)

        def transformer(width: int) -> SpatialTransformer:
            heads = width // num_head_channels if num_heads == -1 else num_heads
            return SpatialTransformer(
                width, heads, width // heads, transformer_depth, dropout, context_dim, use_checkpoint
            )

        def attended(level: int, width: int) -> list[nn.Module]:
            return [transformer(width)] if 2**level in attention_resolutions else []

        width = model_channels
        first = nn.Conv2d(in_channels, width, kernel_size=3, padding=1)
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(first)])
        skips = [width]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers: list[nn.Module] = [residual(width, mult * model_channels)]
                width = mult * model_channels
                self.input_blocks.append(TimestepEmbedSequential(*layers, *attended(level, width)))
                skips.append(width)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(TimestepEmbedSequential(Downsample(width)))
                skips.append(width)

        self.middle_block = TimestepEmbedSequential(
            residual(width, width), transformer(width), residual(width, width)
        )

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                layers = [residual(width + skips.pop(), mult * model_channels)]
                width = mult * model_channels
                layers += attended(level, width)
                if level > 0 and i == num_res_blocks:
                    layers.append(Upsample(width))
                self.output_blocks.append(TimestepEmbedSequential(*layers))

        self.out = nn.Sequential(
            group_norm(width), nn.SiLU(), zero_init(nn.Conv2d(width, out_channels, kernel_size=3, padding=1))
        )

    @property
    def dtype(self) -> torch.dtype:
        """In which precision it takes its inputs."""
        return next(self.out.parameters()).dtype

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """Predict the noise.

        Args:
            x: [B, in_channels, h, w].
            timesteps: [B], in [0, 1000), whole or fractional.
            context: text conditioning [B, L, context_dim].

        Returns:
            [B, out_channels, h, w].
        """
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(x.dtype))
        skips = []
        for block in self.input_blocks:
            x = block(x, emb, context)
            skips.append(x)
        x = self.middle_block(x, emb, context)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb, context)
        return self.out(x)
