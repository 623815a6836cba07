"""The project's frame: pins that agree, files that say nothing about one machine, the lean import path."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ldm.files import ROOT
from ldm.util import get_obj_from_str

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = "instruct-pix2pix"

# Written in two parts, so that this file does not hold what it looks for.
REGISTRY_HOSTS = tuple(
    a + b
    for a, b in (
        ("pypi.", "org"),
        ("python", "hosted."),
        ("npm", "js.org"),
        ("npm", "js.com"),
        ("yarn", "pkg."),
        ("deb.", "debian"),
        ("download.", "pytorch.org"),
        ("conda.", "anaconda.org"),
    )
)
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home|Users)/[\w.]")

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
CONDA_PYTHON = "3.11"

HEAVY = {
    "pytorch_lightning",
    "transformers",
    "k_diffusion",
    "open_clip",
    "gradio",
    "torchvision",
    "diffusers",
    "openai",
    "tensorboard",
    "pandas",
    "scipy",
}


# ------------------------------------------------------------------------------------------------ packages


def _pins(lines: list[str], python: str) -> dict[str, str]:
    """Version by canonical name of the `name==version` lines for a Python; anything looser fails."""
    pins = {}
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
            continue
        (specifier,) = requirement.specifier
        assert specifier.operator == "==" and "*" not in specifier.version, f"not an exact pin: {line}"
        name = canonicalize_name(requirement.name)
        assert name not in pins, f"pinned twice: {name}"
        pins[name] = specifier.version
    return pins


def _requirement_lines(name: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line]


@cache
def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _ranges(extras: Iterator[str] | list[str]) -> dict[str, list[Requirement]]:
    """Every range that the core and `extras` set, by canonical name; extras that name extras are followed."""
    optional = _project()["optional-dependencies"]
    found: dict[str, list[Requirement]] = {}
    waiting = list(_project()["dependencies"]) + [line for extra in extras for line in optional[extra]]
    for line in waiting:
        requirement = Requirement(line)
        if requirement.name == PACKAGE:
            waiting.extend(line for extra in requirement.extras for line in optional[extra])
        else:
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def _environment_lines() -> tuple[list[str], list[str]]:
    """The conda packages and the pip lines of environment.yaml."""
    environment = OmegaConf.to_object(OmegaConf.load(ROOT / "environment.yaml"))
    assert isinstance(environment, dict) and environment["name"] == "ip2p"
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    (pip,) = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    return conda, pip


def _pins_for(file: str, python: str) -> dict[str, str]:
    if file == "requirements.txt":
        return _pins(_requirement_lines(file), python)
    if file == "requirements-test.txt":
        first, *rest = _requirement_lines(file)
        assert first == "-r requirements.txt"
        return _pins_for("requirements.txt", python) | _pins(rest, python)
    *pip, project = _environment_lines()[1]
    assert project == "-e ."
    return _pins(pip, python)


@pytest.mark.parametrize(
    ("file", "extras", "pythons"),
    [
        ("requirements.txt", [], PYTHONS),
        ("requirements-test.txt", ["test"], PYTHONS),
        (
            "environment.yaml",
            ["train", "samplers", "dataset", "ray", "app", "benchmark", "test"],
            [CONDA_PYTHON],
        ),
    ],
)
def test_pins_cover_the_ranges_exactly(file: str, extras: list[str], pythons: list[str]) -> None:
    ranges = _ranges(extras)
    for python in pythons:
        pins = _pins_for(file, python)
        assert set(pins) == set(ranges)
        for name, version in pins.items():
            for requirement in ranges[name]:
                known = requirement.specifier.contains(version)
                assert known, f"{file}: {name}=={version} is not {requirement}"


def test_environment_has_every_extra_and_the_pins_of_the_requirements() -> None:
    assert set(_project()["optional-dependencies"]) == {
        "train",
        "samplers",
        "dataset",
        "ray",
        "nsfw",
        "metrics",
        "app",
        "benchmark",
        "test",
    }
    conda = _pins_for("environment.yaml", CONDA_PYTHON)
    assert _pins_for("requirements-test.txt", CONDA_PYTHON).items() <= conda.items()
    first, last = PYTHONS[0], PYTHONS[-1]
    assert _project()["requires-python"] == f">={first},<3.{int(last.partition('.')[2]) + 1}"
    assert f"python={CONDA_PYTHON}" in _environment_lines()[0]
    for file in ("README.md", "CONTRIBUTING.md", "Makefile", "requirements.txt", "requirements-test.txt"):
        assert f"Python {first} to {last}" in (ROOT / file).read_text(), file


def test_the_hooks_have_the_versions_of_make_lint() -> None:
    repos = OmegaConf.to_container(OmegaConf.load(ROOT / ".pre-commit-config.yaml"))["repos"]
    lines = {
        line for repo in repos for hook in repo["hooks"] for line in hook.get("additional_dependencies", [])
    }
    pins = _pins(sorted(lines - {"tomli"}), CONDA_PYTHON)
    known = _pins_for("requirements-test.txt", CONDA_PYTHON)
    assert set(pins) == {"ruff", "codespell"} and pins.items() <= known.items()


def test_modules_are_this_checkout_from_any_folder(tmp_path: Path) -> None:
    code = (
        "import importlib.util as u\n"
        "for name in ('ldm', 'metrics', 'dataset_creation', 'main', 'edit_dataset'):\n"
        "    spec = u.find_spec(name)\n"
        "    print(spec.origin if spec else f'no {name}')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    expected = [
        "stable_diffusion/ldm/__init__.py",
        "metrics/__init__.py",
        "dataset_creation/__init__.py",
        "main.py",
        "edit_dataset.py",
    ]
    assert [Path(line).resolve() for line in result.stdout.splitlines()] == [ROOT / path for path in expected]


@pytest.mark.slow
def test_editing_imports_nothing_heavy() -> None:
    code = "import edit_cli, ldm.editor, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert not HEAVY & set(result.stdout.split())


# --------------------------------------------------------------------------------------------------- files


@cache
def _files() -> tuple[Path, ...]:
    """Every file that git tracks or would add."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return tuple(path for name in sorted(set(listing.split("\0")) - {""}) if (path := ROOT / name).is_file())


