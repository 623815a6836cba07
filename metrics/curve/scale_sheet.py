"""Contact sheet of a run: some edits at every scale, as the paper's pictures of varied guidance show them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from ldm.pictures.contact_sheet import GAP, LINES, TEXT_WIDTH
from ldm.pictures.reading import open_image
from ldm.pictures.typesetting import text_font, wrapped
from metrics.curve.curves import Row, picture_file, setting, setting_key, setting_words

CELL = 160  # pixels of the square that a picture is fitted into
HEADING = 44
FONT_SIZE = 14
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
    left = TEXT_WIDTH + 2 * GAP
    size = (left + len(columns) * (CELL + GAP), HEADING + len(samples) * (CELL + GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = text_font(FONT_SIZE)
    for column, text in enumerate(columns.values()):
        middle = (left + column * (CELL + GAP) + CELL // 2, HEADING // 2)
        draw.multiline_text(middle, text, "black", font, anchor="mm", align="center")
    for place, (sample, edit) in enumerate(samples):
        top = HEADING + place * (CELL + GAP)
        text = "\n".join(wrapped(edit, font, TEXT_WIDTH, LINES))
        draw.multiline_text((GAP, top + CELL // 2), text, "black", font, anchor="lm")
        for column, key in enumerate(columns):
            file = picture_file(folder, sample, key)
            if file.exists():
                small = ImageOps.contain(open_image(file), (CELL, CELL), Image.Resampling.LANCZOS)
                x = left + column * (CELL + GAP)
                sheet.paste(small, (x + (CELL - small.width) // 2, top + (CELL - small.height) // 2))
    return sheet
