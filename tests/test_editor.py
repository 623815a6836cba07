"""ldm.editor: a small model gives the published picture, by every sampler, schedule and precision."""

from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import try_to_load_from_cache
from PIL import Image
from torch import Tensor

from ldm import editor as editor_module
from ldm.app.about import About
from ldm.device import memory_errors
from ldm.editor import (
    CONFIG,
    EMBEDDED_CONFIG,
    ImageEditor,
    Sampling,
    find_model,
)
from ldm.pictures.fitting import to_image, to_tensor
from ldm.sampling.samplers import sample_euler_ancestral
from ldm.sampling.schedule import get_sigmas, sigma_to_t
from ldm.util import UserError
from small_model import sample_picture, write_small_model

INSTRUCTION = "turn him into a cyborg"


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def editor(model_files: tuple[Path, Path]) -> ImageEditor:
    return ImageEditor.load(*model_files, device="cpu")


@pytest.fixture
def picture() -> Image.Image:
    return sample_picture()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_golden_edit(
    editor: ImageEditor, golden: dict[str, Tensor], golden_metadata: dict, monkeypatch: pytest.MonkeyPatch
):
    """The published program's picture, from the same seed, but for ±1 on at most 1 % of values."""
    # The golden input has values between those of 8 bits, so it takes the place of the picture's tensor.
    monkeypatch.setattr(editor_module, "to_tensor", lambda image: golden["vae.image"])
    case = golden_metadata["case"]
    edited = editor.edit(
        Image.new("RGB", (64, 64)),
        golden_metadata["texts"][0],
        steps=case["steps"],
        cfg_text=case["cfg_text"],
        cfg_image=case["cfg_image"],
        seed=case["seed"],
    )
    expected = golden["edit.uint8"][0].permute(1, 2, 0).numpy().astype(int)
    difference = np.abs(pixels(edited) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() <= 0.01


def test_same_seed_same_image(editor: ImageEditor, picture: Image.Image):
    one, same, other = (editor.edit(picture, INSTRUCTION, steps=3, seed=seed) for seed in (7, 7, 8))
    assert one == same and one != other
    assert editor.edit(picture, INSTRUCTION, steps=3) != editor.edit(picture, INSTRUCTION, steps=3)


def test_edit_leaves_the_global_generator_alone(editor: ImageEditor, picture: Image.Image):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    editor.edit(picture, INSTRUCTION, steps=2, seed=1)
    assert torch.rand(4).equal(expected)


def full_edit(editor: ImageEditor, picture: Image.Image, cfg_text: float, cfg_image: float) -> Image.Image:
    """The edit by the published formula, all three branches, random numbers of the global generator."""
    model = editor.model
    text, no_text = model.get_learned_conditioning([INSTRUCTION]), model.get_learned_conditioning([""])
    image = model.encode_first_stage(to_tensor(picture)).mode()
    levels = model.sigmas

    def denoise(z: Tensor, sigma: Tensor) -> Tensor:
        x, t = z / (sigma**2 + 1).sqrt(), sigma_to_t(levels, sigma)

        def eps(concat: Tensor, context: Tensor) -> Tensor:
            return model.apply_model(x, t, {"c_concat": [concat], "c_crossattn": [context]})

        c, i, u = eps(image, text), eps(image, no_text), eps(torch.zeros_like(image), no_text)
        return z - sigma * (u + cfg_text * (c - i) + cfg_image * (i - u))

    sigmas = get_sigmas(levels, 3)
    torch.manual_seed(5)
    z = torch.randn_like(image.contiguous()) * sigmas[0]
    return to_image(model.decode_first_stage(sample_euler_ancestral(denoise, z, sigmas))[0])


@pytest.mark.parametrize(
    ("cfg_text", "cfg_image", "branches"),
    [(7.5, 1.5, 3), (7.5, 1.0, 2), (1.5, 1.5, 2), (1.0, 1.0, 1), (1.0, 1.5, 3), (3.0, 0.5, 3), (0.0, 0.0, 1)],
)
def test_branches_without_weight_are_skipped(
    editor: ImageEditor, picture: Image.Image, cfg_text: float, cfg_image: float, branches: int
):
    batches = []
    unet = editor.model.model.diffusion_model
    hook = unet.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    try:
        edited = editor.edit(picture, INSTRUCTION, steps=3, seed=5, cfg_text=cfg_text, cfg_image=cfg_image)
    finally:
        hook.remove()
    assert batches == [branches] * 3
    difference = np.abs(pixels(edited) - pixels(full_edit(editor, picture, cfg_text, cfg_image)))
    assert difference.max() <= 1 and (difference > 0).mean() <= 0.01


@pytest.mark.parametrize("schedule", ["model", "karras", "exponential"])
def test_schedules(editor: ImageEditor, picture: Image.Image, schedule: str):
    states: list[dict] = []
    editor.edit(picture, INSTRUCTION, steps=4, seed=1, schedule=schedule, callback=states.append)
    sigmas = [float(state["sigma"]) for state in states]
    assert len(sigmas) == 4 and sigmas == sorted(sigmas, reverse=True)
    assert sigmas[0] == pytest.approx(14.6146, rel=1e-3) and sigmas[-1] == pytest.approx(0.0292, rel=1e-2)


@pytest.mark.parametrize(
    "sampler", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "lms", "dpm_fast", "dpmpp_sde"]
)
def test_samplers_of_k_diffusion(editor: ImageEditor, picture: Image.Image, sampler: str):
    one, same, other = (
        editor.edit(picture, INSTRUCTION, steps=2, seed=s, sampler=sampler) for s in (1, 1, 2)
    )
    assert one == same and one != other


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpm_2_ancestral"])
def test_batches_give_the_same_pictures(editor: ImageEditor, picture: Image.Image, sampler: str):
    samplings = [Sampling(64, 3, scale, 1.5, seed, sampler) for scale, seed in ((7.5, 4), (2.0, 5))]
    texts = [INSTRUCTION, "make it snow"]
    singles = [editor.edit(picture, text, one) for text, one in zip(texts, samplings, strict=True)]
    alone = editor.edit_batch(to_tensor(picture), texts[:1], samplings[:1])
    assert to_image(alone[0]) == singles[0]
    both = editor.edit_batch(to_tensor(picture).expand(2, -1, -1, -1), texts, samplings)
    for edited, single in zip(both, singles, strict=True):
        assert np.abs(pixels(to_image(edited)) - pixels(single)).max() <= 1


