"""The settings of an edit as the page offers them: ranges, random ones, and those in a saved picture."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from ldm.app.texts import Problem
from ldm.editor import Sampling
from ldm.pictures.fitting import MULTIPLE
from ldm.sampling.options import RANDOM_SEEDS, SCHEDULES
from ldm.sampling.samplers import DEFAULT, has_k_diffusion
from ldm.util import UserError

SEED = 1371
LARGEST_SEED = 2**53 - 1  # what a browser can count to
MAX_STEPS = 200
MAX_CFG = 30.0
COUNT = (1, 8)
FIX, RANDOMIZE = "fix", "randomize"
SPREAD = 0.2  # of random guidance scales around the default: 6 to 9 and 1.2 to 1.8 for the published model
LONGEST_INSTRUCTION = 1000  # characters; the text encoder reads 77 tokens

# Those of k_diffusion that treat every picture of a batch by itself and give the same as edit_cli.py.
SAMPLERS = ("euler", "heun", "dpm_2", "dpm_2_ancestral", "lms", "dpmpp_2s_ancestral", "dpmpp_2m")


def start_of(model: Sampling) -> Sampling:
    """What the page starts with and Reset goes back to, where `model` suits the model."""
    return Sampling(seed=SEED).but(**asdict(model))


def offers(model: Sampling) -> dict[str, Sequence[Any]]:
    """What the page takes: least and greatest number, or a list of names; in the order of the API."""
    k_diffusion = SAMPLERS if has_k_diffusion() else ()
    return {
        "steps": (1, max(MAX_STEPS, model.steps)),
        "seed": (0, LARGEST_SEED),
        "cfg_text": (0.0, MAX_CFG),
        "cfg_image": (0.0, MAX_CFG),
        "sampler": list(dict.fromkeys([DEFAULT, *k_diffusion, model.sampler])),
        "schedule": [*SCHEDULES],
        "resolution": (MULTIPLE, max(512, 2 * model.resolution)),
    }


def checked(values: Mapping[str, Any], model: Sampling) -> Sampling:
    """The settings that a visitor sent.

    Raises:
        Problem: one is missing, of another type or out of its range.
    """
    sampling = Sampling(**{k: _checked(k, values.get(k), offer) for k, offer in offers(model).items()})
    sampling.check()
    return sampling


def restored(values: Mapping[str, Any], model: Sampling) -> dict[str, Any]:
    """Those settings of a saved picture that the page can take, and its instruction as `edit`."""
    found: dict[str, Any] = {}
    for name, offer in offers(model).items():
        if name in values:
            with suppress(UserError):  # a sampler, say, that the page does not offer
                found[name] = _checked(name, values[name], offer)
    if isinstance(values.get("edit"), str):
        found["edit"] = values["edit"][:LONGEST_INSTRUCTION]
    return found


def randomised(values: Mapping[str, Any], model: Sampling, seed: bool, cfg: bool) -> dict[str, Any]:
    """`values` with a random seed, and with random guidance scales around the model's own."""
    drawn: dict[str, Any] = {}
    if seed:
        drawn["seed"] = random.randint(0, RANDOM_SEEDS)
    if cfg:
        for name in ("cfg_text", "cfg_image"):
            usual = getattr(model, name)
            drawn[name] = round(random.uniform((1 - SPREAD) * usual, (1 + SPREAD) * usual), 2)
    return {**values, **drawn}


def _checked(name: str, value: Any, offer: Sequence[Any]) -> Any:
    if isinstance(offer, list):
        if value not in offer:
            raise Problem("choice", name=name, value=str(value)[:40])
        return value
    low, high = offer
    whole = isinstance(low, int)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Problem("range", name=name, low=low, high=high)
    if whole and value != int(value):
        raise Problem("range", name=name, low=low, high=high)
    return int(value) if whole else float(value)


def checked_count(value: Any) -> int:
    """The number of images that a visitor sent; raises `Problem` as `checked` does."""
    return _checked("count", value, COUNT)


def checked_instruction(text: Any) -> str:
    """The instruction that a visitor sent, without space around it."""
    text = text.strip() if isinstance(text, str) else ""
    if len(text) > LONGEST_INSTRUCTION:
        raise Problem("long", limit=LONGEST_INSTRUCTION)
    return text
