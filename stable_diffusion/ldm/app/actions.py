"""What happens on the page: every method answers one of its events with new values of its parts."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Any

import gradio as gr
from PIL import Image

from ldm.app.about import EXAMPLES, About
from ldm.app.engine import Edit, Engine, Job
from ldm.app.markup import bar, live, note, problem
from ldm.app.page import Page
from ldm.app.records import Record, Records
from ldm.app.settings import (
    FIX,
    RANDOMIZE,
    checked,
    checked_count,
    checked_instruction,
    randomised,
    restored,
)
from ldm.app.texts import Problem, explain, preferred, say
from ldm.app.uploads import open_upload, settings_in_upload, uploaded_path
from ldm.editor import Sampling
from ldm.pictures.animation import save_animation
from ldm.pictures.fitting import fit_to_model
from ldm.pictures.reading import open_image
from ldm.pictures.safety import in_settings
from ldm.pictures.writing import save_image
from ldm.util import UserError, one_line

SURPRISES = 4
HISTORY = 32  # pictures that a session keeps

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
        page: its parts.
        engine: does the edits.
        store: makes files of them.
        about: the model.
        start: what the page starts with.
        max_pixels: of an upload.
        language: of all visitors; None goes by their browsers.
    """

    def __init__(
        self,
        page: Page,
        engine: Engine,
        store: Records,
        about: About,
        start: Sampling,
        max_pixels: int,
        language: str | None,
    ) -> None:
        self.page = page
        self.engine = engine
        self.store = store
        self.about = about
        self.start = start
        self.max_pixels = max_pixels
        self.language = language
        self._runs: dict[str | None, Run] = {}  # by session

    def connect(self, blocks: gr.Blocks) -> None:
        """Have these methods answer the events of the page, within its `gr.Blocks`."""
        page, everything = self.page, list(self.page)
        asked = (page.count, page.seed_mode, page.cfg_mode, page.instruction, page.input)
        values: Any = {*page.settings.values(), *asked, page.current, page.chain, page.records}
        # Without preprocessing, no file is opened before it has been judged.
        common: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "preprocess": False}
        at_once = {**common, "queue": False}  # not behind the edits
        begin = [page.generate.click, page.instruction.submit, page.surprise.click]
        gr.on(begin, self.generate, values, everything, concurrency_limit=None, **common)
        page.cancel.click(self.cancel, None, everything, **at_once)
        page.reset.click(self.reset, None, everything, **at_once)
        page.example.click(self.load_example, None, everything, **at_once)
        page.input.upload(self.uploaded, values, everything, **at_once)
        page.again.click(self.edit_again, values, everything, **at_once)
        page.make_gif.click(self.make_gif, values, everything, **at_once)
        page.history.select(self.choose, values, everything, **at_once)
        blocks.unload(self.leave)
        with gr.Row(visible=False):  # what gradio_client calls; its inputs have the defaults of the page
            gr.Button("edit").click(
                self.edit,
                [page.input, page.instruction],
                [gr.Image(label="edited"), gr.JSON(label="settings")],
                inputs_kwargs={**page.settings},
                api_name="edit",
                concurrency_limit=None,
                preprocess=False,
            )

    # --- Edits ---------------------------------------------------------------------------------------------

    async def generate(
        self, data: Values, event: gr.EventData, request: gr.Request
    ) -> AsyncGenerator[Values, None]:
        """Edit the input: by the instruction, by more seeds too, or by suggested ones for Surprise me."""
        page, language = self.page, self._language(request)
        run = self._runs[request.session_hash] = Run()
        try:
            values = self._drawn(data)
            sampling = checked(values, self.start)
            count = checked_count(data[page.count])
            instruction = checked_instruction(data[page.instruction])
            path = uploaded_path(data[page.input])
            yield {
                **self._set({name: values[name] for name in ("seed", "cfg_text", "cfg_image")}),
                page.message: "",
                page.live: bar(say(language, "starting")),
                **self._busy(True),
            }
            if event.target is not None and event.target.elem_id == page.surprise.elem_id:
                drawn = self.about.draw(SURPRISES, random.randrange(2**31))
                wishes = [(suggestion, sampling.drawn_seed()) for suggestion in drawn]
            else:
                first = sampling.drawn_seed()
                wishes = [(instruction, first + i) for i in range(count if instruction else 0)]
            image = await asyncio.to_thread(self._fitted, path, sampling.resolution)
            jobs: list[Job] = []
            started = time.monotonic()
            async with aclosing(self._jobs(image, sampling, wishes)) as news:
                async for jobs in news:
                    run.jobs = jobs
                    if run.farewell is not None:
                        break
                    yield {page.live: live(language, jobs, time.monotonic() - started)}
                    if jobs[0].ahead:
                        started = time.monotonic()
            if run.farewell is None:
                made = (request.session_hash, image, jobs, sampling, path)
                records = await asyncio.to_thread(self.store.save, *made)
        except Exception as error:  # whatever it is, the page says so and its buttons work again
            yield self._refused(error, request)
            return
        finally:
            self._runs.pop(request.session_hash, None)
        if run.farewell is not None:  # said here, as it must come after all that was said of the work
            yield {page.message: run.farewell, page.live: "", **self._busy(False)}
            return
        history = [*(records if jobs else ()), *data[page.records]][:HISTORY]
        yield {
            **self._shown(records[0], language),
            **self._listed(history, language),
            page.message: "" if jobs else note(say(language, "empty")),
            **self._busy(False),
        }

    async def edit(
        self, image: Any, instruction: Any, request: gr.Request, **values: Any
    ) -> tuple[str, dict[str, Any]]:
        """Edit a picture: the file of the result, and the settings that made it."""
        try:
            sampling = checked(values, self.start)
            instruction = checked_instruction(instruction)
            path = uploaded_path(image)
            fitted = await asyncio.to_thread(self._fitted, path, sampling.resolution)
            jobs: list[Job] = []
            wishes = [(instruction, sampling.drawn_seed())] if instruction else []
            async with aclosing(self._jobs(fitted, sampling, wishes)) as news:
                async for jobs in news:  # noqa: B007
                    pass
            made = (request.session_hash, fitted, jobs, sampling, path)
            record, *_ = await asyncio.to_thread(self.store.save, *made)
        except Exception as error:
            raise gr.Error(str(told(error)), print_exception=False) from None
        return record.path, {**asdict(sampling), "edit": instruction, **in_settings(record.verdict)}

    async def _jobs(
        self, image: Image.Image, sampling: Sampling, wishes: Sequence[tuple[str, int]]
    ) -> AsyncGenerator[list[Job], None]:
        """Run an edit for each instruction with its seed, as `Engine.run` does; raise what made one fail."""
        if not wishes:
            return
        edits = [Edit(image, instruction, replace(sampling, seed=seed)) for instruction, seed in wishes]
        async with aclosing(self.engine.run(edits)) as news:
            async for jobs in news:
                yield jobs
        for job in jobs:
            if isinstance(job.result, UserError):
                raise job.result

    def _drawn(self, data: Values) -> dict[str, Any]:
        """The settings as the page has them, random ones drawn."""
        page = self.page
        values = {name: data[part] for name, part in page.settings.items()}
        modes = (data[mode] == RANDOMIZE for mode in (page.seed_mode, page.cfg_mode))
        return randomised(values, self.start, *modes)

    def _fitted(self, path: str, resolution: int) -> Image.Image:
        return fit_to_model(open_upload(path, self.max_pixels), resolution)

    # --- Pictures ------------------------------------------------------------------------------------------

    def load_example(self) -> Values:
        """Another of the examples."""
        file, instruction = random.choice(self.about.examples)
        path = EXAMPLES / file
        copy = self.store.folder / f"example-{path.stem}.png"
        if not copy.exists():
            save_image(open_image(path), copy)
        page = self.page
        return {**self._fresh(), page.input: str(copy), page.instruction: instruction, page.chain: ()}

    def uploaded(self, data: Values, request: gr.Request) -> Values:
        """Refuse a new input that cannot be used; take over the settings that are in it."""
        page = self.page
        try:
            path = uploaded_path(data[page.input])
            found = restored(settings_in_upload(path, self.max_pixels), self.start)
        except UserError as error:
            return {**self._refused(error, request), page.input: None}
        answer = {**self._fresh(), page.chain: ()}
        if found:
            answer[page.instruction] = found.pop("edit", "")
            answer |= {**self._set(found), page.seed_mode: FIX, page.cfg_mode: FIX}
            answer[page.message] = note(say(self._language(request), "restored"))
        return answer

    def edit_again(self, data: Values, request: gr.Request) -> Values:
        """The result becomes the input; the chain remembers it and what came before."""
        page, language = self.page, self._language(request)
        record = data[page.current]
        if record is None:
            return self._refused(Problem("no_result"), request)
        chain = (*self._chain(data), (record.path, record.caption("en")))
        texts = (say(language, "next", number=len(chain) - 1), record.warning(language))
        return {
            **self._fresh(),
            page.input: record.path,
            page.instruction: "",
            page.chain: chain,
            page.message: note(" ".join(filter(None, texts))),
        }

    def make_gif(self, data: Values, request: gr.Request) -> Values:
        """An animation of the chain of edits and the result that is shown."""
        page, record = self.page, data[self.page.current]
        frames = list(data[page.chain])
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
        return {page.gif: gr.Image(str(path), visible=True), page.message: ""}

    def choose(self, data: Values, event: gr.SelectData, request: gr.Request) -> Values:
        """Show a picture of the history."""
        record = data[self.page.records][event.index]
        return {**self._shown(record, self._language(request)), self.page.instruction: record.instruction}

    def _chain(self, data: Values) -> tuple[tuple[str, str], ...]:
        """The pictures so far with their instructions, the input of the first edit at their head."""
        return data[self.page.chain] or ((data[self.page.current].before, ""),)

    # --- The page ------------------------------------------------------------------------------------------

    def cancel(self, request: gr.Request) -> Values:
        """Stop the visitor's edits; `generate` says so."""
        self._stop(request, note(say(self._language(request), "cancelled")))
        return {self.page.cancel: gr.Button(interactive=False)}

    def reset(self, request: gr.Request) -> Values:
        """The page as it was when it was opened, with no file of the session left."""
        self.leave(request)
        page = self.page
        return {
            **self._fresh(),
            **self._set(asdict(self.start)),
            page.count: 1,
            page.seed_mode: RANDOMIZE,
            page.cfg_mode: FIX,
            page.input: None,
            page.instruction: "",
            page.chain: (),
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

    def _set(self, settings: Mapping[str, Any]) -> Values:
        return {self.page.settings[name]: value for name, value in settings.items()}

    def _fresh(self) -> Values:
        """No result and no message."""
        page = self.page
        return {
            **{part: "" for part in (page.live, page.message, page.warning)},
            **{part: None for part in (page.edited, page.compare, page.current)},
            page.download: gr.DownloadButton(value=None, interactive=False),
            page.gif: gr.Image(None, visible=False),
        }

    def _shown(self, record: Record, language: str) -> Values:
        page, warning = self.page, record.warning(language)
        return {
            page.live: "",
            page.warning: note(warning) if warning else "",
            page.edited: record.path,
            page.compare: (record.before, record.path),
            page.download: gr.DownloadButton(value=record.path, interactive=True),
            page.current: record,
        }

    def _listed(self, records: list[Record], language: str) -> Values:
        """The history, hidden while there is none."""
        page = self.page
        return {
            page.records: records,
            page.history: [(record.path, record.caption(language)) for record in records],
            page.history_box: gr.Accordion(visible=bool(records)),
        }

    def _busy(self, busy: bool) -> Values:
        page = self.page
        buttons = {button: gr.Button(interactive=not busy) for button in (page.generate, page.surprise)}
        return {**buttons, page.cancel: gr.Button(interactive=busy)}

    def _refused(self, error: Exception, request: gr.Request) -> Values:
        page, text = self.page, explain(self._language(request), told(error))
        return {page.message: problem(text), page.live: "", **self._busy(False)}

    def _language(self, request: gr.Request) -> str:
        return self.language or preferred(request.headers.get("accept-language"))


def told(error: Exception) -> UserError:
    """The error as visitors are told of it; what nobody foresaw goes to the log too."""
    if isinstance(error, UserError):
        return error
    logging.getLogger(__name__).error("a request failed", exc_info=error)
    return Problem("failed", reason=one_line(error))
