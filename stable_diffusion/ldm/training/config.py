"""The configuration of a training: read, merged, and checked before anything is built from it."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ldm.util import (
    UserError,
    get_obj_from_str,
    instantiate_from_config,
    one_line,
    reject_unknown,
)
from ldm.weights.opening import open_weights

SECTIONS = {
    "": ("model", "data", "lightning", "sampling", "about"),
    "model": ("base_learning_rate", "target", "params"),
    "data": ("target", "params"),
    "lightning": ("trainer", "modelcheckpoint", "callbacks", "logger"),
}


def read_config(files: Sequence[str], overrides: Sequence[str]) -> DictConfig:
    """Merge the files from left to right, then ``nested.key=value`` overrides.

    Raises:
        UserError: a file is missing or no YAML, an override does not fit, or a section is missing or unknown.
    """
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        raise UserError(f"config: expected a YAML file, {missing[0]!r} is not there")
    try:
        config: Any = OmegaConf.merge(
            *(OmegaConf.load(file) for file in files), OmegaConf.from_dotlist(list(overrides))
        )
        sections = [OmegaConf.select(config, name) for name in ("model", "data")]
        OmegaConf.to_container(config, resolve=True)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"config: cannot read {', '.join(files)}: {one_line(error)}") from error
    if not all(isinstance(section, DictConfig) for section in sections):
        raise UserError(f"config: expected the sections model and data in {', '.join(files) or 'a file'}")
    for name, known in SECTIONS.items():
        section = OmegaConf.select(config, name) if name else config
        unknown = sorted(str(key) for key in set(section or {}) - set(known))
        if unknown:
            place = f"section {name}" if name else "the top level"
            raise UserError(f"config: {place} knows {', '.join(known)}, got {', '.join(unknown)}")
    return config


def save_config(config: DictConfig, folder: Path) -> None:
    """Keep the merged config with the run, named by the time."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    OmegaConf.save(config, folder / "configs" / f"{now}-project.yaml")


def learning_rate(config: DictConfig, devices: int, scale: bool) -> float:
    """Base rate of the config; with `scale` times GPUs, batch size and accumulated batches."""
    rate = OmegaConf.select(config, "model.base_learning_rate")
    if not isinstance(rate, int | float) or rate <= 0:
        raise UserError(f"config: expected model.base_learning_rate above 0, got {rate!r}")
    if not scale:
        return float(rate)
    accumulated = OmegaConf.select(config, "lightning.trainer.accumulate_grad_batches", default=1)
    return float(rate) * devices * config.data.params.batch_size * accumulated


def check_model(config: DictConfig, files: bool = True) -> None:
    """Find the mistakes of a model's config in seconds: it is laid out without numbers.

    Args:
        files: also open the weights files that it starts from.

    Raises:
        UserError: an unknown or missing parameter, a target that is not there, a file that cannot be read.
    """
    for target, params in _targets(config):
        reject_unknown(target, get_obj_from_str(target), params)
        if files and params.get("ckpt_path"):
            open_weights(params["ckpt_path"])
    with torch.device("meta"):
        network = instantiate_from_config(config)
    if not hasattr(network, "training_loss"):
        raise UserError(f"config: expected a model that can be trained, got {config.target}")


def _targets(config: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every target in a config with its parameters, whatever the depth."""
    if not isinstance(config, Mapping):
        return
    if "target" in config:
        yield config["target"], config.get("params") or {}
    for value in config.values():
        yield from _targets(value)