def _sources() -> dict[Path, str]:
    return {path.relative_to(ROOT): path.read_text() for path in _files() if path.suffix == ".py"}


def test_no_text_file_names_a_registry_or_a_place_on_one_machine() -> None:
    found = []
    for path in _files():
        content = path.read_bytes()
        if b"\0" in content[:8192]:
            continue
        for number, line in enumerate(content.decode().splitlines(), 1):
            if any(host in line for host in REGISTRY_HOSTS) or MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)


def test_the_search_for_machine_paths_finds_them() -> None:
    assert MACHINE_PATH.search("open('" + "/work" + "/x')") and MACHINE_PATH.search("/root" + "/.cache")
    assert not MACHINE_PATH.search("see network/work/x, ./home/x and https://a.b/work")


def test_files_and_functions_are_short() -> None:
    found = []
    for path, source in _sources().items():
        if (lines := len(source.splitlines())) > 400:
            found.append(f"{path}: {lines} lines, expected at most 400")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if (lines := node.end_lineno - node.lineno + 1) > 80:
                    found.append(f"{path}: {node.name} has {lines} lines, expected at most 80")
    assert not found, "\n".join(found)


def test_no_sys_path_and_no_cuda_call() -> None:
    found = []
    for path, source in _sources().items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
                found.append(f"{path}:{node.lineno}: sys.path")
            if isinstance(node, ast.ImportFrom) and node.module == "sys":
                found.extend(f"{path}:{node.lineno}: sys.path" for a in node.names if a.name == "path")
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "cuda"
            ):
                found.append(f"{path}:{node.lineno}: .cuda()")
    assert not found, "\n".join(found)


# ------------------------------------------------------------------------------------------------- configs


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("target"), str):
            yield node["target"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _targets(child)


CONFIGS = sorted(
    path for folder in ("configs", "stable_diffusion/configs") for path in (ROOT / folder).rglob("*.yaml")
)


def test_the_published_configs_are_here() -> None:
    names = ("configs/generate.yaml", "configs/train.yaml")
    names += ("stable_diffusion/configs/stable-diffusion/v1-inference.yaml",)
    assert {ROOT / name for name in names} <= set(CONFIGS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_target_of_a_config_resolves(path: Path) -> None:
    targets = set(_targets(OmegaConf.to_container(OmegaConf.load(path))))
    assert targets
    for target in sorted(targets):
        assert callable(get_obj_from_str(target)), target
