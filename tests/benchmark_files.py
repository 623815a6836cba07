"""Small files in the layouts of MagicBrush and of Emu Edit, with small models that score edits of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import open_clip
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from metrics.editsets.dino import MODEL
from pair_runs import CLIP

SESSIONS = {"7": 1, "30": 3, "139": 2}  # id → turns; in the file their rows are mixed


def picture(seed: int, width: int = 80, height: int = 64) -> Image.Image:
    """Soft blots."""
    blots = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize((width, height), Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def magicbrush_rows() -> list[dict[str, Any]]:
    """Sessions where every turn begins with the true picture of the turn before."""
    rows = [
        {
            "img_id": session,
            "turn_index": turn,
            "source_img": png(picture(10 * int(session) + turn - 1)),
            "mask_img": png(picture(0)),
            "instruction": f"give the man hat {turn}",
            "target_img": png(picture(10 * int(session) + turn)),
        }
        for session, turns in SESSIONS.items()
        for turn in range(1, turns + 1)
    ]
    return [rows[i] for i in (2, 0, 1, 4, 3, 5)]


def emu_rows() -> list[dict[str, Any]]:
    return [
        {
            "instruction": f"make it {i}",
            "image": png(picture(i)),
            "task": ("style", "add")[i % 2],
            "split": ("test", "validation")[i // 4],
            "idx": i,
            "hash": f"a{i}f",
            "input_caption": "a man",
            "output_caption": "a man" if i == 2 else f"a man with {i} hats",
        }
        for i in range(6)
    ]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as the hub's files are, by `datasets`."""
    kinds = {
        name: datasets.Image()
        if isinstance(value, bytes)
        else datasets.Value("int32" if isinstance(value, int) else "string")
        for name, value in rows[0].items()
    }
    columns = {name: [row[name] for row in rows] for name in kinds}
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_parquet(str(file))
    return file


def write_files(folder: Path) -> None:
    """Data of both, small CLIP and DINO models, and captions."""
    write(folder / "magicbrush.parquet", magicbrush_rows())
    write(folder / "emu.parquet", emu_rows())
    (folder / "clip.json").write_text(json.dumps(CLIP))
    torch.manual_seed(0)
    clip = open_clip.CLIP(CLIP["embed_dim"], CLIP["vision_cfg"], CLIP["text_cfg"])
    save_file(clip.state_dict(), folder / "clip.safetensors")
    save_file(timm.create_model(MODEL).state_dict(), folder / "dino.safetensors")
    captions = {
        session: {f"{session}-output{turn}.png": f"hat {turn}" for turn in range(1, turns + 1)}
        for session, turns in SESSIONS.items()
    }
    (folder / "captions.json").write_text(json.dumps(captions))
