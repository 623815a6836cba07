"""The full-size network here and in diffusers: with the same weights and noise, how far is the picture off?

Random weights in the layout of configs/generate.yaml are written as one .safetensors file, and converted to
a diffusers folder and back by scripts/convert_checkpoint.py, in float32. Reported are the time and the peak
memory of both conversions, whether every weight came back the same, and the relative error (L2) of the
picture that diffusers' pipeline makes of that folder against ours, on the CPU in float32.

    python benchmarks/diffusers_parity.py              # needs: pip install -e '.[benchmark]', 13 GB of disk
    python benchmarks/diffusers_parity.py --resolution 256 --steps 4 --work-dir /tmp/parity

Two steps at least: for a single one diffusers' schedule starts at no noise, ours at all of it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.arguments import Parser
from ldm.util import UserError, run_main

if TYPE_CHECKING:
    from PIL import Image

# The memory of a process that starts another one counts into the other's peak: imports come late.

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/generate.yaml"
INSTRUCTION = "turn him into a cyborg"
CFG_TEXT, CFG_IMAGE, SEED = 7.5, 1.5, 0
TARGET = 1e-3  # relative error, at most


def write_weights(path: Path) -> None:
    """Write random weights that keep activations of order one."""
    import torch
    from omegaconf import OmegaConf

    from ldm.util import instantiate_from_config
    from ldm.weights.single_file import save_safetensors

    config = OmegaConf.load(CONFIG).model
    config.params.use_ema = False
    with torch.device("meta"):
        model = instantiate_from_config(config)
    model.register_schedule()
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.is_meta:
            noise = torch.randn(tensor.shape, generator=generator)
            scale = 0.5 * tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1
            centre = float(tensor.ndim == 1 and name.endswith("weight"))  # scales of normalisations
            state[name] = centre + scale * noise
    save_safetensors(state, path)


def edit_with_ours(work: Path, resolution: int, steps: int) -> None:
    """Write the edited picture [1, 3, H, W], about [-1, 1], to ours.safetensors."""
    from safetensors.torch import save_file

    from ldm.editor import ImageEditor, Sampling
    from ldm.pictures.fitting import to_tensor
    from ldm.weights.loading import load_model

    model = load_model(CONFIG, work / "weights.safetensors")
    sampling = Sampling(steps=steps, cfg_text=CFG_TEXT, cfg_image=CFG_IMAGE, seed=SEED)
    edited = ImageEditor(model, sampling).edit_batch(
        to_tensor(picture(resolution)), [INSTRUCTION], [sampling]
    )
    save_file({"picture": edited.contiguous()}, work / "ours.safetensors")


def edit_with_diffusers(work: Path, resolution: int, steps: int) -> None:
    """The same by diffusers' pipeline, to theirs.safetensors."""
    import torch
    from diffusers import StableDiffusionInstructPix2PixPipeline
    from safetensors.torch import save_file

    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(work / "folder")
    latent = pipeline(
        INSTRUCTION,
        image=picture(resolution),
        num_inference_steps=steps,
        guidance_scale=CFG_TEXT,
        image_guidance_scale=CFG_IMAGE,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
    ).images
    with torch.no_grad():  # decoded here, since the pipeline would clamp the numbers
        decoded = pipeline.vae.decode(latent / pipeline.vae.config.scaling_factor).sample
    save_file({"picture": decoded.contiguous()}, work / "theirs.safetensors")


def picture(resolution: int) -> Image.Image:
    """A soft disc, as the picture to edit."""
    from PIL import Image

    return Image.radial_gradient("L").resize((resolution, resolution)).convert("RGB")


def run(*command: str | Path) -> tuple[float, float]:
    """Run Python with these arguments; return its seconds and its peak memory in GB.

    Raises:
        SystemExit: it failed.
    """
    started = time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, *map(str, command)], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"exit code {process.returncode} of: {command}")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - started, usage.ru_maxrss * unit / 1e9


def convert(work: Path, source: str, target: str) -> str:
    """Convert in `work`; return what it took."""
    script = ROOT / "scripts/convert_checkpoint.py"
    paths = ("--ckpt", work / source, "--output", work / target)
    seconds, memory = run(script, "--config", CONFIG, "--dtype", "fp32", *paths)
    return f"{source} to {target}: {seconds:.0f} s, peak memory {memory:.2f} GB, mapped files included"


def compare(work: Path, resolution: int, steps: int) -> None:
    """Write, convert, edit with both, and print what there is to say."""
    options = ("--work-dir", work, "--resolution", str(resolution), "--steps", str(steps))
    run(__file__, "write", *options)
    size = (work / "weights.safetensors").stat().st_size / 1e9
    lines = [convert(work, "weights.safetensors", "folder"), convert(work, "folder", "back.safetensors")]
    memory = {part: run(__file__, part, *options)[1] for part in ("ours", "diffusers")}

    import torch
    from safetensors.torch import load_file

    from ldm.weights.opening import read_state_dict

    before, after = (read_state_dict(work / f"{name}.safetensors") for name in ("weights", "back"))
    equal = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    ours, theirs = (load_file(work / f"{name}.safetensors")["picture"] for name in ("ours", "theirs"))
    error = ((ours - theirs).norm() / theirs.norm()).item()
    print(f"weights: {len(before)} tensors, {size:.2f} GB", *lines, sep="\n")
    print(f"after both conversions: {'every tensor is the same' if equal else 'tensors DIFFER'}")
    print(f"peak memory of an edit: ours {memory['ours']:.2f} GB, diffusers {memory['diffusers']:.2f} GB")
    verdict = "met" if error <= TARGET else "MISSED"
    print(f"{resolution} px, {steps} steps: relative error {error:.1e} (≤ {TARGET:.0e} {verdict})")


def main() -> None:
    """Compare, or be one of the processes of a comparison."""
    parser = Parser.of(__doc__)
    add = parser.add_argument
    add(
        "part",
        nargs="?",
        choices=("compare", "write", "ours", "diffusers"),
        default="compare",
        help="compare, which starts the others, or one of them alone (default: %(default)s)",
    )
    add(
        "--resolution",
        type=int,
        default=64,
        metavar="PIXELS",
        help="side of the picture, a multiple of 64 (default: %(default)s)",
    )
    add("--steps", type=int, default=2, help="denoising steps, at least 2 (default: %(default)s)")
    add("--work-dir", type=Path, metavar="DIR", help="an empty folder to keep the files in (default: none)")
    args = parser.parse_args()
    if args.part == "write":
        write_weights(args.work_dir / "weights.safetensors")
    elif args.part == "ours":
        edit_with_ours(args.work_dir, args.resolution, args.steps)
    elif args.part == "diffusers":
        edit_with_diffusers(args.work_dir, args.resolution, args.steps)
    else:
        if args.steps < 2 or args.resolution % 64:
            raise UserError("expected --steps of at least 2 and --resolution a multiple of 64")
        with contextlib.ExitStack() as stack:
            work = args.work_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="parity_"))
            Path(work).mkdir(parents=True, exist_ok=True)
            compare(Path(work).resolve(), args.resolution, args.steps)


if __name__ == "__main__":
    run_main(main)
