"""One partition of captions turned into triples by a language model: many requests at once, none lost.

What becomes of each caption is in its `journal`, so a run goes on where it was, however it ended.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from dataset_creation.cluster.progress import Progress
from dataset_creation.text.captions import CHUNK, Caption, Captions, draw, fingerprint, partition, repeated
from dataset_creation.text.instructions import Rejected, edit_for
from dataset_creation.text.journal import Journal
from dataset_creation.text.language_model import (
    LanguageModel,
    NoSuchPlace,
    RateLimited,
    Refused,
    Unavailable,
    Usage,
)
from dataset_creation.text.moderation import Flagged, moderation
from ldm.util import UserError

TRIES = 3  # for a caption that gets no answer while others do
PAUSE = 5.0  # seconds between them, on top of the client's own
PATIENCE = 300.0  # seconds without any answer until a run ends
REFUSALS = 20  # in a row until a run ends
FIRST = 1_000  # rows by which a journal knows its captions

T = TypeVar("T")


@dataclass(frozen=True)
class RunOptions:
    """What a run depends on, in types that travel to another machine.

    Attributes:
        output: file of the triples.
        captions, caption_column, url_column: where captions come from, see `Captions`.
        num_samples, seed: how many are drawn, over all partitions.
        num_partitions, partition: which share of them this run takes.
        model: arguments of `LanguageModel`.
        moderation, wordlist: see `moderation`.
        concurrency: requests at once.
        patience: seconds without any answer after which the run ends.
        prices: US dollars for a million tokens, of prompts and of answers.
    """

    output: str
    captions: str
    model: dict[str, Any] = field(repr=False)  # holds the key
    caption_column: str | None = None
    url_column: str | None = None
    num_samples: int = 10_000
    seed: int = 0
    num_partitions: int = 1
    partition: int = 0
    moderation: str = "api"
    wordlist: str | None = None
    concurrency: int = 16
    patience: float = PATIENCE
    prices: tuple[float, float] | None = None


@dataclass
class Report:
    """What a run came to; `accepted` and `rejected` count earlier runs on the same file too."""

    output: str
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    unanswered: int = 0
    trouble: str = ""  # why the last of these got no answer
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    cost: float | None = None

    @property
    def losses(self) -> str:
        """How many captions gave no triple, and why."""
        rejected = Counter(self.rejected) + Counter({"duplicate": self.repeated})
        reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.most_common())
        unanswered = f"no answer {self.unanswered}" if self.unanswered else ""
        return "; ".join(part for part in (unanswered, reasons and f"rejected: {reasons}") if part)

    @property
    def pace(self) -> str:
        """Requests a second, tokens and cost of this run; empty where nothing was asked."""
        if not self.usage.requests or not self.seconds:
            return ""
        tokens = self.usage.prompt_tokens + self.usage.completion_tokens
        pace = f"{self.usage.requests / self.seconds:.1f} requests/s, {tokens:,} tokens"
        return pace if self.cost is None else f"{pace}, ${self.cost:.2f}"

    def __str__(self) -> str:
        parts = (f"{self.accepted} triples in {self.output}", self.losses, self.pace)
        return "; ".join(part for part in parts if part)


def run(options: RunOptions, *, progress: bool = True) -> Report:
    """Ask for an edit of every caption of a partition that is not done yet.

    Raises:
        UserError: the captions, the server or the file cannot be used; what was answered is kept.
    """
    return asyncio.run(_run(options, progress))


async def _run(options: RunOptions, progress: bool) -> Report:
    model = LanguageModel(**options.model)
    try:
        flagged = moderation(options.moderation, model, options.wordlist)
        captions = Captions(options.captions, options.caption_column, options.url_column)
        with Journal(Path(options.output), _settings(options, captions, model)) as journal:
            return await _TripleRun(options, captions, model, flagged, journal).work(progress)
    finally:
        await model.close()


def _settings(options: RunOptions, captions: Captions, model: LanguageModel) -> dict[str, Any]:
    """What decides which captions are taken and what they are answered, for the journal."""
    chat = model.api == "chat"
    first = [caption.text for caption in captions.rows(list(range(min(FIRST, len(captions)))))]
    return {
        "captions": Path(options.captions).name,  # the folder may be another one on another machine
        "first captions": _digest(first),
        "rows": len(captions),
        "caption column": captions.caption_column,
        "URL column": captions.url_column,
        "samples": options.num_samples,
        "seed": options.seed,
        "partitions": options.num_partitions,
        "partition": options.partition,
        "model": model.model,
        "api": model.api,
        "shots": model.shots if chat else None,
        "examples": _digest([example.texts for example in model.examples]) if chat else None,
        "moderation": options.moderation,
        "wordlist": Path(options.wordlist).name if options.wordlist else None,
    }


def _digest(value: Any) -> str:
    return f"{fingerprint(json.dumps(value)):016x}"


class _TripleRun:
    """The work on a partition: its open journal, the model, and what came of it so far."""

    def __init__(
        self,
        options: RunOptions,
        captions: Captions,
        model: LanguageModel,
        flagged: Flagged,
        journal: Journal,
    ) -> None:
        self.options, self.captions = options, captions
        self.model, self.flagged, self.journal = model, flagged, journal
        self.begun = time.monotonic()
        self.answered: float | None = None  # when the server last did
        self.refusals = 0  # since then
        self.report = Report(options.output, journal.accepted, journal.rejected)
        rows = draw(captions, options.num_samples, options.seed)
        again = repeated(captions, rows)
        mine = partition(len(rows), options.num_partitions, options.partition)
        self.rows = rows[mine][~again[mine]]
        self.report.repeated = len(mine) - len(self.rows)

    async def work(self, progress: bool) -> Report:
        """Ask until no caption is left."""
        with Progress(len(self.rows), shown=progress) as self.bar:
            todo = self._todo()
            first = next(todo, None)
            if first is not None:
                await self._check_moderation()
                todo = chain([first], todo)
            tasks = [asyncio.create_task(self._take(todo)) for _ in range(self.options.concurrency)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._count(0)
        return self.report

    async def _check_moderation(self) -> None:
        """Try the server's moderation before tokens are spent."""
        if self.options.moderation != "api":
            return
        try:
            await self._answer(lambda: self.flagged(["a cat on a sofa"]))
        except (NoSuchPlace, Refused, Unavailable) as trouble:
            raise UserError(
                f"{self.model.server} seems to have no moderation: choose --moderation wordlist or "
                f"--moderation off ({trouble})"
            ) from None

    def _todo(self) -> Iterator[Caption]:
        """Captions that are not done yet, read a chunk at a time."""
        for start in range(0, len(self.rows), CHUNK):
            for caption in self.captions.rows(self.rows[start : start + CHUNK]):
                if self.journal.was_done(caption):
                    self.bar.skip()
                else:
                    yield caption

    async def _take(self, todo: Iterator[Caption]) -> None:
        """Work on one caption after the other until there is none."""
        for caption in todo:
            await self._turn(caption)
            self._count(1)

    def _count(self, done: int) -> None:
        report, prices, usage = self.report, self.options.prices, self.model.usage
        report.accepted, report.usage, report.seconds = (
            self.journal.accepted,
            usage,
            time.monotonic() - self.begun,
        )
        if prices is not None:
            report.cost = (usage.prompt_tokens * prices[0] + usage.completion_tokens * prices[1]) / 1e6
        accepted = f"accepted {report.accepted}"
        self.bar.done(done, f"{accepted}; {report.pace}" if report.pace else accepted, report.losses)

    async def _turn(self, caption: Caption) -> None:
        """Make a triple of a caption, or note why there is none."""
        try:
            triple = await edit_for(self, caption.text)
            if await self._answer(lambda: self.flagged(list(triple.texts.values()))):
                raise Rejected("flagged")
        except Rejected as reason:
            self.journal.reject(caption, reason.reason, reason.detail)
        except (Unavailable, Refused) as trouble:  # not noted, so that the next run asks again
            self.report.unanswered += 1
            self.report.trouble = str(trouble)
        else:
            self.journal.accept(triple, caption)

    async def ask(self, caption: str) -> str:
        """The model's answer, waited for as long as it takes."""
        return await self._answer(lambda: self.model.ask(caption))

    async def _answer(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What the server answers; asked again while it is away, a few times if this request alone fails."""
        tries = 0
        while True:
            begun = time.monotonic()
            try:
                answer = await ask()
            except Unavailable as trouble:
                alone = self.answered is not None and self.answered >= begun  # others got an answer
                if alone and not isinstance(trouble, RateLimited):
                    tries += 1
                if tries >= TRIES:
                    raise
                await self._wait(trouble)
            except Refused as trouble:
                self.refusals += 1
                if self.refusals >= REFUSALS:
                    raise UserError(f"{self.model.server} refuses every request: {trouble}") from None
                raise
            except Rejected:
                self._heard()
                raise
            else:
                self._heard()
                return answer

    def _heard(self) -> None:
        self.answered, self.refusals = time.monotonic(), 0

    async def _wait(self, trouble: Unavailable) -> None:
        """Pause as long as the server wishes, or end the run if that is longer than its patience."""
        if self.answered is None and not isinstance(trouble, RateLimited):
            raise UserError(f"{self.model.server} does not answer: {trouble}")
        pause = max(PAUSE, trouble.retry_after)
        silence = time.monotonic() - (self.begun if self.answered is None else self.answered)
        if silence + pause > self.options.patience:
            raise UserError(
                f"{self.model.server} has not answered for {silence:.0f} s ({trouble}); "
                f"{self.journal.accepted} triples are in {self.options.output}, the same command goes on"
            )
        await asyncio.sleep(pause)
