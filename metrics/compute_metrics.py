"""The trade-off curve of an edit model: how much changes as it was asked to, against how much stays
(Brooks et al. 2022, figure 8).

    python metrics/compute_metrics.py --ckpt checkpoints/instruct-pix2pix-00-22000.ckpt
    python metrics/compute_metrics.py --method sdedit --name sdedit
    python metrics/plot_metrics.py analysis analysis/sdedit --output figure

Every sample of the split is edited at every scale and rated by CLIP. The folder --output_path, or the one
called --name in it, gets one line an edit (*.samples.jsonl), the averages as the published program writes
them (*.jsonl), plot.pdf, plot.png, sheet.jpg and report.html. A stopped run goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from ldm.arguments import (
    SD_CKPT,
    SD_CONFIG,
    Parser,
    add_clip_options,
    add_model_options,
    add_sampling_options,
    add_settings,
    load_editor,
    model_files,
)
from ldm.files import ROOT, replacing
from ldm.sampling.options import Sampling
from ldm.util import UserError, run_main

SCALES_IMAGE = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2)
STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SHEET_QUALITY = 88


def make_parser() -> argparse.ArgumentParser:
    parser = Parser.of(__doc__)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--method",
        choices=("instruct-pix2pix", "sdedit"),
        default="instruct-pix2pix",
        help="edit by the instruction, or as SDEdit with a text-to-image model by the second caption; then "
        "--ckpt and --config are by default those of Stable Diffusion 1.5 (default: %(default)s)",
    )
    add_model_options(group)
    _add_samples(parser.add_argument_group("samples"))
    _add_edits(parser.add_argument_group("edits"))
    _add_rating(parser.add_argument_group("rating"))
    _add_output(parser.add_argument_group("output"))
    return parser


def _add_samples(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    layouts = "folder in the published layout, or parquet as on the hub: file, folder, or owner/name"
    add_settings(group, ("--dataset", "data/clip-filtered-dataset/", layouts, "PATH"))
    add(
        "--split",
        choices=("train", "val", "test", "all"),
        default="test",
        help="part of the dataset: its first 90 %%, the next 5 %%, the last 5 %%, or all "
        "(default: %(default)s)",
    )
    add_settings(group, ("--num-samples", 5000, "how many samples to edit, at most", "N"))
    add_sampling_options(group, "resolution", resolution="side of the square pictures, 64 to 8192")
    seed = "seed of the choice of samples and of the noise (default: %(default)s)"
    add("--seed", type=int, default=0, help=seed)


def _add_edits(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--scales-text",
        type=float,
        nargs="+",
        default=[7.5],
        metavar="SCALE",
        help="guidance scales of the text, no unit (default: 7.5)",
    )
    add(
        "--scales-image",
        type=float,
        nargs="+",
        default=SCALES_IMAGE,
        metavar="SCALE",
        help="guidance scales of the picture, no unit (default: 1.0 to 2.2 by 0.2)",
    )
    add(
        "--strengths",
        type=float,
        nargs="+",
        default=STRENGTHS,
        metavar="SHARE",
        help="strengths of sdedit, 0 to 1, in place of --scales-image (default: 0.3 to 0.9 by 0.1)",
    )
    add_sampling_options(group, "steps", "sampler")
    add(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="how many samples are edited at once; changes no figure (default: %(default)s)",
    )


def _add_rating(group: argparse._ArgumentGroup) -> None:
    add_clip_options(group, "ViT-L-14")
    group.add_argument(
        "--paper-compat",
        action="store_true",
        help="give CLIP pictures in [-1, 1], not clamped, as the published program does; its CLIP expects "
        "[0, 1], so figures differ",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    folder = "folder of the results; a run begun there goes on"
    add_settings(group, ("--output_path --output-path", "analysis/", folder, "DIR"))
    name = "name of the run: its folder in --output_path, and its label (default: none)"
    group.add_argument("--name", help=name)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `UserError` for what cannot be."""
    for name in ("num_samples", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(args, name)}")
    for name in ("scales_text", "scales_image", "strengths"):
        scales = getattr(args, name)
        if not all(map(math.isfinite, scales)) or len(set(scales)) < len(scales):
            raise UserError(f"--{name.replace('_', '-')}: expected different numbers, got {scales}")
    if not all(0 <= strength <= 1 for strength in args.strengths):
        raise UserError(f"--strengths: expected 0 to 1, got {args.strengths}")
    if args.name and (Path(args.name).name != args.name or args.name.startswith(".")):
        raise UserError(f"--name: expected a name for a folder, got {args.name!r}")


