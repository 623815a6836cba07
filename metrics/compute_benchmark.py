"""Score an edit model on MagicBrush or on the test set of Emu Edit.

    python metrics/compute_benchmark.py magicbrush --dataset "data/dev-*.parquet" --output results/magicbrush
    python metrics/compute_benchmark.py emu-edit --split test --output results/emu-edit

Written to --output: the edited pictures, scores.jsonl with a line for every edit, results.json with averages.
A stopped run goes on with the same command. What cannot be read of the data is left out, named and counted.
To score the same pictures by another CLIP, DINO or captions, take scores.jsonl away: they are not edited
again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.arguments import (
    Parser,
    add_clip_options,
    add_model_options,
    add_sampling_options,
    add_settings,
    load_editor,
    model_files,
)
from ldm.files import replacing
from ldm.sampling.options import Sampling
from ldm.util import UserError, run_main

if TYPE_CHECKING:
    import torch

    from metrics.editsets.benchmark import Benchmark, Results
    from metrics.editsets.dino import Dino


def make_parser() -> argparse.ArgumentParser:
    parser = Parser.of(__doc__)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, title="benchmarks")
    text = "real edits, of which the true results are known"
    group = _add_benchmark(benchmarks, "magicbrush", text, "osunlp/MagicBrush")
    group.add_argument("--split", default="dev", help="split of a dataset on the hub (default: %(default)s)")
    group.add_argument(
        "--captions",
        type=Path,
        metavar="FILE",
        help="local_captions.json of the dataset, which the score CLIP-T needs (default: none)",
    )
    text = "instructions with captions before and after"
    group = _add_benchmark(benchmarks, "emu-edit", text, "facebook/emu_edit_test_set")
    group.add_argument(
        "--split",
        help="split of the dataset, validation or test (default: test where the data has several, else all)",
    )
    return parser


def _add_benchmark(benchmarks: Any, name: str, text: str, dataset: str) -> argparse._ArgumentGroup:
    """Add a benchmark with the options that all have; the group of those of its data.

    Args:
        text: what it is.
        dataset: on the hub.
    """
    parser = benchmarks.add_parser(name, help=text, description=f"Score an edit model on {name}: {text}.")
    data = parser.add_argument_group("data")
    add_settings(
        data, ("--dataset", dataset, "parquet file, folder of them, pattern, or name on the hub", "PATH")
    )
    data.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="only the first N sessions of magicbrush, or rows of emu-edit (default: none, all)",
    )
    data.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder of the results; a run begun there goes on",
    )
    _add_edits(parser.add_argument_group("edits"))
    add_model_options(parser.add_argument_group("model"))
    rating = parser.add_argument_group("rating")
    add_clip_options(rating, "ViT-B-32")
    rating.add_argument(
        "--dino-weights",
        metavar="FILE",
        help="file of DINO's ViT-S/16, or the word none: then only the other scores are computed "
        "(default: download)",
    )
    return data


def _add_edits(group: argparse._ArgumentGroup) -> None:
    add_sampling_options(group, "steps", "resolution", "cfg_text", "cfg_image")
    seed = "seed of the noise of all edits (default: %(default)s)"
    group.add_argument("--seed", type=int, default=0, help=seed)


def read_benchmark(args: argparse.Namespace) -> Benchmark:
    """The data that the command line names."""
    if args.benchmark == "magicbrush":
        from metrics.editsets.magicbrush import read_magicbrush

        return read_magicbrush(args.dataset, args.captions, args.split, args.limit)
    from metrics.editsets.emu_edit import read_emu_edit

    return read_emu_edit(args.dataset, args.split, args.limit)


def load_dino(weights: str | None, device: torch.device) -> tuple[Dino | None, str]:
    """DINO; without it, why not.

    Raises:
        UserError: a file that was named is no such model.
    """
    from metrics.editsets.dino import Dino

    if weights == "none":
        return None, "--dino-weights none"
    try:
        return Dino(weights, device), ""
    except UserError as error:
        if weights:
            raise
        return None, f"{error} (weights that you have: --dino-weights FILE)"


def report(benchmark: Benchmark, results: Results, no_dino: str, file: Path) -> None:
    """Write the averages with all that they depend on, and print them.

    Args:
        no_dino: why it is missing.
        file: where to write.
    """
    from metrics.editsets.benchmark import table

    reasons = {"dino": no_dino, "clip_text": "expected --captions FILE, got none"}
    scored = {key for averages in results.sets.values() for key in averages}
    gaps = {heading: reasons[key] for heading, key in benchmark.columns.items() if key not in scored}
    content = {**asdict(results), "dropped": benchmark.dropped, "gaps": gaps}
    with replacing(file) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")
    print(table(benchmark, results.sets))
    print("CLIP {}, {}".format(*results.settings["clip"]) + ("" if "DINO" in gaps else "; DINO ViT-S/16"))
    for heading, reason in gaps.items():
        print(f"{heading} is missing: {reason}")
    for reason, count in benchmark.dropped.items():
        print(f"dropped for {reason}: {count}")
    if results.left_out:
        print(f"left out as unreadable: {len(results.left_out)}, named in {file}")
    print(f"wrote {file}")


def main() -> None:
    args = make_parser().parse_args()
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit: expected at least 1, got {args.limit}")
    # Late, as torch takes seconds.
    from ldm.weights.opening import file_facts
    from metrics.clip_similarity import ClipSimilarity
    from metrics.editsets.benchmark import RESULTS, run
    from metrics.editsets.image_scores import ImageScores

    benchmark = read_benchmark(args)
    files = model_files(args)
    editor, about = load_editor(args, files)
    clip = ClipSimilarity(args.clip_model, args.clip_pretrained, args.clip_weights, editor.device)
    dino, no_dino = load_dino(args.dino_weights, editor.device)
    sampling = Sampling.from_arguments(args, editor.defaults)
    model = {
        "ckpt": file_facts(str(files.ckpt)),
        "config": files.config.name,
        "vae_ckpt": file_facts(args.vae_ckpt),
        "device": editor.device.type,
        "precision": editor.precision,
        **{name: about[name] for name in about.keys() & {"lora"}},
    }
    scorers = {
        "clip": [Path(args.clip_model).name, args.clip_pretrained, file_facts(args.clip_weights)],
        "dino": None if dino is None else file_facts(args.dino_weights) or "downloaded",
    }
    results = run(benchmark, editor, ImageScores(clip, dino), args.output, sampling, model, scorers)
    report(benchmark, results, no_dino, args.output / RESULTS)


if __name__ == "__main__":
    run_main(main)
