"""Fixtures that several test files share; the helpers behind them are in `golden.py` and elsewhere here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# A thread for each of the processes that share the tests and for what they start: more are in the way of one
# another. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import Tensor

from golden import read_golden, read_metadata
from waiting import DEADLINE

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from training_runs import Project

# Files that take longest. Two processes share the files of the suite; begun last, one would be left alone
# with them.
LONGEST = (
    "test_exact_training",
    "test_readme",
    "test_training",
    "test_other_systems",
    "test_overfit",
    "test_embedded_model",
    "test_generate_img",
    "test_package",
    "test_edit_app",
    "test_compute_metrics",
    "test_folders_everywhere",
    "test_benchmark_sets",
)

CHROMIUM_OPTIONS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m smoke`` read only files that have such tests: others import what not every system has."""
    if config.option.markexpr != "smoke" or not collection_path.name.startswith("test_"):
        return None
    return "mark.smoke" not in collection_path.read_text(encoding="utf-8") or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (item.path.stem not in LONGEST, item.path.stem))


@pytest.fixture(scope="session")
def golden() -> dict[str, Tensor]:
    """Inputs and outputs of the published implementation on the small configuration, float32; read only."""
    return read_golden()


@pytest.fixture(scope="session")
def golden_metadata() -> dict[str, Any]:
    """Parsed metadata of the golden file: `config`, `texts`, `case` and `p2p`."""
    return read_metadata()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project with its autoencoder trained and its latents cached."""
    from training_runs import Project  # late: it imports Lightning, which most test files do without

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small are slower on several threads
    project = Project(tmp_path_factory.mktemp("project"))
    project.prepare()
    yield project
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    from playwright.sync_api import expect, sync_playwright  # late: few files need it

    program = shutil.which("chromium")
    assert program, "expected the program chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        patience = 1000 * DEADLINE  # milliseconds
        expect.set_options(timeout=patience)
        browser = playwright.chromium.launch(executable_path=program, args=CHROMIUM_OPTIONS, timeout=patience)
        browser.on("context", lambda context: context.set_default_timeout(patience))
        yield browser
        browser.close()
