"""Loading and saving weights, with a tiny edit model and its text-to-image twin."""

import re
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import safe_open
from torch import Tensor, nn

from golden import fill, published_keys, small_config
from ldm.util import instantiate_from_config
from ldm.weights.loading import load_autoencoder, load_for_training, load_model
from ldm.weights.names import SCHEDULE
from ldm.weights.opening import read_state_dict
from ldm.weights.single_file import save_safetensors
from weights_files import State, message, save

FIRST = "model.diffusion_model.input_blocks.0.0.weight"


def edit_config() -> DictConfig:
    """The golden file's configuration, smaller still."""
    config = small_config()
    config.params.unet_config.params.channel_mult = [1, 2]
    config.params.first_stage_config.params.ddconfig.ch_mult = [1]
    config.params.cond_stage_config.params.update(hidden_size=8, intermediate_size=8, num_attention_heads=2)
    config.params.unet_config.params.context_dim = 8
    return config


def text_to_image_config() -> DictConfig:
    config = edit_config()
    config.target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    config.params.conditioning_key = "crossattn"
    config.params.unet_config.params.in_channels = 4
    return config


def ema_name(name: str) -> str:
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def published_state(config: DictConfig) -> State:
    """A state dict as published: EMA unlike the weights themselves, positions of the text encoder."""
    model = fill(instantiate_from_config(config))
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name in state:
        if name.startswith("model_ema.diffusion_model"):
            state[name] = state[name] + 0.5
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["model_ema.num_updates"] = torch.tensor(123, dtype=torch.int32)
    return state


@pytest.fixture(scope="module")
def edit_state() -> State:
    return published_state(edit_config())


@pytest.fixture(scope="module")
def text_state() -> State:
    """As v1-5-pruned-emaonly: four input channels, EMA weights in the place of the plain ones."""
    state = published_state(text_to_image_config())
    return {name: tensor for name, tensor in state.items() if not name.startswith("model_ema.")}


