"""`prepare_for_gpt.py`: both spellings of the command, both formats, bad lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dataset_creation import prepare_for_gpt
from dataset_creation.text.instructions import parse_answer
from training_runs import call

LINE = {"input": "a cat on a sofa", "edit": "make it a dog", "output": "a dog on a sofa"}


def write(folder: Path, *lines: str) -> Path:
    file = folder / "triples.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_published_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = write(tmp_path, json.dumps(LINE), json.dumps(LINE)), tmp_path / "new" / "tune.jsonl"
    assert call(prepare_for_gpt.main, "--input-path", source, "--output-path", target) == 0
    expected = {"prompt": "a cat on a sofa\n##\n", "completion": "make it a dog\n%%\na dog on a sofa\nEND"}
    assert read(target) == [expected, expected]
    assert "2 examples, about 36 tokens" in capsys.readouterr().out
    older = tmp_path / "older.jsonl"
    assert call(prepare_for_gpt.main, source, older) == 0
    assert older.read_bytes() == target.read_bytes()


def test_chat_format(tmp_path: Path) -> None:
    source, target = write(tmp_path, json.dumps(LINE)), tmp_path / "tune.jsonl"
    assert call(prepare_for_gpt.main, source, target, "--format", "chat") == 0
    ((system, question, answer),) = [line["messages"] for line in read(target)]
    assert [m["role"] for m in (system, question, answer)] == ["system", "user", "assistant"]
    assert question["content"] == LINE["input"]
    assert parse_answer(answer["content"]) == (LINE["edit"], LINE["output"])


def test_bad_lines_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = json.dumps(LINE | {"edit": ""})
    source, target = write(tmp_path, json.dumps(LINE), "{", "", bad), tmp_path / "tune.jsonl"
    target.write_text("before")
    assert call(prepare_for_gpt.main, source, target) == 2
    errors = capsys.readouterr().err
    assert "triples.jsonl, line 2: expected JSON" in errors
    assert "triples.jsonl, line 4: empty: the edit is empty" in errors
    assert "2 bad lines, nothing written" in errors
    assert target.read_text() == "before"
    assert call(prepare_for_gpt.main, source, target, "--skip-invalid") == 0
    assert len(read(target)) == 1
    assert "1 examples" in (out := capsys.readouterr().out) and "2 bad lines left out" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{source}"], "expected an input and an output path, got 1"),
        ([], "expected --input-path and --output-path"),
        (["{source}", "x", "--input-path", "{source}"], "got some of each"),
        (["{folder}/missing", "x"], "cannot read"),
        (["{empty}", "x"], "expected triples, got none"),
        (["{source}", "{source}/x"], "cannot write"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    source, empty = write(tmp_path, json.dumps(LINE)), tmp_path / "empty"
    empty.touch()
    words = [word.format(source=source, empty=empty, folder=tmp_path) for word in words]
    assert call(prepare_for_gpt.main, *words) == 2
    assert message in capsys.readouterr().err
