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

from ldm.data.formats import Triple, folder_name, prompt_folders, read_metadata
from ldm.data.triples import read_triples
from ldm.util import UserError

SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class NumberedPrompt:
    """A prompt and its number, which names its folder.

    Attributes:
        fields: all that is known of it.
        triple: its texts.
    """

    number: int
    fields: dict[str, Any]
    triple: Triple

    @property
    def captions(self) -> tuple[str, str]:
        """Before and after the edit."""
        return self.triple.caption, self.triple.output


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


def read_source(path: str | Path, *, replay: bool = False) -> Source:
    """The prompts of what `ldm.data.triples` reads.

    Args:
        path: a file of triples or a dataset.
        replay: with the lines of their ``metadata.jsonl``; for a dataset only.

    Raises:
        UserError: it cannot be read, or no prompt of it.
    """
    path = Path(path)
    tasks, problems, digest = [], [], hashlib.sha256()
    if replay:
        prompt_folders(path)  # says if there is no such dataset
    for entry in read_triples(path):
        try:
            fields, lines = entry.fields, read_metadata(path / folder_name(entry.number)) if replay else None
            for line in lines or ():
                if not {"seed", "p2p_threshold", "cfg_scale"} <= line.keys():
                    raise ValueError("expected seed, p2p_threshold and cfg_scale in its metadata")
            tasks.append(Task(NumberedPrompt(entry.number, fields, entry.triple), lines))
            digest.update(json.dumps([folder_name(entry.number), lines if replay else fields]).encode())
        except ValueError as error:
            problems.append(f"{entry.name}: {error}")
    if not tasks:
        raise UserError(problems[0] if problems else f"prompts: expected triples in {path}, got nothing")
    if path.is_file():
        digest = hashlib.sha256(path.read_bytes())
    return Source(tasks, problems, digest.hexdigest())
