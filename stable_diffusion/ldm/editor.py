"""ImageEditor, the Python API: load a model once, then edit pictures by instruction (Brooks et al. 2023)."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
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
from ldm.sampling.samplers import DEFAULT, Callback, sample, sample_euler_ancestral, sampler_names
from ldm.sampling.schedule import schedule_sigmas
from ldm.util import UserError, read_config, reject_unknown
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
# Where a config says what size its model is for: that of its pictures, else that of its autoencoder.
RESOLUTION_KEYS = (
    "data.params.validation.params.crop_res",
    "model.params.first_stage_config.params.ddconfig.resolution",
)

TWO_STEPS = ("dpmpp_2m_sde", "dpmpp_3m_sde")  # these of k_diffusion's samplers fail with a single step


@dataclass(frozen=True)
class Defaults:
    """What suits a model; these values are the published one's, a config says otherwise under `sampling`.

    Attributes:
        resolution: the pixels of the longer side that the model was trained for.
        steps: denoising steps.
        cfg_text, cfg_image: guidance scales.
    """

    resolution: int = 512
    steps: int = 100
    cfg_text: float = 7.5
    cfg_image: float = 1.5


def read_defaults(config: str | Path) -> Defaults:
    """The defaults of a model by its YAML file.

    Raises:
        UserError: the file cannot be read, or its `sampling` has a name that is none of them.
    """
    content = read_config(config)
    if not isinstance(content, DictConfig):
        return Defaults()  # loading the model will say what is wrong with the file
    sizes = filter(None, (OmegaConf.select(content, key) for key in RESOLUTION_KEYS))
    chosen = dict(OmegaConf.select(content, "sampling") or {})
    reject_unknown(f"{config}: sampling", Defaults, chosen)
    size = next(sizes, Defaults.resolution)
    longer = max(size) if isinstance(size, Sequence) else size  # a config may say [height, width]
    return Defaults(**{"resolution": longer, **chosen})


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


def check_sampling(sampler: str, steps: int) -> None:
    """Raise UserError for a sampler that does not exist or cannot run for `steps` steps."""
    if sampler != DEFAULT and sampler not in sampler_names():
        raise UserError(f"expected as sampler one of {', '.join(sampler_names())}, got {sampler!r}")
    least = 2 if sampler in TWO_STEPS else 1
    if steps < least:
        raise UserError(f"sampler {sampler}: expected at least {least} steps, got {steps}")


class ImageEditor:
    """A loaded model that edits pictures.

    Attributes:
        model: the network, in evaluation mode on `device`.
        defaults: what suits the model.
        device: where it computes.
        precision: "fp32", "fp16" or "bf16".
    """

    def __init__(self, model: LatentDiffusion, defaults: Defaults, files: Collection[Weights] = ()) -> None:
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
        return cls(model, read_defaults(files.config), {weights, vae})

    @torch.inference_mode()
    def edit(
        self,
        image: Image.Image,
        instruction: str,
        *,
        steps: int | None = None,
        cfg_text: float | None = None,
        cfg_image: float | None = None,
        seed: int | None = None,
        sampler: str = DEFAULT,
        schedule: str = "model",
        resolution: int | None = None,
        callback: Callback | None = None,
    ) -> Image.Image:
        """Return `image`, resized to multiples of 64 and edited; only resized when the instruction is empty.

        Args:
            image: any picture, of any mode, that `ldm.pictures.reading.check_size` accepts.
            instruction: what to change, such as "turn him into a cyborg".
            steps: denoising steps, at least 1; by default the model's.
            cfg_text: s_T, how strongly to follow the instruction; by default the model's.
            cfg_image: s_I, how strongly to stay with the picture; by default the model's.
            seed: of the random numbers, those of `torch.manual_seed(seed)` on `device`; None draws one.
            sampler: a name of `ldm.sampling.samplers.sampler_names`.
            schedule: noise levels, "model", "karras" or "exponential".
            resolution: about the longer side of the result in pixels; by default the model's.
            callback: called in every step, see `sample_euler_ancestral`.

        Raises:
            UserError: a setting out of range, a picture that cannot be edited, or too little memory.
        """
        steps = self.defaults.steps if steps is None else steps
        cfg_text = self.defaults.cfg_text if cfg_text is None else cfg_text
        cfg_image = self.defaults.cfg_image if cfg_image is None else cfg_image
        resolution = self.defaults.resolution if resolution is None else resolution
        check_sampling(sampler, steps)
        image = fit_to_model(to_rgb(image), resolution)
        if not instruction.strip():
            return image
        model = self.model
        seed = random.randint(0, 100_000) if seed is None else seed
        generator = None
        if sampler == DEFAULT:
            generator = torch.Generator(self.device).manual_seed(seed)
        else:  # k_diffusion draws from the global generator
            torch.manual_seed(seed)
        noise = ExampleNoise([generator])
        with memory_errors(f"edit at {image.width}x{image.height} pixels"):
            pixels = to_tensor(image).to(self.device, DTYPES[self.precision])  # [1, 3, H, W]
            denoise, image_latent = _edit_denoiser(model, pixels, [instruction], cfg_text, cfg_image)
            self._release_files()  # each network is used in turn: only one at a time need be in memory
            sigmas = schedule_sigmas(schedule, model.sigmas, steps)  # [steps + 1]
            z = noise(image_latent.float()) * sigmas[0]
            if sampler == DEFAULT:
                z = sample_euler_ancestral(denoise, z, sigmas, noise=noise, callback=callback)
            else:
                z = sample(sampler, denoise, z, sigmas, callback=callback)
            self._release_files()
            pixels = model.decode_first_stage(z.to(pixels.dtype))  # [1, 3, H, W]
        if not pixels.isfinite().all():
            raise UserError(
                f"the result in {self.precision} is not a number: try fp32, or smaller guidance scales"
            )
        return to_image(pixels[0])

    def _release_files(self) -> None:
        for file in self._files:
            file.release()


@torch.inference_mode()
def edit_batch(
    model: LatentDiffusion,
    images: Tensor,
    instructions: list[str],
    *,
    steps: int,
    cfg_text: float | Tensor,
    cfg_image: float | Tensor,
    seeds: Sequence[int],
    sampler: str = DEFAULT,
    schedule: str = "model",
    callback: Callback | None = None,
) -> Tensor:
    """Edit pictures of one size together, each as `ImageEditor.edit` does.

    Args:
        model: an edit model.
        images: [B, 3, H, W] in [-1, 1], both sides multiples of what the networks need, on the model's device
            and of its type.
        instructions: B texts.
        steps, sampler, schedule, callback: as for `ImageEditor.edit`.
        cfg_text, cfg_image: as there; one for all or [B, 1, 1, 1].
        seeds: of the B edits.

    Returns:
        [B, 3, H, W], about [-1, 1].
    """
    noise = ExampleNoise.seeded(seeds, images.device)
    denoise, image_latent = _edit_denoiser(model, images, instructions, cfg_text, cfg_image)
    sigmas = schedule_sigmas(schedule, model.sigmas, steps)  # [steps + 1]
    z = noise(image_latent.float()) * sigmas[0]
    z = sample(sampler, denoise, z, sigmas, noise=noise, callback=callback)
    return model.decode_first_stage(z.to(images.dtype))


def _edit_denoiser(
    model: LatentDiffusion,
    images: Tensor,
    instructions: list[str],
    cfg_text: float | Tensor,
    cfg_image: float | Tensor,
) -> tuple[EditDenoiser, Tensor]:
    """The denoiser of these edits, and the latents [B, 4, h, w] of `images` [B, 3, H, W]."""
    *texts, no_text = model.get_learned_conditioning([*instructions, ""]).split(1)  # [1, L, D] each
    image_latent = model.encode_first_stage(images).mode()  # [B, 4, h, w]
    weights = (torch.cat(texts), image_latent, no_text, cfg_text, cfg_image)
    return EditDenoiser(model.unet, model.sigmas, *weights), image_latent
