"""metrics.clip_similarity against transformers' CLIP, OpenAI's own code, and direct computations."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from golden import fill
from ldm.sampling.samplers import import_without_package
from metrics.clip_similarity import ClipSimilarity, build_network
from weights_files import message, save

SIDE, WIDTH, EMBED = 32, 64, 24
# Heads of 64 channels, as OpenAI's code has them.
CONFIG: dict[str, Any] = {
    "embed_dim": EMBED,
    "quick_gelu": True,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 2 * WIDTH, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 1, "layers": 2},
}
TEXTS_0 = ["a photograph of a girl", "Two   boats\n on the sea", "x"]
TEXTS_1 = ["a photograph of a girl in a red hat", "two boats on fire, &amp; the sea", ""]


@pytest.fixture(scope="module")
def network() -> open_clip.CLIP:
    """A small CLIP of open_clip with test weights."""
    return fill(open_clip.CLIP(**CONFIG)).eval()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its configuration, as a file."""
    file = tmp_path_factory.mktemp("clip") / "ViT-B-32.json"  # the name of one of open_clip's own models
    file.write_text(json.dumps(CONFIG))
    return str(file)


@pytest.fixture(scope="module")
def weights(network: open_clip.CLIP, config: str) -> Path:
    return save(network.state_dict(), Path(config).with_name("clip.safetensors"), "safetensors")


@pytest.fixture(scope="module")
def clip(config: str, weights: Path) -> ClipSimilarity:
    return ClipSimilarity(config, weights=weights)


