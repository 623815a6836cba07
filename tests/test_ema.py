"""LitEma: the average of the weights, its growing decay and its published names."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ldm.modules.ema import LitEma
from ldm.util import UserError


def network() -> nn.Sequential:
    """Two layers, the bias of the second not trained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[1].bias.requires_grad_(False)
    return model


@torch.no_grad()
def move(model: nn.Module, amount: float) -> None:
    for parameter in model.parameters():
        parameter += amount


def test_names_are_the_published_ones() -> None:
    """Parameter names without their dots, trained parameters only."""
    names = set(dict(LitEma(network()).named_buffers()))
    assert names == {"decay", "num_updates", "0weight", "0bias", "1weight"}
    assert not list(LitEma(network()).parameters())


@pytest.mark.parametrize("decay", [0.0, 0.2, 0.9999])
def test_average_is_its_closed_form(decay: float) -> None:
    """At update n the average keeps min(decay, (1 + n) / (10 + n)) of itself."""
    model = network()
    ema = LitEma(model, decay)
    expected = model[0].weight.detach().clone()
    for n in range(1, 8):
        move(model, 0.1 * n)
        ema(model)
        keep = min(decay, (1 + n) / (10 + n))
        expected = keep * expected + (1 - keep) * model[0].weight.detach()
    torch.testing.assert_close(dict(ema.named_buffers())["0weight"], expected)
    assert ema.num_updates == 7


def test_constant_decay() -> None:
    model = network()
    ema = LitEma(model, 0.75, use_num_upates=False)
    before = model[0].bias.detach().clone()
    for _ in range(3):
        move(model, 1.0)
        ema(model)
    # Toward +1, +2, +3: 3/4 (3/4 (1/4 1) + 1/4 2) + 1/4 3
    torch.testing.assert_close(dict(ema.named_buffers())["0bias"], before + 1.265625)
    assert ema.num_updates == -1


def test_averages_are_swapped_in_and_out() -> None:
    model = network()
    ema = LitEma(model, 0.5)
    averaged = model[0].weight.detach().clone()
    move(model, 2.0)
    moved = {name: value.clone() for name, value in model.state_dict().items()}
    with ema.swapped_into(model):
        torch.testing.assert_close(model[0].weight.detach(), averaged)
        assert torch.equal(model[1].bias, moved["1.bias"]), "what is not trained has no average"
    assert all(torch.equal(value, moved[name]) for name, value in model.state_dict().items())


def test_own_weights_return_after_an_error() -> None:
    model = network()
    ema = LitEma(model)
    move(model, 2.0)
    moved = model[0].weight.detach().clone()
    with pytest.raises(RuntimeError, match="while sampling"), ema.swapped_into(model):
        raise RuntimeError("while sampling")
    assert torch.equal(model[0].weight, moved)


def test_copies_are_no_views() -> None:
    model = network()
    ema = LitEma(model)
    before = dict(ema.named_buffers())["0weight"].clone()
    move(model, 1.0)
    assert torch.equal(dict(ema.named_buffers())["0weight"], before)
    ema.copy_to(model)
    assert torch.equal(model[0].weight, before)


def test_a_new_start_from_other_weights() -> None:
    model = network()
    ema = LitEma(model)
    ema(model)
    move(model, 3.0)
    ema.copy_from(model)
    assert torch.equal(dict(ema.named_buffers())["0weight"], model[0].weight) and ema.num_updates == 0


def test_state_survives_a_file(tmp_path: Path) -> None:
    model = network()
    ema = LitEma(model)
    move(model, 1.0)
    ema(model)
    torch.save(ema.state_dict(), tmp_path / "ema.pt")
    other = LitEma(network())
    other.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    for one in (ema, other):
        one(model)
    for name, value in ema.named_buffers():
        assert torch.equal(dict(other.named_buffers())[name], value)


@pytest.mark.parametrize("decay", [-0.1, 1.5])
def test_impossible_decay(decay: float) -> None:
    with pytest.raises(UserError, match=r"expected a value in \[0, 1\], got"):
        LitEma(network(), decay)
