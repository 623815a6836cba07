#!/usr/bin/env bash
# Fetch Stable Diffusion 1.5 (4.3 GB) and the better autoencoder for it (0.3 GB), which training and
# generate_img_dataset.py start from; the same call again goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/fetch.sh
folder=stable_diffusion/models/ldm/stable-diffusion-v1
fetch "$folder/v1-5-pruned-emaonly.ckpt" \
    cc6cb27103417325ff94f52b7a5d2dde45a7515b25c255d8e396c90014281516 \
    https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5/resolve/main/v1-5-pruned-emaonly.ckpt
fetch "$folder/vae-ft-mse-840000-ema-pruned.ckpt" \
    c6a580b13a5bc05a5e16e4dbb80608ff2ec251a162311590c1f34c013d7f3dab \
    https://huggingface.co/stabilityai/sd-vae-ft-mse-original/resolve/main/vae-ft-mse-840000-ema-pruned.ckpt
