"""dataset_creation/validate_dataset.py on datasets in which one thing at a time is wrong."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataset_creation import validate_dataset
from dataset_creation.validate_dataset import CELL, Findings, contact_sheet, open_source, summary, validate
from ldm.data.hub import Columns
from tiny_training import SIDE, write_dataset

SCRIPT = Path(validate_dataset.__file__)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "dataset", count=6, seeds=2)


def check(path: Path | str, workers: int = 2) -> Findings:
    return validate(open_source(str(path), Columns()), workers)


def problems(path: Path) -> list[tuple[str, str]]:
    return [(problem.kind, problem.where) for problem in check(path).problems]


def run(*args: object, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"HF_HOME": str(home)} if home else {})}
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def rewrite_prompt(folder: Path, **texts: object) -> None:
    prompt = json.loads((folder / "prompt.json").read_text())
    (folder / "prompt.json").write_text(json.dumps({**prompt, **texts}))


# --- What it finds ------------------------------------------------------------------------------------------


def test_a_good_dataset(dataset: Path) -> None:
    found = check(dataset)
    assert (found.examples, found.pairs, found.pictures, found.problems) == (6, 12, 24, [])
    assert found.sizes == {(SIDE, SIDE): 12}
    assert summary(found, 10).splitlines() == [
        "6 examples, 12 pairs, 24 pictures that can be read",
        "pairs by size: 32x32: 12",
        "nothing is wrong",
    ]


def remove_picture(dataset: Path) -> None:
    (dataset / "0000001" / "101_1.jpg").unlink()


def cut_picture(dataset: Path) -> None:
    file = dataset / "0000001" / "101_1.jpg"
    file.write_bytes(file.read_bytes()[:400])


def replace_picture(dataset: Path) -> None:
    (dataset / "0000001" / "101_1.jpg").write_text("<html>")


def shrink_picture(dataset: Path) -> None:
    Image.new("RGB", (SIDE, 16)).save(dataset / "0000001" / "101_1.jpg")


def empty_instruction(dataset: Path) -> None:
    rewrite_prompt(dataset / "0000001", edit=" \n")


def remove_prompt(dataset: Path) -> None:
    (dataset / "0000001" / "prompt.json").unlink()


def break_prompt(dataset: Path) -> None:
    rewrite_prompt(dataset / "0000001", edit=None)


def remove_folder(dataset: Path) -> None:
    shutil.rmtree(dataset / "0000001")


def copy_pair(dataset: Path) -> None:
    for side in (0, 1):
        shutil.copy(dataset / "0000001" / f"100_{side}.jpg", dataset / "0000001" / f"101_{side}.jpg")


def name_twice(dataset: Path) -> None:
    rows = json.loads((dataset / "seeds.json").read_text())
    rows[1][1] = ["100", "101", "101"]
    (dataset / "seeds.json").write_text(json.dumps(rows))


@pytest.mark.parametrize(
    ("damage", "kind", "where"),
    [
        (remove_picture, "picture missing that seeds.json names", "0000001/101_1.jpg"),
        (cut_picture, "picture broken", "0000001/101_1.jpg: "),
        (replace_picture, "picture broken", "0000001/101_1.jpg: it is of no known format"),
        (shrink_picture, "unequal sizes in a pair", "0000001, seed 101: 32x32 and 32x16"),
        (empty_instruction, "empty instruction", "0000001/prompt.json"),
        (remove_prompt, "prompt.json missing", "0000001"),
        (break_prompt, "prompt.json broken", "0000001/prompt.json: expected input (or caption)"),
        (remove_folder, "folder missing that seeds.json names", "0000001"),
        (copy_pair, "duplicate pair", "0000001, seed 101 is the same as 0000001, seed 100"),
        (name_twice, "seed named more than once in seeds.json", "0000001, seed 101"),
    ],
)
def test_one_thing_wrong(dataset: Path, damage: Callable[[Path], None], kind: str, where: str) -> None:
    damage(dataset)
    ((found, place),) = problems(dataset)
    assert found == kind and where in place


def test_duplicates_need_the_same_instruction(dataset: Path) -> None:
    shutil.rmtree(dataset / "0000004")
    shutil.copytree(dataset / "0000003", dataset / "0000004")
    kinds = [kind for kind, _ in problems(dataset)]
    assert kinds == ["duplicate pair"] * 2
    rewrite_prompt(dataset / "0000004", edit="something else")
    assert problems(dataset) == []


def test_a_folder_named_twice(dataset: Path) -> None:
    rows = json.loads((dataset / "seeds.json").read_text())
    (dataset / "seeds.json").write_text(json.dumps([*rows, rows[2]]))
    found = problems(dataset)
    assert found[0] == ("folder named more than once in seeds.json", "0000002")


@pytest.mark.parametrize("content", [None, "{", '[["0000000", []]]'])
def test_without_a_usable_index_the_folders_are_checked(dataset: Path, content: str | None) -> None:
    (dataset / "seeds.json").unlink() if content is None else (dataset / "seeds.json").write_text(content)
    remove_picture(dataset)
    found = check(dataset)
    assert [problem.kind for problem in found.problems] == [
        "seeds.json missing or broken",
        "picture missing that seeds.json names",
    ]
    assert (found.examples, found.pairs, found.pictures) == (6, 12, 23)


def test_a_folder_with_nothing_in_it(tmp_path: Path) -> None:
    assert [kind for kind, _ in problems(tmp_path)] == ["seeds.json missing or broken", "no examples"]


def test_any_number_of_workers_finds_the_same_in_the_same_order(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for damage in (remove_picture, empty_instruction):
        damage(dataset)
    remove_folder(write_dataset(dataset.parent / "other", count=3))
    (dataset / "0000005" / "100_0.jpg").unlink()
    expected = problems(dataset)
    monkeypatch.setattr(validate_dataset, "AT_ONCE", 4)
    assert [(p.kind, p.where) for p in check(dataset, workers=7).problems] == expected
    assert len(expected) == 3


# --- Parquet ------------------------------------------------------------------------------------------------


def write_rows(file: Path, dataset: Path) -> Path:
    """Six rows; row 1 has no instruction, 2 a broken picture, 3 a missing one, 5 is 4 again."""
    rows = []
    for i in range(6):
        folder = dataset / f"{i:07}"
        pair = [(folder / f"100_{side}.jpg").read_bytes() for side in (0, 1)]
        rows.append([pair[0], json.loads((folder / "prompt.json").read_text())["edit"], pair[1]])
    rows[1][1] = None
    rows[2][0] = b"no picture"
    rows[3][2] = None
    rows[5] = rows[4]
    names = ("source_img", "instruction", "target_img")
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    pq.write_table(pa.table(columns), file)
    return file


@pytest.mark.slow
def test_parquet(dataset: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.parquet", dataset)
    columns = [
        "--before-column",
        "source_img",
        "--edit-column",
        "instruction",
        "--after-column",
        "target_img",
    ]
    result = run(file, *columns, "--sheet", tmp_path / "sheet.png", home=tmp_path / "home")
    assert result.returncode == 1, result.stderr
    assert result.stdout.splitlines() == [
        "6 examples, 6 pairs, 10 pictures that can be read",
        "pairs by size: 32x32: 4",
        "empty instruction: 1",
        "  row 1",
        "picture broken: 1",
        "  row 2, source_img: it is of no known format",
        "picture missing: 1",
        "  row 3, target_img",
        "duplicate pair: 1",
        "  row 5 is the same as row 4",
        "4 problems",
        f"{tmp_path / 'sheet.png'}: 4 examples",
    ]


# --- The command --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_exit_codes_and_the_sheet(
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sheet = tmp_path / "sheet.png"
    good = run(dataset, "--sheet", sheet, "--sheet-examples", 5)
    assert good.returncode == 0 and good.stdout.endswith(f"nothing is wrong\n{sheet}: 5 examples\n")
    assert "checking: 100%" in good.stderr
    with Image.open(sheet) as image:
        assert image.height > 3 * CELL
    for i in range(6):
        (dataset / f"{i:07}" / "100_0.jpg").unlink()
    monkeypatch.setattr(sys, "argv", ["validate_dataset.py", str(dataset), "--show", "2"])
    with pytest.raises(SystemExit) as end:
        validate_dataset.main()
    assert end.value.code == 1
    assert capsys.readouterr().out.splitlines()[2:] == [
        "picture missing that seeds.json names: 6",
        "  0000000/100_0.jpg",
        "  0000001/100_0.jpg",
        "  … and 4 more",
        "6 problems",
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{}/nowhere"], "expected a dataset folder or parquet files, got"),
        (["{}/nowhere.parquet"], "expected a parquet file, a folder, a pattern"),
        (["{}", "--workers", "0"], "expected a whole number of at least 1, got '0'"),
        (["{}", "--sheet", "sheet.doc"], "expected an output file ending in"),
        ([], "required: DATASET"),
    ],
)
def test_bad_usage(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    args: list,
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["validate_dataset.py", *(arg.format(tmp_path) for arg in args)])
    with pytest.raises(SystemExit) as end:
        validate_dataset.run_main(validate_dataset.main)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_no_sheet_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_source(str(tmp_path), Columns())
    assert validate_dataset.write_sheet(source, validate(source, 1), str(tmp_path / "a.png"), 3) == 0
    assert not (tmp_path / "a.png").exists()


# --- The sheet ----------------------------------------------------------------------------------------------


def test_sheet_shows_before_on_the_left_and_after_on_the_right() -> None:
    examples = [
        (Image.new("RGB", (40, 20), "red"), "turn it", Image.new("RGB", (20, 40), "blue")),
        (Image.new("RGB", (1, 900), "lime"), "", Image.new("RGB", (500, 500), "black")),
        (Image.new("RGB", (8, 8), "yellow"), "word " * 300, Image.new("RGB", (8, 8), "cyan")),
    ]
    pixels = np.asarray(contact_sheet(examples)).astype(int)

    def box(*colour: int) -> tuple[int, int, int, int]:
        rows, columns = np.nonzero((pixels == colour).all(-1))
        return rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1

    red, blue, lime, yellow = box(255, 0, 0), box(0, 0, 255), box(0, 255, 0), box(255, 255, 0)
    assert red[2:] == (CELL // 2, CELL) and blue[2:] == (CELL, CELL // 2), "proportions are kept"
    assert lime[2:] == (CELL, 1) and yellow[2:] == (CELL, CELL)
    assert red[1] + CELL < blue[1] and blue[1] + CELL // 2 < lime[1], "side by side"
    assert yellow[0] > blue[0] + CELL and yellow[1] == red[1], "the third below the first"
    between = pixels[blue[0] : blue[0] + CELL, red[1] + CELL : blue[1]]
    assert (between == 0).all(-1).any(), "the instruction stands between"
