"""Image pairs on a Ray cluster: one actor a GPU holds the model, and prompts go to whichever is free.

The prompts of an actor whose process or machine dies are done again by the others, and a new actor takes its
place. The dataset's folder and the weights must be at the same path on all machines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataset_creation.cluster.connection import connected
from dataset_creation.pairs.folder import PairFolder
from dataset_creation.pairs.maker import MakerOptions, PairMaker
from dataset_creation.pairs.prompts import Task
from dataset_creation.pairs.run import RunOptions, Workers, do_task
from ldm.util import UserError

DEATHS = 3  # of actors over the same prompt, after which the fault is the prompt's


class PairActor:
    """A worker with a loaded model."""

    def __init__(self, options: MakerOptions, root: str, settings: dict[str, Any]) -> None:
        self.options, self.root, self.settings = options, Path(root), settings
        self.maker: PairMaker | None = None

    def do(self, task: Task) -> dict[str, Any]:
        """As `do_task`."""
        if self.maker is None:  # not in __init__, whose errors Ray hands on as text
            self.maker = PairMaker(self.options)
            self.folder = PairFolder(self.root, self.settings)
        return do_task(self.maker, self.folder, task)


def on_ray(address: str, actors: int | None, options: RunOptions, settings: dict[str, Any]) -> Workers:
    """Do the tasks on the cluster at that address.

    Args:
        actors: how many; None: one for each GPU of the cluster, or a single one where it has none.
        settings: of the folder.
    """

    def work(tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
        with connected(address) as ray:
            gpus = int(ray.cluster_resources().get("GPU", 0))
            needs = {"num_gpus": 1} if gpus and options.maker.device != "cpu" else {"num_cpus": 1}
            make = ray.remote(**needs, max_restarts=0)(PairActor)
            maker = with_absolute_paths(options.maker)
            root = str(options.out_dir.absolute())

            def start() -> Any:
                return make.remote(maker, root, settings)

            yield from _hand_out(ray, start, list(tasks), actors or gpus or 1)

    return work


def _hand_out(ray: Any, start: Any, tasks: list[Task], actors: int) -> Iterator[dict[str, Any]]:
    """Keep every actor at work on one task until all are done; lines in the order in which they come."""
    todo = tasks[::-1]
    deaths: Counter[int] = Counter()
    working: dict[Any, tuple[Any, Task]] = {}

    def give(actor: Any) -> None:
        if todo:
            task = todo.pop()
            working[actor.do.remote(task)] = (actor, task)

    for _ in range(min(actors, len(tasks))):
        give(start())
    while working:
        (done,), _ = ray.wait(list(working), num_returns=1)
        actor, task = working.pop(done)
        try:
            line = ray.get(done)
        except ray.exceptions.RayActorError as error:
            number = task.prompt.number
            deaths[number] += 1
            if deaths[number] == DEATHS:
                raise UserError(
                    f"prompt {number}: {DEATHS} workers died over it; all others are kept"
                ) from error
            todo.append(task)
            give(start())
            continue
        give(actor)
        yield line


def with_absolute_paths(options: MakerOptions) -> MakerOptions:
    """The same files for a process that works in another folder."""
    names = ("config", "ckpt", "vae_ckpt", "clip_weights")
    paths: dict[str, Any] = {
        name: str(Path(value).absolute()) for name in names if (value := getattr(options, name))
    }
    clip_model = options.clip_model
    if Path(clip_model).is_file():
        clip_model = str(Path(clip_model).absolute())
    return replace(options, **paths, clip_model=clip_model)
