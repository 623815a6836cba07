"""ldm.pictures on real files that Pillow writes here: every kind of input, the sizing rule, safe saving."""

import errno
import math
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ldm.pictures.fitting import fit_to_model, to_image, to_tensor
from ldm.pictures.reading import open_image
from ldm.pictures.writing import prepare_output, read_settings, save_image
from ldm.util import UserError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def picture() -> Image.Image:
    """A smooth 40x24 picture whose four corners differ."""
    x, y = np.meshgrid(np.linspace(0, 255, 40), np.linspace(0, 255, 24))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def difference(one: Image.Image, other: Image.Image) -> float:
    """Return the mean absolute difference of two pictures in grey levels."""
    assert one.size == other.size and one.mode == other.mode == "RGB"
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("a.png", 0),
        ("a.bmp", 0),
        ("a.tiff", 0),
        ("a.jpg", 4),
        ("a.webp", 4),
        ("a.jp2", 0),
        ("a.tga", 0),
        ("a.ppm", 0),
        ("a.pcx", 0),
        ("a.gif", 12),
        ("a.avif", 6),
        ("a.sgi", 0),
        ("a.ico", 0),
    ],
)
def test_reads_formats(tmp_path: Path, picture: Image.Image, name: str, tolerance: float):
    picture = picture.resize((32, 32)) if name.endswith("ico") else picture
    picture.save(tmp_path / name)
    read = open_image(tmp_path / name)
    assert difference(read, picture) <= tolerance


def test_suffix_of_the_input_does_not_matter(tmp_path: Path, picture: Image.Image):
    picture.save(tmp_path / "photo.jpg", format="PNG")
    assert difference(open_image(tmp_path / "photo.jpg"), picture) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff"])
