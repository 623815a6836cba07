"""Image pairs from text triples: Prompt-to-Prompt, filtered by CLIP (Brooks et al. 2022, section 3.1).

    python dataset_creation/generate_img_dataset.py --out_dir data/my-dataset --prompts_file triples.jsonl
    python dataset_creation/generate_img_dataset.py --out_dir data/again --replay data/my-dataset

A stopped run goes on with the same command. prepare_dataset.py makes the result ready for training.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from dataset_creation.cluster.shares import add_share_options, check_share_options
from ldm.arguments import (
    SD_CKPT,
    SD_CONFIG,
    SD_VAE_CKPT,
    Parser,
    add_clip_options,
    add_precision_option,
    add_settings,
)
from ldm.pictures.safety import BLUR_OVER
from ldm.util import UserError, run_main


def make_parser() -> argparse.ArgumentParser:
    parser = Parser.of(__doc__)
    _add_files(parser.add_argument_group("files"))
    _add_sampling(parser.add_argument_group("sampling"))
    _add_filters(parser.add_argument_group("what is kept"))
    _add_work(parser.add_argument_group("work"))
    return parser


def _add_files(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("old_out_dir", nargs="?", metavar="OUT_DIR", help="as --out_dir, by which it may also be given")
    add("old_prompts_file", nargs="?", metavar="PROMPTS_FILE", help="as --prompts_file")
    add(
        "--out_dir",
        "--out-dir",
        metavar="DIR",
        help="folder of the dataset; a run begun there goes on (default: OUT_DIR)",
    )
    add(
        "--prompts_file",
        "--prompts-file",
        metavar="FILE",
        help="JSON lines of input (or caption), edit, output (default: PROMPTS_FILE)",
    )
    add(
        "--replay",
        metavar="DATASET_DIR",
        help="in place of prompts: make all pairs of this dataset again, by its metadata (default: none)",
    )
    model = "the text-to-image model: .ckpt, .safetensors, a diffusers folder, or its name on the hub"
    add_settings(group, ("--ckpt", SD_CKPT, model, "FILE"))
    add(
        "--config",
        default=str(SD_CONFIG),
        metavar="FILE",
        help="YAML file of the model (default: that of Stable Diffusion 1.5)",
    )
    vae = "autoencoder weights to use instead; none: those in --ckpt"
    add_settings(group, ("--vae-ckpt", SD_VAE_CKPT, vae, "FILE"))
    add(
        "--format",
        choices=("folder", "webdataset"),
        default="folder",
        help="leave folders, or pack them into tar shards (default: %(default)s)",
    )


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    listed = 'any of those that "python edit_cli.py --sampler help" lists but dpm_adaptive'
    add_settings(
        group,
        ("--steps", 100, "denoising steps"),
        ("--n-samples", 100, "pairs drawn for each prompt", "N"),
        ("--min-p2p", 0.1, "least share of steps with shared attention, 0 to 1", "SHARE"),
        ("--max-p2p", 0.9, "highest share of them", "SHARE"),
        ("--min-cfg", 7.5, "least guidance scale, no unit", "SCALE"),
        ("--max-cfg", 15.0, "highest guidance scale", "SCALE"),
        ("--seed", 0, "of the whole dataset"),
        ("--sampler", "euler_ancestral", listed, "NAME"),
        ("--resolution", 512, "side of the square pictures", "PIXELS"),
    )


def _add_filters(group: argparse._ArgumentGroup) -> None:
    least = "least similarity of {}, -1 to 1; 0: any".format
    add_settings(
        group,
        ("--max-out-samples", 4, "pairs kept of a prompt, at most", "N"),
        ("--clip-threshold", 0.2, least("either picture and its caption"), "COSINE"),
        ("--clip-dir-threshold", 0.2, least("the changes of pictures and captions"), "COSINE"),
        ("--clip-img-threshold", 0.7, least("the two pictures"), "COSINE"),
    )
    add_clip_options(group, "ViT-L-14")
    group.add_argument(
        "--nsfw-filter",
        nargs="?",
        type=float,
        const=BLUR_OVER,
        metavar="LIMIT",
        help="drop pairs with a picture of an NSFW score over LIMIT, 0 to 1, %(const)s without LIMIT; needs "
        "pip install -e '.[nsfw]' (default: none, keep all)",
    )


def _add_work(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--batch-size",
        type=int,
        metavar="N",
        help="samples at once; changes no pair (default: as many as fit the memory)",
    )
    add(
        "--device",
        default="auto",
        help="where to compute: cpu, cuda, cuda:1, mps; auto: a GPU if there is one (default: %(default)s)",
    )
    add_precision_option(group)
    add_share_options(group, "--n-partitions", what="the prompts")
    add(
        "--ray",
        metavar="ADDRESS",
        help="work on this Ray cluster; auto: the one here; local: start one (default: none, this process)",
    )
    add("--ray-workers", type=int, metavar="N", help="actors on it (default: one for each GPU)")
    add("--force", action="store_true", help="go on in a folder that was begun with other settings")
    add("--dry-run", action="store_true", help="say what would be done and how long it would take")


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `UserError` for values that make no sense, and settle the older positionals."""
    for name in ("out_dir", "prompts_file"):
        old, new = getattr(args, f"old_{name}"), getattr(args, name)
        if old and new:
            raise UserError(f"expected --{name} or its older positional, got both: {new} and {old}")
        setattr(args, name, new or old)
    if not args.out_dir:
        raise UserError("expected --out_dir")
    if bool(args.prompts_file) == bool(args.replay):
        raise UserError("expected either --prompts_file or --replay")
    counts = ("n_samples", "max_out_samples", "batch_size", "n_partitions", "ray_workers")
    for name in counts:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    check_share_options(args.n_partitions, args.partition, "shares")
    if not 0 <= args.min_p2p <= args.max_p2p <= 1:
        raise UserError(f"expected 0 <= --min-p2p <= --max-p2p <= 1, got {args.min_p2p} and {args.max_p2p}")
    if not args.min_cfg <= args.max_cfg:
        raise UserError(f"expected --min-cfg <= --max-cfg, got {args.min_cfg} and {args.max_cfg}")
    if args.nsfw_filter is not None and not 0 <= args.nsfw_filter <= 1:
        raise UserError(f"--nsfw-filter: expected 0 to 1, got {args.nsfw_filter}")
    if args.ray_workers and not args.ray:
        raise UserError("--ray-workers goes with --ray")


