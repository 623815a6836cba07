"""What diffusers calls the networks of Stable Diffusion v1: names of weights, and its descriptions of sizes.

Names differ by path alone: what stands below a pair of `…_pairs` is called the same on both sides. Shapes
differ where one side has a 1x1 convolution and the other a linear layer, see `DENSE`.

*Ours* are the names of published CompVis checkpoints, below the level that `PREFIXES` gives; *theirs* those
in the file of a part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.attention import CrossAttention
from ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel
from ldm.modules.encoders.bpe import END_ID, START_ID
from ldm.modules.encoders.clip_text import ACTIVATIONS
from ldm.modules.encoders.modules import FrozenCLIPEmbedder
from ldm.util import UserError

# The parts of a model that have weights, and where they stand in a checkpoint.
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}
# Ours are 1x1 convolutions; theirs are linear in the autoencoder, and in some UNets.
DENSE = re.compile(r".*\.(q|k|v|proj_in|proj_out)\.weight")

_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
# The autoencoder's attention: names of diffusers before version 0.12, and since.
_ATTENTION = [
    *(("q", "query"), ("k", "key"), ("v", "value"), ("proj_out", "proj_attn")),
    *(("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")),
]

Pairs = list[tuple[str, str]]


class NameMap:
    """Translates names of weights or modules of one part.

    Args:
        pairs: ours and theirs. Of several pairs with the same name of ours the last one is written, all are
            read; of a name and a longer one that starts with it, the longer one counts.
    """

    def __init__(self, pairs: Pairs) -> None:
        self._theirs = dict(pairs)
        self._ours = {theirs: ours for ours, theirs in pairs}

    def theirs(self, name: str) -> str | None:
        """Return their name of ours, None where there is no such part of a network."""
        return _translated(name, self._theirs)

    def ours(self, name: str) -> str | None:
        """Return our name of theirs, None where there is no such part of a network."""
        return _translated(name, self._ours)


def _translated(name: str, table: Mapping[str, str]) -> str | None:
    words = name.split(".")
    for n in range(len(words), 0, -1):
        if start := table.get(".".join(words[:n])):
            return ".".join([start, *words[n:]])
    return None


def name_map(part: str, config: Mapping[str, Any]) -> NameMap:
    """Return the names of a part (a key of `PREFIXES`).

    Args:
        config: its ``config.json``.

    Raises:
        LookupError, TypeError, ValueError: that does not describe such a network.
    """
    pairs = {"unet": _unet_pairs, "vae": _vae_pairs, "text_encoder": _text_pairs}
    return NameMap(pairs[part](config))


def _unet_pairs(config: Mapping[str, Any]) -> Pairs:
    layers = config["layers_per_block"]
    attended = ["CrossAttn" in kind for kind in config["down_block_types"]]
    pairs = list(_TOP.items())

    def residual(ours: str, theirs: str) -> None:
        pairs.extend((f"{ours}.{a}", f"{theirs}.{b}") for a, b in _RESIDUAL.items())

    def blocks(ours: str, theirs: str, first: int, count: int, attention: bool) -> None:
        for i in range(count):
            residual(f"{ours}.{first + i}.0", f"{theirs}.resnets.{i}")
            if attention:
                pairs.append((f"{ours}.{first + i}.1", f"{theirs}.attentions.{i}"))

    last = len(attended) - 1
    for level, attention in enumerate(attended):
        first, down = level * (layers + 1), f"down_blocks.{level}"
        blocks("input_blocks", down, 1 + first, layers, attention)
        if level < last:
            pairs.append((f"input_blocks.{first + layers + 1}.0.op", f"{down}.downsamplers.0.conv"))
        first, up = (last - level) * (layers + 1), f"up_blocks.{last - level}"
        blocks("output_blocks", up, first, layers + 1, attention)
        if level > 0:
            ours = f"output_blocks.{first + layers}.{1 + attention}.conv"
            pairs.append((ours, f"{up}.upsamplers.0.conv"))
    residual("middle_block.0", "mid_block.resnets.0")
    pairs.append(("middle_block.1", "mid_block.attentions.0"))
    residual("middle_block.2", "mid_block.resnets.1")
    return pairs


def _vae_pairs(config: Mapping[str, Any]) -> Pairs:
    layers, levels = config["layers_per_block"], len(config["down_block_types"])
    pairs = [("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv")]

    def residual(ours: str, theirs: str) -> None:
        pairs.extend([(ours, theirs), (f"{ours}.nin_shortcut", f"{theirs}.conv_shortcut")])

    def attention(ours: str, theirs: str) -> None:
        pairs.extend((f"{ours}.{a}", f"{theirs}.{b}") for a, b in _ATTENTION)

    for side, ours, theirs, count in (
        ("encoder", "down", "down_blocks", layers),
        ("decoder", "up", "up_blocks", layers + 1),
    ):
        pairs.extend((f"{side}.{a}", f"{side}.{a}") for a in ("conv_in", "conv_out"))
        pairs.append((f"{side}.norm_out", f"{side}.conv_norm_out"))
        residual(f"{side}.mid.block_1", f"{side}.mid_block.resnets.0")
        attention(f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0")
        residual(f"{side}.mid.block_2", f"{side}.mid_block.resnets.1")
        for level in range(levels):
            # Theirs count the decoder's levels from the coarsest.
            at = f"{side}.{theirs}.{level if side == 'encoder' else levels - 1 - level}"
            for i in range(count):
                residual(f"{side}.{ours}.{level}.block.{i}", f"{at}.resnets.{i}")
                attention(f"{side}.{ours}.{level}.attn.{i}", f"{at}.attentions.{i}")
            scaling = "downsample" if side == "encoder" else "upsample"
            pairs.append((f"{side}.{ours}.{level}.{scaling}.conv", f"{at}.{scaling}rs.0.conv"))
    return pairs


def _text_pairs(config: Mapping[str, Any]) -> Pairs:
    """transformers 5 dropped the level ``text_model``, and reads files that have it."""
    modules = ("embeddings", "encoder", "final_layer_norm")
    ours = "transformer.text_model."
    return [(f"{ours}{name}", f"{level}{name}") for level in ("", "text_model.") for name in modules]


def module_names(model: LatentDiffusion) -> dict[str, str]:
    """Return the layers of UNet and text encoder: their name, ``unet.…`` or ``text_encoder.…``, → ours."""
    found = {}
    for part, config in part_configs(model, latent_size=1).items():
        names, prefix = name_map(part, config), PREFIXES[part]
        for name, module in model.get_submodule(prefix.rstrip(".")).named_modules():
            if part != "vae" and isinstance(module, nn.Linear | nn.Conv2d):
                found[f"{part}.{names.theirs(name)}"] = prefix + name
    return found


def part_configs(model: LatentDiffusion, latent_size: int) -> dict[str, dict[str, Any]]:
    """Return the ``config.json`` of each part of a model, which may be on the meta device.

    Args:
        latent_size: height of the latents that it is for.

    Raises:
        UserError: diffusers has no such network.
    """
    return {
        "unet": _unet_config(model.unet, latent_size),
        "vae": _vae_config(model.first_stage_model, latent_size, model.scale_factor),
        "text_encoder": _text_config(model.cond_stage_model),
    }


def _unet_config(unet: UNetModel, latent_size: int) -> dict[str, Any]:
    blocks: list[Any] = list(unet.input_blocks)[1:]
    levels: list[list[Any]] = [[]]
    for block in blocks:
        if isinstance(block[0], Downsample):
            levels.append([])
        else:
            levels[-1].append(block)
    attended = [len(level[0]) > 1 for level in levels]
    centre: Any = unet.middle_block[1]
    middle = centre.transformer_blocks
    heads = [
        _heads(level[0][1] if attention else centre)
        for level, attention in zip(levels, attended, strict=True)
    ]
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        # Their name for the number of heads.
        "attention_head_dim": heads[0] if len(set(heads)) == 1 else heads,
        "block_out_channels": [level[-1][0].out_layers[3].out_channels for level in levels],
        "center_input_sample": False,
        "cross_attention_dim": middle[0].attn2.to_k.in_features,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attended],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": unet.in_channels,
        "layers_per_block": len(levels[0]),
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": unet.out_channels,
        "sample_size": latent_size,
        "transformer_layers_per_block": len(middle),
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)],
    }


def _heads(transformer: nn.Module) -> int:
    return next(module.heads for module in transformer.modules() if isinstance(module, CrossAttention))


def _vae_config(vae: AutoencoderKL, latent_size: int, scale_factor: float) -> dict[str, Any]:
    channels, embedded = vae.decoder.conv_in.in_channels, vae.post_quant_conv.in_channels
    if channels != embedded:
        raise UserError(f"diffusers needs an embed_dim equal to z_channels, got {embedded} and {channels}")
    levels: list[Any] = list(vae.encoder.down)
    attended = [len(level.attn) > 0 for level in levels]
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [level.block[-1].conv2.out_channels for level in levels],
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attended],
        "in_channels": vae.encoder.conv_in.in_channels,
        "latent_channels": channels,
        "layers_per_block": len(levels[0].block),
        "norm_num_groups": 32,
        "out_channels": vae.decoder.conv_out.out_channels,
        "sample_size": latent_size * vae.downsampling,
        "scaling_factor": scale_factor,
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attended)],
    }


def _text_config(encoder: FrozenCLIPEmbedder) -> dict[str, Any]:
    text = encoder.transformer.text_model
    layers: Any = text.encoder["layers"]
    tokens, positions = text.embeddings.token_embedding, text.embeddings.position_embedding
    return {
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": START_ID,
        "eos_token_id": END_ID,
        "hidden_act": next(name for name, act in ACTIVATIONS.items() if act is layers[0].mlp.activation),
        "hidden_size": tokens.embedding_dim,
        "intermediate_size": layers[0].mlp.fc1.out_features,
        "layer_norm_eps": text.final_layer_norm.eps,
        "max_position_embeddings": positions.num_embeddings,
        "model_type": "clip_text_model",
        "num_attention_heads": layers[0].self_attn.num_heads,
        "num_hidden_layers": len(layers),
        "pad_token_id": END_ID,
        "projection_dim": tokens.embedding_dim,
        "vocab_size": tokens.num_embeddings,
    }
