"""From a prompt to its kept image pairs: draw samples in batches, compare them by CLIP, keep the best.

A prompt's samples follow from the seed of the dataset and the prompt's number alone. Not here: which prompts
and when (`pair_run`), and what is written (`pair_folder`).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset_creation.pairs.clip_filter import Similarities, Thresholds, choose, failed, needs_clip
from dataset_creation.pairs.prompts import NumberedPrompt
from dataset_creation.pairs.sampler import PairSampler, PairSettings, Ranges
from ldm.device import is_out_of_memory, memory_errors
from ldm.sampling.samplers import DEFAULT
from ldm.util import UserError
from ldm.weights.loading import load_for_sampling

T = TypeVar("T")
R = TypeVar("R")
NSFW = "nsfw"  # the reason why a sample was dropped, beside the thresholds' names
# Of a sample in a step of denoising, by the size of the network's largest feature map: a generous guess.
FEATURE_MAPS = 64
CPU_MEMORY = 2 * 1024**3  # bytes; more samples at once do not make a CPU faster


@dataclass(frozen=True)
class MakerOptions:
    """All that a worker needs to know; plain values, so that it can be on another machine.

    Attributes:
        config, ckpt, vae_ckpt: files of the model; without `vae_ckpt` its own autoencoder.
        device, precision: as for `ldm.weights.loading.load_for_sampling`.
        steps, resolution, sampler: as for `PairSampler`.
        seed: of the dataset.
        n_samples: drawn for each prompt.
        limit: kept of them, at most.
        batch_size: samples at once; None: as many as fit the memory.
        ranges: of what is drawn for a sample.
        thresholds: of CLIP's similarities.
        clip_model, clip_pretrained, clip_weights: of `metrics.clip_similarity.ClipSimilarity`.
        nsfw_limit: highest NSFW score of a kept picture, 0 to 1; None: not looked at.
    """

    config: str
    ckpt: str
    vae_ckpt: str | None = None
    device: str = "auto"
    precision: str = "auto"
    steps: int = 100
    resolution: int = 512
    sampler: str = DEFAULT
    seed: int = 0
    n_samples: int = 100
    limit: int = 4
    batch_size: int | None = None
    ranges: Ranges = Ranges()
    thresholds: Thresholds = Thresholds()
    clip_model: str = "ViT-L-14"
    clip_pretrained: str = "openai"
    clip_weights: str | None = None
    nsfw_limit: float | None = None

    @property
    def needs_clip(self) -> bool:
        return needs_clip(self.thresholds, self.n_samples, self.limit)


@dataclass
class Sample:
    """A drawn pair.

    Attributes:
        settings: what makes it again.
        similarities: None where CLIP did not run.
        nsfw_score: the higher one of its pictures, None where nobody looked.
        pictures: before and after, uint8 [2, H, W, 3]; None once it is known not to be kept.
    """

    settings: PairSettings
    similarities: Similarities | None = None
    nsfw_score: float | None = None
    pictures: np.ndarray | None = None

    def line(self) -> dict[str, Any]:
        """What ``metadata.jsonl`` says of it."""
        line = {**asdict(self.settings), **(asdict(self.similarities) if self.similarities else {})}
        return line | ({} if self.nsfw_score is None else {"nsfw_score": self.nsfw_score})


@dataclass(frozen=True)
class MadePrompt:
    """All samples of a prompt, and which of them are kept, best first, by index."""

    prompt: NumberedPrompt
    samples: list[Sample]
    kept: list[int]


def draw_seeds(seed: int, number: int, count: int) -> list[int]:
    """Seeds of the samples of prompt `number`, all different; the first ones of any larger count."""
    draw = random.Random(f"{seed}/{number}")
    seeds: dict[int, None] = {}
    while len(seeds) < count:
        seeds[draw.getrandbits(32)] = None
    return list(seeds)


class PairMaker:
    """A loaded model with its filters.

    Raises:
        UserError: files or settings that do not fit, or too little memory.
    """

    def __init__(self, options: MakerOptions) -> None:
        self.options = options
        with memory_errors("load the model"):
            model = load_for_sampling(
                options.config, options.ckpt, options.vae_ckpt, options.device, options.precision
            )
            self.sampler = PairSampler(model, options.steps, options.resolution, options.sampler)
            self.clip = self.nsfw = None
            if options.needs_clip:
                from metrics.clip_similarity import ClipSimilarity

                self.clip = ClipSimilarity(
                    options.clip_model,
                    options.clip_pretrained,
                    options.clip_weights,
                    self.sampler.device,
                )
            if options.nsfw_limit is not None:
                from ldm.pictures.safety import SafetyChecker

                self.nsfw = SafetyChecker()
        self.batch_size = options.batch_size or fitting_batch(self.sampler, options.n_samples)

    def make(self, prompt: NumberedPrompt) -> MadePrompt:
        """Draw and choose.

        Raises:
            UserError: too little memory for a single sample.
        """
        seeds = draw_seeds(self.options.seed, prompt.number, self.options.n_samples)
        samples: list[Sample] = []
        kept: list[int] = []
        for batch in self._in_batches(seeds, lambda part: self.rated_batch(prompt.captions, part)):
            samples += batch
            kept = self._choose(samples)
            for i in set(range(len(samples))) - set(kept):
                samples[i].pictures = None
        return MadePrompt(prompt, samples, kept)

    def remake(self, prompt: NumberedPrompt, lines: Sequence[dict[str, Any]]) -> MadePrompt:
        """Make pairs again from their lines of ``metadata.jsonl``; all are kept, in that order."""
        names = PairSettings.__dataclass_fields__

        def replay(part: Sequence[dict[str, Any]]) -> list[Sample]:
            settings = [PairSettings(**{name: line[name] for name in names}) for line in part]
            pictures = to_uint8(self.sampler.replay(prompt.captions, settings))
            return [
                Sample(one, Similarities.of(line), line.get("nsfw_score"), pair)
                for line, one, pair in zip(part, settings, pictures, strict=True)
            ]

        samples = [sample for batch in self._in_batches(lines, replay) for sample in batch]
        return MadePrompt(prompt, samples, list(range(len(samples))))

    def _in_batches(self, items: Sequence[T], make: Callable[[Sequence[T]], R]) -> Iterator[R]:
        """What is made of the items, as many at once as fit the memory."""
        done = 0
        while done < len(items):
            part = items[done : done + self.batch_size]
            try:
                made = make(part)
            except (RuntimeError, MemoryError) as error:
                self._smaller_batch(error)
                continue
            yield made
            done += len(part)

    def rated_batch(self, captions: tuple[str, str], seeds: Sequence[int]) -> list[Sample]:
        """Samples of those seeds, drawn at once, with what the filters measure."""
        settings, pictures = self.sampler.sample(captions, seeds, self.options.ranges)
        stored = to_uint8(pictures)  # [B, 2, H, W, 3]
        samples = [Sample(one, pictures=pair) for one, pair in zip(settings, stored, strict=True)]
        shown = (pictures + 1) / 2  # in [0, 1]
        if self.clip is not None:
            before, after = ([caption] for caption in captions)
            values = torch.stack(self.clip(shown[:, 0], shown[:, 1], before, after), dim=1)  # [B, 4]
            for sample, row in zip(samples, values.tolist(), strict=True):
                sample.similarities = Similarities(*row)
        if self.nsfw is not None:
            # As they are stored: on rough pictures half a level of rounding changes the scores.
            scores = self.nsfw.scores([Image.fromarray(picture) for pair in stored for picture in pair])
            for i, sample in enumerate(samples):
                sample.nsfw_score = max(scores[2 * i : 2 * i + 2])
        return samples

    def _choose(self, samples: Sequence[Sample]) -> list[int]:
        allowed = [i for i, sample in enumerate(samples) if NSFW not in reasons(sample, self.options)]
        if not self.options.needs_clip:
            return allowed[: self.options.limit]
        rated: list[Any] = [samples[i].similarities for i in allowed]  # by CLIP, all of them
        best = choose(rated, self.options.thresholds, self.options.limit)
        return [allowed[i] for i in best]

    def _smaller_batch(self, error: Exception) -> None:
        """Halve the batch size if that error is of the memory; raise it again if not."""
        if not is_out_of_memory(error):
            raise error
        if self.batch_size == 1:
            raise UserError(
                "too little memory for one sample: try a lower --resolution, --precision fp16 or another "
                "--device"
            ) from error
        self.batch_size //= 2
        if self.sampler.device.type == "cuda":
            torch.cuda.empty_cache()


def reasons(sample: Sample, options: MakerOptions) -> list[str]:
    """Why a sample is dropped, whatever its rank; empty if it is not."""
    found = failed(sample.similarities, options.thresholds) if sample.similarities else []
    limit, score = options.nsfw_limit, sample.nsfw_score
    return found + ([NSFW] if limit is not None and score is not None and score > limit else [])


def to_uint8(pictures: Tensor) -> np.ndarray:
    """Pictures [B, 2, 3, H, W] in [-1, 1] as [B, 2, H, W, 3], fractions cut off as published."""
    scaled = 255 * ((pictures + 1) / 2)
    return scaled.permute(0, 1, 3, 4, 2).to(torch.uint8).cpu().numpy()


def fitting_batch(sampler: PairSampler, most: int) -> int:
    """How many samples of a prompt go into memory at once, 1 to `most`; a guess to begin with."""
    _, height, width = sampler.latent_shape
    unet = sampler.model.unet
    weight = next(unet.parameters())
    # Two pictures, each with and without its text.
    sample = 4 * FEATURE_MAPS * unet.model_channels * height * width * weight.element_size()
    if sampler.device.type == "cuda":
        free = torch.cuda.mem_get_info(sampler.device)[0]
    elif hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = min(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), CPU_MEMORY)
    else:
        free = CPU_MEMORY
    return max(1, min(most, int(free / 2 // sample)))
