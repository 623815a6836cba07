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

from ldm.arguments import SD_CKPT, SD_CONFIG, SD_VAE_CKPT
from ldm.util import UserError, run_main


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_files(parser.add_argument_group("files"))
    _add_sampling(parser.add_argument_group("sampling"))
    _add_filters(parser.add_argument_group("what is kept"))
    _add_work(parser.add_argument_group("work"))
    return parser


def _add_files(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("old_out_dir", nargs="?", metavar="OUT_DIR", help="as --out_dir")
    add("old_prompts_file", nargs="?", metavar="PROMPTS_FILE", help="as --prompts_file")
    add("--out_dir", "--out-dir", metavar="DIR", help="the dataset; a run begun there goes on")
    add(
        "--prompts_file",
        "--prompts-file",
        metavar="FILE",
        help="JSON lines of input (or caption), edit, output",
    )
    add(
        "--replay",
        metavar="DATASET_DIR",
        help="instead of prompts: make the pairs of this dataset again, by its metadata, all of them",
    )
    add("--ckpt", default=SD_CKPT, metavar="FILE", help="the text-to-image model (default: %(default)s)")
    add(
        "--config", default=str(SD_CONFIG), metavar="FILE", help="its configuration (default: that of SD 1.5)"
    )
    add(
        "--vae-ckpt",
        default=SD_VAE_CKPT,
        metavar="FILE",
        help="its autoencoder; none: the one in --ckpt (default: %(default)s)",
    )
    add(
        "--format",
        choices=("folder", "webdataset"),
        default="folder",
        help="leave folders, or pack them into tar shards (default: %(default)s)",
    )


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--steps", type=int, default=100, help="denoising steps (default: %(default)s)")
    add("--n-samples", type=int, default=100, help="pairs drawn for each prompt (default: %(default)s)")
    add("--min-p2p", type=float, default=0.1, help="least share of steps with shared attention (%(default)s)")
    add("--max-p2p", type=float, default=0.9, help="highest share (default: %(default)s)")
    add("--min-cfg", type=float, default=7.5, help="least guidance scale (default: %(default)s)")
    add("--max-cfg", type=float, default=15.0, help="highest guidance scale (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the whole dataset (default: %(default)s)")
    add(
        "--sampler",
        default="euler_ancestral",
        help="any of k-diffusion but dpm_adaptive (default: %(default)s)",
    )
    add("--resolution", type=int, default=512, help="side of the pictures in pixels (default: %(default)s)")


def _add_filters(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--max-out-samples",
        type=int,
        default=4,
        help="pairs kept of a prompt, at most (default: %(default)s)",
    )
    add("--clip-threshold", type=float, default=0.2, help="of picture and caption (default: %(default)s)")
    add("--clip-dir-threshold", type=float, default=0.2, help="of both changes (default: %(default)s)")
    add("--clip-img-threshold", type=float, default=0.7, help="of both pictures (default: %(default)s)")
    add(
        "--clip-model",
        default="ViT-L-14",
        help="a model of open_clip, or its JSON file (default: %(default)s)",
    )
    add(
        "--clip-pretrained",
        default="openai",
        metavar="TAG",
        help="which weights of it (default: %(default)s)",
    )
    add("--clip-weights", metavar="FILE", help="a file of them (default: downloaded)")
    add(
        "--nsfw-filter",
        nargs="?",
        type=float,
        const=0.5,
        metavar="LIMIT",
        help="drop pairs with a picture of an NSFW score over LIMIT, 0 to 1 (without LIMIT %(const)s); "
        "needs pip install -e '.[nsfw]'",
    )


def _add_work(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--batch-size", type=int, help="samples at once (default: as many as fit the memory)")
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
    add("--precision", choices=("auto", "fp32", "fp16", "bf16"), default="auto", help="auto: fp16 on CUDA")
    add(
        "--n-partitions",
        type=int,
        default=1,
        help="shares of the prompts, for job arrays (default: %(default)s)",
    )
    add("--partition", type=int, default=0, help="which share, counted from 0 (default: %(default)s)")
    add("--ray", metavar="ADDRESS", help="work on this Ray cluster (auto: the one here; local: start one)")
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
    if not 0 <= args.partition < args.n_partitions:
        last = args.n_partitions - 1
        raise UserError(f"--partition: expected 0 to {last} of {last + 1} shares, got {args.partition}")
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
    from dataset_creation import pair_run  # late: torch takes seconds
    from dataset_creation.clip_filter import Thresholds
    from dataset_creation.pair_folder import PairFolder
    from dataset_creation.pair_maker import MakerOptions
    from dataset_creation.pair_sampler import Ranges
    from dataset_creation.prompt_file import read_replay, read_triples

    source = read_replay(args.replay) if args.replay else read_triples(args.prompts_file)
    maker = MakerOptions(
        config=args.config,
        ckpt=args.ckpt,
        vae_ckpt=None if args.vae_ckpt.lower() == "none" else args.vae_ckpt,
        device=args.device,
        precision=args.precision,
        steps=args.steps,
        resolution=args.resolution,
        sampler=args.sampler.removeprefix("sample_"),
        seed=args.seed,
        n_samples=args.n_samples,
        limit=args.max_out_samples,
        batch_size=args.batch_size,
        ranges=Ranges((args.min_p2p, args.max_p2p), (args.min_cfg, args.max_cfg)),
        thresholds=Thresholds(args.clip_threshold, args.clip_dir_threshold, args.clip_img_threshold),
        clip_model=args.clip_model,
        clip_pretrained=args.clip_pretrained,
        clip_weights=args.clip_weights,
        nsfw_limit=args.nsfw_filter,
    )
    if args.replay:  # nothing is drawn, rated or dropped
        most = max(1, *(len(task.lines) for task in source.tasks))
        maker = replace(maker, n_samples=most, limit=most, thresholds=Thresholds(0, 0, 0), nsfw_limit=None)
    options = pair_run.RunOptions(
        maker, Path(args.out_dir), args.n_partitions, args.partition, args.format == "webdataset"
    )
    tasks = source.share(args.n_partitions, args.partition)
    if args.dry_run:
        from dataset_creation.pair_estimate import estimate

        print(estimate(options, tasks))
        return
    for problem in source.shown_problems():
        print(problem, file=sys.stderr)
    settings = pair_run.settings_of(options, source.digest)
    folder = PairFolder(options.out_dir, settings, force=args.force)
    if args.ray:
        from dataset_creation.ray_pairs import on_ray

        work = on_ray(args.ray, args.ray_workers, options, settings)
    else:
        work = pair_run.in_this_process(options, folder)
    print(pair_run.run(options, tasks, folder, work, len(source.problems)))


if __name__ == "__main__":
    run_main(main)
