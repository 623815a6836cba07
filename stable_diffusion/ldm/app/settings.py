"""The settings of an edit as the page offers them: ranges, random ones, and those in a saved picture."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ldm.app.texts import Problem
from ldm.editor import Defaults, check_sampling
from ldm.pictures.fitting import MULTIPLE
from ldm.sampling.samplers import DEFAULT, has_k_diffusion
from ldm.util import UserError

SEED = 1371
LARGEST_SEED = 2**53 - 1  # what a browser can count to
MAX_STEPS = 200
MAX_CFG = 30.0
MAX_COUNT = 8
RANDOM_SEEDS = 100_000
SPREAD = 0.2  # of random guidance scales around the default: 6 to 9 and 1.2 to 1.8 for the published model
LONGEST_INSTRUCTION = 1000  # characters; the text encoder reads 77 tokens

# Those of k_diffusion that treat every picture of a batch by itself and give the same as edit_cli.py.
SAMPLERS = ("euler", "heun", "dpm_2", "dpm_2_ancestral", "lms", "dpmpp_2s_ancestral", "dpmpp_2m")
SCHEDULES = ("model", "karras", "exponential")


def offered_samplers() -> list[str]:
    """The samplers of the page, fewer where k_diffusion is not installed."""
    return [DEFAULT, *(SAMPLERS if has_k_diffusion() else ())]


def largest_resolution(defaults: Defaults) -> int:
    """The most pixels that the page offers for the longer side."""
    return max(512, 2 * defaults.resolution)


@dataclass(frozen=True)
class Settings:
    """As for `ImageEditor.edit`, and named as `edit_cli.py` writes them into pictures."""

    steps: int
    seed: int
    cfg_text: float
    cfg_image: float
    sampler: str
    schedule: str
    resolution: int

    def __post_init__(self) -> None:
        check_sampling(self.sampler, self.steps)


def checked(values: Mapping[str, Any], defaults: Defaults) -> Settings:
    """The settings that a visitor sent.

    Raises:
        Problem: one is missing, of another type or out of its range.
    """
    return Settings(**{name: _checked(name, values.get(name), defaults) for name in Settings.__annotations__})


def restored(values: Mapping[str, Any], defaults: Defaults) -> dict[str, Any]:
    """Those settings of a saved picture that the page can take, and its instruction as `edit`."""
    found: dict[str, Any] = {}
    for name in Settings.__annotations__:
        if name in values:
            try:
                found[name] = _checked(name, values[name], defaults)
            except UserError:  # a sampler, say, that the page does not offer
                continue
    if isinstance(values.get("edit"), str):
        found["edit"] = values["edit"][:LONGEST_INSTRUCTION]
    return found


def randomised(values: Mapping[str, Any], defaults: Defaults, seed: bool, cfg: bool) -> dict[str, Any]:
    """`values` with a random seed, and with random guidance scales around the model's own."""
    drawn: dict[str, Any] = {}
    if seed:
        drawn["seed"] = random.randint(0, RANDOM_SEEDS)
    if cfg:
        for name in ("cfg_text", "cfg_image"):
            usual = getattr(defaults, name)
            drawn[name] = round(random.uniform((1 - SPREAD) * usual, (1 + SPREAD) * usual), 2)
    return {**values, **drawn}


def _checked(name: str, value: Any, defaults: Defaults) -> Any:
    choices = {"sampler": offered_samplers(), "schedule": SCHEDULES}
    if name in choices:
        if value not in choices[name]:
            raise Problem("choice", name=name, value=str(value)[:40])
        return value
    low, high = {
        "steps": (1, max(MAX_STEPS, defaults.steps)),
        "seed": (0, LARGEST_SEED),
        "cfg_text": (0.0, MAX_CFG),
        "cfg_image": (0.0, MAX_CFG),
        "resolution": (MULTIPLE, largest_resolution(defaults)),
        "count": (1, MAX_COUNT),
    }[name]
    whole = isinstance(low, int)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise Problem("range", name=name, low=low, high=high)
    if not low <= value <= high or (whole and value != int(value)):
        raise Problem("range", name=name, low=low, high=high)
    return int(value) if whole else float(value)


def checked_count(value: Any, defaults: Defaults) -> int:
    """The number of images that a visitor sent; raises `Problem` as `checked` does."""
    return _checked("count", value, defaults)


def checked_instruction(text: Any) -> str:
    """The instruction that a visitor sent, without space around it."""
    text = text.strip() if isinstance(text, str) else ""
    if len(text) > LONGEST_INSTRUCTION:
        raise Problem("long", limit=LONGEST_INSTRUCTION)
    return text


def defaults_of(defaults: Defaults) -> dict[str, Any]:
    """What the page starts with and Reset goes back to."""
    return {**asdict(defaults), "seed": SEED, "sampler": DEFAULT, "schedule": SCHEDULES[0], "count": 1}
