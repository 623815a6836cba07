"""Training pairs from parquet files in the layout of the hub, read through the library `datasets`.

`datasets` copies the rows once into its cache, as one Arrow file that is mapped into memory: pictures stay
encoded there, and a row is read without reading those before it. It is imported when a dataset is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ldm.data.formats import read_picture
from ldm.data.pairs import PairDataset
from ldm.files import HUB_NAME
from ldm.util import UserError, one_line

ROWS_AT_ONCE = 100  # copied into the Arrow file

Kind = Literal["pictures", "text", "whole numbers"]  # what a column holds


@dataclass(frozen=True)
class Columns:
    """What the columns are called: picture before, instruction, picture after."""

    before: str = "original_image"
    edit: str = "edit_prompt"
    after: str = "edited_image"


class HubRows:
    """The rows of a dataset in parquet: picture files as bytes, and instructions.

    Args:
        path: a parquet file, a folder of them, a pattern such as ``data/train-*.parquet``, or a name on the
            hub, ``owner/name``, where there is no such folder.
        columns: names of the three columns that are read.
        hub_split: which of the splits that the hub's dataset itself has; for a name on the hub only.
        revision: commit, branch or tag of the hub's dataset; for a name on the hub only.
        cache_dir: where `datasets` keeps its Arrow files and downloads.

    Raises:
        UserError: nothing there, not readable, or a column that is missing or of another type.
    """

    def __init__(
        self,
        path: str,
        columns: Columns,
        hub_split: str = "train",
        revision: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        self.path = path
        self.columns = columns
        wanted: list[tuple[str, Kind]] = [
            (columns.before, "pictures"),
            (columns.edit, "text"),
            (columns.after, "pictures"),
        ]
        self.table = open_table(path, wanted, hub_split, revision, cache_dir)

    def __len__(self) -> int:
        return len(self.table)

    def name(self, i: int, column: str | None = None) -> str:
        """What messages call row `i`, or its value in a column."""
        return f"{self.path}, row {i}" + (f", {column}" if column else "")

    def read(self, i: int) -> tuple[bytes, str | None, bytes]:
        """Row `i`: the file of the picture before, the instruction, the file of the picture after.

        Where the table has a null, a picture comes as an empty file and the instruction as None.
        """
        row, columns = self.table[i], self.columns
        return picture_bytes(row[columns.before]), row[columns.edit], picture_bytes(row[columns.after])

    def pictures(self, i: int, before: bytes, after: bytes) -> tuple[Image.Image, Image.Image]:
        """Decode the two pictures of row `i`, as RGB.

        Raises:
            UserError: one of them is missing or broken.
        """
        columns = self.columns
        return (
            read_picture(BytesIO(before), self.name(i, columns.before)),
            read_picture(BytesIO(after), self.name(i, columns.after)),
        )


@dataclass(eq=False, repr=False)
class HubEditDataset(PairDataset):
    """`EditDataset` on parquet files: the same splits, sizes, crop, flip and items, from rows of a table.

    Args:
        path, hub_split, revision, cache_dir: see `HubRows`.
        split, splits: train, val or test, and the shares of the three by index over the rows.
        min_resize_res, max_resize_res, crop_res, flip_prob: see `PairDataset`.
        before_column, edit_column, after_column: columns of the two pictures and of the instruction.
    """

    before_column: str = Columns.before
    edit_column: str = Columns.edit
    after_column: str = Columns.after
    hub_split: str = "train"
    revision: str | None = None
    cache_dir: str | None = None

    def read_all(self) -> range:
        columns = Columns(self.before_column, self.edit_column, self.after_column)
        self.rows = HubRows(self.path, columns, self.hub_split, self.revision, self.cache_dir)
        return range(len(self.rows))

    def read(self, row: int) -> tuple[Image.Image, Image.Image, str]:
        before, instruction, after = self.rows.read(row)
        if instruction is None:
            raise UserError(f"dataset {self.rows.name(row, self.rows.columns.edit)}: expected text, got null")
        return *self.rows.pictures(row, before, after), instruction


def open_table(
    path: str,
    columns: Sequence[tuple[str, Kind]],
    hub_split: str = "train",
    revision: str | None = None,
    cache_dir: str | None = None,
) -> Any:
    """These columns of parquet files, as a `datasets.Dataset`; pictures stay encoded, see `picture_bytes`.

    Args:
        path, hub_split, revision, cache_dir: see `HubRows`.
        columns: names, in the order they are to have, and what is in them.

    Raises:
        UserError: as `HubRows`.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"dataset {path}: reading parquet needs `pip install datasets`: {error}") from error
    files = local_files(path)
    try:
        if files is None:
            table = datasets.load_dataset(path, split=hub_split, revision=revision, cache_dir=cache_dir)
        else:
            # All that `datasets` finds in files of no split of their own it calls train. By itself it would
            # take as many rows at once as the first of a file's groups has: all of them, or none.
            table = datasets.load_dataset(
                "parquet", data_files=files, split="train", cache_dir=cache_dir, batch_size=ROWS_AT_ONCE
            )
    except Exception as error:  # from the network, the disk, pyarrow or `datasets` itself: almost any type
        where = "as a file, a folder or a dataset on the hub" if files is None else "as parquet"
        if isinstance(error, datasets.exceptions.DatasetGenerationError):
            error = error.__cause__ or error  # itself it says no more than that something failed
        raise UserError(f"dataset {path}: cannot be read {where}: {one_line(error)}") from error
    for name, _ in columns:
        if name not in table.features:
            raise UserError(f"dataset {path}: expected a column {name!r}, got {', '.join(table.features)}")
    for name, kind in columns:
        if not _holds(table.features[name], kind):
            raise UserError(f"dataset {path}: expected {kind} in column {name!r}, got {table.features[name]}")
    table = table.select_columns(list(dict.fromkeys(name for name, _ in columns)))
    for name, kind in columns:
        if kind == "pictures":
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


def _holds(feature: Any, kind: Kind) -> bool:
    """Whether a column can be what it is named for."""
    dtype = getattr(feature, "dtype", None)
    if kind == "pictures":
        return (
            type(feature).__name__ == "Image"
            or dtype in ("binary", "large_binary")
            or (isinstance(feature, dict) and "bytes" in feature)
        )
    return dtype in ("string", "large_string") if kind == "text" else str(dtype).lstrip("u").startswith("int")


def picture_bytes(value: dict[str, Any] | None) -> bytes:
    """The file of a picture in a table of `open_table`; an empty one for a null."""
    return (value or {}).get("bytes") or b""


def local_files(path: str) -> list[str] | None:
    """The parquet files that `path` stands for, sorted; None for a name on the hub.

    Raises:
        UserError: a pattern or folder without parquet files, or a path that is not there.
    """
    if Path(path).is_file():
        return [path]
    if Path(path).is_dir():
        files = sorted(str(file) for file in Path(path).rglob("*.parquet"))
    elif any(character in path for character in "*?["):
        files = sorted(glob(path, recursive=True))
    elif HUB_NAME.fullmatch(path) and not path.endswith(".parquet"):
        return None
    else:
        raise UserError(
            f"dataset {path}: expected a parquet file, a folder, a pattern or owner/name, got no such"
        )
    if not files:
        raise UserError(f"dataset {path}: expected parquet files, got none")
    return files
