"""Diffusers' folders of Stable Diffusion v1 and InstructPix2Pix: reading, writing, fetching from the hub.

To those who read, a folder is a weights file like any other: names and shapes are those of published
CompVis checkpoints (`ldm.weights.diffusers_names`). A folder may hold the UNet twice, as that of Stable
Diffusion 1.5 does: the moving average under the usual name, the plain weights as a variant, ``non_ema``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ldm.files import HUB_NAME
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.encoders.bpe import END_TOKEN, START_TOKEN, load_bpe
from ldm.util import UserError, one_line
from ldm.weights.diffusers_names import DENSE, PREFIXES, name_map, part_configs
from ldm.weights.names import EMA_SETTINGS, ema_name
from ldm.weights.single_file import Weights, open_file, save_safetensors

INDEX = "model_index.json"
# The weights of each part: the file that is written, and the one of older folders.
FILES = {
    "unet": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "vae": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "text_encoder": ("model.safetensors", "pytorch_model.bin"),
}
# What a folder calls the network of each part.
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
PLAIN = ".non_ema"
PIPELINES = {"hybrid": "StableDiffusionInstructPix2PixPipeline", "crossattn": "StableDiffusionPipeline"}


class DiffusersWeights:
    """The weights of a diffusers folder, or of one that is an autoencoder alone. See `Weights`.

    Raises:
        UserError: it is no such folder, one of another model, or a part of it is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: list[Weights] = []
        self._places: dict[str, tuple[Weights, str]] = {}  # our name → the file, and the name there
        if (path / INDEX).is_file():
            check_index(path / INDEX, path)
            for part in FILES:
                self._add_part(part, path / part)
        elif (path / "config.json").is_file():
            self._add_part("vae", path)
        else:
            raise UserError(f"cannot read {path}: expected a weights file, got a directory without {INDEX}")

    def _add_part(self, part: str, folder: Path) -> None:
        config = _read_json(folder / "config.json")
        try:
            if config.get("_class_name", CLASSES[part]) != CLASSES[part]:
                raise ValueError(config["_class_name"])
            names = name_map(part, config)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"cannot read {folder / 'config.json'}: it describes no {part}") from error
        present = {file.name for file in folder.iterdir()}
        chosen, plain = choose_file(part, present), choose_file(part, present, [PLAIN])
        if chosen is None:
            raise UserError(f"cannot read {self.path}: there is no file {folder / FILES[part][0]}")
        for file, averaged in ((chosen, plain is not None), (plain, False)):
            for weights in _open_files(folder, file) if file else ():
                self._files.append(weights)
                for theirs, shape in weights.shapes.items():
                    ours = names.ours(theirs)
                    name = PREFIXES[part] + ours if ours else theirs  # which no model knows
                    if DENSE.fullmatch(name) and len(shape) == 2:
                        shape = (*shape, 1, 1)
                    name = ema_name(name) if averaged else name
                    self.shapes[name] = shape
                    self._places[name] = weights, theirs

    def read(self, name: str) -> Tensor:
        """Return one tensor, on the CPU, a view of the mapped file."""
        weights, theirs = self._places[name]
        return weights.read(theirs).view(self.shapes[name])

    def release(self) -> None:
        """See `MappedFile.release`."""
        for weights in self._files:
            weights.release()


def check_index(path: Path, model: Path | str) -> None:
    """Raise `UserError` where the parts that the index of a model names are not Stable Diffusion v1's."""
    index = _read_json(path)
    if not isinstance(index, dict):
        raise UserError(f"cannot read {path}: expected the parts of a model by name")
    kinds = {name: entry[-1] for name, entry in index.items() if isinstance(entry, list) and entry}
    for name in (*CLASSES, *(name for name in kinds if name.startswith("text_encoder_"))):
        if kinds.get(name) != CLASSES.get(name):
            raise UserError(
                f"cannot read {model}: expected Stable Diffusion v1 or InstructPix2Pix, got "
                f"{index.get('_class_name')} with {kinds.get(name) or 'nothing'} as {name}"
            )


def choose_file(part: str, present: Collection[str], variants: Collection[str] = ("", ".fp16")) -> str | None:
    """Return the file among `present` that has the weights of a part, or is the list of several that do.

    Args:
        part: a key of `FILES`.
        present: names of files in its folder.
        variants: which to take, the best first; safetensors come before them all.
    """
    for file in FILES[part]:
        stem, suffix = os.path.splitext(file)
        for variant in variants:
            for name in (f"{stem}{variant}{suffix}", f"{file}.index{variant}.json"):
                if name in present:
                    return name
    return None


def _open_files(folder: Path, name: str) -> list[Weights]:
    """Open the file of that name, or those that it lists."""
    if not name.endswith(".json"):
        return [open_file(folder / name)]
    try:
        files = sorted(set(_read_json(folder / name)["weight_map"].values()))
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {folder / name}: expected a list of files by 'weight_map'") from error
    return [open_file(folder / file) for file in files]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"cannot read {path}: it is no JSON ({one_line(error)})") from error


# --- the hub ---