def test_exif_orientation(tmp_path: Path, picture: Image.Image, name: str, orientation: int):
    backward = {  # how a camera that is turned this way stores the upright picture
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(backward[orientation](np.asarray(picture))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / name, exif=exif)
    read = open_image(tmp_path / name)
    assert difference(read, picture) <= 5
    assert not read.getexif() and not read.info


def test_broken_exif_is_ignored(tmp_path: Path, picture: Image.Image):
    picture.save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\x12\x01\x03\0" * 3)
    assert open_image(tmp_path / "a.jpg").size == picture.size


def half(mode: str, visible: object, hidden: object) -> Image.Image:
    """Return 16x16, the left half `visible`, the right half `hidden`."""
    image = Image.new(mode, (16, 16), visible)
    image.paste(hidden, (8, 0, 16, 16))
    return image


def both_halves(path: Path) -> tuple[object, object]:
    read = open_image(path)
    assert read.mode == "RGB"
    return read.getpixel((2, 2)), read.getpixel((13, 13))


def test_transparency_is_laid_on_white(tmp_path: Path):
    path = tmp_path / "a.png"
    half("RGBA", (*RED, 255), (*RED, 0)).save(path)
    assert both_halves(path) == (RED, WHITE)
    half("RGBA", (*RED, 255), (*RED, 128)).save(path)
    assert both_halves(path) == (RED, (255, 127, 127))
    half("LA", (90, 255), (90, 0)).save(path)
    assert both_halves(path) == ((90, 90, 90), WHITE)
    palette = half("P", 0, 1)
    palette.putpalette([*RED, *BLUE])
    palette.save(path, transparency=1)
    assert both_halves(path) == (RED, WHITE)
    palette.save(path, transparency=bytes([255, 0]))
    assert both_halves(path) == (RED, WHITE)
    palette.save(tmp_path / "a.gif", transparency=1)
    assert both_halves(tmp_path / "a.gif") == (RED, WHITE)
    half("RGB", GREEN, BLUE).save(path, transparency=BLUE)
    assert both_halves(path) == (GREEN, WHITE)
    half("L", 10, 200).save(path, transparency=200)
    assert both_halves(path) == ((10, 10, 10), WHITE)


def test_colour_modes(tmp_path: Path):
    half("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)).save(tmp_path / "a.tiff")
    assert both_halves(tmp_path / "a.tiff") == (RED, BLUE)
    half("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)).save(tmp_path / "a.jpg", quality=100)
    left, right = both_halves(tmp_path / "a.jpg")
    assert np.abs(np.subtract(left, RED)).max() < 8 and np.abs(np.subtract(right, BLUE)).max() < 8
    half("1", 1, 0).save(tmp_path / "a.png")
    assert both_halves(tmp_path / "a.png") == (WHITE, (0, 0, 0))
    half("LAB", (255, 128, 128), (0, 128, 128)).save(tmp_path / "lab.tiff")
    left, right = both_halves(tmp_path / "lab.tiff")
    assert np.abs(np.subtract(left, WHITE)).max() < 4 and max(right) < 4  # type: ignore[type-var]


def grey(path: Path) -> list[int]:
    """Return the grey levels of the first row."""
    pixels = np.asarray(open_image(path))
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


def rows(values: list[float], dtype: str) -> Image.Image:
    return Image.fromarray(np.tile(np.array(values, dtype=dtype), (8, 1)))


def test_sixteen_bit_grey(tmp_path: Path):
    values = [0, 257, 32896, 65535, 128, 129, 65000, 1000]
    expected = [round(value / 257) for value in values]
    for name in ("a.png", "a.tiff", "a.jp2", "a.pgm"):
        rows(values, "uint16").save(tmp_path / name)
        assert grey(tmp_path / name) == expected, name
    rows(values, "int32").save(tmp_path / "i.tiff")
    assert grey(tmp_path / "i.tiff") == expected
    Image.frombytes("I;16B", (8, 8), np.tile(np.array(values, ">u2"), (8, 1)).tobytes()).save(
        tmp_path / "b.tiff"
    )
    assert grey(tmp_path / "b.tiff") == expected


def test_other_ranges(tmp_path: Path):
    path = tmp_path / "a.tiff"
    rows([0, 0.25, 0.5, 1, 1, 1, 1, 1], "float32").save(path)
    assert grey(path)[:4] == [0, 64, 128, 255]
    rows([0, 64, 128, 255, 1, 1, 1, 1], "float32").save(path)
    assert grey(path)[:4] == [0, 64, 128, 255]
    rows([0, 257, 32896, 65535, 1, 1, 1, 1], "float32").save(path)
    assert grey(path)[:4] == [0, 1, 128, 255]
    rows([-100, 0, 100, 0, 0, 0, 0, 0], "int32").save(path)
    assert grey(path)[:3] == [0, 128, 255]
    rows([0, 1e6, 2e6, 0, 0, 0, 0, 0], "int32").save(path)
    assert grey(path)[:3] == [0, 128, 255]
    rows([math.nan, 1, math.inf, -math.inf, 0.2, 0.4, 0.6, 0.8], "float32").save(path)
    assert grey(path)[:4] == [51, 255, 255, 51]
    rows([math.nan] * 8, "float32").save(path)
    assert grey(path) == [0] * 8


def test_first_frame_of_an_animation(tmp_path: Path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    for name in ("a.gif", "a.webp", "a.png", "a.tiff"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        red, green, blue = open_image(tmp_path / name).getpixel((8, 8))  # type: ignore[misc]
        assert red > 240 and green < 10 and blue < 10, name


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bad_files(folder: Path, picture: Image.Image) -> dict[str, Path]:
    """Write one file of each kind that must be refused; return them by the words of the message."""
    whole = folder / "whole.png"
    picture.resize((200, 200)).save(whole)
    jpeg = folder / "whole.jpg"
    picture.resize((200, 200)).save(jpeg)
    contents = {
        "empty file": b"",
        "another kind": b"<!doctype html><html>not found</html>",
        "broken or cut off": whole.read_bytes()[:600],
        "broken or cut off ": jpeg.read_bytes()[:900],
        "broken or cut off  ": whole.read_bytes()[:60] + bytes(100) + whole.read_bytes()[160:],
        "million pixels": b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">2I5B", 30000, 30000, 8, 2, 0, 0, 0))
        + png_chunk(b"IDAT", zlib.compress(bytes(10**6))),
    }
    paths = {"no such picture": folder / "missing.png", "got a folder": folder}
    for number, (words, content) in enumerate(contents.items()):
        paths[words] = folder / f"bad{number}.png"
        paths[words].write_bytes(content)
    for words, size in {"at least 8": (7, 30), "at most 16:1": (8, 129)}.items():
        paths[words] = folder / f"{size[0]}.png"
        Image.new("RGB", size).save(paths[words])
    return paths


def test_bad_inputs_are_one_line(tmp_path: Path, picture: Image.Image):
    for words, path in bad_files(tmp_path, picture).items():
        with pytest.raises(UserError, match=words.strip()) as caught:
            open_image(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_pipe_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a file"):
        open_image(tmp_path / "pipe")


def test_edge_sizes_are_accepted(tmp_path: Path):
    for size in ((8, 8), (8, 128), (128, 8)):
        Image.new("RGB", size).save(tmp_path / "a.png")
        assert open_image(tmp_path / "a.png").size == size


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((512, 512), 512, (512, 512)),
        ((1024, 768), 512, (512, 384)),
        ((768, 1024), 512, (384, 512)),
        ((1000, 667), 512, (512, 320)),  # 384 but for floating point; as published
        ((640, 427), 512, (512, 384)),
        ((300, 100), 512, (576, 192)),
        ((1920, 1080), 512, (512, 320)),
        ((50, 200), 256, (64, 256)),
        ((8, 128), 64, (64, 1024)),
        ((49, 49), 64, (64, 64)),
        ((333, 500), 256, (192, 256)),
    ],
)
def test_sizing_rule(size: tuple[int, int], resolution: int, expected: tuple[int, int]):
    assert fit_to_model(Image.new("RGB", size), resolution).size == expected


def test_sizing_refuses():
    with pytest.raises(UserError, match="resolution of at least 64 pixels, got 63"):
        fit_to_model(Image.new("RGB", (100, 100)), 63)
    with pytest.raises(UserError, match="at most 16:1"):
        fit_to_model(Image.new("RGB", (1700, 100)), 512)


def test_sizing_rule_everywhere():
    """In whole numbers the shorter side is 64 k and the longer one cut down; rounding may cost one step."""
    for short in range(8, 400, 7):
        for long in range(short, 16 * short, 61):
            steps = -(-short * 256 // (long * 64))
            fitted = fit_to_model(Image.new("1", (long, short)), 256).size
            assert fitted[0] % 64 == fitted[1] % 64 == 0
            assert 0 <= 64 * steps - fitted[1] <= (64 if steps > 1 else 0)
            assert 0 <= (long * steps // short) * 64 - fitted[0] <= 64


def test_fit_keeps_the_centre():
    image = Image.new("RGB", (300, 200), RED)
    image.paste(BLUE, (145, 0, 155, 200))
    fitted = np.asarray(fit_to_model(image, 256), int)
    assert fitted.shape == (192, 256, 3)
    centre = (fitted[..., 2].mean(axis=0) * np.arange(256)).sum() / fitted[..., 2].mean(axis=0).sum()
    assert centre == pytest.approx(127.5, abs=0.1)


def test_tensor_and_back():
    torch = pytest.importorskip("torch")
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = to_tensor(Image.fromarray(pixels))
    assert tensor.shape == (1, 3, 16, 16) and tensor.dtype == torch.float32
    assert tensor.min() == -1 and tensor.max() == 1
    assert (tensor == 2 * torch.tensor(pixels).float().permute(2, 0, 1)[None] / 255 - 1).all()
    back = np.asarray(to_image(tensor[0]), int)
    assert ((back - pixels) <= 0).all() and ((back - pixels) >= -1).all()  # fractions are cut off
    beyond = torch.tensor([-3.0, -1, 0, 0.999, 1, 7]).reshape(1, 1, 6).expand(3, 1, 6)
    assert np.asarray(to_image(beyond))[0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]
    assert np.asarray(to_image(beyond.half())).shape == (1, 6, 3)


SETTINGS = {"seed": 1371, "cfg_text": 7.5, "edit": 'turn him into a "cyborg" – naïve 🎨', "vae_ckpt": None}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp", ".avif", ".tif", ".tiff", ".gif"])
def test_settings_round_trip(tmp_path: Path, picture: Image.Image, suffix: str):
    path = tmp_path / f"a{suffix}"
    save_image(picture, path, SETTINGS)
    assert read_settings(path) == SETTINGS
    assert difference(open_image(path), picture) < 12


@pytest.mark.parametrize("suffix", [".bmp", ".jp2", ".ppm", ".tga"])
def test_formats_without_metadata(tmp_path: Path, picture: Image.Image, suffix: str):
    save_image(picture, tmp_path / f"a{suffix}", SETTINGS)
    assert read_settings(tmp_path / f"a{suffix}") == {}
    assert difference(open_image(tmp_path / f"a{suffix}"), picture) == 0


def test_foreign_comments_are_no_settings(tmp_path: Path, picture: Image.Image):
    exif = Image.Exif()
    exif[0x010E] = "holiday"
    picture.save(tmp_path / "a.jpg", exif=exif, comment=b"[1, 2]")
    assert read_settings(tmp_path / "a.jpg") == {}
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "hello")
    picture.save(tmp_path / "a.png", pnginfo=info)
    assert read_settings(tmp_path / "a.png") == {}
    with pytest.raises(UserError):
        read_settings(tmp_path / "missing.png")


def test_jpeg_keeps_colour_resolution(tmp_path: Path, picture: Image.Image):
    save_image(picture, tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]


def test_save_makes_the_folder_and_replaces(tmp_path: Path, picture: Image.Image):
    path = tmp_path / "new" / "deeper" / "a.png"
    save_image(Image.new("RGB", (8, 8)), path)
    save_image(picture, path)
    assert difference(open_image(path), picture) == 0
    assert [entry.name for entry in path.parent.iterdir()] == ["a.png"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_save_through_a_link(tmp_path: Path, picture: Image.Image):
    (tmp_path / "real.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    save_image(picture, tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    assert difference(open_image(tmp_path / "real.png"), picture) == 0


class FullDisk(Image.Image):
    """A picture whose writing ends half-way, as on a full disk."""

    def save(self, fp, format=None, **params):  # type: ignore[no-untyped-def, override]
        fp.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_failed_save_keeps_the_old_file(tmp_path: Path, picture: Image.Image):
    path = tmp_path / "a.png"
    save_image(picture, path)
    with pytest.raises(UserError, match=r"cannot write .*a\.png: No space left on device"):
        save_image(FullDisk(), path)
    assert difference(open_image(path), picture) == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_bad_outputs(tmp_path: Path):
    for name in ("a", "a.xyz", "a.jpg.txt", ".png"):
        with pytest.raises(UserError, match=r"ending in \.png, \.jpg, .*, got "):
            prepare_output(tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match="got a folder"):
        prepare_output(tmp_path / "folder.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        prepare_output(tmp_path / "file" / "a.png")
    with pytest.raises(UserError, match="name too long"):
        prepare_output(tmp_path / ("x" * 300 + ".png"))


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that not even root can write to")
def test_unwritable_folder():
    with pytest.raises(UserError, match="cannot write /proc/self/a.png"):
        prepare_output("/proc/self/a.png")


def test_checking_files_needs_no_torch(tmp_path: Path, picture: Image.Image):
    picture.save(tmp_path / "a.png")
    code = "import sys; from ldm.pictures import fitting, reading, writing; reading.open_image(sys.argv[1]);"
    code += "writing.prepare_output(sys.argv[1]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], check=True)
