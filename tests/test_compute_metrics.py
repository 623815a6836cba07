"""compute_metrics.py: the same numbers however it is run, and what they are of."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ldm.data.formats import pair_paths, read_examples, read_prompt
from ldm.data.json_lines import JsonLines, read_json_lines
from ldm.editor import EMBEDDED
from ldm.util import UserError
from ldm.weights.opening import open_weights
from metrics import compute_metrics
from metrics.clip_similarity import ClipSimilarity
from metrics.curve.edit_methods import Setting, stacked
from metrics.curve.evaluation import Evaluation
from metrics.curve.samples import EvalSample, EvalSamples
from pair_runs import write_models
from signal_after import LINE, signal_after
from training_runs import call

DATASET = Path(__file__).parent / "data" / "avatars_held_out"
ROWS = 36  # of the train split of its 40


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


def words_of(models: Path, out: Path, *more: Any) -> list[str]:
    usual = {
        "--dataset": DATASET,
        "--split": "train",
        "--num-samples": 3,
        "--steps": 2,
        "--scales-text": 1.5,
        "--clip-model": models / "clip.json",
        "--clip-weights": models / "clip.safetensors",
        "--device": "cpu",
        "--output_path": out,
    }
    words = [str(word) for pair in usual.items() for word in pair]
    return [*words, "--scales-image", "1", "2", *map(str, more)]


def compute(models: Path, out: Path, *more: Any) -> int:
    return call(compute_metrics.main, *words_of(models, out, *more))


def rows_of(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (file,) = folder.glob("*.samples.jsonl")
    return read_json_lines(file)


def by_edit(rows: list[dict[str, Any]]) -> dict[tuple[int, float], dict[str, Any]]:
    return {(row["sample"], row["scale_image"]): row for row in rows}


@pytest.fixture(scope="module")
def whole(models: Path) -> Path:
    """A run of the embedded model in one go."""
    assert compute(models, models / "whole") == 0
    return models / "whole"


# --- A run ---


def test_a_run(whole: Path):
    settings, rows = rows_of(whole)
    assert settings["clip"][0] == "clip.json" and settings["clip"][2][0] == "clip.safetensors"
    assert settings["pixels"] == "[0, 1]" and settings["method"] == "instruct-pix2pix"
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))[:3].tolist()  # as published
    assert list(by_edit(rows)) == [(number, scale) for scale in (1.0, 2.0) for number in order]
    examples = read_examples(DATASET)
    assert all(row["edit"] == read_prompt(examples[row["sample"]].folder).edit for row in rows)
    averages = [json.loads(line) for line in (whole / "n=3_p=train_s=2_r=64_e=0.jsonl").open()]
    assert [(line["scale_txt"], line["scale_img"], line["num_samples"]) for line in averages] == [
        (1.5, 1.0, 3),
        (1.5, 2.0, 3),
    ]
    for line in averages:
        of_scale = [row["sim_direction"] for row in rows if row["scale_image"] == line["scale_img"]]
        assert line["sim_direction"] == pytest.approx(sum(of_scale) / 3)
    names = {file.name for file in (whole / "pictures").iterdir()}
    assert names == {f"{n}_{key}.jpg" for n in order for key in ("input", "t1.5_i1", "t1.5_i2")}
    for name in ("plot.pdf", "plot.png", "sheet.jpg", "report.html"):
        assert (whole / name).stat().st_size > 1000


def test_a_second_run_adds_nothing(models: Path, whole: Path):
    (file,) = whole.glob("*.samples.jsonl")
    before = file.read_bytes()
    assert compute(models, whole) == 0
    assert file.read_bytes() == before


@pytest.mark.slow
def test_a_lora(models: Path, whole: Path, tmp_path: Path):
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    ours = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    width, context = open_weights(EMBEDDED).shapes[ours]
    matrices = {"A": torch.ones(1, context), "B": torch.ones(width, 1)}
    save_file({f"{name}.lora_{key}.weight": m for key, m in matrices.items()}, tmp_path / "lora.safetensors")
    assert compute(models, tmp_path / "out", "--lora", f"{tmp_path}/lora.safetensors:0.5") == 0
    settings, rows = rows_of(tmp_path / "out")
    before, expected = rows_of(whole)
    assert settings == before | {"lora": [["lora.safetensors", 0.5]]}
    assert by_edit(rows).keys() == by_edit(expected).keys() and rows != expected


@pytest.mark.slow
def test_batch_size_changes_no_number(models: Path, whole: Path, tmp_path: Path):
    assert compute(models, tmp_path, "--batch-size", 1) == 0
    expected = by_edit(rows_of(whole)[1])
    for key, row in by_edit(rows_of(tmp_path)[1]).items():
        assert row == pytest.approx(expected[key], abs=1e-4)


@pytest.mark.slow
def test_a_killed_run_goes_on(models: Path, whole: Path, tmp_path: Path):
    words = words_of(models, tmp_path, "--batch-size", 1)
    command = [*signal_after(LINE, 3, signal.SIGKILL), compute_metrics.__file__, *words]
    killed = subprocess.run(command, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (file,) = tmp_path.glob("*.samples.jsonl")
    there = file.read_bytes()
    assert there.count(b"\n") == 3
    file.write_bytes(there + b'{"sample": 1, "na')  # what a kill while writing leaves
    assert call(compute_metrics.main, *words) == 0
    assert file.read_bytes().startswith(there)
    rows = rows_of(tmp_path)[1]
    expected = by_edit(rows_of(whole)[1])
    assert len(rows) == len(expected)
    for key, row in by_edit(rows).items():
        assert row == pytest.approx(expected[key], abs=1e-4)


@pytest.mark.slow
def test_more_scales_later(models: Path, whole: Path, tmp_path: Path):
    """Scales are no setting of the file: what is there stays, what is missing is added."""
    copy = shutil.copytree(whole, tmp_path / "copy")
    assert call(compute_metrics.main, *words_of(models, copy), "3") == 0
    before, after = rows_of(whole)[1], rows_of(copy)[1]
    assert after[: len(before)] == before
    assert {row["scale_image"] for row in after[len(before) :]} == {3.0}


@pytest.mark.slow
def test_settings_never_mix(models: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copy = shutil.copytree(whole, tmp_path / "copy")
    capsys.readouterr()
    assert compute(models, copy, "--paper-compat") == 2
    assert "pixels '[0, 1]', now 'as published'" in capsys.readouterr().err
    assert compute(models, copy, "--steps", 3) == 2
    assert "choose another --name" in capsys.readouterr().err
    assert rows_of(copy) == rows_of(whole)
    assert compute(models, copy, "--steps", 3, "--name", "other") == 0
    assert len(rows_of(copy / "other")[1]) == len(rows_of(whole)[1])


@pytest.mark.slow
def test_the_split_may_be_smaller(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert compute(models, tmp_path, "--split", "test", "--num-samples", 5000) == 0
    assert "--num-samples 5000: fitted to the 2 of split test" in capsys.readouterr().err.splitlines()


@pytest.mark.slow
def test_sdedit(models: Path, tmp_path: Path):
    words = ["--method", "sdedit", "--config", models / "text.yaml", "--ckpt", models / "text.safetensors"]
    words += ["--strengths", "0", "0.5", "--name", "baseline", "--resolution", "64"]
    assert compute(models, tmp_path, *words) == 0
    settings, rows = rows_of(tmp_path / "baseline")
    assert settings["method"] == "sdedit" and settings["name"] == "baseline"
    assert [row["strength"] for row in rows] == [0, 0, 0, 0.5, 0.5, 0.5]
    assert all(row["scale_image"] is None for row in rows)


# --- What the numbers are of ---


class Copying:
    """Gives back what it gets, over the range of pixels."""

    device, precision = torch.device("cpu"), "fp32"
    gain = 1.0

    def edit(self, samples: Sequence[EvalSample], setting: Setting, seeds: Sequence[int]) -> Tensor:
        return stacked(samples, self) * self.gain


def rated(models: Path, folder: Path, method: Copying, **options: bool) -> list[dict[str, Any]]:
    samples = EvalSamples(str(DATASET), "train", 4, 64, seed=1)
    clip = ClipSimilarity(str(models / "clip.json"), weights=models / "clip.safetensors")
    with JsonLines(folder / "a.samples.jsonl", {}) as results:
        return Evaluation(method, samples, [Setting(7.5, 1.5)], clip, folder, 0, 3, **options).run(results)


def test_copying_keeps_everything_and_changes_nothing(models: Path, tmp_path: Path):
    for row in rated(models, tmp_path, Copying()):
        assert row["sim_image"] == pytest.approx(1, abs=1e-6)
        assert row["sim_direction"] == 0


def test_pixels_are_clamped_unless_the_published_way_is_asked_for(models: Path, tmp_path: Path):
    method = Copying()
    method.gain = 1.5
    clip = ClipSimilarity(str(models / "clip.json"), weights=models / "clip.safetensors")
    ours, published = (
        rated(models, tmp_path / "a", method),
        rated(models, tmp_path / "b", method, as_published=True),
    )
    samples = EvalSamples(str(DATASET), "train", 4, 64, seed=1)
    for number, mine, theirs in zip(samples.numbers, ours, published, strict=True):
        sample = samples.read(number)
        raw = sample.before[None]
        expected = clip(raw, raw * 1.5, [sample.input], [sample.output])
        found = [theirs[name] for name in ("sim_0", "sim_1", "sim_direction", "sim_image")]
        assert found == pytest.approx([value.item() for value in expected], abs=1e-5)
        right = clip((raw + 1) / 2, ((raw * 1.5).clamp(-1, 1) + 1) / 2, [sample.input], [sample.output])
        found = [mine[name] for name in ("sim_0", "sim_1", "sim_direction", "sim_image")]
        assert found == pytest.approx([value.item() for value in right], abs=1e-5)
        assert mine["sim_0"] != pytest.approx(theirs["sim_0"], abs=1e-4)


# --- Samples ---


def hub_copy(file: Path, **replaced: list[Any]) -> Path:
    """The dataset in the columns of the hub's copy."""
    columns: dict[str, list[Any]] = {name: [] for name in HUB}
    for example in read_examples(DATASET):
        prompt = read_prompt(example.folder)
        before, after = (path.read_bytes() for path in pair_paths(example.folder, example.seeds[0]))
        for name, value in zip(HUB, (prompt.caption, before, prompt.edit, prompt.output, after), strict=True):
            columns[name].append(value)
    datasets.Dataset.from_dict(columns | replaced).to_parquet(str(file))
    return file


