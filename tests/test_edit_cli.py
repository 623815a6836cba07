"""edit_cli.py on real files, with a small model; every mistake is one line and exit code 2."""

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageChops

from golden import small_config
from ldm.app.about import PHOTOGRAPHS
from ldm.editor import EMBEDDED_CONFIG, Sampling
from ldm.pictures.animation import FADE_STEPS, MARGIN, captioned
from ldm.pictures.reading import open_image
from ldm.pictures.writing import read_settings
from ldm.util import instantiate_from_config
from ldm.weights.single_file import save_safetensors
from small_model import sample_picture, write_small_model

SCRIPT = Path(__file__).resolve().parents[1] / "edit_cli.py"
INSTRUCTION = "turn him into a cyborg"


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_small_model(tmp_path_factory.mktemp("model"))


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    model_files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run edit_cli.py as a program in this process: options → (exit code, stdout, stderr).

    Works in `tmp_path`, with in.png there; options that are not given have values that work, None leaves
    one out, True stands for a flag, a list for an option given several times.
    """
    monkeypatch.chdir(tmp_path)
    sample_picture().save("in.png")
    config, ckpt = model_files

    def run(**options: object) -> tuple[int, str, str]:
        defaults = {"input": "in.png", "output": "out.png", "edit": INSTRUCTION, "steps": 2, "device": "cpu"}
        options = {**defaults, "config": config, "ckpt": ckpt, **options}
        words = []
        for name, value in options.items():
            flag = f"--{name.replace('_', '-')}"
            if value is True:
                words.append(flag)
            elif value is not None:
                words += [f"{flag}={item}" for item in (value if isinstance(value, list) else [value])]
        monkeypatch.setattr(sys, "argv", ["edit_cli.py", *words])
        code = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def pixels(path: Path) -> np.ndarray:
    return np.asarray(open_image(path)).astype(int)


def test_empty_instruction_only_resizes(run: Run, tmp_path: Path):
    code, _, _ = run(edit="", resolution=128)
    assert code == 0
    resized = sample_picture().resize((128, 128), Image.Resampling.LANCZOS)
    assert (pixels(tmp_path / "out.png") == np.asarray(resized)).all()


def test_settings_bring_the_picture_back(run: Run, tmp_path: Path):
    code, out, err = run(cfg_image=1.2, schedule="karras", output="deep/er/one.webp")
    assert code == 0, err
    settings = read_settings(tmp_path / "deep/er/one.webp")
    assert f'"seed": {settings["seed"]}' in out and "wrote" in out
    assert 0 <= settings["seed"] <= 100_000
    assert settings["edit"] == INSTRUCTION and settings["resolution"] == 64
    flags = (
        "seed",
        "steps",
        "cfg_text",
        "cfg_image",
        "resolution",
        "sampler",
        "schedule",
        "edit",
        "precision",
    )
    assert run(**{flag: settings[flag] for flag in flags}, output="two.webp")[0] == 0
    assert (pixels(tmp_path / "two.webp") == pixels(tmp_path / "deep/er/one.webp")).all()


def test_input_may_be_the_output(run: Run, tmp_path: Path):
    before = pixels(tmp_path / "in.png")
    assert run(output="in.png")[0] == 0
    assert (pixels(tmp_path / "in.png") != before).any()


# --- several edits ---


def test_edits_in_turn_are_single_edits_one_after_the_other(run: Run, tmp_path: Path):
    edits = ["add a hat", "", "make it green"]
    code, out, err = run(edit=edits, seed=5, resolution=100, gif="chain.webp")
    assert code == 0, err
    settings = read_settings(tmp_path / "out.png")
    assert (settings["edit"], settings["seed"]) == (edits, 5)
    assert "wrote 'chain.webp': 4 pictures" in out and "4/4" in err, "two edits of two steps"
    assert run(edit=edits[0], seed=5, resolution=100, output="a.png")[0] == 0
    assert read_settings(tmp_path / "a.png")["edit"] == edits[0]
    side = pixels(tmp_path / "a.png").shape[0]
    assert run(edit=edits[2], seed=7, resolution=side, input="a.png", output="c.png")[0] == 0
    assert (pixels(tmp_path / "out.png") == pixels(tmp_path / "c.png")).all()


def test_edits_in_turn_keep_the_size_of_the_first(run: Run, tmp_path: Path):
    sample_picture().resize((200, 120)).save(tmp_path / "wide.png")
    sizes = []
    for edits in (["a hat"], ["a hat", "a coat"]):  # alone, the result of the first would come out at 128x128
        assert run(input="wide.png", edit=edits, resolution=100, steps=1)[0] == 0
        sizes.append(open_image(tmp_path / "out.png").size)
    assert sizes == [(64, 64), (64, 64)]


def test_the_animation_goes_through_all_pictures(run: Run, tmp_path: Path):
    edits = ["add a hat", "make it green"]
    assert run(edit=edits, gif="deep/chain.webp", seed=3)[0] == 0
    assert run(edit=edits[0], output="first.png", seed=3)[0] == 0
    pictures = [open_image(tmp_path / name) for name in ("in.png", "first.png", "out.png")]
    with Image.open(tmp_path / "deep/chain.webp") as animation:
        assert animation.n_frames == 3 * (1 + FADE_STEPS)
        for i, still in enumerate(captioned(pictures, ["input", *edits])):
            animation.seek(i * (1 + FADE_STEPS))
            difference = ImageChops.difference(animation.convert("RGB"), still)
            assert np.asarray(difference).mean() < 4, "but for the compression"


@pytest.mark.slow
def test_surprise_me_tries_several_and_shows_all(run: Run, tmp_path: Path):
    code, out, err = run(edit=None, surprise_me=True, seed=5, gif="all.webp")
    assert code == 0, err
    tried = read_settings(tmp_path / "out.png")["edit"]
    assert len(tried) == 5 and set(tried) <= set(PHOTOGRAPHS)
    names = [f"out-{i}.png" for i in range(1, 6)]
    assert sorted(path.name for path in tmp_path.glob("out*")) == [*names, "out.png"]
    for name, edit in zip(names, tried, strict=True):
        assert read_settings(tmp_path / name)["edit"] == edit
        assert f"wrote {name!r}: {edit}" in out
    assert run(edit=tried[3], seed=5, output="alone.png")[0] == 0
    assert (pixels(tmp_path / "alone.png") == pixels(tmp_path / names[3])).all()
    sheet = pixels(tmp_path / "out.png")
    cells = captioned([open_image(tmp_path / name) for name in ("in.png", *names)], ["input", *tried])
    height, width, _ = np.asarray(cells[0]).shape
    assert sheet.shape == (2 * height + 3 * MARGIN, 3 * width + 4 * MARGIN, 3)
    last = sheet[-MARGIN - height : -MARGIN, -MARGIN - width : -MARGIN]
    assert (last == np.asarray(cells[5])).all()


MISTAKES = {
    "missing input": ({"input": "none.png"}, "no such picture: none.png"),
    "folder as input": ({"input": "."}, "got a folder: ."),
    "empty input": ({"input": "empty.png"}, "got an empty file: empty.png"),
    "text as input": ({"input": "text.png"}, "of another kind or a broken one: text.png"),
    "tiny input": ({"input": "tiny.png"}, "at least 8 pixels, got 5x70: tiny.png"),
    "narrow input": ({"input": "narrow.png"}, "at most 16:1, got 10x200: narrow.png"),
    "no input": ({"input": None}, "required: --input"),
    "no output": ({"output": None}, "required: --output"),
    "no instruction": ({"edit": None}, "one of the arguments --edit --surprise-me is required"),
    "instruction and surprise": ({"surprise_me": True}, "--surprise-me: not allowed with argument --edit"),
    "long instructions": ({"edit": ["x" * 2000, "y" * 2001]}, "at most 4000 characters in all, got 4001"),
    "seed without a next one": ({"edit": ["a", "b"], "seed": 2**64 - 1}, "--seed: expected at most"),
    "animation as PNG": ({"gif": "out.png"}, "expected an animation ending in .gif or .webp, got .png"),
    "animation without suffix": ({"gif": "out"}, "got no suffix (out)"),
    "animation over the result": ({"gif": "./o.gif", "output": "o.gif"}, "another file for --gif"),
    "animation over a surprise": (
        {"gif": "o-2.gif", "output": "o.gif", "edit": None, "surprise_me": True},
        "another file for --gif",
    ),
    "folder as animation": ({"gif": "folder.gif"}, "got a folder: folder.gif"),
    "folder as surprise": ({"edit": None, "surprise_me": True}, "got a folder: out-2.png"),
    "long instruction": ({"edit": "x" * 4001}, "--edit: expected at most 4000 characters, got 4001"),
    "instruction not UTF-8": ({"edit": "caf\udce9"}, "--edit: expected UTF-8 text"),
    "unknown suffix": ({"output": "out.xyz"}, "ending in .png, .jpg"),
    "output without suffix": ({"output": "out"}, "got no suffix (out)"),
    "folder as output": ({"output": "folder.png"}, "got a folder: folder.png"),
    "file as output folder": ({"output": "in.png/out.png"}, "cannot write in.png/out.png"),
    "no steps": ({"steps": 0}, "--steps: expected a whole number from 1 to 10000, got '0'"),
    "half a step": ({"steps": 1.5}, "--steps: expected a whole number"),
    "too few steps": (
        {"sampler": "dpmpp_2m_sde", "steps": 1},
        "dpmpp_2m_sde: expected at least 2 steps, got 1",
    ),
    "no resolution": ({"resolution": 0}, "--resolution: expected a whole number from 64 to 8192, got '0'"),
    "low resolution": ({"resolution": 63}, "got '63'"),
    "seed in words": ({"seed": "lucky"}, "--seed: expected a whole number"),
    "NaN": ({"cfg_text": "nan"}, "--cfg-text: expected a finite number, got 'nan'"),
    "infinite": ({"cfg_image": "-inf"}, "--cfg-image: expected a finite number, got '-inf'"),
    "overflow": ({"cfg_text": "1e39"}, "is not a number: try fp32, or smaller guidance scales"),
    "unknown sampler": ({"sampler": "magic"}, "euler_ancestral, heun, lms, got 'magic'"),
    "unknown schedule": ({"schedule": "magic"}, "--schedule: invalid choice: 'magic'"),
    "unknown precision": ({"precision": "fp8"}, "--precision: invalid choice: 'fp8'"),
    "unknown device": ({"device": "tpu"}, "--device: invalid choice: 'tpu'"),
    "unknown option": ({"colour": "red"}, "unrecognized arguments: --colour=red"),
    "missing weights": ({"ckpt": "none.ckpt"}, "there is no file none.ckpt"),
    "missing VAE": ({"vae_ckpt": "none.ckpt"}, "there is no file none.ckpt"),
    "missing config": ({"config": "none.yaml"}, "cannot read configuration none.yaml"),
    "page as weights": ({"ckpt": "text.png"}, "got a web page"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(run: Run, tmp_path: Path, mistake: str):
    options, words = MISTAKES[mistake]
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("<html>not found</html>")
    for name in ("folder.png", "folder.gif", "out-2.png"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (5, 70)).save(tmp_path / "tiny.png")
    Image.new("RGB", (10, 200)).save(tmp_path / "narrow.png")
    code, _, err = run(**options)
    line = err.splitlines()[-1]
    assert code == 2 and line.startswith("error: ") and words in line
    assert err.count("\n") == 1 or mistake == "overflow"  # which shows only after the progress bar
    assert not (tmp_path / "out.png").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU is there")
def test_missing_gpu(run: Run):
    code, out, err = run(device="cuda")
    assert (code, out) == (2, "")
    assert err == "error: device 'cuda': torch finds no such GPU here; expected auto or cpu\n"


def test_text_to_image_model_is_refused(run: Run, tmp_path: Path):
    config = small_config()
    config.target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    config.params.update(conditioning_key="crossattn", use_ema=False)
    config.params.unet_config.params.in_channels = 4
    OmegaConf.save(OmegaConf.create({"model": config}), tmp_path / "sd.yaml")
    save_safetensors(instantiate_from_config(config).state_dict(), tmp_path / "sd.safetensors")
    code, _, err = run(config="sd.yaml", ckpt="sd.safetensors")
    assert (code, err) == (2, "error: sd.yaml: expected an edit model, got a text-to-image model\n")


def test_published_command_lines_parse():
    parser = runpy.run_path(str(SCRIPT))["make_parser"]()
    line = (
        "--steps 100 --resolution 512 --seed 1371 --cfg-text 7.5 --cfg-image 1.2 --input imgs/example.jpg "
        '--output imgs/output.jpg --edit "turn him into a cyborg"'
    )
    args = parser.parse_args(shlex.split(line))
    assert (args.steps, args.resolution, args.seed, args.cfg_text, args.cfg_image) == (
        100,
        512,
        1371,
        7.5,
        1.2,
    )
    assert (args.input, args.output, args.edit) == ("imgs/example.jpg", "imgs/output.jpg", [INSTRUCTION])
    line = (
        "--config configs/generate.yaml --ckpt checkpoints/instruct-pix2pix-00-22000.ckpt "
        "--vae-ckpt vae.ckpt --cfg-image -0.5 --input a --output b --edit c"
    )
    args = parser.parse_args(shlex.split(line))
    assert (args.steps, args.resolution, args.seed, args.cfg_text, args.cfg_image) == (
        None,
        None,
        None,
        None,
        -0.5,
    )
    assert (args.sampler, args.schedule, args.device, args.precision) == (None, None, "auto", "auto")
    sampling = Sampling.from_arguments(args, Sampling())
    assert (sampling.sampler, sampling.schedule, sampling.cfg_image) == ("euler_ancestral", "model", -0.5)
    assert args.vae_ckpt == "vae.ckpt"


HEAVY = (
    "torch",
    "scipy",
    "torchdiffeq",
    "torchsde",
    "torchvision",
    "k_diffusion",
    "wandb",
    "kornia",
    "clip",
    "accelerate",
    "pandas",
    "pytorch_lightning",
    "lightning",
    "transformers",
    "open_clip",
    "gradio",
    "diffusers",
    "onnxruntime",
)
PROGRAM = f"""
import atexit, runpy, sys
atexit.register(lambda: print("heavy:", *(name for name in {HEAVY} if name in sys.modules)))
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


