"""Training on what frozen networks compute once: the autoencoder's posteriors and the text embeddings.

The cache of a dataset is the folder ``latents`` beside its ``seeds.json``, written by
`ldm.training.cache_writer`:

- ``pictures-00000.safetensors``, …: ``values`` [n, 2, 2 z, h, w], posterior parameters of n distinct
  pictures, each as it is and mirrored, and ``readable`` [n], false for one that could not be decoded;
- ``texts-00000.safetensors``, …: ``values`` [n, L, D], the conditioning of n distinct instructions, that of
  the empty text first; absent where the text encoder is trained;
- ``index.safetensors``, written last: ``rows`` [pairs, 2], which picture is before and after, ``sizes``
  [pairs, 2], bytes of their files, ``texts`` [examples], which text, and ``prompt_sizes`` [examples], bytes
  of ``prompt.json``; its metadata is the `CacheInfo`.

Every shard but the last holds `CacheInfo.shard_size` rows.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ldm.data.formats import INDEX as SEEDS
from ldm.data.formats import PROMPT, Example, pair_paths, read_examples, read_prompt
from ldm.data.pairs import SplitDataset, check_share, draw_seed
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import UserError

FOLDER = "latents"
INDEX = "index.safetensors"
VERSION = 1  # of the layout above
POSTERIOR = ("encoder.", "quant_conv.")  # the weights that latents depend on: another decoder may come


@dataclass(frozen=True)
class CacheInfo:
    """What a cache was made of.

    Attributes:
        autoencoder: hash of the weights that make posteriors.
        text_encoder: hash of its weights; None when the cache has no texts.
        seeds: hash of ``seeds.json``.
        height, width: of the encoded pictures, in pixels.
        resized: pictures were resized to that size, not of that size.
        precision: fp16 or fp32.
        shard_size: rows of a shard.
        pictures, texts: distinct ones.
        version: of the layout.
    """

    autoencoder: str
    text_encoder: str | None
    seeds: str
    height: int
    width: int
    resized: bool
    precision: str
    shard_size: int
    pictures: int
    texts: int
    version: int = VERSION

    def to_metadata(self) -> dict[str, str]:
        """As safetensors stores it."""
        return {"cache": json.dumps(asdict(self))}


def shard_path(folder: Path, kind: str, number: int) -> Path:
    """File of a shard of ``pictures`` or ``texts``."""
    return folder / f"{kind}-{number:05}.safetensors"


def weights_hash(module: nn.Module, prefixes: tuple[str, ...] = ("",)) -> str:
    """SHA-256 of those weights of a network, in float32, whose names start with one of the prefixes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name.startswith(prefixes):
            digest.update(f"{name} {list(tensor.shape)};".encode())
            digest.update(tensor.detach().to("cpu", torch.float32).reshape(-1).numpy())
    return digest.hexdigest()


def autoencoder_hash(autoencoder: AutoencoderKL) -> str:
    """`weights_hash` of the part that makes posteriors."""
    return weights_hash(autoencoder, POSTERIOR)


def seeds_hash(path: str | Path) -> str:
    """SHA-256 of a dataset's ``seeds.json``."""
    return hashlib.sha256((Path(path) / SEEDS).read_bytes()).hexdigest()


def file_size(file: Path) -> int:
    """Bytes of a file, -1 when it is not there."""
    try:
        return file.stat().st_size
    except OSError:
        return -1


