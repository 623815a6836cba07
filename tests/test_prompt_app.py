"""The page of prompt_app.py as a person meets it: in Chromium, over a real server with a small model."""

from __future__ import annotations

import re
import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

import prompt_app
from dataset_creation.text.instructions import EXAMPLES_FILE, read_examples, validated
from language_model_server import MODEL, language_model_server
from ldm.data.formats import Triple
from ldm.files import ROOT
from ldm.util import run_main
from page_server import page_server

KEY = "key-that-is-not-shown"
OWN_CAPTIONS = [example.caption for example in read_examples(EXAMPLES_FILE)]


# Notes when the button begins to say that it asks, and when it ends.
WATCH_ASKING = """() => {
    const asking = window.asking = [];
    new MutationObserver(() => {
        const names = [...document.querySelectorAll("button")].map(button => button.textContent.trim());
        if (names.includes("Asking …") === (asking.length % 2 === 0)) asking.push(Date.now());
    }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


@dataclass
class App:
    """A running prompt_app.py: the address of its page, of its language model, and what it printed."""

    url: str
    model_url: str
    output: Path


@contextmanager
def app(folder: Path, model_url: str, *options: str) -> Iterator[App]:
    """Run prompt_app.py with the key in its environment, on a port of its own."""
    output = folder / "app.log"
    command = ["prompt_app.py", "--openai-model", MODEL, "--openai-base-url", model_url, "--shots", "2"]
    with page_server([*command, *options], ROOT, output, OPENAI_API_KEY=KEY) as (url, _):
        yield App(url, model_url, output)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("served")
    with language_model_server(folder / "model.log", KEY) as model_url, app(folder, model_url) as running:
        yield running


@pytest.fixture
def page(browser: Browser, served: App) -> Iterator[Page]:
    page = browser.new_page()
    page.goto(served.url)
    expect(field(page, "Caption")).to_be_visible()
    yield page
    page.close()


def field(page: Page, label: str) -> Locator:
    return page.get_by_label(label, exact=True)


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def outcome(page: Page) -> tuple[str, str, str]:
    """Instruction, new caption and problem that the page shows, once it is done with asking."""
    done = "() => document.querySelector('.problem') || document.querySelectorAll('textarea')[2].value"
    page.wait_for_function(done)
    expect(button(page, "Generate")).to_be_enabled()
    problems = page.get_by_role("alert").all_inner_texts()
    return (
        field(page, "Instruction").input_value(),
        field(page, "Edited caption").input_value(),
        *problems,
        "",
    )


@pytest.mark.slow
def test_generate_shows_the_edit_or_why_there_is_none(page: Page) -> None:
    kept = 0
    for number, caption in enumerate(OWN_CAPTIONS[4:16]):
        field(page, "Caption").fill(caption)
        if number % 2:
            field(page, "Caption").press("Enter")
        else:
            button(page, "Generate").click()
        instruction, output, problem, *_ = outcome(page)
        if problem:
            assert problem.startswith("Not kept, ")
            assert instruction == output == ""
            # An answer that came whole is shown as it came.
            assert "cut off" in problem or re.search(r'\n\{\s*"edit"', problem), problem
        else:
            assert validated(Triple(caption, instruction, output)) == Triple(caption, instruction, output)
            kept += 1
        if kept and number:
            break
    assert kept, "none of the model's answers was kept"
    button(page, "Clear").click()
    for label in ("Caption", "Instruction", "Edited caption"):
        expect(field(page, label)).to_have_value("")
    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.slow
def test_an_unfit_caption_gets_its_reason(page: Page) -> None:
    button(page, "Generate").click()
    assert outcome(page) == ("", "", "Not kept, empty: the caption is empty", "")
    field(page, "Caption").fill("very " * 90 + "long")
    field(page, "Caption").press("Enter")
    assert re.match(r"Not kept, over-long: the caption has \d+ tokens", outcome(page)[2])


@pytest.mark.slow
def test_random_input_example_and_clear(page: Page) -> None:
    button(page, "Generate").click()
    expect(page.get_by_role("alert")).to_be_visible()
    button(page, "Random Input").click()
    expect(page.get_by_role("alert")).to_have_count(0)  # it was not about this caption
    assert field(page, "Caption").input_value() in OWN_CAPTIONS

    page.get_by_text(OWN_CAPTIONS[2], exact=True).click()
    expect(field(page, "Caption")).to_have_value(OWN_CAPTIONS[2])
    button(page, "Clear").click()
    expect(field(page, "Caption")).to_have_value("")


@pytest.mark.slow
def test_two_visitors_are_answered_at_once(page: Page, browser: Browser, served: App) -> None:
    second = browser.new_page()
    second.goto(served.url)
    for visitor, caption in ((page, "a tower on a rock"), (second, "a fox in a forest")):
        field(visitor, "Caption").fill(caption)
        visitor.evaluate(WATCH_ASKING)
    for visitor in (page, second):
        field(visitor, "Caption").press("Enter")
    for visitor in (page, second):
        assert any(outcome(visitor))
    times = [visitor.evaluate("window.asking") for visitor in (page, second)]
    assert max(begin for begin, _ in times) < min(end for _, end in times), times
    second.close()


@pytest.mark.slow
def test_another_caption_ends_the_request(page: Page) -> None:
    field(page, "Caption").fill("a tower on a hill")
    field(page, "Caption").press("Enter")
    expect(button(page, "Asking …")).to_be_disabled()
    field(page, "Caption").fill("a tower on a hill in rain")
    expect(button(page, "Generate")).to_be_enabled()
    page.wait_for_timeout(2000)  # longer than most answers take
    assert field(page, "Instruction").input_value() == field(page, "Edited caption").input_value() == ""


@pytest.mark.slow
def test_page_names_model_and_server_and_is_whole_offline_without_the_key(
    browser: Browser, served: App
) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 700})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(served.url, wait_until="networkidle")
    expect(page.get_by_text(f"Model {MODEL} · chat · {served.model_url}", exact=True)).to_be_visible()
    assert all(url.startswith((served.url, "data:")) for url in asked), asked
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    with urllib.request.urlopen(served.url + "config") as config:
        texts = [page.content(), config.read().decode(), served.output.read_text()]
    assert MODEL in texts[0] and MODEL in texts[1]
    assert not any(KEY in text for text in texts)
    page.close()


@pytest.mark.slow
def test_stopped_server_is_told_after_signing_in(browser: Browser, tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("a stork on a roof\n\n")
    options = ("--captions", str(captions), "--auth", "ann:first-word", "--auth", "bob:second-word")
    with language_model_server(tmp_path / "model.log") as model_url:
        pass  # a server that was there
    with app(tmp_path, model_url, *options) as running:
        page = browser.new_page()
        page.goto(running.url)
        page.get_by_label("username").fill("bob")
        page.get_by_label("password").fill("second-word")
        page.get_by_role("button", name="Login").click()
        button(page, "Random Input").click()
        expect(field(page, "Caption")).to_have_value("a stork on a roof")
        button(page, "Generate").click()
        assert outcome(page)[:3] == (
            "",
            "",
            f"No answer from {model_url}: Connection error. All connection attempts failed",
        )
        assert KEY not in page.content() + running.output.read_text()
        page.close()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "expected the name of a language model: --openai-model MODEL"),
        (("m", "--auth", "secret"), "--auth: expected USER:PASSWORD, got one without"),
        (("m", "--captions", "missing.txt"), "captions: expected a file, or a dataset on the hub"),
        (("m", "--captions", "{empty}"), "captions {empty}: expected at least one, got none"),
        (
            ("m", "--server-port", "{taken}"),
            "cannot serve at 127.0.0.1, port {taken}: Address already in use",
        ),
        (("m", "--server-port", "70000"), "argument --server-port: expected a whole number from 1 to 65535"),
        (("m", "--server-name", "192.0.2.1"), "cannot serve at 192.0.2.1: Cannot assign requested address"),
    ],
)
def test_wrong_options_are_one_line_and_exit_2(
    options: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        values = {"empty": str(tmp_path / "empty.txt"), "taken": str(taken.getsockname()[1])}
        monkeypatch.setattr(sys, "argv", ["prompt_app.py", *(option.format(**values) for option in options)])
        with pytest.raises(SystemExit) as ended:
            run_main(prompt_app.main)
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("error: " + expected.format(**values))
    assert printed.err.count("\n") == 1
    assert "secret" not in printed.err
