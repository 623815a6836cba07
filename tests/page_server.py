"""A page of this project as a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from language_model_server import free_port

START = 90.0  # seconds


@contextmanager
def page_server(
    words: Sequence[str], folder: Path, log: Path, start: float = START, **env: str
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of the page that ``python PROGRAM …`` serves on a port of its own, and the process.

    Args:
        words: the program and its options.
        folder: where it is started.
        log: file for what it prints.
        start: seconds that it may take until it serves.
        env: more of its environment.
    """
    command = [sys.executable, *words, "--server-port", str(free_port())]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=output, env={**os.environ, **env}
        )
    try:
        end = time.monotonic() + start
        while not (line := re.search(r"serves at (\S+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield line.group(1), process
    finally:
        process.kill()
        process.wait()
