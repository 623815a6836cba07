"""The package: a wheel of this checkout, installed where that is not seen, used from an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm.commands import COMMANDS
from ldm.editor import EMBEDDED, EMBEDDED_CONFIG, ImageEditor
from tiny_training import autoencoder_config, edit_config, write_dataset
from training_runs import program, saved

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
# What the wheel has of the checkout, and where; of the rest only single files.
FOLDERS = {
    "stable_diffusion/ldm": "ldm",
    "stable_diffusion/configs": "ip2p/stable_diffusion/configs",
    **{name: f"ip2p/{name}" for name in ("configs", "dataset_creation", "metrics")},
}


def run(*command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), env={**os.environ, **variables}, capture_output=True, text=True, timeout=300
    )


def tracked() -> list[str]:
    """Every file that git tracks or would add."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = run("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    assert not listing.returncode, listing.stderr
    return [name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout in which other things lie, as they do on a developer's machine."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    litter = (
        "checkpoints/other.ckpt",
        "dataset_creation/avatars/node_modules/a.js",
        "metrics/__pycache__/a.pyc",
    )
    for name in (*tracked(), *litter):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name) if name not in litter else (source / name).touch()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    built = run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", output, source)
    assert not built.returncode, built.stdout + built.stderr
    (file,) = output.iterdir()
    return file


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and a folder to work in that has nothing of the project.

    Attributes:
        python, command: the interpreter, and `ip2p`.
        packages: where the wheel is unpacked.
        folder: to work in.
    """

    python: Path
    command: Path
    packages: Path
    folder: Path

    def run(self, *command: object, **variables: str) -> subprocess.CompletedProcess[str]:
        clean = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
        clean |= {"HOME": str(self.folder), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            env={**clean, **variables},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def ip2p(self, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.command, *words, **variables)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    home = tmp_path_factory.mktemp("installed")
    assert not run(sys.executable, "-m", "venv", "--without-pip", home).returncode
    python = home / "bin/python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    done = run(*pip, "install", "--no-deps", "--no-index", wheel)
    assert not done.returncode, done.stdout + done.stderr
    (packages,) = home.glob("lib/python*/site-packages")
    # Packages of the tests' own environment, but no .pth file of it, one of which names the checkout.
    borrowed = dict.fromkeys((*site.getsitepackages(), str(Path(torch.__file__).parents[1])))
    (packages / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed))
    return Installed(python, home / "bin/ip2p", packages, tmp_path_factory.mktemp("empty"))


def test_the_wheel_holds_the_project_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"ldm", "ip2p", "instruct_pix2pix-0.1.0.dist-info"}
    expected = {
        place + name.removeprefix(folder)
        for name in tracked()
        for folder, place in FOLDERS.items()
        if name.startswith(f"{folder}/")
    }
    expected |= {f"ip2p/{program}" for program, _ in COMMANDS.values()}
    expected |= {f"ip2p/{name}" for name in ("edit_dataset.py", "imgs/example.jpg", "checkpoints/README.md")}
    expected |= {"ip2p/checkpoints/avatars.safetensors", "ldm/py.typed"}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in names}


def test_the_names_that_others_have_are_not_taken(installed: Installed) -> None:
    names = "main", "metrics", "edit_dataset", "dataset_creation", "edit_cli", "configs", "stable_diffusion"
    code = f"import importlib.util as u, ldm; print(ldm.__file__, *map(u.find_spec, {names}))"
    result = installed.run(installed.python, "-c", code)
    assert result.stdout.split() == [str(installed.packages / "ldm/__init__.py"), *["None"] * len(names)]


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_the_commands_are_listed(installed: Installed, words: tuple[str, ...]) -> None:
    result = installed.ip2p(*words)
    assert not result.returncode and not result.stderr
    assert re.findall(r"^  (\w+) +\w", result.stdout, re.MULTILINE) == list(COMMANDS)


def test_the_version(installed: Installed) -> None:
    assert installed.ip2p("--version").stdout == "ip2p 0.1.0\n"


@pytest.mark.parametrize("words", [("edits",), ("--edit", "x"), ("",)])
def test_an_unknown_command_is_one_line(installed: Installed, words: tuple[str, ...]) -> None:
    result = installed.ip2p(*words)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: expected one of the commands {', '.join(COMMANDS)}, got {words[0]!r}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_that_of_the_program(installed: Installed, command: str) -> None:
    result = installed.ip2p(command, "--help")
    assert not result.returncode and not result.stderr
    assert result.stdout.startswith(f"usage: ip2p {command} ")
    name, _ = COMMANDS[command]
    assert f"python {name}" not in result.stdout and "-e '." not in result.stdout
    script = run(sys.executable, ROOT / name, "--help").stdout
    assert re.findall(r"--[\w-]+", result.stdout) == re.findall(r"--[\w-]+", script)


def test_an_edit_is_that_of_the_checkout(installed: Installed) -> None:
    picture = installed.packages / "ip2p/imgs/example.jpg"
    words = ("--input", picture, "--output", "out.png", "--steps", "2", "--seed", "7")
    result = installed.ip2p("edit", *words, "--edit", "add sunglasses", "--device", "cpu")
    assert not result.returncode, result.stderr
    assert "hf download timbrooks/instruct-pix2pix" in result.stderr and "bash" not in result.stderr
    editor = ImageEditor.load(EMBEDDED_CONFIG, EMBEDDED, device="cpu")
    expected = editor.edit(Image.open(ROOT / "imgs/example.jpg"), "add sunglasses", steps=2, seed=7)
    assert (np.asarray(Image.open(installed.folder / "out.png")) == np.asarray(expected)).all()


def test_a_training_is_that_of_the_checkout(installed: Installed, tmp_path: Path) -> None:
    """With the published names in its config, and a worker that reads the pictures."""
    dataset = write_dataset(tmp_path / "data", count=8)
    autoencoder = installed.folder / "logs/autoencoder_/checkpoints/last.ckpt"  # where main.py keeps runs
    config = edit_config(dataset, autoencoder, steps=2)
    assert config.data.target == "main.DataModuleFromConfig"
    assert config.data.params.train.target == "edit_dataset.EditDataset"
    config.data.params.num_workers = 1
    OmegaConf.save(config, tmp_path / "edit.yaml")
    OmegaConf.save(autoencoder_config(dataset, steps=1), tmp_path / "autoencoder.yaml")
    for name in ("autoencoder", "edit"):
        result = installed.ip2p("train", "--base", tmp_path / f"{name}.yaml", "--train")
        assert not result.returncode, result.stderr
    result = program("--base", tmp_path / "edit.yaml", "--train", "--logdir", tmp_path / "logs")
    assert not result.returncode, result.stderr
    here, there = (
        saved(folder / "logs/edit_/checkpoints/last.ckpt")["state_dict"]
        for folder in (tmp_path, installed.folder)
    )
    assert here.keys() == there.keys() and all(torch.equal(here[key], there[key]) for key in here)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_published_names_in_a_program_of_the_users(installed: Installed, tmp_path: Path, method: str) -> None:
    """Not started by `ip2p`, and called `main.py` itself."""
    dataset = write_dataset(tmp_path / "data", count=4)
    mine = tmp_path / "main.py"
    mine.write_text(
        "from torch.utils.data import DataLoader\n"
        "from ldm.util import get_obj_from_str, instantiate_from_config\n"
        "if __name__ == '__main__':\n"
        f"    params = dict(path={str(dataset)!r}, splits=[1, 0, 0], crop_res=32)\n"
        "    data = instantiate_from_config(dict(target='edit_dataset.EditDataset', params=params))\n"
        f"    loader = DataLoader(data, 2, num_workers=1, multiprocessing_context={method!r})\n"
        "    print(sum(len(batch['edited']) for batch in loader))\n"
        "    print(get_obj_from_str('main.DataModuleFromConfig').__name__)\n"
        "    print(get_obj_from_str('main.ImageLogger').__name__)\n"
    )
    result = installed.run(installed.python, mine)
    assert result.stdout.split() == ["4", "DataModuleFromConfig", "ImageLogger"], result.stderr


def test_configs_that_are_brought_along_are_found(installed: Installed) -> None:
    result = installed.ip2p("train", "--base", "configs/train.yaml", "--train", "data.params.batch_size=1")
    assert result.returncode == 2 and "v1-5-pruned-emaonly.ckpt" in result.stderr, result.stderr


def test_an_extra_that_is_not_installed_is_one_line(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError('No module', name='gradio')\n")
    result = installed.ip2p("app", PYTHONPATH=str(tmp_path))
    assert result.returncode == 2
    expected = "error: expected gradio: pip install 'instruct-pix2pix[app]'"
    assert result.stderr.splitlines()[-1] == expected


def test_nothing_was_written_into_the_installation(installed: Installed, wheel: Path) -> None:
    """After all that ran before."""
    unpacked = set(zipfile.ZipFile(wheel).namelist())
    there = {
        path.relative_to(installed.packages).as_posix()
        for top in ("ldm", "ip2p")
        for path in (installed.packages / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert there == {name for name in unpacked if ".dist-info/" not in name}
