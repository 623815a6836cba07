"""What became of each caption: the file of accepted triples, and beside it that of all others.

A line is written whole, in one call, when its caption is done, so a run that is killed loses what it was
waiting for and nothing else. Accepted triples stand in FILE, which is the product: ``caption, edit, output,
url`` in JSON lines. Captions that gave none stand in ``FILE.rejected.jsonl`` with the reason; its first line
says how the run was set up, so that another set-up does not go on in the same file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from dataset_creation.text.captions import Caption
from dataset_creation.text.instructions import EditPrompt
from ldm.data.json_lines import append_line, lock, whole_lines
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
                lock(self._rejects, path)
                self._triples = files.enter_context(open(path, "a+b", buffering=0))
                self._begin(settings)
            except OSError as error:
                raise UserError(f"cannot write {error.filename or path}: {error.strerror}") from error
            self._files = files.pop_all()  # kept open if nothing went wrong

    def _begin(self, settings: Mapping[str, Any]) -> None:
        """Read what is there, or begin with the settings where there is nothing."""
        rejects = whole_lines(self._rejects)
        header = next(rejects, None)
        known = header is not None and isinstance(header.get("settings"), dict)
        if not known and (header is not None or self._triples.seek(0, os.SEEK_END)):
            raise UserError(f"{self.path}: expected a new file, or one with its {self.rejected_path.name}")
        rejected = [_text(line, "reason", "caption", file=self.rejected_path) for line in rejects]
        accepted = [_text(line, "caption", file=self.path) for line in whole_lines(self._triples)]
        if header is None or header["settings"] != settings:
            if rejected or accepted:
                raise UserError(
                    f"{self.path}: was begun with {differences(header['settings'], settings)}; finish it "
                    "with the same settings or choose another --output"
                )
            self._rejects.truncate(0)  # nothing came of the run before, so it binds nobody
            append_line(self._rejects, {"settings": settings}, self.rejected_path)
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
        append_line(self._triples, {**asdict(triple), "url": caption.url}, self.path)
        self.accepted += 1

    def reject(self, caption: Caption, reason: str, detail: str = "") -> None:
        """Note a caption that gave no triple; errors as `accept`."""
        line = {"caption": caption.text, "reason": reason} | ({"detail": detail} if detail else {})
        append_line(self._rejects, line, self.rejected_path)
        self.rejected[reason] += 1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()


def _text(line: Mapping[str, Any], *names: str, file: Path) -> list[str]:
    """Texts of a line."""
    values = [line.get(name) for name in names]
    if not all(isinstance(value, str) for value in values):
        raise UserError(f"{file}: expected lines with {' and '.join(names)}, got {line!r:.80}")
    return values
