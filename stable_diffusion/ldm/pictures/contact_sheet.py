"""Contact sheet: some examples of a dataset on one picture, before, instruction, after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ldm.pictures.typesetting import text_font, wrapped

CELL = 192  # pixels of the square that a picture is fitted into
TEXT_WIDTH = 160
GAP = 12
COLUMNS = 2  # examples beside one another
LINES = 8  # of an instruction; the rest is cut off
FONT_SIZE = 16


@dataclass(frozen=True)
class SheetExample:
    """What the sheet shows of an example."""

    before: Image.Image
    instruction: str
    after: Image.Image


def contact_sheet(examples: Sequence[SheetExample]) -> Image.Image:
    """Draw the examples, two beside one another, in order from left to right and down."""
    assert examples, "a sheet of nothing"
    columns = min(COLUMNS, len(examples))
    width, height = 2 * CELL + TEXT_WIDTH + 2 * GAP, CELL
    rows = -(-len(examples) // columns)
    sheet = Image.new("RGB", (columns * (width + 3 * GAP) + GAP, rows * (height + 2 * GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = text_font(FONT_SIZE)
    for k, example in enumerate(examples):
        left = 2 * GAP + (k % columns) * (width + 3 * GAP)
        top = GAP + (k // columns) * (height + 2 * GAP)
        for picture, x in ((example.before, left), (example.after, left + width - CELL)):
            sides = [max(1, round(side * CELL / max(picture.size))) for side in picture.size]
            small = picture.resize(tuple(sides), Image.Resampling.LANCZOS)
            sheet.paste(small, (x + (CELL - small.width) // 2, top + (CELL - small.height) // 2))
        text = "\n".join(wrapped(example.instruction, font, TEXT_WIDTH, LINES))
        middle = (left + width // 2, top + height // 2)
        draw.multiline_text(middle, text, "black", font, anchor="mm", align="center")
    return sheet
