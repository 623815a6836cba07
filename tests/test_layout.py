"""Who may import whom: the rooms of the house from the ground up, without a circle anywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each room and those that it may import, beside itself and beside the open ones. A new line is a decision.
OPEN = {"ldm.commands", "ldm.util", "ldm.files", "ldm.untrusted"}
ROOMS = {
    "ldm.commands": set(),
    "ldm.cli": set(),
    "ldm.untrusted": set(),
    "ldm.util": set(),
    "ldm.files": set(),
    "ldm.device": set(),
    "ldm.lr_scheduler": set(),
    "ldm.modules": set(),
    "ldm.pictures": set(),
    "ldm.sampling": {"ldm.modules"},
    "ldm.models": {"ldm.modules", "ldm.sampling"},
    "ldm.weights": {"ldm.modules", "ldm.models", "ldm.device"},
    "ldm.data": {"ldm.pictures"},
    "ldm.editor": {"ldm.device", "ldm.models", "ldm.pictures", "ldm.sampling", "ldm.weights"},
    "ldm.arguments": {"ldm.editor", "ldm.pictures", "ldm.sampling", "ldm.weights"},
    "ldm.training": {"ldm.data", "ldm.models", "ldm.pictures", "ldm.sampling", "ldm.weights"},
    "ldm.downloads": {"ldm.arguments"},
    "ldm.app": {"ldm.arguments", "ldm.device", "ldm.editor", "ldm.pictures", "ldm.sampling"},
}
LDM = set(ROOMS)
ROOMS |= {
    "metrics": LDM,  # the library, as dataset_creation is
    "dataset_creation": LDM | {"metrics"},
}
# A type alone: what is sampled from stands above the samplers.
TYPES = {("ldm.sampling", "ldm.models")}


@cache
def modules() -> dict[str, Path]:
    """Every module of the library by its dotted name."""
    found = {}
    for base, folder in ((ROOT / "stable_diffusion", "ldm"), (ROOT, "metrics"), (ROOT, "dataset_creation")):
        for path in sorted((base / folder).rglob("*.py")):
            name = ".".join(path.relative_to(base).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def room(module: str) -> str:
    words = module.split(".")
    return ".".join(words[:2]) if words[0] == "ldm" else words[0]


@cache
def imports(module: str) -> dict[str, bool]:
    """The modules of the library that one imports, at its head or within functions; True: for types alone."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name in modules() and name != module:
                found[name] = found.get(name, True) and id(node) in guarded
    return found


def test_rooms_import_only_those_below() -> None:
    found = []
    for module in modules():
        if module == "ldm":
            continue
        for other, for_types in imports(module).items():
            here, there = room(module), room(other)
            known = {here} | OPEN | ROOMS[here]
            if there not in known and not (for_types and (here, there) in TYPES):
                found.append(f"{module} imports {other}: {here} may not know {there}")
    assert not found, "\n".join(found)


def circles() -> Iterator[str]:
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> Iterator[str]:
        if module in way:
            yield " -> ".join((*way[way.index(module) :], module))
        elif module not in done:
            for other in imports(module):
                yield from visit(other, (*way, module))
            done.add(module)

    for module in modules():
        yield from visit(module, ())


def test_no_circles() -> None:
    """Not even of imports within functions, or for types."""
    assert not list(circles())


@pytest.mark.parametrize("folder", ["stable_diffusion/ldm", "metrics", "dataset_creation"])
def test_nothing_imports_a_program(folder: str) -> None:
    """A program is what ends in `run_main`: it parses, builds, calls and saves, and nobody needs it."""
    programs = {name for name, path in modules().items() if "__main__" in path.read_text(encoding="utf-8")}
    inside = [name for name, path in modules().items() if (ROOT / folder) in path.parents]
    found = [f"{name} imports {other}" for name in inside for other in imports(name) if other in programs]
    assert not found, "\n".join(found)
