"""dataset_creation.pairs.sampler and ldm.sampling.prompt_to_prompt: pairs equal the published ones."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict

import pytest
import torch
from einops import rearrange

from dataset_creation.pairs.sampler import PairSampler, PairSettings, Ranges
from golden import read_golden, read_metadata, relative_error
from ldm.modules.attention import BasicTransformerBlock, CrossAttention
from ldm.sampling.noise import ExampleNoise
from ldm.sampling.prompt_to_prompt import last_shared_sigma, self_attention_from
from ldm.util import UserError
from networks import edit_network, text_network

CAPTIONS = ("photograph of a girl riding a horse", "photograph of a girl riding a dragon")
SIZE = 64


@pytest.fixture(scope="module")
def sampler() -> PairSampler:
    return PairSampler(text_network(), steps=5, resolution=SIZE)


def test_golden_pair():
    """The published pair; its threshold and guidance scale were given, so no numbers were drawn for them."""
    golden, metadata = read_golden(), read_metadata()
    case, p2p = metadata["case"], metadata["p2p"]
    sampler = PairSampler(text_network(), steps=case["steps"], resolution=SIZE)
    noise = ExampleNoise.seeded([case["seed"]])
    z = noise(torch.empty(1, 4, SIZE // 8, SIZE // 8))
    settings = PairSettings(case["seed"], p2p["threshold"], p2p["cfg"])
    pictures = sampler.denoise(tuple(p2p["captions"]), [settings], noise, z)
    assert pictures.shape == (1, 2, 3, SIZE, SIZE)
    assert relative_error(pictures[0], golden["p2p.images"].clamp(-1, 1)) < 1e-4


def test_draws_follow_the_seed_in_the_published_order(sampler: PairSampler):
    settings, _ = sampler.sample(CAPTIONS, [7], Ranges((0.1, 0.9), (7.5, 15.0)))
    torch.manual_seed(7)
    torch.randn(1, 4, SIZE // 8, SIZE // 8)
    p2p = 0.1 + torch.rand(()).item() * (0.9 - 0.1)
    cfg = 7.5 + torch.rand(()).item() * (15.0 - 7.5)
    assert settings == [PairSettings(7, p2p, cfg)]


def test_batched_equals_one_at_a_time(sampler: PairSampler):
    seeds = [3, 2**32 - 1, 12]
    settings, together = sampler.sample(CAPTIONS, seeds, Ranges())
    for i, seed in enumerate(seeds):
        alone_settings, alone = sampler.sample(CAPTIONS, [seed], Ranges())
        assert alone_settings == [settings[i]]
        torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=0)


def test_a_pair_is_made_again_from_its_line(sampler: PairSampler):
    settings, pictures = sampler.sample(CAPTIONS, [5, 6], Ranges())
    line = asdict(settings[1])
    again = sampler.replay(CAPTIONS, [PairSettings(**line)])
    torch.testing.assert_close(again[0], pictures[1], atol=1e-4, rtol=0)


def test_equal_captions_make_equal_pictures_and_other_captions_do_not(sampler: PairSampler):
    _, same = sampler.sample((CAPTIONS[0], CAPTIONS[0]), [1], Ranges())
    _, other = sampler.sample(CAPTIONS, [1], Ranges())
    assert torch.equal(same[0, 0], same[0, 1])
    torch.testing.assert_close(other[0, 0], same[0, 0], atol=1e-4, rtol=0)  # the first is its caption's alone
    assert (other[0, 0] - other[0, 1]).abs().max() > 1e-3


def test_thresholds_are_the_published_steps():
    sigmas = torch.tensor([16.0, 8.0, 4.0, 2.0, 1.0, 0.0])
    for threshold in (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0):
        shared = [threshold > i / (len(sigmas) - 2) for i in range(len(sigmas) - 1)]
        (level,) = last_shared_sigma(sigmas, [threshold])
        assert [bool(sigma > level) for sigma in sigmas[:-1]] == shared, threshold
    assert last_shared_sigma(sigmas, [0.0, 0.5]).tolist() == [16.0, 4.0]


def test_sharing_equals_replacing_the_logits():
    """The definition: the second row's logits are the first one's, its values its own."""
    torch.manual_seed(0)
    attention = CrossAttention(32, None, heads=4, dim_head=8)
    x = torch.randn(2, 9, 32)
    q, k, v = (
        rearrange(layer(x), "b n (heads d) -> b heads n d", heads=4)
        for layer in (attention.to_q, attention.to_k, attention.to_v)
    )
    logits = q @ k.transpose(-1, -2) / math.sqrt(8)
    logits[1] = logits[0]
    expected = attention.to_out(rearrange(logits.softmax(-1) @ v, "b heads n d -> b n (heads d)"))
    attention.sources = torch.tensor([0, 0])
    torch.testing.assert_close(attention(x), expected)


def test_sharing_touches_self_attention_alone_and_ends():
    unet = text_network().model.diffusion_model
    blocks = [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
    assert blocks
    with pytest.raises(KeyError), self_attention_from(unet, torch.tensor([0, 0])):
        assert all(block.attn1.sources is not None for block in blocks)
        assert all(block.attn2.sources is None for block in blocks)
        raise KeyError
    assert all(block.attn1.sources is None for block in blocks)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "dpmpp_sde", "euler_ancestral", "lms"])
def test_other_samplers_keep_samples_apart(name: str):
    sampler = PairSampler(text_network(), steps=4, resolution=SIZE, sampler=name)
    _, together = sampler.sample(CAPTIONS, [1, 2], Ranges())
    _, alone = sampler.sample(CAPTIONS, [2], Ranges())
    assert together.isfinite().all()
    torch.testing.assert_close(alone[0], together[1], atol=2e-3, rtol=0)


def test_mistakes():
    with pytest.raises(UserError, match="expected a text-to-image model"):
        PairSampler(edit_network())
    with pytest.raises(UserError, match="expected a multiple of 32 pixels, got 100"):
        PairSampler(text_network(), resolution=100)
    with pytest.raises(UserError, match="steps: expected at least 2, got 1"):
        PairSampler(text_network(), steps=1, resolution=SIZE)
    with pytest.raises(UserError, match="sampler: expected one of .*, got 'dpm_adaptive'"):
        PairSampler(text_network(), resolution=SIZE, sampler="dpm_adaptive")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_on_cuda_the_numbers_are_the_cpus():
    network = copy.deepcopy(text_network()).to("cuda")
    sampler = PairSampler(network, steps=5, resolution=SIZE)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # ten bits of a number, else
        settings, pictures = sampler.sample(CAPTIONS, [7, 8], Ranges())
        _, alone = sampler.sample(CAPTIONS, [8], Ranges())
    assert pictures.device.type == "cuda"
    torch.testing.assert_close(alone[0], pictures[1], atol=1e-3, rtol=0)
    torch.manual_seed(7)
    assert settings[0].p2p_threshold == 0.1 + torch.rand(()).item() * (0.9 - 0.1)
