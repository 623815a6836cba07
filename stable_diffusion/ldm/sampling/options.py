"""What decides an edit: one type for command lines, configs, the page, its API, and the settings in files.

Nothing here takes time to import.
"""

from __future__ import annotations

import random
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ldm.util import UserError, read_block, read_config

SCHEDULES = ("model", "karras", "exponential")
RANDOM_SEEDS = 100_000
LIMITS = {  # least and greatest value
    "resolution": (64, 8192),
    "steps": (1, 10_000),
    "seed": (-(2**63), 2**64 - 1),  # what torch takes
}
TWO_STEPS = ("dpmpp_2m_sde", "dpmpp_3m_sde")  # these of k_diffusion's samplers fail with a single step
# Where a config says what size its model is for: that of its pictures, else that of its autoencoder.
RESOLUTION_KEYS = (
    "data.params.validation.params.crop_res",
    "model.params.first_stage_config.params.ddconfig.resolution",
)


@dataclass(frozen=True)
class Sampling:
    """What decides an edit, beside the model, the picture and the instruction; by default as published.

    Attributes:
        resolution: about the longer side of the result in pixels.
        steps: denoising steps, at least 1.
        cfg_text: s_T, how strongly to follow the instruction.
        cfg_image: s_I, how strongly to stay with the picture.
        seed: of the random numbers, those of `torch.manual_seed(seed)` on the model's device; None draws one.
        sampler: a name of `ldm.sampling.samplers.sampler_names`.
        schedule: noise levels, one of `SCHEDULES`.
    """

    resolution: int = 512
    steps: int = 100
    cfg_text: float = 7.5
    cfg_image: float = 1.5
    seed: int | None = None
    sampler: str = "euler_ancestral"
    schedule: str = "model"

    @classmethod
    def from_config(cls, config: str | Path) -> Sampling:
        """What suits a model: the block `sampling` of its YAML file over the published values.

        Raises:
            UserError: the file cannot be read, or the block has an unknown name or a value of another type.
        """
        from omegaconf import DictConfig, OmegaConf  # late: most mistakes are told without it

        content = read_config(config)
        if not isinstance(content, DictConfig):
            return cls()  # loading the model will say what is wrong with the file
        sizes = filter(None, (OmegaConf.select(content, key) for key in RESOLUTION_KEYS))
        size = next(sizes, cls.resolution)
        longer = max(size) if isinstance(size, Sequence) else size  # a config may say [height, width]
        return read_block(content, config, "sampling", cls(resolution=longer))

    @classmethod
    def from_arguments(cls, args: Namespace, defaults: Sampling) -> Sampling:
        """What `ldm.arguments.add_sampling_options` read, over `defaults`."""
        return defaults.but(**{field.name: getattr(args, field.name, None) for field in fields(cls)})

    def but(self, **changes: Any) -> Sampling:
        """The same with these fields, but for those that are None."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def seeded(self) -> Sampling:
        """The same with a random seed if it has none."""
        return replace(self, seed=self.drawn_seed())

    def drawn_seed(self) -> int:
        """The seed, or where it has none a random one."""
        return random.randint(0, RANDOM_SEEDS) if self.seed is None else self.seed

    def check(self) -> None:
        """Raise `UserError` for a sampler that does not exist or cannot run for so many steps."""
        if self.sampler != Sampling.sampler:
            from ldm.sampling.samplers import sampler_names  # late: it imports torch

            if self.sampler not in sampler_names():
                raise UserError(
                    f"expected as sampler one of {', '.join(sampler_names())}, got {self.sampler!r}"
                )
        least = 2 if self.sampler in TWO_STEPS else 1
        if self.steps < least:
            raise UserError(f"sampler {self.sampler}: expected at least {least} steps, got {self.steps}")
