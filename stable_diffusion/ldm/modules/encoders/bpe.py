"""CLIP's byte-pair encoding (Radford et al. 2021, arXiv 2103.00020, section 2.4).

The `tokenizers` library does the work. The merge list beside this file is OpenAI's data (MIT licence); the
vocabulary follows from it, so nothing is downloaded. Token ids equal those of today's transformers
`CLIPTokenizer`: text is NFC-normalised, a run of white space becomes one space, all letters lower-case.

What it does not do: OpenAI's first tokenizer, and transformers 4 where ftfy was installed, also passed text
through ftfy, which straightens curly quotes, rewrites ligatures, full-width letters and mojibake, and drops
control characters; OpenAI's unescapes HTML entities as well. Plain text gets the same ids from all of them.
"""

import gzip
from functools import cache
from itertools import islice
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Lowercase, Replace
from tokenizers.normalizers import Sequence as NormalizerSequence
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizerSequence

MERGES_FILE = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
N_MERGES = 48894  # the file lists more; CLIP was trained with the first ones, for 49152 + 256 ids in all
START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
START_ID, END_ID = 49406, 49407
VOCAB_SIZE = 49408
MAX_TOKENS = 75  # of a text: 77 positions less the two markers

# Words are cut into these pieces before any merge: English contractions, letters, single digits, the rest.
PIECES = "|".join(
    (
        r"<\|startoftext\|>",
        r"<\|endoftext\|>",
        "'s|'t|'re|'ve|'m|'ll|'d",
        r"\p{L}+",
        r"\p{N}",
        r"[^\s\p{L}\p{N}]+",
    )
)


@cache
def load_bpe() -> Tokenizer:
    """Build CLIP's byte-pair encoder; about 0.1 s, once a process.

    Ids 0–255 are bytes, 256–511 bytes that end a word; then one id for each merge and the two markers.
    """
    with gzip.open(MERGES_FILE, "rt", encoding="utf-8") as file:
        lines = (line.split() for line in islice(file, 1, N_MERGES + 1))  # line 0 is a version
        merges = [(first, second) for first, second in lines]
    letters = sorted(ByteLevel.alphabet())  # 256 printable stand-ins for bytes; CLIP's order is by code point
    words = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *(first + second for first, second in merges),
    ]
    vocabulary = {word: index for index, word in enumerate((*words, START_TOKEN, END_TOKEN))}

    bpe = Tokenizer(BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=END_TOKEN))
    bpe.normalizer = NormalizerSequence([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
    bpe.pre_tokenizer = PreTokenizerSequence(
        [Split(Regex(PIECES), behavior="removed", invert=True), ByteLevel(add_prefix_space=False)]
    )
    bpe.add_special_tokens([AddedToken(token, special=True) for token in (START_TOKEN, END_TOKEN)])
    return bpe


def token_count(text: str) -> int:
    """Tokens of a text without the two markers; the text encoder reads the first 75 (`MAX_TOKENS`)."""
    return len(load_bpe().encode(text, add_special_tokens=False).ids)
