"""The prompts that image pairs are made from: a file of triples, or a dataset whose pairs are made again.

A prompt's number is that of its line, counted from 0, or of its folder; so it stays the same whichever others
can be read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.data.formats import prompt_folders, read_fields, read_metadata
from ldm.util import UserError

CAPTION_KEYS = ("input", "caption")  # released prompts, self-made ones
SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class NumberedPrompt:
    """A prompt and its number, which names its folder.

    Attributes:
        fields: all that is known of it, with ``edit``, ``output`` and one of `CAPTION_KEYS`.
    """

    number: int
    fields: dict[str, Any]

    @property
    def captions(self) -> tuple[str, str]:
        """Before and after the edit."""
        return next(self.fields[key] for key in CAPTION_KEYS if key in self.fields), self.fields["output"]


@dataclass(frozen=True)
class Task:
    """A prompt to do: by drawing, or, with the lines of its ``metadata.jsonl``, by making those again."""

    prompt: NumberedPrompt
    lines: Sequence[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Source:
    """All prompts of a file or dataset.

    Attributes:
        tasks: by number.
        problems: what is wrong with those that are none.
        digest: SHA-256 of the content that tells this source from others.
    """

    tasks: list[Task]
    problems: list[str]
    digest: str

    def share(self, parts: int, part: int) -> list[Task]:
        """A part of the tasks: neighbours, sizes at most one apart, the longer ones first (as published)."""
        size, longer = divmod(len(self.tasks), parts)
        start = part * size + min(part, longer)
        return self.tasks[start : start + size + (part < longer)]

    def shown_problems(self) -> Iterator[str]:
        """Lines that name the first problems and count the others."""
        yield from (f"skipped: {problem}" for problem in self.problems[:SHOWN_PROBLEMS])
        if len(self.problems) > SHOWN_PROBLEMS:
            yield f"skipped: {len(self.problems) - SHOWN_PROBLEMS} more prompts"


def read_triples(path: str | Path) -> Source:
    """The prompts of a file of JSON lines.

    Raises:
        UserError: the file cannot be read, or no line of it.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"prompts: cannot read {path}: {error.strerror}") from error
    tasks, problems = [], []
    for number, line in enumerate(content.splitlines()):
        try:
            tasks.append(Task(NumberedPrompt(number, _checked(_parsed(line)))))
        except ValueError as error:
            problems.append(f"{path}, line {number + 1}: {error}")
    if not tasks:
        raise UserError(problems[0] if problems else f"prompts: expected JSON lines in {path}, got nothing")
    return Source(tasks, problems, hashlib.sha256(content).hexdigest())


def read_replay(dataset: str | Path) -> Source:
    """The prompts of a dataset with the lines of their ``metadata.jsonl``.

    Raises:
        UserError: no dataset there.
    """
    tasks, problems, digest = [], [], hashlib.sha256()
    for folder in prompt_folders(Path(dataset)):
        try:
            lines = read_metadata(folder)
            for line in lines:
                if not {"seed", "p2p_threshold", "cfg_scale"} <= line.keys():
                    raise UserError(f"{folder}: expected seed, p2p_threshold and cfg_scale in its metadata")
            tasks.append(Task(NumberedPrompt(int(folder.name), _checked(read_fields(folder))), lines))
            digest.update(json.dumps([folder.name, lines]).encode())
        except ValueError as error:
            problems.append(str(error))
    if not tasks:
        raise UserError(
            problems[0] if problems else f"replay: expected prompt folders in {dataset}, got none"
        )
    return Source(tasks, problems, digest.hexdigest())


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise ValueError(f"expected a JSON object, got {line[:60].decode(errors='replace')!r}") from None


def _checked(fields: Any) -> dict[str, Any]:
    """The fields of a prompt, if they are that."""
    expected = "expected an object with input (or caption), edit and output"
    if not isinstance(fields, dict):
        raise ValueError(f"{expected}, got {str(fields)[:60]}")
    names = [next((key for key in CAPTION_KEYS if key in fields), "input"), "edit", "output"]
    if not all(isinstance(fields.get(name), str) for name in names):
        raise ValueError(f"{expected}, all texts, got {str(fields)[:60]}")
    return fields
