"""LoRA files of every spelling, added to the small edit model."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from golden import relative_error
from ldm.editor import ImageEditor
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.weights.converting import convert_weights
from ldm.weights.diffusers_names import module_names
from ldm.weights.loading import load_model
from ldm.weights.lora import apply_lora, parse_lora
from small_model import sample_picture, write_small_model
from weights_files import State, message

Spelling = Callable[[str], tuple[str, str, str]]

RANK, ALPHA = 3, 6.0
# Diffusers' names of layers: attention, 1x1 and 3x3 convolutions, feed-forward, text encoder.
LAYERS = (
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "unet.up_blocks.1.attentions.1.transformer_blocks.0.ff.net.0.proj",
    "unet.down_blocks.1.attentions.0.proj_in",
    "unet.up_blocks.2.resnets.0.conv_shortcut",
    "unet.down_blocks.2.resnets.0.conv1",
    "text_encoder.text_model.encoder.layers.1.self_attn.q_proj",
    "text_encoder.text_model.encoder.layers.0.mlp.fc2",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(files: tuple[Path, Path]) -> LatentDiffusion:
    return load_model(*files)


def matrices(model: LatentDiffusion) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Down and up of each of `LAYERS`."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for layer in LAYERS:
        out, *inputs = model.get_submodule(module_names(model)[layer]).weight.shape
        down = torch.randn(RANK, *inputs, generator=generator)
        found[layer] = down, torch.randn(out, RANK, *[1] * (len(inputs) - 1), generator=generator)
    return found


def peft(layer: str) -> tuple[str, str, str]:
    """Names of down, up and alpha."""
    return f"{layer}.lora_A.weight", f"{layer}.lora_B.weight", f"{layer}.alpha"


def diffusers(layer: str) -> tuple[str, str, str]:
    between = "lora_linear_layer" if layer.startswith("text_encoder") else "lora"
    return f"{layer}.{between}.down.weight", f"{layer}.{between}.up.weight", f"{layer}.alpha"


def processors(layer: str) -> tuple[str, str, str]:
    """As diffusers wrote the attention of a UNet at first."""
    if match := re.fullmatch(r"unet\.(.*attn\d)\.(to_[a-z]+)(\.0)?", layer):
        start = f"{match[1]}.processor.{match[2]}_lora"
        return f"{start}.down.weight", f"{start}.up.weight", f"{match[1]}.processor.{match[2]}.alpha"
    return diffusers(layer.removeprefix("unet."))


def kohya(layer: str) -> tuple[str, str, str]:
    name = "lora_" + layer.replace("text_encoder.", "te.").replace(".", "_")
    return f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"


def transformers_5(layer: str) -> tuple[str, str, str]:
    return peft(layer.replace(".text_model.", "."))


def our_layout(layer: str) -> tuple[str, str, str]:
    """As kohya names the layers of networks in the layout of checkpoints."""
    blocks = {
        "down_blocks.0.attentions.0": "input_blocks.1.1",
        "mid_block.attentions.0": "middle_block.1",
        "up_blocks.1.attentions.1": "output_blocks.3.1",
        "down_blocks.1.attentions.0": "input_blocks.3.1",
        "up_blocks.2.resnets.0.conv_shortcut": "output_blocks.4.0.skip_connection",
        "down_blocks.2.resnets.0.conv1": "input_blocks.5.0.in_layers.2",
    }
    return kohya(re.sub("|".join(blocks), lambda found: blocks[found[0]], layer))


def write(file: Path, model: LatentDiffusion, spelling: Spelling, alpha: float | None = ALPHA) -> Path:
    state: State = {}
    for layer, (down, up) in matrices(model).items():
        names = spelling(layer)
        state |= {names[0]: down, names[1]: up}
        if alpha is not None:
            state[names[2]] = torch.tensor(alpha)
    save_file(state, file)
    return file


def assert_changed(model: LatentDiffusion, base: State, scale: float) -> None:
    """Whether the weights of `LAYERS` are `base` + scale · up down, and all others those of `base`."""
    changed = {}
    for layer, (down, up) in matrices(model).items():
        name = f"{module_names(model)[layer]}.weight"
        changed[name] = base[name] + scale * (up.flatten(1) @ down.flatten(1)).view(base[name].shape)
    for name, tensor in model.state_dict().items():
        if name in changed:
            torch.testing.assert_close(tensor, changed[name], rtol=1e-5, atol=1e-5)
            assert not torch.equal(tensor, base[name])
        else:
            assert torch.equal(tensor, base[name]), name


def weights_of(model: LatentDiffusion) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# --- spellings ---


@pytest.mark.parametrize("spelling", [peft, diffusers, processors, kohya, transformers_5, our_layout])
def test_spellings(model: LatentDiffusion, tmp_path: Path, spelling: Spelling) -> None:
    base = weights_of(model)
    apply_lora(model, write(tmp_path / "x.safetensors", model, spelling), 0.5)
    assert_changed(model, base, 0.5 * ALPHA / RANK)


def test_without_alpha_and_weight(model: LatentDiffusion, tmp_path: Path) -> None:
    base = weights_of(model)
    apply_lora(model, write(tmp_path / "x.safetensors", model, peft, alpha=None))
    assert_changed(model, base, 1.0)


def test_a_convolution_in_three_parts(model: LatentDiffusion, tmp_path: Path) -> None:
    """down 1x1, mid 3x3, up 1x1, one after the other, are the change of the 3x3 convolution."""
    module = model.get_submodule(module_names(model)["unet.down_blocks.2.resnets.0.conv1"])
    out, inputs = module.weight.shape[:2]
    shapes = {"down": (RANK, inputs, 1, 1), "mid": (RANK, RANK, 3, 3), "up": (out, RANK, 1, 1)}
    parts = {role: torch.randn(shape) for role, shape in shapes.items()}
    name = "lora_unet_down_blocks_2_resnets_0_conv1"
    save_file(
        {f"{name}.lora_{role}.weight": part for role, part in parts.items()}, tmp_path / "x.safetensors"
    )
    x = torch.randn(1, inputs, 8, 8)
    before = module(x)
    apply_lora(model, tmp_path / "x.safetensors", 2.0)
    change = x
    for role in ("down", "mid", "up"):
        change = torch.nn.functional.conv2d(change, parts[role], padding=parts[role].shape[-1] // 2)
    torch.testing.assert_close(module(x), before + 2 * change, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"lora_alpha": ALPHA}, ALPHA / RANK),
        ({"lora_alpha": ALPHA, "use_rslora": True}, ALPHA / RANK**0.5),
        ({"lora_alpha": 1.0, "alpha_pattern": {"conv1": ALPHA, "to_q": ALPHA}}, None),
    ],
)
@pytest.mark.slow
def test_settings_beside_the_weights(
    model: LatentDiffusion, tmp_path: Path, settings: dict[str, object], scale: float | None
) -> None:
    base = weights_of(model)
    state = load_file(write(tmp_path / "x.safetensors", model, peft, alpha=None))
    stored = {
        f"{part}.{name}": value for part in ("unet", "text_encoder") for name, value in settings.items()
    }
    save_file(state, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(stored)})
    apply_lora(model, tmp_path / "x.safetensors")
    if scale is not None:
        assert_changed(model, base, scale)
    else:
        for layer, alpha in ((LAYERS[0], ALPHA), (LAYERS[5], ALPHA), (LAYERS[1], 1.0)):
            name = f"{module_names(model)[layer]}.weight"
            down, up = matrices(model)[layer]
            change = alpha / RANK * (up.flatten(1) @ down.flatten(1)).view(base[name].shape)
            torch.testing.assert_close(model.state_dict()[name] - base[name], change, rtol=1e-3, atol=1e-4)


def test_pickled_files(model: LatentDiffusion, tmp_path: Path) -> None:
    base = weights_of(model)
    torch.save(load_file(write(tmp_path / "x", model, peft, alpha=None)), tmp_path / "x.bin")
    apply_lora(model, tmp_path / "x.bin")
    assert_changed(model, base, 1.0)


# --- on a loaded model ---


def test_weights_that_are_views_of_a_file(files: tuple[Path, Path], tmp_path: Path) -> None:
    """The editor lets go of the file's pages: the change stays. Another model of that file is as it was."""
    picture, editor = sample_picture(), ImageEditor.load(*files, device="cpu")
    plain = editor.edit(picture, "make it red", steps=2, seed=0).tobytes()
    base = weights_of(editor.model)
    apply_lora(editor.model, write(tmp_path / "x.safetensors", editor.model, kohya), 0.1)
    once = editor.edit(picture, "make it red", steps=2, seed=0).tobytes()
    assert once != plain
    assert editor.edit(picture, "make it red", steps=2, seed=0).tobytes() == once
    assert_changed(editor.model, base, 0.1 * ALPHA / RANK)
    again = ImageEditor.load(*files, device="cpu")
    assert again.edit(picture, "make it red", steps=2, seed=0).tobytes() == plain


