"""edit_app.py under load: many visitors at once on one machine, by gradio_client, with the embedded model.

One visitor alone, then all at once, edit after edit: edits a second, and the memory of the server as the
edits go on. Then each visitor sends several edits without waiting, more than the queue takes: every edit is
served or told that the queue is full.

    python benchmarks/app_load.py                # 20 visitors, 200 edits of 20 steps; some minutes on 2 cores
    python benchmarks/app_load.py --clients 50 --edits 500 --json
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.runner import work_folder
from ldm.arguments import Parser, whole_number
from ldm.files import ROOT
from ldm.util import run_main

if TYPE_CHECKING:
    from gradio_client import Client
    from gradio_client.client import Job

PICTURE = ROOT / "stable_diffusion/ldm/app/examples/avatar_1.jpg"
INSTRUCTIONS = ("add sunglasses", "make him bald", "make the background blue", "give him a long beard")
MARKS = (20, 100, 200, 500, 1000)  # edits, after which memory is read
ALONE = 10  # edits of one visitor
START = 120.0  # seconds
FULL = "The queue is full"


@contextmanager
def server(folder: Path, queue_size: int) -> Iterator[tuple[str, int]]:
    """Run edit_app.py; give its address and its process."""
    command = [sys.executable, "edit_app.py", "--config", "configs/avatars/edit.yaml"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [*command, "--queue-size", str(queue_size)], cwd=ROOT, stdout=log, stderr=log
        )
    try:
        end = time.monotonic() + START
        while not (line := re.search(r"serves at (\S+)", (folder / "log").read_text(encoding="utf-8"))):
            if process.poll() is not None or time.monotonic() > end:
                sys.exit((folder / "log").read_text(encoding="utf-8"))
            time.sleep(0.2)
        yield line.group(1), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def megabytes(process: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


class Load:
    """Visitors of one server, and what became of their edits."""

    def __init__(self, address: str, process: int, clients: int, steps: int, folder: Path) -> None:
        from gradio_client import Client

        self.process = process
        self.steps = steps
        self.clients = [Client(address, verbose=False, download_files=str(folder)) for _ in range(clients)]
        self.outcomes: Counter[str] = Counter()
        self.memory: dict[int, float] = {}
        self._lock = threading.Lock()

    def begin(self, client: Client, number: int) -> Job:
        """Send one edit."""
        from gradio_client import handle_file

        instruction = INSTRUCTIONS[number % len(INSTRUCTIONS)]
        picture = handle_file(str(PICTURE))
        return client.submit(picture, instruction, steps=self.steps, seed=number, api_name="/edit")

    def finish(self, job: Job) -> None:
        """Wait for it and count what came of it."""
        error = job.exception()
        outcome = "served" if error is None else "queue full" if FULL in str(error) else f"failed: {error}"
        with self._lock:
            self.outcomes[outcome] += 1
            if self.outcomes["served"] in MARKS:
                self.memory.setdefault(self.outcomes["served"], megabytes(self.process))

    def one_by_one(self, client: Client, count: int) -> None:
        for number in range(count):
            self.finish(self.begin(client, number))

    def at_once(self, client: Client, count: int) -> None:
        for job in [self.begin(client, number) for number in range(count)]:
            self.finish(job)

    def all_clients(self, work: str, count: int) -> float:
        """Seconds that all visitors take for `count` edits each."""
        started = time.perf_counter()
        with ThreadPoolExecutor(len(self.clients)) as threads:
            list(threads.map(lambda client: getattr(self, work)(client, count), self.clients))
        return time.perf_counter() - started


def measure(args: argparse.Namespace) -> dict[str, object]:
    """All figures."""
    with work_folder(None) as folder, server(folder, args.queue_size) as (address, process):
        load = Load(address, process, args.clients, args.steps, folder / "results")
        result: dict[str, object] = {"memory_mb": {0: megabytes(process)}}
        started = time.perf_counter()
        load.one_by_one(load.clients[0], ALONE)
        result["one_visitor_edits_per_s"] = ALONE / (time.perf_counter() - started)
        each = -(-args.edits // args.clients)
        load.outcomes.clear()
        result["all_visitors_edits_per_s"] = each * args.clients / load.all_clients("one_by_one", each)
        result["memory_mb"] |= load.memory
        result["one_by_one"] = dict(load.outcomes)
        load.outcomes.clear()
        load.all_clients("at_once", 1 + 2 * args.queue_size // args.clients)
        result["at_once"] = dict(load.outcomes)
        result["memory_mb"]["after all"] = megabytes(process)
    return result


def report(result: dict[str, object], args: argparse.Namespace) -> str:
    memory = ", ".join(f"{value:.0f} MB ({mark})" for mark, value in result["memory_mb"].items())
    return (
        f"{args.clients} visitors, {args.steps} steps, a queue of {args.queue_size}\n"
        f"edits a second: {result['one_visitor_edits_per_s']:.2f} for one visitor alone, "
        f"{result['all_visitors_edits_per_s']:.2f} for all at once\n"
        f"one edit after another: {result['one_by_one']}\n"
        f"many edits at once:     {result['at_once']}\n"
        f"memory after so many edits: {memory}"
    )


def main() -> None:
    parser = Parser.of(__doc__)
    add = parser.add_argument
    for option, most, default, metavar, what in (
        ("--clients", 1000, 20, "N", "visitors"),
        ("--edits", 10**6, 200, "N", "of all visitors"),
        ("--steps", 1000, 20, "STEPS", "denoising steps of an edit"),
        ("--queue-size", 1000, 32, "EDITS", "that may wait at the server"),
    ):
        help = f"{what} (default: %(default)s)"
        add(option, type=whole_number(1, most), default=default, metavar=metavar, help=help)
    add("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    result = measure(args)
    print(json.dumps(result, indent=2) if args.json else report(result, args))


if __name__ == "__main__":
    run_main(main)
