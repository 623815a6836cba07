"""Plot runs of edits: how far they change as was asked against how much they keep (figures 8 and 10 of Brooks
et al. 2022).

    python metrics/plot_metrics.py RUN [RUN ...] --labels "InstructPix2Pix" "SDEdit" --output plot

A RUN is a folder of compute_metrics.py, the file *.samples.jsonl in it, or a file of averages in the format
of the published program. Writes OUTPUT.pdf and OUTPUT.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ldm.arguments import Parser
from ldm.util import UserError, differences, run_main
from metrics.curve.curves import read_curves, read_run
from metrics.curve.figure import draw

COMPARABLE = ("clip", "pixels", "dataset", "split")  # settings that make similarities comparable


def files_of(output: str) -> list[Path]:
    """The PDF and the PNG that an output's name, with or without such a suffix, stands for."""
    return [Path(output.removesuffix(".pdf").removesuffix(".png") + suffix) for suffix in (".pdf", ".png")]


def make_parser() -> argparse.ArgumentParser:
    parser = Parser.of(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folder or file of a run")
    add("--labels", nargs="+", metavar="LABEL", help="one of each RUN (default: its name)")
    add("--output", default="plot", metavar="NAME", help="of the pictures, no suffix (default: %(default)s)")
    return parser


def warn_of_differences(runs: Sequence[Path]) -> None:
    """Say on stderr in which of `COMPARABLE` runs differ from the first; averages do not tell."""
    settings = [{name: read[name] for name in COMPARABLE if name in read} for read, _ in map(read_run, runs)]
    first = next(filter(None, settings), {})
    for run, those in zip(runs, settings, strict=True):
        if those and those != first:
            print(f"warning: {run} does not compare: {differences(first, those)}", file=sys.stderr)


def main() -> None:
    args = make_parser().parse_args()
    labels = args.labels or [None] * len(args.runs)
    if len(labels) != len(args.runs):
        raise UserError(f"--labels: expected {len(args.runs)}, one for each run, got {len(labels)}")
    curves = [
        curve for run, label in zip(args.runs, labels, strict=True) for curve in read_curves(run, label)
    ]
    warn_of_differences(args.runs)
    files = files_of(args.output)
    draw(curves, files)
    print(f"{len(curves)} curves: {', '.join(map(str, files))}")


if __name__ == "__main__":
    run_main(main)
