"""Lightning modules: how the autoencoder and the diffusion model are trained.

The networks are plain `nn.Module`s with a ``training_loss(batch)``; what is here is optimizer, averaging,
logging and the layout of checkpoints, whose ``state_dict`` carries the published keys.
"""

from __future__ import annotations

import copy
import importlib.util
import shutil
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.sampling.noise import derived_seed
from ldm.util import instantiate_from_config
from ldm.weights.loading import load_autoencoder, load_for_training

PREFIX = "network."


def can_compile() -> bool:
    """Whether torch.compile finds what it needs for a GPU: Triton, and a C compiler."""
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, ("cc", "gcc", "clang")))


class TrainingEncoder:
    """Encodes the pictures of a training's batches by a copy of the frozen encoder in another precision.

    Under autocast its normalisations would be computed in float32, at twice the memory traffic. Measured on
    an H100, 32 pictures of 256 px: 61 ms so, 47 in bfloat16, 25 compiled besides.

    Args:
        autoencoder: is not changed.
        dtype: of the copy.
        compiled: compile the copy.
    """

    def __init__(self, autoencoder: AutoencoderKL, dtype: torch.dtype, compiled: bool = False) -> None:
        self.encoder = copy.deepcopy(autoencoder).requires_grad_(False)
        del self.encoder.decoder
        if compiled:
            self.encoder.encoder.compile()
        self.encoder.to(dtype)
        self.dtype = dtype

    @torch.no_grad()
    def __call__(self, batch: Any) -> Any:
        """A batch with float32 posterior parameters [B, 8, h, w] in place of its pictures [B, 3, H, W]."""
        if isinstance(batch, Mapping):
            return {name: self(value) for name, value in batch.items()}
        if not isinstance(batch, Tensor) or batch.ndim != 4 or batch.shape[1] != 3:
            return batch
        with torch.autocast(batch.device.type, enabled=False):
            return self.encoder.encode(batch.to(self.dtype)).parameters.float()


def batch_size_of(batch: Mapping[str, Any]) -> int:
    """Examples of a batch."""
    return len(batch["noise_seed"])


class TrainingModule(pl.LightningModule):
    """The training of the autoencoder, and what that of the diffusion model shares with it.

    Args:
        network: with ``training_loss(batch) -> (loss, parts to log)``.
        learning_rate: final rate, after any scaling.
        weight_decay: of AdamW.
    """

    network: Any

    def __init__(self, network: nn.Module, learning_rate: float, weight_decay: float = 0.01) -> None:
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        # What is still drawn from the global generator, dropout for one, also depends on the step alone.
        data = self._data
        torch.manual_seed(derived_seed(data.seed, "step", data.examples_seen, self.global_rank))

    @property
    def _data(self) -> Any:
        trainer: Any = self.trainer  # Lightning does not declare the attribute
        return trainer.datamodule

    def trained_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.network.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        # One kernel for all weights: on a CPU five times as fast as the default. Lightning does not take it
        # together with a gradient scaler.
        fused = self._trainer is None or self.trainer.precision != "16-mixed"
        optimizer = torch.optim.AdamW(
            self.trained_parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=fused
        )
        config = getattr(self.network, "scheduler_config", None)
        if config is None:
            return optimizer
        schedule = LambdaLR(optimizer, instantiate_from_config(config).schedule)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, *args, **kwargs)
        optimizer.zero_grad()  # else the gradients would take their memory through the next forward pass too

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        loss, parts = self.network.training_loss(batch)
        self._log("train", batch, parts)
        self._data.count(batch, batch_size_of(batch))
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self.evaluate("val", batch)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self.evaluate("test", batch)

    def evaluate(self, stage: str, batch: Mapping[str, Any]) -> None:
        """Log the losses of a batch that is not trained on."""
        self._log(stage, batch, self.network.training_loss(batch)[1])

    def _log(
        self, stage: str, batch: Mapping[str, Any], parts: Mapping[str, Tensor], suffix: str = ""
    ) -> None:
        names = {f"{stage}/{name}{suffix}": value for name, value in parts.items()}
        training = stage == "train"
        self.log_dict(
            names,
            prog_bar=True,
            on_step=training,
            on_epoch=not training,
            sync_dist=not training,
            batch_size=batch_size_of(batch),
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Published files hold the network's keys without a prefix."""
        checkpoint["state_dict"] = {k.removeprefix(PREFIX): v for k, v in checkpoint["state_dict"].items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {PREFIX + k: v for k, v in checkpoint["state_dict"].items()}


class DiffusionTraining(TrainingModule):
    """Noise prediction; the average of the weights moves once an optimizer step."""

    network: LatentDiffusion
    _encoder: TrainingEncoder | None = None  # of the pictures, where not the network itself encodes them

    def on_fit_start(self) -> None:
        if self.trainer.precision == "bf16-mixed" and self.device.type == "cuda":
            self._encoder = TrainingEncoder(self.network.first_stage_model, torch.bfloat16, can_compile())

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        return super().training_step(self._encoded(batch), batch_idx)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.network.use_ema:
            self.network.model_ema(self.network.model)

    def evaluate(self, stage: str, batch: Mapping[str, Any]) -> None:
        batch = self._encoded(batch)
        super().evaluate(stage, batch)
        if self.network.use_ema:
            with self.network.ema_scope():  # the same noise again: it is the batch's own
                self._log(stage, batch, self.network.training_loss(batch)[1], suffix="_ema")

    def _encoded(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._encoder(batch) if self._encoder else batch


def load_start(network: AutoencoderKL | LatentDiffusion) -> None:
    """Load the weights that a training starts from, as the ``ckpt_path`` of network and autoencoder say.

    Raises:
        UserError: a file cannot be read or does not fit.
    """
    if isinstance(network, AutoencoderKL):
        if network.ckpt_path:
            load_autoencoder(network, network.ckpt_path)
        return
    if network.ckpt_path:
        load_for_training(network, network.ckpt_path, load_ema=network.load_ema)
    if network.first_stage_model.ckpt_path:
        load_autoencoder(network.first_stage_model, network.first_stage_model.ckpt_path)


def training_module(network: nn.Module, learning_rate: float) -> TrainingModule:
    """The training of that network."""
    kind = TrainingModule if isinstance(network, AutoencoderKL) else DiffusionTraining
    return kind(network, learning_rate)
