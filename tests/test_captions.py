"""Captions from files and a hub, how they are shared out, and files of triples joined again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_creation import generate_txt_dataset
from dataset_creation.text.captions import Caption, Captions, draw, partition, repeated
from faulty_server import serving
from hub_server import hub
from ldm.util import UserError
from training_runs import call
from triple_runs import TripleRun, plain_captions, quick, read_lines

pytestmark = pytest.mark.usefixtures(quick.__name__)
TEXTS = ['a "quoted" cat, on a sofa', "naïve café 猫", "a dog", "  spaces   around ", "", "a dog"]
URLS = ["http://a/1", "http://a/2", None, "http://a/4", None, "http://a/6"]


def write(folder: Path, ending: str, caption: str = "caption", url: str = "url") -> Path:
    """`TEXTS` and `URLS` in a file of that kind."""
    file = folder / f"rows{ending}"
    rows = [{"number": i, caption: TEXTS[i], url: URLS[i]} for i in range(len(TEXTS))]
    if ending == ".txt":
        file.write_text("".join(text + "\n" for text in TEXTS), encoding="utf-8")
    elif ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif ending == ".csv":
        lines = ['"{}","{}",{}'.format(row[caption].replace('"', '""'), row[url] or "", 1) for row in rows]
        file.write_text("\n".join([f"{caption},{url},number", *lines]) + "\n", encoding="utf-8")
    else:
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def one_line(function: Callable[..., object], *args: object) -> str:
    with pytest.raises(UserError) as error:
        function(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- Files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv", ".parquet"])
def test_every_format_gives_the_same_captions(tmp_path: Path, ending: str) -> None:
    captions = Captions(str(write(tmp_path, ending)))
    urls = [None] * len(TEXTS) if ending == ".txt" else URLS
    assert len(captions) == len(TEXTS)
    assert captions.rows(range(len(TEXTS))) == [Caption(*row) for row in zip(TEXTS, urls, strict=True)]
    assert captions[3] == Caption(TEXTS[3], urls[3])


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_columns_by_name(tmp_path: Path, ending: str) -> None:
    file = str(write(tmp_path, ending, caption="TEXT", url="place"))
    assert Captions(file).rows([0, 1]) == [Caption(TEXTS[0]), Caption(TEXTS[1])]
    assert Captions(file, "TEXT", "place")[1] == Caption(TEXTS[1], URLS[1])
    assert Captions(file, "place")[1].text == URLS[1]
    assert "expected a column 'caption', got " in one_line(Captions, file, "caption")
    assert "expected a column 'url', got " in one_line(Captions, file, None, "url")
    assert "expected text in column 'number', got int64" in one_line(Captions, file, "number")
    unknown = str(write(tmp_path, ending, caption="words"))
    assert "name it by --caption-column" in one_line(Captions, unknown)


def test_names_that_look_like_patterns(tmp_path: Path) -> None:
    folder = tmp_path / "a [1] * folder"
    folder.mkdir()
    assert len(Captions(str(write(folder, ".txt")))) == len(TEXTS)


def test_lines_end_where_a_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffone\r\ntwo\u2028three\x0bfour\nfive".encode())
    texts = [caption.text for caption in Captions(str(file)).rows(range(3))]
    assert texts == ["one", "two\u2028three\x0bfour", "five"]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    for count in (3, 5):
        file.write_text("a cat\n" * count)
        assert len(Captions(str(file))) == count


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv", ".parquet"])
def test_files_that_cannot_be_used(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"a{ending}"
    assert f"got {file}" in one_line(Captions, str(file))
    file.write_bytes(b"")
    assert one_line(Captions, str(file)).startswith(f"captions {file}: ")
    file.write_bytes(b'{"caption": "a \xff"}\n"')
    assert f"captions {file}: cannot be read: " in one_line(Captions, str(file))
    file.unlink()
    file.mkdir()
    assert "expected a file that ends in " in one_line(Captions, str(file))


def test_what_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("a")
    assert "expected a file that ends in .txt, .jsonl" in one_line(Captions, str(tmp_path / "a.xlsx"))
    for name in ("nowhere", "a/b/c", "owner/nowhere.csv"):
        assert f"got {name}" in one_line(Captions, name)
    lost = one_line(Captions, "ChristophSchuhmann/improved_aesthetics_6.5plus")
    assert "gone from the hub" in lost and "guangyil/laion-coco-aesthetic" in lost


# --- A hub --------------------------------------------------------------------------------------------------

OPEN = """
import sys
from dataset_creation.text.captions import Captions
from ldm.util import UserError
for args in (("owner/name",), ("owner/name", "words", "place"), ("owner/no",)):
    try:
        captions = Captions(*args)
        print(len(captions), captions[1])
    except UserError as error:
        print(error)