def _images(count: int, height: int = 48, width: int = 40, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


BEFORE, AFTER = _images(3), _images(3, seed=1)
ALL_IMAGES, ALL_TEXTS = torch.cat([BEFORE, AFTER]), TEXTS_0 + TEXTS_1


def _by_hand(
    images: Tensor,
    mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
    std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
) -> Tensor:
    """The published preprocessing."""
    images = F.interpolate(images, size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def _assert_all_close(ours: Sequence[Tensor], theirs: Sequence[Tensor], atol: float = 1e-5) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.cpu(), other, atol=atol, rtol=0)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def _openai_tokens(texts: Sequence[str]) -> Tensor:
    """What `clip.tokenize` of OpenAI's package gives, [len(texts), 77]."""
    encode = import_without_package("clip.simple_tokenizer").SimpleTokenizer().encode
    rows = [[49406, *encode(text)][:76] + [49407] for text in texts]
    return torch.tensor([row + [0] * (77 - len(row)) for row in rows])


# --- the numbers --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_equals_transformers(clip: ClipSimilarity, network: open_clip.CLIP) -> None:
    peer = _transformers_twin(network)
    output = peer(input_ids=clip.tokenize(ALL_TEXTS), pixel_values=_by_hand(ALL_IMAGES))
    ours = clip.encode_image(ALL_IMAGES), clip.encode_text(ALL_TEXTS)
    theirs = output.image_embeds, output.text_embeds
    _assert_all_close(ours, theirs, 2e-6)
    _assert_all_close(clip(BEFORE, AFTER, TEXTS_0, TEXTS_1), _similarities(*theirs))


@torch.no_grad()
def test_equals_openai(clip: ClipSimilarity, network: open_clip.CLIP) -> None:
    """Its package as it is published; only its own loader of files needs what is no longer installed."""
    peer = import_without_package("clip.model").CLIP(EMBED, SIDE, 2, 2 * WIDTH, 8, 77, 49408, WIDTH, 1, 2)
    peer.load_state_dict(network.state_dict())
    image_embeds = F.normalize(peer.encode_image(_by_hand(ALL_IMAGES)))
    text_embeds = F.normalize(peer.encode_text(_openai_tokens(ALL_TEXTS)))
    ours = clip.encode_image(ALL_IMAGES), clip.encode_text(ALL_TEXTS)
    _assert_all_close(ours, (image_embeds, text_embeds), 2e-6)
    _assert_all_close(clip(BEFORE, AFTER, TEXTS_0, TEXTS_1), _similarities(image_embeds, text_embeds))


def _similarities(images: Tensor, texts: Tensor) -> tuple[Tensor, ...]:
    """The four cosines of three pairs, from normalised [6, D] each: those before, then those after."""
    (image_0, image_1), (text_0, text_1) = images.split(3), texts.split(3)
    return (
        _cosine(image_0, text_0),
        _cosine(image_1, text_1),
        _cosine(image_1 - image_0, text_1 - text_0),
        _cosine(image_0, image_1),
    )


def _transformers_twin(network: open_clip.CLIP) -> nn.Module:
    transformers = pytest.importorskip("transformers")

    def sizes(width: int) -> dict[str, int]:
        heads = {"num_attention_heads": width // 64, "num_hidden_layers": 2}
        return {"hidden_size": width, "intermediate_size": 4 * width, **heads}

    vision = {**sizes(2 * WIDTH), "image_size": SIDE, "patch_size": 8}
    settings = transformers.CLIPConfig(text_config=sizes(WIDTH), vision_config=vision, projection_dim=EMBED)
    peer = transformers.CLIPModel(settings).eval()
    names = {
        "logit_scale": "logit_scale",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final": "text_model.final_layer_norm",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
    }
    parts = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    state = {}
    for name, tensor in network.state_dict().items():
        stem, _, end = name.rpartition(".")
        tower, is_block, rest = name.partition("transformer.resblocks.")
        if name in ("text_projection", "visual.proj"):
            state["visual_projection.weight" if "visual" in name else "text_projection.weight"] = tensor.T
        elif not is_block:
            state[names[name] if name in names else f"{names[stem]}.{end}"] = tensor
        else:
            number, _, part = rest.partition(".")
            layer = f"{'vision' if tower else 'text'}_model.encoder.layers.{number}"
            if part.startswith("attn.in_proj_"):
                for kind, third in zip("qkv", tensor.chunk(3), strict=True):
                    state[f"{layer}.self_attn.{kind}_proj.{part.removeprefix('attn.in_proj_')}"] = third
            else:
                part, _, end = part.rpartition(".")
                state[f"{layer}.{parts[part]}.{end}"] = tensor
    missing, unexpected = peer.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("position_ids") for name in missing), missing
    return peer


def test_many_equal_one_at_a_time(clip: ClipSimilarity) -> None:
    together = clip(BEFORE, AFTER, TEXTS_0, TEXTS_1)
    for i in range(3):
        alone = clip(BEFORE[i : i + 1], AFTER[i : i + 1], TEXTS_0[i : i + 1], TEXTS_1[i : i + 1])
        _assert_all_close(alone, [similarity[i : i + 1] for similarity in together])


def test_one_caption_each_serves_all_pictures(clip: ClipSimilarity) -> None:
    short = clip(BEFORE, AFTER, TEXTS_0[:1], TEXTS_1[:1])
    long = clip(BEFORE, AFTER, TEXTS_0[:1] * 3, TEXTS_1[:1] * 3)
    _assert_all_close(short, long)


def test_no_change_has_no_direction(clip: ClipSimilarity) -> None:
    images = _images(2)
    _, _, same_texts, _ = clip(images, _images(2, seed=1), ["a cat"] * 2, ["a cat"] * 2)
    _, _, same_images, similarity = clip(images, images, ["a cat"] * 2, ["a dog"] * 2)
    assert same_texts.tolist() == same_images.tolist() == [0, 0]
    assert similarity.tolist() == pytest.approx([1, 1])


@torch.no_grad()
@pytest.mark.parametrize("shape", [(32, 32), (96, 96), (20, 90)])
def test_preprocessing(clip: ClipSimilarity, network: open_clip.CLIP, shape: tuple[int, int]) -> None:
    """The whole picture, squeezed to the model's square without antialiasing."""
    images = _images(2, *shape)
    expected = network.encode_image(_by_hand(images), normalize=True)
    torch.testing.assert_close(clip.encode_image(images), expected, atol=1e-6, rtol=0)
    half = clip.encode_image(images.half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, atol=1e-2, rtol=0)


def test_it_is_frozen(clip: ClipSimilarity) -> None:
    assert not clip.training and not any(p.requires_grad for p in clip.parameters())
    assert not clip.encode_image(_images(1).requires_grad_()).requires_grad


# --- tokens -------------------------------------------------------------------------------------------------

HARD_TEXTS = [
    "",
    "A Photograph of a GIRL's 2 hats, they're 1990s!",
    " \t tabs,\n\nlines \u00a0 and\u2003spaces ",
    "caf\u00e9 &amp;lt; th\u00c3\u00a9 \u2014 \u201cquoted\u201d",
    "\U0001f600 \u96e8\u306e\u65e5 na\u00efve \ufb01ne",
    "half a letter: \ud83d",
    "word " * 75,
    "word " * 76,
    "incomprehensibilities, " * 40,
]


def test_tokens_are_openais(clip: ClipSimilarity) -> None:
    assert torch.equal(clip.tokenize(HARD_TEXTS), _openai_tokens(HARD_TEXTS))


def test_tokens_are_padded_and_cut(clip: ClipSimilarity) -> None:
    short, cut = clip.tokenize(["hat", "word " * 90])
    assert short.tolist() == [49406, 3801, 49407] + [0] * 74
    assert cut[0] == 49406 and cut[-1] == 49407 and len(set(cut[1:-1].tolist())) == 1


def test_tokens_follow_the_models_length(tmp_path: Path) -> None:
    settings = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "context_length": 9}}
    file = _write(tmp_path, settings)
    weights = save(open_clip.CLIP(**settings).state_dict(), tmp_path / "weights.pt", "bare")
    clip = ClipSimilarity(file, weights=weights)
    assert clip.tokenize(["word " * 20])[0, [0, -1]].tolist() == [49406, 49407]
    assert torch.equal(clip.encode_text(["word " * 7]), clip.encode_text(["word " * 20]))