def test_a_batch_is_of_one_kind(editor: ImageEditor, picture: Image.Image):
    with pytest.raises(AssertionError, match="expected edits of one kind"):
        pair = to_tensor(picture).expand(2, -1, -1, -1)
        editor.edit_batch(pair, ["a", "b"], [Sampling(64, 2), Sampling(64, 3)])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.slow
def test_half_precision_is_near(
    model_files: tuple[Path, Path], editor: ImageEditor, picture: Image.Image, precision: str
):
    half = ImageEditor.load(*model_files, device="cpu", precision=precision)
    assert half.precision == precision
    exact, near = (pixels(e.edit(picture, INSTRUCTION, steps=2, seed=1)) for e in (editor, half))
    assert 0 < np.abs(exact - near).mean() < 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda(model_files: tuple[Path, Path], picture: Image.Image):
    single = ImageEditor.load(*model_files, device="cuda", precision="fp32")
    half = ImageEditor.load(*model_files)
    assert (half.device.type, half.precision) == ("cuda", "fp16")
    exact, near = (pixels(e.edit(picture, INSTRUCTION, steps=2, seed=1)) for e in (single, half))
    assert np.abs(exact - near).mean() < 6


def test_too_little_memory_is_one_line():
    with pytest.raises(UserError, match="too little memory to edit at 64x64 pixels"):
        with memory_errors("edit at 64x64 pixels"):
            torch.empty(2**60)
    with pytest.raises(RuntimeError, match="must match"):
        with memory_errors("edit"):
            torch.zeros(2) + torch.zeros(3)


def test_find_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    published, embedded = tmp_path / "instruct.ckpt", tmp_path / "avatars.safetensors"
    monkeypatch.setattr(editor_module, "PUBLISHED", published)
    monkeypatch.setattr(editor_module, "EMBEDDED", embedded)
    config, embedded_config = editor_module.CONFIG, editor_module.EMBEDDED_CONFIG
    assert find_model() == (config, published, None)  # whose absence is then reported with the download
    embedded.touch()
    chosen = find_model()
    assert chosen[:2] == (embedded_config, embedded)
    assert "bash scripts/download_checkpoints.sh" in chosen.notice and "\n" not in chosen.notice
    assert find_model(config="own.yaml") == (Path("own.yaml"), published, None)
    assert find_model(ckpt="own.ckpt") == (config, Path("own.ckpt"), None)
    assert find_model("own.yaml", "own.ckpt") == (Path("own.yaml"), Path("own.ckpt"), None)
    published.with_suffix(".safetensors").touch()
    assert find_model() == (config, published.with_suffix(".safetensors"), None)
    published.touch()
    assert find_model() == (config, published, None)
    assert find_model(config=embedded_config) == (embedded_config, embedded, None)


