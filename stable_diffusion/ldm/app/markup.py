"""How the page looks, and HTML of what it says while it works: notes, refusals, how far the work is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ldm.app.engine import Job
from ldm.app.preview import data_url
from ldm.app.texts import say

STYLE = """
.gradio-container { max-width: 1200px !important; margin: 0 auto; }
.html-container { padding: 0 !important; overflow-wrap: anywhere; }
.model { opacity: 0.75; font-size: var(--text-sm); }
.note, .problem { padding: 0.6rem 0.8rem; border-left: 4px solid #2563eb; }
.note, .problem { background: var(--background-fill-secondary); }
.problem { border-left-color: #dc2626; }
.picture img { width: 100%; height: 100%; object-fit: contain; }
.history .grid-wrap { min-height: 0 !important; }
.history .grid-container { grid-template-columns: repeat(auto-fill, minmax(96px, 130px)) !important; }
.result-column .results { margin-top: -8px; }
.result-column:has(.previews) .results { display: none; }
.bar { display: flex; gap: 0.8rem; align-items: center; height: 24px; font-size: var(--text-sm); }
.bar progress { flex: 1; appearance: none; height: 8px; border: 0; border-radius: 4px; overflow: hidden; }
.bar progress, .bar progress::-webkit-progress-bar { background: var(--neutral-200); }
.bar progress::-webkit-progress-value { background: var(--color-accent); }
.bar progress::-moz-progress-bar { background: var(--color-accent); }
.previews { display: grid; gap: 6px; margin-top: 6px; height: 390px; justify-content: center; }
.previews img { width: 100%; height: 100%; min-height: 0; object-fit: contain; }
"""


def note(text: str) -> str:
    """HTML of something that is good to know."""
    return f'<div class="note" role="status">{escape(text)}</div>'


def problem(text: str) -> str:
    """HTML of what went wrong."""
    return f'<div class="problem" role="alert">{escape(text)}</div>'


def bar(text: str, done: float = 0.0) -> str:
    """HTML of how far the work is, `done` from 0 to 1."""
    return (
        f'<div class="bar"><progress value="{done:.3f}" max="1"></progress>'
        f'<span role="status">{escape(text)}</span></div>'
    )


def live(language: str, jobs: Sequence[Job], seconds: float) -> str:
    """HTML of how far the jobs are, and what their latents show.

    Args:
        seconds: since they began.
    """
    if all(job.ahead is not None for job in jobs):
        ahead = jobs[0].ahead
        return bar(say(language, "waiting", ahead=ahead) if ahead else say(language, "starting"))
    steps = sum(job.edit.sampling.steps for job in jobs)
    step = sum(job.edit.sampling.steps if job.result else job.step for job in jobs)
    text = say(language, "step", step=step, steps=steps)
    if 0 < step < steps:
        text += " · " + say(language, "left", seconds=round(seconds / step * (steps - step)))
    pictures = "".join(f'<img alt="" src="{data_url(job.preview)}">' for job in jobs if job.preview)
    columns = math.ceil(math.sqrt(len(jobs)))
    grid = f"grid-template-columns: repeat({columns}, 1fr); grid-auto-rows: 1fr"
    return bar(text, step / steps) + f'<div class="previews" style="{grid}">{pictures}</div>'
