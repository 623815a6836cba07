"""Diffusers' folders as others write them, damaged ones, and those on the hub."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from format_models import UNET, Model, assert_same, configuration, without_schedule
from hub_server import hub
from ldm.util import instantiate_from_config
from ldm.weights.converting import convert_weights
from ldm.weights.diffusers_names import part_configs
from ldm.weights.loading import load_model
from ldm.weights.opening import open_weights
from weights_files import State, message

Change = Callable[[State], State]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    root = tmp_path_factory.mktemp("models")
    return {kind: Model(root / kind, kind) for kind in ("edit", "text")}


@pytest.fixture(scope="module")
def folder(models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The edit model as a diffusers folder; shared, so read only."""
    return models["edit"].folder(tmp_path_factory.mktemp("folder") / "edit")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """That folder, to be changed."""
    return shutil.copytree(folder, tmp_path / "copy")


# --- how others write folders ---


def rewrite(file: Path, change: Change) -> State:
    """Replace the tensors of a file by those that `change` makes of them."""
    state = change(load_file(file))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    return state


def as_before_0_12(state: State) -> State:
    """The autoencoder's attention under diffusers' old names."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    return {re.sub("|".join(old), lambda found: old[found[0]], name): t for name, t in state.items()}


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("vae/diffusion_pytorch_model.safetensors", as_before_0_12),
        (  # with convolutions under the new names
            "vae/diffusion_pytorch_model.safetensors",
            lambda state: {
                n: t[..., None, None] if "attentions" in n and t.ndim == 2 else t for n, t in state.items()
            },
        ),
        (UNET, lambda state: {n: t.squeeze() if ".proj_" in n else t for n, t in state.items()}),
        (  # transformers 5
            "text_encoder/model.safetensors",
            lambda state: {name.removeprefix("text_model."): t for name, t in state.items()},
        ),
    ],
)
def test_other_spellings(models: dict[str, Model], copy: Path, file: str, change: Change) -> None:
    before = load_file(copy / file)
    after = rewrite(copy / file, change)
    assert [(n, t.shape) for n, t in before.items()] != [(n, t.shape) for n, t in after.items()]
    assert_same(load_model(models["edit"].config, copy).state_dict(), models["edit"].inference())


def test_files_of_other_kinds(models: dict[str, Model], copy: Path) -> None:
    """The UNet in two parts, the autoencoder pickled, the text encoder as the fp16 variant."""
    state = load_file(copy / UNET)
    (copy / UNET).unlink()
    names = sorted(state)
    shards = {f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, part in shards.items():
        save_file({name: state[name] for name in part}, copy / "unet" / shard)
    places = {name: shard for shard, part in shards.items() for name in part}
    index = copy / f"{UNET}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    file = copy / "vae/diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    file = copy / "text_encoder/model.safetensors"
    file.rename(file.with_name("model.fp16.safetensors"))
    torch.save({"a": torch.ones(1)}, file.with_name("pytorch_model.bin"))  # safetensors come first
    model = models["edit"]
    assert_same(load_model(model.config, copy).state_dict(), model.inference())
    (copy / "unet" / next(iter(shards))).unlink()
    assert f"there is no file {copy / 'unet' / next(iter(shards))}" in message(open_weights, copy)
    index.write_text("[]")
    assert "expected a list of files by 'weight_map'" in message(open_weights, copy)


# --- errors ---


def test_missing_parts(copy: Path) -> None:
    (copy / "vae/diffusion_pytorch_model.safetensors").unlink()
    said = message(open_weights, copy)
    assert said == f"cannot read {copy}: there is no file {copy}/vae/diffusion_pytorch_model.safetensors"
    shutil.rmtree(copy / "text_encoder")
    shutil.rmtree(copy / "vae")
    said = message(open_weights, copy)
    assert said == f"cannot read {copy / 'vae/config.json'}: No such file or directory"
    (copy / "model_index.json").unlink()
    said = message(open_weights, copy)
    assert said == f"cannot read {copy}: expected a weights file, got a directory without model_index.json"


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"layers_per_block": [1, 2], "down_block_types": ["a"]}', "{"]
)
def test_broken_descriptions(copy: Path, content: str) -> None:
    (copy / "unet/config.json").write_text(content)
    said = message(open_weights, copy)
    assert said.startswith(f"cannot read {copy / 'unet/config.json'}: it ")


def test_wrong_sizes(models: dict[str, Model], copy: Path) -> None:
    config = models["edit"].config
    (copy / UNET).write_bytes((copy / UNET).read_bytes()[:-4])
    assert f"cannot read {copy / UNET}: truncated" in message(load_model, config, copy)
    file = copy / "vae/diffusion_pytorch_model.safetensors"
    rewrite(file, lambda state: state | {"quant_conv.bias": torch.ones(3), "more": torch.ones(1)})
    said = message(convert_weights, config, models["edit"].ckpt, copy / "x.ckpt", vae_ckpt=copy / "vae")
    assert said.endswith("first_stage_model.quant_conv.bias: expected [8], got [3]")
    rewrite(file, lambda state: state | {"quant_conv.bias": torch.ones(8)})
    said = message(load_model, config, models["edit"].ckpt, vae_ckpt=copy / "vae")
    assert said.endswith("weights are unknown to the model: more") and str(copy / "vae") in said


def test_another_kind_of_model(models: dict[str, Model], tmp_path: Path) -> None:
    text = models["text"].folder(tmp_path / "text")
    said = message(load_model, models["edit"].config, text)
    assert f"{text} is for a text-to-image model (4 input channels)" in said


def test_networks_that_diffusers_lacks(models: dict[str, Model], tmp_path: Path) -> None:
    config = configuration("edit")
    config.model.params.first_stage_config.params.ddconfig.z_channels = 8
    with torch.device("meta"):
        model = instantiate_from_config(config.model)
    assert "embed_dim equal to z_channels, got 4 and 8" in message(part_configs, model, 8)


def test_a_folder_is_there_when_it_is_complete(
    models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ldm.weights.diffusers_folder._write_tokenizer", full)
    said = message(models["edit"].folder, tmp_path / "folder")
    assert said == f"cannot write {tmp_path / 'folder'}: No space left on device"
    assert not list(tmp_path.iterdir())


# --- the hub ---


OPEN = """
import sys
from ldm.util import UserError
from ldm.weights.opening import open_weights
for name in sys.argv[1:]:
    try:
        weights = open_weights(name)
        bias = weights.read("first_stage_model.decoder.conv_in.bias")
        print(len(weights.shapes), bias.double().sum().item())
    except UserError as error:
        print(error)
