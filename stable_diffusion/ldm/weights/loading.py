"""Models that get their weights from files.

A file stays on disk until a tensor is asked for (`ldm.weights.opening`), so of a file with two copies of the
network just the one in use is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ldm.device import DTYPES, choose_device, choose_precision, keep_freed_memory
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import UserError, instantiate_from_config, read_config
from ldm.weights.matching import VAE, check_schedule, has_ema, locate, require_known, shapes_of
from ldm.weights.names import EMA_SETTINGS, SCHEDULE
from ldm.weights.opening import open_weights
from ldm.weights.single_file import Weights


def load_model(
    config: DictConfig | str | Path,
    ckpt: str | Path | Weights,
    *,
    vae_ckpt: str | Path | Weights | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LatentDiffusion:
    """Build the `LatentDiffusion` of a configuration for inference: evaluation mode, no gradients.

    The EMA weights are taken where the file has them. The network is laid out without numbers and each
    weight is assigned as it comes from the file; in float32 on the CPU it stays a view of the file.

    Args:
        config: a configuration, or the path of a YAML file, with `target` and `params` at its top or under
            `model`. Its `use_ema` and every `ckpt_path` in it are overruled.
        ckpt: weights of the whole model, a file or one that is already open.
        vae_ckpt: weights of the autoencoder, used in place of those in `ckpt`.
        device: where the model goes.
        dtype: precision of the weights; the noise schedule stays in float32.

    Raises:
        UserError: the configuration or a file cannot be read, or they do not fit each other.
    """
    weights = open_weights(ckpt) if isinstance(ckpt, str | Path) else ckpt
    vae = open_weights(vae_ckpt) if isinstance(vae_ckpt, str | Path) else vae_ckpt or weights
    model = without_numbers(for_inference(config))
    state = model.state_dict()
    for name, tensor in read_all(model, weights, vae, ema_first=True):
        state[name] = tensor.to(device, dtype if tensor.is_floating_point() else None)
    model.load_state_dict(state, strict=True, assign=True)
    empty = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    assert not empty, f"no numbers for {empty}: such a buffer must be persistent or computed when used"
    return model.to(device).eval().requires_grad_(False)


def load_for_sampling(
    config: str | Path,
    ckpt: str | Path | Weights,
    vae_ckpt: str | Path | Weights | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> LatentDiffusion:
    """A model ready to sample, its memory laid out as suits the device.

    Args:
        config: YAML file of the model.
        ckpt, vae_ckpt: as of `load_model`.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "mps", or any name torch knows.
        precision: "auto" (fp16 on CUDA, else fp32), "fp32", "fp16" or "bf16".

    Raises:
        UserError: no such device or precision, or files that do not fit.
    """
    place = choose_device(device)
    dtype = DTYPES[choose_precision(precision, place)]
    model = load_model(config, ckpt, vae_ckpt=vae_ckpt, device=place, dtype=dtype)
    if place.type == "cpu":  # where a copy in another layout would not pay
        keep_freed_memory()
    else:
        for network in (model.model, model.first_stage_model):
            network.to(memory_format=torch.channels_last)
    return model


@torch.no_grad()
def load_for_training(model: LatentDiffusion, ckpt: str | Path, *, load_ema: bool = True) -> None:
    """Copy the weights of a file into an existing `LatentDiffusion`, on whatever device it is.

    Frozen weights in float32 on the CPU are not copied: they become views of the file.

    A first convolution of fewer input channels than the model's (text-to-image, 4, into edit, 8) fills the
    first ones; the others become zero, so that the network starts as the one in the file. A file that holds
    no plain copy of the network gives its EMA copy.

    Args:
        model: a model with its own numbers already (not on the meta device).
        ckpt: weights of the whole model.
        load_ema: continue the file's EMA copy where it has one; otherwise EMA starts at the loaded weights.

    Raises:
        UserError: the file cannot be read or does not fit the model.
    """
    weights = open_weights(ckpt)
    check_schedule(model, weights)
    state = model.state_dict()
    wanted = shapes_of(state, skip=SCHEDULE.union(n for n in state if n.startswith("model_ema.")))
    averages = shapes_of(state, skip=SCHEDULE.union(EMA_SETTINGS, wanted))
    located = locate(wanted, weights, widen=True)
    keep_ema = bool(averages) and load_ema and has_ema(weights)
    if keep_ema:
        located |= locate(averages, weights, widen=True)
    require_known(weights, wanted)
    _fill(model, weights, located)
    if averages and not keep_ema:
        model.model_ema.copy_from(model.model)
    elif "model_ema.num_updates" in weights.shapes and keep_ema:
        # Not `decay`: the configuration sets it, and in a half precision file 0.9999 has become 1.
        state["model_ema.num_updates"].copy_(weights.read("model_ema.num_updates"))


@torch.no_grad()
def load_autoencoder(model: AutoencoderKL, ckpt: str | Path) -> None:
    """Copy the weights of an autoencoder, alone in the file or part of a whole model, into an existing one.

    Frozen weights become views of the file, as in `load_for_training`.

    Raises:
        UserError: the file cannot be read or does not fit the model.
    """
    weights = open_weights(ckpt)
    state = {f"{VAE}{name}": t for name, t in model.state_dict().items() if not name.startswith("loss.")}
    wanted = shapes_of(state)
    _fill(model, weights, {name.removeprefix(VAE): at for name, at in locate(wanted, weights).items()})
    if not any(name.startswith("model.") for name in weights.shapes):
        require_known(weights, wanted)


def for_inference(config: DictConfig | Mapping[str, Any] | str | Path) -> DictConfig:
    """Return a copy of a model's configuration without EMA and without files to start from."""
    source = f" {config}" if isinstance(config, str | Path) else ""
    model = read_config(config)
    model = model.get("model", model) if isinstance(model, DictConfig) else None
    if not isinstance(model, DictConfig) or not isinstance(model.get("params"), DictConfig):
        raise UserError(f"configuration{source}: expected a model with 'target' and 'params'")
    model.params.use_ema = False
    for part in (model, *model.params.values()):
        if isinstance(part, DictConfig) and part.get("params"):
            part.params.pop("ckpt_path", None)
    return model


