"""Turn a model's weights into another format: .safetensors, .ckpt, or a diffusers folder, in any precision.

    python scripts/convert_checkpoint.py --config CONFIG --ckpt logs/RUN/checkpoints/last.ckpt --output FILE
    python scripts/convert_checkpoint.py --config configs/generate.yaml --ckpt timbrooks/instruct-pix2pix \\
        --output instruct-pix2pix.ckpt
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.arguments import Parser, config_file
from ldm.util import UserError, run_main


def output_path(text: str) -> Path:
    """Return what to write.

    Raises:
        UserError: its name does not say in which format.
    """
    path = Path(text)
    if path.suffix not in ("", ".safetensors", ".ckpt") and not text.endswith("/"):
        raise UserError(
            "--output: expected a name that ends in .safetensors or .ckpt, or a folder's without a suffix or "
            f"with / at its end, got {text!r}"
        )
    return path


def make_parser() -> argparse.ArgumentParser:
    parser = Parser.of(__doc__)
    add = parser.add_argument_group("files").add_argument
    add("--config", required=True, type=config_file, metavar="FILE", help="YAML of the model")
    text = "weights to read: .ckpt, .safetensors, a diffusers folder, or its name on the hub"
    add("--ckpt", required=True, metavar="FILE", help=text)
    add("--vae-ckpt", metavar="FILE", help="autoencoder weights to use instead (default: those in --ckpt)")
    text = "what to write: a .safetensors or .ckpt file, or a diffusers folder, a name without a suffix"
    add("--output", required=True, metavar="FILE", help=text)
    group = parser.add_argument_group("contents")
    precisions = ("fp32", "fp16", "bf16")
    group.add_argument("--dtype", choices=precisions, default="fp16", help="precision (default: %(default)s)")
    add = group.add_mutually_exclusive_group().add_argument
    text = "of a UNet that is there twice the plain weights (default: their moving average)"
    add("--no-ema", dest="keep", action="store_const", const="plain", help=text)
    text = "both copies, and everything else that a training goes on from (default: the moving average)"
    add("--whole", dest="keep", action="store_const", const="both", help=text)
    parser.set_defaults(keep="ema")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    output = output_path(args.output)
    from ldm.device import DTYPES
    from ldm.weights.converting import convert_weights  # late: torch takes seconds

    convert_weights(
        args.config, args.ckpt, output, vae_ckpt=args.vae_ckpt, dtype=DTYPES[args.dtype], keep=args.keep
    )
    files = output.rglob("*") if output.is_dir() else [output]
    print(f"wrote {args.output}: {sum(file.stat().st_size for file in files if file.is_file()) / 1e6:.1f} MB")


if __name__ == "__main__":
    run_main(main)
