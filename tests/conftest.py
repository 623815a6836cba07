"""Fixtures that several test files share; the helpers behind them are in `golden.py`."""

from typing import Any

import pytest
from torch import Tensor

from golden import read_golden, read_metadata


@pytest.fixture(scope="session")
def golden() -> dict[str, Tensor]:
    """Inputs and outputs of the published implementation on the small configuration, float32; read only."""
    return read_golden()


@pytest.fixture(scope="session")
def golden_metadata() -> dict[str, Any]:
    """Parsed metadata of the golden file: `config`, `texts`, `case` and `p2p`."""
    return read_metadata()
