"""A server of files on this machine, with ranges and redirects, that goes wrong by plan.

Below it what runs the download scripts against it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
HTML = b"<!DOCTYPE html><html><body>Please sign in.</body></html>"


@dataclass(frozen=True)
class Fault:
    """What happens to a GET in place of its answer, or to its answer.

    Attributes:
        status: an error of this HTTP status.
        redirect: the client is sent to this URL or path.
        body: this comes as the whole file, whatever range was asked for.
        cut: the connection is closed after so many bytes of the answer.
        stall: nothing comes after so many bytes of it.
        rate: bytes a second at which it comes.
    """

    status: int | None = None
    redirect: str | None = None
    body: bytes | None = None
    cut: int | None = None
    stall: int | None = None
    rate: int | None = None


class FileServer(ThreadingHTTPServer):
    """Serves `files`, path → content, and a list of those in a folder for a path that ends with "/".

    Args:
        faults: path → faults of the first GETs of it, one after the other; the last one stays.
        declared: path → the size that HEAD tells instead of the true one.

    Attributes:
        asked: path and start of the range of every GET that came, in order.
        closed: is set at the end; stalled answers end with it.
    """

    daemon_threads = True

    def __init__(
        self,
        files: Mapping[str, bytes],
        faults: Mapping[str, Sequence[Fault]] | None = None,
        declared: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = dict(files)
        self.faults = {path: list(plan) for path, plan in (faults or {}).items()}
        self.declared = dict(declared or {})
        self.asked: list[tuple[str, int]] = []
        self.closed = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def next_fault(self, path: str) -> Fault:
        with self.lock:
            plan = self.faults.get(path, [])
            return plan.pop(0) if len(plan) > 1 else plan[0] if plan else Fault()


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def _content(self) -> bytes | None:
        if self.path.endswith("/"):
            names = [path.removeprefix(self.path) for path in self.server.files if path.startswith(self.path)]
            return "".join(f'<li><a href="{name}">{name}</a>\n' for name in names).encode() if names else None
        return self.server.files.get(self.path)

    def _head(self, status: int, length: int, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def do_HEAD(self) -> None:
        content = self._content()
        if content is None:
            self._head(404, 0)
        else:
            self._head(200, self.server.declared.get(self.path, len(content)))

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        with self.server.lock:
            self.server.asked.append((self.path, start))
        fault, content = self.server.next_fault(self.path), self._content()
        if fault.redirect is not None:
            self._head(302, 0, {"Location": fault.redirect})
        elif fault.status is not None or (content is None and fault.body is None):
            self._head(fault.status or 404, 9)
            self.wfile.write(b"no file\r\n")
        elif fault.body is not None:
            self._head(200, len(fault.body))
            self.wfile.write(fault.body)
        elif content is not None and "Range" in self.headers and start >= len(content):
            self._head(416, 0, {"Content-Range": f"bytes */{len(content)}"})
        elif content is not None:
            span = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            self._head(206 if "Range" in self.headers else 200, len(content) - start, span)
            self._send(content[start:], fault)

    def _send(self, content: bytes, fault: Fault) -> None:
        piece = max(1, fault.rate // 20) if fault.rate else len(content)
        for at in range(0, len(content[: fault.cut]), piece):
            try:
                self.wfile.write(content[: fault.cut][: fault.stall][at : at + piece])
            except OSError:
                return  # the client has gone
            if fault.rate:
                time.sleep(0.05)
        if fault.stall is not None:
            self.server.closed.wait()


@contextmanager
def serving(
    files: Mapping[str, bytes],
    faults: Mapping[str, Sequence[Fault]] | None = None,
    declared: Mapping[str, int] | None = None,
) -> Iterator[FileServer]:
    """A `FileServer` that answers while the context lasts."""
    server = FileServer(files, faults, declared)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.closed.set()
        server.shutdown()
        thread.join()
        server.server_close()


Server = FileServer | None


def environment(server: Server, **changes: str) -> dict[str, str]:
    """That of the download scripts: no long waits, two hosts on the server; none listens without one."""
    hosts = f"{server.url}/one {server.url}/two/" if server else "http://127.0.0.1:9"
    quick = {"STALL_SECONDS": "1", "RETRY_SECONDS": "0", "HUB_HOSTS": hosts, "DATA_HOSTS": hosts}
    return {**os.environ, **quick, **changes}


def start(command: Sequence[str], folder: Path, server: Server, **changes: str) -> subprocess.Popen[str]:
    """Run a command in a folder, with `server` for the hosts, and with the changes to its environment."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment(server, **changes), **pipes)


def run(command: Sequence[str], folder: Path, server: Server, code: int = 0, **changes: str) -> str:
    """What the command says; it must end with this exit code."""
    with start(command, folder, server, **changes) as process:
        said = process.communicate(timeout=60)[0]
    assert process.returncode == code, said
    return said


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def copy_scripts(folder: Path) -> Path:
    """Make a folder a project of its own, which is where the scripts in it will write."""
    shutil.copytree(SCRIPTS, folder / "scripts")
    return folder


def script(name: str, *words: str) -> list[str]:
    return ["bash", f"scripts/{name}.sh", *words]


HUB_PAIRS = "timbrooks/instructpix2pix-clip-filtered"


def hub_parquet(host: str) -> dict[str, bytes]:
    """Two parquet files and the hub's list of them, in its form."""
    files, entries = {}, [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "data/more"}]
    for number in range(2):
        path, content = (
            f"data/train-0000{number}-of-00002-1f2e.parquet",
            random.Random(number).randbytes(100_000),
        )
        lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        entry = {"type": "file", "oid": "a" * 40, "size": len(content), "lfs": lfs, "xetHash": "b" * 64}
        entries.append({**entry, "path": path})
        files[f"{host}/datasets/{HUB_PAIRS}/resolve/main/{path}"] = content
    return {**files, f"{host}/api/datasets/{HUB_PAIRS}/tree/main/data": json.dumps(entries).encode()}
