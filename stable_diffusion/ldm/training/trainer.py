"""The Lightning trainer of a run: devices, callbacks, checkpoints and logs by config and command line."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, ModelSummary
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy

from ldm.training.callbacks import ProgressBar, Throughput
from ldm.training.saving import LAST, AtomicCheckpointIO, SaveOnSignal
from ldm.util import (
    UserError,
    get_obj_from_str,
    instantiate_from_config,
    one_line,
    reject_unknown,
)

BAR_REFRESH = 20  # batches; a log file gets every state of the bar
SAVE_EVERY = 1000  # optimizer steps
LOGGERS = {
    "tensorboard": "pytorch_lightning.loggers.TensorBoardLogger",
    "csv": "pytorch_lightning.loggers.CSVLogger",
    "wandb": "pytorch_lightning.loggers.WandbLogger",
}


def devices(gpus: str | None) -> dict[str, Any]:
    """Lightning's options for ``--gpus``: numbers as in ``0,1`` or ``0,``, a count, or None for the CPU."""
    if not gpus:
        return {"accelerator": "cpu"}
    words = [word.strip() for word in gpus.strip(", ").split(",")]
    there = torch.cuda.device_count()
    if not all(word.isdecimal() for word in words):
        raise UserError(f"--gpus: expected numbers as in 0,1,2 or a count, got {gpus!r}")
    if "," not in gpus:
        count = int(gpus)
        if count > there:
            raise UserError(f"--gpus: expected at most {there}, the GPUs of this machine, got {gpus}")
        return {"accelerator": "gpu", "devices": count} if count else {"accelerator": "cpu"}
    if not all(int(word) < there for word in words):
        raise UserError(f"--gpus: expected numbers below {there}, the GPUs of this machine, got {gpus!r}")
    return {"accelerator": "gpu", "devices": [int(word) for word in words]}


def build_trainer(
    config: DictConfig, folder: Path, options: dict[str, Any], monitor: str | None, *, debug: bool = False
) -> pl.Trainer:
    """The trainer of a run.

    Args:
        config: whole configuration of the run.
        folder: of the run.
        options: of Lightning's trainer, from the command line; None is not given.
        monitor: metric by which the best checkpoint is kept.
        debug: run one batch of each kind and write no checkpoint.
    """
    section = OmegaConf.select(config, "lightning") or OmegaConf.create()
    chosen = _plain(section.get("trainer"))
    chosen |= {name: value for name, value in options.items() if value is not None}
    chosen.setdefault("fast_dev_run", debug)
    reject_unknown("lightning.trainer", pl.Trainer, chosen)
    if chosen.get("strategy", "auto") in ("auto", "ddp"):
        chosen["strategy"] = data_parallel(chosen)
    callbacks = [LearningRateMonitor(logging_interval="step"), ModelSummary(max_depth=2), Throughput()]
    callbacks.append(ProgressBar(refresh_rate=BAR_REFRESH))
    if not chosen["fast_dev_run"]:
        callbacks += checkpoint_callbacks(section.get("modelcheckpoint"), folder / "checkpoints", monitor)
    callbacks += [instantiate_from_config(callback) for callback in (section.get("callbacks") or {}).values()]
    try:
        return pl.Trainer(
            **chosen,
            default_root_dir=folder,
            callbacks=callbacks,
            logger=build_logger(section.get("logger"), folder),
            plugins=[AtomicCheckpointIO()],
            use_distributed_sampler=False,  # the data module's samplers know of the other processes
        )
    except (ValueError, TypeError, pl.utilities.exceptions.MisconfigurationException) as error:
        raise UserError(f"lightning.trainer: {one_line(error)}") from error


def data_parallel(options: dict[str, Any]) -> Any:
    """The strategy for several processes, "auto" for one.

    Unlike Lightning's plain ``ddp`` it does not send the buffers, the whole EMA copy, around in every step:
    all processes compute the same.
    """
    count = options.get("devices", 1)
    several = len(count) > 1 if isinstance(count, list) else count not in (1, "auto")
    if not several and options.get("num_nodes", 1) == 1 and options.get("strategy") != "ddp":
        return "auto"
    return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)


def checkpoint_callbacks(section: Any, folder: Path, monitor: str | None) -> list[pl.Callback]:
    """What saves: every so many steps and ``last.ckpt``, on a signal, and the best by `monitor`."""
    target = "pytorch_lightning.callbacks.ModelCheckpoint"
    params = {"every_n_train_steps": SAVE_EVERY, "save_top_k": -1, **(_plain(section).get("params") or {})}
    place: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    reject_unknown("lightning.modelcheckpoint", get_obj_from_str(target), params)
    callbacks = [
        ModelCheckpoint(**{"filename": "{step:08}", "save_last": "link", **params, **place}),
        SaveOnSignal(folder / LAST),
    ]
    if monitor:
        callbacks.append(ModelCheckpoint(monitor=monitor, filename="best", **place))
    return callbacks


def build_logger(section: Any, folder: Path) -> Logger:
    """The run's logger by ``lightning.logger``: tensorboard (default), csv, wandb, or target and params."""
    if section is None or isinstance(section, str):
        section = {"target": section or "tensorboard"}
    target = LOGGERS.get(section.get("target"), section.get("target"))
    factory = get_obj_from_str(target)
    params = _plain(section.get("params"))
    if target == LOGGERS["wandb"] and importlib.util.find_spec("wandb") is None:
        raise UserError("lightning.logger: wandb needs a package: pip install wandb")
    known = inspect.signature(factory).parameters
    if "save_dir" in known:
        params.setdefault("save_dir", str(folder))
    if target == LOGGERS["tensorboard"]:
        params = {"name": None, "version": "metrics", **params}
    elif target == LOGGERS["csv"]:  # a resumed run gets a file of its own: the logger would delete the first
        params.setdefault("name", "metrics")
    reject_unknown(target, factory, params)
    return factory(**params)


def fit(
    trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule, resume: Path | None
) -> None:
    """Train, from a checkpoint if there is one; Ctrl-C becomes KeyboardInterrupt again."""
    try:
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    except SystemExit:  # how Lightning answers Ctrl-C
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except UserError:
        raise
    except ValueError as error:  # of no type of its own, and found when the number of batches is known
        if "val_check_interval" not in str(error):
            raise
        raise UserError(
            f"{one_line(error)} Here that is lightning.trainer.check_val_every_n_epoch=null"
        ) from error


def _plain(section: Any) -> dict[str, Any]:
    """A section of a config, which may be absent, as a dict."""
    plain: Any = OmegaConf.to_container(section, resolve=True) if section else {}
    return plain


def silence_lightning() -> None:
    """Drop what Lightning says that has nothing to do with a training: advertising, its own deprecations."""
    noise = ("Tip:", "TPU available", "Skipping setting a default `ModelSummary`")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: not any(words in record.getMessage() for words in noise)
    )
    warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")
    warnings.filterwarnings("ignore", message=r".*does not have many workers")  # a choice of the config
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")  # the frozen ones
    # On a resume: the folder is not empty, and the data goes on where it was by the data module's own state.
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=r"You're resuming from a checkpoint that ended")
    # A run that ends before its first validation has no best checkpoint yet.
    warnings.filterwarnings("ignore", message=r".*could not find the monitored key")
