"""Edits that were made: the files of their pictures, which the page shows, and what was found of them."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ldm.app.engine import Job
from ldm.app.texts import say
from ldm.editor import Sampling
from ldm.pictures.safety import BLUR_OVER, SafetyChecker, Verdict, in_settings
from ldm.pictures.writing import save_image


class Record(NamedTuple):
    """An edit that was made.

    Attributes:
        path, before: files of the result, as it may be shown, and of the input at its size.
        instruction: what the edit should do.
        verdict: on the result; None where it was not checked.
    """

    path: str
    before: str
    instruction: str
    verdict: Verdict | None

    def caption(self, language: str) -> str:
        """The instruction, and before it whether the result is blurred."""
        mark = say(language, "blurred_mark") if self.verdict and self.verdict.blurred else ""
        return mark + self.instruction

    def warning(self, language: str) -> str:
        """What to say under a result that is blurred; else nothing."""
        if not (self.verdict and self.verdict.blurred):
            return ""
        return say(language, "blurred", score=f"{self.verdict.score:.3f}", limit=BLUR_OVER)


class Records:
    """Makes the records of all visitors.

    Args:
        folder: of the temporary files, the only ones that are served.
        about: names of the model's files, device and precision, for the settings in pictures.
        checker: sees every result before it becomes a file; None: nobody does.
    """

    def __init__(self, folder: Path, about: dict[str, str | None], checker: SafetyChecker | None) -> None:
        self.folder = folder
        self.about = about
        self.checker = checker

    def folder_of(self, session: str | None) -> Path:
        """Of the files that were made for a visitor; what names a session comes from outside."""
        return self.folder / f"session-{hashlib.sha256(str(session).encode()).hexdigest()[:24]}"

    def remove(self, session: str | None) -> None:
        """Leave no file of a visitor."""
        shutil.rmtree(self.folder_of(session), ignore_errors=True)

    def save(
        self, session: str | None, image: Image.Image, jobs: Sequence[Job], sampling: Sampling, source: str
    ) -> list[Record]:
        """Records of the results of all jobs, or of the input as the result where there are no jobs.

        Args:
            session: of the visitor.
            image: the input at the size of the results.
            jobs: done.
            sampling: of the jobs but for their seeds.
            source: file of the input.
        """
        folder = self.folder_of(session)
        before = folder / f"input-{secrets.token_hex(8)}.png"
        save_image(image, before)
        made: list[tuple[Any, str, int | None]] = [
            (job.result, job.edit.instruction, job.edit.sampling.seed) for job in jobs
        ]
        made = made or [(image, "", sampling.seed)]
        shown: Sequence[Image.Image] = [picture for picture, *_ in made]
        verdicts: Sequence[Verdict | None] = [None] * len(made)
        if self.checker is not None:
            shown, verdicts = self.checker.check(shown)
        records = []
        for picture, verdict, (_, instruction, seed) in zip(shown, verdicts, made, strict=True):
            path = folder / f"edited-{seed}-{secrets.token_hex(8)}.png"
            of_this = {"seed": seed, "edit": instruction, "input": Path(source).name, **in_settings(verdict)}
            save_image(picture, path, {**asdict(sampling), **of_this, **self.about})
            records.append(Record(str(path), str(before), instruction, verdict))
        return records
