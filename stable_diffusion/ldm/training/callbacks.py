"""Lightning callbacks: what a training shows of itself."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from einops import rearrange
from PIL import Image
from pytorch_lightning.callbacks import TQDMProgressBar
from torch import Tensor

from ldm.pictures.sheet import Cell, sheet

LEAST_SIDE = 128  # pixels of a picture in a grid, so that its instruction can be read


class ProgressBar(TQDMProgressBar):
    """Lightning's plain bar, readable in log files too, without the name of the logger's folder."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class Throughput(pl.Callback):
    """Logs ``train/samples_per_second`` of all processes, on a GPU ``train/gpu_memory_gb`` (the peak), and
    ``train/skipped_examples`` if there are any."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seen: int | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop: Any = trainer  # its attributes are not all declared
        if (trainer.global_step + 1) % loop.log_every_n_steps:
            return
        now, seen = time.perf_counter(), loop.datamodule.examples_seen
        metrics = {}
        if self.seen is not None and seen > self.seen:
            metrics["train/samples_per_second"] = (seen - self.seen) / (now - self.started)
        if pl_module.device.type == "cuda":
            metrics["train/gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        if loop.datamodule.skipped:
            metrics["train/skipped_examples"] = float(loop.datamodule.skipped)
        pl_module.log_dict(metrics, on_step=True, on_epoch=False)
        self.started, self.seen = now, seen

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen = None  # its time is not the training's


class ImageLogger(pl.Callback):
    """Saves a grid of ``network.log_images(batch)`` to ``{run}/images/{split}/`` every so many steps.

    Args:
        batch_frequency: optimizer steps between two grids; also at every validation.
        max_images: examples a grid.
        increase_log_steps: also log at steps 1, 2, 4, … up to `batch_frequency`.
        log_images_kwargs: for ``network.log_images``, such as guidance scales.
    """

    def __init__(
        self,
        batch_frequency: int,
        max_images: int,
        increase_log_steps: bool = True,
        log_images_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.batch_frequency = batch_frequency
        self.max_images = max_images
        self.options = log_images_kwargs or {}
        self.early = {2**k for k in range(batch_frequency.bit_length())} if increase_log_steps else set()
        self.logged = 0  # step of the last grid: a step of several batches logs once

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step != self.logged and (step % self.batch_frequency == 0 or step in self.early):
            self.logged = step
            self._log(trainer, pl_module, batch, "train")

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0 and not trainer.sanity_checking:
            self._log(trainer, pl_module, batch, "val")

    @pl.utilities.rank_zero_only
    @torch.no_grad()
    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, split: str) -> None:
        network: Any = pl_module.network
        training = network.training
        network.eval()
        with torch.random.fork_rng():  # looking at a training must not change it
            columns = network.log_images(batch, self.max_images, **self.options)
        network.train(training)
        folder = Path(trainer.default_root_dir) / "images" / split
        folder.mkdir(parents=True, exist_ok=True)
        grid(columns).save(folder / f"step-{trainer.global_step:08}.png")


def grid(columns: Mapping[str, Tensor | Sequence[str]]) -> Image.Image:
    """One picture out of batches: a row for each example, a column for each batch.

    Args:
        columns: pictures [B, 3, H, W] in [-1, 1], all of one size, or B texts. Small pictures are enlarged.
    """
    height, width = next(x.shape[2:] for x in columns.values() if isinstance(x, Tensor))
    scale = -(-LEAST_SIDE // min(height, width))
    width, height = width * scale, height * scale

    def cells(column: Tensor | Sequence[str]) -> list[Cell]:
        if not isinstance(column, Tensor):
            return list(column)
        return [picture.resize((width, height), Image.Resampling.NEAREST) for picture in pictures_of(column)]

    rows = list(zip(*map(cells, columns.values()), strict=True))
    return sheet(rows, [width] * len(columns), [height] * len(rows), 0, max(12, width // 16))


def pictures_of(x: Tensor) -> list[Image.Image]:
    """PIL pictures of a batch [B, 3, H, W] in [-1, 1]."""
    pixels = rearrange((x.float().cpu().clamp(-1, 1) + 1) * 127.5, "b c h w -> b h w c").round()
    return [Image.fromarray(picture) for picture in pixels.numpy().astype(np.uint8)]
