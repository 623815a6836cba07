"""Pictures in and out: any file Pillow reads ↔ RGB ↔ tensor in [-1, 1], the published sizing rule, saving.

Not here: anything about models. torch is only imported where a tensor is made, so that a program can check
its input and output files before it pays for that import.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from ldm.util import UserError

if TYPE_CHECKING:
    from torch import Tensor

MULTIPLE = 64  # both sides of a picture given to the model are multiples of this
SMALLEST_SIDE = 8
LARGEST_RATIO = 16

ORIENTATION_TAG, DESCRIPTION_TAG = 0x0112, 0x010E  # EXIF tags
TEXT_KEY = "edit_settings"  # of the PNG text chunk

UPRIGHT = {  # EXIF orientation → what turns the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

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


def open_image(path: str | Path) -> Image.Image:
    """Read any picture Pillow reads as upright 8-bit RGB.

    The first frame of an animation is taken, EXIF orientation applied, transparency laid on white and values
    of more than 8 bits scaled (see `_to_eight_bits`). The picture carries no metadata on.

    Raises:
        UserError: not a picture, broken, or of a size that `check_size` refuses.
    """
    path = Path(path)
    _check_readable(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns of broken EXIF, which does not matter here, and of pictures from 89 million pixels
            # on, which work; it refuses those from 179 million on.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.load()
                rgb = to_rgb(_upright(image))
    except Image.UnidentifiedImageError:
        raise UserError(f"expected a picture, got a file of another kind or a broken one: {path}") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UserError(
            f"expected a picture of at most {limit} million pixels, got a larger one: {path}"
        ) from None
    except Exception as error:  # broken files make Pillow's decoders raise almost any type
        raise UserError(
            f"cannot read the picture {path}: it is broken or cut off ({_one_line(error)})"
        ) from error
    check_size(rgb, str(path))
    rgb.info.clear()  # Pillow would write the input's colour profile or transparent colour into the output
    return rgb


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any of Pillow's modes to RGB, transparency laid on white."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    elif image.mode == "LAB":  # Pillow converts it only through a colour profile
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    elif image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def check_size(image: Image.Image, name: str = "the picture") -> None:
    """Raise UserError for a picture with a side under 8 px or with sides beyond 16:1."""
    width, height = image.size
    if min(image.size) < SMALLEST_SIDE:
        raise UserError(f"expected sides of at least {SMALLEST_SIDE} pixels, got {width}x{height}: {name}")
    if max(image.size) > LARGEST_RATIO * min(image.size):
        raise UserError(f"expected sides of at most {LARGEST_RATIO}:1, got {width}x{height}: {name}")


def fit_to_model(image: Image.Image, resolution: int) -> Image.Image:
    """Resize (and crop the little that is over) to multiples of 64 with the longer side near `resolution`.

    The published rule: scale the longer side to `resolution`, then up until the shorter side is a multiple of
    64, then cut both sides down to multiples of 64.

    Raises:
        UserError: a resolution under 64, or a picture that `check_size` refuses.
    """
    if resolution < MULTIPLE:
        raise UserError(f"expected a resolution of at least {MULTIPLE} pixels, got {resolution}")
    check_size(image)
    width, height = image.size
    factor = resolution / max(width, height)
    factor = math.ceil(min(width, height) * factor / MULTIPLE) * MULTIPLE / min(width, height)
    # Floating point leaves one shorter side in twelve a hair under its multiple (667 * (384 / 667) < 384),
    # which costs 64 pixels. Published seeds depend on it, so it stays; `max` keeps a side from becoming 0.
    width = max(MULTIPLE, math.floor(width * factor / MULTIPLE) * MULTIPLE)
    height = max(MULTIPLE, math.floor(height * factor / MULTIPLE) * MULTIPLE)
    return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> Tensor:
    """Turn an RGB picture into a float32 tensor [1, 3, H, W] in [-1, 1]."""
    import torch  # late: see the head of this file

    pixels = 2 * torch.from_numpy(np.array(image.convert("RGB"))).float() / 255 - 1
    return pixels.permute(2, 0, 1)[None].contiguous()  # [1, 3, H, W]


def to_image(pixels: Tensor) -> Image.Image:
    """Turn a tensor [3, H, W] in [-1, 1] (clamped) into RGB, cutting off fractions as the published code."""
    scaled = 255 * ((pixels.detach().float() + 1) / 2).clamp(0, 1)
    return Image.fromarray(scaled.permute(1, 2, 0).cpu().numpy().astype(np.uint8))  # [H, W, 3]


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
        raise UserError(f"cannot write {path}: {_reason(error)}") from error
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
        raise UserError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_settings(path: str | Path) -> dict[str, Any]:
    """Return the settings that `save_image` stored in a picture; an empty dict where there are none.

    Raises:
        UserError: not a picture.
    """
    path = Path(path)
    _check_readable(path)
    try:
        with Image.open(path) as image:
            exif = image.getexif()
            texts = [image.info.get(TEXT_KEY), image.info.get("comment"), exif.get(DESCRIPTION_TAG)]
    except Exception as error:  # as in open_image
        raise UserError(f"expected a picture, got {path} ({_one_line(error)})") from error
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


def _check_readable(path: Path) -> None:
    try:
        if path.is_dir():
            raise UserError(f"expected a picture, got a folder: {path}")
        if not path.exists():
            raise UserError(f"no such picture: {path}")
        if path.is_file() and path.stat().st_size == 0:
            raise UserError(f"expected a picture, got an empty file: {path}")
        if not path.is_file():
            raise UserError(f"expected a picture, got something that is not a file: {path}")
        if not os.access(path, os.R_OK):
            raise UserError(f"cannot read {path}: no permission")
    except OSError as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from error


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, after `load`: there Pillow applies that of a TIFF and removes the tag."""
    try:
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # a broken EXIF block raises many types; the picture itself is whole
        turn = None
    return image.transpose(turn) if turn is not None else image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale a greyscale picture of mode I;16, I or F to 8 bits, black at 0.

    White is the first of these that no value exceeds: 1 (mode F only), 255 (mode F only), 65535. A picture
    with other values, such as a height map or an HDR scan, is stretched from its least value to its greatest.
    """
    values = np.asarray(image).astype(np.float64)  # [H, W]
    if not np.isfinite(values).all():
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    low, high = values.min(), values.max()
    whites = (1, 255, 65535) if image.mode == "F" else (65535,)
    white = next((white for white in whites if high <= white), None)
    if low < 0 or white is None:
        values, white = values - low, max(high - low, 1e-12)
    return Image.fromarray(np.round(values / white * 255).astype(np.uint8))


def _reason(error: OSError) -> str:
    return error.strerror or _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
