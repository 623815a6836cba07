"""Weights of a model turned from one format into another."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from omegaconf import DictConfig, OmegaConf

from ldm.files import replacing
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import read_config
from ldm.weights.diffusers_folder import write_folder
from ldm.weights.loading import for_inference, read_all, without_numbers
from ldm.weights.matching import IGNORED
from ldm.weights.names import EMA_SETTINGS, SCHEDULE, ema_name, stored_dtype
from ldm.weights.opening import open_weights
from ldm.weights.single_file import save_safetensors


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
    model = without_numbers(for_inference(config))
    state = {name: tensor for name, tensor in model.state_dict().items() if name in SCHEDULE}
    state |= read_all(model, weights, vae, ema_first=keep == "ema")
    if keep == "both":
        others = SCHEDULE.union(EMA_SETTINGS, (ema_name(name) for name in state if name.startswith("model.")))
        names = (name for name in weights.shapes if name in others or IGNORED.fullmatch(name))
        state |= {name: weights.read(name) for name in names}
    if output.suffix == ".safetensors":
        save_safetensors(state, output, dtype=dtype)
    elif output.suffix == ".ckpt":
        state = {name: tensor.to(stored_dtype(name, tensor, dtype)) for name, tensor in state.items()}
        with replacing(output) as part, part.open("wb") as file:
            torch.save({"state_dict": state}, file)
    else:
        write_folder(output, model, state, _latent_size(read_config(config), model), dtype)


def _latent_size(config: DictConfig, model: LatentDiffusion) -> int:
    """Return the height of the latents that a model is for, by the first that its configuration has of: the
    size of its pictures, `image_size`, the size of its autoencoder's pictures."""
    params = config.get("model", config).params
    if size := OmegaConf.select(config, "data.params.validation.params.crop_res"):
        return (size if isinstance(size, int) else size[0]) // model.first_stage_model.downsampling
    resolution = params.first_stage_config.params.ddconfig.resolution
    return params.get("image_size") or resolution // model.first_stage_model.downsampling
