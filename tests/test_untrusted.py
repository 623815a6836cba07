"""Texts of strangers: JSON within bounds, files that are none, and what a terminal is shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.files import open_regular, read_json, require_file
from ldm.untrusted import DEEPEST, parse_json, printable
from ldm.util import UserError, one_line


def test_json_within_bounds_is_read_as_ever():
    assert parse_json('{"a": [1, -2.5, "x", null, true]}') == {"a": [1, -2.5, "x", None, True]}
    assert parse_json(b'\xef\xbb\xbf{"a": 18446744073709551615}') == {"a": 2**64 - 1}
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 50_000 + "]" * 50_000,
        '{"a":' * 50_000,
        "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1),
        "9" * 400,
        "9" * 1_000_000,
        "1." + "9" * 400,
        "1e999",
        "NaN",
        "[-Infinity]",
        "{",
        b"\xff\xfe",
        b"",
    ],
    ids=lambda text: f"{text[:12]!r} of {len(text)}",
)
def test_json_beyond_bounds_is_one_kind_of_error(text):
    with pytest.raises(ValueError, match="."):
        parse_json(text)


def test_a_file_of_json_that_cannot_be_read_is_one_line(tmp_path: Path):
    file = tmp_path / "a.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(file) == {"a": 1}
    with pytest.raises(UserError, match="at most 4.7.* MB, got more"):
        read_json(file, largest=5)
    file.write_text("[" * 5000)
    with pytest.raises(UserError, match=r"a\.json: it is no JSON"):
        read_json(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_only_files_are_opened(tmp_path: Path):
    """Opening a pipe that nobody writes to waits for ever: the test would not end."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link, Path("/dev/zero"), tmp_path):
        for use in (require_file, open_regular, read_json):
            with pytest.raises(UserError, match="expected a file, got (a folder|something that is no file)"):
                use(path)
    for path in (tmp_path / "none", Path("a\0b")):
        with pytest.raises(UserError, match="there is no file|null"):
            require_file(path)
    file = tmp_path / "file"
    file.write_bytes(b"x")
    with open_regular(file) as opened:
        assert opened.read() == b"x"


def test_a_terminal_gets_no_control_characters():
    assert printable("a\x1b[31mb\x07\x9b\u202e日é\ud83d") == "a\\x1b[31mb\\x07\\x9b\\u202e日é\\ud83d"
    assert printable("x" * 300, 200) == "x" * 200 + "…"
    assert len(one_line(ValueError("y\x1b" * 10_000))) < 500


def test_a_program_prints_what_its_terminal_cannot_encode():
    code = (
        "from ldm.util import UserError, run_main\n"
        "def main():\n"
        "    print('wrote 日é')\n"
        "    raise UserError('no file \\x1b[2J日')\n"
        "run_main(main)\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert run.stdout == "wrote \\u65e5\\xe9\n"
    assert run.stderr == "error: no file \\x1b[2J\\u65e5\n"
    assert run.returncode == 2
