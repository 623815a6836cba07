#!/usr/bin/env bash
# What training and the making of a data set start from; see --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/fetch.sh

show_help() {
    cat <<'END'
usage: bash scripts/download_pretrained_sd.sh [--ckpt]

Download Stable Diffusion 1.5 (4.3 GB) and a better autoencoder for it (0.3 GB), which training and
generate_img_dataset.py start from, to stable_diffusion/models/ldm/stable-diffusion-v1: the files
v1-5-pruned-emaonly.safetensors and vae-ft-mse-840000-ema-pruned.safetensors.

  --ckpt      the pickled forms, .ckpt, for programs that read no other
  -h, --help  this text
END
    environment_help
}

suffix=safetensors
for word in "$@"; do
    case $word in
        --ckpt) suffix=ckpt ;;
        -h | --help) show_help && exit ;;
        *) misused "--ckpt or nothing" "$word" ;;
    esac
done
need curl
end_together

# fetch_published REPOSITORY NAME BYTES SHA256
fetch_published() {
    fetch "$folder/$2" "$3" "$4" "$HUB_HOSTS" "$1/resolve/main/$2" || exit 1
}

folder=stable_diffusion/models/ldm/stable-diffusion-v1
sd=stable-diffusion-v1-5/stable-diffusion-v1-5
vae=stabilityai/sd-vae-ft-mse-original
if [ "$suffix" = safetensors ]; then
    fetch_published $sd v1-5-pruned-emaonly.safetensors 4265146304 \
        6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa
    fetch_published $vae vae-ft-mse-840000-ema-pruned.safetensors 334641190 \
        735e4c3a447a3255760d7f86845f09f937809baa529c17370d83e4c3758f3c75
else
    fetch_published $sd v1-5-pruned-emaonly.ckpt 4265380512 \
        cc6cb27103417325ff94f52b7a5d2dde45a7515b25c255d8e396c90014281516
    fetch_published $vae vae-ft-mse-840000-ema-pruned.ckpt 334695179 \
        c6a580b13a5bc05a5e16e4dbb80608ff2ec251a162311590c1f34c013d7f3dab
fi
