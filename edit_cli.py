"""Edit a picture by a written instruction: read the arguments, check them, edit, save.

What takes time to import comes after the checks, so that `--help` and mistakes are answered at once.
"""

import argparse
import json
import math
import random
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from ldm import images
from ldm.util import UserError, run_main

LONGEST_INSTRUCTION = 4000  # characters; the text encoder reads 77 tokens, EXIF holds 64 KB
EPILOG = """examples:
  python edit_cli.py --input imgs/example.jpg --output imgs/output.jpg --edit "turn him into a cyborg"
  python edit_cli.py --steps 100 --resolution 512 --seed 1371 --cfg-text 7.5 --cfg-image 1.2 \\
      --input imgs/example.jpg --output imgs/output.jpg --edit "turn him into a cyborg"

If the picture changes too little, raise --cfg-text or lower --cfg-image; if it changes too much, the reverse.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists all options)")


class _SamplerAction(argparse.Action):
    """Store the sampler's name; list all of them for ``help``."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, value: Any, option: Any = None
    ) -> None:
        if value == "help":
            from ldm.sampling.samplers import sampler_names

            print("\n".join(sampler_names()))
            parser.exit()
        setattr(namespace, self.dest, value.removeprefix("sample_"))


def whole_number(low: int, high: int) -> Any:
    """Return an argparse type for whole numbers of `low` to `high`."""

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


def instruction_text(text: str) -> str:
    """Check that an instruction can be encoded and stored."""
    if len(text) > LONGEST_INSTRUCTION:
        raise argparse.ArgumentTypeError(
            f"expected at most {LONGEST_INSTRUCTION} characters, got {len(text)}"
        )
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of the command line that are no UTF-8
        raise argparse.ArgumentTypeError(f"expected UTF-8 text, got {text!r}") from None
    return text


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all options, with defaults and units in its help."""
    parser = _Parser(
        description="Edit a picture by a written instruction (InstructPix2Pix).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_picture_options(parser.add_argument_group("picture"))
    _add_sampling_options(parser.add_argument_group("guidance and sampling"))
    _add_model_options(parser.add_argument_group("model"))
    return parser


def _add_picture_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--input", required=True, metavar="FILE", help="picture to edit, any format Pillow reads"
    )
    group.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="where to save the result; its suffix sets the format: png, jpg, webp, tiff and others",
    )
    group.add_argument(
        "--edit",
        required=True,
        metavar="TEXT",
        type=instruction_text,
        help='instruction, such as "turn him into a cyborg"; an empty one only resizes the picture',
    )
    group.add_argument(
        "--resolution",
        type=whole_number(64, 8192),
        metavar="PIXELS",
        help="about the longer side of the result; both sides become multiples of 64 "
        "(default: the model's own, 512 for the published one)",
    )


def _add_sampling_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--cfg-text",
        type=finite_number,
        metavar="SCALE",
        help="how strongly to follow the instruction, no unit (default: the model's own, 7.5 for the "
        "published one)",
    )
    group.add_argument(
        "--cfg-image",
        type=finite_number,
        metavar="SCALE",
        help="how strongly to stay with the input picture, no unit (default: the model's own, 1.5 for the "
        "published one)",
    )
    group.add_argument(
        "--steps",
        type=whole_number(1, 10000),
        help="denoising steps (default: the model's own, 100 for the published one)",
    )
    group.add_argument(
        "--seed",
        type=whole_number(-(2**63), 2**64 - 1),
        help="the same seed gives the same picture (default: random in 0..100000)",
    )
    group.add_argument(
        "--sampler",
        action=_SamplerAction,
        default="euler_ancestral",
        metavar="NAME",
        help='any sampler of k-diffusion; "--sampler help" lists them (default: %(default)s)',
    )
    group.add_argument(
        "--schedule",
        choices=("model", "karras", "exponential"),
        default="model",
        help="how the noise falls: the model's own way or one of k-diffusion's (default: %(default)s)",
    )


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--config", metavar="FILE", help="configuration of the model (default: configs/generate.yaml)"
    )
    group.add_argument(
        "--ckpt",
        metavar="FILE",
        help="weights, .ckpt or .safetensors (default: checkpoints/instruct-pix2pix-00-22000.ckpt; "
        "without that file, the small embedded model)",
    )
    group.add_argument(
        "--vae-ckpt", metavar="FILE", help="autoencoder weights to use instead (default: none)"
    )
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="where to compute; auto takes a GPU if there is one (default: %(default)s)",
    )
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "fp16", "bf16"),
        default="auto",
        help="number format of the model; auto is fp16 on CUDA, else fp32 (default: %(default)s)",
    )


def main() -> None:
    """Edit one picture as the command line says."""
    started = time.perf_counter()
    args = make_parser().parse_args()
    seed = random.randint(0, 100_000) if args.seed is None else args.seed
    picture = images.open_image(args.input)
    images.prepare_output(args.output)

    from tqdm import tqdm

    from ldm.editor import ImageEditor, check_sampling, find_model, read_defaults

    files = find_model(args.config, args.ckpt)
    if files.notice:
        print(files.notice, file=sys.stderr)
    chosen = {name: getattr(args, name) for name in ("resolution", "steps", "cfg_text", "cfg_image")}
    chosen = asdict(read_defaults(files.config)) | {k: v for k, v in chosen.items() if v is not None}
    sampling = {"seed": seed, "sampler": args.sampler, "schedule": args.schedule, **chosen}
    check_sampling(args.sampler, chosen["steps"])
    editor = ImageEditor.load(files.config, files.ckpt, args.vae_ckpt, args.device, args.precision)
    settings = {
        **sampling,
        "edit": args.edit,
        "input": Path(args.input).name,
        "ckpt": files.ckpt.name,
        "vae_ckpt": args.vae_ckpt and Path(args.vae_ckpt).name,
        "device": editor.device.type,
        "precision": editor.precision,
    }
    print("settings:", json.dumps(settings))  # ASCII, which every terminal can show
    with tqdm(total=chosen["steps"], desc="edit", unit="step", disable=not args.edit.strip()) as bar:
        edited = editor.edit(picture, args.edit, callback=lambda state: bar.update(), **sampling)
    images.save_image(edited, args.output, settings)
    width, height = edited.size
    print(f"wrote {args.output!a}: {width}x{height} pixels, {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    run_main(main)
