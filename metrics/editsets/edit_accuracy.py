"""How well a model edits where the true result is known: is it the right edit, and are its pixels right?

Measured on groups of pairs: several edits of one picture, so that an answer can be told from the wrong ones.
Not here: CLIP similarities, for which no true result is needed.

N pairs, H W pixels.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.data.formats import Example, Triple, pair_paths, read_picture, read_prompt
from ldm.pictures.fitting import to_tensor
from ldm.util import UserError

# A pixel changes where some channel differs by more than this, of a range of 1: well over what JPEG of
# quality 100 does to equal drawings (about 2 of 255), well under a change that one sees.
CHANGED = 10 / 255


@dataclass(frozen=True)
class EditPairs:
    """Pairs with known results.

    Attributes:
        before, after: pictures [N, 3, H, W] in [-1, 1].
        prompts: the N instructions with their captions.
        groups: [N], equal for pairs with the same picture before.
    """

    before: Tensor
    after: Tensor
    prompts: list[Triple]
    groups: Tensor

    @property
    def instructions(self) -> list[str]:
        return [prompt.edit for prompt in self.prompts]


def read_pairs(examples: list[Example], group_size: int, limit: int | None = None) -> EditPairs:
    """Read the groups of a dataset.

    Args:
        examples: of `ldm.data.formats.read_examples`.
        group_size: pairs with the same picture before are a group if they are so many, else left out.
        limit: the first so many groups only.

    Raises:
        UserError: no such group, or pictures of several sizes.
    """
    groups: dict[bytes, list[tuple[Example, str]]] = defaultdict(list)
    for example in examples:
        for seed in example.seeds:
            groups[pair_paths(example.folder, seed)[0].read_bytes()].append((example, seed))
    chosen = [pairs for pairs in groups.values() if len(pairs) == group_size][:limit]
    if not chosen:
        raise UserError(f"dataset: expected groups of {group_size} edits of one picture, found none")
    flat = [(example.folder, seed) for pairs in chosen for example, seed in pairs]
    pictures = [to_tensor(read_picture(file)) for folder, seed in flat for file in pair_paths(folder, seed)]
    sizes = {tuple(picture.shape[2:]) for picture in pictures}
    if len(sizes) > 1:
        raise UserError(f"dataset: expected pictures of one size, got {sorted(sizes)}")
    return EditPairs(
        before=torch.cat(pictures[0::2]),
        after=torch.cat(pictures[1::2]),
        prompts=[read_prompt(folder) for folder, _ in flat],
        groups=torch.arange(len(chosen)).repeat_interleave(group_size),
    )


@dataclass(frozen=True)
class Averages:
    """Measures of a set of edits.

    Attributes:
        pairs: how many edits.
        accuracy: share whose nearest true result of the group is their own.
        inside: mean absolute error where the picture should change, relative to that of the unedited input.
        outside: mean absolute error elsewhere, of a range of 1.
    """

    pairs: int
    accuracy: float
    inside: float
    outside: float


@dataclass(frozen=True)
class EditScores:
    """Measures of every single edit, each [N]; errors are mean absolute, of a range of 1, NaN in no pixels.

    Attributes:
        correct: whether the nearest true result of the group is the right one.
        inside: error in the changed region.
        copied: error of the unedited input in the changed region.
        outside: error in the rest.
    """

    correct: Tensor
    inside: Tensor
    copied: Tensor
    outside: Tensor

    def averages(self, rows: Tensor | slice = slice(None)) -> Averages:
        """Averages over those rows; every pair counts the same, however large its changed region."""
        correct = self.correct[rows]
        return Averages(
            pairs=len(correct),
            accuracy=correct.float().mean().item(),
            inside=(self.inside[rows].nanmean() / self.copied[rows].nanmean()).item(),
            outside=self.outside[rows].nanmean().item(),
        )


def measure(output: Tensor, pairs: EditPairs) -> EditScores:
    """Compare edits with the true results.

    Args:
        output: edits of `pairs.before`, [N, 3, H, W] in [-1, 1] (clamped).
    """
    edited, before, after = ((x.float().clamp(-1, 1) + 1) / 2 for x in (output, pairs.before, pairs.after))
    region = ((after - before).abs() > CHANGED).any(1)  # [N, H, W]
    error, copied = ((after - x).abs().mean(1) for x in (edited, before))  # [N, H, W] each
    return EditScores(
        correct=nearest_in_group(edited, after, pairs.groups) == torch.arange(len(edited)),
        inside=_mean_in(error, region),
        copied=_mean_in(copied, region),
        outside=_mean_in(error, ~region),
    )


def nearest_in_group(edited: Tensor, after: Tensor, groups: Tensor) -> Tensor:
    """For every edit the index of the true result of its group at the least mean squared distance, [N].

    Args:
        edited, after: [N, 3, H, W].
        groups: [N].
    """
    nearest = torch.empty(len(edited), dtype=torch.long)
    for group in groups.unique():
        rows = (groups == group).nonzero()[:, 0]
        # Taking squares apart (the faster way) would lose the small differences between much alike pictures.
        distances = torch.cdist(
            edited[rows].flatten(1), after[rows].flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
        )
        nearest[rows] = rows[distances.argmin(1)]
    return nearest


def _mean_in(values: Tensor, region: Tensor) -> Tensor:
    """Mean of `values` [N, H, W] over the pixels in `region` [N, H, W], [N]; NaN where there is none."""
    return (values * region).sum((1, 2)) / region.sum((1, 2))
