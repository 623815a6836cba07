"""The order of a training: which examples come, and every random number that is drawn for them.

A training is a stream of examples, one permutation of the dataset after another. Position p in it decides the
example and, with the run's seed, what is drawn for it: the crop, the timestep, the noise. So a stopped
training goes on exactly where it was, and neither batch size, nor gradient accumulation, nor the number of
processes changes what is trained on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler, default_collate

from ldm.sampling.noise import derived_seed
from ldm.util import UserError

MOST_SKIPPED = 100  # broken examples in a row before a training gives up

log = logging.getLogger(__name__)


class ExampleStream(Sampler[tuple[int, int]]):
    """The examples of one process: pairs (index in the dataset, position in the stream).

    Processes share every global batch: of its `world_size` x `batch_size` positions each takes a run.

    Args:
        size: examples of the dataset.
        batch_size: examples a batch and process.
        seed: of the order.
        rank, world_size: of this process.
        position: how much of the stream has been trained on; asked at the start of every epoch.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        position: Callable[[], int] = lambda: 0,
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.position = position

    def __len__(self) -> int:
        """Examples of an epoch: whole batches, at least one."""
        return max(1, self.size // (self.batch_size * self.world_size)) * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start = self.position() + self.rank * self.batch_size
        order, permutation = -1, torch.empty(0, dtype=torch.long)
        for batch in range(len(self) // self.batch_size):
            first = start + batch * self.batch_size * self.world_size
            for p in range(first, first + self.batch_size):
                if p // self.size != order:
                    order = p // self.size
                    generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", order))
                    permutation = torch.randperm(self.size, generator=generator)
                yield int(permutation[p % self.size]), p


class ShareOfExamples(Sampler[tuple[int, int]]):
    """Every `world_size`-th example, for evaluation: pairs (index, index)."""

    def __init__(self, size: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, size, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((i, i) for i in self.indices)


class SeededExamples(Dataset):
    """The examples of a dataset by (index, position), random only in what the position says.

    To each example comes ``noise_seed``, for what the network draws, and ``skipped``: how many broken
    examples, each named by a warning, were passed over before the next good one was found in their place.

    Args:
        dataset: may draw from torch's global generator.
        seed: of the run.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.named: set[int] = set()  # broken examples that were warned of

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, position = key
        size = len(self.dataset)
        reason = ""
        for skipped in range(min(size, MOST_SKIPPED)):
            i = (index + skipped) % size
            try:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(derived_seed(self.seed, "example", position))
                    item = self.dataset[i]
            except UserError as error:
                reason = str(error)
                if i not in self.named:
                    self.named.add(i)
                    log.warning("skipped example %d: %s", i, reason)
                continue
            return {**item, "noise_seed": derived_seed(self.seed, "noise", position), "skipped": skipped}
        raise UserError(f"data: no example from {index} on can be read; the last one: {reason}")

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[dict[str, Any]] | UserError:
        """Examples of a batch; or why there is none: of an error that is raised, a loader's process keeps the
        type and a traceback as its text."""
        try:
            return [self[key] for key in keys]
        except UserError as error:
            return error


def collate(items: list[dict[str, Any]] | UserError) -> dict[str, Any] | UserError:
    """A batch out of `SeededExamples`: ``noise_seed`` stays a list, ``skipped`` becomes its sum."""
    if isinstance(items, UserError):
        return items
    seeds = [item.pop("noise_seed") for item in items]
    skipped = sum(item.pop("skipped") for item in items)
    return {**default_collate(items), "noise_seed": seeds, "skipped": skipped}
