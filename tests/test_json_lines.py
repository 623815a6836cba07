"""ldm.data.json_lines: what is left of a file after anything that can happen to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.data.json_lines import JsonLines, read_json_lines
from ldm.util import UserError


def test_rows_are_there_again(tmp_path: Path):
    file = tmp_path / "new" / "a.jsonl"
    with JsonLines(file, {"seed": 1}) as lines:
        assert lines.rows == []
        lines.append({"x": 1})
        lines.append({"text": "é\ud800"})  # the second has no UTF-8
    assert read_json_lines(file) == ({"seed": 1}, [{"x": 1}, {"text": "é\ud800"}])
    with JsonLines(file, {"seed": 1}) as lines:
        assert lines.rows == [{"x": 1}, {"text": "é\ud800"}]


@pytest.mark.parametrize("left", [b'{"x": 2', b'{"x": 2}', b"{"])
def test_a_line_that_was_cut_off_is_as_if_never_written(left: bytes, tmp_path: Path):
    file = tmp_path / "a.jsonl"
    with JsonLines(file, {}) as lines:
        lines.append({"x": 1})
    whole = file.read_bytes()
    file.write_bytes(whole + left)
    assert read_json_lines(file) == ({}, [{"x": 1}])
    with JsonLines(file, {}) as lines:
        assert lines.rows == [{"x": 1}] and file.read_bytes() == whole
        lines.append({"x": 3})
    assert read_json_lines(file)[1] == [{"x": 1}, {"x": 3}]


def test_other_settings(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    with JsonLines(file, {"seed": 1}):
        pass
    with JsonLines(file, {"seed": 2}) as lines:  # of the first run nothing came
        lines.append({})
    with pytest.raises(UserError, match="was begun with seed 2, now 3"):
        JsonLines(file, {"seed": 3})
    assert read_json_lines(file) == ({"seed": 2}, [{}])


@pytest.mark.smoke
def test_one_process_writes(tmp_path: Path):
    with JsonLines(tmp_path / "a.jsonl", {}), pytest.raises(UserError, match="another process is writing"):
        JsonLines(tmp_path / "a.jsonl", {})
    JsonLines(tmp_path / "a.jsonl", {}).__exit__()


@pytest.mark.parametrize("content", ["[1]\n", "no JSON\n", '{"x": 1}\n', '{"settings": 1}\n'])
def test_other_files_stay_as_they_are(content: str, tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match="expected"):
        JsonLines(file, {})
    assert file.read_text() == content


@pytest.mark.parametrize("content", [None, "", "[1]\n", '{"x": 1}\n'])
def test_no_results(content: str | None, tmp_path: Path):
    file = tmp_path / "a.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match="cannot read results"):
        read_json_lines(file)


def test_a_folder_in_the_way(tmp_path: Path):
    with pytest.raises(UserError, match="cannot write"):
        JsonLines(tmp_path, {})
