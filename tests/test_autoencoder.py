"""AutoencoderKL, its posterior and its training loss."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from golden import fill, small_config
from ldm.files import ROOT
from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.losses import ReconstructionKL
from ldm.util import UserError, instantiate_from_config


def small_autoencoder(**ddconfig: Any) -> AutoencoderKL:
    """The golden configuration's autoencoder, 8x downsampling, to be trained, with changed parameters."""
    loss = {"target": "ldm.modules.losses.ReconstructionKL", "params": {"kl_weight": 0.01}}
    changes = {"params": {"ddconfig": ddconfig, "lossconfig": loss}}
    config = OmegaConf.merge(small_config().params.first_stage_config, changes)
    return instantiate_from_config(config)


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderKL:
    return fill(small_autoencoder(), "first_stage_model.").eval().requires_grad_(False)


def pictures(batch: int, height: int, width: int) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def posterior(batch: int = 2) -> DiagonalGaussianDistribution:
    parameters = torch.randn(batch, 8, 4, 6, generator=torch.Generator().manual_seed(1))
    return DiagonalGaussianDistribution(parameters)


@pytest.mark.parametrize(
    "config", ["configs/generate.yaml", "stable_diffusion/configs/stable-diffusion/v1-inference.yaml"]
)
def test_published_size(config: str) -> None:
    with torch.device("meta"):
        model = instantiate_from_config(OmegaConf.load(ROOT / config).model.params.first_stage_config)
    assert sum(p.numel() for p in model.parameters()) == 83_653_863
    assert model.downsampling == 8


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (128, 64)])
def test_sizes(autoencoder: AutoencoderKL, height: int, width: int) -> None:
    z = autoencoder.encode(pictures(1, height, width)).mode()
    assert z.shape == (1, 4, height // 8, width // 8)
    assert autoencoder.decode(z).shape == (1, 3, height, width)


def test_examples_of_a_batch_are_independent(autoencoder: AutoencoderKL) -> None:
    x = pictures(2, 64, 64)
    together = autoencoder.encode(x).parameters
    torch.testing.assert_close(together[1:], autoencoder.encode(x[1:]).parameters, rtol=1e-4, atol=1e-5)


def test_attention_where_it_is_asked_for() -> None:
    """Resolutions count for an input of `resolution`: 16 is the third of four levels from 64."""
    model = small_autoencoder(attn_resolutions=[16])
    assert [len(level.attn) for level in model.encoder.down] == [0, 0, 1, 0]
    assert [len(level.attn) for level in model.decoder.up] == [0, 0, 2, 0]
    assert model.decode(model.encode(pictures(1, 64, 64)).mode()).shape == (1, 3, 64, 64)


def test_posterior() -> None:
    q = posterior()
    mean, logvar = q.parameters.chunk(2, dim=1)
    assert q.mode() is q.mean and torch.equal(q.mean, mean)
    torch.testing.assert_close(q.sample(torch.ones_like), mean + (logvar / 2).exp())
    standard = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), standard).sum(dim=(1, 2, 3))
    torch.testing.assert_close(q.kl(), expected)


def test_posterior_variance_is_bounded() -> None:
    q = DiagonalGaussianDistribution(torch.tensor([0.0, 0.0, -1e4, 1e4]).view(1, 4, 1, 1))
    assert q.logvar.flatten().tolist() == [-30, 20]
    assert q.sample().isfinite().all()


def test_sampling_follows_the_generator() -> None:
    q = posterior()
    torch.manual_seed(4)
    one = q.sample()
    torch.manual_seed(4)
    assert torch.equal(one, q.mean + (q.logvar / 2).exp() * torch.randn_like(q.mean))


def test_loss_is_its_closed_form() -> None:
    q, x = posterior(), pictures(2, 32, 48)
    loss, parts = ReconstructionKL(kl_weight=0.3)(x, x - 0.5, q)
    per_value = q.kl().mean() / (4 * 4 * 6)
    torch.testing.assert_close(loss, 0.5 + 0.3 * per_value)
    torch.testing.assert_close(parts["rec_loss"], torch.tensor(0.5))
    torch.testing.assert_close(parts["kl"], per_value)
    assert parts["psnr"].item() == pytest.approx(12.04, abs=0.01)  # error 1/4 of the range of 2


def test_training_loss_reaches_every_weight() -> None:
    model = fill(small_autoencoder(), "first_stage_model.").train()
    batch = {"image": pictures(2, 64, 64)}
    loss, parts = model.training_loss(batch)
    loss.backward()
    assert set(parts) == {"rec_loss", "kl", "psnr"} and not any(part.requires_grad for part in parts.values())
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    logged = model.log_images(batch, 1)
    assert {name: tuple(x.shape) for name, x in logged.items()} == {
        "truth": (1, 3, 64, 64),
        "reconstruction": (1, 3, 64, 64),
    }


@pytest.mark.parametrize(
    ("ddconfig", "message"),
    [
        ({"double_z": False}, "needs double_z: true"),
        ({"ch": 40}, "expected ch to be a multiple of 32, got 40"),
        ({"tanh_out": True}, "unknown parameter tanh_out"),
    ],
)
def test_wrong_parameters_are_one_line(ddconfig: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        small_autoencoder(**ddconfig)
    assert "\n" not in str(error.value)


def test_missing_parameters_are_one_line() -> None:
    config = small_config().params.first_stage_config
    del config.params.ddconfig.z_channels
    with pytest.raises(UserError, match="ddconfig: parameter z_channels is missing"):
        instantiate_from_config(config)
