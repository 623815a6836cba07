"""Transformer blocks of the diffusion UNet (Rombach et al. 2022, section 3.3).

Names of parameters are the published ones, since checkpoints hold them. B batch, C channels, h w latent size,
N = h w positions, L tokens of the conditioning.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class CrossAttention(nn.Module):
    """Multi-head attention of `x` to `context`, or to itself where no context is given.

    Args:
        query_dim: width of `x`.
        context_dim: width of the context; `query_dim` when None.
        heads, dim_head: number of heads and width of each.
        dropout: after the output projection.

    Attributes:
        sources: of each row of the batch the row whose attention weights it takes, [B]; its own where None.
            Set by `ldm.sampling.prompt_to_prompt` alone.
    """

    sources: Tensor | None = None

    def __init__(
        self,
        query_dim: int,
        context_dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width = heads * dim_head
        context_dim = query_dim if context_dim is None else context_dim
        self.heads = heads
        self.to_q = nn.Linear(query_dim, width, bias=False)
        self.to_k = nn.Linear(context_dim, width, bias=False)
        self.to_v = nn.Linear(context_dim, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, query_dim), nn.Dropout(dropout))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """[B, N, query_dim], [B, L, context_dim] -> [B, N, query_dim]."""
        context = x if context is None else context
        q, k, v = (
            rearrange(y, "b n (heads d) -> b heads n d", heads=self.heads)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        if self.sources is not None:
            q, k = q[self.sources], k[self.sources]
        out = F.scaled_dot_product_attention(q, k, v)  # [B, heads, N, d]
        return self.to_out(rearrange(out, "b heads n d -> b n (heads d)"))


class GEGLU(nn.Module):
    """Linear layer gated by GELU (Shazeer 2020): [.., dim_in] -> [.., dim_out]."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """Two-layer perceptron of inner width 4 dim: [.., dim] -> [.., dim]."""

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Dropout(dropout), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; each normalised first and added.

    Args:
        use_checkpoint: recompute activations in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        context_dim: int | None,
        dropout: float = 0.0,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, None, heads, dim_head, dropout)
        self.attn2 = CrossAttention(dim, context_dim, heads, dim_head, dropout)
        self.ff = FeedForward(dim, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """[B, N, dim], [B, L, context_dim] -> [B, N, dim]."""
        if self.use_checkpoint and self.training:
            return checkpoint(self._forward, x, context, use_reentrant=False)
        return self._forward(x, context)

    def _forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer over the positions of a feature map: [B, C, h, w] -> [B, C, h, w].

    Args:
        in_channels: C, a multiple of 32.
        n_heads, d_head: heads of both attentions.
        depth: number of blocks.
        context_dim: width of the text conditioning.
    """

    def __init__(
        self,
        in_channels: int,
        n_heads: int,
        d_head: int,
        depth: int = 1,
        dropout: float = 0.0,
        context_dim: int | None = None,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        width = n_heads * d_head
        self.norm = nn.GroupNorm(32, in_channels, eps=1e-6)
        # 1x1 convolutions in published files; applied as such, so that their [out, in, 1, 1] weights load.
        self.proj_in = nn.Conv2d(in_channels, width, kernel_size=1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(width, n_heads, d_head, context_dim, dropout, use_checkpoint)
            for _ in range(depth)
        )
        self.proj_out = nn.Conv2d(width, in_channels, kernel_size=1)
        for parameter in self.proj_out.parameters():  # every block starts as the identity
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        height = x.shape[2]
        h = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + self.proj_out(rearrange(h, "b (h w) c -> b c h w", h=height))
