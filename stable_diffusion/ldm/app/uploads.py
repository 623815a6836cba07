"""Pictures from visitors: refused by size and kind before anything of them is decoded."""

from __future__ import annotations

import os
import threading
import warnings
from typing import Any

from PIL import Image

from ldm.app.texts import Problem
from ldm.pictures.reading import LARGEST_RATIO, SMALLEST_SIDE, check_size, open_image
from ldm.pictures.writing import read_settings
from ldm.util import UserError

MAX_BYTES = 32 * 1024**2
# What browsers show and cameras make. Not those for which Pillow starts other programs or decodes at once.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
_DECODING = threading.Lock()  # many large pictures at once then need no more memory than one


def uploaded_path(picture: Any) -> str:
    """The file of an input picture, which Gradio has found to be one of its own.

    Raises:
        Problem: there is no picture.
    """
    path = picture.get("path") if isinstance(picture, dict) else None
    if not isinstance(path, str) or not path:
        raise Problem("no_picture")
    return path


def check_upload(path: str, max_pixels: int) -> None:
    """Judge a file by its head.

    Raises:
        Problem: it is too large in bytes or pixels, of an unfit shape, or not a picture of `FORMATS`.
    """
    try:
        size = os.path.getsize(path)
    except OSError:
        raise Problem("gone") from None
    if size > MAX_BYTES:
        raise Problem("bytes", limit=MAX_BYTES // 1024**2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a size that is judged below
            with Image.open(path, formats=FORMATS) as picture:
                width, height = picture.size
                check_size(picture)
    except UserError:
        values = {"side": SMALLEST_SIDE, "ratio": LARGEST_RATIO, "width": width, "height": height}
        raise Problem("shape", **values) from None
    except Image.DecompressionBombError:
        raise Problem("pixels", limit=max_pixels // 10**6) from None
    except Exception:  # broken files make Pillow raise almost any type
        raise Problem("broken") from None
    if width * height > max_pixels:
        raise Problem("pixels", limit=max_pixels // 10**6)


def settings_in_upload(path: str, max_pixels: int) -> dict[str, Any]:
    """The settings that `save_image` has put into a file that a visitor has sent; empty where there are none.

    Raises:
        Problem: as `open_upload`; what is broken may also be found only there.
    """
    check_upload(path, max_pixels)
    try:
        with _DECODING:  # Pillow looks for them behind the pixels too
            return read_settings(path)
    except UserError:
        raise Problem("broken") from None


def open_upload(path: str, max_pixels: int) -> Image.Image:
    """The picture in a file that a visitor has sent, upright RGB.

    Raises:
        Problem: as `check_upload`, or it is broken further on.
    """
    check_upload(path, max_pixels)
    try:
        with _DECODING:
            return open_image(path)
    except UserError:
        raise Problem("broken") from None
