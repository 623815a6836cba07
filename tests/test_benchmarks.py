"""The parts of the benchmarks that decide what is reported."""

import pytest

from benchmarks.train_programs import largest
from benchmarks.train_step import parse_args, report, summarize
from ldm.util import UserError


@pytest.mark.parametrize("most", [0, 1, 2, 3, 17, 31, 63, 64, 100, 4096])
def test_largest_batch_is_found_to_three_percent(most: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= most

    found = largest(fits, limit=4096)
    assert found <= most <= found * 33 / 32
    assert found == 0 or found in tried  # never a size that was not tried
    assert len(tried) <= 20


def test_largest_batch_stays_below_the_limit() -> None:
    assert largest(lambda size: size <= 70, limit=48) == 48


def result(speed: float, memory: float, resolution: int = 256) -> dict[str, object]:
    """Ours `speed` times as fast as diffusers, the cache twice as fast, with `memory` times its memory."""

    def runs(seconds: float, gigabytes: float) -> list[dict[str, object]]:
        return [
            {"seconds": [seconds, 9.0, seconds], "batch": 2, "memory": gigabytes, "device": "a device"}
        ] * 3

    programs = {"ours": runs(2 / speed, memory), "cached": runs(1.0, 1.0), "diffusers": runs(2.0, 1.0)}
    settings = {"size": "full", "resolution": resolution, "precision": "fp32", "largest_batch": False}
    settings |= {"checkpointing": False, "compile": False}
    return {
        "settings": settings,
        "device": "a device",
        "summary": summarize(programs),
        "prediction_difference": 1e-5,
    }


def test_report_holds_ratios_against_targets() -> None:
    met, missed = report(result(1.25, 0.9)), report(result(1.1, 1.1))
    assert "1.25 (≥ 1.15 met)" in met and "0.90 (≤ 1.00 met)" in met and "2.00 (≥ 1.60 met)" in met
    assert "1.10 (≥ 1.15 MISSED)" in missed and "1.10 (≤ 1.00 MISSED)" in missed
    assert "2.00 (at 256 px ≥ 1.60)" in report(result(1.25, 0.9, resolution=128))


def test_summary_takes_medians_and_counts_the_hours_of_the_published_training() -> None:
    summary = result(1.0, 1.0)["summary"]["diffusers"]
    assert summary["step"] == 2.0 and summary["samples"] == 1.0
    assert summary["hours"] == pytest.approx(10_000 * 1024 / 3600)


@pytest.mark.parametrize("words", [["--resolution", "100"], ["--largest-batch"], ["--steps", "0"]])
def test_options_that_cannot_be_measured_are_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match="expected"):
        parse_args(words)
