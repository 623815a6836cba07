"""Encode a dataset once, so that training runs neither the autoencoder nor a frozen text encoder.

python dataset_creation/cache_latents.py DATASET_DIR --config CONFIG --ckpt WEIGHTS

A stopped run goes on with the same command. The text encoder counts as frozen when CONFIG has a whole model
without ``cond_stage_trainable: true``; then WEIGHTS must be those of a whole model too.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn

from ldm.checkpoint import load_autoencoder, read_config
from ldm.training.cache_writer import PRECISIONS, CacheWriter
from ldm.util import UserError, instantiate_from_config, run_main
from ldm.weights_file import open_weights

DEVICES = ("cpu", "cuda", "mps")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("dataset", help="dataset folder with seeds.json")
    add("--config", required=True, help="YAML of the autoencoder or of a model that has it")
    add("--ckpt", required=True, help="weights of the autoencoder or of a whole model")
    add("--vae-ckpt", help="weights of the autoencoder, in place of those in --ckpt")
    add("--resolution", type=int, help="resize pictures to a square of this side (default: as they are)")
    add("--precision", choices=PRECISIONS, default="fp16", help="of what is stored (default: %(default)s)")
    add("--batch-size", type=int, default=64, help="pictures at once (default: %(default)s)")
    add("--shard-size", type=int, default=1024, help="pictures or texts a file (default: %(default)s)")
    add("--device", choices=DEVICES, help="what computes (default: cuda where there is a GPU, else cpu)")
    return parser.parse_args()


def load_text_encoder(config: Any, ckpt: str) -> nn.Module:
    """Build the text encoder of a model's config with its weights in the file of a whole model.

    Raises:
        UserError: the file does not hold one, or one of other sizes.
    """
    encoder = instantiate_from_config(config).eval().requires_grad_(False)
    weights = open_weights(ckpt)
    for name, target in encoder.state_dict().items():
        stored = f"cond_stage_model.{name}"
        if stored not in weights.shapes:
            stored = stored.replace(".text_model.", ".", 1)  # transformers 5 dropped that level
        if weights.shapes.get(stored) != tuple(target.shape):
            raise UserError(
                "the config's text encoder is frozen, so its outputs are stored too: expected a whole model, "
                f"got {ckpt} without cond_stage_model.{name} of shape {list(target.shape)}"
            )
        target.copy_(weights.read(stored))
    return encoder


def main() -> None:
    args = parse_args()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not getattr(torch, device).is_available():
        raise UserError(f"device {device!r}: torch finds no such GPU here; expected cpu")
    config = read_config(args.config).model
    text_encoder = None
    if "cond_stage_config" in config.params and not config.params.get("cond_stage_trainable", False):
        text_encoder = load_text_encoder(config.params.cond_stage_config, args.ckpt).to(device)
    autoencoder = instantiate_from_config(config.params.get("first_stage_config", config)).eval()
    load_autoencoder(autoencoder, args.vae_ckpt or args.ckpt)
    writer = CacheWriter(
        autoencoder.to(device),
        text_encoder,
        args.resolution,
        args.precision,
        args.batch_size,
        args.shard_size,
    )
    print(writer.write(args.dataset))


if __name__ == "__main__":
    run_main(main)
