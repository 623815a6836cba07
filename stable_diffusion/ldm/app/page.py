"""How the page is laid out; what its parts do stands in `ldm.app.actions`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from ldm.app.about import About
from ldm.app.settings import COUNT, FIX, RANDOMIZE, offers
from ldm.editor import Sampling

HEIGHT, TABS = 420, 58  # pixels of a picture on the page, and of the tabs above it


@dataclass(frozen=True)
class Page:
    """The parts of the page that change or are asked for, from top to bottom.

    Attributes:
        settings: one for each field of `Sampling`, in the order of the API.
        current: the `Record` that is shown.
        chain: pictures before the input with their instructions, oldest first.
        records: of the history.
    """

    instruction: gr.Textbox
    generate: gr.Button
    cancel: gr.Button
    example: gr.Button
    surprise: gr.Button
    reset: gr.Button
    message: gr.HTML
    input: gr.Image
    live: gr.HTML
    edited: gr.Image
    compare: gr.ImageSlider
    warning: gr.HTML
    again: gr.Button
    download: gr.DownloadButton
    make_gif: gr.Button
    gif: gr.Image
    settings: dict[str, gr.components.Component]
    seed_mode: gr.Radio
    cfg_mode: gr.Radio
    count: gr.Slider
    history_box: gr.Accordion
    history: gr.Gallery
    current: gr.State
    chain: gr.State
    records: gr.State

    def __iter__(self) -> Iterator[Any]:
        """All parts."""
        for field in fields(self):
            part = getattr(self, field.name)
            yield from part.values() if isinstance(part, dict) else (part,)


def lay_out(words: Callable[[str], Any], about: About, start: Sampling, safe: bool) -> Page:
    """Make the parts within the `gr.Blocks` that is open.

    Args:
        words: its texts, whose keys are those of `ldm.app.texts.interface`.
        about: the model.
        start: what the page starts with.
        safe: whether results are checked, which the page says then.
    """
    gr.Markdown("# " + words("title"))
    notes = {"about": True, "embedded": about.subject == "drawing", "checked": safe}
    for key in (key for key, said in notes.items() if said):
        gr.HTML(words(key), elem_classes="model")
    above = _above(words, words(f"{about.subject}_hint"))
    with gr.Row():
        with gr.Column(min_width=300):
            picture = gr.Image(
                label=words("input"),
                placeholder=words("drop"),
                type="filepath",
                sources=["upload", "clipboard"],
                height=HEIGHT,
                elem_classes="picture",
                buttons=[],
            )
        with gr.Column(min_width=300, elem_classes="result-column"):
            result = _result(words)
    settings = _settings(words, start)
    with gr.Accordion(words("history"), visible=False) as history_box:
        history = gr.Gallery(
            show_label=False,
            elem_classes="history",
            height="auto",
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            buttons=[],
        )
    with gr.Accordion(words("tips")):
        gr.Markdown(words(f"{about.subject}_tips"))
    states: dict[str, Any] = {"current": gr.State(), "chain": gr.State(()), "records": gr.State([])}
    return Page(
        **above, input=picture, **result, **settings, history_box=history_box, history=history, **states
    )


def _above(words: Callable[[str], Any], hint: Any) -> dict[str, Any]:
    """Instruction, buttons and messages."""
    instruction = gr.Textbox(label=words("instruction"), placeholder=hint, max_lines=4, autofocus=True)
    with gr.Row():
        buttons = {
            "generate": gr.Button(words("generate"), variant="primary", min_width=120, scale=2),
            "cancel": gr.Button(words("cancel"), variant="stop", min_width=90, interactive=False),
            "example": gr.Button(words("example"), min_width=140),
            "surprise": gr.Button(words("surprise"), min_width=120, elem_id="surprise"),
            "reset": gr.Button(words("reset"), min_width=80),
        }
    return {"instruction": instruction, **buttons, "message": gr.HTML()}


def _result(words: Callable[[str], Any]) -> dict[str, Any]:
    """The result, and what can be done with it."""
    shown: dict[str, Any] = {
        "show_label": False,
        "interactive": False,
        "height": HEIGHT - TABS,
        "elem_classes": "picture",
    }
    live = gr.HTML()
    with gr.Tabs(elem_classes="results"):
        with gr.Tab(words("edited")):
            edited = gr.Image(**shown, buttons=["fullscreen"])
        with gr.Tab(words("compare")):
            compare = gr.ImageSlider(**shown, max_height=HEIGHT - TABS, buttons=[])
    warning = gr.HTML()
    with gr.Row():
        buttons = {
            "again": gr.Button(words("again"), min_width=120),
            "download": gr.DownloadButton(words("download"), interactive=False, min_width=120),
            "make_gif": gr.Button(words("gif"), min_width=120),
        }
    gif = gr.Image(label=words("gif_made"), interactive=False, visible=False, buttons=["download"])
    return {"live": live, "edited": edited, "compare": compare, "warning": warning, **buttons, "gif": gif}


def _settings(words: Callable[[str], Any], start: Sampling) -> dict[str, Any]:
    """A widget for each field of `Sampling`, and what concerns them."""
    offered = offers(start)
    made: dict[str, gr.components.Component] = {}

    def add(kind: Any, name: str, *limits: float, **options: Any) -> None:
        made[name] = kind(*limits, value=getattr(start, name), label=words(name), **options)

    def mode(name: str, value: str) -> gr.Radio:
        choices = [(words(f"fix_{name}"), FIX), (words(f"random_{name}"), RANDOMIZE)]
        return gr.Radio(choices, value=value, label=words(f"{name}_mode"))

    with gr.Row():
        add(gr.Slider, "steps", *offered["steps"], step=1, buttons=[])
        add(gr.Number, "seed", precision=0)
        seed_mode = mode("seed", RANDOMIZE)
    with gr.Row():
        add(gr.Number, "cfg_text", step=0.1)
        add(gr.Number, "cfg_image", step=0.1)
        cfg_mode = mode("cfg", FIX)
    with gr.Accordion(words("more"), open=False):
        with gr.Row():
            count = gr.Slider(*COUNT, 1, step=1, label=words("count"), buttons=[])
            least, most = offered["resolution"]
            add(gr.Slider, "resolution", least, most, step=least, buttons=[])
        with gr.Row():
            add(gr.Dropdown, "sampler", choices=offered["sampler"])
            add(gr.Dropdown, "schedule", choices=offered["schedule"])
    settings = {name: made[name] for name in offered}
    return {"settings": settings, "seed_mode": seed_mode, "cfg_mode": cfg_mode, "count": count}
