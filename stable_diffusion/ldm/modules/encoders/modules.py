"""The text conditioner of Stable Diffusion v1: CLIP's text encoder under its published name."""

from collections.abc import Sequence

from torch import Tensor, nn

from ldm.modules.encoders.bpe import VOCAB_SIZE
from ldm.modules.encoders.clip_text import CLIPTextConfig, CLIPTextModel
from ldm.modules.encoders.tokenizer import CLIPTokenizer


class FrozenCLIPEmbedder(nn.Module):
    """Texts → last hidden states of CLIP's text encoder, [B, L, D].

    The weights come with the checkpoint of the whole model; nothing is downloaded. In spite of the name the
    weights can be trained, as small models do, until `freeze` is called.

    Args:
        version: historical, the hub name from which the published code fetched weights; the sizes below say
            which encoder is built.
        device: historical; token ids are made on the device of the weights.
        max_length: L, tokens a text is cut or padded to.
        hidden_size: D; this and the following are fields of transformers' `CLIPTextConfig`.

    Raises:
        ValueError: sizes that do not fit each other or CLIP's vocabulary.
    """

    def __init__(
        self,
        version: str = "openai/clip-vit-large-patch14",
        device: str | None = None,
        max_length: int = 77,
        vocab_size: int = 49408,
        hidden_size: int = 768,
        intermediate_size: int = 3072,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        max_position_embeddings: int = 77,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        del version, device  # named only so that published configs load
        if max_length > max_position_embeddings:
            raise ValueError(
                f"expected max_length of at most max_position_embeddings = {max_position_embeddings}, "
                f"got {max_length}"
            )
        if vocab_size < VOCAB_SIZE:
            raise ValueError(f"expected vocab_size of at least {VOCAB_SIZE}, got {vocab_size}")
        self.tokenizer = CLIPTokenizer(max_length)
        self.transformer = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocab_size,
                hidden_size=hidden_size,
                intermediate_size=intermediate_size,
                num_hidden_layers=num_hidden_layers,
                num_attention_heads=num_attention_heads,
                max_position_embeddings=max_position_embeddings,
                hidden_act=hidden_act,
                layer_norm_eps=layer_norm_eps,
            )
        )

    def freeze(self) -> None:
        """Switch to evaluation mode and take the weights out of training."""
        self.eval()
        self.requires_grad_(False)

    def tokenize(self, texts: str | Sequence[str]) -> Tensor:
        """B texts → token ids, int64 [B, L] on the CPU. Raises ValueError for entries that are no text."""
        return self.tokenizer(texts)

    def forward(self, texts: str | Sequence[str]) -> Tensor:
        """B texts → hidden states after the final norm, [B, L, D], in the weights' device and type."""
        tokens = self.tokenize(texts)
        return self.transformer(
            tokens.to(self.transformer.text_model.embeddings.token_embedding.weight.device)
        )

    def encode(self, texts: str | Sequence[str]) -> Tensor:
        """The published code's name for `forward`."""
        return self(texts)
