"""Triples of caption, instruction and edited caption from a language model (Brooks et al. 2022, section 3.1).

    python dataset_creation/generate_txt_dataset.py --openai-model MODEL --captions FILE
    python dataset_creation/generate_txt_dataset.py --merge triples.jsonl PARTITION_FILE...

A stopped run goes on with the same command. The triples are JSON lines with caption, edit, output and url, as
generate_img_dataset.py reads them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dataset_creation.cluster.shares import add_share_options, check_share_options
from dataset_creation.text.captions import LOST, SUBSTITUTES
from dataset_creation.text.language_model import add_model_options, model_arguments
from dataset_creation.text.merge import merge
from dataset_creation.text.moderation import MODES
from dataset_creation.text.run import PATIENCE, Report, RunOptions, run
from ldm.arguments import Parser, add_settings
from ldm.util import UserError, run_main


def make_parser() -> argparse.ArgumentParser:
    parser = Parser.of(__doc__)
    add_model_options(parser.add_argument_group("language model"))
    _add_captions(parser.add_argument_group("captions"))
    _add_work(parser.add_argument_group("work"))
    _add_cost(parser.add_argument_group("cost"))
    return parser


def _add_captions(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--captions",
        metavar="FILE",
        help="a .txt, .jsonl, .csv or .parquet file, or a dataset on the hub, as owner/name (default: none; "
        "needed but for --merge)",
    )
    add(
        "--caption-column",
        metavar="NAME",
        help="of the captions (default: caption, TEXT, text, input or prompt)",
    )
    add("--url-column", metavar="NAME", help="of the pictures' addresses (default: url or URL, if there)")
    add_settings(
        group,
        ("--num-samples", 10_000, "captions to draw, of all partitions together", "N"),
        ("--seed", 0, "of the draw"),
    )
    add_share_options(group, "--num-partitions", "--partitions", what="what is drawn")


def _add_work(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--output",
        metavar="FILE",
        help="file of the triples (default: data/triples-PARTITION-of-PARTITIONS.jsonl)",
    )
    add(
        "--moderation", choices=MODES, default="api", help="what looks for unfit texts (default: %(default)s)"
    )
    add(
        "--wordlist",
        metavar="FILE",
        help="words for --moderation wordlist, one a line (default: English ones)",
    )
    add_settings(group, ("--concurrency", 16, "requests at once", "N"))
    add(
        "--give-up-after",
        type=float,
        default=PATIENCE,
        metavar="SECONDS",
        help="end when the server has not answered for so long (default: %(default).0f)",
    )
    add(
        "--ray",
        metavar="ADDRESS",
        help="run all partitions as tasks on this Ray cluster, auto for the one here (default: none, here)",
    )
    add(
        "--merge",
        nargs="+",
        metavar="FILE",
        help="in place of all else join files of triples: the new file, then the partitions' (default: none)",
    )


def _add_cost(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    for kind, what in (("input", "prompts"), ("output", "answers")):
        add(
            f"--price-{kind}",
            type=float,
            metavar="USD",
            help=f"of a million tokens of {what}, to show what the run costs (default: none)",
        )


def options_of(args: argparse.Namespace) -> RunOptions:
    """What the command line asks for.

    Raises:
        UserError: values that make no sense, or no captions.
    """
    if not args.captions:
        raise UserError(
            f"expected --captions with a file or a hub dataset: {LOST}, which the paper used, is gone "
            f"from the hub; in its place try {SUBSTITUTES}"
        )
    if min(args.num_samples, args.num_partitions, args.concurrency) < 1:
        raise UserError("--num-samples, --num-partitions and --concurrency: expected at least 1")
    if args.seed < 0:
        raise UserError(f"--seed: expected at least 0, got {args.seed}")
    if not args.give_up_after >= 0:
        raise UserError(f"--give-up-after: expected at least 0 seconds, got {args.give_up_after}")
    check_share_options(args.num_partitions, args.partition, "partitions")
    if (args.price_input is None) != (args.price_output is None):
        raise UserError("expected both --price-input and --price-output, or neither")
    if args.price_input is not None and not min(args.price_input, args.price_output) >= 0:
        raise UserError("--price-input and --price-output: expected at least 0")
    prices = None if args.price_input is None else (args.price_input, args.price_output)
    same: tuple[str, ...] = (
        "captions",
        "caption_column",
        "url_column",
        "num_samples",
        "seed",
        "num_partitions",
        "partition",
    )
    same += ("moderation", "wordlist", "concurrency")
    return RunOptions(
        output=args.output or f"data/triples-{args.partition}-of-{args.num_partitions}.jsonl",
        model=model_arguments(args, args.seed),
        patience=args.give_up_after,
        prices=prices,
        **{name: getattr(args, name) for name in same},
    )


def main() -> None:
    args = make_parser().parse_args()
    if args.merge:
        print(merge(Path(args.merge[0]), [Path(name) for name in args.merge[1:]]))
        return
    reports: list[Report] = []
    if args.ray:
        from dataset_creation.cluster.partitions import run_partitions

        if args.output or args.partition:
            raise UserError(
                "--ray runs all partitions, each into its own file: expected no --output, --partition"
            )
        reports = run_partitions(args.ray, options_of(args))
    else:
        reports.append(run(options_of(args)))
        print(reports[0])
    unanswered = sum(report.unanswered for report in reports)
    if unanswered:
        trouble = next(report.trouble for report in reports if report.trouble)
        print(f"{unanswered} captions got no answer ({trouble}): run the same command again", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
