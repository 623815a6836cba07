"""The page of edit_app.py as visitors meet it: in Chromium and by gradio_client, over a real server."""

from __future__ import annotations

import io
import re
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gradio_client import handle_file
from PIL import Image
from playwright.sync_api import Browser, Page, expect

import edit_app
from app_server import (
    DONE,
    App,
    button,
    client_of,
    downloaded,
    edited,
    field,
    finishing,
    generate,
    generated_and_watched,
    load_example,
    memory,
    section,
    steps_of,
    upload,
    work,
)
from app_server import edit_app as running_app
from ldm.pictures.writing import read_settings, save_image
from ldm.util import run_main
from small_model import sample_picture
from waiting import wait_until

STEPS, QUEUE = 4, 8
MAX_PIXELS = 20_000_000


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    options = ("--steps", str(STEPS), "--queue-size", str(QUEUE), "--max-pixels", str(MAX_PIXELS))
    with running_app(tmp_path_factory.mktemp("served"), *options) as app:
        yield app


@pytest.fixture
def page(browser: Browser, served: App) -> Iterator[Page]:
    page = browser.new_page(locale="en-US")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(served.url)
    expect(button(page, "Generate")).to_be_visible()
    yield page
    page.close()
    foreign = [url for url in asked if not url.startswith((served.url, "data:", "blob:"))]
    assert not foreign, "the page asked for something elsewhere"


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.slow
def test_an_edit_is_watched_downloaded_and_repeated_by_the_api(
    page: Page, served: App, tmp_path: Path
) -> None:
    expect(page.locator(".model").first).to_have_text(
        "Model avatars.safetensors · device cpu · precision fp32"
    )
    expect(page.get_by_text("Name a thing and a colour.")).to_be_visible()  # a tip that fits the model
    load_example(page)
    instruction = field(page, "Instruction").input_value()
    assert instruction
    steps_of(page).fill("20")
    texts, previews = generated_and_watched(page, "Generate")
    steps = [text for text in texts if re.fullmatch(r"Step \d+ of 20 · about \d+ s left", text)]
    assert len(steps) > 1, texts
    assert previews and all(preview.startswith("data:image/png") for (preview,) in previews)
    expect(page.locator(".bar")).to_have_count(0)
    expect(edited(page)).to_be_visible()

    settings = read_settings(downloaded(page, tmp_path / "edited.png"))
    assert settings["edit"] == instruction and settings["steps"] == 20
    assert settings["seed"] == int(field(page, "Seed").input_value())
    page.get_by_role("tab", name="Before / after").click()
    expect(page.locator(".results .picture img:visible")).to_have_count(2)

    client = client_of(served, tmp_path)
    source = page.locator(".picture img").first.get_attribute("src")
    (tmp_path / "input.png").write_bytes(page.request.get(source).body())
    names = ("steps", "seed", "cfg_text", "cfg_image", "sampler", "schedule", "resolution")
    known = client.view_api(print_info=False, return_format="dict")["named_endpoints"]["/edit"]["parameters"]
    assert [one["parameter_name"] for one in known] == ["image", "instruction", *names]
    path, used = client.predict(
        handle_file(str(tmp_path / "input.png")),
        instruction,
        **{name: settings[name] for name in names},
        api_name="/edit",
    )
    assert used == {name: settings[name] for name in (*names, "edit")}
    assert read_settings(path)["seed"] == settings["seed"]
    np.testing.assert_array_equal(pixels(path), pixels(tmp_path / "edited.png"))


@pytest.mark.slow
def test_cancel_stops_the_edit(page: Page, served: App) -> None:
    load_example(page)
    process = served.process.pid
    steps_of(page).fill("20")
    before = work(process)
    generate(page, "add sunglasses")
    of_20 = work(process) - before
    steps_of(page).fill("200")
    button(page, "Generate").click()
    expect(page.locator(".bar span")).to_contain_text("of 200")
    before = work(process)
    button(page, "Cancel").click()
    expect(page.locator(".note")).to_have_text("Cancelled.")
    expect(page.locator(".bar")).to_have_count(0)
    expect(button(page, "Cancel")).to_be_disabled()
    steps_of(page).fill("2")
    generate(page, "add sunglasses")
    assert work(process) - before < 5 * of_20, "the cancelled edit went on"
    expect(edited(page)).to_be_visible()


