"""Encode a dataset once, so that training runs neither the autoencoder nor a frozen text encoder.

    python dataset_creation/cache_latents.py DATASET_DIR --config configs/train.yaml --ckpt WEIGHTS

A stopped run goes on with the same command. The text encoder counts as frozen when the config has a whole
model without cond_stage_trainable: true; then --ckpt must be the weights of a whole model too.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ldm.arguments import Parser, add_device_option, add_settings
from ldm.util import UserError, instantiate_from_config, run_main

if TYPE_CHECKING:
    from torch import nn


def make_parser() -> argparse.ArgumentParser:
    parser = Parser.of(__doc__)
    add = parser.add_argument_group("files").add_argument
    add("dataset", metavar="DATASET_DIR", help="folder with seeds.json; the latents come into it")
    add("--config", required=True, metavar="FILE", help="YAML of the autoencoder or of a model that has it")
    add(
        "--ckpt",
        required=True,
        metavar="FILE",
        help="weights of the autoencoder or of a whole model: .ckpt, .safetensors, a diffusers folder, or "
        "its name on the hub",
    )
    add("--vae-ckpt", metavar="FILE", help="autoencoder weights to use instead (default: those in --ckpt)")
    encoding = parser.add_argument_group("encoding")
    add = encoding.add_argument
    add(
        "--resolution",
        type=int,
        metavar="PIXELS",
        help="resize pictures to a square of this side (default: none, as they are)",
    )
    add(
        "--precision",
        choices=("fp16", "fp32"),
        default="fp16",
        help="of what is stored (default: %(default)s)",
    )
    add_settings(
        encoding,
        ("--batch-size", 64, "pictures at once", "N"),
        ("--shard-size", 1024, "pictures or texts in a file", "N"),
    )
    add_device_option(encoding)
    return parser


def load_text_encoder(config: Any, ckpt: str) -> nn.Module:
    """Build the text encoder of a model's config with its weights in the file of a whole model.

    Raises:
        UserError: the file does not hold one, or one of other sizes.
    """
    from ldm.weights.opening import open_weights

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
    args = make_parser().parse_args()
    from ldm.device import choose_device
    from ldm.training.cache_writer import CacheWriter
    from ldm.util import read_config  # late: torch takes seconds
    from ldm.weights.loading import load_autoencoder

    device = choose_device(args.device)
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