def imports_of(*arguments: object) -> tuple[str, list[str]]:
    """Run edit_cli.py in a fresh process; return its output and which of `HEAVY` it imported."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    output, _, heavy = result.stdout.rpartition("heavy:")
    return output, heavy.split()


def test_help_is_complete_and_imports_nothing_heavy():
    output, heavy = imports_of("--help")
    assert heavy == []
    options = (
        "input output edit resolution cfg-text cfg-image steps seed sampler schedule config ckpt vae-ckpt"
    )
    for option in (*options.split(), "device", "precision", "gif", "surprise-me", "lora", "safety-checker"):
        assert f"--{option} " in output


@pytest.mark.parametrize("script", ["edit_cli.py", "edit_app.py"])
def test_help_says_every_default(script: str):
    parser = runpy.run_path(str(SCRIPT.with_name(script)))["make_parser"]()
    for option in parser._actions:
        if not option.required and option.dest not in (
            "help",
            "edit",
        ):  # --edit or --surprise-me must be given
            assert re.search(r"\(default: .+\)$", option.help), option.dest
    text = " ".join(parser.format_help().split())
    published, embedded = Sampling(), Sampling.from_config(EMBEDDED_CONFIG)
    for name in ("resolution", "steps", "cfg_text", "cfg_image"):
        if f"--{name.replace('_', '-')} " in text:
            values = f"{getattr(published, name)} for the published one, {getattr(embedded, name)} for the"
            assert values in text, name


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["euler_ancestral", "heun"])
def test_editing_imports_nothing_but_what_it_needs(
    model_files: tuple[Path, Path], tmp_path: Path, sampler: str
):
    sample_picture().save(tmp_path / "in.png")
    config, ckpt = model_files
    files = ["--config", config, "--ckpt", ckpt, "--input", tmp_path / "in.png"]
    output = tmp_path / "out.png"
    _, heavy = imports_of(
        *files, "--output", output, "--edit", INSTRUCTION, "--steps", 1, "--sampler", sampler
    )
    of_k_diffusion = ["scipy", "torchdiffeq", "torchsde", "torchvision"]
    assert heavy == ["torch", *(of_k_diffusion if sampler == "heun" else [])]
    assert pixels(output).shape == (64, 64, 3)


def test_sampler_help_lists_names(run: Run):
    code, out, _ = run(sampler="help")
    assert code == 0 and {"euler_ancestral", "heun", "dpmpp_2m"} <= set(out.split())