@pytest.mark.slow
def test_reset_really_resets(page: Page) -> None:
    load_example(page)
    for label, value in (("Text CFG", "2"), ("Image CFG", "1.4"), ("Seed", "7")):
        field(page, label).fill(value)
    steps_of(page).fill("3")
    page.get_by_label("Fix Seed").check()
    page.get_by_label("Randomize CFG").check()
    generate(page, "make him bald")
    expect(section(page, "History of this session")).to_be_visible()

    button(page, "Reset").click()
    expect(page.locator(".picture img")).to_have_count(0)
    for label, value in (("Instruction", ""), ("Text CFG", "1.5"), ("Image CFG", "1.2"), ("Seed", "1371")):
        expect(field(page, label)).to_have_value(value)
    expect(steps_of(page)).to_have_value(str(STEPS))
    expect(page.get_by_label("Randomize Seed")).to_be_checked()
    expect(page.get_by_label("Fix CFG")).to_be_checked()
    expect(button(page, "Download PNG")).to_be_disabled()
    expect(section(page, "History of this session")).to_have_count(0)
    button(page, "Make GIF").click()
    expect(page.locator(".problem")).to_have_text("Generate an edit first.")


@pytest.mark.slow
def test_reset_ends_a_running_edit(page: Page) -> None:
    load_example(page)
    steps_of(page).fill("200")
    button(page, "Generate").click()
    expect(page.locator(".bar span")).to_contain_text("of 200")
    button(page, "Reset").click()
    expect(page.locator(".picture img")).to_have_count(0)
    expect(page.locator(".bar")).to_have_count(0)
    expect(button(page, "Generate")).to_be_enabled()


@pytest.mark.slow
def test_seed_and_cfg_are_fixed_or_random(page: Page) -> None:
    load_example(page)
    steps_of(page).fill("1")
    page.get_by_label("Randomize CFG").check()
    seeds, scales = set(), set()
    for _ in range(3):
        generate(page, "add a moustache")
        seeds.add(field(page, "Seed").input_value())
        scales.add(tuple(float(field(page, name).input_value()) for name in ("Text CFG", "Image CFG")))
    assert len(seeds) > 1 and len(scales) > 1
    assert all(1.2 <= text <= 1.8 and 0.96 <= image <= 1.44 for text, image in scales)
    page.get_by_label("Fix Seed").check()
    page.get_by_label("Fix CFG").check()
    field(page, "Seed").fill("12")
    field(page, "Text CFG").fill("1.25")
    generate(page, "add a moustache")
    expect(field(page, "Seed")).to_have_value("12")
    expect(field(page, "Text CFG")).to_have_value("1.25")


@pytest.mark.slow
def test_an_empty_instruction_shows_the_input(page: Page) -> None:
    button(page, "Generate").click()
    expect(page.locator(".problem")).to_have_text("Choose an input image first.")
    load_example(page)
    field(page, "Instruction").fill("  ")
    button(page, "Generate").click()
    expect(page.locator(".note")).to_have_text("The instruction is empty: this is the input, only resized.")
    expect(edited(page)).to_be_visible()


@pytest.mark.slow
def test_a_value_out_of_range_is_told(page: Page) -> None:
    load_example(page)
    field(page, "Text CFG").fill("99")
    button(page, "Generate").click()
    expect(page.locator(".problem")).to_have_text("Text CFG: expected a number from 0.0 to 30.0.")
    expect(button(page, "Generate")).to_be_enabled()