@pytest.fixture(scope="module")
def edit_file(edit_state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "edit.ckpt"
    torch.save({"state_dict": edit_state}, path)
    return path


def expected_for_inference(state: State, name: str) -> Tensor:
    return state[ema_name(name)] if name.startswith("model.") and ema_name(name) in state else state[name]


def message_for(state: State, path: Path) -> str:
    """What `load_model` says to the small edit model and these weights."""
    return message(load_model, edit_config(), save(state, path, "bare"))


# --- inference ---


@pytest.mark.parametrize("kind", ["safetensors", "lightning", "bare", "stream"])
def test_load_model_takes_ema_weights(edit_state: State, tmp_path: Path, kind: str) -> None:
    model = load_model(edit_config(), save(edit_state, tmp_path / "x", kind))
    loaded = model.state_dict()
    assert not [name for name in loaded if name.startswith("model_ema.")]
    for name, tensor in loaded.items():
        assert torch.equal(tensor, expected_for_inference(edit_state, name)), name
        assert tensor.device.type == "cpu"
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_load_model_without_ema_schedule_and_positions(edit_state: State, tmp_path: Path) -> None:
    state = {name: t for name, t in edit_state.items() if not name.startswith("model_ema.")}
    state = {name: t for name, t in state.items() if name not in SCHEDULE and "position_ids" not in name}
    loaded = load_model(edit_config(), save(state, tmp_path / "x", "safetensors")).state_dict()
    assert torch.equal(loaded[FIRST], edit_state[FIRST])
    for name in SCHEDULE:
        assert torch.equal(loaded[name], edit_state[name]), name


def test_load_model_accepts_text_encoder_names_without_inner_level(edit_state: State, tmp_path: Path) -> None:
    state = {name.replace(".text_model.", "."): tensor for name, tensor in edit_state.items()}
    assert state.keys() != edit_state.keys()
    model = load_model(edit_config(), save(state, tmp_path / "x", "bare"))
    assert torch.equal(
        model.state_dict()["cond_stage_model.transformer.text_model.final_layer_norm.weight"],
        edit_state["cond_stage_model.transformer.text_model.final_layer_norm.weight"],
    )


def test_load_model_casts_weights_and_keeps_the_schedule(edit_file: Path) -> None:
    model = load_model(edit_config(), edit_file, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {model.state_dict()[name].dtype for name in SCHEDULE} == {torch.float32}


def test_load_model_from_yaml_ignores_training_settings(edit_file: Path, tmp_path: Path) -> None:
    config = edit_config()
    config.params.ckpt_path = "not/there.ckpt"
    config.params.first_stage_config.params.ckpt_path = "not/there.ckpt"
    path = tmp_path / "config.yaml"
    OmegaConf.save({"model": config, "data": {"a": 1}}, path)
    model = load_model(path, edit_file)
    assert model.ckpt_path is None and model.first_stage_model.ckpt_path is None
    assert config.params.use_ema and config.params.ckpt_path == "not/there.ckpt"


def mapped_memory(path: Path) -> int:
    """Bytes of a file that this process holds in memory by mapping it."""
    blocks = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    sizes = [re.search(r"\nRss: +(\d+) kB", block) for block in blocks if str(path) in block.split("\n")[0]]
    return sum(1024 * int(size[1]) for size in sizes if size)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's account of mapped memory")
@pytest.mark.parametrize("kind", ["safetensors", "lightning"])
def test_of_two_copies_one_is_held(edit_state: State, tmp_path: Path, kind: str) -> None:
    path = save(edit_state, tmp_path / "x", kind)
    model = load_model(edit_config(), path)
    total = sum(p.double().sum() for p in model.parameters())  # every weight is used
    assert torch.isfinite(total)
    copy = sum(t.nbytes for name, t in edit_state.items() if name.startswith("model.diffusion_model."))
    assert 0 < mapped_memory(path) < path.stat().st_size - 0.9 * copy


def test_load_model_lays_out_without_numbers(edit_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = set()
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda t, *a, **k: devices.add(t.device.type))
    load_model(edit_config(), edit_file)
    assert devices == {"meta"}


# --- another autoencoder ---


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("kind", ["safetensors", "lightning"])
def test_vae_swap(edit_state: State, edit_file: Path, tmp_path: Path, kind: str, prefix: str) -> None:
    names = [name for name in edit_state if name.startswith("first_stage_model.")]
    vae = {name.replace("first_stage_model.", prefix): edit_state[name] + 1 for name in names}
    vae[f"{prefix}loss.logvar"] = torch.zeros(1)
    loaded = load_model(edit_config(), edit_file, vae_ckpt=save(vae, tmp_path / "vae", kind)).state_dict()
    for name, tensor in loaded.items():
        shift = 1 if name in names else 0
        assert torch.equal(tensor, expected_for_inference(edit_state, name) + shift), name
    autoencoder = instantiate_from_config(edit_config().params.first_stage_config)
    load_autoencoder(autoencoder, tmp_path / "vae")
    for name, tensor in autoencoder.state_dict().items():
        assert torch.equal(tensor, edit_state[f"first_stage_model.{name}"] + 1)


def test_vae_of_a_whole_model(edit_state: State, edit_file: Path, tmp_path: Path) -> None:
    """Then the first file needs none."""
    no_vae = {name: t for name, t in edit_state.items() if not name.startswith("first_stage_model.")}
    loaded = load_model(edit_config(), save(no_vae, tmp_path / "x", "bare"), vae_ckpt=edit_file).state_dict()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, expected_for_inference(edit_state, name)), name
    autoencoder = instantiate_from_config(edit_config().params.first_stage_config)
    load_autoencoder(autoencoder, edit_file)
    name = "decoder.conv_in.weight"
    assert torch.equal(autoencoder.state_dict()[name], edit_state[f"first_stage_model.{name}"])


def test_broken_vae_is_named(edit_file: Path, tmp_path: Path) -> None:
    path = save({"encoder.conv_in.weight": torch.ones(1)}, tmp_path / "vae.ckpt", "bare")
    said = message(load_model, edit_config(), edit_file, vae_ckpt=path)
    assert "vae.ckpt does not fit the model" in said and "are missing" in said


# --- training ---


def test_training_starts_from_text_to_image(text_state: State, tmp_path: Path) -> None:
    model = instantiate_from_config(edit_config())
    load_for_training(model, save(text_state, tmp_path / "x", "lightning"))
    loaded = model.state_dict()
    for name, tensor in text_state.items():
        if name in loaded and name != FIRST:
            assert torch.equal(loaded[name], tensor), name
    for name in (FIRST, ema_name(FIRST)):
        assert torch.equal(loaded[name][:, :4], text_state[FIRST])
        assert not loaded[name][:, 4:].any()
    for name, parameter in model.model.named_parameters(prefix="model"):
        assert torch.equal(loaded[ema_name(name)], parameter), name
    assert loaded["model_ema.num_updates"] == 0


def test_training_goes_on_from_both_copies(edit_state: State, edit_file: Path) -> None:
    model = instantiate_from_config(edit_config())
    load_for_training(model, edit_file)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, edit_state[name]), name
    load_for_training(model, edit_file, load_ema=False)
    loaded = model.state_dict()
    assert torch.equal(loaded[FIRST], edit_state[FIRST])
    assert torch.equal(loaded[ema_name(FIRST)], edit_state[FIRST])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's account of mapped memory")
