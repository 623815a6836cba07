"""Runs of `generate_txt_dataset.py` against a server of `faulty_server`, in this process or another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from dataset_creation import generate_txt_dataset
from dataset_creation.text import run as triple_run
from faulty_server import KEY, MODEL, LanguageServer, expected
from training_runs import call

SCRIPT = Path(generate_txt_dataset.__file__)


def captions_file(path: Path, captions: Iterable[str]) -> Path:
    path.write_text("".join(f"{caption}\n" for caption in captions))
    return path


def plain_captions(count: int) -> list[str]:
    """Captions that all get a good answer."""
    return [f"a cat on sofa {i}" for i in range(count)]


class TripleRun:
    """A caption file and an output in a folder, and the command line over them.

    Args:
        folder: where both are.
        server: that is asked.
        captions: lines of the file; left as it is when None.
    """

    def __init__(self, folder: Path, server: LanguageServer, captions: Iterable[str] | None = None) -> None:
        self.server = server
        self.captions, self.output = folder / "captions.txt", folder / "triples.jsonl"
        if captions is not None:
            captions_file(self.captions, captions)

    def words(self, *more: object) -> list[str]:
        """The command line; later options win."""
        usual = ("--openai-model", MODEL, "--openai-base-url", self.server.url)
        files = ("--captions", self.captions, "--output", self.output)
        return [str(word) for word in (*usual, *files, *more)]

    def call(self, *more: object) -> int:
        """Run the program in this process; returns its exit code."""
        return call(generate_txt_dataset.main, *self.words(*more))

    def start(self, *more: object, launcher: tuple[str, ...] = (), **env: str) -> subprocess.Popen[str]:
        """Start the program as a shell would; `launcher` stands before it."""
        return subprocess.Popen(
            [*(launcher or (sys.executable,)), str(SCRIPT), *self.words(*more)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OPENAI_API_KEY": KEY, "OMP_NUM_THREADS": "1", **env},
        )

    def triples(self) -> list[tuple[str, str, str]]:
        return [(line["caption"], line["edit"], line["output"]) for line in read_lines(self.output)]

    def rejected(self) -> list[tuple[str, str]]:
        """Captions that gave none, with the reason."""
        lines = read_lines(self.output.with_name(self.output.name + ".rejected.jsonl"))
        assert "settings" in lines[0]
        return [(line["caption"], line["reason"]) for line in lines[1:]]

    def assert_complete(self, captions: Iterable[str]) -> None:
        """Every caption is in the files, once, with what the server answers to it."""
        triples, rejected = expected(captions)
        assert Counter(self.triples()) == Counter(triples)
        assert Counter(self.rejected()) == Counter(rejected.items())


def read_lines(path: Path) -> list[dict[str, Any]]:
    content = path.read_text(encoding="utf-8")
    assert not content or content.endswith("\n")
    return [json.loads(line) for line in content.split("\n")[:-1]]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Short pauses where nobody asks for long ones, a key, and the caption cache in the test's folder."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.02)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.05)
    monkeypatch.setattr(triple_run, "PAUSE", 0.05)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
