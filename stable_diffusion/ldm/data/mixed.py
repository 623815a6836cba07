"""Several datasets as one, each with its share of the examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ldm.util import UserError, instantiate_from_config


class MixedDataset(Dataset):
    """The examples of several datasets, interleaved by weight.

    An epoch is the shortest in which every example of every dataset comes at least once; datasets whose
    weight asks for more go round again. Which example stands at an index is fixed, so a stopped training goes
    on with the same ones; each dataset's share of an epoch is its weight to within one example.

    Args:
        datasets: ``{target, params}`` of each.
        weights: share of each, positive, of any sum; when absent every example comes once.
    """

    def __init__(self, datasets: Sequence[Mapping[str, Any]], weights: Sequence[float] | None = None) -> None:
        if not datasets:
            raise UserError("dataset mix: expected at least one dataset, got none")
        self.datasets = [instantiate_from_config(config) for config in datasets]
        lengths = [len(dataset) for dataset in self.datasets]
        if 0 in lengths:
            raise UserError(f"dataset mix: {datasets[lengths.index(0)]['target']} has no examples")
        sides = {tuple(d.crop_res) for d in self.datasets if hasattr(d, "crop_res")}
        if len(sides) > 1:
            found = " and ".join(f"[{height}, {width}]" for height, width in sorted(sides))
            raise UserError(f"dataset mix: expected the same crop_res in all datasets, got {found}")
        if sides:
            (self.crop_res,) = sides
        counts = shares_of_an_epoch(lengths, lengths if weights is None else weights)
        # Example j of n stands at (j + 1/2) / n of the epoch: every stretch of it has about the same shares.
        places = np.concatenate([(np.arange(n) + 0.5) / n for n in counts])
        order = np.argsort(places, kind="stable")
        source = np.repeat(np.arange(len(counts)), counts)
        example = np.concatenate([np.arange(n) % length for n, length in zip(counts, lengths, strict=True)])
        self.sources, self.examples = source[order], example[order]  # [len(self)] each

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, i: int) -> Any:
        return self.datasets[self.sources[i]][int(self.examples[i])]


def shares_of_an_epoch(lengths: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many examples of each dataset an epoch has: at least its length, in proportion to the weights.

    Raises:
        UserError: not one positive weight for each dataset.
    """
    given = list(weights) if isinstance(weights, Sequence) else [weights]
    positive = [w for w in given if type(w) in (int, float) and 0 < w < math.inf]
    if len(given) != len(lengths) or positive != given:
        raise UserError(
            f"dataset mix: expected {len(lengths)} positive weights, one a dataset, got {weights}"
        )
    # Exact, from the decimals as written: in floating point 7 examples at 0.7 can ask for an epoch of 11.
    exact = [Fraction(str(w)) for w in given]
    parts = [w / sum(exact) for w in exact]
    size = max(math.ceil(length / part) for length, part in zip(lengths, parts, strict=True))
    counts = [math.floor(size * part) for part in parts]
    rest = sorted(range(len(parts)), key=lambda k: counts[k] - size * parts[k])  # furthest below comes first
    for k in rest[: size - sum(counts)]:
        counts[k] += 1
    return counts
