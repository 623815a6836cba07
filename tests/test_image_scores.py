"""metrics.editsets: distances of pictures, and cosines as in MagicBrush's script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from benchmark_files import picture, write_files
from metrics.clip_similarity import ClipSimilarity
from metrics.editsets.dino import MODEL, Dino
from metrics.editsets.image_scores import ImageScores
from weights_files import message, save


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


@pytest.fixture(scope="module")
def scores(files: Path) -> ImageScores:
    clip = ClipSimilarity(str(files / "clip.json"), weights=files / "clip.safetensors")
    return ImageScores(clip, Dino(files / "dino.safetensors"))


def test_an_edit_equal_to_the_true_one(scores: ImageScores) -> None:
    found = scores(picture(1), picture(1), "a cat", "a dog")
    assert found["l1"] == found["l2"] == found["clip_direction"] == 0
    assert found["clip_image"] == pytest.approx(1) and found["dino"] == pytest.approx(1)


def test_distances_are_those_of_pixels_at_the_references_size(scores: ImageScores) -> None:
    black, grey = Image.new("RGB", (64, 64)), Image.new("RGB", (90, 50), (51, 51, 51))
    found = scores(black, grey)
    assert found["l1"] == pytest.approx(0.2) and found["l2"] == pytest.approx(0.04)
    assert set(found) == {"l1", "l2", "clip_image", "dino"}


@torch.no_grad()
@pytest.mark.parametrize("size", [(90, 64), (64, 97), (300, 280)])
def test_pictures_go_into_clip_and_dino_as_in_magicbrushs_script(
    scores: ImageScores, size: tuple[int, int]
) -> None:
    """Shorter side resized, middle cut out: 32 px for this CLIP, 256 and 224 for DINO; ordinary cosines."""

    def embed(network: Any, resized: int, side: int, mean: Any, std: Any, *images: Image.Image) -> Tensor:
        bicubic = transforms.InterpolationMode.BICUBIC
        steps = [transforms.Resize(resized, bicubic), transforms.CenterCrop(side)]
        steps += [transforms.ToTensor(), transforms.Normalize(mean, std)]
        return torch.cat([network(transforms.Compose(steps)(image)[None]) for image in images])

    output, reference = picture(1, *size), picture(2, 80, 64)
    clip, dino = scores.clip.network, scores.dino.network
    pixels = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    a, b = embed(clip.encode_image, 32, 32, *pixels, output, reference)
    after, before = clip.encode_text(scores.clip.tokenize(["a hat", "a man"]))
    x, y = embed(dino, 256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), output, reference)

    def cosine(u: Tensor, v: Tensor) -> float:
        return (u @ v / u.norm() / v.norm()).item()

    a, b, after, before = (v / v.norm() for v in (a, b, after, before))
    expected = {
        "clip_image": cosine(a, b),
        "dino": cosine(x, y),
        "clip_text": cosine(a, after),
        "clip_direction": cosine(a - b, after - before),
    }
    found = scores(output, reference, "a hat", "a man")
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_dino_files(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    state = Dino(files / "dino.safetensors").network.state_dict()
    loaded = Dino(save(state, tmp_path / "dino.pth", "stream")).network.state_dict()
    assert all(torch.equal(state[name], loaded[name]) for name in state)
    assert f"{files / 'clip.safetensors'} does not fit {MODEL}: " in message(Dino, files / "clip.safetensors")
    assert "there is no file" in message(Dino, tmp_path / "none.pth")
    assert f"cannot download {MODEL}: " in message(Dino)
