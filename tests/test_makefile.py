"""The Makefile: which packages it asks which index for, and how it refuses a Python that does not suit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
URL = "http://127.0.0.1:9/simple"


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run make on the project's own files in a folder of its own."""
    for name in ("Makefile", "pyproject.toml", "requirements.txt", "requirements-test.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "requirements-no-deps.txt").touch()
    (folder / "scripts").mkdir()
    (folder / "scripts/install_test_tools.sh").touch()
    return subprocess.run(["make", "-C", folder, *words], capture_output=True, text=True)


def installs(folder: Path, *words: str) -> list[str]:
    """What make has pip install for the tests, `echo` being called in place of pip."""
    (folder / ".venv").mkdir()
    (folder / ".venv/made").write_text(f"{folder}\n")
    done = make(folder, ".venv/installed-test", "PIP=echo pip", *words)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("pip ")]


def test_torch_comes_from_the_index_that_is_named(tmp_path: Path) -> None:
    lines = (ROOT / "requirements-test.txt").read_text(encoding="utf-8").splitlines()
    lines += (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    (torch,) = (line for line in lines if line.startswith("torch=="))
    (vision,) = (line for line in lines if line.startswith("torchvision=="))
    assert installs(tmp_path, f"TORCH_INDEX={URL}") == [
        f"pip install --index-url {URL} {torch}",
        "pip install -r requirements.txt",
        "pip install --no-deps -e .",
        f"pip install --index-url {URL} {torch} {vision}",
        "pip install -r requirements-test.txt",
        "pip install --no-deps -r requirements-no-deps.txt",
    ]


def test_without_one_all_packages_come_from_the_usual_index(tmp_path: Path) -> None:
    assert not [line for line in installs(tmp_path) if "--index-url" in line]


def test_another_python_is_refused(tmp_path: Path) -> None:
    python = tmp_path / "python2"
    python.write_text("#!/bin/sh\n[ $1 = --version ] && echo Python 2.7.18 && exit 0\nexit 1\n")
    python.chmod(0o755)
    done = make(tmp_path, "edit", f"PYTHON={python}")
    assert done.returncode == 2 and not (tmp_path / ".venv").exists()
    assert f"error: expected Python 3.10 to 3.14, got Python 2.7.18 as {python}; " in done.stderr
