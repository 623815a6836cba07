"""The command lines of `scripts/download_*.sh`; what they fetch is in `published.py`."""

from __future__ import annotations

import argparse
import os
import re
import sys

from ldm.arguments import Parser, whole_number
from ldm.util import UserError, one_line, run_main

WITH_PARQUET = "clip-filtered-dataset"
ABOUT = {
    "checkpoints": """\
Download the published InstructPix2Pix weights (7.7 GB) to checkpoints/:
instruct-pix2pix-00-22000.safetensors.""",
    "pretrained-sd": """\
Download Stable Diffusion 1.5 (4.3 GB) and a better autoencoder for it (0.3 GB), which training and
generate_img_dataset.py start from, to stable_diffusion/models/ldm/stable-diffusion-v1: the files
v1-5-pruned-emaonly.safetensors and vae-ft-mse-840000-ema-pruned.safetensors.""",
    "data": """\
Download the prompts, gpt-generated-prompts.jsonl and human-written-prompts.jsonl, to data/, and with NAME a
data set of image pairs to data/NAME: clip-filtered-dataset (436 GB) or random-sample-dataset (727 GB). Its
archives are unzipped, several at a time, and removed; data/NAME/.unzipped lists those that are done.
seeds.json comes last, so that programs see a data set only when it is whole. No checksums were published for
these files: archives are checked while they are unzipped, the rest for being JSON.""",
}
NOTES = """\
A file comes in parts: FILE.part is on its way, FILE is complete and checked. The same command again goes on.
What the hub's cache holds already is linked or copied from there.
Exit code: 0 all is there, 1 something failed, 2 wrong usage.

environment:
  HF_ENDPOINT    the hub, or a copy of it such as https://hf-mirror.com (default: https://huggingface.co)
  HF_HOME        the hub's folder on this machine, with its cache (default: ~/.cache/huggingface)
  DATA_HOST      where the published data are (default: https://instruct-pix2pix.eecs.berkeley.edu)
  STALL_SECONDS  a connection that sends nothing for so long is given up (default: 60)
  RETRY_SECONDS  pause before another try (default: 5)
  PYTHON         the Python that runs this (default: .venv/bin/python, or python3 where there is none)"""


def dataset_name(text: str) -> str:
    """An argparse type for the name of a folder on the host of the data."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", text):
        raise argparse.ArgumentTypeError(f"expected a name such as {WITH_PARQUET}, got {text!r}")
    return text


def parse() -> argparse.Namespace:
    parser = Parser(prog="python -m ldm.downloads", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    form = argparse.RawDescriptionHelpFormatter
    for name, about in ABOUT.items():
        prog = f"bash scripts/download_{name.replace('-', '_')}.sh"
        command = commands.add_parser(name, prog=prog, description=about, epilog=NOTES, formatter_class=form)
        if name != "data":
            command.add_argument(
                "--ckpt",
                dest="suffix",
                action="store_const",
                const=".ckpt",
                default=".safetensors",
                help="the pickled form, .ckpt, for programs that read no other (default: .safetensors)",
            )
    add = command.add_argument  # of data, the last one
    add(
        "name",
        nargs="?",
        type=dataset_name,
        metavar="NAME",
        help="the data set of image pairs (default: the prompts alone)",
    )
    add(
        "--parquet",
        action="store_true",
        help=f"the hub's copy of {WITH_PARQUET} as parquet, checked by the hub's SHA-256, to "
        "data/instructpix2pix-clip-filtered; no prompts, and nothing from DATA_HOST (default: off)",
    )
    add(
        "--jobs",
        type=whole_number(1, 1024),
        default=os.cpu_count() or 1,
        metavar="N",
        help="archives that are unzipped at a time (default: one for each processor)",
    )
    args = parser.parse_args()
    if args.command == "data" and args.parquet and args.name not in (None, WITH_PARQUET):
        raise UserError(f"--parquet: expected {WITH_PARQUET}, which alone has such a copy, got {args.name}")
    return args


def main() -> None:
    args = parse()
    try:
        from ldm import published
        from ldm.transfer import Failed
    except ModuleNotFoundError as error:
        sys.exit(f"error: expected the package {error.name}: {sys.executable} -m pip install huggingface_hub")
    try:
        if args.command == "checkpoints":
            published.fetch_weights(published.CHECKPOINTS, args.suffix)
        elif args.command == "pretrained-sd":
            published.fetch_weights(published.PRETRAINED_SD, args.suffix)
        elif args.parquet:
            published.fetch_parquet()
        else:
            published.fetch_data(args.name, args.jobs)
    except Failed as error:
        sys.exit(f"error: {error}; the same command again goes on")
    except OSError as error:
        sys.exit(f"error: {one_line(error)}")


if __name__ == "__main__":
    run_main(main)