@pytest.mark.slow
def test_unfit_files_are_refused_and_the_server_stays_well(page: Page, served: App, tmp_path: Path) -> None:
    names = ("bomb.png", "broken.png", "cut.png", "cut.jpg")
    bomb, broken, *cut = (tmp_path / name for name in names)
    Image.new("1", (10_000, 10_000)).save(bomb)
    broken.write_bytes(b"no picture " * 100)
    for path in cut:
        sample_picture().save(path)
        path.write_bytes(path.read_bytes()[:1000])
    before = memory(served.process.pid, "VmHWM")
    for path, reason in (
        (broken, "This is not a picture, or a broken one."),
        (bomb, "The picture is too large: at most 20 million pixels."),
        (cut[0], "This is not a picture, or a broken one."),
    ):
        upload(page, path)
        expect(page.locator(".problem")).to_have_text(reason)
        expect(page.locator(".picture img")).to_have_count(0)
    upload(page, cut[1])
    expect(page.locator(".problem")).to_have_count(0)  # what is read at once is whole
    button(page, "Generate").click()
    expect(page.locator(".problem")).to_have_text("This is not a picture, or a broken one.")
    assert memory(served.process.pid, "VmHWM") - before < 60, "something was decoded"
    load_example(page)
    generate(page, "add sunglasses")
    expect(edited(page)).to_be_visible()


def fill_resolution(page: Page, pixels: int) -> None:
    """Until it stays: a section that has just been opened may set its fields once more."""
    number = page.get_by_role("spinbutton", name=re.compile("Resolution"))
    slider = page.get_by_role("slider", name=re.compile("Resolution"))

    def stays() -> bool:
        number.fill(str(pixels))
        page.wait_for_timeout(400)
        return number.input_value() == slider.input_value() == str(pixels)

    wait_until(stays, f"a resolution of {pixels}")