def is_hub_name(name: str) -> bool:
    """Whether a model on the hub can have this name: ``owner/name``."""
    return bool(HUB_NAME.fullmatch(name)) and not name.startswith(".")


def fetch(name: str) -> Path:
    """Return the folder of a model on the hub; what is not in the cache is downloaded.

    Of each part one file is fetched, that which `choose_file` says, once the index tells of a model that can
    be read. Without a network the cache has to do.

    Raises:
        UserError: huggingface_hub is not installed, or the model cannot be had, or is of another kind.
    """
    try:
        from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
    except ImportError as error:
        raise UserError(
            f"there is no file {name}; a model on the hub needs: pip install huggingface_hub"
        ) from error
    try:
        files = HfApi().list_repo_files(name)
        if INDEX in files:
            check_index(Path(hf_hub_download(name, INDEX)), name)
        return Path(snapshot_download(name, allow_patterns=_needed(files)))
    except UserError:
        raise
    except Exception as error:  # from the network, the disk or the hub itself: almost any type
        with suppress(ValueError):  # no name that the hub could know
            for file in (INDEX, "config.json"):
                if isinstance(found := try_to_load_from_cache(name, file), str):
                    return Path(found).parent
        raise UserError(f"there is no file {name}, and the hub gives none: {one_line(error)}") from error


def _needed(files: Collection[str]) -> list[str]:
    """Return which files of a repository make up its model."""
    needed = [INDEX]
    for part, folder in {part: f"{part}/" for part in FILES}.items() if INDEX in files else [("vae", "")]:
        chosen = choose_file(part, {file.removeprefix(folder) for file in files if file.startswith(folder)})
        needed += [f"{folder}config.json"] + ([folder + chosen] if chosen else [])
        if chosen and chosen.endswith(".json"):
            needed.append(f"{folder}*-of-*{'.bin' if '.bin.' in chosen else '.safetensors'}")
    return needed


# --- writing ---


def write_folder(
    folder: Path,
    model: LatentDiffusion,
    state: Mapping[str, Tensor],
    latent_size: int,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a folder that diffusers' pipelines and `open_weights` read; it is there when it is complete.

    Args:
        folder: must not be there yet, or be empty.
        model: its sizes are described; may be on the meta device.
        state: published name → tensor. Where it has the moving average too, that is what pipelines take.
        latent_size: height of the latents that the model is for.
        dtype: precision; None leaves every weight as it is.

    Raises:
        UserError: the folder cannot be written, or diffusers has no such network.
    """
    configs = part_configs(model, latent_size)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"cannot write {folder}: expected a new or an empty folder")
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as beside:
            new = Path(beside, folder.name)
            for part, config in configs.items():
                _write_json(new / part / "config.json", config)
                _write_weights(new / part, part, config, state, dtype)
            _write_tokenizer(new / "tokenizer", model.cond_stage_model.tokenizer.max_length)
            _write_json(new / "scheduler/scheduler_config.json", _scheduler_config(model))
            _write_json(new / INDEX, _index(model))
            os.replace(new, folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error


def _write_weights(
    folder: Path, part: str, config: Mapping[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype | None
) -> None:
    names, prefix = name_map(part, config), PREFIXES[part]
    used: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}  # of a UNet that is there twice
    for name, tensor in state.items():
        theirs = names.theirs(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if theirs is None:
            continue
        if part == "vae" and DENSE.fullmatch(name):
            tensor = tensor.flatten(1)  # [out, in]
        if part == "unet" and ema_name(name) in state:
            plain[theirs], tensor = tensor, state[ema_name(name)]
        used[theirs] = tensor
    save_safetensors(used, folder / FILES[part][0], dtype=dtype)
    if plain:
        plain |= {name: state[name] for name in EMA_SETTINGS if name in state}
        stem, suffix = os.path.splitext(FILES[part][0])
        save_safetensors(plain, folder / f"{stem}{PLAIN}{suffix}", dtype=dtype)


def _write_tokenizer(folder: Path, max_length: int) -> None:
    folder.mkdir()
    load_bpe().model.save(str(folder))  # vocab.json and merges.txt
    tokens = {"bos_token": START_TOKEN, **dict.fromkeys(("eos_token", "pad_token", "unk_token"), END_TOKEN)}
    _write_json(folder / "special_tokens_map.json", tokens)
    settings = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "model_max_length": max_length}
    _write_json(folder / "tokenizer_config.json", settings | tokens)


def _scheduler_config(model: LatentDiffusion) -> dict[str, Any]:
    """The noise schedule; what the sampler named here does not know is for others that take its place."""
    return {
        "_class_name": "EulerAncestralDiscreteScheduler",
        "beta_end": model.linear_end,
        "beta_schedule": "scaled_linear",
        "beta_start": model.linear_start,
        "clip_sample": False,
        "num_train_timesteps": model.timesteps,
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    }


def _index(model: LatentDiffusion) -> dict[str, Any]:
    return {
        "_class_name": PIPELINES[model.model.conditioning_key],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "EulerAncestralDiscreteScheduler"],
        "text_encoder": ["transformers", CLASSES["text_encoder"]],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", CLASSES["unet"]],
        "vae": ["diffusers", CLASSES["vae"]],
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
