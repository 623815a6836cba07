"""The --help of every program: complete, in groups, with defaults, and soon there."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from waiting import DEADLINE

ROOT = Path(__file__).parents[1]
FOLDERS = (
    ".",
    "stable_diffusion",
    "dataset_creation",
    "dataset_creation/avatars",
    "metrics",
    "scripts",
    "benchmarks",
)
LONGEST_LINE = 110
MOST_UNGROUPED = 6
# These start with more than their options; the others answer before torch is imported.
SLOW = {
    "benchmarks/embedded_model.py",
    "benchmarks/pair_generation.py",
    "dataset_creation/avatars/train_clip.py",
    "dataset_creation/validate_dataset.py",
}
NO_COMMAND_LINE = {"benchmarks/train_programs.py"}  # what train_step.py starts, with words of its own
UNTITLED = {"options", "positional arguments"}  # argparse's own groups


def programs() -> list[str]:
    """All Python programs and shell scripts."""
    found = []
    for folder in FOLDERS:
        for file in (ROOT / folder).iterdir():
            text = file.read_text() if file.suffix in (".py", ".sh") else ""
            if text.startswith("#!") or '\nif __name__ == "__main__":\n' in text:
                found.append(str(file.relative_to(ROOT)))
    return sorted(set(found) - NO_COMMAND_LINE)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a terminal of 80 columns."""
    environment = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEADLINE
    )


def entries(text: str) -> dict[str, dict[str, str]]:
    """Section → option or argument as it is written → what is said of it."""
    sections: dict[str, dict[str, str]] = {}
    section, entry = "", ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"(\w[\w ]*):", line):
            section, entry = heading[1], ""
        elif found := re.fullmatch(r"  (-\S.*?|[A-Z{]\S*?)(?:  +(.*))?", line):
            entry = found[1]
            sections.setdefault(section, {})[entry] = found[2] or ""
        elif entry and line.startswith("    "):
            sections[section][entry] += " " + line.strip()
        else:
            entry = ""
    return sections


def problems(text: str) -> list[str]:
    """What is wrong with a help."""
    found = [f"long line: {line}" for line in text.splitlines() if len(line) > LONGEST_LINE]
    usage, _, rest = text.partition("\n\n")
    if not usage.startswith("usage: "):
        found.append("no usage")
    if not rest.strip() or re.match(r"\w[\w ]*:\n", rest):
        found.append("no description")
    sections = {name: content for name, content in entries(text).items() if name != "environment"}
    said = {entry: help for content in sections.values() for entry, help in content.items()}
    for entry, help in said.items():
        names = re.findall(r"(?<![\w-])--?\w[\w-]*", entry)
        takes_value = re.search(r"--?\S+ \S", entry.split(", ")[0])
        required = any(re.search(rf"(?<!\[){name}\b(?!-)", usage) for name in names)
        if not help:
            found.append(f"no help: {entry}")
        elif takes_value and not required and "default: " not in help:
            found.append(f"no default: {entry}")
    options = [entry for entry in said if not entry.startswith("-h, ")]
    titled = sections.keys() - UNTITLED
    if len(options) > MOST_UNGROUPED and len(titled) < 2:
        found.append(f"{len(options)} options in {len(titled)} groups")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", programs())
def test_help(name: str) -> None:
    if name.endswith(".sh"):
        result = run("bash", name, "--help")
        assert result.returncode == 0 and not result.stderr and not problems(result.stdout)
        return
    commands = [(name,)]
    for words in commands:
        result = run(sys.executable, "-X", "importtime", *words, "--help")
        imported, errors = [], []
        for line in result.stderr.splitlines():
            is_import = line.startswith("import time:")
            (imported if is_import else errors).append(line.rpartition("|")[2].strip() if is_import else line)
        assert result.returncode == 0 and not errors, errors
        assert not problems(result.stdout)
        assert ("torch" in imported) == (name in SLOW)
        if len(words) == 1 and (parts := re.search(r"\{([\w,-]+)\} \.\.\.", result.stdout)):
            commands += [(name, part) for part in parts[1].split(",")]


def test_programs_are_found() -> None:
    found = programs()
    assert len(found) > 25
    assert {"edit_cli.py", "main.py", "dataset_creation/avatars/build.py", "scripts/download_data.sh"} <= set(
        found
    )
    assert "edit_dataset.py" not in found


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("good", []),
        ("no help", ["no help: --size PIXELS"]),
        ("no default", ["no default: --size PIXELS"]),
        ("no description", ["no description"]),
        ("many", ["8 options in 0 groups"]),
        ("long", [f"long line: {'x' * 111}"]),
    ],
)
def test_what_is_wrong_is_found(kind: str, found: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="x",
        description=None if kind == "no description" else "About this.",
        epilog="x" * 111 if kind == "long" else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    help = {"no help": None, "no default": "of it"}.get(
        kind, "of it, which is said at more length (default: 3)"
    )
    parser.add_argument("file", metavar="FILE", help="to read")
    parser.add_argument("--out", required=True, metavar="FILE", help="to write")
    parser.add_argument("--force", action="store_true", help="write over it")
    parser.add_argument("--size", metavar="PIXELS", help=help)
    for i in range(4 if kind == "many" else 0):
        parser.add_argument(f"--more-{i}", metavar="N", help="more (default: none)")
    assert problems(parser.format_help()) == found
