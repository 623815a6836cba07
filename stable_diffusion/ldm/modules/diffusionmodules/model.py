"""Convolutional encoder and decoder of the latent autoencoder (Rombach et al. 2022, appendix G).

Names of parameters are the published ones, since checkpoints hold them. This is not the diffusion UNet: see
`openaimodel`.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def middle_block(channels: int, dropout: float) -> nn.ModuleDict:
    """Residual block, attention, residual block at the lowest resolution."""
    return nn.ModuleDict(
        {
            "block_1": ResnetBlock(channels, channels, dropout),
            "attn_1": AttnBlock(channels),
            "block_2": ResnetBlock(channels, channels, dropout),
        }
    )


class Level(nn.Module):
    """One resolution: residual blocks, each followed by attention where there is any, then a change of size.

    [B, in_channels, H, W] -> [B, out_channels, H, W], or with half or double the sides.

    Args:
        blocks: residual blocks.
        attention: whether each is followed by attention.
        downsample, upsample: change the size at the end; at most one of them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        attention: bool,
        dropout: float,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        pairs = zip(widths, widths[1:], strict=False)
        self.block = nn.ModuleList(ResnetBlock(a, b, dropout) for a, b in pairs)
        self.attn = nn.ModuleList(AttnBlock(out_channels) for _ in range(blocks if attention else 0))
        if downsample:
            self.downsample = Downsample(out_channels)
        if upsample:
            self.upsample = Upsample(out_channels)

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

    Args:
        ch: width of the first level; every width is a multiple of 32.
        ch_mult: width of each level as a multiple of `ch`.
        num_res_blocks: residual blocks a level.
        attn_resolutions: heights (for an input `resolution` high) at which blocks are followed by attention.
        z_channels: channels of the latent; `double_z` also gives its log variance.
        out_ch: part of the shared configuration; used by the decoder only.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        in_channels: int,
        resolution: int,
        z_channels: int,
        dropout: float = 0.0,
        double_z: bool = True,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, ch, kernel_size=3, padding=1)
        self.down = nn.ModuleList()
        width = ch
        for i, mult in enumerate(ch_mult):
            attention = resolution // 2**i in attn_resolutions
            downsample = i < len(ch_mult) - 1
            self.down.append(Level(width, ch * mult, num_res_blocks, attention, dropout, downsample))
            width = ch * mult
        self.mid = middle_block(width, dropout)
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, (2 if double_z else 1) * z_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        for block in self.mid.values():
            h = block(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Latent to image: [B, z, H/f, W/f] -> [B, out_ch, H, W]. Arguments as for `Encoder`."""

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        in_channels: int,
        resolution: int,
        z_channels: int,
        dropout: float = 0.0,
        double_z: bool = True,
    ) -> None:
        super().__init__()
        width = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, width, kernel_size=3, padding=1)
        self.mid = middle_block(width, dropout)
        levels = []
        for i in reversed(range(len(ch_mult))):
            attention = resolution // 2**i in attn_resolutions
            out = ch * ch_mult[i]
            levels.append(Level(width, out, num_res_blocks + 1, attention, dropout, upsample=i > 0))
            width = out
        self.up = nn.ModuleList(reversed(levels))  # published files number the levels from the finest
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, out_ch, kernel_size=3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv_in(z)
        for block in self.mid.values():
            h = block(h)
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))
