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
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ldm.arguments import Parser
from ldm.util import run_main

# Of the packages only the children import anything: the memory of a process that starts another one counts
# into the other's peak, and imports into its time.

ROOT = Path(__file__).resolve().parents[1]
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


# --- Preparation, in a process of its own -------------------------------------------------------------------


def write_checkpoint(path: Path, ema: bool) -> None:
    """Write the published layout with random weights that keep activations of order one.

    With `ema` it also holds a moving average of the UNet, as the published file does; it equals the weights.
    """
    import torch
    from omegaconf import OmegaConf

    from ldm.util import instantiate_from_config
    from ldm.weights.names import ema_name
    from ldm.weights.single_file import save_safetensors

    config = OmegaConf.load(CONFIG).model
    config.params.use_ema = False
    with torch.device("meta"):
        model = instantiate_from_config(config)
    model.register_schedule()
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.ndim > 1:
            scale = 0.5 * tensor[0].numel() ** -0.5
            state[name] = torch.randn(tensor.shape, generator=generator) * scale
        elif tensor.is_meta:  # a bias, or the scale of a normalisation
            state[name] = torch.full(tensor.shape, float(name.endswith("weight")))
    if ema:
        state |= {ema_name(name): state[name] for name in [*state] if name.startswith("model.")}
    save_safetensors(state, path)


