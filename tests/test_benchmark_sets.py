"""metrics/compute_benchmark.py on small parquet files in the layouts of MagicBrush and of Emu Edit."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmark_files import emu_rows, magicbrush_rows, picture, write, write_files
from ldm.editor import EMBEDDED, EMBEDDED_CONFIG
from ldm.pictures.writing import read_settings
from ldm.util import run_main
from metrics import compute_benchmark
from metrics.clip_similarity import ClipSimilarity
from metrics.editsets.dino import MODEL, Dino
from metrics.editsets.image_scores import ImageScores
from signal_after import LINE, signal_after
from weights_files import message

EDITS = ["30/30_1", "30/30_inde_2", "30/30_iter_2", "30/30_inde_3", "30/30_iter_3"]
EDITS += ["7/7_1", "139/139_1", "139/139_inde_2", "139/139_iter_2"]
SINGLE = [name for name in EDITS if "iter" not in name]
LAST = ["30/30_iter_3", "7/7_1", "139/139_iter_2"]
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A place for what `datasets` copies, and no way to the hub."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub"))
        yield folder


def words_of(files: Path, out: Path, benchmark: str, **options: Any) -> list[str]:
    """A command line; options by name replace the small ones that it begins with."""
    usual = {
        "dataset": files / f"{'emu' if benchmark == 'emu-edit' else benchmark}.parquet",
        "output": out,
        "ckpt": EMBEDDED,
        "config": EMBEDDED_CONFIG,
        "steps": 2,
        "device": "cpu",
        "clip-model": files / "clip.json",
        "clip-weights": files / "clip.safetensors",
        "dino-weights": files / "dino.safetensors",
    }
    named = usual | {name.replace("_", "-"): value for name, value in options.items()}
    return [benchmark, *(f"--{name}={value}" for name, value in named.items() if value is not None)]


@pytest.fixture(scope="module")
def run(files: Path) -> Run:
    """Runs the program; gives its results.json."""

    def call(out: Path, benchmark: str = "magicbrush", **options: Any) -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["x", *words_of(files, out, benchmark, **options)])
            compute_benchmark.main()
        return json.loads((out / "results.json").read_text())

    return call


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    _, *rows = map(json.loads, (out / "scores.jsonl").read_text().splitlines())
    assert len({row["edit"] for row in rows}) == len(rows)
    return {row["edit"]: row for row in rows}


def without_dino(out: Path) -> dict[str, dict[str, Any]]:
    return {edit: {key: row[key] for key in row.keys() - {"dino"}} for edit, row in rows_of(out).items()}


def contents(out: Path) -> dict[str, bytes]:
    return {str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def scores(files: Path) -> ImageScores:
    clip = ClipSimilarity(str(files / "clip.json"), weights=files / "clip.safetensors")
    return ImageScores(clip, Dino(files / "dino.safetensors"))


# --- MagicBrush ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(files: Path, cache: Path, run: Run) -> Path:
    """The folder of a whole run with captions, whose program was killed on its way and started again."""
    out, options = files / "whole", {"captions": files / "captions.json"}
    command = [*signal_after(LINE, 4, signal.SIGKILL), compute_benchmark.__file__]
    command += words_of(files, out, "magicbrush", **options)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(cache / "home"), "HF_HUB_OFFLINE": "1"}
    killed = subprocess.run(command, env=env, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    lines, stamp = (out / "scores.jsonl").read_bytes().count(b"\n"), (out / "30/30_1.png").stat().st_mtime_ns
    assert lines == 4 and not (out / "results.json").exists()
    run(out, **options)
    assert (out / "30/30_1.png").stat().st_mtime_ns == stamp, "what was done is not done again"
    return out


@pytest.mark.slow
def test_names_inputs_and_averages(whole: Path, files: Path, run: Run, capsys: Any) -> None:
    """All from the folder alone, by the rules of MagicBrush's evaluation/README.md."""
    pictures = [f"{name}.png" for name in EDITS]
    assert set(contents(whole)) == {*pictures, "scores.jsonl", "results.json"}
    truth = {(row["img_id"], row["turn_index"]): row["target_img"] for row in magicbrush_rows()}

    def difference(name: str) -> float:
        session, turn = name.split("/")[0], int(name.rpartition("_")[2])
        target = Image.open(io.BytesIO(truth[session, turn]))
        output = Image.open(whole / f"{name}.png").resize(target.size)
        return np.abs(np.asarray(output, float) - np.asarray(target, float)).mean() / 255

    results = json.loads((whole / "results.json").read_text())
    rows = rows_of(whole)
    assert [row["edit"] for row in rows.values()] == EDITS
    for name, edits in (("single turn", SINGLE), ("multi turn", LAST)):
        averages = results["sets"][name]
        assert averages["edits"] == len(edits)
        assert averages["l1"] == pytest.approx(np.mean([difference(edit) for edit in edits]), abs=1e-6)
        for key in ("l2", "clip_image", "dino", "clip_text"):
            assert averages[key] == pytest.approx(np.mean([rows[edit][key] for edit in edits]))
    assert (results["gaps"], results["left_out"], results["dropped"]) == ({}, [], {})
    assert results["settings"]["clip"][0] == "clip.json"
    assert results["settings"]["dino"] == ["dino.safetensors", (files / "dino.safetensors").stat().st_size]
    run(whole, captions=files / "captions.json")
    printed = capsys.readouterr().out
    assert f"multi turn       3{results['sets']['multi turn']['l1']:10.4f}" in printed
    assert "missing" not in printed
    assert json.loads((whole / "results.json").read_text()) == results


