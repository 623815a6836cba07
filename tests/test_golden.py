"""The published implementation's numbers, reproduced by the small edit model (see `golden`).

The text encoder's are in `test_text_encoder`, the editor's picture also in `test_editor`.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from golden import relative_error
from ldm.models.diffusion.ddpm_edit import LatentDiffusion, dropout_masks
from ldm.modules.ema import LitEma
from ldm.sampling.guidance import EditDenoiser
from ldm.sampling.samplers import sample_euler_ancestral
from ldm.sampling.schedule import get_sigmas
from ldm.training.module import TrainingEncoder
from networks import edit_network

ONE_CALL = 1e-5
TRAJECTORY = 1e-4

Golden = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return edit_network()


@pytest.fixture(scope="module")
def text(model: LatentDiffusion, golden_metadata: dict[str, Any]) -> Tensor:
    """Conditioning of the golden file's texts, [4, L, D]; the third text is empty."""
    return model.get_learned_conditioning(golden_metadata["texts"])


@pytest.fixture(scope="module")
def denoiser(
    model: LatentDiffusion, golden: Golden, golden_metadata: dict[str, Any], text: Tensor
) -> EditDenoiser:
    case = golden_metadata["case"]
    image = model.encode_first_stage(golden["vae.image"]).mode()
    return EditDenoiser(
        model.unet, model.sigmas, text[:1], image, text[2:3], case["cfg_text"], case["cfg_image"]
    )


@pytest.mark.parametrize(
    "name", ["alphas_cumprod", "betas", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"]
)
def test_noise_schedule(model: LatentDiffusion, golden: Golden, name: str) -> None:
    assert relative_error(getattr(model, name), golden[f"schedule.{name}"]) <= ONE_CALL


@pytest.mark.parametrize("n", [5, 20, 100])
def test_sigmas(model: LatentDiffusion, golden: Golden, n: int) -> None:
    assert relative_error(get_sigmas(model.sigmas, n), golden[f"sigmas.{n}"]) <= ONE_CALL


def test_autoencoder(model: LatentDiffusion, golden: Golden) -> None:
    mode = model.encode_first_stage(golden["vae.image"]).mode()
    assert relative_error(mode, golden["vae.mode"]) <= ONE_CALL
    assert relative_error(model.decode_first_stage(golden["vae.z"]), golden["vae.decoded"]) <= ONE_CALL


def test_unet(model: LatentDiffusion, golden: Golden, text: Tensor) -> None:
    cond = {"c_concat": [golden["unet.concat"]], "c_crossattn": [text[:2]]}
    eps = model.apply_model(golden["unet.x"], golden["unet.t"], cond)
    assert relative_error(eps, golden["unet.eps"]) <= ONE_CALL


def test_guided_denoiser(model: LatentDiffusion, golden: Golden, denoiser: EditDenoiser) -> None:
    sigma = get_sigmas(model.sigmas, 5)[1]
    denoised = denoiser(golden["unet.x"][:1] * sigma, sigma[None])
    assert relative_error(denoised, golden["cfg.denoised"]) <= ONE_CALL


def test_whole_edit(
    model: LatentDiffusion, golden: Golden, golden_metadata: dict[str, Any], denoiser: EditDenoiser
) -> None:
    case = golden_metadata["case"]
    sigmas = get_sigmas(model.sigmas, case["steps"])
    torch.manual_seed(case["seed"])
    start = torch.randn_like(golden["vae.mode"]) * sigmas[0]
    z = sample_euler_ancestral(denoiser, start, sigmas)
    assert relative_error(z, golden["edit.latent"]) <= TRAJECTORY
    image = model.decode_first_stage(z)
    assert relative_error(image, golden["edit.image"]) <= TRAJECTORY
    pixels = ((image.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)
    difference = (pixels.int() - golden["edit.uint8"].int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() <= 0.01


def test_training_loss(model: LatentDiffusion, golden: Golden, text: Tensor) -> None:
    cond = {"c_concat": [golden["unet.concat"]], "c_crossattn": [text[:2]]}
    loss, parts = model.p_losses(golden["train.x0"], cond, golden["unet.t"], golden["train.noise"])
    assert relative_error(loss[None], golden["train.loss"]) <= ONE_CALL
    assert parts["loss_simple"] == loss


def test_dropout_masks(golden: Golden) -> None:
    text_dropped, image_dropped = dropout_masks(golden["dropout.uniform"])
    assert torch.equal(text_dropped, golden["dropout.text_dropped"])
    assert torch.equal(image_dropped, golden["dropout.image_dropped"])


def test_dropout_shares() -> None:
    """Of all examples 5 % lose the text alone, 5 % the picture alone and 5 % both."""
    text_dropped, image_dropped = dropout_masks(torch.arange(1000) / 1000)
    assert (text_dropped & ~image_dropped).sum() == 50
    assert (text_dropped & image_dropped).sum() == 50
    assert (~text_dropped & image_dropped).sum() == 50


def test_dropout_reaches_the_batch(model: LatentDiffusion, golden: Golden, golden_metadata: dict) -> None:
    """Dropped text is the empty text, a dropped picture is a latent of zeros, and targets are scaled."""
    images = golden["vae.image"].expand(4, -1, -1, -1)
    words = golden_metadata["texts"][0]
    batch = {"edited": images, "edit": {"c_concat": images, "c_crossattn": [words] * 4}}
    x, cond = model.get_input(batch, uniform=torch.tensor([0.01, 0.07, 0.12, 0.5]))
    given, empty = model.get_learned_conditioning([words, ""])
    torch.testing.assert_close(cond["c_crossattn"][0], torch.stack([empty, empty, given, given]))
    mode = golden["vae.mode"][0]
    zero = torch.zeros_like(mode)
    torch.testing.assert_close(cond["c_concat"][0], torch.stack([mode, zero, zero, mode]))
    posterior = model.encode_first_stage(images)
    assert ((x / 0.18215 - posterior.mean) / (0.5 * posterior.logvar).exp()).abs().max() < 6


def test_moving_average(golden: Golden) -> None:
    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(golden["ema.base"].clone())

    model = Vector()
    ema = LitEma(model)
    for factor in (1.1, 1.2, 1.3):
        model.w.data = golden["ema.base"] * factor
        ema(model)
    assert relative_error(ema.w, golden["ema.after3"]) <= ONE_CALL


def test_a_training_may_encode_in_half_precision(golden: Golden) -> None:
    """By a copy of the encoder: what is saved stays in float32."""
    network = copy.deepcopy(edit_network())
    names = list(network.state_dict())
    latent = network.posterior(golden["vae.image"]).mode()
    encode = TrainingEncoder(network.first_stage_model, torch.bfloat16)
    batch = encode(
        {"edited": golden["vae.image"], "edit": {"c_concat": golden["vae.image"]}, "noise_seed": [1]}
    )
    assert torch.equal(batch["edited"], batch["edit"]["c_concat"]) and batch["noise_seed"] == [1]
    half = network.posterior(batch["edited"]).mode()
    assert half.dtype == torch.float32 and 0 < relative_error(half, latent) < 0.05
    assert list(network.state_dict()) == names
    assert network.first_stage_model.quant_conv.weight.dtype == torch.float32
    assert torch.equal(network.encode_first_stage(golden["vae.image"]).mode(), latent)