def write_diffusers_folder(checkpoint: Path, folder: Path) -> None:
    """Convert a checkpoint to a folder that diffusers loads; its own code maps the names."""
    import diffusers
    from safetensors.torch import load_file
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from ldm.modules.encoders.bpe import load_bpe

    state = load_file(checkpoint)
    parts = {
        name: network.from_single_file(dict(state), original_config=str(CONFIG))
        for name, network in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL))
    }
    encoder = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    prefix = "cond_stage_model.transformer."
    if not any(name.startswith("text_model.") for name in encoder.state_dict()):
        prefix += "text_model."  # transformers 5 dropped that level
    text = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    encoder.load_state_dict(text, strict=True)
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True, exist_ok=True)
    load_bpe().model.save(str(tokenizer))  # vocab.json and merges.txt
    diffusers.StableDiffusionInstructPix2PixPipeline(
        **parts,
        text_encoder=encoder,
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer, model_max_length=77),
        scheduler=diffusers.EulerAncestralDiscreteScheduler(1000, 0.00085, 0.012, "scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def prepare(work: Path, resolution: int, ema: bool) -> None:
    """Write what both programs read, unless an earlier run has left it there."""
    from PIL import Image

    noise = Image.effect_noise((8, 8), 200).convert("RGB")
    noise.resize((resolution, resolution)).save(work / "input.png")
    checkpoint, folder = work / ("ema.safetensors" if ema else "weights.safetensors"), work / "diffusers"
    if not checkpoint.exists():
        write_checkpoint(checkpoint, ema)
    if not (folder / "model_index.json").exists():
        write_diffusers_folder(checkpoint, folder)


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


@contextlib.contextmanager
def gpu_peak(device: str) -> Iterator[list[float]]:
    """What is used of the GPU in the context over what was used before, looked at again and again, in GB."""
    seen: list[float] = []
    if device != "cuda":
        yield seen
        return
    before, ended = used_on_gpu(), threading.Event()

    def look() -> None:
        while not ended.wait(POLL):
            seen.append(used_on_gpu() - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def measure(command: list[str], steps: int, device: str) -> Run:
    """Run Python with these arguments and watch it.

    Raises:
        SystemExit: it failed, or showed other steps than expected.
    """
    environment = {**os.environ, "TQDM_MININTERVAL": "0", "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    shown, finished = b"", {}
    try:
        with gpu_peak(device) as on_gpu:
            while chunk := os.read(process.stderr.fileno(), 65536):
                now = time.perf_counter() - started
                shown += chunk
                for step in PROGRESS.findall(shown):
                    finished.setdefault(int(step), now)
            _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        raise
    whole = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not finished.keys() >= set(range(1, steps + 1)):
        text = shown.decode(errors="replace")[-2000:]
        sys.exit(f"exit code {process.returncode}, saw steps {sorted(finished)} of: {command}\n{text}")
    times = [finished[step] for step in range(1, steps + 1)]
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(
        first_step=times[0],
        step=(times[-1] - times[0]) / (steps - 1),
        memory=max(on_gpu, default=usage.ru_maxrss * unit / 1e9),
        whole=whole,
    )


def compare(work: Path, args: argparse.Namespace) -> dict[str, object]:
    """Prepare, run both in turn, and return all figures, medians and ratios."""
    script = str(Path(__file__).resolve())
    options = ["--work-dir", str(work), "--steps", str(args.steps), "--resolution", str(args.resolution)]
    options += ["--ema"] * args.ema + ["--device", args.device]
    print(f"writing weights to {work}", file=sys.stderr)
    subprocess.run([sys.executable, script, "prepare", *options], check=True)
    commands = {"ours": our_command(work, args), "diffusers": [script, "diffusers", *options]}
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for i in range(args.runs):
        for name, command in commands.items():
            runs[name].append(measure(command, args.steps, args.device))
            print(f"run {i + 1} {name}: {runs[name][-1]}", file=sys.stderr)
    medians = {
        name: {key: statistics.median(getattr(run, key) for run in each) for key in asdict(each[0])}
        for name, each in runs.items()
    }
    return {
        "runs": {name: [asdict(run) for run in each] for name, each in runs.items()},
        "medians": medians,
        "ratios": {key: value / medians["diffusers"][key] for key, value in medians["ours"].items()},
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
    medians, ratios = result["medians"], result["ratios"]
    lines = [
        f"{args.resolution} px, {args.steps} steps, median of {args.runs} runs, {args.device}, "
        + PRECISION[args.device],
        f"{'':24}{'ours':>10}{'diffusers':>12}{'ratio':>8}{'target':>10}",
    ]
    for key, label in LABELS.items():
        line = f"{label:24}{medians['ours'][key]:10.2f}{medians['diffusers'][key]:12.2f}{ratios[key]:8.2f}"
        if key in TARGETS and args.device == "cpu":
            line += f"   ≤ {TARGETS[key]:.2f} {'met' if ratios[key] <= TARGETS[key] else 'MISSED'}"
        lines.append(line)
    lines.append(f"largest difference of the two pictures: {result['largest_pixel_difference']} of 255")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = Parser.of(__doc__)
    add = parser.add_argument_group("edits").add_argument
    add(
        "part",
        nargs="?",
        choices=("compare", "prepare", "diffusers"),
        default="compare",
        help="compare, which starts the others, or one of them alone (default: %(default)s)",
    )
    add("--steps", type=int, default=4, help="denoising steps, at least 2 (default: %(default)s)")
    add(
        "--resolution",
        type=int,
        default=256,
        metavar="PIXELS",
        help="side of the square picture (default: %(default)s)",
    )
    add(
        "--device",
        choices=sorted(PRECISION),
        default="cpu",
        help="where to compute: in float32 on the CPU, in float16 on a GPU (default: %(default)s)",
    )
    add("--ema", action="store_true", help="a checkpoint with a second, averaged UNet in it")
    add = parser.add_argument_group("measurement").add_argument
    add("--runs", type=int, default=3, metavar="N", help="of each program (default: %(default)s)")
    add(
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="files are kept there and used again (default: a temporary folder)",
    )
    add("--json", action="store_true", help="print all figures as JSON")
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
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # cleans up, unlike the default
        with contextlib.ExitStack() as stack:
            work = args.work_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="edit_latency_"))
            Path(work).mkdir(parents=True, exist_ok=True)
            result = compare(Path(work).resolve(), args)
        print(json.dumps(result, indent=2) if args.json else report(result, args))


if __name__ == "__main__":
    run_main(main)
