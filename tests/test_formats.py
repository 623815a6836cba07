"""Conversions between formats of weights, and what our programs and diffusers make of the results."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from format_models import POSITIONS, UNET, Model, assert_same, configuration, without_schedule
from golden import published_keys, relative_error
from ldm.editor import ImageEditor, Sampling
from ldm.files import ROOT
from ldm.pictures.fitting import to_tensor
from ldm.util import instantiate_from_config
from ldm.weights.converting import convert_weights
from ldm.weights.diffusers_names import PREFIXES, name_map, part_configs
from ldm.weights.loading import load_autoencoder, load_for_training, load_model
from ldm.weights.names import SCHEDULE, ema_name
from ldm.weights.opening import open_weights, read_state_dict
from ldm.weights.single_file import save_safetensors
from small_model import sample_picture

SCRIPT = ROOT / "scripts/convert_checkpoint.py"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    root = tmp_path_factory.mktemp("models")
    return {kind: Model(root / kind, kind) for kind in ("edit", "text")}


@pytest.fixture(scope="module")
def folder(models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The edit model as a diffusers folder; shared, so read only."""
    return models["edit"].folder(tmp_path_factory.mktemp("folder") / "edit")


# --- there and back ---


@pytest.mark.parametrize("kind", ["edit", "text"])
@pytest.mark.slow
def test_whole_models_come_back(models: dict[str, Model], tmp_path: Path, kind: str) -> None:
    model, source = models[kind], models[kind].ckpt
    for name in ("a.safetensors", "folder", "b.ckpt", "c.safetensors", "d.ckpt"):
        convert_weights(model.config, source, tmp_path / name, keep="both")
        source = tmp_path / name
        expected = without_schedule(model.state) if name == "folder" else model.state
        assert_same(read_state_dict(source), expected)


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["ema", "plain"])
@pytest.mark.parametrize("kind", ["edit", "text"])
def test_single_copies_come_back(models: dict[str, Model], tmp_path: Path, kind: str, keep: str) -> None:
    model, source = models[kind], models[kind].ckpt
    expected = model.inference(averaged=keep == "ema")
    for name in ("a.safetensors", "folder", "b.ckpt"):
        convert_weights(model.config, source, tmp_path / name, keep=keep)
        source = tmp_path / name
        assert_same(without_schedule(read_state_dict(source)), without_schedule(expected))
    assert_same(load_model(model.config, source).state_dict(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt", "folder"])
def test_precisions(models: dict[str, Model], tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    model = models["edit"]
    convert_weights(model.config, model.ckpt, tmp_path / name, dtype=dtype)
    read = read_state_dict(tmp_path / name)
    expected = {n: t if n in SCHEDULE else t.to(dtype) for n, t in model.inference().items()}
    assert_same(without_schedule(read), without_schedule(expected))
    assert {read[n].dtype for n in read if n in SCHEDULE} <= {torch.float32}
    if name == "folder":  # once in half precision, nothing more is lost
        convert_weights(model.config, tmp_path / name, tmp_path / "b.safetensors")
        assert_same(read_state_dict(tmp_path / "b.safetensors"), expected)


def test_another_autoencoder_is_converted_along(models: dict[str, Model], tmp_path: Path) -> None:
    model = models["edit"]
    start = PREFIXES["vae"]
    vae = {n.removeprefix(start): t + 1 for n, t in model.state.items() if n.startswith(start)}
    save_safetensors(vae, tmp_path / "vae.safetensors")
    convert_weights(model.config, model.ckpt, tmp_path / "folder", vae_ckpt=tmp_path / "vae.safetensors")
    read = read_state_dict(tmp_path / "folder")
    assert_same(
        {n: t for n, t in read.items() if n.startswith(start)}, {start + n: t for n, t in vae.items()}
    )


def run_script(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, *map(str, words)])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.slow
def test_command_line(
    models: dict[str, Model],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = models["edit"]
    files = ("--config", model.config, "--ckpt", model.ckpt, "--output")
    assert run_script(monkeypatch, *files, tmp_path / "a.safetensors") == 0
    size = (tmp_path / "a.safetensors").stat().st_size / 1e6
    assert capsys.readouterr().out == f"wrote {tmp_path}/a.safetensors: {size:.1f} MB\n"
    expected = {n: t if n in SCHEDULE else t.half() for n, t in model.inference().items()}
    assert_same(load_file(tmp_path / "a.safetensors"), expected)
    assert run_script(monkeypatch, *files, f"{tmp_path}/v1.5/", "--dtype=fp32", "--whole") == 0
    assert_same(read_state_dict(tmp_path / "v1.5"), without_schedule(model.state))
    assert run_script(monkeypatch, *files, tmp_path / "b.ckpt", "--dtype=fp32", "--no-ema") == 0
    assert_same(torch.load(tmp_path / "b.ckpt", weights_only=True)["state_dict"], model.inference(False))
    capsys.readouterr()
    assert run_script(monkeypatch, *files, tmp_path / "x.pt") == 2
    assert "expected a name that ends in .safetensors or .ckpt, or a folder's" in capsys.readouterr().err
    assert run_script(monkeypatch, *files, f"{tmp_path}/v1.5/") == 2
    error = capsys.readouterr().err
    assert error == f"error: cannot write {tmp_path / 'v1.5'}: expected a new or an empty folder\n"


# --- names and descriptions ---


@pytest.mark.parametrize(
    ("config", "published"),
    [
        ("configs/generate.yaml", "instruct_pix2pix"),
        ("stable_diffusion/configs/stable-diffusion/v1-inference.yaml", "stable_diffusion_v1"),
    ],
)
def test_published_names(config: str, published: str) -> None:
    with torch.device("meta"):
        model = instantiate_from_config(OmegaConf.load(ROOT / config).model)
    counts = {}
    for part, description in part_configs(model, latent_size=64).items():
        names, start = name_map(part, description), PREFIXES[part]
        ours = [
            n.removeprefix(start) for n in published_keys(published) if n.startswith(start) and n != POSITIONS
        ]
        theirs = [names.theirs(name) for name in ours]
        assert [names.ours(name) for name in theirs] == ours
        counts[part] = len(set(theirs))
    assert counts == {"unet": 686, "vae": 248, "text_encoder": 196}  # as in the published folders
    unet = name_map("unet", part_configs(model, 64)["unet"])
    for ours, theirs in (
        ("time_embed.2.bias", "time_embedding.linear_2.bias"),
        ("input_blocks.3.0.op.weight", "down_blocks.0.downsamplers.0.conv.weight"),
        ("input_blocks.11.0.emb_layers.1.bias", "down_blocks.3.resnets.1.time_emb_proj.bias"),
        ("output_blocks.2.1.conv.weight", "up_blocks.0.upsamplers.0.conv.weight"),
        ("output_blocks.5.2.conv.weight", "up_blocks.1.upsamplers.0.conv.weight"),
        ("output_blocks.9.1.proj_in.weight", "up_blocks.3.attentions.0.proj_in.weight"),
    ):
        assert unet.theirs(ours) == theirs and unet.ours(theirs) == ours
    vae = name_map("vae", part_configs(model, 64)["vae"])
    theirs = "decoder.up_blocks.2.resnets.0.conv_shortcut.weight"
    assert vae.theirs("decoder.up.1.block.0.nin_shortcut.weight") == theirs


@pytest.mark.parametrize("kind", ["edit", "text"])
def test_descriptions(models: dict[str, Model], tmp_path: Path, kind: str) -> None:
    folder = models[kind].folder(tmp_path / "folder")

    def content(name: str) -> dict[str, object]:
        return json.loads((folder / name).read_text())

    index = content("model_index.json")
    names = {"edit": "StableDiffusionInstructPix2PixPipeline", "text": "StableDiffusionPipeline"}
    assert index["_class_name"] == names[kind]
    assert index["safety_checker"] == index["feature_extractor"] == [None, None]
    unet = content("unet/config.json")
    assert unet["in_channels"] == (8 if kind == "edit" else 4)
    assert unet["down_block_types"] == ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]
    assert (unet["block_out_channels"], unet["attention_head_dim"]) == ([32, 64, 128], 4)
    assert (unet["cross_attention_dim"], unet["sample_size"]) == (64, 8)
    vae = content("vae/config.json")
    assert vae["up_block_types"] == [f"{a}UpDecoderBlock2D" for a in ("", "", "Attn", "")]
    assert (vae["scaling_factor"], vae["sample_size"]) == (0.18215, 64)
    text = content("text_encoder/config.json")
    assert (text["hidden_size"], text["num_hidden_layers"], text["hidden_act"]) == (64, 2, "quick_gelu")
    scheduler = content("scheduler/scheduler_config.json")
    assert (scheduler["beta_start"], scheduler["beta_end"]) == (0.00085, 0.012)
    assert (scheduler["beta_schedule"], scheduler["steps_offset"]) == ("scaled_linear", 1)
    assert (scheduler["prediction_type"], scheduler["clip_sample"]) == ("epsilon", False)


def test_tokenizer_files_give_our_tokens(folder: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    model = instantiate_from_config(configuration("edit").model.params.cond_stage_config)
    texts = ["turn him into a cyborg", "", "Ünïcode, don't 123!", "word " * 100]
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(tokens, model.tokenizer(texts))


def test_heads_by_width_and_levels_of_several_blocks() -> None:
    config = configuration("edit").model
    config.params.unet_config.params.update(num_heads=-1, num_head_channels=16, num_res_blocks=2)
    with torch.device("meta"):
        model = instantiate_from_config(config)
    description = part_configs(model, latent_size=8)["unet"]
    assert description["attention_head_dim"] == [2, 4, 8]
    names = name_map("unet", description)
    ours = [n for n in model.model.diffusion_model.state_dict()]
    assert [names.ours(names.theirs(name)) for name in ours] == ours


# --- as weights of our programs ---


def test_an_editor_of_a_folder(models: dict[str, Model], folder: Path) -> None:
    model = models["edit"]
    results = [
        ImageEditor.load(model.config, ckpt, device="cpu").edit(
            sample_picture(), "make it red", steps=2, seed=0
        )
        for ckpt in (model.ckpt, folder)
    ]
    assert results[0].tobytes() == results[1].tobytes()


def test_training_starts_from_a_folder(models: dict[str, Model], tmp_path: Path) -> None:
    text = models["text"]
    convert_weights(text.config, text.ckpt, tmp_path / "folder", keep="both")
    model = instantiate_from_config(configuration("edit").model)
    load_for_training(model, tmp_path / "folder")
    loaded, first = model.state_dict(), "model.diffusion_model.input_blocks.0.0.weight"
    for name in (first, ema_name(first)):
        assert torch.equal(loaded[name][:, :4], text.state[name]) and not loaded[name][:, 4:].any()
    assert loaded["model_ema.num_updates"] == 123


@pytest.mark.parametrize("alone", [False, True])
def test_the_autoencoder_of_a_folder(models: dict[str, Model], folder: Path, alone: bool) -> None:
    model = models["edit"]
    vae = folder / "vae" if alone else folder
    autoencoder = instantiate_from_config(configuration("edit").model.params.first_stage_config)
    load_autoencoder(autoencoder, vae)
    for name, tensor in autoencoder.state_dict().items():
        assert torch.equal(tensor, model.state[f"first_stage_model.{name}"]), name
    loaded = load_model(model.config, model.ckpt, vae_ckpt=vae).state_dict()
    assert_same(loaded, model.inference())


def test_released_folders_come_back(folder: Path) -> None:
    weights = open_weights(folder)
    name = "first_stage_model.decoder.conv_in.weight"
    before = weights.read(name).clone()
    weights.release()
    assert torch.equal(weights.read(name), before)


# --- diffusers itself ---


@pytest.mark.slow
def test_diffusers_makes_our_picture(models: dict[str, Model], folder: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    instruction, steps, scales = "turn him into a cyborg", 4, {"text": 5.0, "image": 1.3}
    pipeline = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    latent = pipeline(
        instruction,
        image=sample_picture(),
        num_inference_steps=steps,
        guidance_scale=scales["text"],
        image_guidance_scale=scales["image"],
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
    ).images
    with torch.no_grad():  # decoded here, since the pipeline would clamp the numbers
        theirs = pipeline.vae.decode(latent / pipeline.vae.config.scaling_factor).sample
    model = load_model(models["edit"].config, models["edit"].ckpt)
    sampling = Sampling(steps=steps, cfg_text=scales["text"], cfg_image=scales["image"], seed=7)
    ours = ImageEditor(model, sampling).edit_batch(to_tensor(sample_picture()), [instruction], [sampling])
    assert relative_error(ours, theirs) < 1e-3


@pytest.mark.parametrize("kind", ["edit", "text"])
@pytest.mark.slow
def test_diffusers_writes_what_we_read(models: dict[str, Model], tmp_path: Path, kind: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    folder = models[kind].folder(tmp_path / "ours")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.save_pretrained(tmp_path / "theirs", max_shard_size="8MB")
    assert (tmp_path / f"theirs/{UNET}.index.json").exists()
    loaded = load_model(models[kind].config, tmp_path / "theirs").state_dict()
    assert_same(loaded, models[kind].inference())
