"""The tokenizer against transformers', and its own promises."""

import gzip
import json
import unicodedata
from typing import Any

import pytest
import torch

from ldm.modules.encoders.bpe import MAX_TOKENS, MERGES_FILE, N_MERGES, load_bpe, token_count
from ldm.modules.encoders.tokenizer import CLIPTokenizer

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


def test_token_count_tells_what_is_cut() -> None:
    assert token_count("") == 0
    assert token_count("a cat") == 2
    fits, cut = "cat " * MAX_TOKENS, "cat " * (MAX_TOKENS + 1)
    assert token_count(fits) == MAX_TOKENS < token_count(cut)
    tokenize = CLIPTokenizer()
    assert torch.equal(tokenize(fits), tokenize(cut))
    assert not torch.equal(tokenize(fits), tokenize("cat " * (MAX_TOKENS - 1)))


def test_batch_shapes() -> None:
    tokenize = CLIPTokenizer()
    assert tokenize([]).shape == (0, 77)
    assert tokenize("one text").shape == (1, 77)
    assert torch.equal(tokenize(("a", "b")), torch.cat([tokenize("a"), tokenize("b")]))


@pytest.mark.parametrize("text", ["caf\udce9", None, 3, ["nested"]])
def test_what_is_no_text_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="expected a text of valid Unicode, got"):
        CLIPTokenizer()(["fine", text])
