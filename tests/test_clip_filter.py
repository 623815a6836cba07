"""dataset_creation.pairs.clip_filter: thresholds and ranking."""

from __future__ import annotations

import math

import pytest

from dataset_creation.pairs.clip_filter import (
    THRESHOLD_NAMES,
    Similarities,
    Thresholds,
    choose,
    failed,
    needs_clip,
)

GOOD = (0.25, 0.25, 0.3, 0.8)
OPEN = Thresholds(0, 0, 0)


def _sample(direction: float) -> Similarities:
    return Similarities(0.25, 0.25, direction, 0.8)


def test_the_defaults_are_the_published_ones() -> None:
    assert Thresholds() == Thresholds(clip=0.2, direction=0.2, image=0.7)


@pytest.mark.parametrize("position", range(4))
def test_each_threshold_drops_by_its_own_similarity(position: int) -> None:
    least = (0.2, 0.2, 0.2, 0.7)[position]
    for value, expected in [(least, []), (math.nextafter(least, -1), [THRESHOLD_NAMES[position]])]:
        values = list(GOOD)
        values[position] = value
        assert failed(Similarities(*values), Thresholds()) == expected


def test_all_that_is_missed_is_named_in_order() -> None:
    assert failed(Similarities(-1, -1, -1, -1), Thresholds()) == list(THRESHOLD_NAMES)
    assert failed(Similarities(0.1, 0.3, 0.1, 0.9), Thresholds()) == ["caption 1", "direction"]


def test_nan_fails_and_zero_lets_it_pass() -> None:
    broken = Similarities(*[math.nan] * 4)
    assert failed(broken, Thresholds()) == list(THRESHOLD_NAMES)
    assert failed(broken, OPEN) == []
    assert failed(broken, Thresholds(0, 0.1, 0)) == ["direction"]


def test_zero_lets_negative_similarities_pass() -> None:
    assert failed(Similarities(-0.5, -0.5, -0.5, -0.5), OPEN) == []
    assert failed(_sample(-0.1), Thresholds(direction=0)) == []
    assert failed(_sample(-0.1), Thresholds(direction=-0.05)) == ["direction"]


def test_the_best_directions_are_kept_in_falling_order() -> None:
    samples = [_sample(direction) for direction in (0.3, 0.1, 0.5, 0.4, 0.21)]
    assert choose(samples, Thresholds(), 10) == [2, 3, 0, 4]
    assert choose(samples, Thresholds(), 2) == [2, 3]
    assert choose(samples, Thresholds(), 0) == []
    assert choose([], Thresholds(), 4) == []


def test_equal_directions_keep_their_order() -> None:
    samples = [_sample(direction) for direction in (0.3, 0.5, 0.3, 0.5, 0.3)]
    assert choose(samples, Thresholds(), 4) == [1, 3, 0, 2]


def test_nan_directions_come_last() -> None:
    samples = [_sample(direction) for direction in (math.nan, -0.5, math.nan, 0.5)]
    assert choose(samples, OPEN, 4) == [3, 1, 0, 2]
    assert choose(samples, OPEN, 2) == [3, 1]
    assert choose(samples, Thresholds(), 4) == [3]


def test_a_better_direction_does_not_help_over_another_threshold() -> None:
    assert choose([Similarities(0.25, 0.25, 0.9, 0.6), _sample(0.21)], Thresholds(), 1) == [1]


def test_when_similarities_decide_nothing() -> None:
    assert not needs_clip(OPEN, n_samples=4, limit=4)
    assert needs_clip(OPEN, n_samples=5, limit=4)
    for thresholds in (Thresholds(0.1, 0, 0), Thresholds(0, -0.1, 0), Thresholds(0, 0, 0.1), Thresholds()):
        assert needs_clip(thresholds, n_samples=1, limit=4)
