"""ImageEditor, the Python API: load a model once, then edit pictures by instruction (Brooks et al. 2023)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ldm.commands import as_typed
from ldm.device import (
    DTYPES,
    choose_device,
    choose_precision,
    memory_errors,
    precision_of,
)
from ldm.files import ROOT
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.pictures.fitting import fit_to_model, to_image, to_tensor
from ldm.pictures.reading import to_rgb
from ldm.sampling.guidance import EditDenoiser
from ldm.sampling.noise import ExampleNoise
from ldm.sampling.options import Sampling
from ldm.sampling.samplers import DEFAULT, Callback, sample, sample_euler_ancestral
from ldm.sampling.schedule import schedule_sigmas
from ldm.util import UserError
from ldm.weights.loading import load_for_sampling
from ldm.weights.opening import open_weights, published_file
from ldm.weights.single_file import Weights

CONFIG = ROOT / "configs/generate.yaml"
PUBLISHED = ROOT / "checkpoints/instruct-pix2pix-00-22000.ckpt"
PUBLISHER = "timbrooks/instruct-pix2pix"  # on the hub
EMBEDDED_CONFIG = ROOT / "configs/avatars/edit.yaml"
EMBEDDED = ROOT / "checkpoints/avatars.safetensors"
EMBEDDED_NOTICE = (
    "using the small embedded model, which edits drawn avatars; "
    "for photographs fetch the published one with: bash scripts/download_checkpoints.sh"
)


class ModelFiles(NamedTuple):
    """The files of a model, and what the user should be told about the choice."""

    config: Path
    ckpt: Path
    notice: str | None = None


def find_model(config: str | Path | None = None, ckpt: str | Path | None = None) -> ModelFiles:
    """Choose the files of a model where the user leaves them open.

    A given `ckpt` goes with `config`, by default the published one. Without `ckpt` it is the published
    checkpoint, in `checkpoints/` or the hub's cache; with neither given and that not downloaded, or with its
    own `config`, the embedded model.
    """
    if ckpt is not None:
        return ModelFiles(Path(config or CONFIG), Path(ckpt))
    if config is not None and Path(config).resolve() == EMBEDDED_CONFIG:
        return ModelFiles(EMBEDDED_CONFIG, EMBEDDED)
    published = published_file(PUBLISHED, PUBLISHER)
    if config is None and not published.is_file() and EMBEDDED.is_file():
        return ModelFiles(EMBEDDED_CONFIG, EMBEDDED, as_typed(EMBEDDED_NOTICE))
    return ModelFiles(Path(config or CONFIG), published)


class ImageEditor:
    """A loaded model that edits pictures.

    Attributes:
        model: the network, in evaluation mode on `device`.
        defaults: what suits the model.
        device: where it computes.
        precision: "fp32", "fp16" or "bf16".
    """

    def __init__(self, model: LatentDiffusion, defaults: Sampling, files: Collection[Weights] = ()) -> None:
        self.model = model
        self.defaults = defaults
        self._files = files  # whose numbers the model may still be a view of
        weight = next(model.parameters())
        self.device = weight.device
        self.precision = precision_of(weight)

    @classmethod
    def load(
        cls,
        config: str | Path | None = None,
        ckpt: str | Path | None = None,
        vae_ckpt: str | Path | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> ImageEditor:
        """Load a model for inference; `find_model` says which without `config` or `ckpt`.

        Args:
            config: YAML file of the model.
            ckpt: its weights.
            vae_ckpt: autoencoder weights to use in place of those in `ckpt`.
            device: "auto" (a GPU if there is one), "cpu", "cuda", "mps", or any name torch knows.
            precision: "auto" (fp16 on CUDA, else fp32), "fp32", "fp16" or "bf16".

        Raises:
            UserError: no such device or precision, or files that are missing, broken or do not fit.
        """
        choose_precision(precision, choose_device(device))  # before a file is read
        files = find_model(config, ckpt)
        with memory_errors("load the model"):
            weights = open_weights(files.ckpt)
            vae = open_weights(vae_ckpt) if vae_ckpt else weights
            model = load_for_sampling(files.config, weights, vae, device, precision)
        if model.model.conditioning_key != "hybrid":
            raise UserError(f"{files.config}: expected an edit model, got a text-to-image model")
        return cls(model, Sampling.from_config(files.config), {weights, vae})

    def edit(
        self,
        image: Image.Image,
        instruction: str,
        sampling: Sampling | None = None,
        *,
        callback: Callback | None = None,
        **changes: Any,
    ) -> Image.Image:
        """Return `image`, resized to multiples of 64 and edited; only resized when the instruction is empty.

        Args:
            image: any picture, of any mode, that `ldm.pictures.reading.check_size` accepts.
            instruction: what to change, such as "turn him into a cyborg".
            sampling: what decides the edit; by default what suits the model.
            callback: called in every step, see `sample_euler_ancestral`.
            changes: fields of `Sampling` in place of those, such as ``steps=20``; None leaves one as it is.

        Raises:
            UserError: a setting out of range, a picture that cannot be edited, or too little memory.
        """
        sampling = (sampling or self.defaults).but(**changes).seeded()
        sampling.check()
        image = fit_to_model(to_rgb(image), sampling.resolution)
        if not instruction.strip():
            return image
        with memory_errors(f"edit at {image.width}x{image.height} pixels"):
            edited = self.edit_batch(
                to_tensor(image),
                [instruction],
                [sampling],
                callback=callback,
                global_noise=sampling.sampler != DEFAULT,
            )
        if not edited.isfinite().all():
            raise UserError(
                f"the result in {self.precision} is not a number: try fp32, or smaller guidance scales"
            )
        return to_image(edited[0])

    @torch.inference_mode()
    def edit_batch(
        self,
        images: Tensor,
        instructions: Sequence[str],
        samplings: Sequence[Sampling],
        *,
        callback: Callback | None = None,
        global_noise: bool = False,
    ) -> Tensor:
        """Edit pictures of one size together; what one becomes does not depend on the others.

        Args:
            images: [B, 3, H, W] in [-1, 1], both sides multiples of what the networks need.
            instructions: B texts.
            samplings: what decides each of the B edits, the same steps, sampler and schedule for all.
            callback: called in every step, see `sample_euler_ancestral`.
            global_noise: draw from torch's global generator, as k_diffusion does by itself, in place of a
                generator for each picture; for a single one.

        Returns:
            [B, 3, H, W], about [-1, 1], where the model is and of its type.
        """
        assert len(images) == len(instructions) == len(samplings)
        kinds = {(sampling.steps, sampling.sampler, sampling.schedule) for sampling in samplings}
        assert len(kinds) == 1, f"expected edits of one kind, got {kinds}"
        ((steps, sampler, schedule),) = kinds
        seeds = [sampling.drawn_seed() for sampling in samplings]
        if global_noise:
            torch.manual_seed(*seeds)
        noise = ExampleNoise([None]) if global_noise else ExampleNoise.seeded(seeds, self.device)
        model = self.model
        images = images.to(self.device, DTYPES[self.precision])
        *texts, no_text = model.get_learned_conditioning([*instructions, ""]).split(1)  # [1, L, D] each
        latent = model.encode_first_stage(images).mode()  # [B, 4, h, w]
        scales = [
            _shared([getattr(sampling, name) for sampling in samplings], self.device)
            for name in ("cfg_text", "cfg_image")
        ]
        denoise = EditDenoiser(model.unet, model.sigmas, torch.cat(texts), latent, no_text, *scales)
        self._release_files()  # each network is used in turn: only one at a time need be in memory
        sigmas = schedule_sigmas(schedule, model.sigmas, steps)  # [steps + 1]
        z = noise(latent.float()) * sigmas[0]
        if sampler == DEFAULT:
            z = sample_euler_ancestral(denoise, z, sigmas, noise=noise, callback=callback)
        else:
            drawn = None if global_noise else noise
            z = sample(sampler, denoise, z, sigmas, noise=drawn, callback=callback)
        self._release_files()
        return model.decode_first_stage(z.to(images.dtype))

    def _release_files(self) -> None:
        for file in self._files:
            file.release()


def _shared(values: Sequence[float], device: torch.device) -> float | Tensor:
    """A guidance scale of B edits: the number that all have, else [B, 1, 1, 1]."""
    if len(set(values)) == 1:
        return values[0]
    return torch.tensor(values, device=device)[:, None, None, None]
