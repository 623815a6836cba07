"""Writing the latent cache that `ldm.training.latent_cache` describes and reads.

A shard says in its metadata what it was made of, so a stopped writing goes on with the first shard that is
not there, and of a grown dataset only shards with something new in them are written.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from ldm.data.formats import PROMPT, pair_paths, read_examples, read_picture, read_prompt
from ldm.models.autoencoder import AutoencoderKL
from ldm.pictures.fitting import to_tensor
from ldm.training.latent_cache import (
    FOLDER,
    INDEX,
    VERSION,
    CacheInfo,
    autoencoder_hash,
    file_size,
    seeds_hash,
    shard_path,
    weights_hash,
)
from ldm.util import UserError
from ldm.weights.single_file import save_safetensors

PRECISIONS = {"fp16": torch.float16, "fp32": torch.float32}

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class Contents:
    """What a dataset holds: distinct pictures and texts, in the order of their first appearance.

    Attributes:
        pictures: a file of each distinct picture.
        digests: SHA-256 of each.
        rows: [pairs, 2] pictures before and after, as indices.
        sizes: [pairs, 2] bytes of their files.
        texts: distinct instructions, the empty one first.
        text_rows: text of each example, as an index.
        prompt_sizes: bytes of each ``prompt.json``.
        shapes: every (height, width) in pixels that a picture has, with one such file.
    """

    pictures: list[Path] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    sizes: list[list[int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=lambda: [""])
    text_rows: list[int] = field(default_factory=list)
    prompt_sizes: list[int] = field(default_factory=list)
    shapes: dict[tuple[int, int], Path] = field(default_factory=dict)


def read_contents(path: str | Path) -> Contents:
    """Read every file of a dataset once. Broken and missing pictures count as pictures."""
    contents = Contents()
    picture_rows: dict[str, int] = {}
    text_rows = {"": 0}
    for example in tqdm(read_examples(path), desc="reading", unit=" prompts"):
        for seed in example.seeds:
            files = pair_paths(example.folder, seed)
            row = []
            for file in files:
                digest = _read_picture_file(file, contents.shapes)
                if digest not in picture_rows:
                    picture_rows[digest] = len(contents.pictures)
                    contents.pictures.append(file)
                    contents.digests.append(digest)
                row.append(picture_rows[digest])
            contents.rows.append(row)
            contents.sizes.append([file_size(file) for file in files])
        text = read_prompt(example.folder).edit
        if text not in text_rows:
            text_rows[text] = len(contents.texts)
            contents.texts.append(text)
        contents.text_rows.append(text_rows[text])
        contents.prompt_sizes.append(file_size(example.folder / PROMPT))
    return contents


def _read_picture_file(file: Path, shapes: dict[tuple[int, int], Path]) -> str:
    """Hash of a file, and note the picture's shape; for a missing one a hash of its name."""
    try:
        content = file.read_bytes()
    except OSError:
        return hashlib.sha256(f"missing {file}".encode()).hexdigest()
    try:
        with Image.open(BytesIO(content)) as image:
            shapes.setdefault((image.height, image.width), file)
    except Exception:  # as in `read_picture`; the encoding names such files
        pass
    return hashlib.sha256(content).hexdigest()


