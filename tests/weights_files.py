"""Small state dicts, the kinds of file they are kept in, and the messages of what goes wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ldm.util import UserError

State = dict[str, Tensor]


def save(state: State, path: Path, kind: str) -> Path:
    """Write a state dict in one of the ways that files have."""
    if kind == "safetensors":
        save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    elif kind == "lightning":
        torch.save({"epoch": 1, "state_dict": state}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "bare")
    return path


def message(load: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as error:
        load(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)
