"""Prompt-to-Prompt: two captions make two pictures of one layout (Hertz et al. 2022).

Both pictures start from the same noise and get the same noise in every step. In the first, noisiest steps the
second one's self-attention also weighs its positions as the first one's does, which fixes where things are.

B pairs; the 2 B rows of a batch are all first pictures, then all second ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ldm.modules.attention import BasicTransformerBlock
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.sampling.guidance import TextDenoiser


def last_shared_sigma(sigmas: Tensor, thresholds: Sequence[float]) -> Tensor:
    """The noise levels above which attention is shared, [B], where `sigmas` are.

    Args:
        sigmas: of the sampler, falling, the last 0, [n + 1].
        thresholds: of each pair the share of the steps, 0 (none) to 1: step i is one of them where
            threshold > i / (n - 1), as published.
    """
    steps = len(sigmas) - 1
    counts = [sum(threshold > i / max(steps - 1, 1) for i in range(steps)) for threshold in thresholds]
    return sigmas[counts]


@contextmanager
def self_attention_from(unet: nn.Module, sources: Tensor) -> Iterator[None]:
    """Within the context each row of the batch takes the self-attention weights of another.

    With the queries and keys of row j and its own values, a row attends as j does: what softmax(q k^T / √d)
    needs is j's, and no attention matrix has to be in memory.

    Args:
        unet: a network of `BasicTransformerBlock`s.
        sources: of each row that other one, [rows].
    """
    blocks = [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
    for block in blocks:
        block.attn1.sources = sources
    try:
        yield
    finally:
        for block in blocks:
            block.attn1.sources = None


class PairDenoiser(TextDenoiser):
    """Guidance by text for B pairs of pictures, each with a scale and a share of common steps of its own.

    Args:
        unet, sigmas: of the text-to-image model, see `GuidedDenoiser`.
        texts: conditioning of both captions, [2, L, D].
        null_text: conditioning of the empty text, [1, L, D].
        cfg_text: guidance scales, [B].
        shared_above: of `last_shared_sigma`, [B].
    """

    def __init__(
        self,
        unet: UNetModel,
        sigmas: Tensor,
        texts: Tensor,
        null_text: Tensor,
        cfg_text: Tensor,
        shared_above: Tensor,
    ) -> None:
        pairs = len(cfg_text)
        scales = cfg_text.repeat(2)[:, None, None, None]  # [2 B, 1, 1, 1]
        super().__init__(unet, sigmas, texts.repeat_interleave(pairs, dim=0), null_text, scales)
        self.shared_above = shared_above

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        """Denoised latents [2 B, 4, h, w] for z [2 B, 4, h, w] at sigma [2 B]."""
        pairs = len(self.shared_above)
        shared = sigma[:pairs] > self.shared_above  # [B]
        if not shared.any():
            return super().__call__(z, sigma)
        rows = torch.arange(2 * pairs, device=z.device)
        rows[pairs:] -= pairs * shared
        sources = torch.cat([rows + 2 * pairs * branch for branch in range(len(self.branches))])
        with self_attention_from(self.unet, sources):
            return super().__call__(z, sigma)
