"""The commands and snippets of a README, and a folder with all that they name, small, in which they run."""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

import benchmark_files
import file_server
from dataset_creation.text.instructions import EXAMPLES_FILE
from ldm import editor
from ldm.files import ROOT
from page_server import page_server
from pair_runs import write_models
from small_model import write_small_model
from waiting import DEADLINE

SAMPLE = Path(__file__).parent / "data" / "avatars_held_out"
SHELL = ("", "bash", "sh", "console")  # what a block of command lines is marked as

# --- Reading ------------------------------------------------------------------------------------------------

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"(^|\s+)#\s.*$", re.MULTILINE)
# In a sentence, what begins so is a command for the reader; other words of code name a thing.
INLINE = re.compile(r"(?:python|bash|pip|make|npm|tensorboard|torchrun) .+|\w+/\S+\.py -.+")


@dataclass(frozen=True)
class Block:
    """A block of code without its comments and empty lines; a line and those it goes on in are one."""

    language: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """A command line, or a snippet in another language, and the words that tell which it is."""

    language: str
    text: str
    words: tuple[str, ...]


def _block(language: str, code: str) -> Block:
    code = COMMENT.sub("", code)
    if language in SHELL:
        code = re.sub(r"\s*\\\n\s*", " ", code)
    return Block(language, tuple(line.rstrip() for line in code.splitlines() if line.strip()))


def code_blocks(text: str) -> list[Block]:
    """The fenced blocks of a Markdown text, in order."""
    return [_block(*found) for found in BLOCK.findall(text)]


def commands(text: str) -> list[Command]:
    """What a Markdown text tells its reader to run, in order, each once."""
    found: list[Command] = []
    end = 0
    for match in BLOCK.finditer(text):
        found += _inline(text[end : match.start()])
        found += _commands_of(_block(*match.groups()))
        end = match.end()
    return list(dict.fromkeys([*found, *_inline(text[end:])]))


def _inline(prose: str) -> list[Command]:
    spans = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))
    lines = (span for span in spans if INLINE.fullmatch(span))
    return [_line(f"python {line}" if re.match(r"\w+/", line) else line) for line in lines]


def _line(text: str) -> Command:
    return Command("shell", text, tuple(shlex.split(text)))


def _commands_of(block: Block) -> list[Command]:
    if block.language in SHELL:
        return [_line(part) for line in block.lines for part in line.split(" && ")]
    if block.language == "text":  # what a program says
        return []
    code = "\n".join(block.lines)
    return [Command(block.language, code, tuple(re.findall(r"\w+", code)))]


# --- Running ------------------------------------------------------------------------------------------------

SD = "stable_diffusion/models/ldm/stable-diffusion-v1"
IP2P_FILE = "checkpoints/instruct-pix2pix-00-22000.safetensors"
SD_FILE, VAE_FILE = f"{SD}/v1-5-pruned-emaonly.safetensors", f"{SD}/vae-ft-mse-840000-ema-pruned.safetensors"
HUB = {
    IP2P_FILE: "timbrooks/instruct-pix2pix",
    SD_FILE: "stable-diffusion-v1-5/stable-diffusion-v1-5",
    VAE_FILE: "stabilityai/sd-vae-ft-mse-original",
}
LINKED = """
    benchmarks configs dataset_creation metrics scripts stable_diffusion/configs stable_diffusion/ldm
    edit_app.py edit_cli.py edit_dataset.py main.py prompt_app.py
    requirements.txt requirements-test.txt requirements-no-deps.txt environment.yaml pyproject.toml
    LICENSE Makefile NOTICE README.md
""".split()


