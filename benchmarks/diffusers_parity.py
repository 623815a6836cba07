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

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.runner import run_python, verdict, work_folder
from ldm.arguments import Parser, add_settings
from ldm.files import ROOT
from ldm.util import UserError, run_main

if TYPE_CHECKING:
    from PIL import Image

CONFIG = ROOT / "configs/generate.yaml"
INSTRUCTION = "turn him into a cyborg"
CFG_TEXT, CFG_IMAGE, SEED = 7.5, 1.5, 0
TARGET = 1e-3  # relative error, at most


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


def convert(work: Path, source: str, target: str) -> str:
    """Convert in `work`; return what it took."""
    script = ROOT / "scripts/convert_checkpoint.py"
    paths = ("--ckpt", work / source, "--output", work / target)
    took = run_python(script, "--config", CONFIG, "--dtype", "fp32", *paths)
    return (
        f"{source} to {target}: {took.seconds:.0f} s, peak memory {took.memory:.2f} GB, mapped files included"
    )


def compare(work: Path, resolution: int, steps: int) -> None:
    """Write, convert, edit with both, and print what there is to say."""
    options = ("--work-dir", work, "--resolution", str(resolution), "--steps", str(steps))
    run_python(__file__, "write", *options)
    size = (work / "weights.safetensors").stat().st_size / 1e9
    lines = [convert(work, "weights.safetensors", "folder"), convert(work, "folder", "back.safetensors")]
    memory = {part: run_python(__file__, part, *options).memory for part in ("ours", "diffusers")}

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
    shown = verdict(error, TARGET, at_least=False, form=".1e")
    print(f"{resolution} px, {steps} steps: relative error {shown}")


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
    add_settings(
        parser,
        ("--resolution", 64, "side of the picture, a multiple of 64", "PIXELS"),
        ("--steps", 2, "denoising steps, at least 2"),
    )
    add("--work-dir", type=Path, metavar="DIR", help="an empty folder to keep the files in (default: none)")
    args = parser.parse_args()
    if args.part == "write":
        from benchmarks.random_model import random_model
        from ldm.util import read_config
        from ldm.weights.single_file import save_safetensors

        model = random_model(read_config(CONFIG).model)
        save_safetensors(model.state_dict(), args.work_dir / "weights.safetensors")
    elif args.part == "ours":
        edit_with_ours(args.work_dir, args.resolution, args.steps)
    elif args.part == "diffusers":
        edit_with_diffusers(args.work_dir, args.resolution, args.steps)
    else:
        if args.steps < 2 or args.resolution % 64:
            raise UserError("expected --steps of at least 2 and --resolution a multiple of 64")
        with work_folder(args.work_dir) as work:
            compare(work, args.resolution, args.steps)


if __name__ == "__main__":
    run_main(main)