@pytest.mark.slow
def test_turns_go_on_from_our_own_picture_or_from_the_true_one(whole: Path) -> None:
    """As `ImageEditor` edits them by the seed that the picture's name and --seed give."""
    from ldm.editor import ImageEditor
    from ldm.sampling.noise import derived_seed

    editor = ImageEditor.load(EMBEDDED_CONFIG, EMBEDDED, device="cpu")
    true, own = picture(301), Image.open(whole / "30/30_1.png")
    for name, source in (("30/30_inde_2", true), ("30/30_iter_2", own)):
        edited = editor.edit(source, "give the man hat 2", steps=2, seed=derived_seed(0, name))
        assert np.array_equal(np.asarray(edited), np.asarray(Image.open(whole / f"{name}.png")))
    assert read_settings(whole / "30/30_iter_2.png")["edit"] == "give the man hat 2"


@pytest.mark.slow
def test_killed_or_not_in_any_order_the_same(whole: Path, files: Path, tmp_path: Path, run: Run) -> None:
    """Rows in another order, in plain Arrow columns, and nothing stopped."""
    rows = sorted(magicbrush_rows(), key=lambda row: row["img_id"])
    table = {name: [row[name] for row in rows] for name in rows[0]}
    pq.write_table(pa.table(table), tmp_path / "plain.parquet")
    options = {"captions": files / "captions.json", "dino_weights": "none"}
    run(tmp_path / "out", dataset=tmp_path / "plain.parquet", **options)
    assert without_dino(tmp_path / "out") == without_dino(whole)
    ours, theirs = contents(tmp_path / "out"), contents(whole)
    assert all(ours[f"{name}.png"] == theirs[f"{name}.png"] for name in EDITS)


