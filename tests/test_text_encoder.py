"""The text encoder and its tokenizer against the published numbers and against transformers."""

import gzip
import json
import os
import pickle
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from golden import fill, published_keys, relative_error, small_config
from ldm.modules.encoders.clip_text import CLIPTextConfig, CLIPTextModel
from ldm.modules.encoders.modules import FrozenCLIPEmbedder
from ldm.modules.encoders.tokenizer import MERGES_FILE, N_MERGES, CLIPTokenizer, load_bpe

PREFIX = "cond_stage_model."


@pytest.fixture(scope="module")
def embedder() -> FrozenCLIPEmbedder:
    """The golden file's text encoder with the golden weights."""
    return fill(FrozenCLIPEmbedder(**small_config().params.cond_stage_config.params), PREFIX)


# --- The published implementation ---------------------------------------------------------------------------


def test_golden_tokens(
    embedder: FrozenCLIPEmbedder, golden: dict[str, Tensor], golden_metadata: dict[str, Any]
) -> None:
    tokens = embedder.tokenize(golden_metadata["texts"])
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, golden["text.tokens"])


@torch.no_grad()
def test_golden_hidden_states(
    embedder: FrozenCLIPEmbedder, golden: dict[str, Tensor], golden_metadata: dict[str, Any]
) -> None:
    hidden = embedder(golden_metadata["texts"])
    assert relative_error(hidden, golden["text.hidden"]) <= 1e-5
    assert torch.equal(embedder.encode(golden_metadata["texts"]), hidden)


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


def test_freeze_is_a_choice() -> None:
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    embedder = FrozenCLIPEmbedder("openai/clip-vit-large-patch14", "cuda", 20, **sizes)
    assert embedder.training
    hidden = embedder("one text")
    assert hidden.shape == (1, 20, 16)
    hidden.square().mean().backward()
    assert all(parameter.grad is not None for parameter in embedder.parameters())
    embedder.freeze()
    assert not embedder.training
    assert not any(parameter.requires_grad for parameter in embedder.parameters())


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
    with pytest.raises(TypeError, match="hidden_sise"):
        FrozenCLIPEmbedder(hidden_sise=64)


# --- transformers' CLIPTokenizer ----------------------------------------------------------------------------

WRITTEN = [
    # instructions and captions
    "turn him into a cyborg",
    "Make it a Picasso painting!",
    "",
    "swap sunflowers with roses",
    "What would it look like if it were snowing?",
    "add dramatic lighting; what if it were snowing? Ünïcödé 🎨 it's 1,234",
    "photograph of a girl riding a horse, 4k, f/1.8, highly-detailed (trending on ArtStation)",
    "MAKE HIM OLD AND GIVE HIM A BEARD!!!",
    # spacing
    " ",
    "   leading and trailing   ",
    "tabs\tand\nnew\r\nlines\x0band\x0cfeeds",
    "a  b   c    d",
    "no\u00a0break\u2003em\u3000ideographic\u2028line\u2029paragraph\u0085next",
    "zero\u200bwidth\u200cnon\u200djoiner\ufeffbom\u2060word",
    "\n",
    "\u00a0",
    # control characters
    "nul\x00inside",
    "bell\x07 escape\x1b[31m red \x7f delete",
    "\x01\x02\x03",
    "\x1cfile\x1dgroup\x1erecord\x1funit",
    "bidi \u202eoverride\u202c and \u2066isolate\u2069",
    "\ufffd replacement \ufffe \uffff",
    # contractions
    "it's he'd we're they've I'm you'll don't can't",
    "IT'S HE'D WE'RE THEY'VE I'M YOU'LL DON'T",
    "it’s a typographic apostrophe’s",
    "rock'n'roll 'tis the season 'twas '''s 's 't 're",
    "o'clock's'd've",
    "'",
    "''s",
    # digits
    "1234567890",
    "1,234.56 3rd 2nd 50mm 4K HDR10+",
    "٣٤٥ १२३ ４５６ ² ½ Ⅷ ⑩ 一二三",
    "2023-01-17T12:34:56Z",
    "-1e-5 +3.14 0x1F",
    # html entities
    "salt &amp; pepper &lt;b&gt;bold&lt;/b&gt; &quot;x&quot; &#39;y&#39; &#x1F600; &nbsp;",
    "&amp;amp;",
    "<b>bold</b><br/><!-- comment -->",
    # markers inside a text
    "<|endoftext|>",
    "<|startoftext|>",
    "a cat<|endoftext|>a dog",
    "a cat <|endoftext|> a dog <|startoftext|> a mouse",
    "<|startoftext|>a cat<|endoftext|>",
    "<|ENDOFTEXT|> <|EndOfText|>",
    "!<|ENDOFTEXT|>!",
    "<|ENDOFTEXT|>! <|STARTOFTEXT|>?",
    "<|endoftext|",
    "<|endoftext|><|endoftext|>",
    "<| endoftext |>",
    "<|pad|></w> the</w> </w>",
    # letters
    "café naïve Ångström Øresund Straße ÆSIR œuvre",
    "cafe\u0301 nai\u0308ve A\u030angstro\u0308m",
    "İstanbul ıssız ΑΣ ὈΔΥΣΣΕΎΣ ς Σ",
    "ǅ ﬁ ﬃ ẞ Ǆ ŉ",
    "Привет мир",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "வணக்கம் உலகம்",
    "こんにちは世界",
    "カタカナ ｶﾀｶﾅ がぎぐ か\u3099",
    "你好，世界！把天空变成紫色。",
    "안녕하세요 세계",
    "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "𝓯𝓪𝓷𝓬𝔂 𝕥𝕖𝕩𝕥 Ｆｕｌｌｗｉｄｔｈ",
    "𐍈𐌰𐌹 𒀀𒁀 𓀀",
    # combining marks
    "z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319a\u0321\u034dl\u0320\u0323g\u035b\u0300o",
    "e\u0323\u0307 e\u0307\u0323 q\u0307\u0323",
    "\u0301 alone \u20dd enclosing a\u20dd",
    "x\u0338 ≠ =\u0338",
    "Å Å Å \u212b",
    # emoji
    "😀😃😄",
    "👨‍👩‍👧‍👦 family",
    "👍🏿 👍🏻 👍",
    "🏳️‍🌈 🇩🇪🇫🇷 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "1️⃣ #️⃣ ❤️ ❤︎ ☃",
    "make it🎨colourful😀!!",
    # symbols and punctuation
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~",
    "under_score kebab-case camelCase snake_case_2",
    "“quotes” ‘single’ «guillemets» „low“ — – … •",
    "© ® ™ € £ ¥ ₿ § ¶ † ° µ",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β ↔ ¬(¬α ∨ β)",
    "...!!!???---___",
    "https://example.com/a?b=c&d=%20#frag user@example.com C:\\path\\file.txt",
    "\\n \\t \\u0041 %s {0} {{x}} $HOME",
    # long texts
    "a " * 100,
    "very " * 75 + "long",
    "a" * 1000,
    "supercalifragilisticexpialidocious" * 10,
    "🎨" * 100,
    "!" * 300,
    "字" * 100,
    "1" * 100,
    " " * 500 + "x",
    "x" + " " * 500,
    "a dog and a cat, " * 74 + "<|endoftext|>",
    " ".join(["w"] * 74),
    " ".join(["w"] * 75),
    " ".join(["w"] * 76),
    " ".join(["w"] * 75 + ["<|endoftext|>"]),
]