HUB = ("original_prompt", "original_image", "edit_prompt", "edited_prompt", "edited_image")


def test_parquet_gives_the_samples_of_the_folder(tmp_path: Path):
    file = hub_copy(tmp_path / "data.parquet")
    one, other = (EvalSamples(str(path), "val", 9, 96, seed=0) for path in (DATASET, file))
    assert one.numbers == other.numbers and one.available == 2
    for number in one.numbers:
        a, b = one.read(number), other.read(number)
        assert (a.input, a.edit, a.output) == (b.input, b.edit, b.output)
        assert a.before.shape == (3, 96, 96) and torch.equal(a.before, b.before)


def test_a_sample_does_not_depend_on_how_many_there_are():
    few, many = (EvalSamples(str(DATASET), "train", count, 64, seed=2) for count in (5, 30))
    assert few.numbers == many.numbers[:5]
    assert torch.equal(few.read(few.numbers[4]).before, many.read(few.numbers[4]).before)


def test_the_whole_dataset(tmp_path: Path):
    for path in (DATASET, hub_copy(tmp_path / "data.parquet")):
        samples = EvalSamples(str(path), "all", 100, 64, seed=2)
        assert sorted(samples.numbers) == list(range(40))


def test_broken_rows(tmp_path: Path):
    pictures = [b"no picture"] * 40
    samples = EvalSamples(str(hub_copy(tmp_path / "a.parquet", original_image=pictures)), "val", 9, 64, 0)
    with pytest.raises(UserError, match=r"a\.parquet, row 3[67], original_image: .*no known format"):
        samples.read(0)
    captions = [None] * 39 + ["x"]
    samples = EvalSamples(str(hub_copy(tmp_path / "b.parquet", edited_prompt=captions)), "val", 9, 64, 0)
    with pytest.raises(UserError, match=r"b\.parquet, row 3[67]: expected text in edited_prompt, got null"):
        samples.read(0)


