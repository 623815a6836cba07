"""The parts of the benchmarks that decide what is reported."""

import signal
from pathlib import Path

import pytest

from benchmarks.runner import in_turn, looking, run_python, work_folder
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


def test_programs_take_turns_and_the_order_turns_around() -> None:
    ran: list[str] = []
    results = in_turn(3, {name: lambda name=name: ran.append(name) or len(ran) for name in "ab"})
    assert "".join(ran) == "abbaab"
    assert results == {"a": [1, 4, 5], "b": [2, 3, 6]}


def test_a_program_is_watched_from_outside() -> None:
    told: list[bytes] = []
    code = (
        "import sys, time; print('out'); print('err', file=sys.stderr); block = bytes(10**8); time.sleep(0.2)"
    )
    with looking(lambda: 1, every=0.01) as looks:
        done = run_python("-c", code, quiet=True, watch=told.append)
    assert sorted(done.output.split()) == [b"err", b"out"] and told[-1] == done.output
    assert done.seconds >= 0.2 and 0.1 <= done.memory < 5 and looks


def test_a_program_that_fails_ends_the_benchmark() -> None:
    with pytest.raises(SystemExit, match=r"(?s)exit code 3 of.*broken"):
        run_python("-c", "print('broken'); raise SystemExit(3)")


def test_a_folder_for_the_work_goes_unless_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the tests' own stays
    with work_folder(None) as folder:
        (folder / "file").touch()
    assert not folder.exists()
    with work_folder(tmp_path / "deep" / "kept") as folder:
        (folder / "file").touch()
    assert (tmp_path / "deep" / "kept" / "file").exists()
