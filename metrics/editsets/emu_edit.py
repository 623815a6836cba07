"""The test set of Emu Edit (Sheynin et al. 2023): pictures, instructions, and captions before and after; true
results are not known, so edits are compared with their input and with the captions.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from ldm.data.hub import Kind, open_table
from ldm.util import UserError
from metrics.editsets.benchmark import Benchmark, Edit, Unit, digest, read_cell

TEXTS = ("instruction", "task", "split", "hash", "input_caption", "output_caption")
COLUMNS: tuple[tuple[str, Kind], ...] = (
    ("idx", "whole numbers"),
    ("image", "pictures"),
    *((name, "text") for name in TEXTS),
)
SCORES = {
    "CLIP dir": "clip_direction",
    "CLIP img": "clip_image",
    "CLIP out": "clip_text",
    "L1": "l1",
    "DINO": "dino",
}
SPLIT = "test"
EQUAL_CAPTIONS = "equal captions"


def read_emu_edit(path: str, split: str | None = None, limit: int | None = None) -> Benchmark:
    """The benchmark on a dataset in parquet files.

    Rows with equal captions are dropped: no direction leads from one to the other.

    Args:
        path: of `ldm.data.hub.HubRows`.
        split: "validation" or "test"; None takes all rows where the column `split` has one value, else test.
        limit: the first so many rows only, of those that are used.

    Raises:
        UserError: of `open_table`, no rows, or rows that cannot be told apart.
    """
    table = open_table(path, COLUMNS, split or SPLIT)
    columns = {name: list(table[name]) for name in ("idx", *TEXTS)}
    there = set(columns["split"])
    chosen = split or (SPLIT if len(there) > 1 else None)
    rows = [i for i, name in enumerate(columns["split"]) if chosen in (None, name)]
    if not rows:
        got = ", ".join(sorted(map(str, there))) or "none"
        raise UserError(f"dataset {path}: expected rows{f' of split {chosen}' if chosen else ''}, got {got}")
    before, after = columns["input_caption"], columns["output_caption"]
    used = [i for i in rows if before[i] != after[i]]
    if not used:
        raise UserError(f"dataset {path}: expected captions that differ, got {len(rows)} rows of equal ones")
    names: dict[str, int] = {}  # of an edit → row
    for i in used:
        name = f"{columns['idx'][i]}_{columns['hash'][i]}"
        if name in names or Path(name).name != name:
            raise UserError(
                f"dataset {path}, row {i}: expected an idx and a hash that name a file and no other row, "
                f"got {columns['idx'][i]} and {columns['hash'][i]!r}"
            )
        names[name] = i
    units, sets = [], defaultdict(list)
    for name, i in list(names.items())[:limit]:
        picture = f"pictures/{name}"
        units.append(Unit([picture], partial(_read_row, table, path, i, picture)))
        for group in ("all", f"task {columns['task'][i]}"):
            sets[group].append(picture)
    return Benchmark(
        name="emu-edit",
        columns=SCORES,
        units=units,
        sets=dict(sorted(sets.items())),
        identity={
            "split": columns["split"][rows[0]],
            "dataset": digest({name: [column[i] for i in rows] for name, column in columns.items()}),
        },
        dropped={EQUAL_CAPTIONS: len(rows) - len(used)},
    )


def _read_row(table: Any, path: str, i: int, name: str) -> list[Edit]:
    """The edit of a row.

    Raises:
        UserError: its picture or one of its texts is missing or broken.
    """
    row, where = table[i], f"{path}, row {i}"
    instruction, before, after = (row[key] for key in ("instruction", "input_caption", "output_caption"))
    if None in (instruction, before, after):
        raise UserError(f"dataset {where}: expected an instruction and two captions, got null")
    picture = read_cell(row, "image", where)
    return [Edit(name, instruction, picture, picture, after, before)]
