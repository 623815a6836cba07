"""All partitions of a draw as tasks on a Ray cluster: as many at once as it has room for.

A task whose worker or machine dies starts again elsewhere and goes on in its partition's file. So the folder
of these files, and that of the captions, must be one that all machines see.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from dataset_creation.cluster.connection import connected
from dataset_creation.text.run import Report, RunOptions, run


def run_partitions(address: str, options: RunOptions) -> list[Report]:
    """Run every partition of `options` on the cluster at that address; ``auto`` is the one on this machine.

    Raises:
        UserError: Ray is not installed, no cluster is there, or a partition cannot go on.
    """
    with connected(address) as ray:
        task = ray.remote(num_cpus=1, max_retries=-1)(_run)
        # The options hold the key, so they travel as an argument, which no log or dashboard shows.
        waiting = {task.remote(part): part for part in _partitions(options)}
        reports = []
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            part = waiting.pop(done)
            reports.append(ray.get(done))
            print(f"partition {part.partition} of {part.num_partitions}: {reports[-1]}", flush=True)
        return reports


def _run(options: RunOptions) -> Report:
    return run(options, progress=False)


def _partitions(options: RunOptions) -> list[RunOptions]:
    """Options of the tasks, without what depends on this process: its folder and its environment."""
    captions, folder = Path(options.captions), Path(options.output).absolute().parent
    model = options.model
    shared = replace(
        options,
        captions=str(captions.absolute()) if captions.exists() else options.captions,
        wordlist=os.path.abspath(options.wordlist) if options.wordlist else None,
        model={
            **model,
            "api_key": model.get("api_key") or os.environ.get("OPENAI_API_KEY"),
            "base_url": model.get("base_url") or os.environ.get("OPENAI_BASE_URL"),
        },
    )
    count = options.num_partitions
    return [
        replace(shared, partition=i, output=str(folder / f"triples-{i}-of-{count}.jsonl"))
        for i in range(count)
    ]
