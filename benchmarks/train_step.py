"""Speed and memory of a training step: ours, ours on the latent cache, and diffusers' InstructPix2Pix step.

Each program is a process of its own, alone on the machine while it runs; they take turns, and the order turns
around from round to round. All start from the same random weights, in the layout of `configs/train.yaml`
(medium: every network half as wide), and first predict the same noise, which shows that they do the same
work. A step is conditioning with dropout, loss, backward pass, AdamW, EMA; none of them clips gradients. What
diffusers does is the step of its published example: Accelerate, frozen networks in half precision under
bf16, an EMAModel. Batches are on the device beforehand: `data_loading.py` measures the reading of pictures.

    python benchmarks/train_step.py                       # needs: pip install -e '.[train,benchmark]'
    python benchmarks/train_step.py --device cuda --batch-size 32 --precision bf16 --compile
    python benchmarks/train_step.py --device cuda --precision bf16 --largest-batch
"""

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.runner import in_turn, run_python, verdict, work_folder
from ldm.arguments import Parser, add_settings
from ldm.util import run_main

CHILD = Path(__file__).with_name("train_programs.py")
PROGRAMS = ("ours", "cached", "diffusers")
CACHE_TARGET_SIZE = 256  # pixels for which the target of the latent cache is stated
SPEED_TARGETS = {"ours": 1.15, "cached": 1.6}  # samples a second / diffusers', at least
MEMORY_TARGET = 1.0  # peak memory / diffusers', at most
PAPER_SAMPLES = 10_000 * 1024  # steps of the published training times their batch


def child(part: str, work: Path, args: argparse.Namespace) -> Any:
    """Run a part in a process of its own; what it printed, as JSON."""
    output = run_python(CHILD, part, work, json.dumps(settings(args))).output
    return json.loads(output.splitlines()[-1])


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the programs depend on."""
    return {k: v for k, v in vars(args).items() if k not in ("json", "work_dir", "runs")}


def summarize(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Of each program: median seconds of a step over all rounds, samples a second, batch, GB, hours."""
    summary = {}
    for name, rounds in runs.items():
        seconds = statistics.median(s for run in rounds for s in run["seconds"])
        batch = min(run["batch"] for run in rounds)
        summary[name] = {
            "step": seconds,
            "batch": batch,
            "samples": batch / seconds,
            "memory": max(run["memory"] for run in rounds),
            "hours": PAPER_SAMPLES * seconds / batch / 3600,
        }
    return summary


def prediction_difference(work: Path) -> float:
    """Largest difference of the predicted noise, ours and diffusers', relative to its standard deviation."""
    import torch

    ours, theirs = (torch.load(work / f"{name}.pt") for name in ("ours", "diffusers"))
    return float((ours - theirs).abs().max() / theirs.std())


def compare(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Prepare, run the programs in turn, and return all figures."""
    print(f"writing weights to {work}", file=sys.stderr)
    child("prepare", work, args)
    runs = in_turn(args.runs, {name: partial(child, name, work, args) for name in PROGRAMS})
    return {
        "settings": settings(args),
        "device": runs["ours"][0]["device"],
        "runs": runs,
        "summary": summarize(runs),
        "prediction_difference": prediction_difference(work),
    }


def comparison(name: str, summary: dict[str, dict[str, float]], resolution: int, same_batch: bool) -> str:
    """The last columns of a line of the report: speed and memory beside those of diffusers."""
    own, theirs = summary[name], summary["diffusers"]
    speed, memory = own["samples"] / theirs["samples"], own["memory"] / theirs["memory"]
    shown = verdict(speed, SPEED_TARGETS[name], at_least=True)
    if name == "cached" and resolution != CACHE_TARGET_SIZE:
        shown = f"{speed:.2f} (at {CACHE_TARGET_SIZE} px ≥ {SPEED_TARGETS[name]:.2f})"
    return f"{shown:24}" + (verdict(memory, MEMORY_TARGET, at_least=False) if same_batch else "-")


def report(result: dict[str, Any]) -> str:
    """Figures of the three programs, and the ratios beside their targets."""
    used, summary = result["settings"], result["summary"]
    extras = [word for word in ("checkpointing", "compile") if used[word]]
    measured = [f"{used['size']} networks", f"{used['resolution']} px", used["precision"], result["device"]]
    lines = [
        ", ".join([*measured, *extras]),
        f"{'':10}{'batch':>6}{'a step, s':>11}{'samples/s':>11}{'peak, GB':>10}{'hours*':>8}"
        f"   {'speed / diffusers':24}memory / diffusers",
    ]
    for name, own in summary.items():
        line = f"{name:10}{own['batch']:6}{own['step']:11.3f}{own['samples']:11.2f}{own['memory']:10.2f}"
        line += f"{own['hours']:8.0f}   "
        if name != "diffusers":
            line += comparison(name, summary, used["resolution"], not used["largest_batch"])
        lines.append(line.rstrip())
    lines += [
        "* for 10,000 steps of 1024 on this one device",
        f"largest difference of the predicted noise: {result['prediction_difference']:.1e} of its deviation",
    ]
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = Parser.of(__doc__)
    add = parser.add_argument_group("what is trained").add_argument
    add("--size", choices=("full", "medium"), help="networks (default: full on a GPU, medium on the CPU)")
    sides = "side of the square pictures (default: 256, on the CPU 128)"
    add("--resolution", type=int, metavar="PIXELS", help=sides)
    add("--batch-size", type=int, metavar="N", help="examples of a step (default: 32, on the CPU 2)")
    add(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="number format of the steps (default: %(default)s)",
    )
    add("--checkpointing", action="store_true", help="recompute activations of the UNet")
    add("--compile", action="store_true", help="torch.compile of the UNet")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default: %(default)s)")
    group = parser.add_argument_group("measurement")
    add_settings(
        group,
        ("--warm-up", 1, "untimed ones of a run", "STEPS"),
        ("--steps", 3, "timed steps of a run"),
        ("--runs", 3, "of each program", "N"),
    )
    add = group.add_argument
    add("--largest-batch", action="store_true", help="on a GPU: instead of --batch-size, what fits")
    add("--work-dir", type=Path, metavar="DIR", help="for the weights (default: a temporary folder)")
    add("--json", action="store_true", help="print all figures as JSON")
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The options, with defaults that depend on the device filled in."""
    parser = make_parser()
    args = parser.parse_args(argv)
    gpu = args.device == "cuda"
    for name, on_gpu, on_cpu in (("size", "full", "medium"), ("resolution", 256, 128), ("batch_size", 32, 2)):
        if getattr(args, name) is None:
            setattr(args, name, on_gpu if gpu else on_cpu)
    if args.resolution % 64 or min(args.resolution, args.batch_size, args.steps, args.runs) < 1:
        parser.error("expected --resolution a multiple of 64; --batch-size, --steps, --runs at least 1")
    if args.warm_up < 0 or (args.largest_batch and not gpu):
        parser.error("expected --warm-up of at least 0, and --largest-batch with --device cuda only")
    return args


def main() -> None:
    """Compare, and print the figures."""
    args = parse_args()
    with work_folder(args.work_dir) as work:
        result = compare(work, args)
    print(json.dumps(result, indent=2) if args.json else report(result))


if __name__ == "__main__":
    run_main(main)