def without_numbers(config: DictConfig) -> LatentDiffusion:
    """Lay a model out on the meta device; its noise schedule alone has numbers."""
    with torch.device("meta"):
        model = instantiate_from_config(config)
    model.register_schedule()
    return model


def read_all(
    model: LatentDiffusion, weights: Weights, vae: Weights, *, ema_first: bool
) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight of a model, by model name, as its file has it.

    Raises:
        UserError: a file does not fit the model.
    """
    check_schedule(model, weights)
    wanted = shapes_of(model.state_dict(), skip=SCHEDULE)
    for file, is_vae in ((weights, False), (vae, True)):
        part = {name: shape for name, shape in wanted.items() if name.startswith(VAE) == is_vae}
        for name, stored in locate(part, file, ema_first=ema_first).items():
            yield name, file.read(stored)
        require_known(file, wanted)


def _fill(model: nn.Module, weights: Weights, located: Mapping[str, str]) -> None:
    """Give weights of a model their numbers, by model name → file name.

    A frozen parameter becomes a view of the mapped file where it can: what a training never uses, such as the
    decoder, then takes no memory.
    """
    state = model.state_dict()
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    for name, stored in located.items():
        source, target = weights.read(stored), state[name]
        alike = (source.shape, source.dtype, source.device) == (target.shape, target.dtype, target.device)
        if alike and name in frozen:
            frozen[name].data = source
        else:
            _copy(source, target)
    weights.release()  # the pages that were copied; nothing was written to a view


def _copy(source: Tensor, target: Tensor) -> None:
    """Copy a weight; where the target has more input channels (axis 1), those become zero."""
    if source.shape != target.shape:
        target.zero_()
        target = target[:, : source.shape[1]]
    target.copy_(source)
