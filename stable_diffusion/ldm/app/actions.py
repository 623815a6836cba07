"""What happens on the page: every method answers one of its events with new values of its parts."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
from PIL import Image

from ldm.app.engine import Edit, Engine, Job
from ldm.app.markup import bar, live, note, problem
from ldm.app.records import Record, Records
from ldm.app.settings import (
    Settings,
    checked,
    checked_count,
    checked_instruction,
    defaults_of,
    randomised,
    restored,
)
from ldm.app.suggestions import draw_suggestions
from ldm.app.texts import Problem, explain, preferred, say
from ldm.app.uploads import open_upload, settings_in_upload, uploaded_path
from ldm.editor import Defaults
from ldm.files import ROOT
from ldm.pictures.animation import save_animation
from ldm.pictures.fitting import fit_to_model
from ldm.pictures.reading import open_image
from ldm.pictures.safety import in_settings
from ldm.pictures.writing import save_image
from ldm.util import UserError, one_line

SURPRISES = 4
PHOTO_EXAMPLES = [(ROOT / "imgs/example.jpg", "turn him into a cyborg")]
AVATAR_EXAMPLES = [
    (Path(__file__).parent / "examples" / name, instruction)
    for name, instruction in (
        ("avatar_1.jpg", "add sunglasses"),
        ("avatar_2.jpg", "make the background blue"),
        ("avatar_3.jpg", "give him a long beard"),
        ("avatar_4.jpg", "give him a green afro"),
    )
]
HISTORY = 32  # pictures that a session keeps
FIX, RANDOMIZE = "fix", "randomize"
SETTINGS = tuple(Settings.__annotations__)

Values = dict[Any, Any]  # of components


class Run:
    """A visitor's edits on their way.

    Attributes:
        jobs: theirs.
        farewell: HTML to show in place of a result, once they have been stopped.
    """

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.farewell: str | None = None

    def stop(self, farewell: str) -> None:
        self.farewell = farewell
        for job in self.jobs:
            job.cancel()


class Actions:
    """Answers to the events of the page.

    Args:
        engine: does the edits.
        store: makes files of them.
        defaults: what the page starts with.
        max_pixels: of an upload.
        language: of all visitors; None goes by their browsers.
    """

    def __init__(
        self,
        engine: Engine,
        store: Records,
        defaults: Defaults,
        max_pixels: int,
        language: str | None,
    ) -> None:
        self.engine = engine
        self.store = store
        self.defaults = defaults
        self.examples = AVATAR_EXAMPLES if engine.avatars else PHOTO_EXAMPLES
        self.max_pixels = max_pixels
        self.language = language
        self.parts = SimpleNamespace()  # the components of the page by name
        self._runs: dict[str | None, Run] = {}  # by session

    # --- Edits ---------------------------------------------------------------------------------------------

    async def generate(self, data: Values, event: gr.EventData, request: gr.Request) -> AsyncIterator[Values]:
        """Edit the input: by the instruction, by more seeds too, or by suggested ones for Surprise me."""
        parts, language = self.parts, self._language(request)
        run = self._runs[request.session_hash] = Run()
        try:
            values = self._drawn(data)
            settings = checked(values, self.defaults)
            count = checked_count(data[parts.count], self.defaults)
            instruction = checked_instruction(data[parts.instruction])
            path = uploaded_path(data[parts.input])
            yield {
                **{getattr(parts, name): values[name] for name in ("seed", "cfg_text", "cfg_image")},
                parts.message: "",
                parts.live: bar(say(language, "starting")),
                **self._busy(True),
            }
            if event.target.elem_id == parts.surprise.elem_id:
                drawn = draw_suggestions(self.engine.avatars, SURPRISES, random.randrange(2**31))
                wishes = [(suggestion, settings.seed) for suggestion in drawn]
            else:
                wishes = [(instruction, settings.seed + i) for i in range(count if instruction else 0)]
            image = await asyncio.to_thread(self._fitted, path, settings.resolution)
            jobs: list[Job] = []
            started = time.monotonic()
            async with aclosing(self._jobs(image, settings, wishes)) as news:
                async for jobs in news:
                    run.jobs = jobs
                    if run.farewell is not None:
                        break
                    yield {parts.live: live(language, jobs, time.monotonic() - started)}
                    if jobs[0].ahead:
                        started = time.monotonic()
            if run.farewell is None:
                made = (request.session_hash, image, jobs, settings, path)
                records = await asyncio.to_thread(self.store.save, *made)
        except Exception as error:  # whatever it is, the page says so and its buttons work again
            yield self._refused(error, request)
            return
        finally:
            self._runs.pop(request.session_hash, None)
        if run.farewell is not None:  # said here, as it must come after all that was said of the work
            yield {parts.message: run.farewell, parts.live: "", **self._busy(False)}
            return
        history = [*(records if jobs else ()), *data[parts.records]][:HISTORY]
        yield {
            **self._shown(records[0], language),
            **self._listed(history, language),
            parts.message: "" if jobs else note(say(language, "empty")),
            **self._busy(False),
        }

    async def edit(
        self,
        image: Any,
        instruction: Any,
        steps: Any,
        seed: Any,
        cfg_text: Any,
        cfg_image: Any,
        sampler: Any,
        schedule: Any,
        resolution: Any,
        request: gr.Request,
    ) -> tuple[str, dict[str, Any]]:
        """Edit a picture: the file of the result, and the settings that made it."""
        values = dict(
            zip(SETTINGS, (steps, seed, cfg_text, cfg_image, sampler, schedule, resolution), strict=True)
        )
        try:
            settings = checked(values, self.defaults)
            instruction = checked_instruction(instruction)
            path = uploaded_path(image)
            fitted = await asyncio.to_thread(self._fitted, path, settings.resolution)
            jobs: list[Job] = []
            wishes = [(instruction, settings.seed)] if instruction else []
            async with aclosing(self._jobs(fitted, settings, wishes)) as news:
                async for jobs in news:  # noqa: B007
                    pass
            made = (request.session_hash, fitted, jobs, settings, path)
            record, *_ = await asyncio.to_thread(self.store.save, *made)
        except Exception as error:
            raise gr.Error(str(told(error)), print_exception=False) from None
        return record.path, {**asdict(settings), "edit": instruction, **in_settings(record.verdict)}

    async def _jobs(
        self, image: Image.Image, settings: Settings, wishes: Sequence[tuple[str, int]]
    ) -> AsyncIterator[list[Job]]:
        """Run an edit for each instruction with its seed, as `Engine.run` does; raise what made one fail."""
        if not wishes:
            return
        values = {
            name: value for name, value in asdict(settings).items() if name not in ("seed", "resolution")
        }
        edits = [Edit(image, instruction, seed, **values) for instruction, seed in wishes]
        async with aclosing(self.engine.run(edits)) as news:
            async for jobs in news:
                yield jobs
        for job in jobs:
            if isinstance(job.result, UserError):
                raise job.result

    def _drawn(self, data: Values) -> dict[str, Any]:
        """The settings as the page has them, random ones drawn."""
        parts = self.parts
        values = {name: data[getattr(parts, name)] for name in SETTINGS}
        modes = (data[mode] == RANDOMIZE for mode in (parts.seed_mode, parts.cfg_mode))
        return randomised(values, self.defaults, *modes)

    def _fitted(self, path: str, resolution: int) -> Image.Image:
        return fit_to_model(open_upload(path, self.max_pixels), resolution)

    # --- Pictures ------------------------------------------------------------------------------------------

    def load_example(self) -> Values:
        """Another of the examples."""
        path, instruction = random.choice(self.examples)
        copy = self.store.folder / f"example-{path.stem}.png"
        if not copy.exists():
            save_image(open_image(path), copy)
        parts = self.parts
        return {**self._fresh(), parts.input: str(copy), parts.instruction: instruction, parts.chain: ()}

    def uploaded(self, data: Values, request: gr.Request) -> Values:
        """Refuse a new input that cannot be used; take over the settings that are in it."""
        parts = self.parts
        try:
            path = uploaded_path(data[parts.input])
            found = restored(settings_in_upload(path, self.max_pixels), self.defaults)
        except UserError as error:
            return {**self._refused(error, request), parts.input: None}
        answer = {**self._fresh(), parts.chain: ()}
        if found:
            answer |= {getattr(parts, name): value for name, value in found.items() if name != "edit"}
            answer |= {parts.seed_mode: FIX, parts.cfg_mode: FIX, parts.instruction: found.get("edit", "")}
            answer[parts.message] = note(say(self._language(request), "restored"))
        return answer

    def edit_again(self, data: Values, request: gr.Request) -> Values:
        """The result becomes the input; the chain remembers it and what came before."""
        parts, language = self.parts, self._language(request)
        record = data[parts.current]
        if record is None:
            return self._refused(Problem("no_result"), request)
        chain = (*self._chain(data), (record.path, record.caption("en")))
        texts = (say(language, "next", number=len(chain) - 1), record.warning(language))
        return {
            **self._fresh(),
            parts.input: record.path,
            parts.instruction: "",
            parts.chain: chain,
            parts.message: note(" ".join(filter(None, texts))),
        }

    def make_gif(self, data: Values, request: gr.Request) -> Values:
        """An animation of the chain of edits and the result that is shown."""
        parts, record = self.parts, data[self.parts.current]
        frames = list(data[parts.chain])
        if record is not None:
            frames = [*self._chain(data), (record.path, record.caption("en"))]
        try:
            if len(frames) < 2:
                raise Problem("no_result")
            try:
                pictures = [open_image(path) for path, _ in frames]
            except UserError:
                raise Problem("gone") from None
            same = [picture.resize(pictures[-1].size, Image.Resampling.LANCZOS) for picture in pictures]
            path = self.store.folder_of(request.session_hash) / f"edits-{secrets.token_hex(8)}.gif"
            save_animation(same, [caption for _, caption in frames], path)
        except UserError as error:
            return self._refused(error, request)
        return {parts.gif: gr.Image(str(path), visible=True), parts.message: ""}

    def choose(self, data: Values, event: gr.SelectData, request: gr.Request) -> Values:
        """Show a picture of the history."""
        record = data[self.parts.records][event.index]
        return {**self._shown(record, self._language(request)), self.parts.instruction: record.instruction}

    def _chain(self, data: Values) -> tuple[tuple[str, str], ...]:
        """The pictures so far with their instructions, the input of the first edit at their head."""
        return data[self.parts.chain] or ((data[self.parts.current].before, ""),)

    # --- The page ------------------------------------------------------------------------------------------

    def cancel(self, request: gr.Request) -> Values:
        """Stop the visitor's edits; `generate` says so."""
        self._stop(request, note(say(self._language(request), "cancelled")))
        return {self.parts.cancel: gr.Button(interactive=False)}

    def reset(self, request: gr.Request) -> Values:
        """The page as it was when it was opened, with no file of the session left."""
        self.leave(request)
        parts, start = self.parts, defaults_of(self.defaults)
        return {
            **self._fresh(),
            **{getattr(parts, name): value for name, value in start.items()},
            parts.seed_mode: RANDOMIZE,
            parts.cfg_mode: FIX,
            parts.input: None,
            parts.instruction: "",
            parts.chain: (),
            **self._listed([], self._language(request)),
            **self._busy(False),
        }

    def leave(self, request: gr.Request) -> None:
        """Stop a visitor's edits and remove the files that were made for them."""
        self._stop(request, "")
        self.store.remove(request.session_hash)

    def _stop(self, request: gr.Request, farewell: str) -> None:
        if run := self._runs.get(request.session_hash):
            run.stop(farewell)

    def _fresh(self) -> Values:
        """No result and no message."""
        parts = self.parts
        return {
            **{part: "" for part in (parts.live, parts.message, parts.warning)},
            **{part: None for part in (parts.edited, parts.compare, parts.current)},
            parts.download: gr.DownloadButton(value=None, interactive=False),
            parts.gif: gr.Image(None, visible=False),
        }

    def _shown(self, record: Record, language: str) -> Values:
        parts, warning = self.parts, record.warning(language)
        return {
            parts.live: "",
            parts.warning: note(warning) if warning else "",
            parts.edited: record.path,
            parts.compare: (record.before, record.path),
            parts.download: gr.DownloadButton(value=record.path, interactive=True),
            parts.current: record,
        }

    def _listed(self, records: list[Record], language: str) -> Values:
        """The history, hidden while there is none."""
        parts = self.parts
        return {
            parts.records: records,
            parts.history: [(record.path, record.caption(language)) for record in records],
            parts.history_box: gr.Accordion(visible=bool(records)),
        }

    def _busy(self, busy: bool) -> Values:
        parts = self.parts
        buttons = {button: gr.Button(interactive=not busy) for button in (parts.generate, parts.surprise)}
        return {**buttons, parts.cancel: gr.Button(interactive=busy)}

    def _refused(self, error: Exception, request: gr.Request) -> Values:
        parts, text = self.parts, explain(self._language(request), told(error))
        return {parts.message: problem(text), parts.live: "", **self._busy(False)}

    def _language(self, request: gr.Request) -> str:
        return self.language or preferred(request.headers.get("accept-language"))


def told(error: Exception) -> UserError:
    """The error as visitors are told of it; what nobody foresaw goes to the log too."""
    if isinstance(error, UserError):
        return error
    logging.getLogger(__name__).error("a request failed", exc_info=error)
    return Problem("failed", reason=one_line(error))
