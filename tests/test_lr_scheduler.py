"""LambdaLinearScheduler: its closed form, the published settings, and use with PyTorch's LambdaLR."""

import pytest
import torch
from omegaconf import OmegaConf
from torch.optim.lr_scheduler import LambdaLR

from ldm.files import ROOT
from ldm.lr_scheduler import LambdaLinearScheduler
from ldm.util import UserError, instantiate_from_config


def scheduler(**changes: list[float]) -> LambdaLinearScheduler:
    """Ten steps from 0.1 up to 1, then down to 0.2 at step 100."""
    settings = {
        "warm_up_steps": [10],
        "cycle_lengths": [100],
        "f_start": [0.1],
        "f_max": [1.0],
        "f_min": [0.2],
    }
    return LambdaLinearScheduler(**{**settings, **changes})


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.1),
        (5, 0.55),
        (9, 0.91),
        (10, 0.2 + 0.8 * 0.9),  # measured over the whole cycle, as published
        (50, 0.6),
        (99, 0.208),
        (100, 0.2),
        (10_000, 0.2),  # stays where the last cycle ended
    ],
)
def test_one_cycle(step: int, factor: float) -> None:
    assert scheduler().schedule(step) == pytest.approx(factor)
    assert scheduler()(step) == scheduler().schedule(step)


def test_several_cycles() -> None:
    """Each cycle counts from its own start and has its own values."""
    two = scheduler(
        warm_up_steps=[0, 4], cycle_lengths=[10, 20], f_start=[0.5, 0.0], f_max=[1.0, 0.4], f_min=[0.0, 0.2]
    )
    expected = {0: 1.0, 5: 0.5, 9: 0.1, 10: 0.0, 12: 0.2, 14: 0.2 + 0.2 * 16 / 20, 20: 0.3, 30: 0.2, 99: 0.2}
    assert {step: two(step) for step in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("configs/train.yaml", {0: 1.0, 1: 1.0, 22_000: 1.0}),
        (
            "stable_diffusion/configs/stable-diffusion/v1-inference.yaml",
            {0: 1e-6, 5000: 0.5, 10_000: 1.0, 10**6: 1.0},
        ),
    ],
)
def test_published_settings(config: str, expected: dict[int, float]) -> None:
    """Constant when editing is trained; a warm-up of 10,000 steps for Stable Diffusion."""
    schedule = instantiate_from_config(OmegaConf.load(ROOT / config).model.params.scheduler_config)
    assert {step: schedule(step) for step in expected} == pytest.approx(expected, abs=1e-6)


def test_in_an_optimizer() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule = LambdaLR(optimizer, scheduler().schedule)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.01 * scheduler()(step) for step in range(12)])


@pytest.mark.parametrize("changes", [{"f_max": [1.0, 2.0]}, {name: [] for name in ("f_min", "f_max")}])
def test_lists_of_different_lengths_are_one_line(changes: dict[str, list[float]]) -> None:
    with pytest.raises(UserError, match="expected one value a cycle in every list") as error:
        scheduler(**changes)
    assert "\n" not in str(error.value)
