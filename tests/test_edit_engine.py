"""The engine behind edit_app.py: batches, cancelling, failures; and the language of a visitor."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ldm.app.about import About
from ldm.app.engine import Edit, Engine, Job
from ldm.app.texts import Problem, preferred
from ldm.editor import ImageEditor, Sampling
from networks import edit_network
from small_model import sample_picture


def tiny_edit(instruction: str, seed: int, steps: int = 4) -> Edit:
    sampling = Sampling(steps=steps, cfg_text=3.0 + seed, cfg_image=1.5, seed=seed)
    return Edit(sample_picture(), instruction, sampling)


def tiny_engine(editor: ImageEditor | None = None) -> Engine:
    return Engine(editor or ImageEditor(edit_network(), Sampling()), About().preview, queue_size=9)


def results_of(engine: Engine, edits: list[Edit]) -> list[Job]:
    """Run edits to their end."""

    async def run() -> list[Job]:
        return [jobs async for jobs in engine.run(edits)][-1]

    return asyncio.run(run())


def test_a_batch_gives_the_pictures_of_single_edits() -> None:
    editor = ImageEditor(edit_network(), Sampling(resolution=64, steps=4))
    edits = [tiny_edit("a hat", 1), tiny_edit("no hat", 2), tiny_edit("a hat", 3, steps=3)]
    jobs = results_of(tiny_engine(editor), edits)
    for job, edit in zip(jobs, edits, strict=True):
        alone = editor.edit(edit.image, edit.instruction, replace(edit.sampling, resolution=64))
        difference = np.abs(np.asarray(job.result, dtype=int) - np.asarray(alone, dtype=int))
        assert difference.max() <= 1
        assert job.step == edit.sampling.steps and job.preview.size == (8, 8)


def test_whoever_leaves_ends_the_edit_within_a_step() -> None:
    engine = tiny_engine()

    async def leave() -> Job:
        async with aclosing(engine.run([tiny_edit("a hat", 1, steps=500)])) as news:
            async for jobs in news:
                if jobs[0].step >= 2:
                    break
        return jobs[0]

    job = asyncio.run(leave())
    at_end = job.step
    after, *_ = results_of(engine, [tiny_edit("a hat", 2, steps=2)])
    assert isinstance(after.result, Image.Image)
    assert job.result is None and job.step <= at_end + 1


def test_a_failure_is_told_to_its_request_alone() -> None:
    engine = tiny_engine()
    good = tiny_edit("a hat", 2)
    bad = replace(good, sampling=replace(good.sampling, cfg_text=float("nan"), seed=1))
    worse = replace(good, sampling=replace(good.sampling, sampler="no sampler"))
    first, second, third = results_of(engine, [bad, worse, good])
    assert isinstance(first.result, Problem) and first.result.key == "not_a_number"
    assert "no sampler" in str(second.result)
    assert isinstance(third.result, Image.Image)


@pytest.mark.parametrize(
    ("header", "language"),
    [
        (None, "en"),
        ("ja", "ja"),
        ("fr-FR,ja;q=0.5,en;q=0.4", "ja"),
        ("en-GB,en;q=0.9,ja;q=0.8", "en"),
        ("de,fr", "en"),
        ("ja;q=0,en;q=x", "en"),
    ],
)
def test_the_language_that_a_browser_likes_best(header: str | None, language: str) -> None:
    assert preferred(header) == language