# --- models and weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "lightning", "bare", "stream"])
def test_weights_files(clip: ClipSimilarity, config: str, tmp_path: Path, kind: str) -> None:
    """Of each kind, in half precision, and with the names of a training on several devices."""
    state = {f"module.{name}": tensor.half() for name, tensor in clip.network.state_dict().items()}
    state["module.logit_scale"] = state["module.logit_scale"][None]  # as newer models have it
    loaded = ClipSimilarity(config, weights=str(save(state, tmp_path / "x", kind)))
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    ours, expected = ([c.encode_text(TEXTS_0), c.encode_image(_images(2))] for c in (loaded, clip))
    _assert_all_close(ours, expected, atol=5e-3)


def test_configuration_with_its_own_pixels(network: open_clip.CLIP, weights: Path, tmp_path: Path) -> None:
    pixels = {"mean": [0.5, 0.4, 1], "std": [0.2, 0.3, 0.4]}
    file = _write(tmp_path, {"model_cfg": CONFIG, "preprocess_cfg": pixels})
    clip = ClipSimilarity(file, weights=weights)
    images = _images(1)
    expected = network.encode_image(_by_hand(images, **pixels), normalize=True)
    torch.testing.assert_close(clip.encode_image(images), expected, atol=1e-6, rtol=0)


def test_a_file_leaves_open_clips_own_models_alone(clip: ClipSimilarity) -> None:
    assert open_clip.get_model_config("ViT-B-32")["embed_dim"] == 512
    assert "open_clip_config" not in open_clip.list_models()


@pytest.mark.parametrize(
    ("name", "tag", "quick", "mean", "side"),
    [
        ("ViT-L/14", "openai", True, 0.48145466, 224),
        ("ViT-L-14-quickgelu", "openai", True, 0.48145466, 224),
        ("ViT-L/14@336px", "openai", True, 0.48145466, 336),
        ("ViT-L-14", "laion400m_e32", False, 0.48145466, 224),
        ("ViT-L-14", "laion2b_s32b_b82k", False, 0.5, 224),
    ],
)
def test_published_weights_get_their_activation_and_pixels(
    name: str, tag: str, quick: bool, mean: float, side: int
) -> None:
    with torch.device("meta"):  # the size of the real one, without its numbers
        network, tokenize = build_network(name, tag, download=False, device="meta")
    activations = {type(block.mlp.gelu) for block in network.transformer.resblocks}
    activations |= {type(block.mlp.gelu) for block in network.visual.transformer.resblocks}
    assert activations == {open_clip.transformer.QuickGELU if quick else nn.GELU}
    assert network.visual.preprocess_cfg["mean"][0] == mean
    assert network.visual.preprocess_cfg["size"] == (side, side)
    assert tokenize(["hat"]).shape == (1, 77)


