"""Image pairs an hour, and the memory of a step, beside the same work done as published.

The published way, written here over the same modules and weights: one sample at a time (a batch of four:
either caption, with and without it), attention by whole matrices, conditioning computed anew for each
sample; on a GPU under autocast with weights in float32. Ours is PairSampler, as many samples at once as
the device is given. The network is Stable Diffusion 1.5's in full size with random weights. Runs take turns;
memory is that of a process of its own.

    python benchmarks/pair_generation.py --resolution 256 --steps 3           # CPU
    python benchmarks/pair_generation.py --device cuda --precision fp16 --samples 25
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from benchmarks.random_model import random_model
from benchmarks.runner import in_turn, medians, run_python, verdict
from dataset_creation.pairs.sampler import PairSampler, Ranges
from ldm.arguments import (
    SD_CONFIG,
    Parser,
    add_device_option,
    add_precision_option,
    add_settings,
)
from ldm.device import DTYPES, choose_device, choose_precision, keep_freed_memory
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.attention import BasicTransformerBlock, CrossAttention
from ldm.sampling.prompt_to_prompt import last_shared_sigma
from ldm.sampling.samplers import sample_euler_ancestral
from ldm.sampling.schedule import sigma_to_t
from ldm.util import read_config, run_main

CAPTIONS = ("photograph of a girl riding a horse", "photograph of a girl riding a dragon")
RANGES = Ranges()
SPEED_TARGETS = {"cuda": 3.0, "cpu": 1.5}  # ours / published, at least
MEMORY_TARGET = 0.5  # of a step, ours / published, at most
QUALITY_TARGET = 2 / 255  # mean difference of half precision from float32, of a range of 1, at most
PAPER_SAMPLES = 454_445 * 100
PUBLISHED_STEPS = 100
WORK_STEPS = 4  # after which both ways are compared: they do the same work


def build(device: torch.device, dtype: torch.dtype) -> LatentDiffusion:
    """The full-size model with random weights, always the same."""
    model = random_model(read_config(SD_CONFIG).model, device, scale=1.0, spread=0.0)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    if device.type == "cuda":
        for network in (model.model, model.first_stage_model):
            network.to(memory_format=torch.channels_last)
    else:
        keep_freed_memory()
    return model


# --- As published -------------------------------------------------------------------------------------------


class WholeMatrices(torch.nn.Module):
    """A `CrossAttention` with its logits in memory; in self-attention the second prompt's are replaced.

    The batch is [uncond 1, uncond 2, cond 1, cond 2].
    """

    def __init__(self, attention: CrossAttention) -> None:
        super().__init__()
        self.attention = attention
        self.sharing = False

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """[4, N, C], [4, L, D] -> [4, N, C]."""
        layer, is_self = self.attention, context is None
        context = x if context is None else context
        q, k, v = (
            rearrange(y, "b n (heads d) -> (b heads) n d", heads=layer.heads)
            for y in (layer.to_q(x), layer.to_k(context), layer.to_v(context))
        )
        logits = torch.einsum("b i d, b j d -> b i j", q, k) * q.shape[-1] ** -0.5  # [4 heads, N, L]
        if is_self and self.sharing:
            halves = rearrange(logits, "(half prompt heads) i j -> half prompt heads i j", half=2, prompt=2)
            logits = rearrange(
                halves[:, :1].expand_as(halves), "half prompt heads i j -> (half prompt heads) i j"
            )
        out = torch.einsum("b i j, b j d -> b i d", logits.softmax(dim=-1), v)
        return layer.to_out(rearrange(out, "(b heads) n d -> b n (heads d)", heads=layer.heads))


class AsPublished:
    """Samples one at a time; takes the model over, whose attentions it changes."""

    def __init__(self, model: LatentDiffusion, resolution: int) -> None:
        self.attentions = []
        for block in model.modules():
            if isinstance(block, BasicTransformerBlock):
                block.attn1, block.attn2 = WholeMatrices(block.attn1), WholeMatrices(block.attn2)
                self.attentions.append(block.attn1)
        self.sampler = PairSampler(model, resolution=resolution)

    def run(self, seeds: list[int]) -> Tensor:
        """Pictures [B, 2, 3, H, W] in [-1, 1]."""
        device = self.sampler.device.type
        with torch.inference_mode(), torch.autocast(device, torch.float16, enabled=device == "cuda"):
            return torch.stack([self._one(seed).float() for seed in seeds])

    def _one(self, seed: int) -> Tensor:
        """[2, 3, H, W] in [-1, 1]."""
        model, sigmas = self.sampler.model, self.sampler.sigmas
        noise, start, ((p2p, cfg),) = self.sampler.draw([seed])
        (level,) = last_shared_sigma(sigmas, [0.1 + 0.8 * p2p])
        scale = 7.5 + 7.5 * cfg
        text = model.get_learned_conditioning(["", "", *CAPTIONS])  # [4, L, D]
        known = model.sigmas

        def denoise(z: Tensor, sigma: Tensor) -> Tensor:
            for attention in self.attentions:
                attention.sharing = bool(sigma[0] > level)
            x = (z / (sigma[0] ** 2 + 1).sqrt()).repeat(2, 1, 1, 1)  # [4, 4, h, w]
            t = sigma_to_t(known, sigma).repeat(2)
            plain, guided = model.apply_model(x, t, {"c_crossattn": [text]}).chunk(2)
            return z - sigma[0] * (plain + scale * (guided - plain))

        z = (start * sigmas[0]).repeat(2, 1, 1, 1)  # [2, 4, h, w]
        z = sample_euler_ancestral(denoise, z, sigmas, noise=lambda like: noise(like[:1]).repeat(2, 1, 1, 1))
        return model.decode_first_stage(z).clamp(-1, 1)


class Ours:
    """Samples together."""

    def __init__(self, model: LatentDiffusion, resolution: int) -> None:
        self.sampler = PairSampler(model, resolution=resolution)

    def run(self, seeds: list[int]) -> Tensor:
        """Pictures [B, 2, 3, H, W] in [-1, 1]."""
        return self.sampler.sample(CAPTIONS, seeds, RANGES)[1]


# --- Measuring ----------------------------------------------------------------------------------------------


def seconds_a_sample(way: AsPublished | Ours, samples: int, steps: int) -> float:
    """Time of a sample of `PUBLISHED_STEPS` steps, from that of two steps and of `steps` more."""

    def timed(count: int) -> float:
        way.sampler.set_steps(count)
        began = time.perf_counter()
        way.run(list(range(samples))).cpu()  # which waits for a GPU
        return time.perf_counter() - began

    few, more = timed(2), timed(2 + steps)
    return (few + (more - few) / steps * (PUBLISHED_STEPS - 2)) / samples


def speed(args: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """Median seconds a sample of both ways, and how far apart pictures of one seed are, of a range of 1.

    Those of both ways ("difference"), and ours in half precision and in float32 ("rounding").
    """
    theirs, own = build(device, torch.float32), build(device, DTYPES[args.precision])
    mine = Ours(own, args.resolution)
    result: dict[str, object] = {}
    if args.precision == "fp32":  # one copy of the weights
        for parameter, same in zip(own.parameters(), theirs.parameters(), strict=True):
            parameter.data = same.data
    else:
        result["rounding"] = apart(Ours(theirs, args.resolution), mine, PUBLISHED_STEPS)
    published = AsPublished(theirs, args.resolution)
    result["difference"] = apart(published, mine, WORK_STEPS)
    if device.type == "cuda":  # kernels are chosen and memory is taken in the first run of each size
        for way, samples in ((published, 1), (mine, args.samples)):
            seconds_a_sample(way, samples, 1)
    ways = {
        "published": partial(seconds_a_sample, published, 1, args.steps),
        "ours": partial(seconds_a_sample, mine, args.samples, args.steps),
    }
    seconds = in_turn(args.rounds, ways)
    return {**result, "seconds": seconds, "medians": medians(seconds)}


def apart(one: AsPublished | Ours, other: AsPublished | Ours, steps: int) -> float:
    """Mean difference of the pictures of a seed, of a range of 1."""
    for way in (one, other):
        way.sampler.set_steps(steps)
    return (one.run([1]) - other.run([1])).abs().mean().item() / 2


def step_memory(args: argparse.Namespace, device: torch.device) -> int:
    """Bytes over the loaded model that a few steps of one sample need, in this process."""
    published = args.memory_of == "published"
    model = build(device, torch.float32 if published else DTYPES[args.precision])
    way = (AsPublished if published else Ours)(model, args.resolution)
    way.sampler.set_steps(2)
    # Either way decodes alike, and a decoder in full resolution needs more than a step.
    model.first_stage_model.decode = lambda z: z[:, :3]
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        way.run([0])
        return torch.cuda.max_memory_allocated() - before
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    way.run([0])
    return _status("VmHWM") - before


def _status(name: str) -> int:
    """A line of what Linux says of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def memory(args: argparse.Namespace) -> dict[str, float]:
    """Gigabytes of a step of both ways, each in a process of its own."""
    found = {}
    for way in ("published", "ours"):
        words = ["--memory-of", way, "--device", args.device, "--precision", args.precision]
        words += ["--resolution", str(args.memory_resolution or args.resolution)]
        found[way] = float(run_python(__file__, *words).output.split()[-1]) / 1e9
    return found


