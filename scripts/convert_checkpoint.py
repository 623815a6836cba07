"""Turn a model's weights into another format: .safetensors, .ckpt, or a diffusers folder, in any precision.

python scripts/convert_checkpoint.py --config CONFIG --ckpt logs/RUN/checkpoints/last.ckpt --output FILE
python scripts/convert_checkpoint.py --config configs/generate.yaml --ckpt timbrooks/instruct-pix2pix \\
    --output instruct-pix2pix.ckpt
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.checkpoint import convert_weights
from ldm.device import DTYPES
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a model's weights in another format.")
    parser.add_argument("--config", required=True, help="YAML of the model")
    parser.add_argument(
        "--ckpt",
        required=True,
        help="weights to read: .ckpt, .safetensors, a diffusers folder, or the name of one on the hub",
    )
    parser.add_argument("--vae-ckpt", help="autoencoder weights to use instead (default: those of --ckpt)")
    parser.add_argument(
        "--output",
        required=True,
        help="what to write: a .safetensors or .ckpt file, or a diffusers folder, a name without a suffix",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="fp16", help="precision (default: %(default)s)")
    copies = parser.add_mutually_exclusive_group()
    copies.add_argument(
        "--no-ema",
        dest="keep",
        action="store_const",
        const="plain",
        help="of a UNet that is there twice the plain weights (default: their moving average)",
    )
    copies.add_argument(
        "--whole",
        dest="keep",
        action="store_const",
        const="both",
        help="both copies, and everything else that a training goes on from (default: the moving average)",
    )
    parser.set_defaults(keep="ema")
    args = parser.parse_args()
    output = output_path(args.output)
    convert_weights(
        args.config, args.ckpt, output, vae_ckpt=args.vae_ckpt, dtype=DTYPES[args.dtype], keep=args.keep
    )
    files = output.rglob("*") if output.is_dir() else [output]
    print(f"wrote {args.output}: {sum(file.stat().st_size for file in files if file.is_file()) / 1e6:.1f} MB")


if __name__ == "__main__":
    run_main(main)
