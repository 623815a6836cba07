"""The download scripts of the weights, against servers here; `test_transfer.py` has what they share."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import random
import shutil
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from file_server import (
    ROOT,
    Fault,
    copy_scripts,
    environment,
    names,
    published_weights,
    run,
    script,
    serving,
    start,
)
from hub_server import hub
from waiting import DEADLINE, wait_until

pytestmark = pytest.mark.slow  # its tests start the scripts

CONTENT = random.Random(0).randbytes(300_000)
OTHER = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
WORDS = {".safetensors": [], ".ckpt": ["--ckpt"]}
SCRIPTS = {
    "download_checkpoints": {"checkpoints/instruct-pix2pix-00-22000": "timbrooks/instruct-pix2pix"},
    "download_pretrained_sd": {
        "stable_diffusion/models/ldm/stable-diffusion-v1/v1-5-pruned-emaonly": "stable-diffusion-v1-5/"
        "stable-diffusion-v1-5",
        "stable_diffusion/models/ldm/stable-diffusion-v1/vae-ft-mse-840000-ema-pruned": "stabilityai/"
        "sd-vae-ft-mse-original",
    },
}


def write_hub(folder: Path, weights: bytes) -> dict[str, bytes]:
    """All published files as repositories, for `hub`; gives file in the project → content."""
    contents = {}
    for stems in SCRIPTS.values():
        for stem, repository in stems.items():
            for suffix in WORDS:
                name = Path(stem + suffix).name
                contents[stem + suffix] = weights + name.encode()
                (folder / repository).mkdir(parents=True, exist_ok=True)
                (folder / repository / name).write_bytes(contents[stem + suffix])
    return contents


def hub_variables(url: str, folder: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": url, "HF_HOME": str(folder / "home")}


def test_the_published_sizes_and_hashes() -> None:
    """Of the files as their repositories have them."""
    told = "".join(f"{Path(file).name} {size} {sha}\n" for file, (size, sha) in published_weights().items())
    assert (
        hashlib.sha256("".join(sorted(told.splitlines(keepends=True))).encode()).hexdigest()
        == "8d4df22bf211b6d271c64aaf0b501ed58771df49dc2791f8ac5ca31029efd3f7"
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("name", list(SCRIPTS))
def test_weights_from_a_hub(tmp_path: Path, name: str, suffix: str) -> None:
    """From any folder; then a part, whole or not, is gone on with; then all is there."""
    project = copy_scripts(tmp_path / "project", CONTENT)
    contents = write_hub(tmp_path / "hub", CONTENT)
    files = [project / (stem + suffix) for stem in SCRIPTS[name]]
    with hub(tmp_path / "hub") as server:
        variables = hub_variables(server.url, tmp_path)
        run(["bash", f"../project/scripts/{name}.sh", *WORDS[suffix]], tmp_path / "hub", None, **variables)
        assert server.ranges == [""] * len(files)
        whole = [file.read_bytes() for file in files]
        for file in files:
            file.rename(f"{file}.part")
        run(script(name, *WORDS[suffix]), project, None, **variables)
        assert len(server.ranges) == len(files)
        for file in files:
            file.unlink()
            Path(f"{file}.part").write_bytes(CONTENT[:1000])
        said = run(script(name, *WORDS[suffix]), project, None, **variables)
        assert server.ranges[len(files) :] == ["bytes=1000-"] * len(files) and "going on at 1.00kB" in said
    said = run(script(name, *WORDS[suffix]), project, None, HF_HUB_OFFLINE="1")
    assert said.count("there already") == len(files)
    for file, content in zip(files, whole, strict=True):
        assert file.read_bytes() == content == contents[str(file.relative_to(project))]
        assert names(file.parent) == sorted(file.name for file in files)


def test_what_the_hub_says_is_compared_first(tmp_path: Path) -> None:
    project, name = copy_scripts(tmp_path / "project", CONTENT), "instruct-pix2pix-00-22000.safetensors"
    write_hub(tmp_path / "hub", OTHER)
    with hub(tmp_path / "hub") as server:
        variables = hub_variables(server.url, tmp_path)
        said = run(script("download_checkpoints"), project, None, code=1, **variables)
    told = hashlib.sha256(OTHER + name.encode()).hexdigest()
    assert said.splitlines()[-1].endswith(f"got {told}; the same command again goes on")
    assert names(project / "checkpoints") == []
    said = run(script("download_checkpoints"), project, None, code=1, HF_HUB_OFFLINE="1")
    assert said.splitlines()[-1].startswith("error: ") and "got HF_HUB_OFFLINE" in said


def test_the_hubs_own_cache_is_used(tmp_path: Path) -> None:
    """With what `huggingface_hub` itself has put there."""
    project, name = copy_scripts(tmp_path / "project", CONTENT), "instruct-pix2pix-00-22000.safetensors"
    write_hub(tmp_path / "hub", CONTENT)
    code = f"import huggingface_hub as h; h.hf_hub_download('timbrooks/instruct-pix2pix', {name!r})"
    with hub(tmp_path / "hub") as server:
        variables = hub_variables(server.url, tmp_path)
        run([sys.executable, "-c", code], tmp_path, None, **variables)
        assert len(server.ranges) == 1
    said = run(script("download_checkpoints"), project, None, **variables, HF_HUB_OFFLINE="1")
    assert "linked to" in said
    assert (project / "checkpoints" / name).read_bytes() == CONTENT + name.encode()
    assert (project / "checkpoints" / name).stat().st_nlink == 2


WEIGHTS = "checkpoints/instruct-pix2pix-00-22000.safetensors"
ADDRESS = "/timbrooks/instruct-pix2pix/resolve/main/instruct-pix2pix-00-22000.safetensors"


def slow_weights(rate: int) -> tuple[dict[str, bytes], dict[str, list[Fault]]]:
    return {ADDRESS: CONTENT + Path(WEIGHTS).name.encode()}, {ADDRESS: [Fault(rate=rate)]}


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGHUP, -1), (signal.SIGKILL, -9)],
)
def test_killed_and_run_again(tmp_path: Path, number: signal.Signals, code: int) -> None:
    project, part = copy_scripts(tmp_path, CONTENT), tmp_path / f"{WEIGHTS}.part"
    with serving(*slow_weights(200_000)) as server:
        with start(script("download_checkpoints"), project, server) as process:
            wait_until(lambda: part.exists() and part.stat().st_size > 20_000, "20 kB of it")
            process.send_signal(number)
            said = process.communicate(timeout=DEADLINE)[0]
        assert process.returncode == code and "Traceback" not in said
        assert said.splitlines()[1:] == (["interrupted"] if number == signal.SIGINT else [])
        reached = part.stat().st_size
        assert 0 < reached < len(CONTENT) and names(part.parent) == [part.name]
        server.faults.clear()
        run(script("download_checkpoints"), project, server)
        assert server.asked == [(ADDRESS, 0), (ADDRESS, reached)]
    assert (tmp_path / WEIGHTS).read_bytes() == server.files[ADDRESS] and len(names(part.parent)) == 1


def test_killed_over_and_over(tmp_path: Path) -> None:
    """From before the first byte to the moments around the rename."""
    project, part = copy_scripts(tmp_path, CONTENT), tmp_path / f"{WEIGHTS}.part"
    with serving(*slow_weights(1_000_000)) as server:
        whole = len(server.files[ADDRESS])
        for reached in (0, 1, 100_000, 200_000, whole):
            with start(script("download_checkpoints"), project, server) as process:
                wait_until(
                    lambda reached=reached: (
                        (tmp_path / WEIGHTS).exists() or (part.exists() and part.stat().st_size >= reached)
                    ),
                    f"{reached} bytes of it",
                )
                process.kill()
        run(script("download_checkpoints"), project, server)
    assert (tmp_path / WEIGHTS).read_bytes() == server.files[ADDRESS] and len(names(part.parent)) == 1


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    project = copy_scripts(tmp_path, CONTENT)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # rows and columns
    with serving(*slow_weights(500_000)) as server:
        env = environment(server)
        subprocess.run(script("download_checkpoints"), cwd=project, env=env, stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 10_000)
    os.close(ours)
    assert b"instruct-pix2pix-00-22000.safetensors: " in shown and b"k/300k [" in shown


ALL = ["download_checkpoints", "download_pretrained_sd", "download_data"]


@pytest.mark.parametrize("name", ALL)
def test_help_and_wrong_usage(name: str) -> None:
    said = run(script(name, "--help"), ROOT, None)
    assert said.startswith(f"usage: bash scripts/{name}.sh") and "HF_ENDPOINT" in said
    said = run(script(name, "--bogus"), ROOT, None, code=2)
    assert said == "error: unrecognized arguments: --bogus (--help lists all options)\n"


@pytest.mark.parametrize("name", ALL)
def test_without_the_hubs_package(tmp_path: Path, name: str) -> None:
    """One line says what to install; the help needs nothing."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    said = run(script(name), ROOT, None, code=1, PYTHON=str(bare))
    assert said.startswith("error: expected the package ") and said.count("\n") == 1
    assert said.endswith(" -m pip install huggingface_hub\n")
    assert run(script(name, "-h"), ROOT, None, PYTHON=str(bare)).startswith("usage: ")


def test_the_python_of_the_checkout_goes_first(tmp_path: Path) -> None:
    project = copy_scripts(tmp_path, CONTENT)
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/python").symlink_to(shutil.which("echo") or pytest.fail("there is no echo"))
    assert (
        run(script("download_data", "--jobs", "2"), project, None, PYTHON="")
        == "-m ldm.downloads data --jobs 2\n"
    )
