"""What became of each caption: the file of accepted triples, and beside it that of all others.

A line is written whole, in one call, when its caption is done, so a run that is killed loses what it was
waiting for and nothing else. Accepted triples stand in FILE, which is the product: ``caption, edit, output,
url`` in JSON lines. Captions that gave none stand in ``FILE.rejected.jsonl`` with the reason; its first line
says how the run was set up, so that another set-up does not go on in the same file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dataset_creation.text.captions import Caption
from ldm.data.json_lines import JsonLines
from ldm.data.triples import Triple
from ldm.util import UserError


class Journal:
    """Both files of a run, open for more. Use as a context manager.

    Args:
        path: of the accepted triples; its folder is made.
        settings: what the captions and answers depend on, in plain JSON types.

    Attributes:
        accepted: triples in the file.
        rejected: captions that gave no triple, by reason.

    Raises:
        UserError: another run is writing there, or one with other settings has been.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        rejects = path.parent / f"{path.name}.rejected.jsonl"
        if path.is_file() and path.stat().st_size and not rejects.exists():
            raise UserError(f"{path}: expected a new file, or one with its {rejects.name}")
        self.rejected: Counter[str] = Counter()

        def keep(line: Mapping[str, Any]) -> int:
            self.rejected[str(line.get("reason"))] += 1
            return _key(line, rejects, "reason")

        with ExitStack() as files:
            self._triples = files.enter_context(JsonLines(path, keep=lambda line: _key(line, path)))
            self._rejects = files.enter_context(
                JsonLines(rejects, settings, product=self._triples, keep=keep)
            )
            self._files = files.pop_all()  # kept open if nothing went wrong
        self.accepted = len(self._triples.rows)
        self._done = {*self._triples.rows, *self._rejects.rows}  # captions that stood there at the start

    def was_done(self, caption: Caption) -> bool:
        """Whether the caption stood in one of the files when they were opened."""
        return caption.key in self._done

    def accept(self, triple: Triple, caption: Caption) -> None:
        """Keep a triple.

        Raises:
            UserError: it cannot be written; the files are as they were before.
        """
        self._triples.append(asdict(replace(triple, url=caption.url)))
        self.accepted += 1

    def reject(self, caption: Caption, reason: str, detail: str = "") -> None:
        """Note a caption that gave no triple; errors as `accept`."""
        line = {"caption": caption.text, "reason": reason} | ({"detail": detail} if detail else {})
        self._rejects.append(line)
        self.rejected[reason] += 1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()


def _key(line: Mapping[str, Any], file: Path, *more: str) -> int:
    """Fingerprint of the caption of a line, which has texts of the other names too."""
    names = ("caption", *more)
    if not all(isinstance(line.get(name), str) for name in names):
        raise UserError(f"{file}: expected lines with {' and '.join(names)}, got {line!r:.80}")
    return Caption(line["caption"]).key
