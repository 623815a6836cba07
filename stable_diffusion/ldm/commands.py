"""The commands of `ip2p`, which an installed wheel gives in place of the programs of the checkout."""

from __future__ import annotations

import os
import re

# Word → program, as it lies in the checkout and in the wheel, and what it does.
COMMANDS = {
    "edit": ("edit_cli.py", "edit a picture by written instructions"),
    "app": ("edit_app.py", "serve the page on which pictures are edited"),
    "train": ("main.py", "train the model that YAML files describe"),
    "convert": ("scripts/convert_checkpoint.py", "move weights between formats"),
    "triples": (
        "dataset_creation/generate_txt_dataset.py",
        "write captions, instructions and edited captions",
    ),
    "pairs": ("dataset_creation/generate_img_dataset.py", "make pairs of pictures from them"),
    "prepare": ("dataset_creation/prepare_dataset.py", "list the pairs of a dataset for training"),
    "validate": ("dataset_creation/validate_dataset.py", "say whether a dataset is whole"),
    "cache": ("dataset_creation/cache_latents.py", "encode a dataset once, for faster training"),
    "metrics": ("metrics/compute_metrics.py", "measure a model over guidance scales"),
    "plot": ("metrics/plot_metrics.py", "draw the curves of such measurements"),
    "benchmark": ("metrics/compute_benchmark.py", "measure a model on MagicBrush or Emu Edit"),
    "prompts": ("prompt_app.py", "serve the page on which a language model's instructions are tried"),
}
# In the environment of a program that `ip2p` has started: "ip2p edit" and the like.
STARTED_AS = "IP2P_COMMAND"
INSTEAD = {
    **{f"python {program}": f"ip2p {word}" for word, (program, _) in COMMANDS.items()},
    "bash scripts/download_checkpoints.sh": (
        "hf download timbrooks/instruct-pix2pix instruct-pix2pix-00-22000.safetensors"
    ),
    "pip install -e '.[": "pip install 'instruct-pix2pix[",
}


def as_typed(text: str) -> str:
    """A text with command lines of the checkout, or in a program that `ip2p` has started with its own."""
    if STARTED_AS in os.environ:
        for checkout, installed in INSTEAD.items():
            words = r"\s+".join(map(re.escape, checkout.split()))  # which a help may have put on two lines
            text = re.sub(words, installed.replace("\\", r"\\"), text)
    return text
