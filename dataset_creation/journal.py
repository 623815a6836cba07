"""What became of each caption: the file of accepted triples, and beside it that of all others.

A line is written whole, in one call, when its caption is done, so a run that is killed loses what it was
waiting for and nothing else. Accepted triples stand in FILE, which is the product: ``caption, edit, output,
url`` in JSON lines. Captions that gave none stand in ``FILE.rejected.jsonl`` with the reason; its first line
says how the run was set up, so that another set-up does not go on in the same file.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import IO, Any

from dataset_creation.captions import Caption
from dataset_creation.instructions import EditPrompt
from ldm.util import UserError, differences


class Journal:
    """Both files of a run, open for more. Use as a context manager.

    Args:
        path: of the accepted triples; its folder is made.
        settings: what the captions and answers depend on, in plain JSON types.

    Attributes:
        accepted: triples in the file.
        rejected: captions that gave none, by reason.

    Raises:
        UserError: another run is writing there, or one with other settings has been.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        if path.is_dir():
            raise UserError(f"cannot write {path}: expected a file, got a folder")
        self.path = path
        self.rejected_path = path.with_name(path.name + ".rejected.jsonl")
        self.rejected: Counter[str] = Counter()
        self._done: set[int] = set()  # captions that stood in either file at the start
        with ExitStack() as files:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._rejects = files.enter_context(open(self.rejected_path, "a+b", buffering=0))
                self._lock()
                self._triples = files.enter_context(open(path, "a+b", buffering=0))
                self._begin(settings)
            except OSError as error:
                raise UserError(f"cannot write {error.filename or path}: {error.strerror}") from error
            self._files = files.pop_all()  # kept open if nothing went wrong

    def _lock(self) -> None:
        try:
            fcntl.flock(self._rejects, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends, however
        except BlockingIOError:
            raise UserError(f"{self.path}: another process is writing this file") from None

    def _begin(self, settings: Mapping[str, Any]) -> None:
        """Read what is there, or begin with the settings where there is nothing."""
        rejects = _whole_lines(self._rejects)
        header = next(rejects, None)
        known = header is not None and isinstance(header.get("settings"), dict)
        if not known and (header is not None or self._triples.seek(0, os.SEEK_END)):
            raise UserError(f"{self.path}: expected a new file, or one with its {self.rejected_path.name}")
        rejected = [_text(line, "reason", "caption", file=self.rejected_path) for line in rejects]
        accepted = [_text(line, "caption", file=self.path) for line in _whole_lines(self._triples)]
        if header is None or header["settings"] != settings:
            if rejected or accepted:
                raise UserError(
                    f"{self.path}: was begun with {differences(header['settings'], settings)}; finish it "
                    "with the same settings or choose another --output"
                )
            self._rejects.truncate(0)  # nothing came of the run before, so it binds nobody
            _append(self._rejects, {"settings": settings}, self.rejected_path)
        self.accepted = len(accepted)
        self.rejected.update(reason for reason, _ in rejected)
        self._done.update(Caption(line[-1]).key for line in chain(rejected, accepted))

    def was_done(self, caption: Caption) -> bool:
        """Whether the caption stood in one of the files when they were opened."""
        return caption.key in self._done

    def accept(self, triple: EditPrompt, caption: Caption) -> None:
        """Keep a triple.

        Raises:
            UserError: it cannot be written; the files are as they were before.
        """
        _append(self._triples, {**asdict(triple), "url": caption.url}, self.path)
        self.accepted += 1

    def reject(self, caption: Caption, reason: str, detail: str = "") -> None:
        """Note a caption that gave no triple; errors as `accept`."""
        line = {"caption": caption.text, "reason": reason} | ({"detail": detail} if detail else {})
        _append(self._rejects, line, self.rejected_path)
        self.rejected[reason] += 1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()


def _whole_lines(file: IO[bytes]) -> Iterator[dict[str, Any]]:
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


def _text(line: Mapping[str, Any], *names: str, file: Path) -> list[str]:
    """Texts of a line."""
    values = [line.get(name) for name in names]
    if not all(isinstance(value, str) for value in values):
        raise UserError(f"{file}: expected lines with {' and '.join(names)}, got {line!r:.80}")
    return values


def _append(file: IO[bytes], value: Mapping[str, Any], path: Path) -> None:
    """Write a line whole or not at all."""
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
