"""What a run would do and how long it would take, from a few steps that are timed on the spot."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from dataset_creation.pairs.folder import existing
from dataset_creation.pairs.maker import PairMaker, draw_seeds
from dataset_creation.pairs.prompts import Task
from dataset_creation.pairs.run import RunOptions

FEW, MORE = 2, 4  # steps of the timed runs, whose difference is the time of the steps alone
BYTES_PER_PIXEL = 0.8  # of a JPEG of quality 100 of a photograph, about


def estimate(options: RunOptions, tasks: Sequence[Task]) -> str:
    """The plan of a run, in lines."""
    done = existing(options.out_dir)
    todo = [task for task in tasks if task.prompt.number not in done]
    maker = options.maker
    pairs = sum(maker.n_samples if task.lines is None else len(task.lines) for task in todo)
    kept = sum(min(maker.limit, maker.n_samples) if task.lines is None else len(task.lines) for task in todo)
    megabytes = kept * 2 * maker.resolution**2 * BYTES_PER_PIXEL / 1e6
    lines = [
        f"{len(tasks)} prompts, {len(todo)} to do: {pairs} samples of {maker.steps} steps at "
        f"{maker.resolution} px; at most {kept} pairs kept, about {megabytes:,.0f} MB",
        f"CLIP: {maker.clip_model if maker.needs_clip else 'not needed'}",
    ]
    if todo:
        seconds, batch, device = _seconds_per_sample(options, todo[0])
        hours = seconds * pairs / 3600
        lines.append(
            f"about {hours:,.1f} hours on {device} ({seconds:.2f} s a sample, {batch} at once); "
            f"{len(todo) / hours:,.1f} prompts an hour"
        )
    return "\n".join(lines)


def _seconds_per_sample(options: RunOptions, task: Task) -> tuple[float, int, str]:
    """Time of a sample in full, how many are drawn at once, and where."""
    maker = PairMaker(replace(options.maker, steps=FEW))
    seeds = draw_seeds(0, 0, maker.batch_size)

    def timed(steps: int) -> float:
        maker.sampler.set_steps(steps)
        began = time.perf_counter()
        maker.rated_batch(task.prompt.captions, seeds)  # ends on the CPU, so all work is done
        return time.perf_counter() - began

    timed(FEW)  # the first run of anything is slower
    few, more = timed(FEW), timed(MORE)
    a_step = max(more - few, 0.0) / (MORE - FEW)
    total = few + a_step * (options.maker.steps - FEW)
    return total / maker.batch_size, maker.batch_size, str(maker.sampler.device)
