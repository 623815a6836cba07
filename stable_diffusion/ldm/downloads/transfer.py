"""One published file, fetched: it goes on after any stop, and takes its name only when it is checked.

The hub's own `hf_hub_download` begins anew in each process, as it draws the name of its part at random: a
stop would cost gigabytes. So the hub's files come this way, too, by its addresses, lists and cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeVar

import httpx
from huggingface_hub import constants, is_offline_mode
from tqdm import tqdm

from ldm.files import lock
from ldm.util import UserError, one_line

TRIES = 3  # in a row that bring no byte
PAGE_BYTES = 10**7  # a page that says more is none
BLOCK = 2**20
T = TypeVar("T")


class Failed(Exception):
    """A download that did not come to its end, in one line: exit code 1."""


class Busy(Exception):
    """What another try may mend, as transport errors of httpx."""


@dataclass(frozen=True)
class Remote:
    """A file on a server, and what tells that a copy of it is right.

    Attributes:
        url: where it is; a redirect from https to http is refused.
        file: where it belongs; a part of it is `part`.
        size: bytes, or None where only the server knows.
        sha256: or None where none was published; then a zip must have its directory, any other file be JSON.
        cached: where the hub's cache on this machine may have it.
    """

    url: str
    file: Path
    size: int | None = None
    sha256: str | None = None
    cached: Path | None = None

    @property
    def part(self) -> Path:
        return self.file.with_name(f"{self.file.name}.part")

    @property
    def expected(self) -> str:
        if self.sha256:
            return f"{self.size} bytes of SHA-256 {self.sha256}"
        return "a whole zip file" if self.file.suffix == ".zip" else "JSON"

    def wrong(self, path: Path) -> str | None:
        """What `path` is instead of this file; None if it is right."""
        size = path.stat().st_size
        if self.size not in (None, size):
            return f"{size} bytes"
        if self.sha256:
            got = sha256(path)
            return None if got == self.sha256 else f"SHA-256 {got}"
        if self.file.suffix == ".zip":
            return None if zipfile.is_zipfile(path) else f"no zip file ({size} bytes)"
        try:
            check_json(path, lines=self.file.suffix == ".jsonl")
        except ValueError:
            return f"{size} bytes that are not"
        return None


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file, progress(f"{path.name}: checking", path.stat().st_size) as bar:
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def check_json(path: Path, lines: bool) -> None:
    """Raise `ValueError` unless a file is JSON; of JSON lines the first and the last tell."""
    with path.open("rb") as file:
        if lines:
            json.loads(file.readline())
            file.seek(max(0, path.stat().st_size - BLOCK))
            json.loads(file.read().rstrip().rpartition(b"\n")[2])
        else:
            json.load(file)


def say(text: str) -> None:
    """Print a line at once, above the bars of progress."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def progress(text: str, total: int | None, start: int = 0) -> tqdm:
    """A bar on a terminal, nothing elsewhere."""
    return tqdm(desc=text, total=total, initial=start, unit="B", unit_scale=True, disable=None, leave=False)


def amount(size: int) -> str:
    return f"{tqdm.format_sizeof(size)}B"


def seconds(name: str, default: float) -> float:
    """A time that the environment may change."""
    try:
        value = float(text := os.environ.get(name) or str(default))
    except ValueError:
        value = -1.0
    if not 0 <= value < 10**6:
        raise UserError(f"{name}: expected seconds, got {text!r}")
    return value


