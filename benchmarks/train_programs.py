"""The programs that `train_step.py` compares, each a process of its own: not meant to be started by hand.

    python benchmarks/train_programs.py PART FOLDER SETTINGS     # JSON; prints figures as JSON

PART is ``prepare`` (writes the weights that the others read), ``ours``, ``cached`` or ``diffusers``.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.runner import gigabytes
from ldm.files import ROOT

# The parts import what they need themselves, since all that is in memory counts into their peak.

CONFIG = ROOT / "configs/train.yaml"
INSTRUCTIONS = ("turn him into a cyborg", "make it a watercolour", "swap sunflowers with roses", "as snow")
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01
DROPOUT = 0.05
LIMIT = 4096  # largest batch that is tried
BUDGET = 0.97  # of the GPU's memory that a batch may take: at the very edge the allocator thrashes

Step = Callable[[], Any]  # one training step on a batch that stays the same


@dataclass(frozen=True)
class Program:
    """A training in memory.

    Attributes:
        predict: the noise it predicts for a given input, a tensor [1, 4, h, w] on the CPU.
        start: call once, before the first step: moves the networks to the precision of the training.
        make_step: a step on a batch of that size.
    """

    predict: Callable[[], Any]
    start: Callable[[], None]
    make_step: Callable[[int], Step]


# --- Preparation, in a process of its own -------------------------------------------------------------------


def model_config(size: str, checkpointing: bool) -> Any:
    """The `model` section of the published training at full size or at half the width everywhere."""
    from omegaconf import OmegaConf

    model = OmegaConf.load(CONFIG).model
    params = model.params
    params.ckpt_path = params.scheduler_config = None
    params.unet_config.params.use_checkpoint = checkpointing
    if size == "medium":
        params.unet_config.params.update(model_channels=160, context_dim=384)
        params.first_stage_config.params.ddconfig.ch = 64
        text_sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6}
        params.cond_stage_config.params = text_sizes
    return model


def prepare(work: Path, size: str, checkpointing: bool) -> None:
    """Write config and random weights for ours, and the same converted to diffusers' layout."""
    from omegaconf import OmegaConf

    from benchmarks.random_model import write_random

    OmegaConf.save(OmegaConf.create({"model": model_config(size, checkpointing)}), work / "config.yaml")
    write_random(work / "config.yaml", work)


# --- The programs -------------------------------------------------------------------------------------------


def pictures(args: argparse.Namespace, count: int) -> Any:
    """Pictures before and after, [2, count, 3, H, W] in [-1, 1]."""
    import torch

    shape = (2, count, 3, args.resolution, args.resolution)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(args.device) * 2 - 1


def texts(count: int) -> list[str]:
    return [INSTRUCTIONS[i % len(INSTRUCTIONS)] for i in range(count)]


def fixed_input(args: argparse.Namespace) -> tuple[Any, Any]:
    """A noisy latent [1, 4, h, w] and a timestep [1]."""
    import torch

    side = args.resolution // 8
    noise = torch.randn((1, 4, side, side), generator=torch.Generator().manual_seed(2))
    return noise.to(args.device), torch.tensor([500], device=args.device)


