"""Pictures in: any file that Pillow reads, as upright 8-bit RGB."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from ldm.util import UserError, one_line

SMALLEST_SIDE = 8
LARGEST_RATIO = 16

ORIENTATION_TAG = 0x0112  # of EXIF
UPRIGHT = {  # EXIF orientation → what turns the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(path: str | Path) -> Image.Image:
    """Read any picture Pillow reads as upright 8-bit RGB.

    The first frame of an animation is taken, EXIF orientation applied, transparency laid on white and values
    of more than 8 bits scaled (see `_to_eight_bits`). The picture carries no metadata on.

    Raises:
        UserError: not a picture, broken, or of a size that `check_size` refuses.
    """
    path = Path(path)
    check_readable(path)
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
            f"cannot read the picture {path}: it is broken or cut off ({one_line(error)})"
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
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
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


def check_readable(path: Path) -> None:
    """Raise UserError unless `path` is a regular file that is not empty and may be read."""
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
        raise UserError(f"cannot read {path}: {one_line(error)}") from error


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
