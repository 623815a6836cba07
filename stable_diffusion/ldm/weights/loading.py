"""Models and their weights files: the only place that brings the two together.

A file stays on disk until a tensor is asked for (`ldm.weights.opening`), so of a file with two copies of the
network just the one in use is ever held.

A file must fit its model: every weight there, of the right shape, and nothing left over but the names that
`_IGNORED` lists. Names in this module: *model name*, a key of the model's state dict; *file name*, the key
under which a file stores that weight.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ldm.device import DTYPES, choose_device, choose_precision, keep_freed_memory
from ldm.files import replacing
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import UserError, instantiate_from_config, read_config
from ldm.weights.diffusers_folder import write_folder
from ldm.weights.names import EMA_SETTINGS, SCHEDULE, ema_name, stored_dtype
from ldm.weights.opening import open_weights
from ldm.weights.single_file import Weights, save_safetensors

# What a file may hold although no model here has it, beside these two sets: token positions 0, 1, 2, …, which
# older versions of transformers stored, and the autoencoder's training loss.
_IGNORED = re.compile(r".*\.position_ids|(first_stage_model\.)?loss\..*")
_FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"
_VAE = "first_stage_model."


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
    model = _without_numbers(_for_inference(config))
    state = model.state_dict()
    for name, tensor in _read(model, weights, vae, ema_first=True):
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
    _check_schedule(model, weights)
    state = model.state_dict()
    wanted = _shapes(state, skip=SCHEDULE.union(n for n in state if n.startswith("model_ema.")))
    averages = _shapes(state, skip=SCHEDULE.union(EMA_SETTINGS, wanted))
    located = _locate(wanted, weights, widen=True)
    keep_ema = bool(averages) and load_ema and _has_ema(weights)
    if keep_ema:
        located |= _locate(averages, weights, widen=True)
    _require_known(weights, wanted)
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
    state = {f"{_VAE}{name}": t for name, t in model.state_dict().items() if not name.startswith("loss.")}
    wanted = _shapes(state)
    _fill(model, weights, {name.removeprefix(_VAE): at for name, at in _locate(wanted, weights).items()})
    if not any(name.startswith("model.") for name in weights.shapes):
        _require_known(weights, wanted)


def convert_weights(
    config: str | Path,
    ckpt: str | Path,
    output: Path,
    *,
    vae_ckpt: str | Path | None = None,
    dtype: torch.dtype | None = None,
    keep: Literal["ema", "plain", "both"] = "ema",
) -> None:
    """Write the weights of a model in another format: .safetensors, .ckpt, or a diffusers folder.

    They are read as they are written, from the mapped file. A diffusers folder has no place for the noise
    schedule itself, only for what it is computed from.

    Args:
        config: YAML file of the model.
        ckpt: its weights, in any format.
        output: what to write; its suffix says in which format, none says a folder.
        vae_ckpt: weights of the autoencoder, used in place of those in `ckpt`.
        dtype: precision; None leaves every weight as it is.
        keep: of a file with two copies of the UNet the moving average, the plain copy, or both of them with
            everything else that the file has. Of a file with one copy, that one.

    Raises:
        UserError: a file cannot be read, does not fit the configuration, or cannot be written.
    """
    weights = open_weights(ckpt)
    vae = open_weights(vae_ckpt) if vae_ckpt else weights
    model = _without_numbers(_for_inference(config))
    state = {name: tensor for name, tensor in model.state_dict().items() if name in SCHEDULE}
    state |= _read(model, weights, vae, ema_first=keep == "ema")
    if keep == "both":
        others = SCHEDULE.union(EMA_SETTINGS, (ema_name(name) for name in state if name.startswith("model.")))
        names = (name for name in weights.shapes if name in others or _IGNORED.fullmatch(name))
        state |= {name: weights.read(name) for name in names}
    if output.suffix == ".safetensors":
        save_safetensors(state, output, dtype=dtype)
    elif output.suffix == ".ckpt":
        state = {name: tensor.to(stored_dtype(name, tensor, dtype)) for name, tensor in state.items()}
        with replacing(output) as part, part.open("wb") as file:
            torch.save({"state_dict": state}, file)
    else:
        write_folder(output, model, state, _latent_size(read_config(config), model), dtype)


def _for_inference(config: DictConfig | Mapping[str, Any] | str | Path) -> DictConfig:
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


def _without_numbers(config: DictConfig) -> LatentDiffusion:
    """Lay a model out on the meta device; its noise schedule alone has numbers."""
    with torch.device("meta"):
        model = instantiate_from_config(config)
    model.register_schedule()
    return model


def _latent_size(config: DictConfig, model: LatentDiffusion) -> int:
    """Return the height of the latents that a model is for, by the first that its configuration has of: the
    size of its pictures, `image_size`, the size of its autoencoder's pictures."""
    params = config.get("model", config).params
    if size := OmegaConf.select(config, "data.params.validation.params.crop_res"):
        return (size if isinstance(size, int) else size[0]) // model.first_stage_model.downsampling
    resolution = params.first_stage_config.params.ddconfig.resolution
    return params.get("image_size") or resolution // model.first_stage_model.downsampling