@pytest.mark.slow
def test_limit_gaps_and_scoring_anew(
    whole: Path, files: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without captions and DINO; then with captions and more sessions, but no picture made again."""
    out = tmp_path / "out"
    results = run(out, limit=1, dino_weights=None)
    assert {name: found["edits"] for name, found in results["sets"].items()} == {
        "single turn": 3,
        "multi turn": 1,
    }
    assert set(results["gaps"]) == {"DINO", "CLIP-T"} and results["settings"]["dino"] is None
    printed = capsys.readouterr().out
    assert f"DINO is missing: cannot download {MODEL}" in printed
    assert "CLIP-T is missing: expected --captions FILE" in printed
    assert "dino None, now ['dino.safetensors', " in message(run, out, limit=2)
    options = {"captions": files / "captions.json", "dino_weights": "none"}
    assert "captions None, now " in message(run, out, limit=2, **options)
    stamps = {file: file.stat().st_mtime_ns for file in out.rglob("*.png")}
    (out / "scores.jsonl").unlink()
    run(out, limit=2, **options)
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items())
    expected = without_dino(whole)
    assert without_dino(out) == {edit: row for edit, row in expected.items() if "139" not in edit}
    run(out, **options)
    assert without_dino(out) == expected
    assert "steps 2, now 3" in message(run, out, steps=3, **options)


@pytest.mark.slow
def test_a_broken_picture_leaves_its_session_out(tmp_path: Path, run: Run, capsys: Any) -> None:
    rows = magicbrush_rows()
    rows[2]["target_img"] = rows[2]["target_img"][:200]  # the second turn of 30
    data = write(tmp_path / "x.parquet", rows)
    results = run(tmp_path / "out", dataset=data, dino_weights="none")
    assert results["sets"]["single turn"]["edits"] == 3 and results["sets"]["multi turn"]["edits"] == 2
    (reason,) = results["left_out"]
    assert f"{tmp_path / 'x.parquet'}, row 2 (session 30), target_img: " in reason
    printed = capsys.readouterr()
    assert f"left out: {reason}" in printed.err and "left out as unreadable: 1, named in " in printed.out
    assert not (tmp_path / "out/30").exists()
    for row in rows:
        row["source_img"] = b"no picture"
    said = message(run, tmp_path / "none", dataset=write(tmp_path / "y.parquet", rows))
    assert said.startswith("magicbrush: nothing could be edited; the last reason: ")


# --- Emu Edit -----------------------------------------------------------------------------------------------


def test_emu_edit(files: Path, tmp_path: Path, run: Run, scores: ImageScores, capsys: Any) -> None:
    out = tmp_path / "out"
    results = run(out, "emu-edit")
    names = [f"pictures/{i}_a{i}f" for i in (0, 1, 3)]
    assert set(contents(out)) == {*(f"{name}.png" for name in names), "scores.jsonl", "results.json"}
    rows = rows_of(out)
    for i, name in zip((0, 1, 3), names, strict=True):
        edited = Image.open(out / f"{name}.png")
        found = scores(edited, picture(i), f"a man with {i} hats", "a man")
        assert rows[name] == {"edit": name, **found}
    keys = ("clip_direction", "clip_image", "clip_text", "l1", "dino")
    for group, edits in (("all", names), ("task style", names[:1]), ("task add", names[1:])):
        expected = {key: np.mean([rows[edit][key] for edit in edits]) for key in keys}
        assert results["sets"][group] == pytest.approx({"edits": len(edits), **expected})
    assert results["dropped"] == {"equal captions": 1}
    assert results["settings"]["split"] == "test"
    printed = capsys.readouterr().out
    assert "dropped for equal captions: 1" in printed
    assert "".join(printed.splitlines()[0].split()) == "editsCLIPdirCLIPimgCLIPoutL1DINO"


@pytest.mark.slow
def test_split_of_emu_edit(files: Path, tmp_path: Path, run: Run) -> None:
    options: dict[str, Any] = {"dino_weights": "none"}
    assert run(tmp_path / "a", "emu-edit", split="validation", **options)["sets"]["all"]["edits"] == 2
    assert "split 'validation', now 'test'" in message(run, tmp_path / "a", "emu-edit", **options)
    alone = write(tmp_path / "validation.parquet", emu_rows()[4:])
    results = run(tmp_path / "b", "emu-edit", dataset=alone, **options)
    assert results["sets"]["all"]["edits"] == 2 and results["gaps"] == {"DINO": "--dino-weights none"}
    assert "expected rows of split test, got validation" in message(
        run, tmp_path / "c", "emu-edit", dataset=alone, split="test"
    )


# --- Mistakes -----------------------------------------------------------------------------------------------


def test_a_mistake_is_one_line(files: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["x", *words_of(files, tmp_path / "o", "magicbrush", ckpt="none.ckpt")])
    with pytest.raises(SystemExit) as end:
        run_main(compute_benchmark.main)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: there is no file none.ckpt"


def test_data_that_is_no_benchmark(files: Path, tmp_path: Path, run: Run) -> None:
    out, file = tmp_path / "out", tmp_path / "x.parquet"
    said = message(run, out, dataset=files / "emu.parquet")
    assert "expected a column 'img_id', got instruction, image, task" in said
    said = message(run, out, "emu-edit", dataset=files / "magicbrush.parquet")
    assert "expected a column 'idx', got img_id" in said
    rows = magicbrush_rows()
    pq.write_table(pq.read_table(files / "magicbrush.parquet").slice(0, 0), file)
    assert "corresponds to no data" in message(run, out, dataset=file)
    pq.write_table(pq.read_table(files / "emu.parquet").slice(0, 0), file)
    assert "corresponds to no data" in message(run, out, "emu-edit", dataset=file)
    write(file, rows[:2])
    assert "session 30: expected turns 1 to 1, got 2" in message(run, out, dataset=file)
    write(file, [rows[0], rows[0]])
    assert "row 1: expected a new turn of an img_id" in message(run, out, dataset=file)
    write(file, [{**rows[1], "img_id": "../7"}])
    assert "that can name a folder, got turn 1 of '../7'" in message(run, out, dataset=file)
    write(file, [{**rows[1], "turn_index": "1"}])
    assert "expected whole numbers in column 'turn_index'" in message(run, out, dataset=file)
    write(file, [emu_rows()[0]] * 2)
    assert "row 1: expected an idx and a hash" in message(run, out, "emu-edit", dataset=file)
    write(file, [emu_rows()[2]])
    assert "expected captions that differ, got 1 rows" in message(run, out, "emu-edit", dataset=file)
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read captions in "),
        ("{", "cannot read captions in "),
        ('["a"]', "expected captions as {"),
        ('{"7-output1.png": "a hat"}', "expected captions as {"),
        ('{"30": {"30-output1.png": "a hat"}}', "expected a text for 30-output2.png, got none"),
    ],
)
def test_captions_that_do_not_fit(tmp_path: Path, run: Run, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "captions.json").write_text(content)
    assert said in message(run, tmp_path / "out", captions=tmp_path / "captions.json")


def test_numbers_out_of_range(tmp_path: Path, run: Run) -> None:
    assert "--steps: expected a whole number from 1 to 10000, got '0'" in message(run, tmp_path, steps=0)
    assert message(run, tmp_path, limit=0) == "--limit: expected at least 1, got 0"
    assert "--resolution: expected a whole number from 64 to 8192" in message(run, tmp_path, resolution=8)
