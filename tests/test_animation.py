"""Animations and sheets of edits, read back by Pillow; and the suggestions that they often show."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from einops import reduce
from PIL import Image, ImageFont, ImageSequence

from dataset_creation.avatars import wordings
from dataset_creation.avatars.styles import styles
from ldm.app.about import About
from ldm.editor import CONFIG, EMBEDDED_CONFIG
from ldm.pictures.animation import (
    FADE,
    FADE_STEPS,
    HOLD,
    LEAST_SIDE,
    LINES,
    MARGIN,
    MOST_SIDE,
    captioned,
    save_animation,
    sheet_of,
)
from ldm.pictures.typesetting import wrapped
from ldm.util import UserError

CAPTIONS = ["input", "make it snow"]
MEGABYTE = 10**6


def photograph(seed: int, side: int = 512) -> Image.Image:
    """Soft shapes with a fine texture, about as hard to compress as a photograph."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    shapes = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)).astype(float)
    texture = random.normal(0, 6, (side, side, 1))
    return Image.fromarray((shapes + texture).clip(0, 255).astype(np.uint8))


def read(path: Path) -> tuple[list[np.ndarray], list[int], int]:
    """Frames [H, W, 3], their milliseconds, and how often they are repeated (0: for ever)."""
    with Image.open(path) as image:
        frames, durations = [], []
        for frame in ImageSequence.Iterator(image):
            frames.append(np.asarray(frame.convert("RGB")).astype(float))
            durations.append(frame.info["duration"])
        return frames, durations, image.info["loop"]


def distance(a: np.ndarray, b: object) -> float:
    """Mean difference of areas of 5x5 pixels, so that dithering is seen from afar as by the eye."""
    areas = reduce(a - np.asarray(b), "(h 5) (w 5) c -> h w c", "mean")
    return float(np.abs(areas).mean())


@pytest.mark.parametrize("suffix", [pytest.param(".gif", marks=pytest.mark.slow), ".webp"])
def test_pictures_stay_and_fade_into_each_other_for_ever(tmp_path: Path, suffix: str):
    pictures = [photograph(seed, 320) for seed in range(2)]
    save_animation(pictures, CAPTIONS, tmp_path / f"new/all{suffix}")
    frames, durations, loop = read(tmp_path / f"new/all{suffix}")
    assert durations == [HOLD, *[FADE] * FADE_STEPS] * 2 and loop == 0
    stills = captioned(pictures, CAPTIONS)
    for i, (still, following) in enumerate(zip(stills, [*stills[1:], stills[0]], strict=True)):
        first = i * (1 + FADE_STEPS)
        assert distance(frames[first], still) < 3, "but for the colours that the format has"
        steps = frames[first : first + FADE_STEPS + 1]
        away = [distance(step, still) for step in steps]
        near = [distance(step, following) for step in steps]
        assert away == sorted(away) and near == sorted(near, reverse=True)
        assert away[0] < near[0] and away[-1] > near[-1]


def test_single_picture(tmp_path: Path):
    save_animation([photograph(0, 256)], ["input"], tmp_path / "one.GIF")
    with Image.open(tmp_path / "one.GIF") as image:
        assert image.n_frames == 1