def report(result: dict[str, object], device: torch.device, args: argparse.Namespace) -> str:
    published, mine = result["medians"]["published"], result["medians"]["ours"]
    days = PAPER_SAMPLES * mine / 86400
    needs = result["memory"]
    target = SPEED_TARGETS.get(device.type, SPEED_TARGETS["cpu"])
    lines = [
        f"{args.resolution} px, {args.precision}, {args.samples} samples at once, {PUBLISHED_STEPS} steps",
        f"as published {3600 / published:8.2f} samples an hour",
        f"ours         {3600 / mine:8.2f} samples an hour, "
        + verdict(published / mine, target, at_least=True),
        f"memory of a step: {needs['published']:.2f} and {needs['ours']:.2f} GB, "
        + verdict(needs["ours"] / needs["published"], MEMORY_TARGET, at_least=False),
        f"pictures of both ways after {WORK_STEPS} steps differ by {255 * result['difference']:.2f} of 255",
        f"the paper's {PAPER_SAMPLES:,} samples: {days:,.0f} days of this device",
    ]
    if "rounding" in result:
        rounding = verdict(255 * result["rounding"], 255 * QUALITY_TARGET, at_least=False)
        lines.append(
            f"ours in {args.precision} and float32, {PUBLISHED_STEPS} steps, differ by {rounding} of 255"
        )
    return "\n".join(lines)


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser.of(__doc__)
    group = parser.add_argument_group("sampling")
    add_device_option(group)
    add_precision_option(group)
    add_settings(
        group,
        ("--resolution", 512, "side of the square pictures", "PIXELS"),
        ("--samples", 1, "of ours at once", "N"),
    )
    group = parser.add_argument_group("measurement")
    add_settings(
        group,
        ("--steps", 4, "timed steps of a run, beside two"),
        ("--rounds", 3, "of both ways in turn", "N"),
    )
    add = group.add_argument
    sides = "of the memory measurement (default: --resolution)"
    add("--memory-resolution", type=int, metavar="PIXELS", help=sides)
    add("--json", metavar="FILE", help="write all figures there too (default: none)")
    add("--memory-of", choices=("published", "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if min(args.samples, args.steps, args.rounds) < 1:
        parser.error("expected --samples, --steps and --rounds of at least 1")
    return args


def main() -> None:
    args = parse_args()
    device = choose_device(args.device)
    args.device, args.precision = str(device), choose_precision(args.precision, device)
    if args.memory_of:
        print(step_memory(args, device))
        return
    result = {"memory": memory(args), **speed(args, device)}
    result |= {"settings": vars(args), "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(report(result, device, args))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    run_main(main)
