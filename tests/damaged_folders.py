"""Ways in which a diffusers folder can be no use, and what is said of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from format_models import UNET
from weights_files import State

VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"


def write_new(file: Path, text: str) -> None:
    """Write a file in the place of one that may be a link to another folder's."""
    file.unlink(missing_ok=True)
    file.write_text(text)


def change_json(file: Path, **content: Any) -> None:
    write_new(file, json.dumps(json.loads(file.read_text()) | content))


def change_weights(file: Path, change: Callable[[State], State]) -> None:
    state = change(load_file(file))
    file.unlink()
    save_file(state, file)


def list_of_files(folder: Path) -> None:
    """The UNet as several files, of which one is not there."""
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()
    places = {"conv_in.weight": "diffusion_pytorch_model-00001-of-00002.safetensors"}
    write_new(folder / f"{UNET}.index.json", json.dumps({"weight_map": places}))


def larger_text_encoder(folder: Path) -> None:
    """Twice as wide, as its description says."""
    change_weights(
        folder / TEXT_ENCODER,
        lambda state: {name: torch.cat([tensor, tensor], -1) for name, tensor in state.items()},
    )
    file = folder / "text_encoder/config.json"
    change_json(file, hidden_size=2 * json.loads(file.read_text())["hidden_size"])


def without_all(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def something_else(folder: Path) -> None:
    without_all(folder)
    (folder / "notes.txt").write_text("no model")


def sdxl(folder: Path) -> None:
    second = ["transformers", "CLIPTextModelWithProjection"]
    index = {"_class_name": "StableDiffusionXLPipeline", "text_encoder_2": second}
    change_json(folder / "model_index.json", **index)


def flux(folder: Path) -> None:
    write_new(
        folder / "model_index.json",
        json.dumps(
            {
                "_class_name": "FluxPipeline",
                "text_encoder": ["transformers", "CLIPTextModel"],
                "transformer": ["diffusers", "FluxTransformer2DModel"],
                "vae": ["diffusers", "AutoencoderKL"],
            }
        ),
    )


NO_FOLDER = "cannot read {}: expected a weights file, got a directory without model_index.json"
OTHER_MODEL = "cannot read {}: expected Stable Diffusion v1 or InstructPix2Pix, got "
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (without_all, NO_FOLDER),
    "no model": (something_else, NO_FOLDER),
    "no unet": (
        lambda folder: shutil.rmtree(folder / "unet"),
        "cannot read {}/unet/config.json: No such file or directory",
    ),
    "no weights": (lambda folder: (folder / VAE).unlink(), f"cannot read {{}}: there is no file {{}}/{VAE}"),
    "listed file": (
        list_of_files,
        "there is no file {}/unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    ),
    "shape": (
        lambda folder: change_weights(folder / VAE, lambda state: state | {"quant_conv.bias": torch.ones(7)}),
        "weights are of another shape: first_stage_model.quant_conv.bias: expected [8], got [7]",
    ),
    "text encoder": (
        larger_text_encoder,
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    ),
    "index": (lambda folder: write_new(folder / "model_index.json", "[]"), "/model_index.json: expected the"),
    "sdxl": (
        sdxl,
        OTHER_MODEL + "StableDiffusionXLPipeline with CLIPTextModelWithProjection as text_encoder_2",
    ),
    "flux": (flux, OTHER_MODEL + "FluxPipeline with nothing as unet"),
}