def our_program(work: Path, args: argparse.Namespace) -> Program:
    """The networks, optimizer and average of a training by main.py."""
    import torch
    from omegaconf import OmegaConf

    from ldm.device import keep_freed_memory
    from ldm.training.module import TrainingEncoder, can_compile, training_module
    from ldm.util import instantiate_from_config
    from ldm.weights.loading import load_for_training

    if args.device == "cpu":
        keep_freed_memory()
    network = instantiate_from_config(OmegaConf.load(work / "config.yaml").model)
    load_for_training(network, work / "weights.safetensors")
    module = training_module(network, LEARNING_RATE).to(args.device).train()
    optimizer = module.configure_optimizers()

    encoders: list[TrainingEncoder] = []

    @torch.no_grad()
    def predict() -> Any:
        (before, _), (noisy, t) = pictures(args, 1), fixed_input(args)
        conditioning = {"c_concat": [network.encode_first_stage(before).mode()]}
        conditioning["c_crossattn"] = [network.get_learned_conditioning(texts(1))]
        return network.apply_model(noisy, t, conditioning).cpu()

    def start() -> None:
        if args.device == "cuda" and args.precision == "bf16":
            encoders.append(TrainingEncoder(network.first_stage_model, torch.bfloat16, can_compile()))
        if args.compile:
            network.model.diffusion_model.compile()

    def make_step(size: int) -> Step:
        before, after = pictures(args, size)
        instructions: Any = texts(size)
        if args.part == "cached":
            side = args.resolution // 8
            before, after = torch.randn(2, size, 8, side, side, device=args.device)
            with torch.no_grad():
                instructions = network.get_learned_conditioning(instructions)  # [B, L, D]
        edit = {"c_concat": before, "c_crossattn": instructions}
        batch = {"edited": after, "edit": edit, "noise_seed": list(range(size))}

        def step() -> None:
            optimizer.zero_grad()  # of a step before that did not fit
            with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16"):
                loss, _ = network.training_loss(encoders[0](batch) if encoders else batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            network.model_ema(network.model)

        return step

    return Program(predict, start, make_step)


def diffusers_program(work: Path, args: argparse.Namespace) -> Program:
    """What diffusers' example trains with: its networks, Accelerate, AdamW and EMAModel."""
    import torch
    import torch.nn.functional as F
    from accelerate import Accelerator
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from diffusers.training_utils import EMAModel
    from transformers import CLIPTextModel

    from ldm.modules.encoders.tokenizer import CLIPTokenizer  # gives the ids that transformers' gives

    folder = work / "diffusers"
    scheduler = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").requires_grad_(False).to(args.device)
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    text_encoder = text_encoder.requires_grad_(False).to(args.device)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").to(args.device).train()
    if args.checkpointing:
        unet.enable_gradient_checkpointing()
    average = EMAModel(unet.parameters(), model_cls=UNet2DConditionModel, model_config=unet.config)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    accelerator = Accelerator(
        mixed_precision={"fp32": "no", "bf16": "bf16"}[args.precision],
        cpu=args.device == "cpu",
        dynamo_backend="inductor" if args.compile else "no",
    )
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.precision]
    tokenize = CLIPTokenizer()

    @torch.no_grad()
    def predict() -> Any:
        (before, _), (noisy, t) = pictures(args, 1), fixed_input(args)
        concatenated = torch.cat([noisy, vae.encode(before).latent_dist.mode()], dim=1)
        return unet(concatenated, t, text_encoder(tokenize(texts(1)).to(args.device))[0]).sample.cpu()

    def start() -> None:
        nonlocal unet, optimizer
        vae.to(dtype=dtype)
        text_encoder.to(dtype=dtype)
        unet, optimizer = accelerator.prepare(unet, optimizer)

    def make_step(size: int) -> Step:
        before, after = pictures(args, size)
        ids, no_ids = tokenize(texts(size)).to(args.device), tokenize([""]).to(args.device)

        def step() -> None:
            optimizer.zero_grad()
            latents = vae.encode(after.to(dtype)).latent_dist.sample() * vae.config.scaling_factor
            noise = torch.randn_like(latents)
            t = torch.randint(0, scheduler.config.num_train_timesteps, (size,), device=latents.device)
            noisy = scheduler.add_noise(latents, noise, t)
            text = text_encoder(ids)[0]
            image = vae.encode(before.to(dtype)).latent_dist.mode()
            u = torch.rand(size, device=latents.device)[:, None, None]
            text = torch.where(u < 2 * DROPOUT, text_encoder(no_ids)[0], text)
            image_dropped = (u >= DROPOUT) & (u < 3 * DROPOUT)
            image = image * ~image_dropped[..., None]
            predicted = unet(torch.cat([noisy, image], dim=1), t, text, return_dict=False)[0]
            loss = F.mse_loss(predicted.float(), noise.float())
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            average.step(unet.parameters())

        return step

    return Program(predict, start, make_step)


# --- Measuring, in the process of a program -----------------------------------------------------------------


def synchronized(device: str) -> float:
    """The time, when the device has done all its work."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(step: Step, steps: int, warm_up: int, device: str) -> list[float]:
    """Seconds of each of `steps` steps after `warm_up` others."""
    for _ in range(warm_up):
        step()
    times = [synchronized(device)]
    for _ in range(steps):
        step()
        times.append(synchronized(device))
    return [b - a for a, b in zip(times, times[1:], strict=False)]


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """Largest size in 1..limit that fits, 0 if none does: doubled until one does not, then bisected."""
    low, high = 0, 1  # low fits, from high on nothing does, once the loop has ended
    while high <= limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > max(1, low // 32):  # to 3 percent, which is less than fragmentation varies
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def largest_batch(program: Program) -> int:
    """Largest batch that the GPU's memory takes for three steps in a row."""
    import torch

    torch.cuda.set_per_process_memory_fraction(BUDGET)

    def fits(size: int) -> bool:
        fitted = True
        try:
            timed(program.make_step(size), steps=1, warm_up=2, device="cuda")
        except torch.OutOfMemoryError:
            fitted = False
        gc.collect()  # the frames of the failed step hold its activations
        torch.cuda.empty_cache()
        print(f"batch {size}: {'fits' if fitted else 'does not fit'}", file=sys.stderr)
        return fitted

    return largest(fits, LIMIT)


def peak_memory(device: str) -> float:
    """GB: on a GPU the most that tensors took, elsewhere the largest resident size of this process."""
    import resource

    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return gigabytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def run_program(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Build, predict, train; the figures of this process."""
    import torch

    program = (diffusers_program if args.part == "diffusers" else our_program)(work, args)
    torch.save(program.predict(), work / f"{args.part}.pt")
    program.start()
    batch = largest_batch(program) if args.largest_batch else args.batch_size
    if not batch:
        sys.exit(f"{args.part}: not even a batch of 1 fits")
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(program.make_step(batch), args.steps, args.warm_up, args.device)
    threads = f"{torch.get_num_threads()} CPU threads"
    device = torch.cuda.get_device_name() if args.device == "cuda" else threads
    return {"seconds": seconds, "batch": batch, "memory": peak_memory(args.device), "device": device}


def main() -> None:
    """Be the part that the command line names."""
    part, work, settings = sys.argv[1:]
    args = argparse.Namespace(part=part, **json.loads(settings))
    if part == "prepare":
        prepare(Path(work), args.size, args.checkpointing)
    print(json.dumps({} if part == "prepare" else run_program(Path(work), args)))


if __name__ == "__main__":
    main()
