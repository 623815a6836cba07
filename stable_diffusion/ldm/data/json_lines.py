"""Files of JSON lines that long work adds to: a line is there whole or not at all, and one process writes.

`kill -9` and a full disk lose the line that was being written and nothing else; the next run cuts off what is
left of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ldm.files import lock
from ldm.util import UserError, differences, one_line


class JsonLines:
    """A file of lines that is open for more. A context manager.

    Args:
        path: of the file; its folder is made.
        settings: what the lines depend on, in plain JSON types; they stand in the first line,
            ``{"settings": …}``. None: the file has no such line.
        product: a file without that line that came to be by the same settings.
        keep: makes of a line what stands in `rows`; may raise a `UserError`.

    Attributes:
        rows: the lines that were there at the start, without the first.

    Raises:
        UserError: another process is writing there, or one with other settings has been.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any] | None = None,
        *,
        product: JsonLines | None = None,
        keep: Callable[[Mapping[str, Any]], Any] = dict,
    ) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b", buffering=0)
        except OSError as error:
            raise UserError(f"cannot write {path}: {one_line(error)}") from error
        try:
            try:
                lock(self._file)
            except BlockingIOError:
                raise UserError(f"{path}: another process is writing this file") from None
            lines = self._whole_lines()
            header = None if settings is None else next(lines, None)
            made: list[Any] = product.rows if product else []
            name = product.path if product else path
            known = header is None or isinstance(header.get("settings"), dict)
            if settings is not None and (not known or (header is None and made)):
                where = f"with its {path.name}" if product else "that begins with its settings"
                raise UserError(f"{name}: expected a new file, or one {where}")
            self.rows: list[Any] = [keep(line) for line in lines]
            if settings is not None and header != {"settings": settings}:
                if header and (self.rows or made):
                    raise UserError(
                        f"{name}: was begun with {differences(header['settings'], settings)}; expected the "
                        "same settings, or another file"
                    )
                self._file.truncate(0)  # nothing came of the run before, so it binds nobody
                self.append({"settings": settings})
        except BaseException:
            self._file.close()
            raise

    def _whole_lines(self) -> Iterator[dict[str, Any]]:
        """Objects of the lines that are there; one at the end that was not written whole is cut off."""
        end = self._file.seek(0)
        for line in open(self._file.fileno(), "rb", closefd=False):
            try:
                if not line.endswith(b"\n"):
                    break
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError("no object")
            except ValueError as error:
                raise UserError(f"{self.path}: expected JSON lines, got {line[:60]!r}") from error
            end += len(line)
            yield value
        self._file.truncate(end)
        self._file.seek(end)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a line whole or not at all.

        Raises:
            UserError: it cannot be written; the file is as it was before.
        """
        # Lone surrogates have no UTF-8: such a line alone is written in ASCII.
        text = json.dumps(row, ensure_ascii=False) + "\n"
        try:
            line = text.encode()
        except UnicodeEncodeError:
            line = (json.dumps(row) + "\n").encode()
        before = self._file.seek(0, os.SEEK_END)
        try:
            while line:  # a disk that is nearly full takes a part, and then says so
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.truncate(before)
            raise UserError(
                f"cannot write {self.path}: {one_line(error)}; nothing is lost, the same command goes on"
            ) from error

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
