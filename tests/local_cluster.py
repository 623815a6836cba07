"""A real Ray cluster of this machine, for tests."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from language_model_server import free_port
from waiting import DEADLINE, wait_until


class Cluster:
    """A Ray cluster on this machine that no one else can use, and that knows no key.

    Attributes:
        folder: where all its files are.
        address: where it listens.
        env: environment of a process that may use it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        alone = ["--node-ip-address=127.0.0.1", "--include-dashboard=false", "--disable-usage-stats"]
        size = ["--num-cpus=2", "--object-store-memory=80000000"]
        start = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", f"--port={port}"]
        (folder / "token").write_text(secrets.token_hex(32))
        self.env = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "HF_DATASETS_CACHE": str(folder / "cache"),
        }
        others = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI")}
        with open(folder / "output.txt", "w") as output:
            self.process = subprocess.Popen(
                [*start, f"--temp-dir={folder}", *alone, *size],
                stdout=output,
                stderr=output,
                env=others | self.env,
                start_new_session=True,
            )
        wait_until(self._started, "the Ray cluster")

    def _started(self) -> bool:
        said = (self.folder / "output.txt").read_text()
        assert self.process.poll() is None, said
        return "Ray runtime started" in said

    def workers(self, name: str) -> list[int]:
        """Processes of this cluster that work on a task or an actor of that name."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "cmdline").read_bytes().startswith(f"ray::{name}".encode()):
                    parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                    if str(self.folder).encode() in (process.parent / parent / "cmdline").read_bytes():
                        found.append(int(process.name))
            except OSError:  # it is gone
                continue
        return found

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(DEADLINE)
        finally:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: Ray's sockets are in it
    cluster = Cluster(folder)
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)
