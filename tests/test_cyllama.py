"""Triples through `cyllama`, a server without completions and schemas: chat alone, answered freely."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataset_creation import generate_txt_dataset
from dataset_creation.text.instructions import triple_of, validated
from language_model_server import model_file, running
from ldm.data.formats import Triple
from training_runs import call

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cyllama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the server, with its ``/v1``."""
    words = ["-m", "cyllama", "server", "-m", str(model_file()), "--host", "127.0.0.1", "--gpu-layers", "0"]
    with running(words, "v1/models", tmp_path_factory.mktemp("cyllama") / "log") as address:
        yield address


def test_triples_of_a_run(cyllama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every caption is accounted for, what is kept is whole, and a second run asks nothing again."""
    captions = [f"a {colour} car on a street" for colour in ("red", "blue", "green", "white")]
    source, output = tmp_path / "captions.txt", tmp_path / "triples.jsonl"
    source.write_text("\n".join(captions) + "\n")
    words = ["smollm2", "--captions", source, "--openai-base-url", cyllama, "--output", output]
    words += ["--moderation", "wordlist", "--concurrency", 2, "--shots", 2]
    assert call(generate_txt_dataset.main, *words) == 0
    kept = [json.loads(line) for line in output.read_text().splitlines()]
    rejected = [json.loads(line) for line in Path(f"{output}.rejected.jsonl").read_text().splitlines()[1:]]
    assert sorted(line["caption"] for line in kept + rejected) == sorted(captions)
    for line in kept:
        triple = Triple(line["caption"], line["edit"], line["output"])
        assert validated(triple) == triple == triple_of(triple.caption, json.dumps(line))
    before = output.read_bytes()
    capsys.readouterr()
    assert call(generate_txt_dataset.main, *words) == 0
    assert output.read_bytes() == before
    assert "requests/s" not in capsys.readouterr().out


def test_completions_are_not_there(cyllama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "captions.txt"
    source.write_text("a red car\n")
    words = ["smollm2", "--captions", source, "--openai-base-url", cyllama, "--output", tmp_path / "x.jsonl"]
    assert call(generate_txt_dataset.main, *words, "--moderation", "off", "--api", "completions") == 2
    assert "knows no model 'smollm2' or no such API" in capsys.readouterr().err
