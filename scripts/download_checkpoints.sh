#!/usr/bin/env bash
# Fetch the published InstructPix2Pix weights (7.7 GB) into checkpoints/; the same call again goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../checkpoints"
name=instruct-pix2pix-00-22000.safetensors
sha256=fbc31a67aab29ad38eef622a252d3fa4b0a81d4a4dc65da416cf45b13aa67688
if [ -f "$name" ]; then
    echo "checkpoints/$name is there already"
    exit
fi
curl --fail --location --continue-at - --output "$name.part" \
    "https://huggingface.co/timbrooks/instruct-pix2pix/resolve/main/$name"
if ! echo "$sha256  $name.part" | sha256sum --check --status; then
    rm "$name.part"
    echo "error: expected SHA-256 $sha256, got another file; it was removed, please try again" >&2
    exit 2
fi
mv "$name.part" "$name"
