"""Models of any size with random weights, always the same, on disk for ours and for diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import instantiate_from_config, read_config
from ldm.weights.converting import convert_weights
from ldm.weights.names import ema_name
from ldm.weights.single_file import save_safetensors


def random_model(
    config: Any, device: torch.device | str = "cpu", scale: float = 0.5, spread: float = 0.1
) -> LatentDiffusion:
    """The model of a config's section `model`, without an average; activations are of order one.

    Args:
        scale: standard deviation of a sum of one layer's weights times inputs of order one.
        spread: standard deviation of biases around 0, and of scales of normalisations around 1.
    """
    config.params.use_ema = False
    with torch.device("meta"):
        model = instantiate_from_config(config)
    model = model.to_empty(device=device)
    model.register_schedule()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, scale * weight[0].numel() ** -0.5, generator=generator)
            else:
                weight.normal_(float(name.endswith("weight")), spread, generator=generator)
    return model.to(device).eval().requires_grad_(False)


def write_random(config: Path, folder: Path, *, ema: bool = False) -> Path:
    """Write random weights for a config's model to `folder` as ours, and as diffusers/ for its pipelines.

    Both are there already where an earlier run has left them.

    Args:
        ema: add a moving average of the UNet, as the published file has one; it equals the weights.

    Returns:
        Our file, in the published layout.
    """
    file = folder / ("ema.safetensors" if ema else "weights.safetensors")
    if not file.exists():
        state = random_model(read_config(config).model).state_dict()
        if ema:
            state |= {ema_name(name): state[name] for name in [*state] if name.startswith("model.")}
        save_safetensors(state, file)
    if not (folder / "diffusers").exists():
        convert_weights(config, file, folder / "diffusers")
    return file