def read_info(folder: Path) -> CacheInfo:
    """What the cache in that folder was made of.

    Raises:
        UserError: there is none, it is damaged, or of another version of the layout.
    """
    file = folder / INDEX
    renewal = renewal_command(folder.parent)
    if not file.is_file():
        raise UserError(f"latent cache: expected {file}, which is not there; write it: {renewal}")
    try:
        with safe_open(file, framework="pt") as index:
            values = json.loads((index.metadata() or {}).get("cache", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"latent cache: cannot read {file} ({error}); renew it: {renewal}") from error
    if values.get("version") != VERSION:
        given = values.get("version")
        raise UserError(
            f"latent cache: expected version {VERSION}, got {given}: {folder}; renew it: {renewal}"
        )
    return CacheInfo(**values)


def renewal_command(
    path: str | Path,
    info: CacheInfo | None = None,
    ckpt: str | None = None,
    vae_ckpt: str | None = None,
    resolution: int | None = None,
) -> str:
    """The command line that writes the cache of the dataset at `path` again.

    Args:
        info: of the cache as it is; gives the options.
        ckpt, vae_ckpt: weights to name, of the whole model and of the autoencoder.
        resolution: to ask for in place of the cache's.
    """
    words = ["python dataset_creation/cache_latents.py", shlex.quote(str(path)), "--config CONFIG --ckpt"]
    words.append(shlex.quote(ckpt or vae_ckpt or "WEIGHTS"))
    if ckpt and vae_ckpt:
        words.append(f"--vae-ckpt {shlex.quote(vae_ckpt)}")
    if resolution is None and info and info.resized:
        resolution = info.height
    if resolution is not None:
        words.append(f"--resolution {resolution}")
    if info and info.precision != "fp16":
        words.append(f"--precision {info.precision}")
    return " ".join(words)


class ShardedRows:
    """Rows of tensors that lie in shards, mapped into memory: only the rows that are asked for are read.

    Args:
        folder, kind: where the shards are, see `shard_path`.
        count: rows in all.
        shard_size: rows of a shard.

    Raises:
        UserError: a shard is missing.
    """

    def __init__(self, folder: Path, kind: str, count: int, shard_size: int) -> None:
        self.folder, self.kind, self.count, self.shard_size = folder, kind, count, shard_size
        self._shards: dict[int, Any] = {}
        for number in range(-(-count // shard_size)):
            file = shard_path(folder, kind, number)
            if not file.is_file():
                raise UserError(
                    f"latent cache: {file} is missing; write it: {renewal_command(folder.parent)}"
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}  # open files do not travel to another process

    def read(self, name: str, *place: int) -> Tensor:
        """Part of the tensor `name` as it is stored: the row ``place[0]`` and, in it, ``place[1:]``."""
        row, *rest = place
        assert 0 <= row < self.count
        number, row = divmod(row, self.shard_size)
        if number not in self._shards:
            self._shards[number] = safe_open(shard_path(self.folder, self.kind, number), framework="pt")
        return self._shards[number].get_slice(name)[(row, *rest)]


@dataclass(eq=False, repr=False)
class CachedEditDataset(SplitDataset):
    """The pairs of `EditDataset` as posterior parameters [2 z, h, w] instead of pictures.

    Seeds and flips are drawn as `EditDataset` draws them at a fixed size, so the same random state gives the
    same example.

    Args:
        path, split, splits: as for `SplitDataset`.
        flip_prob: chance that both pictures of a pair are mirrored.
        resolution: side in pixels that the pictures must have been encoded at; None: whatever it is.

    Attributes:
        examples: number, place of its pairs in ``rows``, and the example itself.

    Raises:
        UserError: there is no cache, or it is not of this dataset or of that resolution.
    """

    flip_prob: float = 0.0
    resolution: int | None = None

    def __post_init__(self) -> None:
        check_share("flip_prob", self.flip_prob)
        self.folder = Path(self.path) / FOLDER
        super().__post_init__()
        info = self.info
        with safe_open(self.folder / INDEX, framework="pt") as index:
            self._rows, self._texts = index.get_tensor("rows"), index.get_tensor("texts")
            sizes, prompt_sizes = index.get_tensor("sizes"), index.get_tensor("prompt_sizes")
        self._pictures = ShardedRows(self.folder, "pictures", info.pictures, info.shard_size)
        self._embeddings = ShardedRows(self.folder, "texts", info.texts, info.shard_size)
        for number, start, example in self.examples:
            self._check_files(example, sizes[start : start + len(example.seeds)], int(prompt_sizes[number]))

    def read_all(self) -> list[tuple[int, int, Example]]:
        examples = read_examples(self.path)
        self.info = info = read_info(self.folder)
        self.crop_res = (info.height, info.width)
        if seeds_hash(self.path) != info.seeds:
            raise self._stale(f"of other data: {Path(self.path) / SEEDS} has changed")
        side = self.resolution
        if side not in (None, info.height) or (side and info.width != info.height):
            raise self._stale(f"at {info.width}x{info.height} pixels, expected {side}x{side}", side)
        ends = accumulate(len(example.seeds) for example in examples)
        starts = [0, *ends][: len(examples)]  # of each example's pairs in `rows`
        return list(zip(range(len(examples)), starts, examples, strict=True))

    def _stale(self, what: str, resolution: int | None = None) -> UserError:
        command = renewal_command(self.path, self.info, resolution=resolution)
        return UserError(f"latent cache {self.folder} is {what}; renew it: {command}")

    def _check_files(self, example: Example, sizes: Tensor, prompt_size: int) -> None:
        """Raise `UserError` when a file of the example has another size than when it was encoded."""
        files = [file for seed in example.seeds for file in pair_paths(example.folder, seed)]
        expected = sizes.flatten().tolist()
        if self.info.text_encoder:
            files.append(example.folder / PROMPT)
            expected.append(prompt_size)
        for file, size in zip(files, expected, strict=True):
            if file_size(file) != size:
                raise self._stale(f"of other data: {file} has changed")

    def __getitem__(self, i: int) -> dict[str, Any]:
        number, start, example = self.examples[i]
        choice = draw_seed(example)
        torch.randint(1, ())  # in place of the size that `EditDataset` draws here
        mirrored = int(torch.rand(()) < self.flip_prob)
        pair = []
        files = pair_paths(example.folder, example.seeds[choice])
        for file, row in zip(files, self._rows[start + choice].tolist(), strict=True):
            if not self._pictures.read("readable", row):
                raise UserError(f"dataset: {file} could not be read when it was to be encoded")
            pair.append(self._pictures.read("values", row, mirrored).float())  # [2 z, h, w]
        instruction = read_prompt(example.folder).edit
        edit = {"c_concat": pair[0], "c_crossattn": instruction}
        if self.info.text_encoder:
            edit["instruction"] = instruction
            edit["c_crossattn"] = self._embeddings.read("values", int(self._texts[number])).float()  # [L, D]
        return {"edited": pair[1], "edit": edit}


def check_caches(datasets: Iterable[Any], network: nn.Module) -> None:
    """Refuse latent caches that were not made by the networks that a training holds.

    Args:
        datasets: of the training; each `CachedEditDataset` is checked, also in the `datasets` of a mix.
        network: with the weights that the training starts from.

    Raises:
        UserError: a cache was written with other weights, or holds texts although their encoder is trained.
    """
    caches = list(_caches(datasets))
    if not caches:
        return
    if not isinstance(network, LatentDiffusion):
        raise UserError("latent cache: expected a diffusion model to train on it, got another network")
    autoencoder, encoder = network.first_stage_model, network.cond_stage_model
    expected = autoencoder_hash(autoencoder)
    has_texts = any(cache.info.text_encoder for cache in caches)
    trained = any(p.requires_grad for p in encoder.parameters())
    texts = weights_hash(encoder) if has_texts and not trained else None
    for cache in caches:
        command = renewal_command(cache.path, cache.info, network.ckpt_path, autoencoder.ckpt_path)
        end = f"; renew it with this training's config and weights: {command}"
        where = f"latent cache {cache.folder}"
        if cache.info.autoencoder != expected:
            raise UserError(f"{where} is of other weights of the autoencoder{end}")
        if cache.info.text_encoder and trained:
            raise UserError(f"{where} holds texts of a frozen text encoder, but this training trains it{end}")
        if cache.info.text_encoder and cache.info.text_encoder != texts:
            raise UserError(f"{where} is of other weights of the text encoder{end}")


def _caches(datasets: Iterable[Any]) -> Iterable[CachedEditDataset]:
    for dataset in datasets:
        if isinstance(dataset, CachedEditDataset):
            yield dataset
        yield from _caches(getattr(dataset, "datasets", ()))
