"""An edit, the page and a training as they are on every system: here, and without what Linux alone has.

`pytest -m smoke` runs these tests as they stand: what macOS and Windows are tried with. The others run in a
Python from which `other_system/sitecustomize.py` takes names; it fails an unguarded use, and no more: paths,
files that are open and encodings are this system's still.
"""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

import dataset_creation
import ldm
import metrics
from page_server import page_server
from tiny_training import autoencoder_config, edit_config, write_dataset

ROOT = Path(__file__).parents[1]
OTHER_SYSTEM = {"PYTHONPATH": str(Path(__file__).parent / "other_system")}
EMBEDDED = ("--config", "configs/avatars/edit.yaml", "--device", "cpu")
NOT_VALIDATED = "lightning.trainer.limit_val_batches=0"
END = 600.0  # seconds that a program may take

pytestmark = pytest.mark.slow
on_each = pytest.mark.parametrize(
    "env",
    [
        pytest.param({}, id="this system", marks=pytest.mark.smoke),
        pytest.param(
            OTHER_SYSTEM,
            id="another one",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="is another one"),
        ),
    ],
)


def run(env: dict[str, str], *words: object) -> str:
    """Run a Python with that environment in the project's folder, to a good end; what it says."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=END,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@on_each
def test_an_edit(env: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "眼鏡.jpg"
    options = ("--input", "imgs/example.jpg", "--output", output, "--edit", "眼鏡をかける", "--steps", 2)
    said = run(env, "edit_cli.py", *EMBEDDED, *options)
    assert "wrote" in said and Image.open(output).size == (64, 64)


@on_each
def test_an_edit_by_the_page(env: dict[str, str], tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    with page_server(("edit_app.py", *EMBEDDED), ROOT, tmp_path / "log", **env) as (url, _):
        client = Client(url, download_files=tmp_path, verbose=False)
        picture = handle_file("imgs/example.jpg")
        path, settings = client.predict(picture, "add a hat", steps=2, api_name="/edit")
    assert Image.open(path).size == (64, 64) and settings["steps"] == 2


@on_each
def test_a_training_that_goes_on(env: dict[str, str], tmp_path: Path) -> None:
    """The pictures of the last one come from a process of its own, which Windows and macOS start anew."""
    dataset = write_dataset(tmp_path / "dataset")
    logs = tmp_path / "logs"
    autoencoder = logs / "autoencoder_a" / "checkpoints" / "last.ckpt"
    for name, config in {
        "autoencoder": autoencoder_config(dataset, steps=1),
        "edit": edit_config(dataset, autoencoder, steps=1),
    }.items():
        OmegaConf.save(config, tmp_path / f"{name}.yaml")
        words = ("main.py", "-n", "a", "-l", logs, "-b", tmp_path / f"{name}.yaml", "--train", NOT_VALIDATED)
        run(env, *words)
    last = logs / "edit_a" / "checkpoints" / "last.ckpt"
    before = last.stat().st_mtime_ns
    run(env, *words, "--max_steps", 2, "data.params.num_workers=1")
    assert last.stat().st_mtime_ns > before


def test_every_module_imports() -> None:
    names = ["edit_cli", "edit_app", "prompt_app", "main", "edit_dataset"]
    for package in (ldm, metrics, dataset_creation):
        found = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
        names += [module.name for module in found]
    assert "ldm.data.json_lines" in names and "ldm.training.saving" in names
    run(OTHER_SYSTEM, "-c", "".join(f"import {name}\n" for name in names))


@pytest.mark.parametrize(
    ("use", "error"),
    [
        ("import fcntl", "No module named 'fcntl'"),
        ("import signal; signal.SIGUSR1", "no attribute 'SIGUSR1'"),
        ("import os; os.sysconf", "no attribute 'sysconf'"),
        ("import pathlib; pathlib.Path('/proc/self/stat').read_text()", "No such file"),
    ],
)
def test_what_is_hidden(use: str, error: str) -> None:
    ours = str(ROOT / "ours.py")  # a file of the project by its name
    code = f"exec(compile({use!r}, {ours!r}, 'exec'), {{'__file__': {ours!r}}})"
    run({}, "-c", code)
    with pytest.raises(AssertionError, match=error):
        run(OTHER_SYSTEM, "-c", code)
