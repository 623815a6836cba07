"""Pictures out: in the format that the file name asks for, with the settings of an edit in the metadata."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.pictures.reading import check_readable
from ldm.util import UserError, one_line

DESCRIPTION_TAG = 0x010E  # of EXIF
TEXT_KEY = "edit_settings"  # of the PNG text chunk

# Formats that hold a full-size RGB picture. Quality is set where Pillow's default would blur colours.
OUTPUT_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".avif": "AVIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".jp2": "JPEG2000",
    ".ppm": "PPM",
    ".tga": "TGA",
}
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95, "method": 6},
    "AVIF": {"quality": 90, "subsampling": "4:4:4"},
    "TIFF": {"compression": "tiff_adobe_deflate"},
}
EXIF_FORMATS = ("JPEG", "WEBP", "AVIF", "TIFF")


def prepare_output(path: str | Path) -> str:
    """Check that a picture can be written to `path` before the work for it starts; make its folder.

    Returns:
        Pillow's name of the format that the suffix asks for.

    Raises:
        UserError: unknown suffix, a folder in the way, or no permission to write.
    """
    path = Path(path)
    file_format = _output_format(path)
    target = Path(os.path.realpath(path))
    try:
        if target.is_dir():
            raise UserError(f"expected a file name for the output, got a folder: {path}")
        if target.exists() and not os.access(target, os.W_OK):
            raise UserError(f"cannot write {path}: the file is write-protected")
        target.parent.mkdir(parents=True, exist_ok=True)
        probe = _temporary_beside(target)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write {path}: {one_line(error)}") from error
    return file_format


def save_image(image: Image.Image, path: str | Path, settings: dict[str, Any] | None = None) -> None:
    """Write `image` in the format of the file name, `settings` in its metadata; replace only when complete.

    PNG holds the settings in a text chunk, JPEG, WebP, AVIF and TIFF in EXIF (ImageDescription), GIF in its
    comment, all as JSON; the other formats hold none. `read_settings` reads them back.

    Raises:
        UserError: as `prepare_output`, or the disk is full.
    """
    path = Path(path)
    file_format = prepare_output(path)
    target = Path(os.path.realpath(path))  # a link keeps pointing at the file that is replaced
    temporary = _temporary_beside(target)
    options = SAVE_OPTIONS.get(file_format, {}) | _metadata_options(file_format, settings)
    try:
        with open(temporary, "xb") as file:
            image.save(file, format=file_format, **options)
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(f"cannot write {path}: {one_line(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_settings(path: str | Path) -> dict[str, Any]:
    """Return the settings that `save_image` stored in a picture; an empty dict where there are none.

    Raises:
        UserError: not a picture.
    """
    path = Path(path)
    check_readable(path)
    try:
        with Image.open(path) as image:
            exif = image.getexif()
            texts = [image.info.get(TEXT_KEY), image.info.get("comment"), exif.get(DESCRIPTION_TAG)]
    except Exception as error:  # as in open_image
        raise UserError(f"expected a picture, got {path} ({one_line(error)})") from error
    for text in texts:
        try:
            settings = json.loads(text) if text else None
        except (TypeError, ValueError):  # somebody else's comment
            continue
        if isinstance(settings, dict):
            return settings
    return {}


def _metadata_options(file_format: str, settings: dict[str, Any] | None) -> dict[str, Any]:
    """Return the `Image.save` options that store `settings` in a file of this format."""
    if not settings:
        return {}
    text = json.dumps(settings)  # ASCII only, as EXIF and GIF ask
    if file_format == "PNG":
        info = PngInfo()
        info.add_text(TEXT_KEY, text)
        return {"pnginfo": info}
    if file_format in EXIF_FORMATS:
        exif = Image.Exif()
        exif[DESCRIPTION_TAG] = text
        return {"exif": exif.tobytes()} if file_format != "TIFF" else {"exif": exif}
    return {"comment": text.encode()} if file_format == "GIF" else {}


def _output_format(path: Path) -> str:
    Image.init()  # loads Pillow's plugins; which of them can write differs between builds
    known = {suffix: name for suffix, name in OUTPUT_FORMATS.items() if name in Image.SAVE}
    suffix = path.suffix.lower()
    if suffix not in known:
        got = f"{path.suffix} ({path})" if suffix else f"no suffix ({path})"
        raise UserError(f"expected an output file ending in {', '.join(known)}, got {got}")
    return known[suffix]


def _temporary_beside(target: Path) -> Path:
    """Name a temporary file in the target's folder; made by `open`, so that the user's file mode applies."""
    return target.parent / f".{secrets.token_hex(8)}.tmp"
