"""edit_app.py as a process of its own, and the hands of a visitor, for tests that meet it as visitors do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gradio_client import Client
from playwright.sync_api import Locator, Page, expect

from page_server import page_server
from waiting import DEADLINE

ROOT = Path(__file__).parents[1]
DONE = 1000 * DEADLINE  # milliseconds


@dataclass
class App:
    """A running edit_app.py: its address, its temporary files, and what it printed."""

    url: str
    files: Path
    output: Path
    process: subprocess.Popen[bytes]


@contextmanager
def edit_app(folder: Path, *options: str) -> Iterator[App]:
    """Run edit_app.py with the embedded model on a port of its own; ended as a service manager would."""
    output, temporary = folder / "app.log", folder / "tmp"
    temporary.mkdir()
    command = ["edit_app.py", "--device", "cpu", "--config", "configs/avatars/edit.yaml", *options]
    with page_server(command, ROOT, output, TMPDIR=str(temporary)) as (url, process):
        yield App(url, next(temporary.glob("edit_app_*")), output, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0, output.read_text()
        assert not list(temporary.glob("edit_app_*")), "temporary files were left"


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def section(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=re.compile(f"^{name}"))


def field(page: Page, label: str) -> Locator:
    return page.get_by_label(label, exact=True).first


def steps_of(page: Page) -> Locator:
    return page.get_by_role("spinbutton", name=re.compile("Steps"))


def load_example(page: Page) -> None:
    button(page, "Load Example").click()
    # By its name: the picture that was there before is shown until the new one has come.
    expect(page.locator(".picture img").first).to_have_attribute("src", re.compile("example-avatar"))


def upload(page: Page, path: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(path)


@contextmanager
def finishing(page: Page) -> Iterator[None]:
    """Begin an edit in this context; it ends when the page shows the result."""
    source = "document.querySelector('.results .picture img')?.src"
    before = page.evaluate(source)
    yield
    page.wait_for_function(f"before => {source} && {source} !== before", arg=before, timeout=DONE)
    expect(button(page, "Generate")).to_be_enabled()


WATCH = """() => {
    const seen = window.seen = {texts: [], previews: []};
    new MutationObserver(() => {
        const text = document.querySelector(".bar span")?.textContent;
        if (text && !seen.texts.includes(text)) seen.texts.push(text);
        const previews = [...document.querySelectorAll(".previews img")];
        if (previews.length) seen.previews.push(previews.map(preview => preview.src));
    }).observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true});
}"""


def generated_and_watched(page: Page, name: str) -> tuple[list[str], list[list[str]]]:
    """Press that button and wait for the result: texts of the progress bar, and previews, as they came.

    The page itself takes them down: from outside, a busy machine may look only when all is over.
    """
    page.evaluate(WATCH)
    with finishing(page):
        button(page, name).click()
    seen = page.evaluate("window.seen")
    return seen["texts"], seen["previews"]


def client_of(app: App, folder: Path) -> Client:
    """The page's programming interface; pictures come into that folder."""
    options = {"timeout": DEADLINE}
    return Client(app.url, verbose=False, download_files=str(folder), httpx_kwargs=options)


def generate(page: Page, instruction: str) -> None:
    with finishing(page):
        field(page, "Instruction").fill(instruction)
        field(page, "Instruction").press("Enter")


def edited(page: Page) -> Locator:
    return page.locator(".results .picture img").first


def downloaded(page: Page, path: Path) -> Path:
    with page.expect_download() as download:
        button(page, "Download PNG").click()
    download.value.save_as(path)
    return path


def work(process: int) -> float:
    """Seconds of computing so far, which others' work does not lengthen."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def memory(process: int, kind: str) -> float:
    """Megabytes of a process."""
    return int(re.search(rf"{kind}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())[1]) / 1024