@pytest.mark.slow
def test_each_edit_takes_less_than_a_megabyte(tmp_path: Path):
    save_animation([photograph(seed) for seed in range(2)], CAPTIONS, tmp_path / "chain.gif")
    assert (tmp_path / "chain.gif").stat().st_size < 2 * MEGABYTE


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((64, 64), (LEAST_SIDE, LEAST_SIDE)),
        ((64, 128), (LEAST_SIDE // 2, LEAST_SIDE)),
        ((320, 384), (320, 384)),
        ((1536, 768), (MOST_SIDE, MOST_SIDE // 2)),
    ],
)
def test_pictures_are_shown_at_a_size_that_can_be_read(size: tuple[int, int], shown: tuple[int, int]):
    picture = photograph(0).resize(size)
    cells = captioned([picture, picture], ["", "make it snow " * 20])
    assert cells[0].size == cells[1].size and cells[0].width == shown[0]
    strips = [np.asarray(cell)[shown[1] :] for cell in cells]
    assert (strips[0] == 255).all() and (strips[1] < 128).any(), "text, where there is one"
    enlarged = picture.resize(shown, Image.Resampling.BICUBIC)
    assert (np.asarray(cells[1])[: shown[1]] == np.asarray(enlarged)).all(), "below the picture"
    assert (strips[1][:, :2] == 255).all() and (strips[1][:, -2:] == 255).all(), "not cut at the sides"
    assert (strips[1][-1] == 255).all(), "nor below"


@pytest.mark.parametrize(
    "text",
    [
        "make it red",
        "a" * 80,
        "one " * 60,
        "",
        "two\nlines",
        "сделай его зелёным",
        "背景を青くしてください" * 3,
    ],
)
def test_captions_are_wrapped_to_the_width(text: str):
    font = ImageFont.load_default(16)
    lines = wrapped(text, font, 100, LINES)
    assert all(font.getlength(line) <= 100 for line in lines) and len(lines) <= LINES
    whole = "".join(text.split())
    shown = "".join(lines).replace(" ", "")
    assert shown == whole or (shown.endswith("…") and whole.startswith(shown[:-1]))
    assert not (shown.endswith("…") and len(lines) < LINES)


def test_words_stay_whole_where_they_fit():
    font = ImageFont.load_default(16)
    assert wrapped("green background", font, 100, 3) == ["green", "background"]


def test_a_sheet_holds_all_in_rows():
    pictures = [photograph(seed, 256) for seed in range(5)]
    cells = captioned(pictures, list("abcde"))
    picture = np.asarray(sheet_of(pictures, list("abcde"), columns=3))
    width, height = (side + MARGIN for side in cells[0].size)
    assert picture.shape == (2 * height + MARGIN, 3 * width + MARGIN, 3)
    for i, cell in enumerate(cells):
        top, left = i // 3 * height + MARGIN, i % 3 * width + MARGIN
        assert (picture[top : top + cell.height, left : left + cell.width] == np.asarray(cell)).all()
    assert (picture[height + MARGIN :, 2 * width + MARGIN :] == 255).all(), "no sixth"


@pytest.mark.parametrize("name", ["all.png", "all"])
def test_other_formats_are_refused(tmp_path: Path, name: str):
    with pytest.raises(UserError, match="expected an animation ending in .gif or .webp, got"):
        save_animation([photograph(0, 64)], [""], tmp_path / name)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "taken.gif").mkdir()
    with pytest.raises(UserError, match="cannot write .*taken.gif: Is a directory"):
        save_animation([photograph(0, 64)], [""], tmp_path / "taken.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.gif"]


# --- suggestions ---


@pytest.mark.parametrize("config", [EMBEDDED_CONFIG, CONFIG])
def test_suggestions_are_drawn_by_seed(config: Path):
    about = About.from_config(config)
    known = about.suggestions
    assert len(set(known)) == len(known) >= 20
    drawn = about.draw(5, seed=3)
    assert len(set(drawn)) == 5 and set(drawn) <= set(known)
    assert drawn == about.draw(5, seed=3) != about.draw(5, seed=4)
    assert sorted(about.draw(99, seed=3)) == sorted(known)


def test_avatars_are_asked_for_in_words_of_the_training():
    known_by_kind = [*wordings.TRAIN.values(), *wordings.EXPRESSIONS.values()]
    texts = [template for templates in known_by_kind for template in templates]
    texts += [word for reference in wordings.REFERENCES for word in reference]
    for style in styles().values():
        for attribute, values in style.attributes.items():
            texts += [attribute, *values, *(value.text for value in values.values())]
    known = set(re.findall(r"[a-z-]+", " ".join(texts)))
    words = set(re.findall(r"[a-z-]+", " ".join(About.from_config(EMBEDDED_CONFIG).suggestions)))
    assert words - known == set()
