"""Files of triples joined into one, without those whose caption or URL stood in one before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset_creation.text.captions import Caption, fingerprint
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
            for number, line in enumerate(_lines(part), 1):
                keys = _keys(line, f"{part}, line {number}")
                if seen.isdisjoint(keys):
                    merged.write(line)
                    kept += 1
                else:
                    repeated += 1
                seen |= keys
    return Merged(path, kept, repeated)


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _keys(line: bytes, name: str) -> set[int]:
    """Fingerprints of caption and URL."""
    try:
        data = json.loads(line)
        if "settings" in data:
            raise UserError(f"{name}: expected a triple, got a file of rejected captions")
        caption, url = data["caption"], data.get("url")
        if not line.endswith(b"\n") or not all(isinstance(data[key], str) for key in ("edit", "output")):
            raise ValueError("not whole")
        return {Caption(caption).key} | ({~fingerprint(url)} if url else set())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name}: expected a triple, got {line[:60]!r} ({error})") from None
