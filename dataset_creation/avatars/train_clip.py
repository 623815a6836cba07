"""Train a small CLIP on avatars and their captions: what filters pairs where no published CLIP knows them.

    python dataset_creation/avatars/train_clip.py data/avatars_one/train --out clip.safetensors

The network is open_clip's own, laid out by a JSON file in its format; the loss is its ClipLoss. A batch
holds all pictures of some people, which differ by one edit each: pictures of different people alone would be
told apart by their backgrounds. A stopped run goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.arguments import Parser, add_settings
from ldm.data.formats import SHARES, Example, pair_paths, read_examples, read_picture, read_prompt
from ldm.files import ROOT, replacing
from ldm.sampling.noise import derived_seed
from ldm.util import UserError, run_main
from ldm.weights.single_file import save_safetensors

if TYPE_CHECKING:
    from metrics.clip_similarity import Tokenizer

CONFIG = ROOT / "configs/avatars/clip.json"
WARM_UP = 50  # steps
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
LARGEST_SCALE = math.log(100)  # of the logits, as CLIP limits it (Radford et al. 2021, section 2.5)
CANDIDATES = 100  # captions that a held-out picture is to find its own among
SAVE_EVERY = 50  # steps


@dataclass(frozen=True)
class Pictures:
    """Distinct pictures and their captions.

    Attributes:
        pixels: [N, 3, H, W] uint8.
        captions: N texts.
        people: rows of each person.
    """

    pixels: Tensor
    captions: list[str]
    people: list[list[int]]


def read_pictures(examples: list[Example]) -> Pictures:
    """The distinct pictures of pairs, before and after; the seed of a pair is its person."""
    rows: dict[bytes, int] = {}
    pixels, captions = [], []
    people: dict[str, list[int]] = {}
    for example in tqdm(examples, desc="reading", unit="pair"):
        prompt = read_prompt(example.folder)
        for seed in example.seeds:
            before, after = pair_paths(example.folder, seed)
            for file, caption in ((before, prompt.caption), (after, prompt.output)):
                content = file.read_bytes()
                if content not in rows:
                    rows[content] = len(rows)
                    picture = np.array(read_picture(file))  # [H, W, 3]
                    pixels.append(torch.from_numpy(picture).permute(2, 0, 1))
                    captions.append(caption)
                    people.setdefault(seed, []).append(rows[content])
    return Pictures(torch.stack(pixels), captions, list(people.values()))


def split_people(examples: list[Example]) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples; nobody is in both."""
    people = sorted({int(seed) for example in examples for seed in example.seeds})
    last = people[max(1, int(SHARES[0] * len(people))) - 1]
    known = [int(example.seeds[0]) <= last for example in examples]
    split = [[e for e, k in zip(examples, known, strict=True) if k is side] for side in (True, False)]
    if not split[1]:
        raise UserError(f"dataset: expected the avatars of several people, got {len(people)}")
    return split[0], split[1]