def test_downloads_that_fail_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    said = message(ClipSimilarity, "ViT-L/14")
    assert said.startswith("cannot load CLIP model ViT-L-14: Failed to download weights for tag 'openai'")
    assert said.endswith("(weights that you have: --clip-weights FILE)")


def test_unknown_models_and_tags(weights: Path) -> None:
    said = message(ClipSimilarity, "ViT-L15")
    assert "ViT-L-14, " in said and said.endswith("or a JSON file, got 'ViT-L15'")
    assert "a name of open_clip.list_models(), or a JSON file" in message(ClipSimilarity, "???")
    said = message(ClipSimilarity, "ViT-H-14", weights=weights)
    assert "weights of CLIP model ViT-H-14: expected laion2b_s32b_b79k" in said and said.endswith(
        "got 'openai'"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"{", "cannot read CLIP model"),
        (b"\xff\xfe", "cannot read CLIP model"),
        (b"[]", "expected a mapping with embed_dim, vision_cfg, text_cfg"),
        (b'{"embed_dim": 3}', "expected a mapping with embed_dim, vision_cfg, text_cfg"),
    ],
)
def test_configurations_that_cannot_be_read(
    tmp_path: Path, weights: Path, content: bytes | None, said: str
) -> None:
    file = tmp_path / "model.json"
    if content is not None:
        file.write_bytes(content)
    assert said in message(ClipSimilarity, str(file), weights=weights)


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("vision_cfg", {"layerz": 3}, "layerz"),
        ("text_cfg", {"vocab_size": 1000}, "expected a vocab_size of 49408, got 1000"),
        ("vision_cfg", {"image_size": 64}, "1 weights are of another shape: visual.positional_embedding: "),
        ("text_cfg", {"context_length": 99}, r"positional_embedding: expected [99, 64], got [77, 64]"),
        ("text_cfg", {"layers": 3}, "12 weights are missing: transformer.resblocks.2.ln_1.weight, "),
        (
            "text_cfg",
            {"layers": 1},
            "12 weights are unknown to the model: transformer.resblocks.1.",
        ),
    ],
)
def test_configurations_that_do_not_fit(
    tmp_path: Path, weights: Path, part: str, change: dict[str, int], said: str
) -> None:
    file = _write(tmp_path, {**CONFIG, part: {**CONFIG[part], **change}})
    assert said in message(ClipSimilarity, file, weights=weights)


def test_weights_that_cannot_be_read(config: str, weights: Path, tmp_path: Path) -> None:
    assert "expected --clip-weights with it" in message(ClipSimilarity, config)
    assert "there is no file" in message(ClipSimilarity, config, weights=tmp_path / "none.pt")
    page = tmp_path / "page.pt"
    page.write_text("<html>Not found</html>")
    assert "got a web page" in message(ClipSimilarity, "ViT-L-14", weights=page)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:-100])
    assert "truncated" in message(ClipSimilarity, config, weights=cut)
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    assert "weights are missing" in message(ClipSimilarity, config, weights=tmp_path / "other.safetensors")


def test_no_code_of_a_weights_file_runs(config: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(mark),)

    torch.save({"state_dict": {"a": torch.ones(1)}, "code": Code()}, tmp_path / "code.pt")
    assert "refused to load" in message(ClipSimilarity, config, weights=tmp_path / "code.pt")
    assert not mark.exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_cuda(clip: ClipSimilarity, config: str, weights: Path) -> None:
    there = ClipSimilarity(config, weights=weights, device="cuda")
    similarities = there(BEFORE.to("cuda"), AFTER.to("cuda"), TEXTS_0, TEXTS_1)
    assert all(one.device.type == "cuda" for one in similarities)
    _assert_all_close(similarities, clip(BEFORE, AFTER, TEXTS_0, TEXTS_1), atol=1e-3)


def _write(folder: Path, settings: dict[str, Any]) -> str:
    file = folder / "model.json"
    file.write_text(json.dumps(settings))
    return str(file)
