#!/usr/bin/env bash
# Fetch the published InstructPix2Pix weights (7.7 GB) into checkpoints/; the same call again goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/fetch.sh
fetch checkpoints/instruct-pix2pix-00-22000.safetensors \
    fbc31a67aab29ad38eef622a252d3fa4b0a81d4a4dc65da416cf45b13aa67688 \
    https://huggingface.co/timbrooks/instruct-pix2pix/resolve/main/instruct-pix2pix-00-22000.safetensors