class CacheWriter:
    """Encodes a dataset and writes its cache.

    Args:
        autoencoder: in evaluation mode, on the device that computes.
        text_encoder: texts → [B, L, D], frozen, on that device; None when it is to be trained.
        resolution: pictures are resized to a square of this side; None: they all have one size.
        precision: of the stored numbers, ``fp16`` or ``fp32``.
        batch_size: pictures or texts at once.
        shard_size: pictures or texts a file; what is lost at most when the writing is stopped.
    """

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        text_encoder: Any = None,
        resolution: int | None = None,
        precision: str = "fp16",
        batch_size: int = 64,
        shard_size: int = 1024,
    ) -> None:
        for name, value in (("batch size", batch_size), ("shard size", shard_size)):
            if value < 1:
                raise UserError(f"latent cache: expected a {name} of at least 1, got {value}")
        if resolution is not None and (resolution < 1 or resolution % autoencoder.downsampling):
            raise UserError(
                f"latent cache: expected a resolution that is a multiple of {autoencoder.downsampling}, "
                f"got {resolution}"
            )
        self.autoencoder, self.text_encoder = autoencoder, text_encoder
        self.resolution = resolution
        self.precision = precision
        self.batch_size, self.shard_size = batch_size, shard_size
        self.device = autoencoder.quant_conv.weight.device

    def write(self, path: str | Path) -> Path:
        """Write the cache of the dataset at `path`, or what is missing of it; return its folder.

        Raises:
            UserError: not a dataset, no picture in it can be read, or their sizes differ and no resolution
                was given.
        """
        folder = Path(path) / FOLDER
        contents = read_contents(path)
        height, width = self._picture_size(contents)
        texts = contents.texts if self.text_encoder else []
        info = CacheInfo(
            autoencoder=autoencoder_hash(self.autoencoder),
            text_encoder=weights_hash(self.text_encoder) if self.text_encoder else None,
            seeds=seeds_hash(path),
            height=height,
            width=width,
            resized=self.resolution is not None,
            precision=self.precision,
            shard_size=self.shard_size,
            pictures=len(contents.pictures),
            texts=len(texts),
        )
        folder.mkdir(exist_ok=True)
        for part in folder.glob(".*.part"):  # a killed writing leaves one
            part.unlink()
        (folder / INDEX).unlink(missing_ok=True)  # while shards of two kinds may lie there, it is no cache
        made_of = [VERSION, info.autoencoder, height, width, self.precision]
        with ThreadPoolExecutor() as pool:
            encode = lambda files: self._encode_pictures(files, (height, width), pool)  # noqa: E731
            kept = self._write_shards(
                folder, "pictures", contents.pictures, contents.digests, made_of, encode
            )
        made_of = [VERSION, info.text_encoder, self.precision]
        kept |= self._write_shards(folder, "texts", texts, texts, made_of, self._encode_texts)
        for file in folder.glob("*.safetensors"):  # of an earlier and larger cache
            if file not in kept:
                file.unlink()
        index = {
            "rows": torch.tensor(contents.rows, dtype=torch.int64).reshape(-1, 2),
            "sizes": torch.tensor(contents.sizes, dtype=torch.int64).reshape(-1, 2),
            "texts": torch.tensor(contents.text_rows, dtype=torch.int64),
            "prompt_sizes": torch.tensor(contents.prompt_sizes, dtype=torch.int64),
        }
        save_safetensors(index, folder / INDEX, info.to_metadata())
        return folder

    def _picture_size(self, contents: Contents) -> tuple[int, int]:
        """Height and width to encode at."""
        if not contents.shapes:
            raise UserError("latent cache: expected pictures, got none that can be read")
        if self.resolution is not None:
            return self.resolution, self.resolution
        (shape, file), *others = contents.shapes.items()
        if others:
            other, other_file = others[0]
            raise UserError(
                f"latent cache: expected pictures of one size, got {shape[1]}x{shape[0]} ({file}) and "
                f"{other[1]}x{other[0]} ({other_file}); --resolution resizes them"
            )
        if any(side % self.autoencoder.downsampling for side in shape):
            raise UserError(
                f"latent cache: expected sides that are multiples of {self.autoencoder.downsampling}, "
                f"got {shape[1]}x{shape[0]}; --resolution resizes the pictures"
            )
        return shape

    def _write_shards(
        self,
        folder: Path,
        kind: str,
        items: Sequence[T],
        names: Sequence[str],
        made_of: Sequence[object],
        encode: Callable[[Sequence[T]], dict[str, Tensor]],
    ) -> set[Path]:
        """Write the shards that are not there yet; return the files of all.

        Args:
            items: to encode, one a row.
            names: what each is told by.
            made_of: what else the rows depend on.
            encode: a batch of items → rows of each tensor of the shard.
        """
        files = set()
        with tqdm(total=len(items), desc=f"encoding {kind}", unit=f" {kind}", disable=not items) as bar:
            for number, start in enumerate(range(0, len(items), self.shard_size)):
                end = min(start + self.shard_size, len(items))
                file = shard_path(folder, kind, number)
                files.add(file)
                source = hashlib.sha256(json.dumps([made_of, names[start:end]]).encode()).hexdigest()
                if _source_of(file) == source:
                    bar.update(end - start)
                    continue
                parts = []
                for first in range(start, end, self.batch_size):
                    parts.append(encode(items[first : min(first + self.batch_size, end)]))
                    bar.update(len(next(iter(parts[-1].values()))))
                shard = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                save_safetensors(shard, file, {"source": source})
        return files

    @torch.inference_mode()
    def _encode_pictures(
        self, files: Sequence[Path], size: tuple[int, int], pool: ThreadPoolExecutor
    ) -> dict[str, Tensor]:
        """``values`` [n, 2, 2 z, h, w] of pictures as they are and mirrored, and ``readable`` [n]."""
        pictures = list(pool.map(lambda file: _load(file, size), files))
        blank = torch.zeros(3, *size)
        x = torch.stack([blank if p is None else p for p in pictures]).to(self.device)  # [n, 3, H, W]
        both = [self.autoencoder.encode(side).parameters for side in (x, x.flip(3))]
        values = torch.stack(both, dim=1).to("cpu", PRECISIONS[self.precision])
        return {"values": values, "readable": torch.tensor([p is not None for p in pictures])}

    @torch.inference_mode()
    def _encode_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """``values`` [n, L, D]."""
        return {"values": self.text_encoder(list(texts)).to("cpu", PRECISIONS[self.precision])}


def _load(file: Path, size: tuple[int, int]) -> Tensor | None:
    """A picture at `size`, [3, H, W] in [-1, 1]; None, with a warning, when it cannot be read."""
    try:
        image = read_picture(file)
    except UserError as error:
        log.warning("left out: %s", error)
        return None
    return to_tensor(image.resize(size[::-1], Image.Resampling.LANCZOS))[0]


def _source_of(file: Path) -> str | None:
    """What a shard says that it was made of; None when it is not there or damaged."""
    try:
        with safe_open(file, framework="pt") as shard:
            return (shard.metadata() or {}).get("source")
    except (OSError, SafetensorError):
        return None