def need_space(folder: Path, size: int) -> None:
    """Raise `Failed` if a folder's disk has not so many bytes free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise Failed(f"expected {amount(size)} of free disk in {folder}, got {amount(free)}")


def fetch(remote: Remote) -> None:
    """Have `remote.file` whole and right; another file of that name is kept as FILE.bad.

    Raises:
        Failed: no; what has come is kept in the part unless it is wrong, and the next call goes on there.
    """
    try:
        if is_there(remote):
            return
        remote.file.parent.mkdir(parents=True, exist_ok=True)
        with alone_with(remote.part) as stream:
            if is_there(remote) or link_cached(remote, stream):  # another download may have brought it
                return
            bring(remote, stream)
            os.replace(remote.part, remote.file)
        say(f"{remote.file}: complete, {amount(remote.file.stat().st_size)}")
    except OSError as error:
        raise Failed(f"{error.filename or remote.part}: {error.strerror or error}") from error


def is_there(remote: Remote) -> bool:
    """Whether the file is there and right; a wrong one is moved aside."""
    if not remote.file.exists():
        return False
    if (got := remote.wrong(remote.file)) is None:
        say(f"{remote.file}: there already")
        return True
    bad = remote.file.with_name(f"{remote.file.name}.bad")
    os.replace(remote.file, bad)
    say(f"{remote.file}: expected {remote.expected}, got {got}; kept as {bad}")
    return False


@contextmanager
def alone_with(part: Path) -> Iterator[BinaryIO]:
    """Open a part to write at its end, after any other process that does; an empty one goes in the end."""
    told = False
    while True:
        with part.open("ab") as stream:
            try:
                lock(stream)
            except BlockingIOError:
                if not told:
                    say(f"{part}: another download writes it, waiting for that")
                told = True
                time.sleep(0.1)
                continue
            except OSError:
                pass  # a file system without locks
            if not is_open_in(stream, part):
                continue  # the other process has given it its name, or removed it
            try:
                yield stream
            finally:
                stream.flush()
                if is_open_in(stream, part) and part.stat().st_size == 0:
                    part.unlink()
            return


def is_open_in(stream: BinaryIO, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    return False


def link_cached(remote: Remote, stream: BinaryIO) -> bool:
    """Take the file from the hub's cache: True if it needed no copy, which otherwise becomes the part."""
    cached = remote.cached
    if not (cached and cached.is_file() and remote.wrong(cached) is None):
        return False
    cached = cached.resolve()
    try:
        os.link(cached, remote.file)
    except OSError:  # another disk, or one without links
        stream.truncate(0)
        need_space(remote.file.parent, cached.stat().st_size)
        with cached.open("rb") as source:
            shutil.copyfileobj(source, stream, BLOCK)
        say(f"{remote.file}: copied from {cached}")
        return False
    remote.part.unlink()
    say(f"{remote.file}: there, linked to {cached}")
    return True


def bring(remote: Remote, stream: BinaryIO) -> None:
    """Fill the part; one that turns out wrong may have begun as another file, and is fetched once more."""
    for begun in (stream.seek(0, os.SEEK_END), 0):
        need_space(remote.file.parent, (remote.size or 0) - begun)
        if begun != remote.size:
            say(f"{remote.file}: from {remote.url}" + (f", going on at {amount(begun)}" if begun else ""))
        transfer(remote, stream)
        stream.flush()
        if (got := remote.wrong(remote.part)) is None:
            return
        stream.truncate(0)
        say(f"{remote.url}: expected {remote.expected}, got {got}; it was removed")
        if not begun:
            break
    raise Failed(f"{remote.file}: expected {remote.expected}, got {got}")


def read_page(url: str) -> str:
    """The text of a small page."""
    stream = BytesIO()
    transfer(Remote(url, Path("index.html")), stream)
    return stream.getvalue().decode(errors="replace")


def remote_size(url: str) -> int:
    """Bytes of a file as its server tells them, 0 if it does not."""
    with suppress(httpx.HTTPError), client(url) as session:
        answer = session.head(url, headers={"Accept-Encoding": "identity"})
        if answer.is_success:
            return total_size(answer) or 0
    return 0


def transfer(remote: Remote, stream: BinaryIO) -> None:
    """Receive what `stream` does not hold yet, in several tries."""
    persist(remote.url, lambda: receive(remote, stream), lambda: stream.seek(0, os.SEEK_END))


def persist(url: str, step: Callable[[], T], reached: Callable[[], int] = lambda: 0) -> T:
    """The result of a step that may be tried again, `TRIES` times in a row in which nothing is reached."""
    left = TRIES
    while True:
        before = reached()
        try:
            return step()
        except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL) as error:
            raise Failed(f"{url}: {one_line(error)}") from error
        except (httpx.TransportError, Busy) as error:
            left = TRIES if reached() > before else left - 1
            if not left:
                raise Failed(f"{url}: {one_line(error)}") from error
            say(f"{url}: {one_line(error)}; trying again")
            time.sleep(seconds("RETRY_SECONDS", 5))


