"""A language model's server on this machine: it answers by rule and goes wrong by plan.

The answer to a caption follows from the words of the caption, so that a test knows the whole result of a run
(`expected`). Faults are planned for each caption, so that they do not depend on the order of requests.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dataset_creation.text.instructions import CAPTION_END, EDIT_END, STOP

MODEL, KEY = "tiny", "sk-secret-0123456789"
TOKENS = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}  # of every answer
# First word of a caption, and why the answer to it is no use; all others get a good answer.
REASONS = {
    "same": "no change",
    "shouted": "no change",
    "echo": "repeats caption",
    "broken": "malformed",
    "silent": "empty",
    "blank": "empty",
    "wordy": "over-long",
    "cut": "over-long",
    "filtered": "flagged",
    "rude": "flagged",
}


@dataclass(frozen=True)
class Fault:
    """What happens to a request in place of its answer, or to its answer.

    Attributes:
        status: an error of this HTTP status, with `error` as its JSON and `headers`.
        drop: the connection is closed without a word.
        half: it is closed in the middle of the answer.
        raw: this comes as the answer.
        delay: seconds before anything.
    """

    status: int | None = None
    error: Mapping[str, Any] = field(default_factory=lambda: {"message": "try again"})
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: bool = False
    half: bool = False
    raw: bytes | None = None
    delay: float = 0.0


BUSY = Fault(429, {"message": "rate limit", "code": "rate_limit_exceeded"}, {"Retry-After": "1"})
ERROR = Fault(500)
DROP, HALF, GARBAGE = Fault(drop=True), Fault(half=True), Fault(raw=b'{"choices": [')


@dataclass(frozen=True)
class Asked:
    """A request that came: when, in seconds of `time.monotonic`, to which API, and about which caption."""

    time: float
    api: str
    caption: str
    body: Mapping[str, Any]
    key: str


class LanguageServer(ThreadingHTTPServer):
    """Serves ``/v1/chat/completions``, ``/v1/completions`` and ``/v1/moderations``.

    Args:
        faults: of the first requests about a caption, one after the other.
        every: the same for every caption that is not in `faults`.
        refuses: options that every request is refused for, as small servers do.
        names_option: whether such a refusal has the option's name in ``param``, or in its words only.
        moderation: whether that API is there.
        delay: seconds for each answer.

    Attributes:
        asked: requests in the order they came.
        most: of them open at the same time.
        answers: given to captions.
        end: fault of all requests from now on; set by tests.
        end_after: answers to captions before `end` begins.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        faults: Mapping[str, Sequence[Fault]] | None = None,
        *,
        every: Sequence[Fault] = (),
        refuses: Sequence[str] = (),
        names_option: bool = True,
        moderation: bool = True,
        delay: float = 0.0,
        end: Fault | None = None,
        end_after: int = 0,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults, self.every = dict(faults or {}), every
        self.refuses, self.names_option = refuses, names_option
        self.moderation, self.delay = moderation, delay
        self.end, self.end_after = end, end_after
        self.asked: list[Asked] = []
        self.answers = self.open = self.most = 0
        self.lock = threading.Lock()
        self._met: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def about(self, caption: str, api: str = "") -> list[Asked]:
        """Requests about a caption."""
        return [asked for asked in self.asked if asked.caption == caption and asked.api.startswith(api)]

    def fault(self, api: str, caption: str) -> Fault | None:
        """What is planned for this request."""
        with self.lock:
            if self.end is not None and self.answers >= self.end_after:
                return self.end
            if api == "moderations":
                return None
            planned = self.faults.get(caption, self.every)
            self._met[caption] = met = self._met.get(caption, 0) + 1
        return planned[met - 1] if met <= len(planned) else None

    def refusal(self, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """The error for an option that this server does not take."""
        name = next((name for name in self.refuses if name in body), None)
        if name is None:
            return None
        message = f"Unsupported parameter: '{name}' is not supported with this model."
        return {"message": message, "param": name if self.names_option else None, "code": "unsupported"}

    def handle_error(self, *_: Any) -> None:
        """Say nothing of clients that are gone."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LanguageServer

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        api = self.path.removeprefix("/v1/")
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        asked = Asked(time.monotonic(), api, caption_in(api, body), body, key)
        with server.lock:
            server.asked.append(asked)
            server.open += 1
            server.most = max(server.most, server.open)
        try:
            self._answer(asked)
        finally:
            with server.lock:
                server.open -= 1

    def _answer(self, asked: Asked) -> None:
        server = self.server
        fault = server.fault(asked.api, asked.caption) or Fault(delay=server.delay)
        time.sleep(fault.delay)
        if fault.drop:
            return self._hang_up()
        if fault.status is not None:
            text = json.dumps({"error": fault.error}).replace("KEY", asked.key)
            return self._send(fault.status, text.encode(), fault.headers)
        if asked.api == "moderations" and not server.moderation:
            return self._send(404, b'{"error": {"message": "File Not Found", "type": "not_found_error"}}')
        if asked.api != "moderations" and (refusal := server.refusal(asked.body)):
            return self._send(400, json.dumps({"error": refusal}).encode())
        if asked.api != "moderations":
            with server.lock:
                server.answers += 1
        content = fault.raw if fault.raw is not None else json.dumps(answer(asked.api, asked.body)).encode()
        self._send(200, content, half=fault.half)

    def _send(
        self, status: int, content: bytes, headers: Mapping[str, str] | None = None, *, half: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if half else content)
        if half:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serving(
    *args: Any, kind: type[LanguageServer] = LanguageServer, **kwargs: Any
) -> Iterator[LanguageServer]:
    """A server of that kind with these arguments that answers."""
    server = kind(*args, **kwargs)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- Rules of the answers -----------------------------------------------------------------------------------


def caption_in(api: str, body: Mapping[str, Any]) -> str:
    """Which caption a request is about."""
    if api == "moderations":
        return body["input"][0]
    return body["messages"][-1]["content"] if "messages" in body else body["prompt"].removesuffix(CAPTION_END)


def answer(api: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Body of the answer to a request."""
    if api == "moderations":
        return {"results": [{"flagged": text.startswith("rude")} for text in body["input"]]}
    caption = caption_in(api, body)
    word = caption.split()[0]
    edit, output = edit_of(caption)
    if word == "broken":
        text = "I would rather not."
    elif word == "silent":
        text = ""
    elif "response_format" in body:
        text = json.dumps({"edit": edit, "output": output})
    else:
        text = edit + EDIT_END + output
    finish = {"cut": "length", "filtered": "content_filter"}.get(word, "stop")
    assert api != "completions" or body["stop"] == [STOP], "a completion model goes on for ever otherwise"
    content = {"text": text} if api == "completions" else {"message": {"role": "assistant", "content": text}}
    return {"choices": [{"index": 0, "finish_reason": finish, **content}], "usage": TOKENS}


def edit_of(caption: str) -> tuple[str, str]:
    """Instruction and new caption that a caption is answered with."""
    edit, output = f"put a hat on {caption}", f"{caption} with a hat"
    return {
        "same": (edit, caption),
        "shouted": (edit, caption.upper() + "!"),
        "echo": (caption.upper(), output),
        "blank": (" ", output),
        "wordy": (edit, f"{caption} {'hat ' * 80}"),
    }.get(caption.split()[0], (edit, output))


def expected(captions: Iterable[str]) -> tuple[set[tuple[str, str, str]], dict[str, str]]:
    """What a run on these captions comes to: its triples, and captions that give none with the reason."""
    triples, rejected = set(), {}
    for caption in captions:
        reason = REASONS.get(caption.split()[0]) if caption.split() else "empty"
        if reason is None:
            triples.add((caption, *edit_of(caption)))
        else:
            rejected[caption] = reason
    return triples, rejected
