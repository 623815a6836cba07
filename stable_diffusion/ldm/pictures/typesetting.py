"""Text in pictures: the font, and where lines break."""

from __future__ import annotations

import math
from bisect import bisect_right

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FONT = "DejaVuSans.ttf"  # where the system has it: the font in Pillow knows little more than English


def text_font(size: int) -> Font:
    """A font of that size in pixels."""
    try:
        return ImageFont.truetype(FONT, size)
    except OSError:
        return ImageFont.load_default(size)


def text_height(font: Font) -> int:
    """Pixels from one line to the next."""
    return (
        sum(font.getmetrics()) if isinstance(font, ImageFont.FreeTypeFont) else round(font.getbbox("Ág")[3])
    )


def wrapped(text: str, font: Font, width: int, most: int) -> list[str]:
    """Lines of `text` that fit into `width` pixels, broken between words where a word fits into a line.

    Args:
        most: lines; a longer text ends in "…".
    """
    rest = " ".join(text.split())
    lines: list[str] = []
    while rest and len(lines) < most:
        fits = max(
            1, bisect_right(range(1, len(rest) + 1), width, key=lambda n: math.ceil(font.getlength(rest[:n])))
        )
        space = rest.rfind(" ", 1, fits + 1) if fits < len(rest) else -1
        end = space if space > 0 else fits
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    if rest:
        last = lines[-1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        lines[-1] = last.rstrip() + "…"
    return lines