class Trainer:
    """CLIP and its optimizer; step k is the same whatever was before it in this process.

    Args:
        network, tokenize: of `build_network`.
        pictures: to train on.
        steps: after which the learning rate is 0.
        people: in a batch, at most as many as there are.
        seed: of the order.
    """

    def __init__(
        self, network: Any, tokenize: Tokenizer, pictures: Pictures, steps: int, people: int, seed: int
    ) -> None:
        from open_clip.loss import ClipLoss

        self.network, self.pictures, self.seed = network.train(), pictures, seed
        self.people = min(people, len(pictures.people))
        self.pixels = normalised(network, pictures.pixels)
        self.tokens = tokenize(pictures.captions)  # [N, L]
        self.loss = ClipLoss()
        parameters = list(network.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), fused=True)
        self.factors = [
            min(1, (k + 1) / WARM_UP) * (1 + math.cos(math.pi * k / steps)) / 2 for k in range(steps)
        ]
        self.step = 0

    def batch(self, step: int) -> list[int]:
        """Rows of the pictures of a step."""
        per_epoch = len(self.pictures.people) // self.people
        epoch, place = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", epoch))
        order = torch.randperm(len(self.pictures.people), generator=generator).tolist()
        chosen = order[place * self.people : (place + 1) * self.people]
        return [row for person in chosen for row in self.pictures.people[person]]

    def train_step(self) -> float:
        """One step; returns its loss."""
        rows = self.batch(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * self.factors[self.step]
        images, texts, scale = self.network(self.pixels[rows], self.tokens[rows])
        loss = self.loss(images, texts, scale)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.network.logit_scale.clamp_(0, LARGEST_SCALE)
        self.step += 1
        return loss.item()

    def save(self, file: Path) -> None:
        """Write all that a run goes on from."""
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        with replacing(file) as part:
            torch.save({**state, "step": self.step, "settings": self.settings()}, part)

    def load(self, file: Path) -> None:
        """Go on from `save`.

        Raises:
            UserError: it is of a run with other settings.
        """
        state = torch.load(file, weights_only=True)
        if state["settings"] != self.settings():
            raise UserError(f"{file} is of another run: expected {self.settings()}, got {state['settings']}")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def settings(self) -> dict[str, int]:
        """What the course of a training depends on."""
        return {
            "steps": len(self.factors),
            "people": self.people,
            "seed": self.seed,
            "pictures": len(self.pixels),
        }


def normalised(network: Any, pixels: Tensor) -> Tensor:
    """Pictures [N, 3, H, W] uint8 as the network wants them, in float32."""
    mean, std = (
        torch.tensor(network.visual.preprocess_cfg[name]).view(3, 1, 1) * 255 for name in ("mean", "std")
    )
    return (pixels - mean) / std


@torch.inference_mode()
def retrieval(network: Any, tokenize: Tokenizer, pictures: Pictures) -> dict[str, float]:
    """How often held-out pictures are nearest to their own caption.

    Returns:
        ``among_100``: of 100 pictures' captions, or as many as there are, one picture of each person first;
        ``among_edits``: of the captions of the same person's pictures, told apart by one edit.
    """
    network.eval()
    images = network.encode_image(normalised(network, pictures.pixels), normalize=True)  # [N, D]
    texts = network.encode_text(tokenize(pictures.captions), normalize=True)
    longest = max(len(rows) for rows in pictures.people)
    turns = [rows[k] for k in range(longest) for rows in pictures.people if k < len(rows)]
    hits = [_hits(images, texts, turns[:CANDIDATES])]
    of_people = torch.cat([_hits(images, texts, rows) for rows in pictures.people])
    return {"among_100": hits[0].mean().item(), "among_edits": of_people.mean().item()}


def _hits(images: Tensor, texts: Tensor, rows: list[int]) -> Tensor:
    """1 for each of the rows whose picture is nearest to its own caption among theirs, else 0, [n]."""
    nearest = (images[rows] @ texts[rows].T).argmax(1)
    return (nearest == torch.arange(len(rows))).float()


def make_parser() -> argparse.ArgumentParser:
    parser = Parser.of(__doc__)
    add = parser.add_argument
    add("dataset", metavar="DATASET_DIR", help="avatars in the published layout")
    add("--out", type=Path, required=True, metavar="FILE", help="safetensors file to write")
    add(
        "--config",
        default=str(CONFIG),
        metavar="FILE",
        help="open_clip's JSON configuration (default: configs/avatars/clip.json)",
    )
    add_settings(
        parser,
        ("--steps", 800, "optimizer steps"),
        ("--people", 12, "in a batch, all pictures of each", "N"),
        ("--seed", 0, "of weights and order"),
    )
    return parser


def main() -> None:
    args = make_parser().parse_args()
    if min(args.steps, args.people) < 1:
        raise UserError("expected --steps and --people of at least 1")

    from metrics.clip_similarity import build_network

    train, held_out = map(read_pictures, split_people(read_examples(args.dataset)))
    torch.manual_seed(args.seed)
    network, tokenize = build_network(args.config, "", download=False)
    trainer = Trainer(network, tokenize, train, args.steps, args.people, args.seed)
    saved = args.out.with_suffix(".ckpt")
    if saved.exists():
        trainer.load(saved)
    with tqdm(total=args.steps, initial=trainer.step, desc="CLIP", unit="step", mininterval=5) as bar:
        while trainer.step < args.steps:
            loss = trainer.train_step()
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update()
            if trainer.step % SAVE_EVERY == 0 or trainer.step == args.steps:
                trainer.save(saved)
    found = retrieval(network, tokenize, held_out)
    save_safetensors(network.state_dict(), args.out, {"retrieval": json.dumps(found)})
    print(json.dumps({"pictures": len(held_out.captions), **found}))


if __name__ == "__main__":
    run_main(main)
