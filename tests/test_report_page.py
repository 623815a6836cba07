"""The report of a run as a person meets it, in Chromium, and the contact sheet in it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from ldm.pictures.sheet import GAP
from metrics.curve.curves import make_curves, picture_file, setting_key
from metrics.curve.figure import draw
from metrics.curve.report_page import write_report
from metrics.curve.scale_sheet import CELL, HEADING, TEXT_WIDTH, scale_sheet
from test_plot_metrics import SETTINGS, edit, sdedit

PAIRS = sorted((Path(__file__).parent / "data/avatars_held_out").glob("*/*_0.jpg"))
SCRIPT = "<script>document.title = 'taken'</script><img src=http://127.0.0.1:9/a.png> & \ud800"
SCALES = (1.0, 1.6, 2.2)
WITHOUT = 9  # a sample that no picture was kept of


def rows_of(samples: int) -> list[dict[str, Any]]:
    """Edits whose direction similarity rises from sample to sample, and falls from scale to scale."""
    rows = []
    for sample in range(samples):
        text = json.loads((PAIRS[sample].parent / "prompt.json").read_text())["edit"] if sample else SCRIPT
        rows += [edit(sample, scale, 0.05 * sample - 0.01 * scale, edit=text) for scale in SCALES]
    return rows


def save_pictures(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "pictures").mkdir(parents=True)
    for row in rows:
        before = PAIRS[row["sample"]]
        shutil.copy(before, picture_file(folder, row["sample"]))
        after = before.with_name(before.name.replace("_0", "_1"))
        shutil.copy(after, picture_file(folder, row["sample"], setting_key(row)))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run & 100 % of it"
    rows = rows_of(12)
    save_pictures(folder, [row for row in rows if row["sample"] != WITHOUT])
    curves = make_curves(rows, "<i>ours</i>")
    draw(curves, [folder / "plot.png"])
    scale_sheet(folder, rows).save(folder / "sheet.jpg")
    settings = SETTINGS | {"name": "<i>ours</i>", "vae_ckpt": None, "scales_image": list(SCALES)}
    return write_report(folder, settings, rows, curves, folder / "plot.png", folder / "sheet.jpg")


@pytest.fixture(params=[1280, 390])
def page(request: pytest.FixtureRequest, browser: Browser, report: Path) -> Iterator[Page]:
    """The page from a folder of its own, in a wide and in a phone's window, having asked for nothing else."""
    page = browser.new_page(viewport={"width": request.param, "height": 800})
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: said.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(report.as_uri(), wait_until="networkidle")
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert said == []
    yield page
    page.close()


