"""The text encoder and its tokenizer against the published numbers and against transformers."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from golden import fill, published_keys, relative_error, small_config
from ldm.modules.encoders.clip_text import CLIPTextConfig, CLIPTextModel
from ldm.modules.encoders.modules import FrozenCLIPEmbedder
from ldm.util import UserError

PREFIX = "cond_stage_model."


@pytest.fixture(scope="module")
def embedder() -> FrozenCLIPEmbedder:
    """The golden file's text encoder with the golden weights."""
    return fill(FrozenCLIPEmbedder(**small_config().params.cond_stage_config.params), PREFIX)


# --- The published implementation ---------------------------------------------------------------------------


def test_golden_tokens(
    embedder: FrozenCLIPEmbedder, golden: dict[str, Tensor], golden_metadata: dict[str, Any]
) -> None:
    tokens = embedder.tokenizer(golden_metadata["texts"])
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, golden["text.tokens"])


@torch.no_grad()
def test_golden_hidden_states(
    embedder: FrozenCLIPEmbedder, golden: dict[str, Tensor], golden_metadata: dict[str, Any]
) -> None:
    hidden = embedder(golden_metadata["texts"])
    assert relative_error(hidden, golden["text.hidden"]) <= 1e-5


@pytest.mark.parametrize("layout", ["instruct_pix2pix", "stable_diffusion_v1"])
def test_keys_are_the_published_ones(layout: str) -> None:
    with torch.device("meta"):
        state = FrozenCLIPEmbedder().state_dict(prefix=PREFIX)
    published = {key: shape for key, shape in published_keys(layout).items() if key.startswith(PREFIX)}
    assert published.pop("cond_stage_model.transformer.text_model.embeddings.position_ids") == [1, 77]
    assert {key: list(tensor.shape) for key, tensor in state.items()} == published
    assert sum(tensor.numel() for tensor in state.values()) == 123_060_480


# --- transformers' CLIPTextModel ----------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize(("width", "layers", "heads"), [(64, 2, 4), (48, 12, 12)])
def test_equals_transformers(width: int, layers: int, heads: int, hidden_act: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = dict(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=hidden_act,
        vocab_size=1000,
    )
    ours = fill(CLIPTextModel(CLIPTextConfig(**sizes)), "cond_stage_model.transformer.").eval()
    peer = transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes, eos_token_id=999)).eval()
    # Newer transformers have no `text_model` level, older ones do.
    flat = not any(key.startswith("text_model.") for key in peer.state_dict())
    state = {key.removeprefix("text_model.") if flat else key: t for key, t in ours.state_dict().items()}
    missing, unexpected = peer.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith("position_ids") for key in missing)

    tokens = torch.randint(1000, (3, 77), generator=torch.Generator().manual_seed(0))
    expected = peer(input_ids=tokens).last_hidden_state
    assert relative_error(ours(tokens), expected) <= 1e-5
    short = peer(input_ids=tokens[:, :9]).last_hidden_state
    assert relative_error(ours(tokens[:, :9]), short) <= 1e-5


# --- Building, loading, training ----------------------------------------------------------------------------


@torch.no_grad()
def test_meta_construction_and_assignment(embedder: FrozenCLIPEmbedder) -> None:
    with torch.device("meta"):
        empty = FrozenCLIPEmbedder(**small_config().params.cond_stage_config.params)
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.load_state_dict(embedder.state_dict(), assign=True)
    assert torch.equal(empty(["make it snow"]), embedder(["make it snow"]))


@torch.no_grad()
def test_low_precision_stays_close(embedder: FrozenCLIPEmbedder) -> None:
    half = pickle.loads(pickle.dumps(embedder)).bfloat16()
    assert half(["make it snow"]).dtype == torch.bfloat16
    assert relative_error(half(["make it snow"]), embedder(["make it snow"])) < 0.05


def test_later_tokens_do_not_change_earlier_states(embedder: FrozenCLIPEmbedder) -> None:
    with torch.no_grad():
        one, two = embedder(["a red hat", "a red scarf"])
    torch.testing.assert_close(one[:3], two[:3])  # start, "a", "red"
    assert not torch.allclose(one[3], two[3], atol=1e-3)


def test_fresh_weights_follow_clip() -> None:
    width, layers = 64, 8
    model = CLIPTextModel(CLIPTextConfig(49408, width, 4 * width, layers, 4)).text_model
    block = model.encoder["layers"][3]
    expected = {
        model.embeddings.token_embedding: 0.02,
        model.embeddings.position_embedding: 0.01,
        block.self_attn.q_proj: width**-0.5,
        block.self_attn.out_proj: (2 * layers * width) ** -0.5,
        block.mlp.fc1: (2 * width) ** -0.5,
        block.mlp.fc2: (2 * layers * width) ** -0.5,
    }
    for layer, std in expected.items():
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
        assert layer.weight.requires_grad


def test_weights_can_be_trained_in_spite_of_the_name() -> None:
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    embedder = FrozenCLIPEmbedder("openai/clip-vit-large-patch14", "cuda", 20, **sizes)
    assert embedder.training
    hidden = embedder("one text")
    assert hidden.shape == (1, 20, 16)
    hidden.square().mean().backward()
    assert all(parameter.grad is not None for parameter in embedder.parameters())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (dict(hidden_size=10, num_attention_heads=4), "multiple of num_attention_heads, got 10 and 4"),
        (dict(hidden_act="swish"), r"one of \['gelu', 'quick_gelu'\], got 'swish'"),
        (dict(max_length=78), "at most max_position_embeddings = 77, got 78"),
        (dict(max_length=1), "at least 2.*got 1"),
        (dict(vocab_size=1000), "at least 49408, got 1000"),
    ],
)
def test_wrong_sizes_are_named(parameters: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        FrozenCLIPEmbedder(**parameters)


def test_unknown_parameters_are_refused() -> None:
    with pytest.raises(UserError, match="hidden_sise"):
        FrozenCLIPEmbedder(hidden_sise=64)


# --- What it imports ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_encoding_needs_neither_transformers_nor_open_clip() -> None:
    code = (
        "import sys; from ldm.modules.encoders.modules import FrozenCLIPEmbedder as E\n"
        "import ldm.modules.encoders.tokenizer as t\n"
        "assert t.load_bpe.cache_info().currsize == 0, 'built at import'\n"
        "e = E(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)\n"
        "assert t.load_bpe.cache_info().currsize == 0, 'built by the constructor'\n"
        "assert e(['make it snow']).shape == (1, 77, 8)\n"
        "heavy = {'transformers', 'open_clip', 'ftfy', 'huggingface_hub', 'lightning'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {
        **os.environ,
        "no_proxy": "",
        "https_proxy": "http://127.0.0.1:9",
    }  # any download would fail
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
