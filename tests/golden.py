"""The published implementation's numbers on a small model, and the weights they were computed with.

`data/golden_small.safetensors` holds inputs and outputs only. Its weights are a function of each parameter's
published key name and shape, so a model under test is filled with `fill` and then compared with the file.
"""

import gzip
import json
import math
import zlib
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import safe_open
from torch import Tensor, nn

DATA = Path(__file__).parent / "data"
GOLDEN_FILE = DATA / "golden_small.safetensors"

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def read_golden() -> dict[str, Tensor]:
    """Every tensor of the golden file by key, on the CPU."""
    with safe_open(GOLDEN_FILE, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}


@cache
def _metadata_json() -> dict[str, str]:
    with safe_open(GOLDEN_FILE, "pt") as file:
        return file.metadata()


def read_metadata() -> dict[str, Any]:
    """The golden file's metadata, parsed: `config`, `texts`, `case` (seed, steps, scales) and `p2p`."""
    return {key: json.loads(value) for key, value in _metadata_json().items()}


def small_config() -> DictConfig:
    """The small edit model's configuration, `{target, params}` as under `model:` of a published YAML file."""
    return OmegaConf.create(read_metadata()["config"])


def published_keys(name: str) -> dict[str, list[int]]:
    """Key → shape of a published checkpoint, `name` being "instruct_pix2pix" or "stable_diffusion_v1"."""
    with gzip.open(DATA / f"keys_{name}.json.gz", "rt") as file:
        return json.load(file)


def deterministic_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """The float32 test weight of the parameter with this published key name and shape.

    Standard normal noise seeded by the name's CRC-32; matrices and kernels are scaled to keep the variance of
    their input, norm weights lie around 1 and all other vectors around 0.
    """
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if len(shape) >= 2:
        return noise / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise


@torch.no_grad()
def fill(module: ModuleT, prefix: str = "") -> ModuleT:
    """Overwrite the parameters of `module` in place and return it.

    Args:
        module: any module; buffers (noise schedule, EMA copy) are left alone.
        prefix: what precedes the module's own parameter names in the published keys, such as
            "cond_stage_model." for a text encoder outside its LatentDiffusion.
    """
    for name, parameter in module.named_parameters(prefix.removesuffix(".")):
        parameter.copy_(deterministic_tensor(name, tuple(parameter.shape)))
    return module


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual - expected‖ / ‖expected‖ (L2 over all entries, in float64)."""
    assert actual.shape == expected.shape, f"shapes differ: {tuple(actual.shape)}, {tuple(expected.shape)}"
    difference = torch.linalg.vector_norm(actual.double() - expected.double())
    return (difference / torch.linalg.vector_norm(expected.double())).item()