def test_page_is_whole_at_every_width(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    loaded = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
    assert loaded == [True] * (2 + 12 * 2)
    for setting in ("clip ViT-L-14", "pixels [0, 1]", "vae_ckpt null", "scales_image 1.0, 1.6, 2.2"):
        name, value = setting.split(" ", 1)
        term = page.locator("dt", has_text=re.compile(f"^{name}$"))
        expect(term.locator("xpath=following-sibling::dd")).to_have_text(value)


def test_texts_are_shown_as_they_are(page: Page) -> None:
    assert page.title() == "<i>ours</i>"
    expect(page.get_by_role("heading", level=1)).to_have_text("<i>ours</i>")
    worst = page.locator(".edit .text").nth(6)
    expect(worst).to_have_text(SCRIPT.replace("\ud800", "\ufffd"))
    assert page.locator("script").count() == 0


def test_best_and_worst_are_those_with_pictures(page: Page) -> None:
    shown = page.locator(".edit").all_inner_texts()
    samples = [int(re.search(r"sample (\d+) ", text).group(1)) for text in shown]  # type: ignore[union-attr]
    assert samples == [11, 10, 8, 7, 6, 5, 0, 1, 2, 3, 4, 5]
    assert "direction 0.540 · image 0.460" in shown[0] and "text scale 7.5, image scale 1.0" in shown[0]
    assert "direction -0.022 · image 1.022" in shown[6] and "image scale 2.2" in shown[6]


def test_averages_stand_with_their_bands(page: Page) -> None:
    expect(page.get_by_role("heading", level=3)).to_have_text(
        "<i>ours</i>: means of 12 samples, with bands of 95% confidence"
    )
    lines = [line.split("\t") for line in page.get_by_role("table").inner_text().split("\n")]
    assert lines[0] == ["image scale", "direction", "image", "input to caption", "output to caption"]
    (scale, direction, image, *captions) = lines[2]
    assert (scale, captions) == ("1.6", ["0.2500", "0.1295"])
    for text, mean in ((direction, 0.259), (image, 0.741)):
        middle, low, high = (float(number) for number in re.findall(r"\d\.\d{4}", text))
        assert middle == pytest.approx(mean) and low < mean < high


def test_colours_follow_the_browser(browser: Browser, report: Path) -> None:
    for scheme, light in (("light", True), ("dark", False)):
        page = browser.new_page(color_scheme=scheme)
        page.goto(report.as_uri())
        colours = page.evaluate(
            "(style => [style.backgroundColor, style.color])(getComputedStyle(document.body))"
        )
        paper, ink = (sum(map(int, re.findall(r"\d+", colour))) for colour in colours)
        assert (paper > ink) == light and abs(paper - ink) > 500
        page.close()


def test_a_run_without_pictures_has_a_report(tmp_path: Path) -> None:
    rows = [sdedit(sample, strength, 0.1) for sample in range(2) for strength in (0.3, 0.5)]
    curves = make_curves(rows, SETTINGS["name"])
    Image.new("RGB", (8, 8)).save(tmp_path / "any.png")
    report = write_report(tmp_path, SETTINGS, rows, curves, tmp_path / "any.png", tmp_path / "any.png")
    text = report.read_text()
    assert text.count("No pictures were kept.") == 2 and '<th scope="col">strength</th>' in text
    again = write_report(tmp_path, SETTINGS, rows, curves, tmp_path / "any.png", tmp_path / "any.png")
    assert again.read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["any.png", "report.html"]


def cell(sheet: Image.Image, row: int, column: int) -> Image.Image:
    left, top = TEXT_WIDTH + 2 * GAP + column * (CELL + GAP), HEADING + row * (CELL + GAP)
    return sheet.crop((left, top, left + CELL, top + CELL))


def fitted(file: Path) -> Image.Image:
    """A square picture as a cell shows it."""
    with Image.open(file) as picture:
        return picture.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS)


def test_sheet_has_samples_below_one_another_and_scales_in_order(tmp_path: Path) -> None:
    rows = rows_of(10)[::-1]
    save_pictures(tmp_path, rows)
    missing = picture_file(tmp_path, 2, "t7.5_i1.6")
    missing.unlink()
    sheet = scale_sheet(tmp_path, rows)
    assert sheet.size == (TEXT_WIDTH + 2 * GAP + 4 * (CELL + GAP), HEADING + 8 * (CELL + GAP))
    for row in range(8):
        for column, key in enumerate(("input", "t7.5_i1", "t7.5_i1.6", "t7.5_i2.2")):
            file = picture_file(tmp_path, row, key)
            if file == missing:
                assert cell(sheet, row, column).getcolors() == [(CELL**2, (255, 255, 255))]
            else:
                assert cell(sheet, row, column).tobytes() == fitted(file).tobytes()
        words = sheet.crop((0, HEADING + row * (CELL + GAP), TEXT_WIDTH, HEADING + row * (CELL + GAP) + CELL))
        assert words.convert("L").getextrema()[0] < 50  # an instruction


def test_headings_tell_text_scales_apart_where_they_vary(tmp_path: Path) -> None:
    one = scale_sheet(tmp_path, [edit(0, 1.0, 0.1), edit(0, 1.2, 0.1)])
    two = scale_sheet(tmp_path, [edit(0, 1.0, 0.1, text=5.0), edit(0, 1.0, 0.1)])
    base = scale_sheet(tmp_path, [sdedit(0, 0.3, 0.1), sdedit(0, 0.5, 0.1)])

    def height(sheet: Image.Image) -> int:
        heading = sheet.crop((TEXT_WIDTH + 3 * GAP + CELL, 0, TEXT_WIDTH + 3 * GAP + 2 * CELL, HEADING))
        left, top, right, bottom = heading.convert("L").point(lambda value: 255 - value).getbbox()
        return bottom - top

    assert one.size == two.size == base.size
    assert height(two) > 1.8 * height(one)
    assert one.tobytes() != base.tobytes()
