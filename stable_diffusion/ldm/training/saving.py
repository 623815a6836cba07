"""When and how a training is saved: files that are complete or absent, and a checkpoint on request."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from ldm.util import UserError
from ldm.weights.opening import open_weights

LAST = "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint straight to a file beside its place (Lightning's own holds a copy of it in memory),
    and renames it when it is complete, so that a killed training leaves its last good one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that a run goes on from: its last one, wherever a kill has left it."""
    last = folder / LAST
    if last.is_file():
        return last
    # `last.ckpt` is a link that is made anew after every save: a kill may have come in between.
    others = [file for file in folder.glob("step*.ckpt") if file.is_file()]
    return max(others, key=lambda file: file.stat().st_mtime, default=None)


def checkpoint_to_resume(given: Path, folder: Path) -> Path | None:
    """The checkpoint that was asked for, else the last one of the run, else None.

    Args:
        given: a checkpoint, or anything else for the last one.
        folder: of the run.

    Raises:
        UserError: it is damaged, or holds weights but no training to go on with.
    """
    path = given if given.is_file() else newest_checkpoint(folder / "checkpoints")
    if path is None:
        return None
    open_weights(path)
    try:
        saved = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError):
        saved = {}
    if "optimizer_states" not in saved:
        raise UserError(
            f"{path} holds no training to go on with; to start a new one from its weights: "
            f"model.params.ckpt_path={path}"
        )
    return path


class SaveOnSignal(pl.Callback):
    """Saves the training where it ends, and after the optimizer step in which a signal arrives.

    SIGUSR1 saves and goes on, where there is such a signal; Ctrl-C and SIGTERM save and leave (a second
    Ctrl-C leaves at once).

    Args:
        path: checkpoint to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.save_asked = self.stop_asked = False
        self._leaving = False
        self._handlers: dict[int, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        wanted = {signal.SIGINT: self._stop}
        if hasattr(signal, "SIGUSR1"):
            current = signal.getsignal(signal.SIGUSR1)
            if not callable(current) or isinstance(getattr(current, "__self__", None), SaveOnSignal):
                wanted[signal.SIGUSR1] = self._save  # else it is Lightning's, for requeuing a SLURM job
        self._handlers = {number: signal.signal(number, handler) for number, handler in wanted.items()}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _save(self, number: int, frame: FrameType | None) -> None:
        self.save_asked = True

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop_asked:
            raise KeyboardInterrupt
        self.stop_asked = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._leaving:  # only now has the step before been logged
            raise KeyboardInterrupt

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return  # gradients of half a step would be lost
        if trainer.world_size > 1:  # a signal reaches processes at different times, or only one
            decide = trainer.strategy.reduce_boolean_decision
            self.save_asked = decide(self.save_asked, all=False)
            self.stop_asked = decide(self.stop_asked, all=False)
        if self.stop_asked:
            self._write(trainer)
            rank_zero_info(f"stopped at step {trainer.global_step}: the same command goes on from there")
            self._leaving = True
        elif self.save_asked:
            self.save_asked = False
            self._write(trainer)
            rank_zero_info(f"saved step {trainer.global_step} to {self.path}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.strategy.broadcast(self._step_on_disk() != trainer.global_step):
            self._write(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, SIGTERMException):  # raised between two batches
            self._write(trainer)
            rank_zero_info(f"terminated at step {trainer.global_step}: the same command goes on from there")

    def _write(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)

    def _step_on_disk(self) -> int | None:
        if not self.path.is_file():
            return None
        return torch.load(self.path, map_location="meta", weights_only=True, mmap=True)["global_step"]
