"""What command lines share: number types, options and files of models, errors in one line.

Nothing here takes time to import.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ldm.commands import STARTED_AS, as_typed
from ldm.files import ROOT
from ldm.sampling.options import LIMITS, RANDOM_SEEDS, SCHEDULES, Sampling
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.editor import ImageEditor, ModelFiles

# Stable Diffusion 1.5 as published; below ROOT, where scripts/download_pretrained_sd.sh puts its weights.
SD_CONFIG = ROOT / "stable_diffusion/configs/stable-diffusion/v1-inference.yaml"
SD_CKPT = "stable_diffusion/models/ldm/stable-diffusion-v1/v1-5-pruned-emaonly.ckpt"
SD_VAE_CKPT = "stable_diffusion/models/ldm/stable-diffusion-v1/vae-ft-mse-840000-ema-pruned.ckpt"


class Parser(argparse.ArgumentParser):
    """Mistakes are one line, as `run_main` prints them; the name is that which the program was started by."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"prog": os.environ.get(STARTED_AS), **options})

    @classmethod
    def of(cls, text: str, usage: str | None = None) -> Parser:
        """A parser of a program whose help begins with its text's first paragraph and ends with the rest."""
        about, _, notes = text.partition("\n\n")
        form = argparse.RawDescriptionHelpFormatter
        return cls(description=about, epilog=notes, usage=usage, formatter_class=form)

    def format_help(self) -> str:
        return as_typed(super().format_help())

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists all options)")


def config_file(name: str) -> str:
    """An argparse type for a YAML file: where there is none of that name, the one that the project brings."""
    brought = ROOT / name
    return str(brought) if not Path(name).exists() and brought.is_file() else name


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """An argparse type for whole numbers from `low` to `high`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, got {text!r}")
        return value

    return convert


def finite_number(text: str) -> float:
    """Convert an argument to a float that is neither infinite nor NaN."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return value


