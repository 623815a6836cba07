"""Runs of `generate_img_dataset.py` with small models on disk, in this process or another."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from dataset_creation import generate_img_dataset
from golden import fill
from ldm.util import instantiate_from_config
from ldm.weights.single_file import save_safetensors
from networks import text_config

SCRIPT = Path(generate_img_dataset.__file__)
SIZE = 64
CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
PROMPTS = [
    {"input": "a girl riding a horse", "edit": "make it a dragon", "output": "a girl riding a dragon"},
    {"caption": "a house", "edit": "add snow", "output": "a house in the snow", "url": "http://x.org/1.jpg"},
    {"input": "a red car", "edit": "paint it blue", "output": "a blue car"},
    {"input": "a cat", "edit": "give it a hat", "output": "a cat with a hat", "made_by": "a human"},
    {"input": "a lake", "edit": "at night", "output": "a lake at night"},
]


def write_models(folder: Path) -> None:
    """Write text.yaml with text.safetensors, and clip.json with clip.safetensors."""
    config = text_config()
    OmegaConf.save(OmegaConf.create({"model": config}), folder / "text.yaml")
    save_safetensors(fill(instantiate_from_config(config)).state_dict(), folder / "text.safetensors")
    (folder / "clip.json").write_text(json.dumps(CLIP))
    torch.manual_seed(0)
    clip = open_clip.CLIP(CLIP["embed_dim"], CLIP["vision_cfg"], CLIP["text_cfg"])
    save_file(clip.state_dict(), folder / "clip.safetensors")


def write_prompts(file: Path, prompts: list[dict[str, Any]] = PROMPTS) -> Path:
    file.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return file


def words_of(models: Path, out: Path, prompts: Path | None, **options: Any) -> list[str]:
    """A command line; options by name, with underscores, replace the small ones that it begins with."""
    usual = {
        "out_dir": out,
        "prompts_file": prompts,
        "config": models / "text.yaml",
        "ckpt": models / "text.safetensors",
        "vae-ckpt": "none",
        "resolution": SIZE,
        "steps": 3,
        "n_samples": 3,
        "max_out_samples": 2,
        "clip_threshold": 0,
        "clip_dir_threshold": 0,
        "clip_img_threshold": 0,
        "clip_model": models / "clip.json",
        "clip_weights": models / "clip.safetensors",
        "device": "cpu",
    }
    words = []
    for name, value in (usual | options).items():
        if value is None or value is False:
            continue
        option = f"--{name if name in ('out_dir', 'prompts_file') else name.replace('_', '-')}"
        words += [option] if value is True else [option, str(value)]
    return words


def start(
    words: list[str], env: dict[str, str] | None = None, launcher: tuple[str, ...] = (sys.executable,)
) -> subprocess.Popen[str]:
    """The program as a shell would run it, one thread; `launcher` stands before it."""
    return subprocess.Popen(
        [*launcher, str(SCRIPT), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the dataset itself, by its path."""
    files = sorted(file for file in folder.glob("[0-9]*/*") if file.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def metadata(folder: Path) -> list[dict[str, Any]]:
    """Lines of a prompt's ``metadata.jsonl``."""
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
