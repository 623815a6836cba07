"""A run of the image-pair generator over its share of the prompts: what is to do, progress, report.

The work itself is done by this process or by workers on a Ray cluster; either hands back finished prompts in
any order.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dataset_creation.cluster.progress import Progress
from dataset_creation.pairs.folder import PairFolder, existing, shard_of
from dataset_creation.pairs.maker import MakerOptions, PairMaker
from dataset_creation.pairs.prompts import Task
from dataset_creation.pairs.report import Report, line_of
from ldm.data.json_lines import JsonLines
from ldm.weights.opening import file_facts


@dataclass(frozen=True)
class RunOptions:
    """A run.

    Attributes:
        maker: how pairs are made.
        out_dir: the dataset.
        partitions, partition: how many shares of the prompts there are, and which one this is.
        webdataset: pack finished prompts into shards.
    """

    maker: MakerOptions
    out_dir: Path
    partitions: int = 1
    partition: int = 0
    webdataset: bool = False

    def named(self, name: str) -> str:
        """A file's name, with the number of the share where there are several."""
        stem, suffix = os.path.splitext(name)
        return name if self.partitions == 1 else f"{stem}-{self.partition}-of-{self.partitions}{suffix}"


# Does tasks; gives the line that the report counts of each, when that prompt is in the folder.
Workers = Callable[[Sequence[Task]], Iterable[dict[str, Any]]]


def do_task(maker: PairMaker, folder: PairFolder, task: Task) -> dict[str, Any]:
    """Make a prompt's pairs and write them; the line for the report."""
    began = time.monotonic()
    made = maker.make(task.prompt) if task.lines is None else maker.remake(task.prompt, task.lines)
    folder.write(made)
    return line_of(made, maker.options, time.monotonic() - began)


def in_this_process(options: RunOptions, folder: PairFolder) -> Workers:
    """Do one prompt after the other here."""

    def work(tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
        maker = PairMaker(options.maker)
        for task in tasks:
            yield do_task(maker, folder, task)

    return work


def settings_of(options: RunOptions, digest: str) -> dict[str, Any]:
    """What the content of the dataset depends on; not the batch size, the device, or the shares.

    Args:
        digest: of the prompts, see `Source`.
    """
    maker = {**asdict(options.maker), "prompts": digest}
    for name in ("ckpt", "vae_ckpt", "clip_weights"):
        maker[name] = file_facts(maker[name])
    for name in ("device", "batch_size"):
        del maker[name]
    maker["config"] = Path(options.maker.config).name
    return json.loads(json.dumps(maker))  # tuples become lists, as they come back from the file


def run(
    options: RunOptions, tasks: Sequence[Task], folder: PairFolder, work: Workers, skipped_lines: int = 0
) -> Report:
    """Do all tasks that are not done yet.

    Raises:
        UserError: it cannot go on; what is finished is kept.
    """
    log = options.out_dir / options.named("samples.jsonl")
    try:
        with JsonLines(log) as samples:
            return _run(options, tasks, folder, work, Report(skipped_lines=skipped_lines), samples)
    finally:
        if log.exists() and not log.stat().st_size:  # nothing was done: the model did not load, say
            log.unlink()


def _run(
    options: RunOptions,
    tasks: Sequence[Task],
    folder: PairFolder,
    work: Workers,
    report: Report,
    samples: JsonLines,
) -> Report:
    done = existing(folder.root)
    numbers = {task.prompt.number for task in tasks}
    todo = [task for task in tasks if task.prompt.number not in done]
    known = {line["prompt"]: line for line in samples.rows}
    for number in sorted(numbers & done & known.keys()):
        report.add(known[number])
    shards: dict[int, list[int]] = {}
    for number in sorted(numbers) if options.webdataset else ():
        shards.setdefault(shard_of(number), []).append(number)
    waiting = {shard: set(members) - done for shard, members in shards.items()}
    with Progress(len(tasks)) as bar:
        for _ in range(len(tasks) - len(todo)):
            bar.skip()
        for shard, left in waiting.items():
            if not left:
                folder.pack(shards[shard])  # a run that was stopped may have left folders
        for line in work(todo) if todo else ():
            samples.append(line)
            report.add(line)
            bar.done(
                1,
                f"kept {report.kept} of {report.samples}; {report.pairs_per_hour:.0f} pairs/h",
                report.losses(),
            )
            shard = shard_of(line["prompt"])
            if shard in waiting:
                waiting[shard].discard(line["prompt"])
                if not waiting[shard]:
                    folder.pack(shards[shard])
    report.write(options.out_dir / options.named("report.json"))
    return report