def write_workplace(folder: Path) -> None:
    """The project's files as links, and small ones of what is downloaded, built or the reader's own.

    Links are to none of the places that commands write to.
    """
    (folder / SD).mkdir(parents=True)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    for name in ("imgs/example.jpg", "checkpoints/avatars.safetensors", "checkpoints/README.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "imgs/example.jpg", folder / "photo.jpg")
    _write_models(folder)
    _write_data(folder)


def _write_models(folder: Path) -> None:
    """Also small.yaml, text.yaml, clip.json and weights to them, which commands are shortened with."""
    write_models(folder)
    write_small_model(folder)
    for name, weights in ((IP2P_FILE, "small"), (SD_FILE, "text"), (VAE_FILE, "text")):
        shutil.copy(folder / f"{weights}.safetensors", folder / name)


def _write_data(folder: Path) -> None:
    shutil.copytree(SAMPLE, folder / "data/avatars/train")  # the latent cache is written there
    held_out = [f"avatars/{name}" for name in ("identities", "combinations", "wordings", "style")]
    for name in (*held_out, "mine", "clip-filtered-dataset"):
        (folder / "data" / name).symlink_to(SAMPLE)
    benchmark_files.write_files(folder)
    (folder / "captions.json").rename(folder / "local_captions.json")
    pictures = [benchmark_files.png(benchmark_files.picture(i)) for i in range(11)]
    names = ("input_image", "edit_prompt", "edited_image")
    pairs = [dict(zip(names, (pictures[i], f"make it {i}", pictures[i + 1]), strict=True)) for i in range(10)]
    benchmark_files.write(folder / "pairs.parquet", pairs)
    # A folder of a hub dataset's name is read in its place.
    hub = {
        "fusing/instructpix2pix-1000-samples": "pairs",
        "osunlp/MagicBrush": "magicbrush",
        "facebook/emu_edit_test_set": "emu",
    }
    for name, file in hub.items():
        (folder / name).mkdir(parents=True)
        (folder / f"{file}.parquet").rename(folder / name / f"{file}.parquet")
    captions = [json.loads(line)["input"] for line in EXAMPLES_FILE.read_text().splitlines()[:2]]
    (folder / "captions.txt").write_text("".join(f"{caption}\n" for caption in captions))
    benchmark_files.write(folder / "captions.parquet", [{"caption": caption} for caption in captions])


@contextmanager
def inside(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Work in that folder, and without the published weights, as in a fresh checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(editor, "PUBLISHED", folder / "none.ckpt")
        yield patch


def run_program(folder: Path, words: Sequence[str], *, parse_only: bool = False) -> None:
    """Run a command line in a folder as a shell would, but in this process; it must end well.

    Args:
        words: ``python``, the program's path and its arguments.
        parse_only: it ends when it has read its command line.
    """
    python, *argv = words
    assert python == "python"
    parse = argparse.ArgumentParser.parse_args

    def parse_and_end(*args: object, **kwargs: object) -> None:
        parse(*args, **kwargs)
        sys.exit()

    with inside(folder) as patch:
        patch.setattr(sys, "argv", argv)
        if parse_only:
            patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as end:
            assert not end.code, f"exit code {end.code}"
        else:
            assert not parse_only, "the program has no parser"


def run_shell(folder: Path, command: str, env: Mapping[str, str] = os.environ) -> None:
    """Run a line in Bash, with the programs of this Python's environment first; it must end well."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**env, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stdout


@contextmanager
def page(folder: Path, words: Sequence[str]) -> Iterator[str]:
    """The address of the page that ``python PROGRAM …`` serves on a free port; ended by SIGTERM."""
    log = folder / "page.log"
    with page_server(words[1:], folder, log) as (url, process):
        yield url
        process.terminate()
        assert process.wait(DEADLINE) in (0, -signal.SIGTERM), log.read_text()


# --- Servers ------------------------------------------------------------------------------------------------


@contextmanager
def download_hosts(folder: Path) -> Iterator[file_server.FileServer]:
    """The download scripts as a project of their own, and the hosts of what they fetch, a few bytes each."""
    file_server.copy_scripts(folder)
    names = {name: Path(name).name for name in HUB}
    files = {f"/{hub}/resolve/main/{names[name]}": names[name].encode() for name, hub in HUB.items()}
    for name in ("gpt-generated-prompts.jsonl", "human-written-prompts.jsonl"):
        files[f"/{name}"] = EXAMPLES_FILE.read_bytes()
    example = json.loads((SAMPLE / "seeds.json").read_text())[0]
    archive = shutil.make_archive(str(folder / "shard"), "zip", SAMPLE, example[0])
    for name in ("clip-filtered-dataset", "random-sample-dataset"):
        files[f"/{name}/shard-00.zip"] = Path(archive).read_bytes()
        files[f"/{name}/seeds.json"] = json.dumps([example]).encode()
    files |= file_server.hub_parquet()
    with file_server.serving(files) as server:
        yield server


class TuningServer(ThreadingHTTPServer):
    """As much of OpenAI's API as a fine-tuning is begun with: files and jobs.

    Attributes:
        url: its address, with its ``/v1``.
        posted: path → body of what came.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Tuning)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.posted: dict[str, bytes] = {}


class _Tuning(BaseHTTPRequestHandler):
    server: TuningServer

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        self.server.posted[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        answer = json.dumps({"id": "file-1", "object": "file"}).encode()
        self.send_response(200)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(answer)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(answer)


@contextmanager
def tuning_server() -> Iterator[TuningServer]:
    server = TuningServer()
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