def client(url: str) -> httpx.Client:
    """A session that waits only so long, and does not leave https."""
    if is_offline_mode() and url.startswith(constants.ENDPOINT):
        raise Failed(f"{url}: expected access to the hub, got HF_HUB_OFFLINE")

    def check(request: httpx.Request) -> None:
        if url.startswith("https:") and request.url.scheme != "https":
            raise Failed(f"{url}: expected https all the way, got a redirect to http://{request.url.host}")

    limit = max(0.01, seconds("STALL_SECONDS", 60))
    try:
        return httpx.Client(follow_redirects=True, timeout=limit, event_hooks={"request": [check]})
    except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:  # a proxy or a certificate
        raise Failed(f"{url}: {one_line(error)}") from error


def receive(remote: Remote, stream: BinaryIO) -> None:
    """Append to `stream` what a server has beyond its end.

    Raises:
        Failed: it has not this file; `stream` is as it was, unless more came than there should be.
        Busy: it has it, but not now.
        httpx.TransportError: the connection broke.
    """
    start = stream.seek(0, os.SEEK_END)
    if start == remote.size:
        return
    if remote.size is not None and start > remote.size:
        start = stream.truncate(0)
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with client(remote.url) as session, session.stream("GET", remote.url, headers=headers) as response:
        total = check_answer(remote, response, start)
        if total == start or (total is None and response.status_code == 416):
            return  # all is there: the process was stopped before it could check
        if response.status_code == 416:
            stream.truncate(0)
            raise Busy(f"expected a range from byte {start} on, got a file of {total} bytes")
        if response.status_code == 200 and start:
            start = stream.truncate(0)  # it knows no ranges
        with progress(remote.file.name, total, start) as bar:
            for block in response.iter_raw():
                stream.write(block)
                stream.flush()  # a kill loses nothing that came; Python 3.14 would hold 128 kB back
                bar.update(len(block))
                if remote.size is not None and stream.tell() > remote.size:
                    stream.truncate(0)
                    raise Failed(f"{remote.url}: expected {remote.size} bytes, got more")
                if isinstance(stream, BytesIO) and stream.tell() > PAGE_BYTES:
                    raise Failed(f"{remote.url}: expected a page of at most {amount(PAGE_BYTES)}, got more")


def check_answer(remote: Remote, response: httpx.Response, start: int) -> int | None:
    """The size of the whole file that an answer is about, if it says so; raises as `receive`."""
    url, status = remote.url, response.status_code
    if status >= 500 or status in (408, 429):
        raise Busy(f"HTTP {status} {response.reason_phrase}")
    if status not in (200, 206) and not (status == 416 and start):
        raise Failed(f"{url}: HTTP {status} {response.reason_phrase}")
    kind = response.headers.get("Content-Type", "")
    if kind.startswith("text/html") and remote.file.suffix != ".html" and status != 416:
        raise Failed(f"{url}: expected {remote.expected}, got a web page")
    total = total_size(response)
    if total is not None and remote.size not in (None, total):
        raise Failed(f"{url}: expected {remote.size} bytes, got a file of {total}")
    span = response.headers.get("Content-Range", "")
    if status == 206 and not re.match(rf"bytes {start}-", span):
        raise Failed(f"{url}: expected bytes from {start} on, got {span!r}")
    # The hub says the SHA-256 before it sends a reader on to where the bytes are.
    told = (response.history or [response])[0].headers.get("X-Linked-ETag", "").strip('W/"')
    if remote.sha256 and told and told != remote.sha256:
        raise Failed(f"{url}: expected SHA-256 {remote.sha256}, got {told}")
    return total


def total_size(response: httpx.Response) -> int | None:
    """Bytes of the whole file of which an answer sends all or a range."""
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
    else:
        length = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(length) if re.fullmatch(r"\d{1,18}", length) else None