def random_texts(count: int) -> list[str]:
    """Reproducible strings of characters drawn from many Unicode blocks and categories, and of words."""
    generator = torch.Generator().manual_seed(20)
    blocks = [(0x20, 0x7F), (0x00, 0x250), (0x300, 0x370), (0x370, 0x600), (0x900, 0xE00), (0x1E00, 0x2C00)]
    blocks += [(0x3000, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFB00, 0x10000), (0x1F000, 0x1FB00)]
    pool = [
        chr(code)
        for low, high in blocks
        for code in range(low, high)
        if unicodedata.category(chr(code)) != "Cs"
    ]
    pool_size = torch.tensor([len(pool)])
    texts = []
    for index in range(count):
        length = int(torch.randint(1, 40, (1,), generator=generator))
        picks = (torch.rand(length, generator=generator).pow(4) * pool_size).long()  # mostly the Latin end
        texts.append((" " if index % 2 else "").join(pool[pick] for pick in picks.tolist()))
    return texts


@pytest.fixture(scope="module")
def peer_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers' CLIPTokenizer, loaded from the classic vocab.json and merges.txt."""
    transformers = pytest.importorskip("transformers")
    with gzip.open(MERGES_FILE, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : N_MERGES + 1]
    stand_ins = [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 256 + 68)]
    words = [chr(code) for code in stand_ins] + [chr(code) + "</w>" for code in stand_ins]
    words += [line.replace(" ", "") for line in lines] + ["<|startoftext|>", "<|endoftext|>"]
    folder = tmp_path_factory.mktemp("clip_tokenizer")
    vocabulary = {word: index for index, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return transformers.CLIPTokenizer.from_pretrained(folder)


def peer_rows(peer: Any, texts: list[str]) -> list[list[int]]:
    return peer(texts, truncation=True, max_length=77, padding="max_length")["input_ids"]


def test_vocabulary() -> None:
    bpe = load_bpe()
    assert bpe.get_vocab_size() == 49408
    known = {"!": 0, "Ń": 255, "!</w>": 256, "in": 512, "the</w>": 518}
    known |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    assert {token: bpe.token_to_id(token) for token in known} == known


@pytest.mark.parametrize("text", WRITTEN, ids=lambda text: ascii(text[:24]))
def test_written_texts_equal_transformers(peer_tokenizer: Any, text: str) -> None:
    assert CLIPTokenizer()([text]).tolist() == peer_rows(peer_tokenizer, [text])


def test_random_texts_equal_transformers(peer_tokenizer: Any) -> None:
    texts = random_texts(400)
    assert len(WRITTEN) + len(texts) >= 200
    assert CLIPTokenizer()(texts).tolist() == peer_rows(peer_tokenizer, texts)


# --- The tokenizer's own promises ---------------------------------------------------------------------------


def test_padding_and_truncation() -> None:
    tokenize = CLIPTokenizer(8)
    rows = tokenize(
        ["", "a cat", "one two three four five six", "one two three four five six seven eight"]
    ).tolist()
    assert rows[0] == [49406] + [49407] * 7
    assert rows[1] == [49406, 320, 2368] + [49407] * 5
    assert rows[2] == rows[3]
    assert rows[3][0] == 49406
    assert rows[3][-1] == 49407
    assert 49407 not in rows[3][:-1]


def test_batch_shapes() -> None:
    tokenize = CLIPTokenizer()
    assert tokenize([]).shape == (0, 77)
    assert tokenize("one text").shape == (1, 77)
    assert torch.equal(tokenize(("a", "b")), torch.cat([tokenize("a"), tokenize("b")]))


@pytest.mark.parametrize("text", ["caf\udce9", None, 3, ["nested"]])
def test_what_is_no_text_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="expected a text of valid Unicode, got"):
        CLIPTokenizer()(["fine", text])


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