def test_several_add_up(model: LatentDiffusion, tmp_path: Path) -> None:
    base = weights_of(model)
    file = write(tmp_path / "x.safetensors", model, kohya, alpha=RANK)
    for weight in (0.25, 0.5, 0.0):
        apply_lora(model, file, weight)
    assert_changed(model, base, 0.75)
    apply_lora(model, file, -0.75)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, base[name], rtol=1e-5, atol=1e-5)


def test_half_precision(files: tuple[Path, Path], tmp_path: Path) -> None:
    model = load_model(*files, dtype=torch.bfloat16)
    model.to(memory_format=torch.channels_last)
    file = write(tmp_path / "x.safetensors", model, peft)
    module = model.get_submodule(module_names(model)["unet.down_blocks.2.resnets.0.conv1"])
    before, layout = module.weight.float(), module.weight.stride()
    apply_lora(model, file)
    down, up = matrices(model)["unet.down_blocks.2.resnets.0.conv1"]
    change = ALPHA / RANK * (up.flatten(1) @ down.flatten(1)).view(before.shape)
    assert torch.equal(module.weight, (before + change).bfloat16())  # rounded once
    assert module.weight.stride() == layout and not module.weight.requires_grad


# --- errors ---


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"lora_te2_x.lora_down.weight": torch.ones(1, 1), "lora_te2_x.lora_up.weight": torch.ones(1, 1)},
            "x.safetensors does not fit the model: 1 of 9 layers are unknown to it: lora_te2_x",
        ),
        (
            {"lora_unet_conv_in.hada_w1_a": torch.ones(2, 2)},
            "1 of 25 tensors are something else: lora_unet_conv_in.hada",
        ),
        (
            {f"{kohya(LAYERS[0])[0]}": torch.ones(RANK, 5)},
            "to_q: expected matrices for a weight [32, 32], got alpha [], down [3, 5], up [32, 3]",
        ),
        ({f"{kohya(LAYERS[0])[1]}": torch.ones(32, 4)}, "got alpha [], down [3, 32], up [32, 4]"),
        ({"lora_unet_conv_in.alpha": torch.ones(1)}, "layer lora_unet_conv_in has no down and no up"),
    ],
)
def test_files_that_do_not_fit_change_nothing(
    model: LatentDiffusion, tmp_path: Path, change: State, said: str
) -> None:
    base = weights_of(model)
    file = write(tmp_path / "x.safetensors", model, kohya)
    save_file(load_file(file) | change, file)
    assert said in message(apply_lora, model, file)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, base[name])


