"""The text half of CLIP (Radford et al. 2021, arXiv 2103.00020), in torch alone.

It maps token ids to the last hidden states that condition the UNet. It is not a full CLIP: there is no image
tower, no pooled output and no projection. Module names are those under which Stable Diffusion v1 checkpoints
store it (`transformer.text_model.…`), odd as some are.

Notation: B batch, L tokens, D hidden size, H attention heads.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), the approximation of GELU that OpenAI trained CLIP with; any shape."""
    return x * torch.sigmoid(1.702 * x)


def init_normal(weight: Tensor, std: float) -> Tensor:
    """Fill with normal noise in place; not on the meta device, where that costs a second of torch imports."""
    return weight if weight.is_meta else nn.init.normal_(weight, std=std)


def initialised_embedding(count: int, width: int, std: float) -> nn.Embedding:
    """`count` vectors of normal weights with the given standard deviation."""
    return nn.Embedding.from_pretrained(init_normal(torch.empty(count, width), std), freeze=False)


def initialised_linear(in_features: int, out_features: int, std: float) -> nn.Linear:
    """A linear layer with normal weights of the given standard deviation and zero bias."""
    layer = nn.Linear(in_features, out_features)
    init_normal(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


@dataclass(frozen=True)
class CLIPTextConfig:
    """Sizes of the transformer, named as in transformers' `CLIPTextConfig`; the defaults are ViT-L/14's.

    Raises:
        ValueError: the heads do not divide the hidden size, or the activation is unknown.
    """

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"expected hidden_size to be a multiple of num_attention_heads, "
                f"got {self.hidden_size} and {self.num_attention_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"expected hidden_act to be one of {sorted(ACTIVATIONS)}, got {self.hidden_act!r}"
            )


class CLIPTextEmbeddings(nn.Module):
    """Token embedding plus learned position embedding.

    Published files also hold a `position_ids` buffer, 0 … 76; it carries nothing and has no counterpart here.
    """

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.token_embedding = initialised_embedding(config.vocab_size, width, std=0.02)
        self.position_embedding = initialised_embedding(config.max_position_embeddings, width, std=0.01)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L], int64 → [B, L, D]."""
        return self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]  # [B, L, D]


class CLIPAttention(nn.Module):
    """Causal multi-head self-attention: token l sees tokens 0 … l, padding included."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.q_proj = initialised_linear(width, width, std=width**-0.5)
        self.k_proj = initialised_linear(width, width, std=width**-0.5)
        self.v_proj = initialised_linear(width, width, std=width**-0.5)
        self.out_proj = initialised_linear(width, width, std=(2 * config.num_hidden_layers * width) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] → [B, L, D]."""
        q, k, v = (
            rearrange(projection(x), "b l (h d) -> b h l d", h=self.num_heads)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )  # each [B, H, L, D / H]
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(rearrange(attended, "b h l d -> b l (h d)"))  # [B, L, D]


class CLIPMLP(nn.Module):
    """Two linear layers with the configured activation between them."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = initialised_linear(width, inner, std=(2 * width) ** -0.5)
        self.fc2 = initialised_linear(inner, width, std=(2 * config.num_hidden_layers * width) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] → [B, L, D]."""
        return self.fc2(self.activation(self.fc1(x)))


class CLIPEncoderLayer(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.self_attn = CLIPAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] → [B, L, D]."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPTextTransformer(nn.Module):
    """Embeddings, blocks and the final layer norm."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.embeddings = CLIPTextEmbeddings(config)
        layers = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layers": layers})  # published keys say `encoder.layers`
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L], int64 in [0, vocab_size) → hidden states after the final norm, [B, L, D]."""
        x = self.embeddings(tokens)  # [B, L, D]
        for layer in self.encoder["layers"].children():
            x = layer(x)
        return self.final_layer_norm(x)


class CLIPTextModel(nn.Module):
    """A wrapper that adds only the `text_model` level of published keys.

    There are no buffers, so a model built on the meta device is complete once its weights are assigned. Fresh
    weights follow OpenAI's CLIP initialisation: the blocks' output layers shrink with the depth.
    """

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.text_model = CLIPTextTransformer(config)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L], int64, L ≤ max_position_embeddings → last hidden states [B, L, D]."""
        return self.text_model(tokens)
