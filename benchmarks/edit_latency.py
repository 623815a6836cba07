"""Time and memory of edits by the full-size network: edit_cli.py beside diffusers' InstructPix2Pix pipeline.

Both run as whole processes, on the CPU in float32 or on a GPU in float16, in turn, on the same picture and
the same random weights, those of configs/generate.yaml in the published layout (one .safetensors) and
converted to a diffusers folder. A run is measured from outside, alike for both: the time from the start of
the process to the first denoising step finished, as its progress bar shows it (a GPU is up to a step behind
it); the mean time of the later steps; the peak of its resident memory, or of the GPU's as the driver tells
it; the time to its end. Files are in the page cache, as they have just been written or read.

    python benchmarks/edit_latency.py                # needs: pip install -e '.[benchmark]', 10 GB of disk
    OMP_NUM_THREADS=2 python benchmarks/edit_latency.py --runs 5 --json
    python benchmarks/edit_latency.py --device cuda --resolution 512 --steps 100
"""

import argparse
import json
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from benchmarks.runner import in_turn, looking, medians, run_python, verdict, work_folder
from ldm.arguments import Parser, add_settings
from ldm.files import ROOT
from ldm.util import run_main

CONFIG = ROOT / "configs/generate.yaml"
INSTRUCTION = "turn him into a cyborg"
CFG_TEXT, CFG_IMAGE = 7.5, 1.5
PRECISION = {"cpu": "fp32", "cuda": "fp16"}
POLL = 0.1  # seconds between two looks at the memory of the GPU
TARGETS = {"first_step": 0.45, "step": 0.9, "memory": 0.85}  # ours / diffusers, at most
LABELS = {
    "first_step": "first step finished, s",
    "step": "a later step, s",
    "memory": "peak memory, GB",
    "whole": "whole process, s",
}
PROGRESS = re.compile(rb"edit: [^\r\n]*?\| *(\d+)/\d+ ")  # of tqdm, in both programs


@dataclass(frozen=True)
class Run:
    """What one process took: seconds from its start, seconds a step, GB, seconds in all."""

    first_step: float
    step: float
    memory: float
    whole: float


def prepare(work: Path, resolution: int, ema: bool) -> None:
    """Write what both programs read, in a process of its own."""
    from PIL import Image

    from benchmarks.random_model import write_random

    noise = Image.effect_noise((8, 8), 200).convert("RGB")
    noise.resize((resolution, resolution)).save(work / "input.png")
    write_random(CONFIG, work, ema=ema)


# --- The two programs ---------------------------------------------------------------------------------------


def our_command(work: Path, args: argparse.Namespace) -> list[str]:
    """The command line of edit_cli.py."""
    weights = work / ("ema.safetensors" if args.ema else "weights.safetensors")
    return [
        *(
            f"{ROOT}/edit_cli.py",
            f"--config={CONFIG}",
            f"--ckpt={weights}",
            f"--device={args.device}",
            f"--precision={PRECISION[args.device]}",
        ),
        *(f"--input={work}/input.png", f"--output={work}/ours.png", f"--edit={INSTRUCTION}", "--seed=0"),
        *(f"--resolution={args.resolution}", f"--steps={args.steps}"),
        *(f"--cfg-text={CFG_TEXT}", f"--cfg-image={CFG_IMAGE}"),
    ]


def run_diffusers(work: Path, steps: int, device: str) -> None:
    """The same edit as a short program written with diffusers."""
    import torch
    from diffusers import StableDiffusionInstructPix2PixPipeline
    from PIL import Image

    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        work / "diffusers",
        safety_checker=None,
        requires_safety_checker=False,
        torch_dtype={"fp32": torch.float32, "fp16": torch.float16}[PRECISION[device]],
    ).to(device)
    pipeline.set_progress_bar_config(desc="edit")
    edited = pipeline(
        INSTRUCTION,
        image=Image.open(work / "input.png"),
        num_inference_steps=steps,
        guidance_scale=CFG_TEXT,
        image_guidance_scale=CFG_IMAGE,
        generator=torch.Generator(device).manual_seed(0),
    ).images[0]
    edited.save(work / "diffusers.png")


# --- Measuring ----------------------------------------------------------------------------------------------


