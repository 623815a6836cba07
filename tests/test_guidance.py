"""ldm.sampling.guidance: the denoisers equal the published formulas, with no branch computed for nothing."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from golden import relative_error
from ldm.models.diffusion import ddpm
from ldm.sampling.guidance import EditDenoiser, TextDenoiser
from ldm.sampling.schedule import sigma_to_t
from networks import edit_network, text_network

TEXTS = ["turn him into a cyborg", "Make it a Picasso painting!", "add snow"]
SIGMA = torch.tensor([0.1, 1.7, 9.0])  # one noise level for each example


@pytest.fixture(scope="module")
def z() -> Tensor:
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return noise * SIGMA[:, None, None, None]


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def predicted_noise(model: ddpm.LatentDiffusion, z: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
    """Noise by the published interface, one conditioning at a time."""
    x = z / (sigma.square() + 1).sqrt()[:, None, None, None]
    t = sigma_to_t(model.sigmas, sigma)
    return model.apply_model(x, t, {name: [value] for name, value in cond.items()})


def edit_formula(z: Tensor, sigma: Tensor, image: Tensor, cfg_text: float, cfg_image: float) -> Tensor:
    """Brooks et al. 2022, equation 3, by three separate calls."""
    model = edit_network()
    text = model.get_learned_conditioning(TEXTS[: len(z)])
    null = model.get_learned_conditioning([""] * len(z))
    c = predicted_noise(model, z, sigma, c_concat=image, c_crossattn=text)
    i = predicted_noise(model, z, sigma, c_concat=image, c_crossattn=null)
    u = predicted_noise(model, z, sigma, c_concat=torch.zeros_like(image), c_crossattn=null)
    return z - sigma[:, None, None, None] * (u + cfg_text * (c - i) + cfg_image * (i - u))


def edit_denoiser(image: Tensor, cfg_text: float, cfg_image: float, texts: list[str]) -> EditDenoiser:
    model = edit_network()
    null = model.get_learned_conditioning([""])
    return EditDenoiser(
        model.unet, model.sigmas, model.get_learned_conditioning(texts), image, null, cfg_text, cfg_image
    )


@pytest.fixture
def batches() -> Iterator[list[int]]:
    """Batch sizes that the edit model's UNet is called with."""
    sizes: list[int] = []

    def note(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        sizes.append(len(args[0]))

    handle = edit_network().model.diffusion_model.register_forward_pre_hook(note)
    yield sizes
    handle.remove()


@pytest.mark.parametrize("seed", range(4))
def test_edit_denoiser_is_the_published_formula(z: Tensor, image: Tensor, seed: int) -> None:
    """A batch of three pictures with three texts and three noise levels, random guidance scales."""
    cfg_text, cfg_image = (torch.rand(2, generator=torch.Generator().manual_seed(seed)) * 10).tolist()
    denoised = edit_denoiser(image, cfg_text, cfg_image, TEXTS)(z, SIGMA)
    assert relative_error(denoised, edit_formula(z, SIGMA, image, cfg_text, cfg_image)) <= 1e-5


@pytest.mark.parametrize(
    ("cfg_text", "cfg_image", "branches"),
    [(7.5, 1.5, 3), (7.5, 1.0, 2), (1.0, 1.0, 1), (1.5, 1.5, 2), (0.0, 1.5, 2), (0.0, 0.0, 1), (7.5, 0.5, 3)],
)
def test_branches_without_weight_are_not_computed(
    z: Tensor, image: Tensor, batches: list[int], cfg_text: float, cfg_image: float, branches: int
) -> None:
    denoised = edit_denoiser(image, cfg_text, cfg_image, TEXTS)(z, SIGMA)
    assert batches == [branches * len(z)], "one call, as large as there are branches"
    assert relative_error(denoised, edit_formula(z, SIGMA, image, cfg_text, cfg_image)) <= 1e-5


def test_one_picture_and_one_text_serve_a_whole_batch(z: Tensor, image: Tensor) -> None:
    """[1, …] conditionings are shared; the examples of a batch do not touch each other."""
    sigma = torch.full((3,), 2.0)
    denoised = edit_denoiser(image[:1], 7.5, 1.5, TEXTS[:1])(z, sigma)
    for n in range(3):
        alone = edit_formula(z[n : n + 1], sigma[:1], image[:1], 7.5, 1.5)
        assert relative_error(denoised[n : n + 1], alone) <= 1e-5


def test_every_text_and_every_picture_counts(z: Tensor, image: Tensor) -> None:
    base = edit_denoiser(image, 7.5, 1.5, TEXTS)(z, SIGMA)
    texts = edit_denoiser(image, 7.5, 1.5, [*TEXTS[:2], "another text"])(z, SIGMA)
    pictures = edit_denoiser(torch.cat([image[:2], image[2:].flip(3)]), 7.5, 1.5, TEXTS)(z, SIGMA)
    for other in (texts, pictures):
        changed = (base - other).abs().amax(dim=(1, 2, 3)) > 1e-3
        assert changed.tolist() == [False, False, True]


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.3, 9.0])
def test_text_denoiser_is_the_published_formula(z: Tensor, scale: float) -> None:
    model = text_network()
    text, null = model.get_learned_conditioning(TEXTS), model.get_learned_conditioning([""])
    c = predicted_noise(model, z, SIGMA, c_crossattn=text)
    u = predicted_noise(model, z, SIGMA, c_crossattn=null.expand_as(text))
    expected = z - SIGMA[:, None, None, None] * (u + scale * (c - u))
    assert (
        relative_error(TextDenoiser(model.unet, model.sigmas, text, null, scale)(z, SIGMA), expected) <= 1e-5
    )


def test_half_precision_weights_keep_the_sampling_in_single_precision(z: Tensor, image: Tensor) -> None:
    half = copy.deepcopy(edit_network()).bfloat16()
    half.register_schedule()
    conditions = [half.get_learned_conditioning(texts) for texts in (TEXTS, [""])]
    denoiser = EditDenoiser(half.unet, half.sigmas, conditions[0], image.bfloat16(), conditions[1], 7.5, 1.5)
    denoised = denoiser(z, SIGMA)
    assert denoised.dtype == torch.float32
    assert relative_error(denoised, edit_formula(z, SIGMA, image, 7.5, 1.5)) < 0.2
