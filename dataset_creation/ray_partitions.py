"""All partitions of a draw as tasks on a Ray cluster: as many at once as it has room for.

A task whose worker or machine dies starts again elsewhere and goes on in its partition's file. So the folder
of these files, and that of the captions, must be one that all machines see.
"""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

from dataset_creation.triple_run import Report, RunOptions, run
from ldm.util import UserError, one_line


def run_partitions(address: str, options: RunOptions) -> list[Report]:
    """Run every partition of `options` on the cluster at that address; ``auto`` is the one on this machine.

    Raises:
        UserError: Ray is not installed, no cluster is there, or a partition cannot go on.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers otherwise
    # One error ends the run; Ray would print those of the other tasks, with tracebacks.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--ray needs `pip install ray`: {error}") from error
    _check_address(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except Exception as error:  # Ray raises almost any type
        raise UserError(f"--ray: expected a running cluster at {address!r}: {one_line(error)}") from error
    try:
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
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Knock at the port, for Ray itself takes minutes to find that nobody is there."""
    if address == "auto" or "://" in address:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"--ray: expected a running cluster at {address!r}, as host:port: {error}") from None


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