def used_on_gpu() -> float:
    """GB that all processes take of the memory of the first GPU."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return int(subprocess.run(query, check=True, capture_output=True).stdout) * 2**20 / 1e9


def measure(command: list[str], steps: int, device: str) -> Run:
    """Run Python with these arguments and watch it.

    Raises:
        SystemExit: it failed, or showed other steps than expected.
    """
    finished: dict[int, float] = {}

    def note_steps(shown: bytes) -> None:
        for step in PROGRESS.findall(shown):
            finished.setdefault(int(step), time.perf_counter() - started)

    before = used_on_gpu() if device == "cuda" else 0.0
    started = time.perf_counter()
    with looking(used_on_gpu, POLL) if device == "cuda" else nullcontext() as on_gpu:
        run = run_python(*command, quiet=True, watch=note_steps)
    if not finished.keys() >= set(range(1, steps + 1)):
        sys.exit(f"saw steps {sorted(finished)} of: {command}")
    times = [finished[step] for step in range(1, steps + 1)]
    return Run(
        first_step=times[0],
        step=(times[-1] - times[0]) / (steps - 1),
        memory=max(on_gpu) - before if on_gpu else run.memory,
        whole=run.seconds,
    )


def compare(work: Path, args: argparse.Namespace) -> dict[str, object]:
    """Prepare, run both in turn, and return all figures, medians and ratios."""
    script = str(Path(__file__).resolve())
    options = ["--work-dir", str(work), "--steps", str(args.steps), "--resolution", str(args.resolution)]
    options += ["--ema"] * args.ema + ["--device", args.device]
    print(f"writing weights to {work}", file=sys.stderr)
    run_python(script, "prepare", *options)
    commands = {"ours": our_command(work, args), "diffusers": [script, "diffusers", *options]}
    programs = {name: partial(measure, words, args.steps, args.device) for name, words in commands.items()}
    runs = {name: [asdict(run) for run in each] for name, each in in_turn(args.runs, programs).items()}
    figures = {key: medians({name: [run[key] for run in runs[name]] for name in runs}) for key in LABELS}
    return {
        "runs": runs,
        "medians": {name: {key: figures[key][name] for key in LABELS} for name in runs},
        "ratios": {key: of["ours"] / of["diffusers"] for key, of in figures.items()},
        "targets": TARGETS,
        "largest_pixel_difference": pixel_difference(work),
    }


def pixel_difference(work: Path) -> int:
    """Largest difference between the two results, in 0..255: both did the same work if it is small."""
    from PIL import Image, ImageChops

    pictures = [Image.open(work / f"{name}.png").convert("RGB") for name in ("ours", "diffusers")]
    return max(high for _, high in ImageChops.difference(*pictures).getextrema())


def report(result: dict[str, object], args: argparse.Namespace) -> str:
    """The medians and ratios as a table."""
    (own, theirs), ratios = result["medians"].values(), result["ratios"]
    lines = [
        f"{args.resolution} px, {args.steps} steps, median of {args.runs} runs, {args.device}, "
        + PRECISION[args.device],
        f"{'':24}{'ours':>10}{'diffusers':>12}   ratio",
    ]
    for key, label in LABELS.items():
        aimed = key in TARGETS and args.device == "cpu"
        shown = verdict(ratios[key], TARGETS[key], at_least=False) if aimed else f"{ratios[key]:.2f}"
        lines.append(f"{label:24}{own[key]:10.2f}{theirs[key]:12.2f}   {shown}")
    lines.append(f"largest difference of the two pictures: {result['largest_pixel_difference']} of 255")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = Parser.of(__doc__)
    group = parser.add_argument_group("edits")
    add = group.add_argument
    add(
        "part",
        nargs="?",
        choices=("compare", "prepare", "diffusers"),
        default="compare",
        help="compare, which starts the others, or one of them alone (default: %(default)s)",
    )
    add_settings(
        group,
        ("--steps", 4, "denoising steps, at least 2"),
        ("--resolution", 256, "side of the square picture", "PIXELS"),
    )
    add(
        "--device",
        choices=sorted(PRECISION),
        default="cpu",
        help="where to compute: in float32 on the CPU, in float16 on a GPU (default: %(default)s)",
    )
    add("--ema", action="store_true", help="a checkpoint with a second, averaged UNet in it")
    group = parser.add_argument_group("measurement")
    add_settings(group, ("--runs", 3, "of each program", "N"))
    keep = "files are kept there and used again (default: a temporary folder)"
    group.add_argument("--work-dir", type=Path, metavar="DIR", help=keep)
    group.add_argument("--json", action="store_true", help="print all figures as JSON")
    return parser


def main() -> None:
    """Compare, or be one of the processes of a comparison."""
    args = make_parser().parse_args()
    if args.part == "prepare":
        prepare(args.work_dir, args.resolution, args.ema)
    elif args.part == "diffusers":
        run_diffusers(args.work_dir, args.steps, args.device)
    else:
        if args.steps < 2 or args.runs < 1 or args.resolution % 64:
            sys.exit("expected --steps of at least 2, --runs of at least 1, --resolution a multiple of 64")
        with work_folder(args.work_dir) as work:
            result = compare(work, args)
        print(json.dumps(result, indent=2) if args.json else report(result, args))


if __name__ == "__main__":
    run_main(main)
