"""The text of an edit: its format, how a language model is asked for it, what of an answer is kept.

A triple is a caption, an instruction, and the caption after it (Brooks et al. 2022, section 3.1.1). Two ways
to ask for one:

- *completions*: the published format, for a completion model fine-tuned on it. The prompt is the caption and
  ``\\n##\\n``; the answer is the instruction, ``\\n%%\\n``, the new caption, ``\\nEND``.
- *chat*: any instruction model, shown a few triples that people wrote. It answers in JSON where the server
  can hold it to a schema, in the published format elsewhere.

What talks to the server is `language_model`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ldm.data.formats import Triple
from ldm.data.triples import read_triples
from ldm.modules.encoders.bpe import MAX_TOKENS, token_count
from ldm.util import UserError

CAPTION_END = "\n##\n"
EDIT_END = "\n%%\n"
STOP = "\nEND"
EXAMPLES_FILE = Path(__file__).parents[1] / "examples.jsonl"

SYSTEM = (
    "You make training data for an image editor. You are given the caption of a picture. Think of one "
    "interesting edit of that picture that can be seen, and that a person could ask for: something is added, "
    "removed, replaced or changed, or the style, season, time of day or material is another. Answer with the "
    "instruction, short and imperative, and with the caption of the edited picture. The new caption repeats "
    "the given one word for word but for what the edit changes."
)
JSON_FORM = 'Answer in JSON only: {"edit": "<instruction>", "output": "<caption after the edit>"}'
DELIMITED_FORM = "Answer with exactly three lines: the instruction, a line with only %%, the new caption."
SCHEMA = {
    "name": "edit",
    "strict": True,
    "schema": {
        "type": "object",
        "properties": {"edit": {"type": "string"}, "output": {"type": "string"}},
        "required": ["edit", "output"],
        "additionalProperties": False,
    },
}

Messages = list[dict[str, str]]


class Rejected(ValueError):
    """A triple that is no use; `reason` is one of a few words, `detail` what it was about."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail
        self.answer = ""  # of the model, where there is one


class Client(Protocol):
    """What `propose_edit` needs of a language model: the text that it answers to a caption."""

    async def ask(self, caption: str) -> str: ...


async def propose_edit(client: Client, caption: str) -> Triple | None:
    """Ask a language model for an edit of the picture with that caption.

    Returns:
        the triple, or None where the caption or the answer is no use (`edit_for` says why).

    Raises:
        UserError: the server cannot be used.
    """
    try:
        return await edit_for(client, caption)
    except Rejected:
        return None


async def edit_for(client: Client, caption: str) -> Triple:
    """As `propose_edit`.

    Raises:
        Rejected: why there is no triple; it holds the model's answer if that is what is no use.
        UserError: the server cannot be used.
    """
    caption = check_caption(caption)
    answer = await client.ask(caption)
    try:
        return triple_of(caption, answer)
    except Rejected as error:
        error.answer = answer
        raise


# --- Writing ------------------------------------------------------------------------------------------------


def prompt_of(caption: str) -> str:
    """What a fine-tuned completion model is given."""
    return caption + CAPTION_END


def completion_of(triple: Triple) -> str:
    """What a completion model is trained to answer, stop sequence included."""
    return triple.edit + EDIT_END + triple.output + STOP


def json_of(triple: Triple) -> str:
    """What a chat model is to answer where it answers in JSON."""
    return json.dumps({"edit": triple.edit, "output": triple.output}, ensure_ascii=False)


def chat_messages(caption: str, shots: Sequence[Triple], *, as_json: bool = True) -> Messages:
    """A conversation that asks for an edit of `caption` after the answers to the captions of `shots`."""
    messages = [{"role": "system", "content": f"{SYSTEM} {JSON_FORM if as_json else DELIMITED_FORM}"}]
    for shot in shots:
        answer = json_of(shot) if as_json else shot.edit + EDIT_END + shot.output
        messages.append({"role": "user", "content": shot.caption})
        messages.append({"role": "assistant", "content": answer})
    return [*messages, {"role": "user", "content": caption}]


