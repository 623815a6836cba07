"""Encode a dataset once, so that training on it needs no autoencoder.

python dataset_creation/cache_latents.py DATASET_DIR --config CONFIG --ckpt AUTOENCODER
"""

from __future__ import annotations

import argparse

from ldm.checkpoint import load_autoencoder, read_config
from ldm.training.latent_cache import write_latent_cache
from ldm.util import instantiate_from_config, run_main


def main() -> None:
    parser = argparse.ArgumentParser(description="Store the autoencoder's posterior of every picture.")
    parser.add_argument("dataset", help="dataset folder with seeds.json")
    parser.add_argument("--config", required=True, help="YAML of the autoencoder or of a model that has it")
    parser.add_argument("--ckpt", required=True, help="weights of the autoencoder")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures at once (default: %(default)s)")
    args = parser.parse_args()
    config = read_config(args.config).model
    autoencoder = instantiate_from_config(config.params.get("first_stage_config", config)).eval()
    load_autoencoder(autoencoder, args.ckpt)
    print(write_latent_cache(args.dataset, autoencoder, args.batch_size))


if __name__ == "__main__":
    run_main(main)
