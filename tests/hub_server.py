"""A hub on this machine: as much of its HTTP interface as is asked for by what reads models and data sets.

Parquet and weights are sent as the real one sends them: by a redirect with size and SHA-256, from a place
that knows ranges.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "c" * 40
LARGE = (".parquet", ".safetensors", ".ckpt")


class HubServer(ThreadingHTTPServer):
    """Serves the folders owner/name under `root`, as models or as data sets, as they are asked for.

    Attributes:
        asked: paths of all requests, in order, without their first slash.
        ranges: the `Range` of each GET of a large file, "" if it had none.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.asked: list[str] = []
        self.ranges: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def _entry(self, repository: Path, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(repository))
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": COMMIT, "size": 0}
        content = path.read_bytes()
        entry = {"path": name, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}
        if path.suffix in LARGE:
            entry["lfs"] = {
                "oid": hashlib.sha256(content).hexdigest(),
                "size": len(content),
                "pointerSize": 134,
            }
        return {"type": "file", **entry}

    def _api(self, words: list[str], query: str) -> tuple[int, bytes, dict[str, str]]:
        repository = self.server.root.joinpath(*words[:2])
        if words[2:3] == ["tree"]:
            folder = repository.joinpath(*words[4:])
            if not folder.is_dir():
                return 404, b"", {"X-Error-Code": "EntryNotFound"}
            found = folder.rglob("*") if "recursive=true" in query.lower() else folder.iterdir()
            return 200, json.dumps([self._entry(repository, file) for file in sorted(found)]).encode(), {}
        files = [self._entry(repository, file) for file in sorted(repository.rglob("*")) if file.is_file()]
        siblings: list[dict[str, Any]] = [{"rfilename": file["path"]} for file in files]
        if "blobs=true" in query.lower():
            for sibling, file in zip(siblings, files, strict=True):
                sibling.update(size=file["size"], blobId=file["oid"])
                if lfs := file.get("lfs"):
                    sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": 134}
        info = {"id": "/".join(words[:2]), "sha": COMMIT, "siblings": siblings, "tags": []}
        return 200, json.dumps(info).encode(), {}

    def _file(self, words: list[str], large: bool) -> tuple[int, bytes, dict[str, str]]:
        file = self.server.root.joinpath(*words[:2], *words[4:])
        if not file.is_file():
            return 404, b"", {"X-Error-Code": "EntryNotFound"}
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if file.suffix not in LARGE:
            return 200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if not large:
            linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            return 302, b"", {"Location": f"{self.server.url}/large/{'/'.join(words)}", **linked}
        span = self.headers.get("Range", "")
        if self.command == "GET":
            self.server.ranges.append(span)
        if not span:
            return 200, content, {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        first, _, last = span.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(content)), len(content) - 1)
        if start >= len(content):
            return 416, b"", {"Content-Range": f"bytes */{len(content)}"}
        return 206, content[start : end + 1], {"Content-Range": f"bytes {start}-{end}/{len(content)}"}

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        words = unquote(path).strip("/").split("/")
        self.server.asked.append("/".join(words))
        first, api = words[0], words[0] == "api"
        words = words[2 if api else 1 if first in ("large", "datasets") else 0 :]
        if len(words) < 2 or not self.server.root.joinpath(*words[:2]).is_dir():
            status, content, headers = 404, b"", {"X-Error-Code": "RepoNotFound"}
        else:
            status, content, headers = self._api(words, query) if api else self._file(words, first == "large")
        self.send_response(status)
        for name, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET


@contextmanager
def hub(root: Path) -> Iterator[HubServer]:
    """A `HubServer` that answers while the context lasts."""
    server = HubServer(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
