#!/usr/bin/env bash
# The published InstructPix2Pix weights; see --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/fetch.sh

show_help() {
    cat <<'END'
usage: bash scripts/download_checkpoints.sh [--ckpt]

Download the published InstructPix2Pix weights (7.7 GB) to checkpoints/instruct-pix2pix-00-22000.safetensors.

  --ckpt      the pickled form, instruct-pix2pix-00-22000.ckpt, for programs that read no other
  -h, --help  this text
END
    environment_help
}

bytes=7703416451
sha256=fbc31a67aab29ad38eef622a252d3fa4b0a81d4a4dc65da416cf45b13aa67688
suffix=safetensors
for word in "$@"; do
    case $word in
        --ckpt)
            bytes=7703927910
            sha256=ffd280ddcfc8234e4d28b93641cb83169cebcb4d70998df9ee2eabb4d705374a
            suffix=ckpt
            ;;
        -h | --help) show_help && exit ;;
        *) misused "--ckpt or nothing" "$word" ;;
    esac
done
need curl
end_together
name=instruct-pix2pix-00-22000.$suffix
fetch "checkpoints/$name" "$bytes" "$sha256" \
    "$HUB_HOSTS" "timbrooks/instruct-pix2pix/resolve/main/$name" || exit 1