def test_frozen_weights_that_a_training_never_uses_take_no_memory(edit_file: Path) -> None:
    model = instantiate_from_config(edit_config())
    load_for_training(model, edit_file)
    assert mapped_memory(edit_file) < 0.1 * edit_file.stat().st_size  # what was copied is let go
    used = [*model.first_stage_model.encoder.parameters(), *model.cond_stage_model.parameters()]
    assert sum(p.double().sum() for p in used).isfinite()
    assert mapped_memory(edit_file) < 0.9 * edit_file.stat().st_size
    trained = next(model.model.parameters())
    with torch.no_grad():
        trained += 1  # a copy of its own: the file and another model stay as they were
    again = instantiate_from_config(edit_config())
    load_for_training(again, edit_file)
    assert torch.equal(next(again.model.parameters()) + 1, trained)


def test_training_widens_both_copies(tmp_path: Path) -> None:
    state = published_state(text_to_image_config())
    model = instantiate_from_config(edit_config())
    load_for_training(model, save(state, tmp_path / "x", "bare"))
    loaded = model.state_dict()
    for name in (FIRST, ema_name(FIRST)):
        assert torch.equal(loaded[name][:, :4], state[name]) and not loaded[name][:, 4:].any()
    assert loaded["model_ema.num_updates"] == 123


def test_training_keeps_the_configured_decay(edit_state: State, tmp_path: Path) -> None:
    half = {name: t.half() if t.is_floating_point() else t for name, t in edit_state.items()}
    assert half["model_ema.decay"] == 1  # an average that never moves
    model = instantiate_from_config(edit_config())
    load_for_training(model, save(half, tmp_path / "x", "safetensors"))
    assert model.model_ema.decay == torch.tensor(0.9999)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.alphas_cumprod, edit_state["alphas_cumprod"])


def test_training_from_a_file_with_nothing_but_ema(edit_state: State, tmp_path: Path) -> None:
    state = {name: t for name, t in edit_state.items() if not name.startswith("model.")}
    config = edit_config()
    config.params.use_ema = False
    model = instantiate_from_config(config)
    load_for_training(model, save(state, tmp_path / "x", "safetensors"))
    assert torch.equal(model.state_dict()[FIRST], edit_state[ema_name(FIRST)])


def test_a_file_that_does_not_fit_changes_nothing(edit_state: State, tmp_path: Path) -> None:
    model = fill(instantiate_from_config(edit_config()))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = {name: t for name, t in edit_state.items() if name != ema_name(FIRST)}
    assert ema_name(FIRST) in message(load_for_training, model, save(state, tmp_path / "x", "bare"))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


# --- errors ---