def load_method(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The method that edits, and what its edits depend on."""
    from ldm.editor import ModelFiles
    from ldm.weights.opening import file_facts
    from metrics.curve.edit_methods import InstructPix2Pix, SDEdit, load_text_to_image

    if args.method == "sdedit":
        files = ModelFiles(Path(args.config or SD_CONFIG), Path(args.ckpt or ROOT / SD_CKPT))
        if args.lora:
            raise UserError("--lora goes with --method instruct-pix2pix, got sdedit")
    else:
        files = model_files(args)
    config, ckpt = files.config, files.ckpt
    sampling = Sampling.from_arguments(args, Sampling.from_config(config))
    sampling.check()
    about: dict[str, Any] = {}
    if args.method == "sdedit":
        model = load_text_to_image(config, ckpt, args.vae_ckpt, args.device, args.precision)
        method: SDEdit | InstructPix2Pix = SDEdit(model, sampling)
    else:
        editor, about = load_editor(args, files)
        method = InstructPix2Pix(editor, sampling)
    settings = {
        "method": args.method,
        "name": args.name or ckpt.stem,
        "config": config.name,
        "ckpt": file_facts(ckpt),
        "vae_ckpt": file_facts(args.vae_ckpt),
        "device": method.device.type,
        "precision": method.precision,
        "steps": sampling.steps,
        "sampler": sampling.sampler,
        **{name: about[name] for name in about.keys() & {"lora"}},
    }
    return method, settings


def make_settings(args: argparse.Namespace) -> list[Any]:
    """What every sample is edited at."""
    from metrics.curve.edit_methods import Setting

    if args.method == "sdedit":
        return [Setting(text, strength=strength) for text in args.scales_text for strength in args.strengths]
    return [Setting(text, scale_image=image) for text in args.scales_text for image in args.scales_image]


def open_folder(folder: Path, stem: str) -> Path:
    """The file of a run's rows in its folder.

    Raises:
        UserError: another run is there.
    """
    from metrics.curve.curves import SUFFIX

    file = folder / f"{stem}{SUFFIX}"
    others = sorted(other.name for other in folder.glob(f"*{SUFFIX}") if other != file)
    if others:
        raise UserError(f"{folder} holds another run, {others[0]}; choose another --name or --output_path")
    return file


def write_results(folder: Path, stem: str, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The averages, the plot, the sheet and the page of a run's rows; prints the averages."""
    from metrics.curve.curves import averages, make_curves
    from metrics.curve.figure import draw
    from metrics.curve.report_page import write_report
    from metrics.curve.scale_sheet import scale_sheet

    found = averages(rows, settings)
    with replacing(folder / f"{stem}.jsonl") as part:
        part.write_text("".join(json.dumps(line) + "\n" for line in found), encoding="utf-8", newline="\n")
    print(f"CLIP {settings['clip'][0]}, pictures {settings['pixels']}, {found[0]['num_samples']} samples")
    print("text  image/strength  direction  image sim.  caption 0  caption 1")
    for line in found:
        varied = line.get("strength", line["scale_img"])
        print(
            f"{line['scale_txt']:4g}{varied:16g}{line['sim_direction']:11.4f}{line['sim_image']:12.4f}"
            f"{line['sim_0']:11.4f}{line['sim_1']:11.4f}"
        )
    if found[0]["num_samples"] < 2:
        return  # nothing to draw a curve with
    curves = make_curves(rows, settings["name"])
    draw(curves, [folder / "plot.pdf", folder / "plot.png"])
    sheet = folder / "sheet.jpg"
    with replacing(sheet) as part:
        scale_sheet(folder, rows).save(part, "JPEG", quality=SHEET_QUALITY)
    print(f"wrote {write_report(folder, settings, rows, curves, folder / 'plot.png', sheet)}")


def main() -> None:
    args = make_parser().parse_args()
    check_arguments(args)
    from ldm.data.json_lines import JsonLines
    from ldm.weights.opening import file_facts
    from metrics.clip_similarity import ClipSimilarity
    from metrics.curve.evaluation import Evaluation
    from metrics.curve.samples import EvalSamples

    method, settings = load_method(args)
    steps, resolution = method.sampling.steps, method.sampling.resolution
    samples = EvalSamples(args.dataset, args.split, args.num_samples, resolution, args.seed)
    count = len(samples.numbers)
    if count < args.num_samples:
        print(
            f"--num-samples {args.num_samples}: fitted to the {count} of split {args.split}", file=sys.stderr
        )
    settings |= {
        "dataset": Path(args.dataset).name,
        "split": args.split,
        "available": samples.available,
        "num_samples": count,
        "resolution": resolution,
        "seed": args.seed,
        "clip": [Path(args.clip_model).name, args.clip_pretrained, file_facts(args.clip_weights)],
        "pixels": "as published" if args.paper_compat else "[0, 1]",
    }
    clip = ClipSimilarity(args.clip_model, args.clip_pretrained, args.clip_weights, method.device)
    folder = Path(args.output_path, args.name or "")
    stem = f"n={count}_p={args.split}_s={steps}_r={resolution}_e={args.seed}"
    with JsonLines(open_folder(folder, stem), settings) as results:
        evaluation = Evaluation(
            method, samples, make_settings(args), clip, folder, args.seed, args.batch_size, args.paper_compat
        )
        write_results(folder, stem, settings, evaluation.run(results))


if __name__ == "__main__":
    run_main(main)
