"""A dataset of drawn pictures and configs of networks small enough to train in seconds on a CPU."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "cyan")
SIDE = 32

DDCONFIG = {
    "double_z": True,
    "z_channels": 4,
    "resolution": SIDE,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
TEXT_ENCODER = {
    "max_length": 8,
    "max_position_embeddings": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
UNET = {
    "image_size": 8,
    "in_channels": 8,
    "out_channels": 4,
    "model_channels": 32,
    "attention_resolutions": [2],
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "num_heads": 2,
    "use_spatial_transformer": True,
    "context_dim": 32,
}


def draw(colour: str, i: int, side: int = SIDE) -> Image.Image:
    """A disc whose place depends on `i`, in that colour on white."""
    image = Image.new("RGB", (side, side), "white")
    left, top = side // 8 + 2 * (i % 4), side // 8 + 2 * (i // 4)
    ImageDraw.Draw(image).ellipse((left, top, left + side // 2, top + side // 2), fill=colour)
    return image


def write_dataset(root: Path, count: int = 8, seeds: int = 1, caption: str = "input") -> Path:
    """Write `count` examples that turn a grey disc into a coloured one, in the published layout."""
    index = []
    for i in range(count):
        folder = root / f"{i:07}"
        folder.mkdir(parents=True)
        colour = COLOURS[i % len(COLOURS)]
        prompt = {caption: "a grey disc", "edit": f"make it {colour}", "output": f"a {colour} disc"}
        (folder / "prompt.json").write_text(json.dumps(prompt))
        for seed in range(seeds):
            draw("grey", i + seed).save(folder / f"{100 + seed}_0.jpg", quality=100)
            draw(colour, i + seed).save(folder / f"{100 + seed}_1.jpg", quality=100)
        index.append([folder.name, [str(100 + seed) for seed in range(seeds)]])
    (root / "seeds.json").write_text(json.dumps(index))
    return root


def _config(model: dict[str, Any], data: dict[str, Any], steps: int) -> Any:
    return OmegaConf.create(
        {
            "model": model,
            "data": {"target": "main.DataModuleFromConfig", "params": {"num_workers": 0, **data}},
            "lightning": {
                "modelcheckpoint": {"params": {"every_n_train_steps": steps}},
                "callbacks": {
                    "image_logger": {
                        "target": "main.ImageLogger",
                        "params": {"batch_frequency": steps, "max_images": 2, "increase_log_steps": False},
                    }
                },
                "trainer": {"max_steps": steps, "log_every_n_steps": 1},
            },
        }
    )


def autoencoder_config(dataset: Path, steps: int) -> Any:
    """Training of the autoencoder on all but the last pair, which validates."""
    model = {
        "base_learning_rate": 2e-3,
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {
            "embed_dim": 4,
            "monitor": "val/rec_loss",
            "ddconfig": DDCONFIG,
            "lossconfig": {"target": "ldm.modules.losses.ReconstructionKL"},
        },
    }
    pictures = "ldm.training.data.PictureDataset"
    data = {
        "batch_size": 4,
        "train": {"target": pictures, "params": {"path": str(dataset), "stop": -1}},
        "validation": {"target": pictures, "params": {"path": str(dataset), "start": -1}},
    }
    return _config(model, data, steps)


def edit_config(dataset: Path, autoencoder: Path, steps: int, cached: bool = False) -> Any:
    """Training of the edit model on half of the pairs, on pictures or on the latent cache."""
    first_stage = {
        "embed_dim": 4,
        "ckpt_path": str(autoencoder),
        "ddconfig": DDCONFIG,
        "lossconfig": {"target": "torch.nn.Identity"},
    }
    model = {
        "base_learning_rate": 2e-3,
        "target": "ldm.models.diffusion.ddpm_edit.LatentDiffusion",
        "params": {
            "linear_start": 0.00085,
            "linear_end": 0.012,
            "timesteps": 1000,
            "first_stage_key": "edited",
            "cond_stage_key": "edit",
            "channels": 4,
            "cond_stage_trainable": True,
            "conditioning_key": "hybrid",
            "monitor": "val/loss_simple_ema",
            "scale_factor": 1.0,
            "use_ema": True,
            "unet_config": {
                "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                "params": UNET,
            },
            "first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": first_stage},
            "cond_stage_config": {
                "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
                "params": TEXT_ENCODER,
            },
        },
    }
    target = "ldm.training.latent_cache.CachedEditDataset" if cached else "edit_dataset.EditDataset"
    sizes = {} if cached else {"min_resize_res": SIDE, "max_resize_res": SIDE, "crop_res": SIDE}
    params = {"path": str(dataset), "splits": [0.5, 0.25, 0.25], **sizes}
    data = {
        "batch_size": 4,
        "train": {"target": target, "params": {**params, "split": "train"}},
        "validation": {"target": target, "params": {**params, "split": "val"}},
    }
    return _config(model, data, steps)
