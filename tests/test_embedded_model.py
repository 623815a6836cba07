"""The embedded model on pictures it has never seen, out of the box; and the measures of how good it is."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dataset_creation.avatars.captions import caption
from dataset_creation.avatars.kinds import edit_kind
from dataset_creation.avatars.plan import train_people
from dataset_creation.avatars.styles import styles
from ldm.data.formats import read_examples
from ldm.editor import (
    EMBEDDED,
    EMBEDDED_CONFIG,
    EMBEDDED_NOTICE,
    ImageEditor,
    find_model,
)
from ldm.files import ROOT
from ldm.pictures.fitting import to_image, to_tensor
from ldm.pictures.reading import open_image
from ldm.util import UserError
from metrics.editsets.edit_accuracy import CHANGED, EditPairs, measure, nearest_in_group, read_pairs

SAMPLE = Path(__file__).parent / "data" / "avatars_held_out"
STEPS = 6
LEAST_ACCURACY = 0.5  # of the shipped model on the sample; chance is 0.1
MOST_OUTSIDE = 0.05  # mean absolute error where nothing should change, of a range of 1


@pytest.fixture(scope="module")
def held_out() -> EditPairs:
    """40 pairs: ten edits of each of four people."""
    return read_pairs(read_examples(SAMPLE), group_size=10)


@pytest.fixture(scope="module")
def editor() -> ImageEditor:
    return ImageEditor.load(EMBEDDED_CONFIG, EMBEDDED, device="cpu")


# --- the shipped model ---


@pytest.mark.slow
def test_it_does_what_it_is_told(editor: ImageEditor):
    pairs = read_pairs(read_examples(SAMPLE), group_size=10, limit=2)
    samplings = [editor.defaults.but(steps=STEPS, seed=i) for i in range(len(pairs.before))]
    edited = editor.edit_batch(pairs.before, pairs.instructions, samplings)
    found = measure(edited, pairs).averages()
    assert found.pairs == 20
    assert found.accuracy >= LEAST_ACCURACY, found
    assert found.inside < 1, found  # nearer to the truth than the unedited input
    assert found.outside <= MOST_OUTSIDE, found


def test_a_batch_gives_the_pictures_of_single_edits(editor: ImageEditor, held_out: EditPairs):
    rows = slice(8, 12)
    samplings = [editor.defaults.but(steps=2, seed=seed) for seed in range(3, 7)]
    batch = editor.edit_batch(held_out.before[rows], held_out.instructions[rows], samplings)  # [4, 3, H, W]
    for i, (before, text) in enumerate(zip(held_out.before[rows], held_out.instructions[rows], strict=True)):
        single = editor.edit(to_image((before + 1e-3).clamp(max=1)), text, samplings[i])
        assert (to_tensor(single)[0] - to_tensor(to_image(batch[i]))[0]).abs().max() <= 2.01 / 255


@pytest.mark.slow
@pytest.mark.skipif(find_model().notice is None and EMBEDDED.is_file(), reason="the published model is there")
def test_the_program_takes_it_by_itself(tmp_path: Path):
    out = tmp_path / "output.png"
    arguments = ["--input", ROOT / "imgs/example.jpg", "--output", out, "--edit", "add sunglasses"]
    result = subprocess.run(
        [sys.executable, ROOT / "edit_cli.py", *arguments, "--steps", "10", "--seed", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert EMBEDDED_NOTICE in result.stderr.splitlines()
    edited = open_image(out)
    assert max(edited.size) == 64  # the model's own resolution
    unedited = open_image(ROOT / "imgs/example.jpg").resize(edited.size)
    difference = (to_tensor(edited) - to_tensor(unedited)).abs().mean().item() / 2
    assert 0 < difference < 0.2


# --- the measures ---


@pytest.fixture
def squares() -> EditPairs:
    """Two groups of ten edits; each paints a square of its own, a bit stronger than the one before."""
    before = torch.full((20, 3, 32, 32), -0.5)
    before[10:] = 0.25
    after = before.clone()
    for i in range(20):
        row, column = divmod(i % 10, 4)
        after[i, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 0.3 + 0.01 * (i % 10)
    return EditPairs(before, after, [], torch.arange(2).repeat_interleave(10))


def test_the_truth_is_free_of_error(squares: EditPairs):
    found = measure(squares.after, squares).averages()
    assert (found.pairs, found.accuracy, found.inside, found.outside) == (20, 1, 0, 0)


def test_the_input_copied_is_at_chance(squares: EditPairs):
    scores = measure(squares.before, squares)
    found = scores.averages()
    assert (found.inside, found.outside) == (1, 0) and found.accuracy == pytest.approx(0.1)
    assert scores.correct.nonzero()[:, 0].tolist() == [0, 10]  # the edits that change the least
    assert scores.copied[:10].tolist() == pytest.approx([0.15 + 0.005 * i for i in range(10)], abs=1e-6)


def test_half_an_edit_has_half_the_error(squares: EditPairs):
    found = measure((squares.before + squares.after) / 2, squares).averages()
    assert found.inside == pytest.approx(0.5) and found.outside == 0


def test_error_outside_is_in_units_of_the_range(squares: EditPairs):
    unchanged = squares.after == squares.before
    found = measure(torch.where(unchanged, squares.after + 0.1, squares.after), squares).averages()
    assert found.inside == 0 and found.outside == pytest.approx(0.05, abs=1e-6)  # 0.1 of the range [-1, 1]
    far = measure(torch.where(unchanged, squares.after + 9, squares.after), squares).averages()
    assert far.outside == pytest.approx((0.75 + 0.375) / 2, abs=1e-6)  # clamped to white


def test_wrong_edits_are_counted_within_their_group(squares: EditPairs):
    assert measure(squares.after.roll(1, 0), squares).averages().accuracy == 0
    halves = torch.cat([squares.after[:10], squares.after[10:].flip(0)])
    scores = measure(halves, squares)
    assert scores.averages(slice(10)).accuracy == 1 and scores.averages(slice(10, 20)).accuracy == 0
    # The other group's right answer is no choice, even where it is nearer.
    other = squares.after.roll(10, 0)
    assert nearest_in_group(other, squares.after, squares.groups).tolist() == list(range(20))


def test_what_counts_as_a_change():
    def region_size(step: float) -> float:
        before, after = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
        after[0, 1, 0, 0] = 2 * step
        pairs = EditPairs(before, after, [], torch.zeros(1, dtype=torch.long))
        return measure(before, pairs).copied.isfinite().sum().item()

    assert [region_size(CHANGED * factor) for factor in (0.98, 1.02)] == [0, 1]


def test_reading_groups(held_out: EditPairs, tmp_path: Path):
    examples = read_examples(SAMPLE)
    assert held_out.before.shape == held_out.after.shape == (40, 3, 64, 64)
    assert held_out.groups.tolist() == [i // 10 for i in range(40)]
    for group in range(4):
        (rows,) = (held_out.groups == group).nonzero(as_tuple=True)
        assert len(unique(held_out.before[rows])) == 1 and len(unique(held_out.after[rows])) == 10
        assert len({held_out.prompts[row].caption for row in rows}) == 1
    assert len(read_pairs(examples, 10, limit=2).prompts) == 20
    with pytest.raises(UserError, match="expected groups of 7 edits of one picture, found none"):
        read_pairs(examples, 7)


def unique(pictures: Tensor) -> Tensor:
    return pictures.flatten(1).unique(dim=0)


def test_kinds_of_edits_are_read_off_the_captions():
    for person in train_people([*styles().values()], 80, 4, 0):
        for edit in person.edits:
            texts = [caption(person.style, state) for state in (person.state, person.after(edit))]
            assert edit_kind(*texts) == edit.kind
            assert edit_kind(*texts[::-1]) == edit.reverse().kind
    with pytest.raises(ValueError, match="expected the caption of an avatar, got 'a dog'"):
        edit_kind("a dog", "a cat")
    with pytest.raises(ValueError, match="expected captions that differ"):
        edit_kind(texts[0], texts[0])


# --- the benchmark ---


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the benchmark as a program in this process: arguments → (exit code, stdout, stderr)."""
    script = ROOT / "benchmarks/embedded_model.py"

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [script.name, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def test_mistakes_are_one_line(run_benchmark: Run, tmp_path: Path):
    mistakes = {
        f"python dataset_creation/avatars/build.py {tmp_path}": ["--data", tmp_path, "--sets", "style"],
        f"there is no avatar data in {tmp_path / 'train'}": ["--data", tmp_path, "--sweep"],
        "expected --steps, --batch-size and --limit of at least 1": ["--limit", 0],
    }
    for words, arguments in mistakes.items():
        code, _, err = run_benchmark(*arguments)
        assert code == 2 and err.startswith("error: ") and len(err.splitlines()) == 1 and words in err


def test_the_benchmark_writes_figures_and_sheet(run_benchmark: Run, tmp_path: Path):
    (tmp_path / "identities").symlink_to(SAMPLE)
    figures, sheet = tmp_path / "deep/figures.json", tmp_path / "sheet.jpg"
    options = ["--limit", 1, "--steps", 1, "--json", figures, "--sheet", sheet, "--device", "cpu"]
    code, out, err = run_benchmark("--data", tmp_path, "--sets", "identities", *options)
    assert code == 0 and "identities: 10 pairs" in out, err
    found = json.loads(figures.read_text())["sets"]["identities"]
    assert found["answers"]["input copied"]["inside"] == 1
    assert sum(kind["pairs"] for kind in found["kinds"].values()) == 10
    assert open_image(sheet).width > 1000 and sheet.stat().st_size <= 500_000
