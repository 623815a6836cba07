"""Convolutional encoder and decoder of the latent autoencoder (Rombach et al. 2022, appendix G).

Names of parameters are the published ones, since checkpoints hold them. This is not the diffusion UNet: see
`openaimodel`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def group_norm(channels: int) -> nn.GroupNorm:
    """The normalisation used everywhere in the autoencoder: 32 groups, epsilon 1e-6."""
    return nn.GroupNorm(32, channels, eps=1e-6)


class Downsample(nn.Module):
    """Halve height and width by a strided convolution, padded at the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # [B, C, H, W] -> [B, C, H/2, W/2]


class Upsample(nn.Module):
    """Double height and width by nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # [B, C, 2H, 2W]


class ResnetBlock(nn.Module):
    """Two normalised convolutions around a shortcut: [B, in, H, W] -> [B, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        # Published checkpoints hold this layer only where the width changes.
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions, added to its input: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, kernel_size=1)
        self.k = nn.Conv2d(channels, channels, kernel_size=1)
        self.v = nn.Conv2d(channels, channels, kernel_size=1)
        self.proj_out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (rearrange(layer(h), "b c h w -> b 1 (h w) c") for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)  # [B, 1, HW, C]
        return x + self.proj_out(rearrange(h, "b 1 (h w) c -> b c h w", h=x.shape[2]))


@dataclass(frozen=True)
class DDConfig:
    """Sizes of encoder and decoder, under their published names.

    Attributes:
        ch: width of the first level; every width is a multiple of 32.
        out_ch: channels of the decoded image.
        ch_mult: width of each level as a multiple of `ch`; each but the last halves height and width.
        num_res_blocks: residual blocks of a level of the encoder; the decoder has one more.
        attn_resolutions: heights (for an input `resolution` high) at which blocks are followed by attention.
        in_channels: of the image.
        z_channels: of the latent; with `double_z` the encoder also gives its log variance.
    """

    ch: int
    out_ch: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    in_channels: int
    resolution: int
    z_channels: int
    dropout: float = 0.0
    double_z: bool = True

    def width(self, level: int) -> int:
        return self.ch * self.ch_mult[level]

    def middle(self) -> nn.Sequential:
        """Residual block, attention, residual block at the lowest resolution."""
        width, dropout = self.width(-1), self.dropout
        return nn.Sequential(
            OrderedDict(
                block_1=ResnetBlock(width, width, dropout),
                attn_1=AttnBlock(width),
                block_2=ResnetBlock(width, width, dropout),
            )
        )


class Level(nn.Module):
    """One resolution: residual blocks, each followed by attention where there is any, and a change of size.

    Args:
        level: of `config.ch_mult`.
        blocks: residual blocks.
        downsample, upsample: halve or double the sides at the end.
    """

    def __init__(
        self,
        config: DDConfig,
        level: int,
        in_channels: int,
        blocks: int,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        width = config.width(level)
        self.block = nn.ModuleList(
            ResnetBlock(width if i else in_channels, width, config.dropout) for i in range(blocks)
        )
        attended = config.resolution // 2**level in config.attn_resolutions
        self.attn = nn.ModuleList(AttnBlock(width) for _ in range(blocks if attended else 0))
        if downsample:
            self.downsample = Downsample(width)
        if upsample:
            self.upsample = Upsample(width)

    def forward(self, h: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            h = block(h)
            if len(self.attn):
                h = self.attn[i](h)
        if hasattr(self, "downsample"):
            return self.downsample(h)
        return self.upsample(h) if hasattr(self, "upsample") else h


class Encoder(nn.Module):
    """Image to posterior parameters: [B, in_channels, H, W] -> [B, 2 z (or z), H/f, W/f].

    f is 2 to the power of (number of levels - 1).
    """

    def __init__(self, config: DDConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, kernel_size=3, padding=1)
        self.down = nn.ModuleList()
        width = config.ch
        for i in range(len(config.ch_mult)):
            smaller = i < len(config.ch_mult) - 1
            self.down.append(Level(config, i, width, config.num_res_blocks, downsample=smaller))
            width = config.width(i)
        self.mid = config.middle()
        self.norm_out = group_norm(width)
        channels = (2 if config.double_z else 1) * config.z_channels
        self.conv_out = nn.Conv2d(width, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latent to image: [B, z, H/f, W/f] -> [B, out_ch, H, W], f as for `Encoder`."""

    def __init__(self, config: DDConfig) -> None:
        super().__init__()
        width = config.width(-1)
        self.conv_in = nn.Conv2d(config.z_channels, width, kernel_size=3, padding=1)
        self.mid = config.middle()
        levels = []
        for i in reversed(range(len(config.ch_mult))):
            levels.append(Level(config, i, width, config.num_res_blocks + 1, upsample=i > 0))
            width = config.width(i)
        self.up = nn.ModuleList(reversed(levels))  # published files number the levels from the finest
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, config.out_ch, kernel_size=3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))
