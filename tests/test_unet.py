"""UNetModel: sizes as published, gradient checkpointing, what its inputs do, and its refusals."""

import copy
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from golden import fill, small_config
from ldm.files import ROOT
from ldm.modules.diffusionmodules.openaimodel import UNetModel, timestep_embedding
from ldm.util import UserError, instantiate_from_config


def small_unet(**changes: Any) -> UNetModel:
    """The golden configuration's UNet, 8 input channels, with changed parameters."""
    config = OmegaConf.merge(small_config().params.unet_config, {"params": changes})
    return instantiate_from_config(config)


@pytest.fixture(scope="module")
def unet() -> UNetModel:
    return fill(small_unet(), "model.diffusion_model.").eval().requires_grad_(False)


def inputs(batch: int = 2, height: int = 8, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps and text."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 8, height, width, generator=generator)
    return x, torch.tensor([3.0, 801.5])[:batch], torch.randn(batch, 7, 64, generator=generator)


@pytest.mark.parametrize(
    ("config", "in_channels", "count"),
    [
        ("configs/generate.yaml", 8, 859_532_484),
        ("configs/train.yaml", 8, 859_532_484),
        # The difference is the first convolution: 4 channels x 320 x 3 x 3.
        ("stable_diffusion/configs/stable-diffusion/v1-inference.yaml", 4, 859_520_964),
    ],
)
def test_published_sizes(config: str, in_channels: int, count: int) -> None:
    with torch.device("meta"):
        unet = instantiate_from_config(OmegaConf.load(ROOT / config).model.params.unet_config)
    assert (unet.in_channels, unet.out_channels) == (in_channels, 4)
    assert sum(p.numel() for p in unet.parameters()) == count


def test_a_new_network_predicts_nothing() -> None:
    """The last convolution starts at zero, so training starts from the mean of the noise."""
    assert not small_unet()(*inputs()).any()


@pytest.mark.parametrize(("height", "width"), [(8, 16), (16, 8), (4, 12)])
def test_non_square_sizes(unet: UNetModel, height: int, width: int) -> None:
    x, t, context = inputs(1, height, width)
    eps = unet(x, t, context)
    assert eps.shape == (1, 4, height, width)
    assert eps.isfinite().all()


def test_transposed_picture_through_a_transposed_network(unet: UNetModel) -> None:
    """Height and width are never mixed up: turning picture and kernels round turns the result round."""
    turned = copy.deepcopy(unet)
    for module in turned.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.copy_(module.weight.mT.clone())
    x, t, context = inputs(2, 8, 12)
    torch.testing.assert_close(turned(x.mT, t, context), unet(x, t, context).mT, rtol=1e-4, atol=1e-4)


def test_examples_of_a_batch_are_independent(unet: UNetModel) -> None:
    x, t, context = inputs()
    together = unet(x, t, context)
    for n in range(2):
        alone = unet(x[n : n + 1], t[n : n + 1], context[n : n + 1])
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", ["noisy latent", "image latent", "timestep", "text"])
def test_every_input_counts(unet: UNetModel, part: str) -> None:
    x, t, context = inputs()
    base = unet(x, t, context)
    if part == "text":
        context = context.flip(1) * 2
    elif part == "timestep":
        t = t + 10
    else:
        x = x.clone()
        x[:, slice(0, 4) if part == "noisy latent" else slice(4, 8)] *= 1.5
    assert (unet(x, t, context) - base).abs().max() > 1e-3


def loss_and_gradients(unet: UNetModel) -> tuple[Tensor, dict[str, Tensor]]:
    loss = unet(*inputs()).square().mean()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in unet.named_parameters()}


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    plain, checkpointed = (
        fill(small_unet(use_checkpoint=flag), "model.diffusion_model.").train() for flag in (False, True)
    )
    calls = []
    block = checkpointed.middle_block[0]
    block.in_layers[0].register_forward_hook(lambda *_: calls.append(1))
    loss, gradients = loss_and_gradients(plain)
    same_loss, same_gradients = loss_and_gradients(checkpointed)
    assert len(calls) == 2, "the backward pass computes the activations again"
    assert loss == same_loss
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, rtol=1e-5, atol=1e-7)


def test_timestep_embedding() -> None:
    embedding = timestep_embedding(torch.tensor([0.0, 2.5]), 6)
    frequencies = torch.tensor([1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)])
    assert embedding[0].tolist() == [1, 1, 1, 0, 0, 0]
    torch.testing.assert_close(
        embedding[1], torch.cat([(2.5 * frequencies).cos(), (2.5 * frequencies).sin()])
    )
    assert timestep_embedding(torch.tensor([3]), 7).shape == (1, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_spatial_transformer": False}, "expected use_spatial_transformer: true"),
        ({"context_dim": None}, "expected use_spatial_transformer: true and a context_dim"),
        ({"num_head_channels": 16}, "expected either num_heads or num_head_channels"),
        ({"num_heads": -1}, "expected either num_heads or num_head_channels"),
        ({"model_channels": 48}, "expected model_channels a multiple of 32, got 48"),
        ({"num_classes": 10}, "unknown parameter num_classes"),
    ],
)
def test_wrong_parameters_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        small_unet(**changes)
    assert "\n" not in str(error.value)


def test_heads_by_their_width() -> None:
    by_number, by_width = small_unet(num_heads=4), small_unet(num_heads=-1, num_head_channels=16)
    assert by_number.middle_block[1].transformer_blocks[0].attn1.heads == 4
    assert by_width.middle_block[1].transformer_blocks[0].attn1.heads == 8
    assert by_width.input_blocks[1][1].transformer_blocks[0].attn1.heads == 2
