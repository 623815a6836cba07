"""LoRA files (Hu et al. 2021, arXiv 2106.09685) for UNet and text encoder, added to a loaded model.

A file holds for each changed layer two small matrices: W becomes W + weight · alpha / rank · up down. Names
may be those that diffusers writes, with peft and before it, or those of kohya's trainer, which web UIs use;
layers are linear or convolutions, those too that kohya splits in three (``lora_mid``). Other kinds of small
change, such as DoRA, LoHa and LoKr, are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import UserError
from ldm.weights.diffusers_names import PREFIXES, module_names
from ldm.weights.opening import open_weights
from ldm.weights.single_file import SafetensorsWeights, Weights

# A layer's name, and which matrix of it: to_q.lora_A.weight, to_q.lora.down.weight, to_q_lora.down.weight, …
_MATRIX = re.compile(
    r"(.+?)(?:\.lora_linear_layer\.|\.lora\.|_lora\.|\.lora_)(down|up|mid|A|B)(?:\.default)?\.weight"
)
_ALPHA = re.compile(r"(.+)\.(alpha)")
_ROLES = {"A": "down", "B": "up"}
_METADATA = "lora_adapter_metadata"  # peft's settings, which diffusers stores beside the weights


def parse_lora(text: str) -> tuple[Path, float]:
    """Return the file and the weight of ``FILE[:WEIGHT]``; without one it is 1.

    Raises:
        UserError: there is no such file, or the weight is no finite number.
    """
    file, colon, number = text.rpartition(":")
    if not colon or Path(text).exists():
        file, number = text, "1"
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not Path(file).is_file():
        raise UserError(f"--lora: expected FILE[:WEIGHT], got {text!r}: there is no file {file}")
    if not math.isfinite(weight):
        raise UserError(f"--lora: expected a finite number after the file, got {number!r}")
    return Path(file), weight


@torch.no_grad()
def apply_lora(model: LatentDiffusion, file: str | Path, weight: float = 1.0) -> None:
    """Add a LoRA to the weights of a model; several can be added one after the other.

    Changed weights are new tensors: the old ones may be views of the mapped file. A file that does not fit
    changes nothing.

    Args:
        model: a loaded model, in any precision on any device.
        file: .safetensors, or a pickled file.
        weight: how much of it; 0 changes nothing, a negative one takes away.

    Raises:
        UserError: the file cannot be read, is of another kind, or does not fit the model.
    """
    weights = open_weights(file)
    layers = _layers(weights)
    settings = _settings(weights)
    names = _layer_names(model)
    if unknown := [layer for layer in layers if _plain(layer) not in names]:
        few = ", ".join(unknown[:3]) + (", …" if len(unknown) > 3 else "")
        found = f"{len(unknown)} of {len(layers)} layers are unknown to it"
        raise UserError(f"{file} does not fit the model: {found}: {few}")
    modules: dict[str, Any] = {layer: model.get_submodule(names[_plain(layer)]) for layer in layers}
    for layer, stored in layers.items():
        _check(weights, layer, stored, modules[layer].weight)
    for layer, stored in layers.items():
        module = modules[layer]
        change = _change({role: weights.read(name).to(module.weight.device) for role, name in stored.items()})
        scale = weight * _scale(weights, layer, stored, settings)
        changed = torch.empty_like(module.weight)  # of the same layout
        changed.copy_(module.weight.float() + scale * change.view(changed.shape))
        module.weight = nn.Parameter(changed, requires_grad=module.weight.requires_grad)


def _layers(weights: Weights) -> dict[str, dict[str, str]]:
    """Return for each layer, as the file calls it, the names of down, up, and if it has them mid and alpha.

    Raises:
        UserError: the file holds something else too, or but one of two matrices.
    """
    layers: dict[str, dict[str, str]] = {}
    others = []
    for name in weights.shapes:
        if match := _MATRIX.fullmatch(name) or _ALPHA.fullmatch(name):
            role = match[2]
            layers.setdefault(match[1], {})[_ROLES.get(role, role)] = name
        else:
            others.append(name)
    if others or not layers:
        got = f"{len(others)} of {len(weights.shapes)} tensors are something else: {', '.join(others[:3])}"
        raise UserError(f"{weights.path}: expected a LoRA, of matrices down and up; {got}")
    for layer, stored in layers.items():
        if missing := {"down", "up"} - stored.keys():
            raise UserError(f"{weights.path}: layer {layer} has no {' and no '.join(sorted(missing))}")
    return layers


def _layer_names(model: LatentDiffusion) -> dict[str, str]:
    """Return the layers that a LoRA can change: what `_plain` makes of their names → name in the model."""
    names = {}
    for theirs, ours in module_names(model).items():
        names[_plain(theirs)] = ours
        if ours.startswith(PREFIXES["unet"]):  # kohya, of networks laid out as ours
            names[_plain(ours.removeprefix(PREFIXES["unet"]))] = ours
    return names


def _plain(layer: str) -> str:
    """Return what all ways to write a layer's name come to, such as ``unet_mid_block_resnets_0_conv1``."""
    name = layer.replace(".processor.", ".").replace(".", "_").replace("text_model_", "")
    name = re.sub("^lora_te_", "text_encoder_", name).removeprefix("lora_")
    if not name.startswith(("unet_", "text_encoder_")):
        name = f"unet_{name}"  # as diffusers wrote files for the UNet alone
    return f"{name}_0" if name.endswith("_to_out") else name