def main() -> None:
    args = make_parser().parse_args()
    check_arguments(args)
    from dataset_creation.pairs import run as pair_run  # late: torch takes seconds
    from dataset_creation.pairs.clip_filter import Thresholds
    from dataset_creation.pairs.folder import PairFolder
    from dataset_creation.pairs.maker import MakerOptions
    from dataset_creation.pairs.prompts import read_source
    from dataset_creation.pairs.sampler import Ranges

    source = read_source(args.replay or args.prompts_file, replay=bool(args.replay))
    same: tuple[str, ...] = (
        "config",
        "ckpt",
        "device",
        "precision",
        "steps",
        "resolution",
        "seed",
        "n_samples",
        "batch_size",
    )
    same += ("clip_model", "clip_pretrained", "clip_weights")
    maker = MakerOptions(
        vae_ckpt=None if args.vae_ckpt.lower() == "none" else args.vae_ckpt,
        sampler=args.sampler.removeprefix("sample_"),
        limit=args.max_out_samples,
        ranges=Ranges((args.min_p2p, args.max_p2p), (args.min_cfg, args.max_cfg)),
        thresholds=Thresholds(args.clip_threshold, args.clip_dir_threshold, args.clip_img_threshold),
        nsfw_limit=args.nsfw_filter,
        **{name: getattr(args, name) for name in same},
    )
    if args.replay:  # nothing is drawn, rated or dropped
        most = max(1, *(len(task.lines or ()) for task in source.tasks))
        maker = replace(maker, n_samples=most, limit=most, thresholds=Thresholds(0, 0, 0), nsfw_limit=None)
    options = pair_run.RunOptions(
        maker, Path(args.out_dir), args.n_partitions, args.partition, args.format == "webdataset"
    )
    tasks = source.share(args.n_partitions, args.partition)
    if args.dry_run:
        from dataset_creation.pairs.estimate import estimate

        print(estimate(options, tasks))
        return
    for problem in source.shown_problems():
        print(problem, file=sys.stderr)
    settings = pair_run.settings_of(options, source.digest)
    folder = PairFolder(options.out_dir, settings, force=args.force)
    if args.ray:
        from dataset_creation.cluster.pairs import on_ray

        work = on_ray(args.ray, args.ray_workers, options, settings)
    else:
        work = pair_run.in_this_process(options, folder)
    print(pair_run.run(options, tasks, folder, work, len(source.problems)))


if __name__ == "__main__":
    run_main(main)