"""


def open_by_name(tmp_path: Path, *names: str, **environment: str) -> list[str]:
    """Open models in a process of their own: huggingface_hub learns the hub's address when imported."""
    variables = {**os.environ, "HF_HOME": str(tmp_path / "home"), **environment}
    command = [sys.executable, "-c", OPEN, *names]
    result = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


@pytest.mark.slow
def test_names_on_the_hub(models: dict[str, Model], folder: Path, tmp_path: Path) -> None:
    """Of each part one file is fetched, of other models the index; later the cache is enough."""
    shutil.copytree(folder, tmp_path / "hub/owner/edit")
    index = json.loads((folder / "model_index.json").read_text()) | {"text_encoder_2": ["transformers", "X"]}
    shutil.copytree(folder, tmp_path / "hub/owner/xl")
    (tmp_path / "hub/owner/xl/model_index.json").write_text(json.dumps(index))
    shutil.copytree(folder / "vae", tmp_path / "hub/owner/vae")
    unused = (
        "edit/unet/diffusion_pytorch_model.bin",
        "edit/v1.ckpt",
        "edit/safety_checker/model.safetensors",
    )
    for name in unused:
        (tmp_path / "hub/owner" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "hub/owner" / name).write_bytes(b"not to be fetched")
    state = models["edit"].state
    total = state["first_stage_model.decoder.conv_in.bias"].double().sum().item()
    whole = f"{len(without_schedule(models['edit'].inference()))} {total}"
    alone = f"{sum(name.startswith('first_stage_model.') for name in state)} {total}"
    with hub(tmp_path / "hub") as server:
        variables = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0"}
        names = ("owner/edit", "owner/vae", "owner/none", "owner/x.ckpt", "owner/xl")
        lines = open_by_name(tmp_path, *names, **variables)
    asked = server.asked
    assert lines[:2] == [whole, alone]
    assert lines[2].startswith("there is no file owner/none, and the hub gives none: ")
    assert lines[3] == "there is no file owner/x.ckpt" and not any("x.ckpt" in path for path in asked)
    assert not any(path.endswith(name.removeprefix("edit/")) for path in asked for name in unused)
    assert lines[4].startswith("cannot read owner/xl: expected Stable Diffusion v1") and len(lines) == 5
    assert {Path(path).name for path in asked if "owner/xl/resolve" in path} == {"model_index.json"}
    lines = open_by_name(tmp_path, "owner/edit", "owner/other", HF_HUB_OFFLINE="1")
    assert lines[0] == whole
    assert lines[1].startswith("there is no file owner/other, and the hub gives none: ")
