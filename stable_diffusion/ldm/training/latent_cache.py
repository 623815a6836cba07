"""Training on latents computed once: the autoencoder is frozen, so its posterior never changes.

A cache file beside ``seeds.json`` holds the posterior parameters of every distinct picture of a dataset
(pictures with equal bytes are stored once) and, for every pair, the rows of its two pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ldm.checkpoint import save_safetensors
from ldm.data.formats import SHARES, pair_paths, read_examples, read_picture, read_prompt, split_examples
from ldm.images import to_tensor
from ldm.models.autoencoder import AutoencoderKL
from ldm.util import UserError

CACHE_NAME = "latents.safetensors"


@torch.inference_mode()
def write_latent_cache(path: str | Path, autoencoder: AutoencoderKL, batch_size: int = 64) -> Path:
    """Encode every picture of a dataset and write its cache.

    Args:
        path: dataset whose pictures all have one size.
        autoencoder: in evaluation mode.

    Returns:
        The cache file: ``moments`` [pictures, 2 z, h, w] in fp16 and ``rows`` [pairs, 2].
    """
    row_of: dict[bytes, int] = {}
    files: list[Path] = []
    rows: list[list[int]] = []
    for example in tqdm(read_examples(path), desc="reading", unit=" prompts"):
        for seed in example.seeds:
            pair = []
            for file in pair_paths(example.folder, seed):
                digest = hashlib.sha256(file.read_bytes()).digest()
                if digest not in row_of:
                    row_of[digest] = len(files)
                    files.append(file)
                pair.append(row_of[digest])
            rows.append(pair)
    moments: list[Tensor] = []
    for start in tqdm(range(0, len(files), batch_size), desc="encoding", unit=" batches"):
        x = torch.cat([to_tensor(read_picture(f)) for f in files[start : start + batch_size]])  # [B, 3, H, W]
        moments.append(autoencoder.encode(x).parameters.half())
    out = Path(path) / CACHE_NAME
    save_safetensors({"moments": torch.cat(moments), "rows": torch.tensor(rows)}, out)
    return out


class CachedEditDataset(Dataset):
    """The pairs of `EditDataset` as posterior parameters [2 z, h, w] instead of pictures.

    Args:
        path, split, splits: as for `EditDataset`.
    """

    def __init__(self, path: str, split: str = "train", splits: Sequence[float] = SHARES) -> None:
        file = Path(path) / CACHE_NAME
        if not file.is_file():
            raise UserError(f"latent cache: expected {file}; dataset_creation/cache_latents.py writes it")
        cache = load_file(file)
        self.moments = cache["moments"]
        examples = read_examples(path)
        pairs = [(example.folder, seed) for example in examples for seed in example.seeds]
        if len(pairs) != len(cache["rows"]):
            raise UserError(f"latent cache: {file} is of {len(cache['rows'])} pairs, {path} has {len(pairs)}")
        row_of = dict(zip(pairs, cache["rows"].tolist(), strict=True))
        self.items = [
            (example.folder, [row_of[example.folder, seed] for seed in example.seeds])
            for example in split_examples(examples, split, splits)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> dict[str, Any]:
        folder, choices = self.items[i]
        before, after = choices[int(torch.randint(len(choices), ()))]
        edit = {"c_concat": self.moments[before].float(), "c_crossattn": read_prompt(folder).edit}
        return {"edited": self.moments[after].float(), "edit": edit}
