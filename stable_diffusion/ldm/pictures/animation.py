"""Pictures of edits with their instructions below: an animation that morphs through them, and a sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from ldm.files import replacing
from ldm.pictures.sheet import sheet
from ldm.pictures.typesetting import text_font, text_height, wrapped
from ldm.util import UserError

FORMATS = {".gif": "GIF", ".webp": "WEBP"}
LEAST_SIDE, MOST_SIDE = 256, 512  # pixels of the longer side: legible, and files of few megabytes
LINES = 3  # of a caption; what is longer ends in "…"
MARGIN = 8

HOLD, FADE = 1400, 60  # milliseconds that a picture stays, and that each step of a fade does
FADE_STEPS = 6
# A fade is over before anyone sees its colours, and with fewer of them it takes half the bytes. The pictures
# themselves are dithered with all that a GIF can have.
COLORS, FADE_COLORS = 256, 64


def check_animation_path(path: str | Path) -> None:
    """Raise `UserError` for a file name that `save_animation` has no format for."""
    suffix = Path(path).suffix
    if suffix.lower() not in FORMATS:
        got = f"{suffix} ({path})" if suffix else f"no suffix ({path})"
        raise UserError(f"expected an animation ending in {' or '.join(FORMATS)}, got {got}")


def save_animation(frames: Sequence[Image.Image], captions: Sequence[str], path: str | Path) -> None:
    """Write a GIF or an animated WebP that shows the frames in turn, fades between them, and starts over.

    Args:
        frames: RGB pictures of one size; shown with a longer side of `LEAST_SIDE` to `MOST_SIDE`.
        captions: what stands below each.
        path: its suffix, .gif or .webp, sets the format; replaced only when complete.

    Raises:
        UserError: another suffix, or the file cannot be written.
    """
    check_animation_path(path)
    path = Path(path)
    stills = captioned(frames, captions)
    animated = FORMATS[path.suffix.lower()] == "GIF"
    shown, durations = [], []
    for still, following in zip(stills, [*stills[1:], stills[0]], strict=True):
        shown.append(_dithered(still) if animated else still)
        durations.append(HOLD)
        for step in range(1, FADE_STEPS + 1) if len(stills) > 1 else ():
            share = (1 - math.cos(math.pi * step / (FADE_STEPS + 1))) / 2  # slow at both ends
            between = Image.blend(still, following, share)
            shown.append(between.quantize(FADE_COLORS) if animated else between)
            durations.append(FADE)
    with replacing(path) as part:
        shown[0].save(
            part,
            FORMATS[path.suffix.lower()],
            save_all=True,
            append_images=shown[1:],
            duration=durations,
            loop=0,
            quality=85,
        )


def sheet_of(frames: Sequence[Image.Image], captions: Sequence[str], columns: int) -> Image.Image:
    """One picture of all frames, captioned as for `save_animation`, in rows of `columns`."""
    cells = captioned(frames, captions)
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    width, height = cells[0].size
    return sheet(rows, [width] * columns, [height] * len(rows), MARGIN)


def captioned(frames: Sequence[Image.Image], captions: Sequence[str]) -> list[Image.Image]:
    """The frames, small ones enlarged and large ones reduced, all with a white strip for captions below."""
    assert len({frame.size for frame in frames}) == 1, "expected frames of one size"
    assert len(frames) == len(captions), "expected a caption for each frame"
    longer = max(frames[0].size)
    scale = min(max(longer, LEAST_SIDE), MOST_SIDE) / longer
    width, height = (max(1, round(side * scale)) for side in frames[0].size)
    font = text_font(max(14, width // 24))
    texts = [wrapped(caption, font, width - 2 * MARGIN, LINES) for caption in captions]
    line = text_height(font)
    strip = max(map(len, texts)) * line + MARGIN
    result = []
    for frame, lines in zip(frames, texts, strict=True):
        picture = Image.new("RGB", (width, height + strip), "white")
        picture.paste(frame.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
        draw = ImageDraw.Draw(picture)
        for i, text in enumerate(lines):
            draw.text((width / 2, height + MARGIN / 2 + i * line), text, "black", font, anchor="ma")
        result.append(picture)
    return result


def _dithered(picture: Image.Image) -> Image.Image:
    """The picture in the 256 colours that suit it best."""
    return picture.quantize(palette=picture.quantize(COLORS), dither=Image.Dither.FLOYDSTEINBERG)
