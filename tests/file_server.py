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
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ldm.downloads import published
from waiting import DEADLINE

ROOT = Path(__file__).resolve().parents[1]
HTML = b"<!DOCTYPE html><html><body>Please sign in.</body></html>"


@dataclass(frozen=True)
class Fault:
    """What happens to a GET in place of its answer, or to its answer.

    Attributes:
        status: an error of this HTTP status.
        redirect: the client is sent to this URL or path.
        body: this comes as the whole file, whatever range was asked for.
        kind: its type of content.
        told: bytes of the answer that are announced; the connection is closed after those that there are.
        cut: the connection is closed after so many bytes of the answer.
        stall: nothing comes after so many bytes of it.
        rate: bytes a second at which it comes.
    """

    status: int | None = None
    redirect: str | None = None
    body: bytes | None = None
    kind: str = "application/octet-stream"
    told: int | None = None
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

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        if parsed:
            self.path = self.path.partition("?")[0]
        return parsed

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
            length = len(fault.body) if fault.told is None else fault.told
            self._head(200, length, {"Content-Type": fault.kind})
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
    """That of the download scripts: no long waits, the server as hub and host; none listens without one."""
    host = server.url if server else "http://127.0.0.1:9"
    quick = {"STALL_SECONDS": "1", "RETRY_SECONDS": "0", "HF_ENDPOINT": host, "DATA_HOST": host}
    hub = {"HF_HUB_OFFLINE": "0", "HF_HOME": "no-cache", "PYTHON": sys.executable}
    return {**os.environ, **quick, **hub, **changes}


def start(command: Sequence[str], folder: Path, server: Server, **changes: str) -> subprocess.Popen[str]:
    """Run a command in a folder, with `server` for the hosts, and with the changes to its environment."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment(server, **changes), **pipes)


def run(command: Sequence[str], folder: Path, server: Server, code: int = 0, **changes: str) -> str:
    """What the command says; it must end with this exit code."""
    with start(command, folder, server, **changes) as process:
        said = process.communicate(timeout=DEADLINE)[0]
    assert process.returncode == code, said
    return said


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def copy_scripts(folder: Path, weights: bytes = b"") -> Path:
    """Make a folder a project of its own, in which the scripts will write.

    Args:
        weights: the published weights are this, followed by the file's name, of which the project knows the
            sizes and SHA-256.
    """
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    library = folder / "stable_diffusion" / "ldm"
    shutil.copytree(ROOT / "stable_diffusion" / "ldm", library, ignore=shutil.ignore_patterns("__pycache__"))
    text = (library / "downloads" / "published.py").read_text()
    for file in published_weights():
        size, sha256 = published_weights()[file]
        content = weights + Path(file).name.encode()
        assert text.count(str(size)) == text.count(sha256) == 1
        text = text.replace(str(size), str(len(content)))
        text = text.replace(sha256, hashlib.sha256(content).hexdigest())
    (library / "downloads" / "published.py").write_text(text)
    return folder


def published_weights() -> dict[str, tuple[int, str]]:
    """File in the project → bytes and SHA-256."""
    tables = (*published.CHECKPOINTS, *published.PRETRAINED_SD)
    return {stem + suffix: told for _, stem, files in tables for suffix, told in files.items()}


def script(name: str, *words: str) -> list[str]:
    return ["bash", f"scripts/{name}.sh", *words]


HUB_PAIRS = "timbrooks/instructpix2pix-clip-filtered"


def hub_parquet() -> dict[str, bytes]:
    """Two parquet files and the hub's list of them, in its form."""
    files, siblings = {}, [{"rfilename": "README.md", "size": 9, "blobId": "0" * 40}]
    for number in range(2):
        path = f"data/train-0000{number}-of-00002-1f2e.parquet"
        content = random.Random(number).randbytes(100_000)
        lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        siblings.append({"rfilename": path, "size": len(content), "blobId": "a" * 40, "lfs": lfs})
        files[f"/datasets/{HUB_PAIRS}/resolve/main/{path}"] = content
    info = {"id": HUB_PAIRS, "sha": "c" * 40, "siblings": siblings, "tags": []}
    return {**files, f"/api/datasets/{HUB_PAIRS}": json.dumps(info).encode()}
