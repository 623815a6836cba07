"""One loaded model for many visitors: edits wait in a queue, and those that fit together run as one batch."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image

from ldm.app.preview import Previewer
from ldm.app.texts import Problem
from ldm.device import is_out_of_memory
from ldm.editor import ImageEditor, Sampling
from ldm.pictures.fitting import to_image, to_tensor
from ldm.pictures.safety import blurred
from ldm.util import UserError, one_line

BATCH = 8  # edits at most
BATCH_PIXELS = BATCH * 512 * 512  # of all their pictures


@dataclass(frozen=True)
class Edit:
    """An edit of one picture.

    Attributes:
        image: RGB, both sides multiples of 64.
        instruction, sampling: as for `ImageEditor.edit`; the picture has its size already.
    """

    image: Image.Image
    instruction: str
    sampling: Sampling

    def fits(self, other: Edit) -> bool:
        """Whether both can run in one batch."""
        return self._kind() == other._kind()

    def _kind(self) -> tuple[Any, ...]:
        return self.image.size, self.sampling.steps, self.sampling.sampler, self.sampling.schedule


class Job:
    """An edit on its way; `changed` is called, from any thread, whenever something below is new.

    Attributes:
        ahead: jobs that wait before this one; None once it runs.
        step: steps done.
        preview: what the latent shows, some pixels in size; None before the first step.
        result: the edited picture, or why there is none; None until it is done.
    """

    def __init__(self, edit: Edit, changed: Callable[[], object]) -> None:
        self.edit = edit
        self.ahead: int | None = 0
        self.step = 0
        self.preview: Image.Image | None = None
        self.result: Image.Image | UserError | None = None
        self.cancelled = False
        self._changed = changed

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.tell(cancelled=True)

    def tell(self, **news: Any) -> None:
        """Change attributes."""
        vars(self).update(news)
        with suppress(RuntimeError):  # whoever waited for it is gone
            self._changed()


class Cancelled(Exception):
    """Nobody waits for any edit of the batch."""


class Engine:
    """The model and the thread that it runs in.

    Args:
        editor: the loaded model.
        colours: of previews, see `About.preview`.
        queue_size: edits that may wait.
        blur: whether previews, which nobody checks, are blurred.
    """

    def __init__(
        self, editor: ImageEditor, colours: Sequence[Sequence[float]], queue_size: int, blur: bool = False
    ) -> None:
        self.editor = editor
        self.queue_size = queue_size
        self.blur = blur
        self._show = Previewer(colours, editor.device)
        self._waiting: list[Job] = []
        self._news = threading.Condition()
        threading.Thread(target=self._work, name="edits", daemon=True).start()

    async def run(self, edits: Sequence[Edit]) -> AsyncGenerator[list[Job], None]:
        """Yield the jobs of these edits whenever one has news, last when all are done or cancelled.

        To leave the iteration early cancels them.

        Raises:
            Problem: the queue is full.
        """
        news, loop = asyncio.Event(), asyncio.get_running_loop()
        jobs = [Job(edit, partial(loop.call_soon_threadsafe, news.set)) for edit in edits]
        self._enqueue(jobs)
        try:
            while True:
                news.clear()
                yield jobs
                if all(job.cancelled or job.result is not None for job in jobs):
                    return
                await news.wait()
        finally:
            for job in jobs:
                job.cancel()

    def _enqueue(self, jobs: list[Job]) -> None:
        with self._news:
            self._waiting = [job for job in self._waiting if not job.cancelled]
            # Into an empty queue goes a request of any number of edits.
            if self._waiting and len(self._waiting) + len(jobs) > self.queue_size:
                raise Problem("full", size=len(self._waiting))
            for job in jobs:
                job.ahead = len(self._waiting)
                self._waiting.append(job)
            self._news.notify()

    def _next_batch(self) -> list[Job]:
        """Wait for work: the edit that has waited longest, and those behind it that fit with it."""
        with self._news:
            while not (waiting := [job for job in self._waiting if not job.cancelled]):
                self._waiting = []
                self._news.wait()
            first = waiting[0].edit
            most = max(1, min(BATCH, BATCH_PIXELS // (first.image.width * first.image.height)))
            batch = [job for job in waiting if job.edit.fits(first)][:most]
            self._waiting = [job for job in waiting if job not in batch]
            for ahead, job in enumerate(self._waiting):
                job.tell(ahead=ahead)
        return batch

    def _work(self) -> None:
        while True:
            self._run(self._next_batch())

    def _run(self, batch: list[Job]) -> None:
        """Give every job a result, whatever happens."""
        first = batch[0].edit
        size = {"width": first.image.width, "height": first.image.height}
        try:
            results: list[Image.Image | UserError] = self._edit(batch)
        except Cancelled:
            return
        except UserError as error:
            results = [error.with_traceback(None)] * len(batch)
        except Exception as error:
            crowded = is_out_of_memory(error)
            if not crowded:
                logging.getLogger(__name__).exception("an edit failed")
            results = [Problem("memory", **size) if crowded else Problem("failed", reason=one_line(error))]
            results *= len(batch)
        if self.editor.device.type == "cuda" and isinstance(results[0], Problem):
            torch.cuda.empty_cache()
        if len(batch) > 1 and isinstance(results[0], Problem) and results[0].key == "memory":
            for job in batch:  # alone it may fit
                self._run([job])
            return
        for job, result in zip(batch, results, strict=True):
            job.tell(result=result)

    def _edit(self, batch: list[Job]) -> list[Image.Image | UserError]:
        edits = [job.edit for job in batch]
        for job in batch:
            job.tell(ahead=None)

        def show(state: dict[str, Any]) -> None:
            if all(job.cancelled for job in batch):
                raise Cancelled
            for job, preview in zip(batch, self._show(state["denoised"]), strict=True):
                job.tell(step=state["i"] + 1, preview=blurred(preview) if self.blur else preview)

        pixels = self.editor.edit_batch(
            torch.cat([to_tensor(edit.image) for edit in edits]),  # [B, 3, H, W]
            [edit.instruction for edit in edits],
            [edit.sampling for edit in edits],
            callback=show,
        )
        wrong = Problem("not_a_number", precision=self.editor.precision)
        return [to_image(picture) if picture.isfinite().all() else wrong for picture in pixels]
