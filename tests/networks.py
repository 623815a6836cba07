"""The golden configuration's networks with their test weights, ready for inference."""

from functools import cache

from omegaconf import DictConfig, OmegaConf

from golden import fill, small_config
from ldm.models.diffusion import ddpm, ddpm_edit
from ldm.util import instantiate_from_config


@cache
def edit_network() -> ddpm_edit.LatentDiffusion:
    """The small edit model; shared, so read only."""
    config = small_config()
    config.params.use_ema = False
    return fill(instantiate_from_config(config)).eval().requires_grad_(False)


def text_config() -> DictConfig:
    """The configuration of its text-to-image twin, without the image latent at the input."""
    return OmegaConf.merge(
        small_config(),
        {
            "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
            "params": {
                "use_ema": False,
                "conditioning_key": "crossattn",
                "unet_config": {"params": {"in_channels": 4}},
            },
        },
    )


@cache
def text_network() -> ddpm.LatentDiffusion:
    """The text-to-image twin; shared, so read only."""
    return fill(instantiate_from_config(text_config())).eval().requires_grad_(False)
