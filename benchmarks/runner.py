"""What benchmarks share: programs as processes of their own, rounds in turn, and ratios beside their targets.

The memory of a process that starts another one counts into the other's peak, and imports into its time: so
nothing heavy is imported here.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

K, T = TypeVar("K"), TypeVar("T")


@dataclass(frozen=True)
class Finished:
    """A process that has ended well.

    Attributes:
        seconds: from its start to its end.
        memory: peak of its resident memory in GB.
        output: what it wrote to stdout.
    """

    seconds: float
    memory: float
    output: bytes


def gigabytes(maxrss: int) -> float:
    """What the system says of a peak, which is in bytes on a Mac and in kB elsewhere, in GB."""
    return maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def run_python(
    *words: str | Path, quiet: bool = False, watch: Callable[[bytes], None] | None = None
) -> Finished:
    """Run Python with these arguments in a process of its own, offline.

    Args:
        quiet: what it writes to stderr becomes part of the output, and is shown only if it fails.
        watch: told of all output so far, whenever more of it has come; progress bars then show every step.

    Raises:
        SystemExit: it failed.
    """
    bars = {"TQDM_MININTERVAL": "0"} if watch else {"TQDM_DISABLE": "1"}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **bars}
    errors = subprocess.STDOUT if quiet else None
    command, output, started = [sys.executable, *map(str, words)], b"", time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment) as process:
        try:
            while chunk := os.read(process.stdout.fileno(), 65536):
                output += chunk
                if watch:
                    watch(output)
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"exit code {process.returncode} of: {command}\n{output.decode(errors='replace')[-2000:]}")
    return Finished(time.perf_counter() - started, gigabytes(usage.ru_maxrss), output)


@contextmanager
def looking(look: Callable[[], T | None], every: float) -> Iterator[list[T]]:
    """What `look` finds in the context, if anything, again and again, `every` so many seconds."""
    found: list[T] = []
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(every):
            if (one := look()) is not None:
                found.append(one)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


@contextmanager
def work_folder(given: Path | None) -> Iterator[Path]:
    """The folder that was given, or a temporary one, which goes also when the program is terminated."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # cleans up, unlike the default
    if given:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
            yield Path(folder)


def in_turn(rounds: int, programs: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """The results of all programs, each run once a round; the order turns around from round to round."""
    results: dict[str, list[T]] = {name: [] for name in programs}
    for i in range(rounds):
        for name in [*programs][:: 1 if i % 2 == 0 else -1]:
            results[name].append(programs[name]())
            print(f"round {i + 1}, {name}: {results[name][-1]}", file=sys.stderr)
    return results


def medians(runs: Mapping[K, list[float]]) -> dict[K, float]:
    """The median of each program."""
    return {name: statistics.median(each) for name, each in runs.items()}


def verdict(value: float, target: float, *, at_least: bool, form: str = ".2f") -> str:
    """A figure beside its target: ``1.20 (≥ 1.15 met)``."""
    met = value >= target if at_least else value <= target
    return f"{value:{form}} ({'≥' if at_least else '≤'} {target:{form}} {'met' if met else 'MISSED'})"
