"""MagicBrush (Zhang et al. 2023): sessions of real edits, one after the other, of which the true results are
known.

Every turn is edited twice: "single turn" from the true picture before it, "multi turn" from our own result
of the turn before. Pictures are called as its evaluation script has it: ``{id}/{id}_1``, ``{id}/{id}_inde_N``
and ``{id}/{id}_iter_N``. Single turn is averaged over all turns, multi turn over the last of every session.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ldm.data.hub import Kind, open_table
from ldm.util import UserError
from metrics.editsets.benchmark import Benchmark, Edit, Unit, digest, read_cell

COLUMNS: tuple[tuple[str, Kind], ...] = (
    ("img_id", "text"),
    ("turn_index", "whole numbers"),
    ("source_img", "pictures"),
    ("instruction", "text"),
    ("target_img", "pictures"),
)
SCORES = {"L1": "l1", "L2": "l2", "CLIP-I": "clip_image", "DINO": "dino", "CLIP-T": "clip_text"}

ID = re.compile(r"\w[\w.-]*")

Captions = dict[str, dict[str, str]]


def read_magicbrush(
    path: str, captions: Path | None = None, split: str = "dev", limit: int | None = None
) -> Benchmark:
    """The benchmark on a dataset in parquet files.

    Args:
        path: of `ldm.data.hub.HubRows`.
        captions: its local_captions.json, of the true results.
        split: of the hub's dataset; for a name on the hub only.
        limit: the first so many sessions only.

    Raises:
        UserError: of `open_table`, turns that are no session, or captions that do not fit.
    """
    table = open_table(path, COLUMNS, split)
    ids, turns, instructions = (list(table[name]) for name in ("img_id", "turn_index", "instruction"))
    texts = _read_captions(captions) if captions else None
    sessions: dict[str, dict[int, int]] = defaultdict(dict)  # id → turn → row
    for row, (session, turn) in enumerate(zip(ids, turns, strict=True)):
        if not ID.fullmatch(session or "") or turn in sessions[session]:
            raise UserError(
                f"dataset {path}, row {row}: expected a new turn of an img_id that can name a folder, "
                f"got turn {turn} of {session!r}"
            )
        sessions[session][turn] = row
    units, every, last = [], [], []
    for session, rows in list(sessions.items())[:limit]:
        count = len(rows)
        if set(rows) != set(range(1, count + 1)):
            got = ", ".join(map(str, rows))
            raise UserError(f"dataset {path}, session {session}: expected turns 1 to {count}, got {got}")
        for turn in rows:
            if texts is not None and _caption_key(session, turn) not in texts.get(session, {}):
                raise UserError(f"{captions}: expected a text for {_caption_key(session, turn)}, got none")
        single, multi = _names(session, count)
        names = single + multi[1:]
        units.append(Unit(names, partial(_read_session, table, path, session, rows, texts)))
        every += single
        last.append(multi[-1])
    return Benchmark(
        name="magicbrush",
        columns=SCORES,
        units=units,
        sets={"single turn": every, "multi turn": last},
        identity={"dataset": digest([ids, turns, instructions]), "captions": texts and digest(texts)},
        dropped={},
    )


def _names(session: str, count: int) -> tuple[list[str], list[str]]:
    """Names of the edits of all turns, from true pictures and from our own; the first is the same."""
    stem = f"{session}/{session}"
    single, multi = (
        [f"{stem}_1"] + [f"{stem}_{kind}_{turn}" for turn in range(2, count + 1)] for kind in ("inde", "iter")
    )
    return single, multi


def _caption_key(session: str, turn: int) -> str:
    return f"{session}-output{turn}.png"


def _read_session(
    table: Any, path: str, session: str, rows: Mapping[int, int], captions: Captions | None
) -> list[Edit]:
    """All edits of a session.

    Raises:
        UserError: one of its pictures or instructions is missing or broken.
    """
    single, multi = _names(session, len(rows))
    edits = []
    for turn in sorted(rows):
        row, where = table[rows[turn]], f"{path}, row {rows[turn]} (session {session})"
        if row["instruction"] is None:
            raise UserError(f"dataset {where}, instruction: expected text, got null")
        caption = captions[session][_caption_key(session, turn)] if captions is not None else None
        source, target = (read_cell(row, name, where) for name in ("source_img", "target_img"))
        edits.append(Edit(single[turn - 1], row["instruction"], source, target, caption))
        if turn > 1:
            edits.append(Edit(multi[turn - 1], row["instruction"], multi[turn - 2], target, caption))
    return edits


def _read_captions(path: Path) -> Captions:
    """MagicBrush's own file of captions.

    Raises:
        UserError: it cannot be read, or is another kind of file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read captions in {path}: {error}") from error
    groups = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(g, dict) and all(isinstance(text, str) for text in g.values()) for g in groups):
        raise UserError(f'{path}: expected captions as {{"ID": {{"ID-output1.png": "text", …}}, …}}')
    return content
