"""Triples a second at many requests at once against one at a time, and the memory of a long run.

The whole program, generate_txt_dataset.py, asks a server on this machine that answers every request after a
fixed delay, whatever else it is doing, as a hosted model with room for all would. Runs take turns.

    python benchmarks/text_throughput.py            # speed; needs: pip install -e '.[dataset]'
    python benchmarks/text_throughput.py --memory   # memory over 1,000 to 100,000 captions
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.runner import in_turn, looking, medians, run_python, verdict, work_folder
from ldm.arguments import Parser, add_settings
from ldm.files import ROOT
from ldm.util import UserError, run_main

PROGRAM = ROOT / "dataset_creation/generate_txt_dataset.py"
SPEED_TARGET = 25.0  # times the rate of one request at a time
MEMORY_TARGET = 1.1  # peak at the most captions / peak at the fewest, at most
MEMORY_COUNTS = (1_000, 10_000, 100_000)
ANSWER = json.dumps({"edit": "make it snow", "output": "the same in deep snow"})


# --- The server ---------------------------------------------------------------------------------------------


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Answer the requests of one connection, each `delay` seconds after it came."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ANSWER}}
    usage = {"prompt_tokens": 500, "completion_tokens": 20, "total_tokens": 520}
    reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "fixed"}
    body = json.dumps({**reply, "choices": [choice], "usage": usage}).encode()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    )
    try:
        while True:
            request = await reader.readuntil(b"\r\n\r\n")
            lengths = [line for line in request.split(b"\r\n") if line.lower().startswith(b"content-length:")]
            await reader.readexactly(int(lengths[0].split(b":")[1]))
            await asyncio.sleep(delay)
            writer.write(head + body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def serve(delay: float, started: Connection) -> None:
    """Serve until the process is ended; tells its port."""

    async def forever() -> None:
        server = await asyncio.start_server(lambda r, w: answer(r, w, delay), "127.0.0.1", 0)
        started.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


# --- Runs of the program ------------------------------------------------------------------------------------


def run(port: int, folder: Path, captions: int, concurrency: int) -> tuple[float, float]:
    """Seconds from the first triple written to the last, and peak memory in MB, of a run of the program."""
    source, output = folder / f"captions-{captions}.txt", folder / f"{time.monotonic_ns()}.jsonl"
    if not source.exists():
        source.write_text("".join(f"a photograph of thing {i} in a garden\n" for i in range(captions)))
    words = ["--openai-model", "fixed", "--captions", source, "--moderation", "off", "--output", output]
    words += ["--openai-base-url", f"http://127.0.0.1:{port}/v1", "--num-samples", str(captions)]

    def written() -> float | None:
        return time.time() if output.exists() and output.stat().st_size else None

    with looking(written, every=0.002) as seen:
        took = run_python(PROGRAM, *words, "--concurrency", str(concurrency), quiet=True)
    lines = output.read_bytes().count(b"\n") if output.exists() else 0
    if lines != captions or not seen:
        sys.exit(f"expected {captions} triples, got {lines}: {took.output[-500:].decode()}")
    return output.stat().st_mtime - seen[0], 1000 * took.memory


def speed(port: int, folder: Path, args: argparse.Namespace) -> None:
    """Compare the rates."""

    def rate(concurrency: int) -> float:
        captions = args.captions * concurrency
        # The first `concurrency` triples come together, and the clock starts with the first of them.
        return (captions - concurrency) / run(port, folder, captions, concurrency)[0]

    programs = {f"{n} at once": partial(rate, n) for n in (1, args.concurrency)}
    one, many = medians(in_turn(args.runs, programs)).values()
    print(f"one at a time {one:.2f} triples/s, {args.concurrency} at once {many:.2f} triples/s")
    print(f"ratio, stated for 32 at once: {verdict(many / one, SPEED_TARGET, at_least=True)}")


def memory(port: int, folder: Path, args: argparse.Namespace) -> None:
    """Peak memory of ever longer runs."""
    peaks = {}
    for captions in MEMORY_COUNTS:
        seconds, peaks[captions] = run(port, folder, captions, args.concurrency)
        print(
            f"{captions:7,} captions: peak {peaks[captions]:.0f} MB, {captions / seconds:.0f}/s", flush=True
        )
    ratio = peaks[MEMORY_COUNTS[-1]] / peaks[MEMORY_COUNTS[0]]
    print(f"ratio {verdict(ratio, MEMORY_TARGET, at_least=False)}")


def main() -> None:
    parser = Parser.of(__doc__)
    add_settings(
        parser,
        ("--delay", 0.5, "of the server before an answer; --memory takes none", "SECONDS"),
        ("--concurrency", 32, "requests at once", "N"),
        ("--captions", 20, "of a run, times the requests at once", "N"),
        ("--runs", 3, "of each concurrency", "N"),
    )
    parser.add_argument("--memory", action="store_true", help="measure memory in place of speed")
    args = parser.parse_args()
    if args.captions < 2 or args.concurrency < 2 or args.runs < 1 or args.delay < 0:
        raise UserError(
            "expected --captions and --concurrency of at least 2, --runs of at least 1, --delay of at least 0"
        )
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(
        target=serve, args=(0 if args.memory else args.delay, theirs), daemon=True
    )
    server.start()
    with work_folder(None) as folder:
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        (memory if args.memory else speed)(ours.recv(), folder, args)
    server.terminate()


if __name__ == "__main__":
    run_main(main)