def test_files_that_are_no_lora(model: LatentDiffusion, files: tuple[Path, Path], tmp_path: Path) -> None:
    assert "small.safetensors: expected a LoRA, of matrices down and up; " in message(
        apply_lora, model, files[1]
    )
    file = write(tmp_path / "x.safetensors", model, peft)
    save_file(load_file(file), file, {"lora_adapter_metadata": "{"})
    assert "its lora_adapter_metadata is damaged" in message(apply_lora, model, file)


def test_arguments(tmp_path: Path) -> None:
    file = tmp_path / "x:y.safetensors"
    file.write_bytes(b"")
    assert parse_lora(str(file)) == (file, 1.0)
    assert parse_lora(f"{file}:0.5") == (file, 0.5)
    assert parse_lora(f"{file}:-2") == (file, -2.0)
    for text in (f"{file}:nan", f"{file}:", f"{file}:strong"):
        assert "--lora: expected a finite number after the file, got" in message(parse_lora, text)
    for text in ("none.safetensors", "none.safetensors:1", ""):
        assert "--lora: expected FILE[:WEIGHT], got" in message(parse_lora, text)


# --- diffusers itself ---


def write_with_peft(folder: Path, pipeline: Any, style: str) -> Path:
    """A LoRA of UNet and text encoder made by peft, as its own file, with its settings, or as kohya's."""
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(0)
    layers = {
        "unet": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "proj_in", "conv1", "time_emb_proj"],
        "text_encoder": ["q_proj", "out_proj", "fc1"],
    }
    parts = {part: getattr(pipeline, part) for part in layers}
    for part, network in parts.items():
        config = LoraConfig(r=2, lora_alpha=5, init_lora_weights=False, target_modules=layers[part])
        network.add_adapter(config)
    states = {part: get_peft_model_state_dict(network) for part, network in parts.items()}
    if style == "kohya":
        state: State = {}
        for part, matrices in states.items():
            for name, matrix in matrices.items():
                layer, role = name.split(".lora_")
                level = "text_model." if part == "text_encoder" else ""
                down, up, alpha = kohya(f"{part}.{level}{layer}")
                state[down if role == "A.weight" else up] = matrix
                state[alpha] = torch.tensor(3.0)
        save_file(state, folder / "x.safetensors")
    else:
        pipeline.save_lora_weights(
            folder,
            states["unet"],
            states["text_encoder"],
            weight_name="x.safetensors",
            **(_collate_lora_metadata(parts) if style == "settings" else {}),
        )
    return folder / "x.safetensors"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("style", ["peft", "settings", "kohya"])
@pytest.mark.slow
def test_diffusers_comes_to_the_same_weights(files: tuple[Path, Path], tmp_path: Path, style: str) -> None:
    pipelines = pytest.importorskip("diffusers").StableDiffusionInstructPix2PixPipeline
    pytest.importorskip("peft")
    convert_weights(*files, tmp_path / "folder")
    file = write_with_peft(tmp_path, pipelines.from_pretrained(tmp_path / "folder"), style)
    pipeline = pipelines.from_pretrained(tmp_path / "folder")
    pipeline.load_lora_weights(tmp_path, weight_name=file.name)
    pipeline.fuse_lora(lora_scale=0.7)
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path / "fused")
    theirs, ours = load_model(files[0], tmp_path / "fused").state_dict(), load_model(*files)
    base = weights_of(ours)
    apply_lora(ours, file, 0.7)
    changed = 0
    for name, tensor in ours.state_dict().items():
        if torch.equal(tensor, base[name]):
            assert torch.equal(theirs[name], base[name]), name
        else:
            changed += 1
            assert relative_error(tensor - base[name], theirs[name] - base[name]) < 1e-4, name
    assert changed > 100
