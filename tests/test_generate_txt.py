"""generate_txt_dataset.py against a real server on this machine: command line, files, what it shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from dataset_creation import generate_txt_dataset
from dataset_creation.text.instructions import CAPTION_END
from faulty_server import KEY, MODEL, REASONS, TOKENS, Fault, expected, serving
from training_runs import call
from triple_runs import SCRIPT, TripleRun, plain_captions, quick, read_lines

pytestmark = pytest.mark.usefixtures(quick.__name__)
MIXED = [*plain_captions(10), *(f"{word} thing" for word in REASONS)]
Capture = pytest.CaptureFixture[str]


def error_line(capsys: Capture) -> str:
    """The only line of an error on stderr, below the progress bar if there is one."""
    lines = [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if "to go]" not in line]
    (line,) = filter(str.strip, lines)
    assert line.startswith("error: ") and "Traceback" not in line
    return line


# --- Content ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_every_caption_ends_as_triple_or_with_its_reason(tmp_path: Path, capsys: Capture, api: str) -> None:
    long = "a hat " * 80
    with serving() as server:
        run = TripleRun(tmp_path, server, [*MIXED, "", long, "a cat  on sofa 3"])
        assert run.call("--api", api) == 0
    triples, rejected = expected(MIXED)
    assert set(run.triples()) == triples and len(run.triples()) == len(triples)
    assert dict(run.rejected()) == {**rejected, "": "empty", long: "over-long"}
    assert len(run.rejected()) == len(rejected) + 2
    assert not server.about(""), "what is no caption costs no tokens"
    assert len(server.about("a cat on sofa 3", api="chat" if api == "chat" else "completions")) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"{len(triples)} triples in {run.output}; rejected: ") and "duplicate 1" in out
    asked = sum(asked.api != "moderations" for asked in server.asked)
    assert f"{asked * TOKENS['total_tokens']:,} tokens" in out


def test_requests_are_the_published_ones(tmp_path: Path) -> None:
    with serving() as server:
        run = TripleRun(tmp_path, server, ["a dog"])
        assert run.call("--openai-model", "davinci:ft-personal-2022") == 0
    (asked,) = server.about("a dog", "completions")
    assert asked.body == {
        "model": "davinci:ft-personal-2022",
        "prompt": "a dog" + CAPTION_END,
        "temperature": 0.7,
        "max_tokens": 256,
        "top_p": 1,
        "frequency_penalty": 0.1,
        "presence_penalty": 0,
        "stop": ["\nEND"],
    }
    assert asked.key == KEY
    (moderated,) = server.about("a dog", "moderations")
    assert moderated.body["input"] == ["a dog", "put a hat on a dog", "a dog with a hat"]


def test_duplicates_of_captions_and_urls_are_asked_once(tmp_path: Path) -> None:
    rows = [("a cat", "u1"), ("a dog", "u1"), ("a cat", "u2"), ("a cow", ""), ("a pig", ""), ("a hen", "u3")]
    file = tmp_path / "rows.csv"
    file.write_text("caption,url\n" + "".join(f"{caption},{url}\n" for caption, url in rows))
    with serving() as server:
        run = TripleRun(tmp_path, server)
        assert run.call("--captions", file) == 0
    lines = read_lines(run.output)
    assert all(list(line) == ["caption", "edit", "output", "url"] for line in lines)
    assert {(line["caption"], line["url"]) for line in lines} <= {(text, url or None) for text, url in rows}
    urls = [line["url"] for line in lines if line["url"]]
    captions = [line["caption"] for line in lines]
    assert len(set(captions)) == len(captions) and len(set(urls)) == len(urls)
    assert {"a cow", "a pig", "a hen"} <= set(captions)


def test_partitions_share_the_draw(tmp_path: Path) -> None:
    """Every spelling of the option; the parts are disjoint, and together what one run gives."""
    captions = [*plain_captions(30), *plain_captions(5)]
    found: list[tuple[str, str, str]] = []
    with serving() as server:
        run = TripleRun(tmp_path, server, captions)
        shared = ("--num-samples", 25, "--seed", 4)
        assert run.call(*shared) == 0
        whole = run.triples()
        for part, name in enumerate(("--partitions", "--num-partitions", "--partitions")):
            run.output = tmp_path / f"{part}.jsonl"
            assert run.call(*shared, name, 3, "--partition", part) == 0
            found += run.triples()
    assert sorted(found) == sorted(whole) and 20 <= len(set(found)) == len(found) <= 25


# --- Command line -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("--openai-api-key", KEY, "--openai-model", MODEL),
        (MODEL, "--openai-api-key", KEY),
        (MODEL, "--openai-model", MODEL, "--openai-api-key", KEY),
    ],
)
def test_spellings_of_model_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, words: tuple[str, ...]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving() as server:
        run = TripleRun(tmp_path, server, ["a dog"])
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        files = ("--captions", run.captions, "--output", run.output)
        assert call(generate_txt_dataset.main, *words, *files) == 0
    run.assert_complete(["a dog"])
    assert {asked.key for asked in server.asked} == {KEY}
    error = capsys.readouterr().err
    assert "warning: the process list shows a key given by --openai-api-key" in error and KEY not in error


def test_default_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with serving() as server:
        run = TripleRun(tmp_path, server, plain_captions(4))
        words = ["--captions", run.captions, "--openai-base-url", server.url, MODEL]
        assert call(generate_txt_dataset.main, *words, "--partitions", 2, "--partition", 1) == 0
    assert len(read_lines(tmp_path / "data" / "triples-1-of-2.jsonl")) == 2


WRONG: dict[str, tuple[tuple[Any, ...], str]] = {
    "no model": (("--openai-model", ""), "expected the name of a language model"),
    "two models": (("other",), "expected one model, got other and --openai-model tiny"),
    "partition": (("--partition", 1), "--partition: expected 0 to 0 of 1 partitions, got 1"),
    "negative partition": (("--partition", -1), "expected 0 to 0"),
    "no samples": (("--num-samples", 0), "expected at least 1"),
    "no partitions": (("--partitions", 0), "expected at least 1"),
    "no concurrency": (("--concurrency", 0), "expected at least 1"),
    "seed": (("--seed", -1), "--seed: expected at least 0, got -1"),
    "patience": (("--give-up-after", "nan"), "--give-up-after: expected at least 0 seconds, got nan"),
    "one price": (("--price-input", 1), "both --price-input and --price-output"),
    "negative price": (("--price-input", 1, "--price-output", -1), "expected at least 0"),
    "shots": (("--shots", -1), "--shots: expected at least 0, got -1"),
    "no examples": (("--examples", "nowhere.jsonl"), "cannot read nowhere.jsonl"),
    "wordlist alone": (("--wordlist", "words.txt"), "--moderation wordlist"),
    "no wordlist": (("--moderation", "wordlist", "--wordlist", "nowhere"), "--wordlist: cannot read nowhere"),
    "empty wordlist": (("--moderation", "wordlist", "--wordlist", os.devnull), "a word a line"),
    "no captions": (("--captions", "nowhere.txt"), "got nowhere.txt"),
    "output is a folder": (("--output", "/"), "cannot write /"),
    "output below a file": (("--output", "/dev/null/triples.jsonl"), "cannot write /dev/null"),
    "address": (("--openai-base-url", "http://a:b"), "expected the address of a server"),
    "scheme": (("--openai-base-url", "nowhere"), "does not answer"),
    "ray and output": (("--ray", "auto"), "expected no --output, --partition"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_one_line(tmp_path: Path, capsys: Capture, name: str) -> None:
    words, message = WRONG[name]
    with serving(moderation=False) as server:
        assert TripleRun(tmp_path, server, ["a dog"]).call("--moderation", "off", *words) == 2
    assert message in error_line(capsys)
    assert not server.asked


def test_no_caption_set_is_named_as_gone(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """What the published command lines come to, and the name of the published set."""
    lost = "ChristophSchuhmann/improved_aesthetics_6.5plus"
    for more in ((), ("--captions", lost)):
        assert call(generate_txt_dataset.main, MODEL, "--num-samples", 10, *more) == 2
        line = error_line(capsys)
        assert lost in line and "gone from the hub" in line and "dclure/laion-aesthetics-12m-umap" in line


# --- The key ------------------------------------------------------------------------------------------------


def test_no_key_and_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    (tmp_path / "captions.txt").write_text("a dog\n")
    assert call(generate_txt_dataset.main, MODEL, "--captions", tmp_path / "captions.txt") == 2
    assert "expected a key in the environment variable OPENAI_API_KEY" in error_line(capsys)


@pytest.mark.parametrize("status", [401, 403, 400, 404, 500, 429])
def test_a_key_that_the_server_repeats_is_not_shown(
    tmp_path: Path, capsys: Capture, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """Nor is it in the client's own log at its most talkative, or in a file."""
    error = Fault(status, {"message": "Incorrect API key: KEY", "code": "insufficient_quota"})
    with serving(end=error, end_after=2) as server:
        run = TripleRun(tmp_path, server, plain_captions(30))
        caplog.set_level("DEBUG")
        assert run.call("--moderation", "off", "--give-up-after", 0, "--concurrency", 1) == 2
    line = error_line(capsys)
    assert "Incorrect API key: <key>" in line and KEY not in line
    assert "HTTP Request" in caplog.text and KEY not in caplog.text
    assert {asked.key for asked in server.asked} == {KEY}
    assert len(run.triples()) == 2
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes()


