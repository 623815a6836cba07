"""ldm.sampling.sdedit: what is kept of a picture at every strength."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.sampling.schedule import get_sigmas
from ldm.sampling.sdedit import sdedit_batch, strength_sigmas
from networks import text_network

STEPS = 4


def pictures(seed: int = 0) -> Tensor:
    """[2, 3, 64, 64] in [-1, 1]."""
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def edit(images: Tensor, strength: float, seeds: list[int] | None = None, **options: object) -> Tensor:
    settings = {"steps": STEPS, "cfg_text": 2.0, "seeds": seeds or [3, 4], **options}
    captions = ["a cat", "a dog"][: len(images)]
    return sdedit_batch(text_network(), images, captions, strength=strength, **settings)


def test_strength_0_is_the_reconstruction():
    autoencoder = text_network().first_stage_model
    expected = autoencoder.decode(autoencoder.encode(pictures()).mode())
    torch.testing.assert_close(edit(pictures(), 0), expected, atol=1e-5, rtol=0)


def test_strength_1_ignores_the_picture():
    assert torch.equal(edit(pictures(0), 1), edit(pictures(1), 1))
    assert not torch.equal(edit(pictures(0), 0.9), edit(pictures(1), 0.9))


def test_little_strength_changes_little():
    reconstruction = edit(pictures(), 0)
    least, little, much = (
        (edit(pictures(), strength) - reconstruction).abs().mean().item() for strength in (0.001, 0.01, 0.9)
    )
    assert 0 < least < little < much


def test_a_picture_does_not_depend_on_the_others():
    both = edit(pictures(), 0.5)
    torch.testing.assert_close(edit(pictures()[:1], 0.5, [3]), both[:1], atol=1e-5, rtol=0)
    heun = edit(pictures(), 0.5, sampler="heun")
    assert not torch.allclose(heun, both, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 10, 100])
def test_levels(steps: int):
    known = text_network().sigmas
    assert torch.equal(strength_sigmas(known, steps, 1), get_sigmas(known, steps))
    assert strength_sigmas(known, steps, 0).tolist() == [0]
    half = strength_sigmas(known, steps, 0.5)
    assert half[-1] == 0 and len(half) == max(1, round(steps / 2)) + 1
    assert known[499] < half[0] < known[500]  # whatever the steps
    assert (half.diff() < 0).all()
