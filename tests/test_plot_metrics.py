"""Curves of runs, their confidence bands, and the pictures of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.data.json_lines import JsonLines
from ldm.util import UserError, run_main
from metrics import plot_metrics
from metrics.curve.curves import (
    BANDED,
    averages,
    make_curves,
    ranked,
    read_curves,
    read_run,
    setting_key,
    shown,
)

SETTINGS = {
    "method": "instruct-pix2pix",
    "name": "small",
    "dataset": "data/pairs",
    "split": "test",
    "steps": 20,
    "resolution": 64,
    "seed": 3,
    "clip": "ViT-L-14",
    "pixels": "[0, 1]",
}
SCALES = (1.0, 1.2, 1.4)


def edit(sample: int, scale: float, direction: float, *, text: float = 7.5, **other: Any) -> dict[str, Any]:
    """A row whose other similarities follow from the direction."""
    row = {"sample": sample, "name": f"{sample:07}/0", "edit": "a hat", "scale_text": text}
    row |= {"scale_image": scale, "strength": None, "sim_0": 0.25, "sim_1": 0.5 * direction}
    return row | {"sim_direction": direction, "sim_image": 1 - direction} | other


def sdedit(sample: int, strength: float, direction: float) -> dict[str, Any]:
    return edit(sample, strength, direction, scale_image=None, strength=strength)


def noisy(samples: int, scales: tuple[float, ...] = SCALES, **other: Any) -> list[dict[str, Any]]:
    """Rows with direction similarities of mean scale / 10 and a deviation of 0.1."""
    noise = np.random.default_rng(1).normal(0, 0.1, (samples, len(scales)))
    noise = (noise - noise.mean(0)) / noise.std(0) * 0.1
    return [
        edit(sample, scale, float(scale / 10 + noise[sample, k]), **other)
        for sample in range(samples)
        for k, scale in enumerate(scales)
    ]


def write_run(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Path:
    with JsonLines(folder / "run.samples.jsonl", SETTINGS | settings) as lines:
        for row in rows:
            lines.append(row)
    return folder


def test_means_are_over_samples_and_sorted_by_scale() -> None:
    rows = [edit(0, 1.4, 0.2), edit(1, 1.4, 0.4), edit(0, 1.0, 0.6), edit(1, 1.0, 0.7)]
    (curve,) = make_curves(rows, "ours")
    assert (curve.label, curve.varied, curve.samples) == ("ours", "image scale", 2)
    assert curve.scales.tolist() == [1.0, 1.4]
    np.testing.assert_allclose(curve.means["sim_direction"], [0.65, 0.3])
    np.testing.assert_allclose(curve.means["sim_image"], [0.35, 0.7])
    np.testing.assert_allclose(curve.means["sim_0"], [0.25, 0.25])
    np.testing.assert_allclose(curve.means["sim_1"], [0.325, 0.15])


def test_scales_of_an_unfinished_run_are_averaged_over_the_same_samples() -> None:
    rows = noisy(4)
    (whole,) = make_curves(rows, "")
    (partial,) = make_curves([*rows, edit(4, 1.0, 0.9), edit(5, 1.2, 0.9)], "")
    assert partial.samples == 4
    np.testing.assert_array_equal(partial.means["sim_direction"], whole.means["sim_direction"])
    np.testing.assert_array_equal(partial.bands["sim_image"], whole.bands["sim_image"])


def test_band_of_a_known_deviation_is_that_of_the_normal_distribution() -> None:
    (curve,) = make_curves(noisy(400), "")
    for name in BANDED:
        assert curve.bands[name].shape == (2, 3)
        low, high = curve.bands[name] - curve.means[name]
        np.testing.assert_allclose(high, 1.96 * 0.1 / 400**0.5, rtol=0.12)
        np.testing.assert_allclose(low, -high, rtol=0.2)


def test_band_of_equal_samples_has_no_width() -> None:
    (curve,) = make_curves([edit(sample, scale, 0.3) for sample in range(7) for scale in SCALES], "")
    np.testing.assert_allclose(curve.bands["sim_direction"], 0.3, rtol=1e-12)


def test_bands_take_the_same_samples_at_every_scale_and_are_the_same_each_time() -> None:
    at_one = [0.1 * sample**2 for sample in range(9)]
    rows = [edit(sample, scale, value + scale) for scale in SCALES for sample, value in enumerate(at_one)]
    (curve,), (again,) = make_curves(rows, ""), make_curves(rows[::-1], "")
    band = curve.bands["sim_direction"]
    np.testing.assert_allclose(band - curve.scales, np.broadcast_to(band[:, :1] - 1.0, (2, 3)))
    np.testing.assert_array_equal(again.bands["sim_direction"], band)


def test_a_curve_for_every_text_scale(tmp_path: Path) -> None:
    run = write_run(tmp_path, noisy(3, text=7.5) + noisy(3, text=5.0))
    assert [curve.label for curve in read_curves(run)] == ["small, t=5", "small, t=7.5"]
    assert [curve.label for curve in read_curves(run, "ours")] == ["ours, t=5", "ours, t=7.5"]
    one = write_run(tmp_path / "one", noisy(3))
    assert [curve.label for curve in read_curves(one / "run.samples.jsonl", "ours")] == ["ours"]


def test_keys_name_the_setting() -> None:
    assert setting_key(edit(0, 1.2, 0.1)) == "t7.5_i1.2"
    assert setting_key(edit(0, 2.0, 0.1, text=10.0)) == "t10_i2"
    assert setting_key(sdedit(0, 0.3, 0.1)) == "t7.5_s0.3"


def test_averages_are_the_published_lines_and_draw_the_same_points(tmp_path: Path) -> None:
    rows = noisy(5)
    lines = averages([*rows, edit(5, 1.0, 0.4)], SETTINGS)
    assert [line["num_samples"] for line in lines] == [6, 5, 5]
    lines = averages(rows, SETTINGS)
    assert lines[1] == {
        "sim_0": 0.25,
        "sim_1": pytest.approx(0.06),
        "sim_direction": pytest.approx(0.12),
        "sim_image": pytest.approx(0.88),
        "num_samples": 5,
        "split": "test",
        "scale_txt": 7.5,
        "scale_img": 1.2,
        "steps": 20,
        "res": 64,
        "seed": 3,
    }
    file = tmp_path / "n=5_p=test.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (whole,), (curve,) = make_curves(rows, ""), read_curves(file)
    assert (curve.label, curve.bands, curve.samples) == ("n=5_p=test.jsonl", {}, None)
    for name in BANDED:
        np.testing.assert_allclose(curve.means[name], whole.means[name])

    lines = averages([sdedit(0, 0.3, 0.1), sdedit(0, 0.5, 0.2)], SETTINGS)
    assert [(line["strength"], line["scale_img"]) for line in lines] == [(0.3, None), (0.5, None)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (curve,) = read_curves(file)
    assert curve.varied == "strength" and curve.scales.tolist() == [0.3, 0.5]


def test_best_and_worst_are_of_different_samples() -> None:
    rows = [edit(0, 1.0, 0.9), edit(0, 1.2, 0.8), edit(1, 1.0, 0.5), edit(2, 1.0, 0.1), edit(2, 1.2, 0.2)]
    best, worst = ranked(rows, 2)
    assert [row["sim_direction"] for row in best] == [0.9, 0.5]
    assert [row["sim_direction"] for row in worst] == [0.1, 0.5]
    assert shown(rows, 2) == {(0, "t7.5_i1"), (1, "t7.5_i1"), (2, "t7.5_i1")}


def test_what_is_shown_can_be_kept_up_as_a_run_goes_on() -> None:
    rows, kept = noisy(100), []
    for k in range(0, len(rows), 7):
        new = [*kept, *rows[k : k + 7]]
        keys = shown(new)
        kept = [row for row in new if (row["sample"], setting_key(row)) in keys]
    assert keys == shown(rows) and len(keys) == 12


def plot(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["plot_metrics.py", *map(str, words)])
    run_main(plot_metrics.main)


def test_command_writes_the_same_pdf_and_png_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = write_run(tmp_path / "ours", noisy(20))
    rows = [sdedit(sample, k / 10, k / 50 + sample / 99) for sample in range(9) for k in (3, 6)]
    base = write_run(tmp_path / "base", rows)
    for output in ("a/plot", "b/plot.png"):
        labels = ("--labels", "_ours costs $1, not $2", "SDEdit", "--output", tmp_path / output)
        plot(monkeypatch, ours, base / "run.samples.jsonl", *labels)
    for name in ("plot.pdf", "plot.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a/plot.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(tmp_path / "a/plot.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(10**6) or []}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours  # both curves are there
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["plot.pdf", "plot.png"]
    printed = capsys.readouterr()
    assert printed.out.startswith("2 curves: ") and printed.err == ""


def test_labels_axes_and_bars_are_in_the_picture(tmp_path: Path) -> None:
    curves = make_curves(noisy(20), "ours & others")
    plot_metrics.draw(curves, [tmp_path / "plot.svg"])
    text = (tmp_path / "plot.svg").read_text()
    said = ["CLIP Text-Image Direction Similarity", "CLIP Image Similarity", "ours &amp; others"]
    said += ["numbers: image scale", "bars: 95% confidence", "1.0", "1.2", "1.4"]
    for words in said:
        assert f"<!-- {words} -->" in text, words


@pytest.mark.slow
def test_no_global_state_of_matplotlib_is_touched() -> None:
    program = (
        "import sys, metrics.plot_metrics as p; assert 'matplotlib' not in sys.modules\n"
        "import matplotlib; before = matplotlib.rcParams.copy()\n"
        f"from metrics.curve.curves import make_curves; p.draw(make_curves({noisy(3)}, ''), [])\n"
        "assert 'matplotlib.pyplot' not in sys.modules and matplotlib.rcParams.copy() == before"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])


def test_runs_that_do_not_compare_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_run(tmp_path / "one", noisy(3))
    two = write_run(tmp_path / "two", noisy(3), clip="RN50", name="other", seed=8)
    plot(monkeypatch, one, two, "--output", tmp_path / "plot")
    assert capsys.readouterr().err == f"warning: {two} does not compare: clip 'ViT-L-14', now 'RN50'\n"


def _averages(folder: Path, line: str) -> Path:
    file = folder / "averages.jsonl"
    file.write_text(line)
    return file


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: folder / "missing", "no such run: {run}; expected a folder with a file *.samples"),
        (lambda folder: folder, "run {run}: expected a folder with one file *.samples.jsonl, got none"),
        (lambda folder: write_run(folder, []), "{run}: expected rows, got none"),
        (
            lambda folder: write_run(folder, [edit(0, 1.0, 0.1)]),
            "{run}: expected at least 2 samples with all of its scales, got 1",
        ),
        (
            lambda folder: write_run(folder, [edit(0, 1.0, 0.1)] * 2),
            "{run}: expected one row of a sample and a setting, got two at scale 1",
        ),
        (lambda folder: write_run(folder, [{"caption": "a"}]), "{run}/run.samples.jsonl: expected rows with"),
        (lambda folder: _averages(folder, ""), "{run}: expected rows, got none"),
        (lambda folder: _averages(folder, "no json"), "cannot read {run}: Expecting value"),
        (
            lambda folder: _averages(folder, '{"sim_image": 1}'),
            "{run}: expected a run, or lines with",
        ),
        (lambda folder: _averages(folder, "[1]"), "{run}: expected a run, or lines with"),
    ],
)
def test_unfit_runs_are_one_line(
    make: Callable[[Path], Path],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make(tmp_path)
    with pytest.raises(SystemExit) as ended:
        plot(monkeypatch, run, "--output", tmp_path / "plot")
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    assert error.startswith("error: " + expected.format(run=run))
    assert not list(tmp_path.glob("plot*"))


def test_two_files_in_a_folder_and_labels_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, noisy(3))
    with pytest.raises(SystemExit):
        plot(monkeypatch, run, "--labels", "a", "b")
    assert capsys.readouterr().err == "error: --labels: expected 1, one for each run, got 2\n"
    (tmp_path / "other.samples.jsonl").write_text("")
    with pytest.raises(UserError, match=r"one file \*\.samples\.jsonl, got other\.samples.*, run\.samples"):
        read_run(run)
