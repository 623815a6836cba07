"""Turn a training's checkpoint into a file for inference: EMA weights only, safetensors, any precision.

python scripts/convert_checkpoint.py --config CONFIG --ckpt logs/RUN/checkpoints/last.ckpt --output FILE
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.checkpoint import load_model, save_safetensors
from ldm.device import DTYPES
from ldm.util import UserError, run_main


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint's inference weights as safetensors.")
    parser.add_argument("--config", required=True, help="YAML of the model")
    parser.add_argument("--ckpt", required=True, help="checkpoint to read, .ckpt or .safetensors")
    parser.add_argument("--vae-ckpt", help="autoencoder weights to use instead (default: those of --ckpt)")
    parser.add_argument("--output", required=True, help="file to write, .safetensors")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16", help="precision (default: %(default)s)")
    args = parser.parse_args()
    if Path(args.output).suffix != ".safetensors":
        raise UserError(f"--output: expected a name that ends in .safetensors, got {args.output!r}")
    model = load_model(args.config, args.ckpt, vae_ckpt=args.vae_ckpt)
    save_safetensors(model.state_dict(), args.output, dtype=DTYPES[args.dtype])
    print(f"wrote {args.output}: {Path(args.output).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_main(main)
