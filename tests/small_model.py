"""The golden configuration as files that a user would have: a YAML file and its weights."""

from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from golden import fill, small_config
from ldm.util import instantiate_from_config
from ldm.weights.single_file import save_safetensors


def write_small_model(folder: Path) -> tuple[Path, Path]:
    """Write small.yaml, whose own resolution is 64, and small.safetensors; return their paths."""
    config = OmegaConf.create({"model": small_config()})
    OmegaConf.save(config, folder / "small.yaml")
    model = fill(instantiate_from_config(config.model))
    state = {name: weight for name, weight in model.state_dict().items() if not name.startswith("model_ema")}
    save_safetensors(state, folder / "small.safetensors")
    return folder / "small.yaml", folder / "small.safetensors"


def sample_picture() -> Image.Image:
    """A picture of 64x64 soft blots, always the same."""
    blots = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize((64, 64), Image.Resampling.BICUBIC)
