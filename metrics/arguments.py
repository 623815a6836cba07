"""Options that several programs share which rate pictures. Nothing here takes time to import."""

from __future__ import annotations

import argparse


def add_clip_options(group: argparse._ArgumentGroup, model: str) -> None:
    """Options for `metrics.clip_similarity.ClipSimilarity`; `model` is the default one."""
    add = group.add_argument
    add(
        "--clip-model",
        default=model,
        metavar="NAME",
        help="a model of open_clip, or a JSON file that describes one (default: %(default)s)",
    )
    add(
        "--clip-pretrained",
        default="openai",
        metavar="TAG",
        help="which of open_clip's weights for it (default: %(default)s)",
    )
    add("--clip-weights", metavar="FILE", help="a file of weights in their place (default: none, download)")