@pytest.mark.slow
def test_too_little_memory_is_told_and_the_server_stays_well(page: Page, served: App) -> None:
    load_example(page)
    process = served.process.pid
    room = int((memory(process, "VmSize") + 50) * 2**20)
    section(page, "More settings").click()
    fill_resolution(page, 512)
    unlimited = resource.prlimit(process, resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
    try:
        button(page, "Generate").click()
        expect(page.locator(".problem")).to_contain_text("Too little memory to edit at 512 x 512")
    finally:
        resource.prlimit(process, resource.RLIMIT_AS, unlimited)
    fill_resolution(page, 64)
    generate(page, "add sunglasses")
    expect(page.locator(".problem")).to_have_count(0)


@pytest.mark.slow
def test_several_edits_become_a_gif(page: Page) -> None:
    load_example(page)
    for number, instruction in enumerate(("add sunglasses", "make the background orange"), 1):
        generate(page, instruction)
        if number == 1:
            button(page, "Edit again").click()
            expect(page.locator(".note")).to_have_text("The edited image is now the input (edits so far: 1).")
            expect(field(page, "Instruction")).to_have_value("")
    button(page, "Make GIF").click()
    animation = page.locator("img[src$='.gif']")
    expect(animation).to_be_visible()
    frames = Image.open(io.BytesIO(page.request.get(animation.get_attribute("src")).body()))
    durations = []
    for i in range(frames.n_frames):
        frames.seek(i)
        durations.append(frames.info["duration"])
    assert durations.count(max(durations)) == 3  # the input and two edits rest, the rest are fades


@pytest.mark.slow
def test_settings_are_restored_from_a_picture(page: Page, tmp_path: Path) -> None:
    settings = {"edit": "make him angry", "steps": 3, "seed": 4242, "cfg_text": 2.25, "cfg_image": 1.1}
    settings |= {"sampler": "heun", "schedule": "karras", "resolution": 128, "ckpt": "any", "count": "x"}
    save_image(sample_picture(), tmp_path / "saved.png", settings)
    upload(page, tmp_path / "saved.png")
    expect(page.locator(".note")).to_have_text("Settings restored from this picture.")
    expect(field(page, "Instruction")).to_have_value("make him angry")
    for label, value in (("Seed", "4242"), ("Text CFG", "2.25"), ("Image CFG", "1.1")):
        expect(field(page, label)).to_have_value(value)
    expect(steps_of(page)).to_have_value("3")
    expect(page.get_by_label("Fix Seed")).to_be_checked()
    section(page, "More settings").click()
    expect(page.get_by_label("Sampler")).to_have_value("heun")
    expect(page.get_by_label("Noise schedule")).to_have_value("karras")
    with finishing(page):
        button(page, "Generate").click()
    made = read_settings(downloaded(page, tmp_path / "again.png"))
    assert {name: made[name] for name in list(settings)[:8]} == dict(list(settings.items())[:8])


@pytest.mark.slow
def test_surprises_are_tried_at_once_and_kept_in_the_history(page: Page, tmp_path: Path) -> None:
    load_example(page)
    steps_of(page).fill("10")
    _, previews = generated_and_watched(page, "Surprise me")
    assert 4 in map(len, previews)
    thumbnails = page.locator(".thumbnail-item")
    expect(thumbnails).to_have_count(4)
    first = edited(page).get_attribute("src")
    thumbnails.nth(2).click()
    expect(edited(page)).not_to_have_attribute("src", first)
    made = read_settings(downloaded(page, tmp_path / "third.png"))
    expect(field(page, "Instruction")).to_have_value(made["edit"])


@pytest.mark.slow
def test_the_page_speaks_japanese(browser: Browser, served: App) -> None:
    page = browser.new_page(locale="ja-JP")
    page.goto(served.url)
    button(page, "生成").click()
    expect(page.locator(".problem")).to_have_text("先に入力画像を選んでください。")
    for text in ("ことばで画像を編集", "画像をドロップ", "シード値の扱い", "顔は中央に一つ。"):
        expect(page.get_by_text(text).first).to_be_visible()
    expect(page.get_by_label("毎回ランダム").first).to_be_checked()
    button(page, "例を読み込む").click()
    expect(page.locator(".picture img").first).to_be_visible()
    page.get_by_role("spinbutton", name=re.compile("ステップ数")).fill("100")
    button(page, "生成").click()
    expect(page.locator(".bar span")).to_contain_text("ステップ")
    page.close()


@pytest.mark.slow
def test_only_own_files_are_served_and_they_are_removed(browser: Browser, served: App) -> None:
    page = browser.new_page()
    page.goto(served.url)
    load_example(page)
    generate(page, "add sunglasses")
    expect(edited(page)).to_be_visible()
    made = [path for path in served.files.glob("session-*/edited-*.png")]
    assert page.request.get(edited(page).get_attribute("src")).ok
    for other in ("/etc/passwd", str(edit_app.__file__), "http://example.com/a.png", str(served.output)):
        assert page.request.get(f"{served.url}gradio_api/file={other}").status == 403
    page.close()
    wait_until(lambda: not any(path.exists() for path in made), "the end of a visitor's files who has left")


@pytest.mark.slow
def test_a_full_queue_is_told_and_addresses_are_not_fetched(served: App, tmp_path: Path) -> None:
    client = client_of(served, tmp_path)
    save_image(sample_picture(), tmp_path / "input.png")
    picture = handle_file(str(tmp_path / "input.png"))
    steps = [60, *[2] * 19]  # during the first the others come
    jobs = [client.submit(picture, "make him bald", steps=n, api_name="/edit") for n in steps]
    errors = [str(error) for job in jobs if (error := job.exception(DONE / 1000))]
    assert 0 < len(errors) < len(jobs)
    assert all(error.startswith(f"The queue is full ({QUEUE} edits wait).") for error in errors)
    with pytest.raises(Exception, match="expected an uploaded file, got an address"):
        client.predict(
            {"path": "http://example.com/a.png", "meta": {"_type": "gradio.FileData"}}, "", api_name="/edit"
        )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--auth", "secret"), "--auth: expected USER:PASSWORD, got one without"),
        (("--server-port", "{taken}"), "cannot serve at 127.0.0.1, port {taken}: Address already in use"),
        (("--server-port", "70000"), "argument --server-port: expected a whole number from 1 to 65535"),
        (("--server-name", "192.0.2.1"), "cannot serve at 192.0.2.1: Cannot assign requested address"),
        (("--queue-size", "0"), "argument --queue-size: expected a whole number from 1 to 1000, got '0'"),
        (("--max-pixels", "many"), "argument --max-pixels: expected a whole number"),
        (("--language", "fr"), "argument --language: invalid choice: 'fr'"),
        (("--ckpt", "missing.ckpt"), "there is no file missing.ckpt"),
        (("--colour",), "unrecognized arguments: --colour"),
    ],
)
def test_wrong_options_are_one_line_and_exit_2(
    options: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit) as ended:
            run_main(lambda: edit_app.main([option.format(taken=port) for option in options]))
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("error: " + expected.format(taken=port)) and printed.err.count("\n") == 1
    assert "secret" not in printed.err