def test_text_to_image_where_an_edit_model_is_needed(
    text_state: State, edit_file: Path, tmp_path: Path
) -> None:
    said = message_for(text_state, tmp_path / "sd.ckpt")
    assert said == (
        f"{tmp_path / 'sd.ckpt'} is for a text-to-image model (4 input channels), "
        "but the configuration is for an edit model (8 input channels)"
    )
    said = message(load_model, text_to_image_config(), edit_file)
    assert "is for an edit model (8 input channels), but the configuration is for a text-to-image" in said
    model = instantiate_from_config(text_to_image_config())
    assert "is for an edit model" in message(load_for_training, model, edit_file)


def test_autoencoder_where_a_whole_model_is_needed(edit_state: State, tmp_path: Path) -> None:
    start = "first_stage_model."
    state = {name.removeprefix(start): t for name, t in edit_state.items() if name.startswith(start)}
    assert "missing (it is an autoencoder, for --vae-ckpt)" in message_for(state, tmp_path / "vae.ckpt")


def test_missing_weights_are_counted_and_named(edit_state: State, tmp_path: Path) -> None:
    gone = [name for name in edit_state if "decoder.mid" in name]
    state = {name: t for name, t in edit_state.items() if name not in gone}
    said = message_for(state, tmp_path / "x.ckpt")
    assert f" {len(gone)} of " in said and said.endswith("are missing: " + ", ".join(gone[:5]) + ", …")


def test_half_an_ema_copy_is_not_filled_up_in_silence(edit_state: State, tmp_path: Path) -> None:
    state = {name: t for name, t in edit_state.items() if name != ema_name(FIRST)}
    assert f"weights are missing: {FIRST}" in message_for(state, tmp_path / "x.ckpt")


def test_unknown_weights_are_counted_and_named(edit_state: State, tmp_path: Path) -> None:
    extra = {f"control_model.{i}": torch.ones(1) for i in range(7)}
    said = message_for(edit_state | extra, tmp_path / "x.ckpt")
    assert " 7 of " in said and said.endswith("unknown to the model: " + ", ".join(list(extra)[:5]) + ", …")
    assert "unknown to the model: model_ema.other" in message_for(
        edit_state | {"model_ema.other": torch.ones(1)}, tmp_path / "x.ckpt"
    )


def test_wrong_shapes_are_named(edit_state: State, tmp_path: Path) -> None:
    name = "first_stage_model.quant_conv.bias"
    said = message_for(edit_state | {name: torch.ones(3)}, tmp_path / "x.ckpt")
    assert "1 of " in said and f"{name}: expected [8], got [3]" in said
    wide = {ema_name(FIRST): torch.ones(32, 8, 1, 1)}
    assert "expected [32, 8, 3, 3], got [32, 8, 1, 1]" in message_for(edit_state | wide, tmp_path / "x.ckpt")


def test_another_noise_schedule(edit_file: Path) -> None:
    config = edit_config()
    config.params.linear_end = 0.02
    assert "another noise schedule" in message(load_model, config, edit_file)


def test_configuration_errors(edit_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert f"cannot read configuration {path}: No such file" in message(load_model, path, edit_file)
    for content, said in (
        ("a: [1", "cannot read configuration"),
        ("a: ${b}", "cannot read configuration"),
        ("- 1", "expected a model with"),
        ("a: 1", "expected a model with"),
        ("model: {target: ldm.none.None, params: {}}", "there is no module"),
    ):
        path.write_text(content)
        assert said in message(load_model, path, edit_file)


# --- writing ---


def test_save_a_model(edit_state: State, tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.safetensors"
    save_safetensors(edit_state, path, metadata={"config": "{}"}, dtype=torch.float16)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "config": "{}"}
    for name, tensor in read_state_dict(path).items():
        kept = name in SCHEDULE or tensor.ndim == 0 or not edit_state[name].is_floating_point()
        assert torch.equal(tensor, edit_state[name] if kept else edit_state[name].half()), name
    model = load_model(edit_config(), path)
    assert torch.equal(model.state_dict()[FIRST], edit_state[ema_name(FIRST)].half().float())


def test_schedule_names_are_the_published_ones() -> None:
    assert {name for name in published_keys("stable_diffusion_v1") if "." not in name} == SCHEDULE
