"""A hub of one dataset on this machine: as much of the HTTP interface as `datasets` asks for to read it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAME = "owner/name"
COMMIT = "c" * 40
API = f"/api/datasets/{NAME}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, root: Path, *args: Any) -> None:
        self.root = root
        super().__init__(*args)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def _entry(self, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(self.root))
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": COMMIT, "size": 0}
        content = path.read_bytes()
        return {"type": "file", "path": name, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}

    def _answer(self) -> tuple[int, bytes, dict[str, str]]:
        path, _, query = self.path.partition("?")
        if not path.startswith((API, f"/datasets/{NAME}/resolve/")):
            return 404, b"", {"X-Error-Code": "RepoNotFound"}
        if path.startswith(f"/datasets/{NAME}/resolve/"):
            file = self.root / path.split("/", 6)[6]
            if file.is_file():
                return 200, file.read_bytes(), {"ETag": f'"{self._entry(file)["oid"]}"'}
        elif path in (API, f"{API}/revision/main", f"{API}/revision/{COMMIT}"):
            return 200, json.dumps({"id": NAME, "sha": COMMIT, "siblings": [], "tags": []}).encode(), {}
        elif path.startswith(f"{API}/tree/{COMMIT}"):
            folder = self.root / path.removeprefix(f"{API}/tree/{COMMIT}").strip("/")
            if folder.is_dir():
                found = folder.rglob("*") if "recursive=true" in query.lower() else folder.iterdir()
                return 200, json.dumps([self._entry(file) for file in sorted(found)]).encode(), {}
        return 404, b"", {"X-Error-Code": "EntryNotFound"}

    def do_GET(self) -> None:
        status, content, headers = self._answer()
        self.send_response(status)
        for name, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET


@contextmanager
def hub(root: Path) -> Iterator[str]:
    """Serve the files under `root` as the dataset `NAME`; gives the address of the hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, root))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
