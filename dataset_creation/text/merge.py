"""Files of triples joined into one, without those whose caption or URL stood in one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset_creation.text.captions import Caption, fingerprint
from ldm.data.triples import Entry, read_triples
from ldm.files import replacing
from ldm.util import UserError


@dataclass(frozen=True)
class Merged:
    """What a merge came to."""

    path: Path
    kept: int
    repeated: int

    def __str__(self) -> str:
        return f"{self.kept} triples in {self.path}; {self.repeated} duplicates left out"


def merge(path: Path, parts: Sequence[Path]) -> Merged:
    """Write the lines of all files to one, which takes its place when it is complete.

    Raises:
        UserError: no files, one that cannot be read, or a line that is no triple.
    """
    if not parts:
        raise UserError("--merge: expected the new file and then the files to join")
    if path in parts:
        raise UserError(f"--merge: expected a new file first, got {path}, which is to be joined too")
    if path.exists():
        raise UserError(f"--merge: expected a new file first, got {path}, which is there already")
    seen: set[int] = set()
    kept = repeated = 0
    with replacing(path) as unfinished, open(unfinished, "wb") as merged:
        for part in parts:
            for entry in read_triples(part):
                keys = _keys(entry)
                if seen.isdisjoint(keys):
                    merged.write(entry.line)
                    kept += 1
                else:
                    repeated += 1
                seen |= keys
    return Merged(path, kept, repeated)


def _keys(entry: Entry) -> set[int]:
    """Fingerprints of caption and URL."""
    try:
        if "settings" in entry.fields:
            raise UserError(f"{entry.name}: expected a triple, got a file of rejected captions")
        triple = entry.triple
        if not entry.line.endswith(b"\n"):
            raise ValueError("not whole")
        return {Caption(triple.caption).key} | ({~fingerprint(triple.url)} if triple.url else set())
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{entry.name}: expected a triple, got {entry.line[:60]!r} ({error})") from None
