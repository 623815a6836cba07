"""The text conditioner of Stable Diffusion v1: CLIP's text encoder under its published name."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ldm.modules.encoders.bpe import VOCAB_SIZE
from ldm.modules.encoders.clip_text import CLIPTextConfig, CLIPTextModel
from ldm.modules.encoders.tokenizer import CLIPTokenizer
from ldm.util import reject_unknown


class FrozenCLIPEmbedder(nn.Module):
    """Texts → last hidden states of CLIP's text encoder, [B, L, D].

    The weights come with the checkpoint of the whole model; nothing is downloaded. In spite of the name they
    can be trained, as small models do.

    Args:
        version: historical, no effect: the hub name from which the published code fetched weights.
        device: historical, no effect: token ids are made on the device of the weights.
        max_length: L, tokens a text is cut or padded to.
        sizes: fields of `CLIPTextConfig`, among them hidden_size, D.

    Raises:
        UserError: a size that there is not.
        ValueError: sizes that do not fit each other or CLIP's vocabulary.
    """

    def __init__(
        self,
        version: str = "openai/clip-vit-large-patch14",
        device: str | None = None,
        max_length: int = 77,
        **sizes: Any,
    ) -> None:
        super().__init__()
        reject_unknown("FrozenCLIPEmbedder", CLIPTextConfig, sizes)
        config = CLIPTextConfig(**sizes)
        if max_length > config.max_position_embeddings:
            raise ValueError(
                "expected max_length of at most max_position_embeddings = "
                f"{config.max_position_embeddings}, got {max_length}"
            )
        if config.vocab_size < VOCAB_SIZE:
            raise ValueError(f"expected vocab_size of at least {VOCAB_SIZE}, got {config.vocab_size}")
        self.tokenizer = CLIPTokenizer(max_length)
        self.transformer = CLIPTextModel(config)

    def forward(self, texts: str | Sequence[str]) -> Tensor:
        """B texts → hidden states after the final norm, [B, L, D], in the weights' device and type."""
        tokens = self.tokenizer(texts)
        return self.transformer(
            tokens.to(self.transformer.text_model.embeddings.token_embedding.weight.device)
        )
