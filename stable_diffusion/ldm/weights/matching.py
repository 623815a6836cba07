"""Which weight of a file is which of a model, and what is said when the two do not fit.

A file must fit its model: every weight there, of the right shape, and nothing left over but `IGNORED` names.
*Model name* is a key of the model's state dict, *file name* the key under which a file stores that weight.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import UserError
from ldm.weights.names import EMA_SETTINGS, SCHEDULE, ema_name
from ldm.weights.single_file import Weights

# What a file may hold although no model here has it, beside SCHEDULE and EMA_SETTINGS: token positions, which
# older versions of transformers stored, and the autoencoder's training loss.
IGNORED = re.compile(r".*\.position_ids|(first_stage_model\.)?loss\..*")
_FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"
VAE = "first_stage_model."


def shapes_of(state: Mapping[str, Tensor], skip: Iterable[str] = ()) -> dict[str, tuple[int, ...]]:
    """Return name → shape of all tensors but those to skip."""
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name not in skip}


def has_ema(weights: Weights) -> bool:
    """Whether a file holds the moving average of the network."""
    return any(name.startswith("model_ema.diffusion_model") for name in weights.shapes)


def _file_names(name: str) -> list[str]:
    """Return all names under which files store the weight of a model name, the published one first."""
    if name.startswith("model."):
        return [name, ema_name(name)]
    if name.startswith("cond_stage_model.") and ".text_model." in name:
        return [name, name.replace(".text_model.", ".", 1)]  # transformers 5 dropped that level
    if name.startswith(VAE):
        return [name, name.removeprefix(VAE)]  # an autoencoder alone
    return [name]


def locate(
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
    only_ema = ema_first and has_ema(weights)
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
            "decoder.conv_in.weight" in weights.shapes or all(n.startswith(VAE) for n in weights.shapes)
        )
        what = "missing (it is an autoencoder, for --vae-ckpt)" if is_vae else "missing"
        raise UserError(_misfit(weights.path, missing, len(wanted), what))
    if misfits:
        raise UserError(_misfit(weights.path, misfits, len(wanted), "of another shape"))
    return located


def require_known(weights: Weights, wanted: Iterable[str]) -> None:
    """Raise `UserError` if a file holds a name that is neither wanted in any spelling nor to be ignored."""
    known = SCHEDULE.union(EMA_SETTINGS, *(_file_names(name) for name in wanted))
    unknown = [name for name in weights.shapes if name not in known and not IGNORED.fullmatch(name)]
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


def check_schedule(model: LatentDiffusion, weights: Weights) -> None:
    """Raise `UserError` if a file was made for another noise schedule than the model's."""
    if "alphas_cumprod" not in weights.shapes:
        return
    ours, theirs = model.alphas_cumprod.cpu().float(), weights.read("alphas_cumprod").float()
    # Files in half precision are rounded; another schedule is off by far more.
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=0.02, atol=1e-3):
        raise UserError(f"{weights.path} was trained with another noise schedule than the configuration's")
