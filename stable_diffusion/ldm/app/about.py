"""What a model edits, as its config says: its subject, instructions to try, examples, and preview colours."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

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
        examples: pairs of a picture file, in `EXAMPLES` where no folder is named, and an instruction for it.
        preview: [5, 3], colours of the four channels of a scaled latent, and those of a latent that is 0; RGB
            in [-1, 1].
    """

    subject: str = "photo"
    suggestions: list[str] = field(default_factory=lambda: [*PHOTOGRAPHS])
    examples: list[list[str]] = field(
        default_factory=lambda: [[str(ROOT / "imgs/example.jpg"), "turn him into a cyborg"]]
    )
    preview: list[list[float]] = field(default_factory=lambda: [*map(list, STABLE_DIFFUSION)])

    @classmethod
    def from_config(cls, config: str | Path) -> About:
        """What the block `about` of a model's YAML file says.

        Raises:
            UserError: the file cannot be read, or the block has an unknown name or a value of another kind.
        """
        about = read_block(read_config(config), config, "about", cls())
        fits = {
            "subject: expected photo or drawing": about.subject in ("photo", "drawing"),
            "suggestions: expected some": len(about.suggestions) > 0,
            "examples: expected pairs of picture file and instruction": {*map(len, about.examples)} == {2},
            "preview: expected 5 rows of 3 numbers": [*map(len, about.preview)] == [3] * 5,
        }
        for wrong in (what for what, fit in fits.items() if not fit):
            raise UserError(f"{config}: about.{wrong}, got {getattr(about, wrong.partition(':')[0])!r}")
        return about

    def draw(self, count: int, seed: int) -> list[str]:
        """`count` different suggestions or all if they are fewer, the same for the same seed."""
        return random.Random(seed).sample(self.suggestions, min(count, len(self.suggestions)))
