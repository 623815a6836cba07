"""Captions to make edits of: from files or the hub, drawn at random and split among machines.

All formats are read through the library `datasets`, which keeps rows in one file mapped into memory, so
that millions of captions take none.
"""

from __future__ import annotations

from dataclasses import dataclass
from glob import escape
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from ldm.util import UserError, one_line

READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
CAPTION_COLUMNS = ("caption", "TEXT", "text", "input", "prompt")  # looked for in this order
URL_COLUMNS = ("url", "URL")
LOST = "ChristophSchuhmann/improved_aesthetics_6.5plus"
SUBSTITUTES = "dclure/laion-aesthetics-12m-umap or guangyil/laion-coco-aesthetic"
CHUNK = 1_000  # rows read at once


@dataclass(frozen=True)
class Caption:
    """A caption, and where its picture is, if that is known."""

    text: str
    url: str | None = None

    @property
    def key(self) -> int:
        """64 bits of the text, the same for all spacings of it."""
        return fingerprint(" ".join(self.text.split()))


class Captions:
    """The captions of a source, by their row.

    Args:
        source: a file (.txt with one caption a line, .jsonl, .csv, .parquet) or a dataset on the hub.
        caption_column: its name; the first of `CAPTION_COLUMNS` there is when None.
        url_column: its name; the first of `URL_COLUMNS`, or none, when None.

    Raises:
        UserError: nothing there, of another format, or without that column.
    """

    def __init__(self, source: str, caption_column: str | None = None, url_column: str | None = None) -> None:
        self.source = source
        table = _open(source)
        self.caption_column = self._column(table, caption_column, CAPTION_COLUMNS)
        if self.caption_column is None:
            raise UserError(
                f"captions {source}: expected a column of captions, got {', '.join(table.column_names)}: "
                "name it by --caption-column"
            )
        self.url_column = self._column(table, url_column, URL_COLUMNS)
        kind = getattr(table.features[self.caption_column], "dtype", "a list")
        if kind not in ("string", "large_string"):
            raise UserError(f"captions {source}: expected text in column {self.caption_column!r}, got {kind}")
        if not len(table):
            raise UserError(f"captions {source}: expected some, got none")
        columns = [name for name in (self.caption_column, self.url_column) if name is not None]
        self.table = table.select_columns(columns).with_format("arrow")

    def _column(self, table: Any, name: str | None, usual: tuple[str, ...]) -> str | None:
        if name is not None and name not in table.column_names:
            found = ", ".join(table.column_names)
            raise UserError(f"captions {self.source}: expected a column {name!r}, got {found}")
        return name or next((known for known in usual if known in table.column_names), None)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> Caption:
        return self.rows([row])[0]

    def rows(self, rows: list[int] | np.ndarray) -> list[Caption]:
        """Captions of several rows; what is no text is empty."""
        part = self.table[[int(row) for row in rows]]
        texts = part.column(self.caption_column).to_pylist()
        urls = part.column(self.url_column).to_pylist() if self.url_column else [None] * len(texts)
        return [
            Caption(text if isinstance(text, str) else "", str(url) if url else None)
            for text, url in zip(texts, urls, strict=True)
        ]


def _open(source: str) -> Any:
    """The table of a file or a hub dataset."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"captions {source}: reading them needs `pip install datasets`: {error}") from error
    if source == LOST:
        raise UserError(f"captions: {LOST}, which the paper used, is gone from the hub; try {SUBSTITUTES}")
    path = Path(source)
    reader = READERS.get(path.suffix.lower())
    if path.exists() and (reader is None or not path.is_file()):
        raise UserError(f"captions: expected a file that ends in {', '.join(READERS)}, got {source}")
    if not path.exists() and (reader is not None or source.count("/") != 1):
        raise UserError(f"captions: expected a file, or a dataset on the hub as owner/name, got {source}")
    datasets.disable_progress_bars()
    try:
        if path.exists():
            # A name is taken for a pattern, and the mark at the start of a file for a letter.
            options = {"encoding": "utf-8-sig"} if reader in ("text", "csv") else {}
            return datasets.load_dataset(reader, data_files=escape(str(path)), split="train", **options)
        return datasets.load_dataset(source, split="train")
    except Exception as error:  # from the network, the disk, pyarrow or `datasets` itself: almost any type
        reason = one_line(error.__cause__ or error)
        raise UserError(f"captions {source}: cannot be read: {reason}") from error


def draw(captions: Captions, count: int, seed: int) -> np.ndarray:
    """Rows of `count` captions drawn at random, int64 [count or all there are], by the seed alone."""
    order = np.random.default_rng(seed).permutation(len(captions))
    return order[:count]


def repeated(captions: Captions, rows: np.ndarray) -> np.ndarray:
    """Which of the rows have the caption or the URL of a row before them in that order, bool [rows].

    Two different texts count as one with a chance of 2^-64 for each pair.
    """
    texts = np.empty(len(rows), np.uint64)
    urls = np.zeros(len(rows), np.uint64)
    for start in range(0, len(rows), CHUNK):
        part = captions.rows(rows[start : start + CHUNK])
        texts[start : start + len(part)] = [caption.key for caption in part]
        urls[start : start + len(part)] = [fingerprint(c.url) if c.url else 0 for c in part]
    return _again(texts) | (_again(urls) & (urls != 0))


def fingerprint(text: str) -> int:
    """64 bits of a text, the same on every machine; never 0."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def _again(values: np.ndarray) -> np.ndarray:
    """Which of the values stood there before, bool."""
    again = np.ones(len(values), bool)
    again[np.unique(values, return_index=True)[1]] = False
    return again


def partition(count: int, parts: int, part: int) -> range:
    """Positions of a part among `count`: disjoint, covering all, sizes at most one apart."""
    return range(part, count, parts)
