"""Lightning modules: how the autoencoder and the diffusion model are trained.

The networks are plain `nn.Module`s with a ``training_loss(batch)``; what is here is optimizer, averaging,
logging and the layout of checkpoints, whose ``state_dict`` carries the published keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ldm.checkpoint import load_autoencoder, load_for_training
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import instantiate_from_config

PREFIX = "network."


class TrainingModule(pl.LightningModule):
    """The training of the autoencoder, and what that of the diffusion model shares with it.

    Args:
        network: with ``training_loss(batch) -> (loss, parts to log)``.
        learning_rate: final rate, after any scaling.
        weight_decay: of AdamW.
    """

    def __init__(self, network: nn.Module, learning_rate: float, weight_decay: float = 0.01) -> None:
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay

    def trained_parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.trained_parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        config = getattr(self.network, "scheduler_config", None)
        if config is None:
            return optimizer
        schedule = LambdaLR(optimizer, instantiate_from_config(config).schedule)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        loss, parts = self.network.training_loss(batch)
        self._log("train", batch, parts)
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self.evaluate("val", batch, batch_idx)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self.evaluate("test", batch, batch_idx)

    def evaluate(self, stage: str, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log the losses of a batch that is not trained on."""
        self._log(stage, batch, self.network.training_loss(batch)[1])

    def _log(
        self, stage: str, batch: Mapping[str, Any], parts: Mapping[str, Tensor], suffix: str = ""
    ) -> None:
        names = {f"{stage}/{name}{suffix}": value for name, value in parts.items()}
        training = stage == "train"
        size = next(len(value) for value in batch.values() if isinstance(value, Tensor))
        self.log_dict(
            names, prog_bar=True, on_step=training, on_epoch=not training, sync_dist=True, batch_size=size
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Published files hold the network's keys without a prefix."""
        checkpoint["state_dict"] = {k.removeprefix(PREFIX): v for k, v in checkpoint["state_dict"].items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {PREFIX + k: v for k, v in checkpoint["state_dict"].items()}


class DiffusionTraining(TrainingModule):
    """Noise prediction; the average of the weights moves once an optimizer step."""

    network: LatentDiffusion

    def trained_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.network.parameters() if p.requires_grad]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.network.use_ema:
            self.network.model_ema(self.network.model)

    def evaluate(self, stage: str, batch: Mapping[str, Any], batch_idx: int) -> None:
        # The same noise and timesteps every time, so that the curve shows the model and not the draw.
        with torch.random.fork_rng():
            torch.manual_seed(batch_idx)
            super().evaluate(stage, batch, batch_idx)
        with torch.random.fork_rng(), self.network.ema_scope():
            torch.manual_seed(batch_idx)
            self._log(stage, batch, self.network.training_loss(batch)[1], suffix="_ema")


def training_module(network: nn.Module, learning_rate: float) -> TrainingModule:
    """The training of that network, with the weights that its ``ckpt_path`` and its autoencoder's name."""
    if isinstance(network, AutoencoderKL):
        if network.ckpt_path:
            load_autoencoder(network, network.ckpt_path)
        return TrainingModule(network, learning_rate)
    if network.ckpt_path:
        load_for_training(network, network.ckpt_path, load_ema=network.load_ema)
    if network.first_stage_model.ckpt_path:
        load_autoencoder(network.first_stage_model, network.first_stage_model.ckpt_path)
    return DiffusionTraining(network, learning_rate)
