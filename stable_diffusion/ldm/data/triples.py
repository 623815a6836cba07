"""Triples wherever they are kept: in JSON lines, in parquet, in the folders of a dataset."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.data.formats import PROMPT, Triple, fields_in, prompt_folders, triple_in
from ldm.util import UserError, one_line

# Columns that are read from parquet, and what they are called here; first those of the hub's copy.
COLUMNS = {"original_prompt": "input", "edit_prompt": "edit", "edited_prompt": "output"}
COLUMNS |= {name: name for name in ("input", "caption", "edit", "output", "url")}


@dataclass(frozen=True)
class Entry:
    """A place where a triple stands.

    Attributes:
        number: of the line or the row, counted from 0, or of the folder.
        name: what messages call it.
        line: its JSON object, as a line.
    """

    number: int
    name: str
    line: bytes

    @property
    def fields(self) -> dict[str, Any]:
        """All that is said there; raises `ValueError` where it is no JSON object."""
        return fields_in(self.line)

    @property
    def triple(self) -> Triple:
        """The triple; raises `ValueError` where there is none."""
        return triple_in(self.fields)


def read_triples(path: str | Path) -> Iterator[Entry]:
    """The entries of a file or a dataset, without lines that are blank.

    Raises:
        UserError: it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        for folder in prompt_folders(path):
            file = folder / PROMPT
            yield Entry(int(folder.name), str(file), file.read_bytes() if file.is_file() else b"")
        return
    try:
        if path.suffix == ".parquet":
            for number, row in enumerate(_rows(path)):
                yield Entry(number, f"{path}, row {number}", json.dumps(row).encode() + b"\n")
            return
        with open(path, "rb") as lines:
            for number, line in enumerate(lines):
                if line.strip():
                    yield Entry(number, f"{path}, line {number + 1}", line)
    except OSError as error:
        raise UserError(f"prompts: cannot read {path}: {one_line(error)}") from error


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet  # late: not every installation has it

    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = [name for name in file.schema_arrow.names if name in COLUMNS]
        for batch in file.iter_batches(columns=names):
            for row in batch.to_pylist():
                yield {COLUMNS[name]: value for name, value in row.items()}
    except pyarrow.ArrowException as error:
        raise UserError(f"prompts: cannot read {path}: {one_line(error)}") from error
