"""Partitions as tasks on a real Ray cluster of this machine, one of whose workers is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from dataset_creation import generate_txt_dataset
from faulty_server import KEY, MODEL, REASONS, LanguageServer, expected, serving
from local_cluster import Cluster, running_cluster
from training_runs import call
from triple_runs import SCRIPT, captions_file, plain_captions, quick, read_lines
from waiting import DEADLINE, wait_until

pytestmark = [
    pytest.mark.usefixtures(quick.__name__),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
]
CAPTIONS = [*plain_captions(50), *(f"{word} thing" for word in REASONS)]
PARTS = 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


def words_of(address: str, server: LanguageServer) -> list[str]:
    """A command line for all partitions, with relative paths."""
    captions_file(Path("captions.txt"), CAPTIONS)
    usual = [MODEL, "--captions", "captions.txt", "--partitions", str(PARTS), "--ray", address]
    return [*usual, "--openai-base-url", server.url]


def run(cluster: Cluster, server: LanguageServer, *words: str) -> tuple[int, list[str], list[str]]:
    """The program on the cluster, with the key in its environment; exit code, lines of output and errors."""
    process = subprocess.run(
        [sys.executable, SCRIPT, *words_of(cluster.address, server), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENAI_API_KEY": KEY, **cluster.env},
        timeout=DEADLINE,
    )
    return process.returncode, process.stdout.splitlines(), process.stderr.splitlines()


@pytest.fixture(autouse=True)
def work_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_a_worker_that_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    """Its partition is begun again and goes on; all together is what one process gives."""
    killed: list[int] = []

    def kill_one() -> None:
        wait_until(lambda: server.answers >= 12, "twelve answers")
        killed.extend(cluster.workers("_run")[:1])
        os.kill(killed[0], signal.SIGKILL)

    with serving(delay=0.1) as server:
        killer = threading.Thread(target=kill_one)
        killer.start()
        Path("words.txt").write_text("rude\n")
        words = ("--moderation", "wordlist", "--wordlist", "words.txt", "--concurrency", "2")
        code, lines, errors = run(cluster, server, *words)
        assert code == 0, errors
        killer.join()
        assert len(killed) == 1
        done = sorted(line.split(":")[0] for line in lines if line.startswith("partition "))
        assert done == [f"partition {i} of 3" for i in range(PARTS)]
        assert {asked.key for asked in server.asked} == {KEY}
        assert len(CAPTIONS) <= server.answers <= len(CAPTIONS) + 2, "what was done was not asked again"
    triples, rejected = expected(CAPTIONS)
    files = [tmp_path / "data" / f"triples-{i}-of-3.jsonl" for i in range(PARTS)]
    found = [(line["caption"], line["edit"], line["output"]) for file in files for line in read_lines(file)]
    assert sorted(found) == sorted(triples)
    refused = [line for file in files for line in read_lines(Path(f"{file}.rejected.jsonl"))[1:]]
    assert sorted((line["caption"], line["reason"]) for line in refused) == sorted(rejected.items())
    assert call(generate_txt_dataset.main, "--merge", "all.jsonl", *files) == 0
    assert len(read_lines(tmp_path / "all.jsonl")) == len(triples)
    for file in cluster.folder.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), f"the key is in {file}"


@pytest.mark.slow
def test_mistakes_of_a_task_are_one_line(cluster: Cluster) -> None:
    with serving(moderation=False) as server:
        code, _, errors = run(cluster, server)
        ours = [line for line in errors if not re.match(r"\[\d{4}-|\S*\(\w+", line)]  # Ray's own log apart
        assert len(ours) == 1, errors
        (line,) = ours
        assert code == 2
        assert line.startswith(f"error: {server.url} seems to have no moderation: choose --moderation ")
        assert {asked.api for asked in server.asked} == {"moderations"}


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:x", "a:99999999"])
def test_no_cluster(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as server:
        assert call(generate_txt_dataset.main, *words_of(address, server)) == 2
        assert not server.asked
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --ray: expected a running cluster at {address!r}")
