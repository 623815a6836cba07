"""A page of this project as a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from language_model_server import free_port
from waiting import wait_until


@contextmanager
def page_server(
    words: Sequence[str], folder: Path, log: Path, **env: str
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of the page that ``python PROGRAM …`` serves on a port of its own, and the process.

    Args:
        words: the program and its options.
        folder: where it is started.
        log: file for what it prints.
        env: more of its environment.
    """
    command = [sys.executable, *words, "--server-port", str(free_port())]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=output, env={**os.environ, **env}
        )

    def address() -> str:
        assert process.poll() is None, log.read_text()
        return "".join(re.findall(r"serves at (\S+)", log.read_text()))

    try:
        yield wait_until(address, "the page's address"), process
    finally:
        process.kill()
        process.wait()
