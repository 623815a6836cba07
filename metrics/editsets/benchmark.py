"""A benchmark of editing as a resumable run: edits that are made, kept as pictures, scored, and averaged.

In the folder of a run stand the pictures, ``scores.jsonl`` with a line for every edit, from which all
averages follow, and ``results.json`` with these. A picture tells in its metadata how it was made, and is made
again only when that was otherwise: without ``scores.jsonl`` the same pictures are scored anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image
from tqdm import tqdm

from ldm.data.formats import read_picture
from ldm.data.hub import picture_bytes
from ldm.data.json_lines import JsonLines
from ldm.editor import ImageEditor, Sampling
from ldm.pictures.reading import check_size, open_image
from ldm.pictures.writing import read_settings, save_image
from ldm.sampling.noise import derived_seed
from ldm.util import UserError
from metrics.editsets.image_scores import ImageScores

SCORES, RESULTS = "scores.jsonl", "results.json"


@dataclass(frozen=True)
class Edit:
    """An edit to make and what to compare it with.

    Attributes:
        name: path of its picture in the folder of the run, without the suffix.
        instruction: what to change.
        source: the picture to edit; or the name of an edit before this one, whose result is edited on.
        reference, caption, reference_caption: of `ImageScores`.
    """

    name: str
    instruction: str
    source: Image.Image | str
    reference: Image.Image
    caption: str | None = None
    reference_caption: str | None = None


@dataclass(frozen=True)
class Unit:
    """Edits that are made together or left out together.

    Attributes:
        names: of the edits.
        read: gives them, in the order to make them; raises UserError where the dataset is broken.
    """

    names: Sequence[str]
    read: Callable[[], list[Edit]]


@dataclass(frozen=True)
class Benchmark:
    """What is edited and how it is counted.

    Attributes:
        name: of the benchmark.
        columns: heading of a table → score of `ImageScores`.
        units: all work.
        sets: name of a set → names of the edits that are averaged.
        identity: what tells its data from other data, in plain JSON types.
        dropped: reason → how many rows of the data are not used for it.
    """

    name: str
    columns: Mapping[str, str]
    units: Sequence[Unit]
    sets: Mapping[str, Sequence[str]]
    identity: Mapping[str, Any]
    dropped: Mapping[str, int]


@dataclass(frozen=True)
class Results:
    """Averages of a run.

    Attributes:
        settings: all that they depend on.
        sets: name of a set → how many ``edits``, and the mean of every column that has scores.
        left_out: what is wrong with units of the data that could not be read.
    """

    settings: dict[str, Any]
    sets: dict[str, dict[str, float]]
    left_out: list[str]


def run(
    benchmark: Benchmark,
    editor: ImageEditor,
    scores: ImageScores,
    folder: Path,
    sampling: Sampling,
    model: Mapping[str, Any],
    scorers: Mapping[str, Any],
) -> Results:
    """Make and score all edits that are not there yet.

    Args:
        folder: of the run.
        sampling: of `ImageEditor.edit`; the seed of an edit follows from its seed and the edit's name.
        model: what the edits depend on besides, in plain JSON types.
        scorers: what the scores depend on besides, likewise.

    Raises:
        UserError: a run with other settings is there, none of the data can be read, or an edit fails; what is
            done is kept.
    """
    made_by = {"benchmark": benchmark.name, **asdict(sampling), **model}
    for name in ("sampler", "schedule"):  # not written where they are as published, as in older runs
        if made_by[name] == getattr(Sampling, name):
            del made_by[name]
    settings = {**made_by, **benchmark.identity, **scorers}
    left_out = []
    with JsonLines(folder / SCORES, settings) as lines:
        rows = {row["edit"]: row for row in lines.rows}
        todo = [unit for unit in benchmark.units if not rows.keys() >= set(unit.names)]
        total, left = (sum(len(unit.names) for unit in units) for units in (benchmark.units, todo))
        with tqdm(total=total, initial=total - left, desc=benchmark.name, unit="edit") as bar:
            for unit in todo:
                try:
                    edits = unit.read()
                except UserError as error:
                    left_out.append(str(error))
                    tqdm.write(f"left out: {error}", file=sys.stderr)
                    bar.update(len(unit.names))
                    continue
                for edit in edits:
                    if edit.name not in rows:
                        output = _picture(edit, editor, folder, sampling, made_by)
                        found = scores(output, edit.reference, edit.caption, edit.reference_caption)
                        rows[edit.name] = {"edit": edit.name, **found}
                        lines.append(rows[edit.name])
                    bar.update()
    averages = _averages(benchmark, rows)
    if not averages:
        raise UserError(f"{benchmark.name}: nothing could be edited; the last reason: {left_out[-1]}")
    return Results(settings, averages, left_out)


def _picture(
    edit: Edit, editor: ImageEditor, folder: Path, sampling: Sampling, made_by: Mapping[str, Any]
) -> Image.Image:
    """The result of an edit, made if it is not there."""
    file = folder / f"{edit.name}.png"
    settings = {**made_by, "edit": edit.instruction, "name": edit.name}
    if file.is_file() and read_settings(file) == settings:
        return open_image(file)
    source = edit.source
    if isinstance(source, str):
        source = open_image(folder / f"{source}.png")
    output = editor.edit(source, edit.instruction, sampling, seed=derived_seed(sampling.seed or 0, edit.name))
    save_image(output, file, settings)
    return output


def _averages(benchmark: Benchmark, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    averages = {}
    for name, edits in benchmark.sets.items():
        if found := [rows[edit] for edit in edits if edit in rows]:
            keys = [key for key in benchmark.columns.values() if key in found[0]]
            averages[name] = {"edits": len(found)} | {key: fmean(row[key] for row in found) for key in keys}
    return averages


def table(benchmark: Benchmark, sets: Mapping[str, Mapping[str, float]]) -> str:
    """Averages to print, a line each set; "-" where there are no scores."""
    width, keys = max(map(len, sets)), benchmark.columns.values()
    lines = [" " * width + f"{'edits':>7}" + "".join(f"{heading:>10}" for heading in benchmark.columns)]
    for name, found in sets.items():
        cells = (f"{found[key]:10.4f}" if key in found else f"{'-':>10}" for key in keys)
        lines.append(f"{name:{width}}{found['edits']:7}" + "".join(cells))
    return "\n".join(lines)


def read_cell(row: Mapping[str, Any], column: str, where: str) -> Image.Image:
    """A picture of a table's row, RGB.

    Args:
        where: what messages call the row.

    Raises:
        UserError: it is missing, broken, or of a size that cannot be edited.
    """
    name = f"{where}, {column}"
    picture = read_picture(BytesIO(picture_bytes(row[column])), name)
    check_size(picture, name)
    return picture


def digest(value: Any) -> str:
    """A short name of a value of plain JSON types."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
