"""Files of JSON lines that long work adds to: a line is there whole or not at all, and one process writes.

`kill -9` and a full disk lose the line that was being written and nothing else; the next run cuts off what is
left of it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ldm.util import UserError, differences

FAR = 2**31 - 1  # a byte that no file has: what is locked on Windows nobody else can read


class JsonLines:
    """A file whose first line, ``{"settings": …}``, says how its other lines came to be. A context manager.

    Args:
        path: of the file; its folder is made.
        settings: what the lines depend on, in plain JSON types.

    Attributes:
        rows: the lines that are there, without the first.

    Raises:
        UserError: another process is writing there, or one with other settings has been.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b", buffering=0)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        try:
            lock(self._file, path)
            self._begin(settings)
        except BaseException:
            self._file.close()
            raise

    def _begin(self, settings: Mapping[str, Any]) -> None:
        header, *self.rows = [*whole_lines(self._file)] or [None]
        if header and not isinstance(header.get("settings"), dict):
            raise UserError(f"{self.path}: expected a new file, or one that begins with its settings")
        if header is None or header["settings"] != settings:
            if self.rows:
                raise UserError(
                    f"{self.path}: was begun with {differences(header['settings'], settings)}; expected the "
                    "same settings, or another file"
                )
            self._file.truncate(0)  # nothing came of the run before, so it binds nobody
            append_line(self._file, {"settings": settings}, self.path)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line to the file and to `rows`; errors as of `append_line`."""
        append_line(self._file, row, self.path)
        self.rows.append(dict(row))

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_json_lines(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settings and lines of a file of `JsonLines`, which is not changed; a line that is cut off is left out.

    Raises:
        UserError: no such file, or another kind of file.
    """
    try:
        *texts, _ = path.read_text(encoding="utf-8").split("\n")
        header, *rows = map(json.loads, texts)
        return header["settings"], rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read results in {path}: {error}") from error


def lock(file: IO[bytes], path: Path) -> None:
    """Keep other processes from writing, until the file is closed or this process ends, however.

    Raises:
        UserError: another one does.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(FAR)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # Windows says the latter
        raise UserError(f"{path}: another process is writing this file") from None


def whole_lines(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    """Objects of the lines of a file; one at the end that was not written whole is cut off."""
    file.seek(0)
    end = 0
    reader = open(file.fileno(), "rb", closefd=False)
    for line in reader:
        try:
            if not line.endswith(b"\n"):
                break
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError("no object")
        except ValueError as error:
            raise UserError(f"{file.name}: expected JSON lines, got {line[:60]!r}") from error
        end += len(line)
        yield value
    file.truncate(end)
    file.seek(end)


def append_line(file: IO[bytes], value: Mapping[str, Any], path: Path) -> None:
    """Write a line whole or not at all.

    Raises:
        UserError: it cannot be written; the file is as it was before.
    """
    # Lone surrogates have no UTF-8: such a line alone is written in ASCII.
    text = json.dumps(value, ensure_ascii=False) + "\n"
    try:
        line = text.encode()
    except UnicodeEncodeError:
        line = (json.dumps(value) + "\n").encode()
    before = file.seek(0, os.SEEK_END)
    try:
        while line:  # a disk that is nearly full takes a part, and then says so
            line = line[file.write(line) :]
    except OSError as error:
        file.truncate(before)
        raise UserError(
            f"cannot write {path}: {error.strerror}; nothing is lost, the same command goes on"
        ) from error
