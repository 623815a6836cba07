"""Fixtures that several test files share; the helpers behind them are in `golden.py` and elsewhere here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from golden import read_golden, read_metadata

if TYPE_CHECKING:
    from training_runs import Project


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
