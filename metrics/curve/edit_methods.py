"""Ways to edit a picture that an evaluation compares: InstructPix2Pix, and SDEdit as the paper's baseline.

B samples, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ldm.device import DTYPES, memory_errors, precision_of
from ldm.editor import ImageEditor, Sampling
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.sampling.sdedit import sdedit_batch
from ldm.util import UserError
from ldm.weights.loading import load_for_sampling
from metrics.curve.samples import EvalSample


@dataclass(frozen=True)
class Setting:
    """How strongly to edit, under the names of the result's rows.

    Attributes:
        scale_text: guidance scale of the text.
        scale_image: guidance scale of the picture, of InstructPix2Pix alone.
        strength: see `ldm.sampling.sdedit.strength_sigmas`, of SDEdit alone.
    """

    scale_text: float
    scale_image: float | None = None
    strength: float | None = None


class EditMethod(Protocol):
    """Something that edits."""

    sampling: Sampling
    device: torch.device
    precision: str

    def edit(self, samples: Sequence[EvalSample], setting: Setting, seeds: Sequence[int]) -> Tensor:
        """Edits of B samples, [B, 3, H, W], about [-1, 1]; what one becomes depends on its seed alone."""


class InstructPix2Pix:
    """Edits by the instruction."""

    def __init__(self, editor: ImageEditor, sampling: Sampling) -> None:
        self.editor, self.sampling = editor, sampling
        self.device, self.precision = editor.device, editor.precision

    def edit(self, samples: Sequence[EvalSample], setting: Setting, seeds: Sequence[int]) -> Tensor:
        assert setting.scale_image is not None, "a setting of SDEdit"
        sampling = replace(self.sampling, cfg_text=setting.scale_text, cfg_image=setting.scale_image)
        return self.editor.edit_batch(
            stacked(samples, self),
            [sample.edit for sample in samples],
            [replace(sampling, seed=seed) for seed in seeds],
        )


class SDEdit:
    """Edits by the caption of the result, with a text-to-image model.

    Args:
        model: of `load_text_to_image`.
    """

    def __init__(self, model: LatentDiffusion, sampling: Sampling) -> None:
        self.model, self.sampling = model, sampling
        weight = next(model.parameters())
        self.device = weight.device
        self.precision = precision_of(weight)

    def edit(self, samples: Sequence[EvalSample], setting: Setting, seeds: Sequence[int]) -> Tensor:
        assert setting.strength is not None, "a setting of InstructPix2Pix"
        return sdedit_batch(
            self.model,
            stacked(samples, self),
            [sample.output for sample in samples],
            steps=self.sampling.steps,
            strength=setting.strength,
            cfg_text=setting.scale_text,
            seeds=seeds,
            sampler=self.sampling.sampler,
        )


def stacked(samples: Sequence[EvalSample], method: EditMethod) -> Tensor:
    """The pictures of samples as a method's model takes them, [B, 3, H, W] in [-1, 1]."""
    return torch.stack([sample.before for sample in samples]).to(method.device, DTYPES[method.precision])


def load_text_to_image(
    config: str | Path, ckpt: str | Path, vae_ckpt: str | Path | None, device: str, precision: str
) -> LatentDiffusion:
    """A text-to-image model; arguments as of `ImageEditor.load`.

    Raises:
        UserError: files that do not fit, or an edit model.
    """
    with memory_errors("load the model"):
        model = load_for_sampling(config, ckpt, vae_ckpt, device, precision)
    if model.model.conditioning_key != "crossattn":
        raise UserError(f"{config}: expected a text-to-image model, got an edit model")
    return model