def broken_picture(folder: Path) -> None:
    for file in folder.glob("*/*_0.jpg"):
        file.write_bytes(BytesIO(b"half").getvalue())


def missing_caption(folder: Path) -> None:
    for file in folder.glob("*/prompt.json"):
        file.write_text('{"edit": "a", "output": "b"}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken_picture, "cannot read the picture"),
        (missing_caption, "expected input (or caption), edit and output"),
        (
            lambda folder: (folder / "seeds.json").write_text("[]"),
            "expected samples in split train, got none",
        ),
        (shutil.rmtree, "expected a parquet file, a folder, a pattern or owner/name"),
    ],
)
def test_bad_datasets_are_one_line(
    damage: Any, message: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = shutil.copytree(DATASET, tmp_path / "copy")
    damage(copy)
    capsys.readouterr()
    assert compute(models, tmp_path / "out", "--dataset", copy) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert message in line


MISTAKES = {
    "checkpoint": (["--ckpt", "none.ckpt"], "none.ckpt"),
    "kind of model": (["--config", "text.yaml", "--ckpt", "text.safetensors"], "expected an edit model"),
    "count": (["--num-samples", "0"], "--num-samples: expected at least 1, got 0"),
    "scales": (["--scales-image", "1", "1"], "--scales-image: expected different numbers"),
    "not a number": (["--scales-text", "nan"], "--scales-text: expected different numbers, got [nan]"),
    "strength": (["--strengths", "2"], "--strengths: expected 0 to 1, got [2.0]"),
    "name": (["--name", "../x"], "--name: expected a name for a folder, got '../x'"),
    "sampler": (["--sampler", "none"], "expected as sampler one of"),
    "lora": (["--lora", "none.safetensors"], "there is no file none.safetensors"),
    "lora of sdedit": (["--lora", "x", "--method", "sdedit"], "--lora goes with --method instruct-pix2pix"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(
    name: str,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    words, message = MISTAKES[name]
    monkeypatch.chdir(models)
    assert compute(models, tmp_path / "out", *words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "out").exists()


def test_published_command():
    args = compute_metrics.make_parser().parse_args(
        "--resolution 256 --steps 50 --config c --output_path a --ckpt m --dataset d --vae-ckpt v".split()
    )
    assert (args.resolution, args.steps, args.output_path, args.vae_ckpt) == (256, 50, "a", "v")
    args = compute_metrics.make_parser().parse_args([])
    assert (args.num_samples, args.split, args.seed, args.scales_text) == (5000, "test", 0, [7.5])
    assert args.scales_image == (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2)
    assert (args.output_path, args.dataset) == ("analysis/", "data/clip-filtered-dataset/")
