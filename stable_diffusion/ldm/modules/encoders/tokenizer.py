"""Texts to token ids by CLIP's byte-pair encoding (see `bpe`)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.modules.encoders.bpe import END_ID, START_ID, load_bpe


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