def draw_shots(examples: Sequence[Triple], count: int, caption: str, seed: int = 0) -> list[Triple]:
    """`count` of the examples, others for other captions, the same ones whenever a caption is asked again."""
    others = [example for example in examples if example.caption != caption]
    # A string seeds by its bytes, so that the draw is the same on every machine.
    return random.Random(f"{seed} {ascii(caption)}").sample(others, min(count, len(others)))


# --- Reading ------------------------------------------------------------------------------------------------


def check_caption(caption: str) -> str:
    """The caption without white space around or doubled.

    Raises:
        Rejected: empty, or longer than the text encoder of Stable Diffusion reads.
    """
    return _checked("caption", caption)


def triple_of(caption: str, answer: str) -> Triple:
    """The triple that a model's answer to a caption holds, in JSON or in the published format.

    Raises:
        Rejected: the answer is not to be used.
    """
    edit, output = parse_answer(answer)
    return validated(Triple(caption, edit, output))


def parse_answer(answer: str) -> tuple[str, str]:
    """Instruction and new caption of an answer.

    Raises:
        Rejected: it is neither JSON of an object with ``edit`` and ``output`` nor in the published format.
    """
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?```\s*", answer, re.DOTALL)
    text = (fenced.group(1) if fenced else answer).strip()
    if text.startswith("{"):
        try:
            fields = json.loads(text)
            return _text(fields["edit"]), _text(fields["output"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Rejected("malformed", repr(error)) from None
    text = text.partition(STOP)[0]
    # Chat models are free with line ends, so only the sign itself has to stand on a line of its own.
    sign = r"(?:\A|[ \t]*\n\s*)%%[ \t]*(?:\n|\Z)"
    parts = text.split(EDIT_END) if EDIT_END in text else re.split(sign, text)
    if len(parts) != 2:
        raise Rejected("malformed", f"expected instruction, line of %%, caption, got {answer!r:.200}")
    return parts[0], parts[1]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {value!r:.80}")
    return value


def validated(triple: Triple) -> Triple:
    """The triple with its white space put in order.

    Raises:
        Rejected: a text is empty, over-long or holds a delimiter, nothing changes, or the instruction only
            repeats one of the captions.
    """
    clean = replace(triple, **{name: _checked(name, text) for name, text in triple.texts.items()})
    caption, edit, output = map(_plain, clean.texts.values())
    if caption == output:
        raise Rejected("no change", "the caption after the edit is the one before")
    if edit in (caption, output):
        raise Rejected("repeats caption", "the instruction only repeats a caption")
    return clean


def _checked(name: str, text: str) -> str:
    """A text on one line, without white space around or doubled, that the text encoder reads in full."""
    words = text.split()
    if not words:
        raise Rejected("empty", f"the {name} is empty")
    if any(mark.strip() in words for mark in (CAPTION_END, EDIT_END)):
        raise Rejected("malformed", f"the {name} holds a delimiter")
    clean = " ".join(words)
    try:
        tokens = token_count(clean)
    except TypeError:
        raise Rejected("malformed", f"the {name} is no valid Unicode") from None
    if tokens > MAX_TOKENS:
        raise Rejected("over-long", f"the {name} has {tokens} tokens, the text encoder reads {MAX_TOKENS}")
    return clean


def _plain(text: str) -> str:
    """A text without what makes no difference: case and punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text


# --- Files of triples ---------------------------------------------------------------------------------------


def read_examples(path: str | Path) -> list[Triple]:
    """Triples to show a chat model.

    Raises:
        UserError: the file cannot be read, holds none, or a line of it is wrong.
    """
    examples = []
    for entry in read_triples(path):
        try:
            examples.append(validated(entry.triple))
        except ValueError as error:
            raise UserError(f"{entry.name}: {error}") from None
    if not examples:
        raise UserError(f"{path}: expected triples to show the model, got an empty file")
    return examples