def test_a_key_with_a_line_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    with serving() as server:
        run = TripleRun(tmp_path, server, ["a dog"])
        monkeypatch.setenv("OPENAI_API_KEY", KEY + "\r\n")
        assert run.call() == 0
        for key in (KEY + "\nX", KEY + "…"):
            monkeypatch.setenv("OPENAI_API_KEY", key)
            capsys.readouterr()
            assert run.call() == 2
            assert KEY not in error_line(capsys)
    assert {asked.key for asked in server.asked} == {KEY}


# --- Moderation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [None, Fault(405), Fault(400), Fault(raw=b'{"results": []}'), Fault(raw=b"<html>")], ids=str
)
def test_no_moderation_is_told_before_a_token_is_spent(
    tmp_path: Path, capsys: Capture, fault: Fault | None
) -> None:
    with serving(moderation=False, end=fault) as server:
        assert TripleRun(tmp_path, server, plain_captions(3)).call() == 2
    line = error_line(capsys)
    assert "choose --moderation wordlist or --moderation off" in line and server.url in line
    assert {asked.api for asked in server.asked} == {"moderations"}


def test_moderation_by_words_and_off(tmp_path: Path) -> None:
    captions = ["rude thing", "a cat, on... SOFA", "a sofa-cat", "a caton sofa", "a dog"]
    words = tmp_path / "words.txt"
    words.write_text("Cat on sofa\nthing\n\n")
    with serving(moderation=False) as server:
        run = TripleRun(tmp_path, server, captions)
        assert run.call("--moderation", "wordlist", "--wordlist", words) == 0
        assert dict(run.rejected()) == dict.fromkeys(captions[:2], "flagged")
        run.output = tmp_path / "off.jsonl"
        assert run.call("--moderation", "off") == 0
        assert len(run.triples()) == 5
        run.output = tmp_path / "usual.jsonl"
        run.captions.write_text("a fucking cat\na dog\n")
        assert run.call("--moderation", "wordlist") == 0
        assert run.rejected() == [("a fucking cat", "flagged")]
    assert "moderations" not in {asked.api for asked in server.asked}


