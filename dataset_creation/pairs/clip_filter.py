"""Which samples of a pair of captions are kept, by their CLIP similarities (Brooks et al. 2022, section 3.1).

Not here: the similarities (`metrics.clip_similarity`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

# What a sample can fail by, in the order of `failed`.
THRESHOLD_NAMES = ("caption 1", "caption 2", "direction", "image")


@dataclass(frozen=True)
class Similarities:
    """Cosines of one sample, -1 to 1, under the names of ``metadata.jsonl``.

    Attributes:
        clip_sim_0: first picture and its caption.
        clip_sim_1: second picture and its caption.
        clip_sim_dir: change of the pictures and change of the captions.
        clip_sim_image: first and second picture.
    """

    clip_sim_0: float
    clip_sim_1: float
    clip_sim_dir: float
    clip_sim_image: float

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Similarities | None:
        """Those in a line of ``metadata.jsonl``, if they are there."""
        values: list[Any] = [line.get(name) for name in cls.__dataclass_fields__]
        return cls(*values) if all(isinstance(value, int | float) for value in values) else None


@dataclass(frozen=True)
class Thresholds:
    """Least similarities of a sample that is kept; 0 lets everything pass, negative ones and NaN too.

    The defaults are those of the published program; the paper names 0.75 for `image`.

    Attributes:
        clip: of either picture and its caption.
        direction: of the change of the pictures and the change of the captions.
        image: of the two pictures.
    """

    clip: float = 0.2
    direction: float = 0.2
    image: float = 0.7

    @property
    def all_pass(self) -> bool:
        """Whether no sample can fail."""
        return self.clip == self.direction == self.image == 0


def failed(similarities: Similarities, thresholds: Thresholds) -> list[str]:
    """Those of `THRESHOLD_NAMES` that a sample does not reach; NaN reaches none."""
    least = (thresholds.clip, thresholds.clip, thresholds.direction, thresholds.image)
    checks = zip(THRESHOLD_NAMES, astuple(similarities), least, strict=True)
    return [name for name, value, at_least in checks if at_least != 0 and not value >= at_least]


def choose(similarities: Sequence[Similarities], thresholds: Thresholds, limit: int) -> list[int]:
    """Indexes of the samples that are kept, at most `limit`.

    They are those that pass, by falling direction similarity (NaN last), equal ones by index.
    """
    passed = [i for i, one in enumerate(similarities) if not failed(one, thresholds)]

    def rank(i: int) -> float:
        direction = similarities[i].clip_sim_dir
        return math.inf if math.isnan(direction) else -direction

    return sorted(passed, key=rank)[:limit]


def needs_clip(thresholds: Thresholds, n_samples: int, limit: int) -> bool:
    """Whether similarities decide anything, of so many samples with at most `limit` to keep."""
    return not thresholds.all_pass or n_samples > limit