# --- what a config says ---


def test_what_a_config_leaves_out_is_as_published(tmp_path: Path):
    assert Sampling.from_config(CONFIG) == Sampling() and About.from_config(CONFIG) == About()
    file = tmp_path / "own.yaml"
    file.write_text("sampling: {steps: 7, cfg_text: 2, sampler: heun}\nabout: {subject: drawing}\n")
    assert Sampling.from_config(file) == Sampling(steps=7, cfg_text=2.0, sampler="heun")
    about = About.from_config(file)
    assert about.subject == "drawing" and about.preview == About().preview
    file.write_text("data: {params: {validation: {params: {crop_res: [64, 128]}}}}")
    assert Sampling.from_config(file) == Sampling(resolution=128)
    assert len(About.from_config(EMBEDDED_CONFIG).preview) == 5


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("sampling: {stepps: 3}", "sampling.stepps: Key 'stepps' not in 'Sampling'"),
        ("sampling: 3", "sampling: expected names with values, got 3"),
        ("sampling: {steps: many}", "sampling.steps: Value 'many' of type 'str' could not be converted"),
        ("sampling: {steps: 2.5}", "sampling.steps: Value '2.5' of type 'float' could not be converted"),
        ("about: {colour: red}", "about.colour: Key 'colour' not in 'About'"),
        ("about: {subject: cats}", "about.subject: expected photo or drawing, got 'cats'"),
        ("about: {suggestions: []}", "about.suggestions: expected some, got []"),
        ("about: {examples: [[a.jpg]]}", "about.examples: expected pairs of picture file and instruction"),
        ("about: {examples: a.jpg}", "about.examples: Invalid value assigned"),
        (
            "about: {preview: [[1, 2, 3]]}",
            "about.preview: expected 5 rows of 3 numbers, got [[1.0, 2.0, 3.0]]",
        ),
    ],
)
def test_mistakes_in_a_config_are_one_line(tmp_path: Path, block: str, words: str):
    file = tmp_path / "own.yaml"
    file.write_text(block)
    with pytest.raises(UserError) as found:
        Sampling.from_config(file), About.from_config(file)
    assert words in str(found.value) and str(file) in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["published.ckpt", "published.safetensors"])
def test_the_hubs_cache_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """By the layout that its own library reads; the newest is taken, and `checkpoints/` comes first."""
    model = tmp_path / "models--timbrooks--instruct-pix2pix"
    for commit in ("old", "new"):
        (model / "snapshots" / commit).mkdir(parents=True)
        (model / "snapshots" / commit / name).touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(editor_module, "PUBLISHED", tmp_path / "published.ckpt")
    config = editor_module.CONFIG
    assert find_model("own.yaml").ckpt == tmp_path / "published.ckpt"  # no commit is known
    (model / "refs").mkdir()
    (model / "refs/main").write_text("new")
    cached = try_to_load_from_cache("timbrooks/instruct-pix2pix", name, cache_dir=tmp_path)
    assert find_model() == (config, model / "snapshots/new" / name, None)
    assert str(find_model().ckpt) == cached
    (tmp_path / "published.safetensors").touch()
    assert find_model() == (config, tmp_path / "published.safetensors", None)


def test_empty_instruction_only_resizes(editor: ImageEditor, picture: Image.Image):
    assert editor.edit(picture, "") == editor.edit(picture, "  ") == picture


def test_transparent_pictures_are_laid_on_white(editor: ImageEditor, picture: Image.Image):
    clear = picture.convert("RGBA")
    clear.putalpha(0)
    assert editor.edit(clear, "") == Image.new("RGB", (64, 64), "white")


def test_mistakes(editor: ImageEditor, picture: Image.Image, model_files: tuple[Path, Path]):
    for words, options in {
        "at least 1 steps, got 0": {"steps": 0},
        "resolution of at least 64 pixels, got 10": {"resolution": 10},
        "at least 64 pixels, got 0": {"resolution": 0},
        "schedule: expected model, karras, exponential, got 'x'": {"schedule": "x"},
        "not a number": {"cfg_text": float("nan"), "steps": 1},
    }.items():
        with pytest.raises(ValueError, match=words):
            editor.edit(picture, INSTRUCTION, **options)
    for words, options in {"device": {"device": "tpu9"}, "precision": {"precision": "fp8"}}.items():
        with pytest.raises(UserError, match=f"expected {words} auto, .*, got '"):
            ImageEditor.load(*model_files, **options)