# --- Servers that take less ---------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("named", [True, False])
def test_options_that_the_server_refuses_are_left_out(
    tmp_path: Path, capsys: Capture, api: str, named: bool
) -> None:
    refused = ["response_format", "max_tokens", "temperature", "frequency_penalty"]
    with serving(refuses=refused, names_option=named) as server:
        run = TripleRun(tmp_path, server, plain_captions(12))
        assert run.call("--api", api, "--concurrency", 3) == 0
    run.assert_complete(plain_captions(12))
    last = [asked.body for asked in server.asked if asked.api != "moderations"][-1]
    assert not set(refused) & set(last) and last["top_p"] == 1
    assert last.get("max_completion_tokens") == (256 if api == "chat" else None)
    error = capsys.readouterr().err
    for name in refused if api == "chat" else refused[1:]:
        assert error.count(f"warning: {server.url} takes no {name}") == 1


# --- Settings and what is shown -----------------------------------------------------------------------------


def test_other_settings_on_the_same_file_are_refused(tmp_path: Path, capsys: Capture) -> None:
    examples = tmp_path / "own.jsonl"
    examples.write_text('{"input": "a cat", "edit": "make it a dog", "output": "a dog"}\n')
    changes: dict[str, tuple[Any, ...]] = {
        "samples 10000, now 2": ("--num-samples", 2),
        "seed 0, now 1": ("--seed", 1),
        "partitions 1, now 2": ("--partitions", 2),
        "model 'tiny', now 'large'": ("--openai-model", "large"),
        "api 'chat', now 'completions'": ("--api", "completions"),
        "moderation 'api', now 'off'": ("--moderation", "off"),
        "shots 8, now 2": ("--shots", 2),
        "examples '": ("--examples", examples),
    }
    with serving() as server:
        run = TripleRun(tmp_path, server, plain_captions(3))
        assert run.call() == 0
        asked = len(server.asked)
        for message, words in changes.items():
            capsys.readouterr()
            assert run.call(*words) == 2
            assert f"{run.output}: was begun with " in (line := error_line(capsys)) and message in line
        assert run.call("--concurrency", 2, "--give-up-after", 9, "--captions", run.captions.resolve()) == 0
        run.captions.write_text("a dog\n" * 3)
        capsys.readouterr()
        assert run.call() == 2
        assert "first captions" in (line := error_line(capsys)) and "rows" not in line
        (tmp_path / "triples.jsonl.rejected.jsonl").unlink()
        assert run.call() == 2
        assert "expected a new file, or one with its triples.jsonl.rejected.jsonl" in error_line(capsys)
    assert len(server.asked) == asked, "what is complete asks for nothing"
    assert len(run.triples()) == 3