def _check(weights: Weights, layer: str, stored: Mapping[str, str], weight: Tensor) -> None:
    """Raise `UserError` if the matrices of a layer do not give a change of the weight's shape."""
    shapes = {role: weights.shapes[name] for role, name in stored.items()}
    down, up = shapes["down"], shapes["up"]
    out, inputs, *kernel = weight.shape
    rank = down[0] if down else 0
    if "mid" in shapes:
        fits = shapes["mid"] == (rank, rank, *kernel) and math.prod(down[1:]) == inputs
    else:
        fits = math.prod(down[1:]) == inputs * math.prod(kernel)
    fits = fits and math.prod(shapes.get("alpha", ())) == 1
    if not (fits and rank and up[:1] == (out,) and math.prod(up) == out * rank):
        got = ", ".join(f"{role} {list(shape)}" for role, shape in sorted(shapes.items()))
        raise UserError(
            f"{weights.path} does not fit the model: layer {layer}: expected matrices for a weight "
            f"{list(weight.shape)}, got {got}"
        )


def _change(matrices: Mapping[str, Tensor]) -> Tensor:
    """Return up · down (with mid between them), float32, [out, in, …] or [out, in · …]."""
    down, up = matrices["down"].float().flatten(1), matrices["up"].float().flatten(1)  # [r, in …], [out, r]
    if "mid" in matrices:
        return torch.einsum("op,pqkl,qi->oikl", up, matrices["mid"].float(), down)
    return up @ down


def _settings(weights: Weights) -> dict[str, Any]:
    """Return the settings that diffusers stores beside a LoRA, such as ``unet.lora_alpha``, if it did."""
    text = weights.metadata.get(_METADATA) if isinstance(weights, SafetensorsWeights) else None
    try:
        return dict(json.loads(text)) if text else {}
    except (ValueError, TypeError) as error:
        raise UserError(f"cannot read {weights.path}: its {_METADATA} is damaged") from error


def _scale(weights: Weights, layer: str, stored: Mapping[str, str], settings: Mapping[str, Any]) -> float:
    """Return alpha / rank of a layer; without an alpha it is 1."""
    part, rank = layer.partition(".")[0], weights.shapes[stored["down"]][0]

    def setting(name: str) -> Any:
        return settings.get(f"{part}.{name}", settings.get(name))

    if "alpha" in stored:
        alpha = weights.read(stored["alpha"]).item()
    else:
        patterns = (setting("alpha_pattern") or {}).items()
        alpha = next((a for name, a in patterns if f".{layer}".endswith(f".{name}")), setting("lora_alpha"))
    return 1.0 if alpha is None else alpha / (math.sqrt(rank) if setting("use_rslora") else rank)