class _SamplerAction(argparse.Action):
    """Store the sampler's name; list all of them for ``help``."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, value: Any, option: Any = None
    ) -> None:
        if value == "help":
            from ldm.sampling.samplers import sampler_names  # late, as torch takes seconds

            sys.stdout.write("\n".join(sampler_names()) + "\n")
            parser.exit()
        setattr(namespace, self.dest, value.removeprefix("sample_"))


def add_sampling_options(group: argparse._ArgumentGroup, *names: str, **helps: str) -> None:
    """Options for `Sampling.from_arguments`: None where one is left out, which leaves it to the model.

    Args:
        names: fields of `Sampling`.
        helps: what to say of a field in place of what stands here.
    """
    own = "the model's own, {} for the published one, {} for the embedded one".format
    scale = {"type": finite_number, "metavar": "SCALE"}
    size, steps, seed = (whole_number(*map(int, LIMITS[name])) for name in ("resolution", "steps", "seed"))
    known: dict[str, tuple[str, str, dict[str, Any]]] = {  # name → what it is, its default, its form
        "resolution": (
            "about the longer side of the result, 64 to 8192; both sides become multiples of 64",
            own(512, 64),
            {"type": size, "metavar": "PIXELS"},
        ),
        "cfg_text": ("how strongly to follow the instruction, no unit", own(7.5, 1.5), scale),
        "cfg_image": ("how strongly to stay with the input picture, no unit", own(1.5, 1.2), scale),
        "steps": ("denoising steps, 1 to 10000", own(100, 50), {"type": steps}),
        "seed": (
            "whole number; the same gives the same picture",
            f"random in 0..{RANDOM_SEEDS}",
            {"type": seed},
        ),
        "sampler": (
            'any sampler of k-diffusion; "--sampler help" lists them',
            f"the model's own, {Sampling.sampler} where its config says nothing",
            {"action": _SamplerAction, "metavar": "NAME"},
        ),
        "schedule": (
            "how the noise falls: the model's own way or one of k-diffusion's",
            "model, where the config says nothing",
            {"choices": SCHEDULES},
        ),
    }
    for name in names:
        text, default, form = known[name]
        option = f"--{name.replace('_', '-')}"
        group.add_argument(option, help=f"{helps.get(name, text)} (default: {default})", **form)


def add_model_options(group: argparse._ArgumentGroup) -> None:
    """Options for `model_files` and `load_editor`."""
    add = group.add_argument
    add(
        "--config",
        type=config_file,
        metavar="FILE",
        help="YAML file of the model (default: configs/generate.yaml, or the embedded model's own)",
    )
    add(
        "--ckpt",
        metavar="FILE",
        help="weights: .ckpt, .safetensors, a diffusers folder, or its name on the hub (default: "
        "checkpoints/instruct-pix2pix-00-22000.ckpt; without that file, the small embedded model)",
    )
    add("--vae-ckpt", metavar="FILE", help="autoencoder weights to use instead (default: those in --ckpt)")
    add(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="LoRA to add, of diffusers or kohya; its weight is 1 where none is given; may be given several "
        "times (default: none)",
    )
    add_device_option(group)
    add_precision_option(group)


def add_device_option(group: argparse._ArgumentGroup) -> None:
    """A name for `ldm.device.choose_device`."""
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="where to compute; auto takes a GPU if there is one (default: %(default)s)",
    )


def add_precision_option(group: argparse._ArgumentGroup) -> None:
    """A name for `ldm.device.choose_precision`."""
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "fp16", "bf16"),
        default="auto",
        help="number format of the model; auto is fp16 on CUDA, else fp32 (default: %(default)s)",
    )


def add_safety_option(group: argparse._ArgumentGroup) -> None:
    """Whether results go through `ldm.pictures.safety.SafetyChecker`."""
    from ldm.pictures.safety import BLUR_OVER

    group.add_argument(
        "--safety-checker",
        action="store_true",
        help="blur and name results that the network Open-NSFW takes for pornographic, by a score over "
        f"{BLUR_OVER} on its scale of 0 to 1; it knows no other harm and errs both ways, and inputs are not "
        "checked; needs pip install -e '.[nsfw]' (default: off)",
    )


def add_clip_options(group: argparse._ArgumentGroup, model: str) -> None:
    """Options for `metrics.clip_similarity.ClipSimilarity`; `model` is the default one."""
    add = group.add_argument
    add(
        "--clip-model",
        default=model,
        metavar="NAME",
        help="name of a model of open_clip, or a JSON file that describes one (default: %(default)s)",
    )
    add(
        "--clip-pretrained",
        default="openai",
        metavar="TAG",
        help="which of open_clip's weights to load for the model (default: %(default)s)",
    )
    add(
        "--clip-weights",
        metavar="FILE",
        help="file of weights to load in place of open_clip's (default: none, download)",
    )


def model_files(args: argparse.Namespace) -> ModelFiles:
    """The files of the model that `add_model_options` asks for; says on stderr what is special about them."""
    from ldm.editor import find_model

    files = find_model(args.config, args.ckpt)
    if files.notice:
        sys.stderr.write(f"{files.notice}\n")
    return files


def load_editor(args: argparse.Namespace, files: ModelFiles) -> tuple[ImageEditor, dict[str, Any]]:
    """The model that `add_model_options` asks for, and what the settings in a picture say of it.

    Args:
        files: of `model_files`.

    Raises:
        UserError: as `ImageEditor.load`, or a LoRA that cannot be read or does not fit.
    """
    from ldm.editor import ImageEditor
    from ldm.weights.lora import apply_lora, parse_lora

    loras = [parse_lora(text) for text in args.lora]  # a mistake in them is told before the model is loaded
    editor = ImageEditor.load(files.config, files.ckpt, args.vae_ckpt, args.device, args.precision)
    for file, weight in loras:
        apply_lora(editor.model, file, weight)
    about = {
        "ckpt": files.ckpt.name,
        "vae_ckpt": args.vae_ckpt and Path(args.vae_ckpt).name,
        **({"lora": [[file.name, weight] for file, weight in loras]} if loras else {}),
        "device": editor.device.type,
        "precision": editor.precision,
    }
    return editor, about


def add_settings(group: argparse._ActionsContainer, *rows: tuple[str, object, str, str] | tuple) -> None:
    """Options with a default, which their help names and whose type they take.

    Args:
        rows: the option, or several spellings of it with spaces between; its default; what it is; and, where
            it is not the option's own name, what stands for its value.
    """
    for option, default, what, *metavar in rows:
        group.add_argument(
            *option.split(),
            type=type(default),
            default=default,
            metavar=metavar[0] if metavar else None,
            help=f"{what} (default: %(default)s)",
        )
