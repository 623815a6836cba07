"""CLIP's byte-pair encoding (Radford et al. 2021, arXiv 2103.00020, section 2.4).

The `tokenizers` library does the work. The merge list beside this file is OpenAI's data (MIT licence); the
vocabulary follows from it, so nothing is downloaded. Token ids equal those of today's transformers
`CLIPTokenizer`: text is NFC-normalised, a run of white space becomes one space, all letters lower-case.

What it does not do: OpenAI's first tokenizer, and transformers 4 where ftfy was installed, also passed text
through ftfy, which straightens curly quotes, rewrites ligatures, full-width letters and mojibake, and drops
control characters; OpenAI's unescapes HTML entities as well. Plain text gets the same ids from all of them.
"""

import gzip
from collections.abc import Sequence
from functools import cache
from itertools import islice
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Lowercase, Replace
from tokenizers.normalizers import Sequence as NormalizerSequence
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizerSequence
from torch import Tensor

MERGES_FILE = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
N_MERGES = 48894  # the file lists more; CLIP was trained with the first ones, for 49152 + 256 ids in all
START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
START_ID, END_ID = 49406, 49407
VOCAB_SIZE = 49408

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
        merges = [tuple(line.split()) for line in islice(file, 1, N_MERGES + 1)]  # line 0 is a version
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


class CLIPTokenizer:
    """Texts → token ids framed by 49406 … 49407 and padded with 49407, as Stable Diffusion v1 wants them.

    (OpenAI's own `clip.tokenize` pads with 0.) The encoder is built at the first call, not here.

    Args:
        max_length: L, ids a text is cut or padded to; at least 2, for the two markers.

    Raises:
        ValueError: max_length is less than 2.
    """

    def __init__(self, max_length: int = 77) -> None:
        if max_length < 2:
            raise ValueError(f"expected max_length of at least 2, for the two markers, got {max_length}")
        self.max_length = max_length

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Tokenize B texts, or one text for B = 1; one that is too long is cut and still ends in 49407.

        Returns:
            int64 [B, L] on the CPU, values in [0, 49408).

        Raises:
            ValueError: an entry is no text, or holds lone surrogates, which Python makes of undecodable
                command-line bytes.
        """
        rows = [self._row(text) for text in ([texts] if isinstance(texts, str) else texts)]
        return torch.tensor(rows, dtype=torch.long).reshape(-1, self.max_length)  # [B, L]

    def _row(self, text: str) -> list[int]:
        # One text at a time: encode_batch starts threads, and tokenizers warns when a process forks after
        # that, as data loaders do.
        try:
            ids = load_bpe().encode(text, add_special_tokens=False).ids[: self.max_length - 2]
        except TypeError as error:
            raise ValueError(f"expected a text of valid Unicode, got {ascii(text):.80}") from error
        return [START_ID, *ids] + [END_ID] * (self.max_length - 1 - len(ids))
