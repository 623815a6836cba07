"""One picture of many: rows and columns of pictures and texts."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from ldm.pictures.typesetting import text_font, wrapped

GAP = 12  # pixels around a cell
FONT_SIZE = 14
PADDING = 8  # of texts, both sides together
LINES = 8  # of a text; the rest is cut off

Cell = Image.Image | str


def sheet(
    rows: Sequence[Sequence[Cell]],
    widths: Sequence[int],
    heights: Sequence[int],
    gap: int = GAP,
    font_size: int = FONT_SIZE,
) -> Image.Image:
    """Draw cells on white: pictures as large as they fit, texts in the middle.

    Args:
        rows: of cells, from above; an empty text leaves a cell empty, as does a row that is too short.
        widths, heights: of the columns and of the rows, in pixels.
        gap: between cells and around all.
        font_size: of the texts, in pixels.
    """
    width, height = (sum(side + gap for side in sides) + gap for sides in (widths, heights))
    picture = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(picture), text_font(font_size)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        left = gap
        for cell, width in zip(row, widths, strict=False):
            middle = (left + width // 2, top + height // 2)
            if isinstance(cell, str):
                lines = [
                    part for line in cell.split("\n") for part in wrapped(line, font, width - PADDING, LINES)
                ]
                draw.multiline_text(middle, "\n".join(lines), "black", font, anchor="mm", align="center")
            else:
                shown = fitted(cell, width, height)
                picture.paste(shown, (middle[0] - shown.width // 2, middle[1] - shown.height // 2))
            left += width + gap
        top += height + gap
    return picture


def fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The picture as large as it fits into a cell, its proportions kept."""
    scale = min(width / picture.width, height / picture.height)
    wide, high = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((wide, high), Image.Resampling.LANCZOS)
