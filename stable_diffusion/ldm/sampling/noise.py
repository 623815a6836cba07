"""Random numbers by example: what is drawn for one example of a batch does not depend on the others.

So a picture edited in a batch is the one edited alone, and a training draws the same numbers for an example
whatever the batch size, the number of processes, or where it was stopped and resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def derived_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) for what `parts` name."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class ExampleNoise:
    """A source of random numbers for batches of B examples.

    Args:
        generators: of each example, on any device; None is torch's global generator.
    """

    def __init__(self, generators: Sequence[torch.Generator | None]) -> None:
        self.generators = generators

    @classmethod
    def seeded(cls, seeds: Sequence[int], device: torch.device | str = "cpu") -> ExampleNoise:
        """Generators on `device` with these seeds."""
        return cls([torch.Generator(device).manual_seed(seed) for seed in seeds])

    @classmethod
    def of_batch(cls, batch: Mapping[str, Any], key: str) -> ExampleNoise:
        """What a training draws for a batch: by its ``noise_seed``, B numbers, where it has that.

        Args:
            key: of a tensor [B, …] in the batch.
        """
        return cls.seeded(batch["noise_seed"]) if "noise_seed" in batch else cls([None] * len(batch[key]))

    def __call__(self, like: Tensor) -> Tensor:
        """Standard normal noise like its argument [B, …], drawn where the generators are."""
        # In the order of a contiguous tensor, whatever the layout of `like`, as published seeds need.
        rows = [
            torch.randn(
                like.shape[1:], generator=g, device=like.device if g is None else g.device, dtype=like.dtype
            )  # fmt: skip
            for g in self.generators
        ]
        return torch.stack(rows).to(like.device)

    def uniform(self) -> Tensor:
        """One number in [0, 1) for each example, [B], where the generators are."""
        return torch.stack([torch.rand((), generator=g, device=_place(g)) for g in self.generators])

    def integers(self, high: int) -> Tensor:
        """One whole number from 0 to `high` - 1 for each example, [B], where the generators are."""
        return torch.stack([torch.randint(high, (), generator=g, device=_place(g)) for g in self.generators])


def _place(generator: torch.Generator | None) -> torch.device | None:
    return None if generator is None else generator.device