def _read(
    model: LatentDiffusion, weights: Weights, vae: Weights, *, ema_first: bool
) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight of a model, by model name, as its file has it.

    Raises:
        UserError: a file does not fit the model.
    """
    _check_schedule(model, weights)
    wanted = _shapes(model.state_dict(), skip=SCHEDULE)
    for file, is_vae in ((weights, False), (vae, True)):
        part = {name: shape for name, shape in wanted.items() if name.startswith(_VAE) == is_vae}
        for name, stored in _locate(part, file, ema_first=ema_first).items():
            yield name, file.read(stored)
        _require_known(file, wanted)


def _shapes(state: Mapping[str, Tensor], skip: Iterable[str] = ()) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name not in skip}


def _has_ema(weights: Weights) -> bool:
    return any(name.startswith("model_ema.diffusion_model") for name in weights.shapes)


def _file_names(name: str) -> list[str]:
    """Return all names under which files store the weight of a model name, the published one first."""
    if name.startswith("model."):
        return [name, ema_name(name)]
    if name.startswith("cond_stage_model.") and ".text_model." in name:
        return [name, name.replace(".text_model.", ".", 1)]  # transformers 5 dropped that level
    if name.startswith(_VAE):
        return [name, name.removeprefix(_VAE)]  # an autoencoder alone
    return [name]


def _locate(
    wanted: Mapping[str, tuple[int, ...]], weights: Weights, *, ema_first: bool = False, widen: bool = False
) -> dict[str, str]:
    """Return the file name for each model name of `wanted` (name → shape).

    Args:
        wanted: what the model needs.
        weights: where to look.
        ema_first: take ``model.…`` from the EMA copy alone where the file has one.
        widen: accept a first convolution with fewer input channels.

    Raises:
        UserError: weights are missing or have other shapes.
    """
    only_ema = ema_first and _has_ema(weights)
    located, missing, misfits = {}, [], []
    for name, shape in wanted.items():
        names = [ema_name(name)] if only_ema and name.startswith("model.") else _file_names(name)
        stored = next((n for n in names if n in weights.shapes), None)
        if stored is None:
            missing.append(name)
            continue
        located[name] = stored
        given = weights.shapes[stored]
        if given == shape:
            continue
        is_first = stored in _file_names(_FIRST_CONVOLUTION) and len(given) == len(shape) == 4
        if is_first and given[1] != shape[1] and not (widen and given[1] < shape[1]):
            raise UserError(_wrong_kind(weights.path, expected=shape[1], given=given[1]))
        if not (is_first and given[:1] + given[2:] == shape[:1] + shape[2:]):
            misfits.append(f"{stored}: expected {list(shape)}, got {list(given)}")
    if missing:
        is_vae = missing[0].startswith("model.") and (
            "decoder.conv_in.weight" in weights.shapes or all(n.startswith(_VAE) for n in weights.shapes)
        )
        what = "missing (it is an autoencoder, for --vae-ckpt)" if is_vae else "missing"
        raise UserError(_misfit(weights.path, missing, len(wanted), what))
    if misfits:
        raise UserError(_misfit(weights.path, misfits, len(wanted), "of another shape"))
    return located


def _require_known(weights: Weights, wanted: Iterable[str]) -> None:
    """Raise `UserError` if a file holds a name that is neither wanted in any spelling nor to be ignored."""
    known = SCHEDULE.union(EMA_SETTINGS, *(_file_names(name) for name in wanted))
    unknown = [name for name in weights.shapes if name not in known and not _IGNORED.fullmatch(name)]
    if unknown:
        raise UserError(_misfit(weights.path, unknown, len(weights.shapes), "unknown to the model"))


def _misfit(path: Path, items: list[str], total: int, what: str) -> str:
    first = ", ".join(items[:5]) + (", …" if len(items) > 5 else "")
    return f"{path} does not fit the model: {len(items)} of {total} weights are {what}: {first}"


def _wrong_kind(path: Path, expected: int, given: int) -> str:
    kinds = {4: "a text-to-image model", 8: "an edit model"}
    return (
        f"{path} is for {kinds.get(given, 'a model')} ({given} input channels), but the configuration is for "
        f"{kinds.get(expected, 'a model')} ({expected} input channels)"
    )


def _check_schedule(model: LatentDiffusion, weights: Weights) -> None:
    """Raise `UserError` if a file was made for another noise schedule than the model's."""
    if "alphas_cumprod" not in weights.shapes:
        return
    ours, theirs = model.alphas_cumprod.cpu().float(), weights.read("alphas_cumprod").float()
    # Files in half precision are rounded; another schedule is off by far more.
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=0.02, atol=1e-3):
        raise UserError(f"{weights.path} was trained with another noise schedule than the configuration's")


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
