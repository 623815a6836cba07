"""Learning-rate schedules as factors of the base rate, for `torch.optim.lr_scheduler.LambdaLR`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from ldm.util import UserError


class LambdaLinearScheduler:
    """Linear warm-up, then linear change, over one or more cycles.

    In each cycle the factor goes from `f_start` to `f_max` in `warm_up_steps`, then to `f_min` at the end of
    the cycle; after the last cycle it stays at that cycle's `f_min`. All arguments hold one value a cycle.

    Args:
        warm_up_steps: optimizer steps of warm-up.
        f_min, f_max, f_start: factors of the base learning rate.
        cycle_lengths: optimizer steps of each cycle, warm-up included.
    """

    def __init__(
        self,
        warm_up_steps: Sequence[int],
        f_min: Sequence[float],
        f_max: Sequence[float],
        f_start: Sequence[float],
        cycle_lengths: Sequence[int],
    ) -> None:
        lengths = {len(x) for x in (warm_up_steps, f_min, f_max, f_start, cycle_lengths)}
        if len(lengths) != 1 or 0 in lengths:
            raise UserError(
                f"scheduler: expected one value a cycle in every list, got lengths {sorted(lengths)}"
            )
        self.cycles = list(zip(warm_up_steps, f_min, f_max, f_start, cycle_lengths, strict=True))
        self.starts = [0, *accumulate(cycle_lengths)][:-1]

    def schedule(self, step: int) -> float:
        """Factor at optimizer step `step`, counted from 0."""
        current = max(i for i, start in enumerate(self.starts) if step >= start)
        warm_up, f_min, f_max, f_start, length = self.cycles[current]
        step = min(step - self.starts[current], length)
        if step < warm_up:
            return f_start + (f_max - f_start) * step / warm_up
        # Measured over the whole cycle as published, so the factor steps down a little where warm-up ends.
        return f_min + (f_max - f_min) * (length - step) / length

    __call__ = schedule
