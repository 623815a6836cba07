"""A run on a server, a disk or a machine that fails: no triple is lost, none is there twice."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dataset_creation.text.captions import Caption
from dataset_creation.text.journal import Journal
from dataset_creation.text.language_model import retry_after
from faulty_server import (
    BUSY,
    DROP,
    ERROR,
    GARBAGE,
    HALF,
    REASONS,
    Fault,
    LanguageServer,
    expected,
    serving,
)
from ldm.util import UserError
from signal_after import LINE, signal_after
from triple_runs import TripleRun, plain_captions, quick, read_lines
from waiting import DEADLINE, wait_until

pytestmark = pytest.mark.usefixtures(quick.__name__)
MIXED = [*plain_captions(14), *(f"{word} thing" for word in REASONS)]
NOW = Fault(429, headers={"Retry-After": "0.05"})
Capture = pytest.CaptureFixture[str]


def last_line(capsys: Capture) -> str:
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    return errors.splitlines()[-1]


def assert_sound(run: TripleRun) -> None:
    """What is in the file is as the server answers, and no line of it is there twice."""
    triples = run.triples()
    assert len(set(triples)) == len(triples)
    assert set(triples) <= expected(caption for caption, *_ in triples)[0]


# --- Faults that pass ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("fault", ["busy", "error", "drop", "half", "garbage", "html", "no choices", "slow"])
def test_every_first_request_fails(tmp_path: Path, fault: str, api: str) -> None:
    faults = {
        "busy": NOW,
        "error": ERROR,
        "drop": DROP,
        "half": HALF,
        "garbage": GARBAGE,
        "html": Fault(raw=b"<html>one moment</html>"),
        "no choices": Fault(raw=b'{"choices": []}'),
        "slow": Fault(delay=0.3),
    }
    with serving(every=[faults[fault]]) as server:
        run = TripleRun(tmp_path, server, MIXED)
        assert run.call("--api", api) == 0
        asked = 1 if fault == "slow" else 2
        assert len(server.about(MIXED[0], "c")) == asked
    run.assert_complete(MIXED)


@pytest.mark.slow
def test_all_faults_one_after_the_other(tmp_path: Path) -> None:
    """Differently for each caption, and more often than the client repeats by itself."""
    kinds = [NOW, ERROR, DROP, HALF, GARBAGE, Fault(503), Fault(408), Fault(409), Fault(delay=0.1)]
    captions = [*MIXED, *plain_captions(40)[14:]]
    faults = {caption: (kinds[i % 9 :] + kinds[: i % 9])[: i % 8] for i, caption in enumerate(captions)}
    with serving(faults) as server:
        run = TripleRun(tmp_path, server, captions)
        assert run.call("--concurrency", 8) == 0
    run.assert_complete(captions)


def test_moderation_fails_for_a_while(tmp_path: Path) -> None:
    class Moody(LanguageServer):
        def fault(self, api: str, caption: str) -> Fault | None:
            early = len(self.about(caption, "moderations")) < 3 and caption in MIXED
            return ERROR if api == "moderations" and early else None

    with serving(kind=Moody) as server:
        run = TripleRun(tmp_path, server, MIXED)
        assert run.call() == 0
        assert len(server.about(MIXED[0], "moderations")) == 3
        assert len(server.about(MIXED[0], "chat")) == 1, "what was answered is not asked for again"
    run.assert_complete(MIXED)


@pytest.mark.slow
def test_retry_after_is_honoured(tmp_path: Path) -> None:
    """Measured at the server: by the client, twice, and for longer pauses than it makes by the run."""
    captions = plain_captions(4)
    with serving({captions[0]: [BUSY, BUSY]}) as server:
        assert TripleRun(tmp_path, server, captions).call() == 0
        times = [asked.time for asked in server.about(captions[0], "chat")]
    assert len(times) == 3 and all(0.99 <= after - before < 60 for before, after in pairwise(times))


@pytest.mark.slow
def test_retry_after_beyond_what_the_client_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    captions = plain_captions(4)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_AFTER_DELAY", 0.5)
    with serving(every=[BUSY]) as server:
        assert TripleRun(tmp_path, server, captions).call("--moderation", "off") == 0
        for caption in captions:
            first, second = (asked.time for asked in server.about(caption))
            assert second - first >= 0.99
    with serving(end=Fault(429, headers={"Retry-After": "500"})) as server:
        run = TripleRun(tmp_path, server)
        run.output = tmp_path / "other.jsonl"
        assert run.call("--moderation", "off") == 2
        assert len(server.asked) <= 16
    line = last_line(capsys)
    assert "has not answered for 0 s (HTTP 429, try again); 0 triples" in line and "the same command" in line


def test_retry_after_as_seconds_and_as_a_date() -> None:
    assert [retry_after({"retry-after": value}) for value in ("7", "0.5", "-3", "soon")] == [7, 0.5, 0, 0]
    assert retry_after({}) == 0 and retry_after({"retry-after": "nan"}) == 0
    assert 200 < retry_after({"retry-after": formatdate(time.time() + 300, usegmt=True)}) <= 300
    assert retry_after({"retry-after": formatdate(time.time() - 300, usegmt=True)}) == 0


# --- Faults that stay ---------------------------------------------------------------------------------------


FOREVER = {
    "errors": (ERROR, "has not answered for "),
    "busy": (NOW, "has not answered for "),
    "drop": (DROP, "has not answered for "),
    "half": (HALF, "has not answered for "),
    "garbage": (GARBAGE, "expected an answer in the API's JSON"),
    "key": (Fault(401, {"message": "no such key"}), "refuses the key: HTTP 401, no such key"),
    "model": (Fault(404, {"message": "gone"}), "knows no model 'tiny' or no such API: HTTP 404, gone"),
    "quota": (Fault(429, {"message": "no money", "code": "insufficient_quota"}), "HTTP 429, no money"),
    "refused": (Fault(400, {"message": "I will not"}), "refuses every request: HTTP 400, I will not"),
}


@pytest.mark.parametrize("name", FOREVER)
@pytest.mark.slow
def test_errors_for_long_end_the_run_and_it_goes_on_later(tmp_path: Path, capsys: Capture, name: str) -> None:
    fault, message = FOREVER[name]
    captions = [*MIXED, *plain_captions(30)[14:]]
    with serving(end=fault, end_after=20) as server:
        run = TripleRun(tmp_path, server, captions)
        assert run.call("--give-up-after", 0.3, "--concurrency", 4) == 2
        assert message in (line := last_line(capsys)) and line.startswith("error: ") and server.url in line
        assert_sound(run)
        # Of four at once three may have been let through beside the twentieth.
        assert 0 < len(run.triples()) + len(run.rejected()) <= 20 + 3
        kept = set(run.triples())
        server.end = None
        assert run.call() == 0
        assert kept < set(run.triples())
    run.assert_complete(captions)


def test_no_server_at_the_start(tmp_path: Path, capsys: Capture) -> None:
    with serving() as server:
        run = TripleRun(tmp_path, server, MIXED)
    assert run.call("--moderation", "off") == 2
    assert f"{server.url} does not answer: Connection error. " in last_line(capsys)
    assert run.call() == 2, "nothing came of the run before, so that another setting is no matter"
    assert "does not answer" in last_line(capsys)


@pytest.mark.slow
def test_one_caption_that_the_server_cannot_take(tmp_path: Path, capsys: Capture) -> None:
    """The others are done; it is named as unanswered, and asked for again by the next run."""
    captions = plain_captions(24)
    poison = captions[np.random.default_rng(0).permutation(24)[0]]  # asked for first, as others go on after
    for fault, reason in ((ERROR, "HTTP 500, try again"), (Fault(400, {"message": "I will not"}), "I will")):
        with serving({poison: [fault] * 1000}, delay=0.05) as server:
            run = TripleRun(tmp_path, server, captions)
            run.output = tmp_path / f"{server.server_port}.jsonl"
            assert run.call("--concurrency", 2) == 1
            line = last_line(capsys)
            assert "1 captions got no answer (" in line and "run the same command again" in line
            assert reason in line
            run.assert_complete(caption for caption in captions if caption != poison)
            server.faults = {}
            assert run.call() == 0
        run.assert_complete(captions)


def test_a_prompt_that_the_server_filters(tmp_path: Path) -> None:
    refusal = Fault(400, {"message": "filtered", "code": "content_filter"})
    with serving({"a bad cat": [refusal]}) as server:
        run = TripleRun(tmp_path, server, ["a bad cat", "a dog"])
        assert run.call() == 0
    assert run.rejected() == [("a bad cat", "flagged")] and len(run.triples()) == 1


# --- The process ends ---------------------------------------------------------------------------------------


MANY = [*MIXED, *plain_captions(60)[14:]]


def stop_after(run: TripleRun, lines: int, number: int) -> tuple[int, str]:
    """Run the program in a process that a signal meets after so many lines; its exit code and errors."""
    process = run.start("--concurrency", 4, launcher=signal_after(LINE, lines, number))
    _, errors = process.communicate(timeout=DEADLINE)
    return process.returncode, errors


@pytest.mark.slow
def test_kill_9_again_and_again(tmp_path: Path) -> None:
    with serving() as server:
        run = TripleRun(tmp_path, server, MANY)
        for lines in (2, 20):  # the first of all are settings
            code, _ = stop_after(run, lines, signal.SIGKILL)
            assert code == -signal.SIGKILL
            assert_sound(run)
        assert len(run.triples()) + len(run.rejected()) == 1 + 20 and len(run.triples()) > 5
        assert run.call("--concurrency", 4) == 0
        run.assert_complete(MANY)
        assert server.answers <= len(MANY) + 2 * 4, "each end costs no more than was being asked"


@pytest.mark.slow
def test_ctrl_c(tmp_path: Path) -> None:
    with serving() as server:
        run = TripleRun(tmp_path, server, MANY)
        code, errors = stop_after(run, 20, signal.SIGINT)
        assert code == 130 and errors.endswith("interrupted\n") and "Traceback" not in errors
        assert "accepted " in errors and 0 < len(run.triples()) < 60
        assert run.call("--concurrency", 4) == 0
        run.assert_complete(MANY)


@pytest.mark.slow
def test_two_processes_on_one_file(tmp_path: Path, capsys: Capture) -> None:
    refused = threading.Event()

    class Holding(LanguageServer):
        def fault(self, api: str, caption: str) -> Fault | None:
            if self.answers >= 3:
                refused.wait(DEADLINE)
            return super().fault(api, caption)

    with serving(kind=Holding) as server:
        run = TripleRun(tmp_path, server, MANY)
        process = run.start("--concurrency", 4)
        wait_until(lambda: server.answers >= 3 or process.poll() is not None, "three answers")
        for words in ((), ("--moderation", "off")):  # other settings make no difference to that
            assert run.call(*words) == 2
            assert last_line(capsys) == f"error: {run.output}: another process is writing this file"
        refused.set()
        process.communicate(timeout=DEADLINE)
        assert process.returncode == 0
    run.assert_complete(MANY)


# --- The disk is full ---------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 32 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_full_disk(tmp_path: Path, small_disk: Path, capsys: Capture) -> None:
    captions = [*MIXED, *(f"a dog on a long sofa {'very ' * 30} {i}" for i in range(120))]
    with serving() as server:
        run = TripleRun(tmp_path, server, captions)
        run.output = small_disk / "triples.jsonl"
        for _ in range(2):
            assert run.call() == 2
            line = last_line(capsys)
            assert "cannot write " in line and "No space left on device" in line
            assert "nothing is lost, the same command goes on" in line
            assert_sound(run)
        assert 10 < len(run.triples()) < 100
        subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
        assert run.call() == 0
    run.assert_complete(" ".join(caption.split()) for caption in captions)


@pytest.mark.slow
def test_files_may_not_grow(tmp_path: Path) -> None:
    """The same by a limit on the size of files, which takes part of the line that reaches it."""
    captions = plain_captions(120)
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9999, {resource.RLIM_INFINITY}))"
    code = f"{limit}; import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    with serving() as server:
        run = TripleRun(tmp_path, server, captions)
        process = run.start(launcher=(sys.executable, "-c", code), HF_HOME=str(tmp_path / "home"))
        _, errors = process.communicate(timeout=DEADLINE)
        assert process.returncode == 2 and "Traceback" not in errors
        assert f"cannot write {run.output}: File too large" in errors
        assert 9000 < run.output.stat().st_size < 9999
        assert_sound(run)
        assert run.call() == 0
    run.assert_complete(captions)


# --- The journal --------------------------------------------------------------------------------------------


def test_lines_that_are_cut_off_anywhere(tmp_path: Path) -> None:
    """As a machine without power may leave them; the first line of the rejected ones, too."""
    with serving() as server:
        run = TripleRun(tmp_path, server, ["a cat", "a dog", "same thing"])
        assert run.call() == 0
        rejects = tmp_path / "triples.jsonl.rejected.jsonl"
        for file in (run.output, rejects):
            for cut in (1, 2, 30):
                file.write_bytes(file.read_bytes()[:-cut])
                assert run.call() == 0
                run.assert_complete(["a cat", "a dog", "same thing"])
        rejects.write_bytes(rejects.read_bytes()[:40])
        run.output.unlink()
        assert run.call() == 0
    run.assert_complete(["a cat", "a dog", "same thing"])


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    for content in ("no JSON", "no JSON\n", "[1]\n", '{"caption": "a"}\n'):
        (tmp_path / "a.jsonl").write_text(content)
        with pytest.raises(UserError, match="expected"):
            Journal(tmp_path / "a.jsonl", {})
        assert (tmp_path / "a.jsonl").read_text() == content
    (tmp_path / "c.jsonl.rejected.jsonl").write_text('{"caption": "a"}\n')
    with pytest.raises(UserError, match="expected a new file"):
        Journal(tmp_path / "c.jsonl", {})
    with Journal(tmp_path / "b.jsonl", {}):
        pass
    for content in ("no JSON\n", '{"edit": "a"}\n', '{"caption": 5}\n'):
        (tmp_path / "b.jsonl").write_text(content)
        with pytest.raises(UserError, match="expected"):
            Journal(tmp_path / "b.jsonl", {})
        assert (tmp_path / "b.jsonl").read_text() == content


def test_texts_of_all_kinds_are_written_and_known_again(tmp_path: Path) -> None:
    texts = [
        "naïve café 猫 🐈",
        "a\u2028b",
        'quote " and \\',
        "tab\tand  spaces",
        "lone \ud800 surrogate",
        "",
    ]
    with Journal(tmp_path / "a.jsonl", {"seed": 1}) as journal:
        for text in texts:
            journal.reject(Caption(text), "empty", "detail")
    lines = read_lines(tmp_path / "a.jsonl.rejected.jsonl")[1:]
    assert [line["caption"] for line in lines] == texts
    with Journal(tmp_path / "a.jsonl", {"seed": 1}) as journal:
        assert all(journal.was_done(Caption(f"  {text}\n")) for text in texts)
        assert not journal.was_done(Caption("another")) and journal.rejected == {"empty": len(texts)}