def test_concurrency_and_cost(tmp_path: Path, capsys: Capture) -> None:
    with serving(delay=0.05) as server:
        run = TripleRun(tmp_path, server, plain_captions(20))
        prices = ("--price-input", 1000, "--price-output", 5000)
        assert run.call("--concurrency", 5, "--moderation", "off", *prices) == 0
    assert server.most == 5
    assert "2,400 tokens, $4.00" in capsys.readouterr().out  # 20 times 100 and 20 tokens


@pytest.mark.slow
def test_progress_on_a_terminal_of_100_columns(tmp_path: Path) -> None:
    captions = [f"{word} {i}" for word in ("a", *REASONS) for i in range(4)]
    with serving(delay=0.02) as server:
        run = TripleRun(tmp_path, server, [*captions, captions[0]])
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        words = run.words("--price-input", 1000, "--price-output", 1000)
        process = subprocess.Popen(
            [sys.executable, SCRIPT, *words], stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        output = b""
        try:
            while part := os.read(ours, 65536):
                output += part
        except OSError:  # the terminal has no other end any more
            pass
        assert process.wait() == 0
    lines = [line.removesuffix("\x1b[A") for line in re.split(r"[\r\n]+", output.decode())]
    assert max(len(line) for line in lines if "triples in" not in line) <= 100
    bars = [line for line in lines if "to go]" in line]
    assert len(bars) > 3
    assert re.search(
        r"100% \|█+\| 44/44 \[00:\d\d, 00:00 to go\] accepted 4; [\d.]+ requests/s, 5,280 tokens, \$5.28",
        bars[-1],
    )
    below = [line for line in lines if line.startswith("rejected: ")][-1]
    assert all(f"{reason} " in below for reason in {*REASONS.values(), "duplicate"})
