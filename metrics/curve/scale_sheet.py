"""Contact sheet of a run: some edits at every scale, as the paper's pictures of varied guidance show them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ldm.pictures.reading import open_image
from ldm.pictures.sheet import GAP, Cell, sheet
from metrics.curve.curves import Row, picture_file, setting, setting_key, setting_words

CELL = 160  # pixels of the square that a picture is fitted into
TEXT_WIDTH = 160
HEADING = 44  # with the gaps above and below
SAMPLES = 8


def scale_sheet(folder: Path, rows: Sequence[Row]) -> Image.Image:
    """Draw the first samples of the split: instruction, input, and the edits in order of their scales.

    Args:
        folder: of the run; the cell of a picture that is not there stays empty.
        rows: of the run, in any order.
    """
    assert rows, "a sheet of nothing"
    one_text = len({row["scale_text"] for row in rows}) == 1
    columns = {"input": "input"} | {
        setting_key(row): "\n".join(setting_words(row)[one_text:]) for row in sorted(rows, key=setting)
    }
    edits = {row["sample"]: row["edit"] for row in sorted(rows, key=lambda row: row["sample"])}
    samples = list(edits.items())[:SAMPLES]
    table: list[list[Cell]] = [["", *columns.values()]]
    for sample, edit in samples:
        files = [picture_file(folder, sample, key) for key in columns]
        table.append([edit, *(open_image(file) if file.exists() else "" for file in files)])
    widths, heights = [TEXT_WIDTH, *[CELL] * len(columns)], [HEADING - 2 * GAP, *[CELL] * len(samples)]
    return sheet(table, widths, heights)
