"""The text format of edits: what is written, what is read back, what is rejected and why."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from dataset_creation.text.instructions import (
    EXAMPLES_FILE,
    Rejected,
    chat_messages,
    check_caption,
    completion_of,
    draw_shots,
    json_of,
    parse_answer,
    prompt_of,
    propose_edit,
    read_examples,
    triple_of,
    validated,
)
from ldm.data.formats import Triple
from ldm.data.triples import Entry, read_triples
from ldm.util import UserError

TRIPLE = Triple("a cat on a sofa", "make it a dog", "a dog on a sofa")


def reason(edit: str, output: str, caption: str = TRIPLE.caption) -> str:
    with pytest.raises(Rejected) as caught:
        validated(Triple(caption, edit, output))
    return caught.value.reason


class Parrot:
    """A language model that gives one answer to everything."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    async def ask(self, caption: str) -> str:
        return self.answer


# --- The published format -----------------------------------------------------------------------------------


def test_the_published_format() -> None:
    assert prompt_of("a cat on a sofa") == "a cat on a sofa\n##\n"
    assert completion_of(TRIPLE) == "make it a dog\n%%\na dog on a sofa\nEND"


@pytest.mark.parametrize(
    "answer",
    [
        completion_of(TRIPLE),
        completion_of(TRIPLE) + "\nand then some",
        "make it a dog\n%%\na dog on a sofa",  # the server cuts the stop sequence off
        "  make it a dog\n\n %% \n\na dog on a sofa\n",
        json_of(TRIPLE),
        f"```json\n{json_of(TRIPLE)}\n```",
        json.dumps({"edit": " make it  a dog", "output": "a dog on\ta sofa ", "why": 1}),
    ],
)
def test_answers_that_are_read(answer: str) -> None:
    assert triple_of(TRIPLE.caption, answer) == TRIPLE


@pytest.mark.parametrize(
    "answer",
    [
        "make it a dog",
        "make it a dog\n%%\na dog\n%%\na third",
        '{"edit": "make it a dog"',
        '{"edit": "make it a dog"}',
        '{"edit": 3, "output": "a dog"}',
        '{"edit": ["a"], "output": "a dog"}',
        "[" * 100_000,
        '{"edit":' + "[" * 100_000,
        "50 %% off",
    ],
)
def test_answers_that_are_malformed(answer: str) -> None:
    with pytest.raises(Rejected) as caught:
        parse_answer(answer)
    assert caught.value.reason == "malformed"
    assert len(str(caught.value)) < 400


# --- What is kept -------------------------------------------------------------------------------------------


def test_reasons_of_rejection() -> None:
    assert reason("make it a dog", "a cat on a sofa") == "no change"
    assert reason("make it a dog", "A cat, on a sofa.") == "no change"
    assert reason("", "a dog") == "empty"
    assert reason("make it a dog", " \n ") == "empty"
    assert reason("A cat on a sofa!", "a dog on a sofa") == "repeats caption"
    assert reason("a dog on a sofa", "a dog on a sofa") == "repeats caption"
    assert reason("make it a dog", "a dog " * 40) == "over-long"
    assert reason("dog " * 76, "a dog") == "over-long"
    assert reason("a ## b", "a dog") == "malformed"
    assert reason("make it a dog", "caf\udce9") == "malformed"


def test_the_longest_text_that_is_read_in_full() -> None:
    assert validated(Triple("cat", "dog " * 75, "a dog")).edit.count("dog") == 75
    with pytest.raises(Rejected, match="has 76 tokens, the text encoder reads 75"):
        check_caption("cat " * 76)


def test_languages_without_latin_letters_are_told_apart() -> None:
    triple = Triple("ソファの上の猫", "犬にする", "ソファの上の犬")
    assert validated(triple) == triple
    assert reason("犬にする", "ソファの上の猫。", "ソファの上の猫") == "no change"
    assert validated(Triple("🐈", "make it a dog", "🐕")).output == "🐕"


def test_propose_edit() -> None:
    def propose(answer: str, caption: str = TRIPLE.caption) -> Triple | None:
        return asyncio.run(propose_edit(Parrot(answer), caption))

    assert propose(completion_of(TRIPLE)) == TRIPLE
    assert propose(json_of(TRIPLE), " a cat  on a sofa\n") == TRIPLE
    assert propose("no idea") is None
    assert propose(json_of(TRIPLE), "") is None


# --- Chat ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_json", [True, False])
def test_the_shown_answers_are_in_the_form_that_is_asked_for(as_json: bool) -> None:
    shots = read_examples(EXAMPLES_FILE)[:3]
    system, *turns, last = chat_messages("a cat", shots, as_json=as_json)
    assert system["role"] == "system" and ("JSON" in system["content"]) == as_json
    assert last == {"role": "user", "content": "a cat"}
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 3
    for shot, question, answer in zip(shots, turns[::2], turns[1::2], strict=True):
        assert question["content"] == shot.caption
        assert triple_of(shot.caption, answer["content"]) == shot
        assert answer["content"].startswith("{") == as_json


def test_the_draw_of_examples() -> None:
    examples = read_examples(EXAMPLES_FILE)
    drawn = draw_shots(examples, 8, "a cat", seed=1)
    assert drawn == draw_shots(examples, 8, "a cat", seed=1)
    assert len(set(drawn)) == 8
    assert drawn != draw_shots(examples, 8, "a dog", seed=1)
    assert drawn != draw_shots(examples, 8, "a cat", seed=2)
    assert len(draw_shots(examples, 1000, examples[0].caption)) == len(examples) - 1  # never its own answer
    assert draw_shots((), 8, "a cat") == []


def outcome(entry: Entry) -> Triple | ValueError:
    """The triple of a line, or what is wrong with it."""
    try:
        return validated(entry.triple)
    except ValueError as error:
        return error


# --- Files --------------------------------------------------------------------------------------------------


def test_files_of_triples(tmp_path: Path) -> None:
    file = tmp_path / "triples.jsonl"
    good = {"input": TRIPLE.caption, "edit": TRIPLE.edit, "output": TRIPLE.output}
    lines = [
        json.dumps(good),
        json.dumps({**good, "caption": good["input"]} | {"input": "another"}),
        "",
        json.dumps({"caption": TRIPLE.caption, "edit": TRIPLE.edit, "output": TRIPLE.output, "url": "x"}),
        "{",
        json.dumps({**good, "edit": None}),
        json.dumps({**good, "output": TRIPLE.caption}),
        "[1]",
    ]
    file.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    read = {entry.number + 1: outcome(entry) for entry in read_triples(file)}
    assert read[1] == read[4] == TRIPLE
    assert read[2] == Triple("another", TRIPLE.edit, TRIPLE.output)
    assert set(read) == {1, 2, 4, 5, 6, 7, 8}
    messages = [str(read[n]) for n in (5, 6, 7, 8)]
    assert "expected JSON" in messages[0] and "expected a text under 'edit', got None" in messages[1]
    assert "no change" in messages[2] and "expected an object" in messages[3]
    with pytest.raises(UserError, match=r"triples.jsonl, line 5: expected JSON"):
        read_examples(file)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00"])
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "triples.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match="triples.jsonl"):
        read_examples(file)