"""


@pytest.mark.slow
def test_from_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: `datasets` learns the hub's address when it is imported."""
    folder = tmp_path / "hub" / "owner" / "name" / "data"
    folder.mkdir(parents=True)
    file = write(tmp_path, ".parquet", caption="words", url="place")
    file.rename(folder / "train-00000-of-00001.parquet")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with hub(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        command = [sys.executable, "-c", OPEN]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    unnamed, named, missing = result.stdout.splitlines()
    assert "captions owner/name: expected a column of captions, got number, words, place" in unnamed
    assert named == f"{len(TEXTS)} {Caption(TEXTS[1], URLS[1])}"
    assert missing.startswith("captions owner/no: cannot be read: ") and "Hub" in missing


# --- Shares -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "parts"), [(10, 1), (10, 3), (3, 7), (0, 2), (1000, 16)])
def test_partitions_are_disjoint_and_cover_everything(count: int, parts: int) -> None:
    shares = [partition(count, parts, part) for part in range(parts)]
    assert sorted(position for share in shares for position in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_draw_depends_on_the_seed_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("".join(f"{line}\n" for line in plain_captions(500)))
    captions = Captions(str(file))
    rows = draw(captions, 100, seed=1)
    assert len(set(rows.tolist())) == 100 and rows.max() >= 300
    assert np.array_equal(draw(captions, 100, seed=1), rows)
    assert np.array_equal(draw(captions, 50, seed=1), rows[:50]), "a smaller draw is its beginning"
    assert not np.array_equal(draw(captions, 100, seed=2), rows)
    assert sorted(draw(captions, 10_000, seed=1)) == list(range(500))
    assert draw(captions, 5, seed=0).tolist() == [221, 434, 109, 334, 375], "on every machine"


def test_repeated_captions_and_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("a", "u"), ("b", "u"), (" a ", "v"), ("c", None), ("d", None), ("e", "v"), ("e", "w")]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"caption": text, "url": url}) + "\n" for text, url in rows))
    captions = Captions(str(file))
    for chunk in (1, 3, 100):
        monkeypatch.setattr("dataset_creation.text.captions.CHUNK", chunk)
        assert repeated(captions, np.arange(7)).tolist() == [False, True, True, False, False, True, True]
        backwards = repeated(captions, np.arange(7)[::-1])
        assert backwards.tolist() == [False, True, False, False, True, False, True]


# --- Files of triples joined --------------------------------------------------------------------------------


def merge(*files: Path) -> int:
    return call(generate_txt_dataset.main, "--merge", *files)


def test_merge_of_partitions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = plain_captions(30)
    with serving() as server:
        run = TripleRun(tmp_path, server, captions)
        parts = [tmp_path / f"{part}-of-3.jsonl" for part in range(3)]
        for part, run.output in enumerate(parts):
            assert run.call("--partitions", 3, "--partition", part) == 0
        run.output = tmp_path / "more.jsonl"
        run.captions.write_text("".join(f"{line}\n" for line in [*captions[:5], "a cat  on sofa 9", "new"]))
        assert run.call() == 0
    assert merge(tmp_path / "sub" / "all.jsonl", *parts, run.output) == 0
    assert "31 triples in " in (out := capsys.readouterr().out) and "6 duplicates left out" in out
    lines = read_lines(tmp_path / "sub" / "all.jsonl")
    assert sorted(line["caption"] for line in lines) == sorted([*captions, "new"])
    assert all(list(line) == ["caption", "edit", "output", "url"] for line in lines)


def test_merge_removes_repeated_urls(tmp_path: Path) -> None:
    rows = [("a", "u"), ("b", "u"), ("c", None), ("d", None), ("u", "x")]
    for i, (caption, url) in enumerate(rows):
        triple = {"caption": caption, "edit": "e", "output": "o", "url": url}
        (tmp_path / f"{i}.jsonl").write_text(json.dumps(triple) + "\n")
    assert merge(tmp_path / "all.jsonl", *(tmp_path / f"{i}.jsonl" for i in range(5))) == 0
    assert [line["caption"] for line in read_lines(tmp_path / "all.jsonl")] == ["a", "c", "d", "u"]


def test_merge_mistakes_leave_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, new = tmp_path / "good.jsonl", tmp_path / "bad.jsonl", tmp_path / "new.jsonl"
    line = '{"caption": "a", "edit": "b", "output": "c", "url": null}\n'
    good.write_text(line)

    def message(*files: Path) -> str:
        assert merge(*files) == 2
        (text,) = capsys.readouterr().err.splitlines()
        return text

    for content in ("no JSON\n", line.strip(), "[]\n", '{"caption": "a", "edit": "b"}\n', '{"caption": 1}\n'):
        bad.write_text(content)
        assert f"{bad}, line 1: expected a triple, got " in message(new, good, bad)
    bad.write_text('{"settings": {}}\n')
    assert "got a file of rejected captions" in message(new, bad)
    assert "expected the new file and then the files" in message(new)
    assert "expected a new file first" in message(good, bad)
    assert "expected a new file first" in message(good, good)
    assert "cannot read " in message(new, tmp_path / "nowhere.jsonl")
    assert "cannot write " in message(Path("/dev/null/new.jsonl"), good)
    assert sorted(tmp_path.glob("*.jsonl*")) == [bad, good] and good.read_text() == line
