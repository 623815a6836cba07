"""What a model edits, as its config says: its subject, instructions to try, examples, and preview colours."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.files import ROOT
from ldm.util import UserError, read_block, read_config

EXAMPLES = Path(__file__).parent / "examples"
# Styles, seasons, materials, places and small changes, so that most photographs find some that fit.
PHOTOGRAPHS = (
    "turn it into a watercolor painting",
    "make it a pencil sketch",
    "as if it were built from toy bricks",
    "make it look like a stained glass window",
    "turn the photo into a comic book panel",
    "make it a black and white film still from the 1940s",
    "what would it look like as a clay figure?",
    "make it snow",
    "have it take place in autumn",
    "turn day into night, with street lights",
    "make it a stormy day with dark clouds",
    "add a rainbow to the sky",
    "set it under the northern lights",
    "let it be underwater",
    "move the scene to the surface of Mars",
    "overgrow everything with ivy and moss",
    "cover everything with flowers",
    "make everything out of gold",
    "turn it into a city of the far future",
    "add fireworks in the background",
    "give it the light of a sunset",
    "replace the background with a snowy mountain range",
)
# Version 1: see `About.preview`. As the community has fitted them.
STABLE_DIFFUSION = (
    (0.298, 0.207, 0.208),
    (0.187, 0.286, 0.173),
    (-0.158, 0.189, 0.264),
    (-0.184, -0.271, -0.473),
    (0.0, 0.0, 0.0),
)


@dataclass(frozen=True)
class About:
    """By default a model of photographs with the latents of Stable Diffusion 1.

    Attributes:
        subject: "photo" or "drawing".
        suggestions: instructions to try.
        examples: picture file, in `EXAMPLES` where no folder is named → an instruction for it.
        preview: [5, 3], colours of the four channels of a scaled latent, and those of a latent that is 0; RGB
            in [-1, 1].
    """

    subject: str = "photo"
    suggestions: Sequence[str] = PHOTOGRAPHS
    examples: Mapping[str, str] = field(
        default_factory=lambda: {str(ROOT / "imgs/example.jpg"): "turn him into a cyborg"}
    )
    preview: Sequence[Sequence[float]] = STABLE_DIFFUSION

    @classmethod
    def from_config(cls, config: str | Path) -> About:
        """What the block `about` of a model's YAML file says.

        Raises:
            UserError: the file cannot be read, or the block has an unknown name or a value of another kind.
        """
        about = cls(**read_block(read_config(config), config, "about", cls))
        rows, examples = about.preview, about.examples
        fits = {
            "subject: expected photo or drawing": about.subject in ("photo", "drawing"),
            "suggestions: expected a list of instructions": _is_list(about.suggestions, str),
            "examples: expected instructions by picture file": isinstance(examples, Mapping)
            and _is_list([*examples, *examples.values()], str),
            "preview: expected 5 rows of 3 numbers": _is_list(rows, Sequence, 5)
            and all(_is_list(row, int | float, 3) for row in rows),
        }
        for wrong in (what for what, fit in fits.items() if not fit):
            raise UserError(f"{config}: about.{wrong}, got {getattr(about, wrong.partition(':')[0])!r}")
        return about

    def draw(self, count: int, seed: int) -> list[str]:
        """`count` different suggestions or all if they are fewer, the same for the same seed."""
        return random.Random(seed).sample(self.suggestions, min(count, len(self.suggestions)))


def _is_list(value: Any, kind: Any, length: int | None = None) -> bool:
    """Whether it is a list of something, all of one kind; of that length."""
    listed = isinstance(value, list | tuple) and len(value) == (length or len(value) or -1)
    return listed and all(isinstance(item, kind) for item in value)
