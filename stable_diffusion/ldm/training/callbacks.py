"""Lightning callbacks: what a training shows of itself, and what it saves when it is stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from einops import rearrange
from PIL import Image
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor


class ProgressBar(TQDMProgressBar):
    """Lightning's plain bar, readable in log files too, without the name of the logger's folder."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class SaveLast(pl.Callback):
    """Saves a training where it ends or is stopped by Ctrl-C: its last step need not be one that is saved.

    Args:
        path: checkpoint to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # All processes save together, so the first one's look at the file decides.
        if trainer.strategy.broadcast(self._saved_step() != trainer.global_step):
            trainer.save_checkpoint(self.path)

    def _saved_step(self) -> int | None:
        """Step of the checkpoint that is there."""
        if not self.path.is_file():
            return None
        return torch.load(self.path, map_location="meta", weights_only=True)["global_step"]

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, KeyboardInterrupt) and trainer.training:
            self.on_train_end(trainer, pl_module)
            rank_zero_info(f"stopped at step {trainer.global_step}: the same command goes on from there")


class ImageLogger(pl.Callback):
    """Saves a grid of ``network.log_images(batch)`` to ``{run}/images/{split}/`` every so many batches.

    Args:
        batch_frequency: training batches between two grids; also at every validation.
        max_images: examples a grid.
        increase_log_steps: also log at batches 1, 2, 4, … up to `batch_frequency`.
    """

    def __init__(self, batch_frequency: int, max_images: int, increase_log_steps: bool = True) -> None:
        self.batch_frequency = batch_frequency
        self.max_images = max_images
        self.early = {2**k for k in range(batch_frequency.bit_length())} if increase_log_steps else set()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.batch_frequency == 0 or trainer.global_step in self.early:
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
        network = pl_module.network
        network.eval()
        with torch.random.fork_rng(devices=[]):  # looking at a training must not change it
            rows = network.log_images(batch, self.max_images)
        network.train()
        folder = Path(trainer.default_root_dir) / "images" / split
        folder.mkdir(parents=True, exist_ok=True)
        grid(rows).save(folder / f"step-{trainer.global_step:08}.png")


def grid(columns: Mapping[str, Tensor]) -> Image.Image:
    """One picture out of batches [B, 3, H, W] in [-1, 1]: a row for each example, a column for each batch."""
    stacked = torch.stack([x.float().cpu().clamp(-1, 1) for x in columns.values()])  # [columns, B, 3, H, W]
    pixels = rearrange((stacked + 1) * 127.5, "n b c h w -> (b h) (n w) c")
    return Image.fromarray(pixels.round().numpy().astype(np.uint8))
