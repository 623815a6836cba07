"""The web app as a Space of the Hugging Face hub: a repository with copies of these, made from the root by

    git clone https://huggingface.co/spaces/USER/NAME ../space
    git archive HEAD edit_app.py LICENSE NOTICE checkpoints configs imgs stable_diffusion | tar -x -C ../space
    cp hosting/requirements.txt hosting/space/app.py hosting/space/README.md ../space
    cd ../space && git lfs track "*.safetensors" "*.jpg" "*.png" && git add -A && git commit -m Copy
    git push

It shows the embedded model, with the safety checker on. For photographs give the Space a GPU and add to the
head of its README.md, so that the hub puts the published weights where `arguments` finds them:

    preload_from_hub:
      - timbrooks/instruct-pix2pix instruct-pix2pix-00-22000.safetensors
"""

from __future__ import annotations

import os
import site
from pathlib import Path

PUBLISHED = ("timbrooks/instruct-pix2pix", "instruct-pix2pix-00-22000.safetensors")


def arguments() -> list[str]:
    """The command line of edit_app.py on a Space."""
    from huggingface_hub import try_to_load_from_cache

    weights = try_to_load_from_cache(*PUBLISHED)
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")  # which a Space sets
    chosen = ["--ckpt", weights] if isinstance(weights, str) else []
    return ["--server-name", "0.0.0.0", "--server-port", port, "--safety-checker", *chosen]


def main() -> None:
    """Serve the page until the Space stops."""
    # A Space installs requirements.txt before the copies are there, so the package `ldm` cannot be in it.
    site.addsitedir(str(Path(__file__).resolve().parent / "stable_diffusion"))
    import edit_app

    edit_app.main(arguments())


if __name__ == "__main__":
    main()
