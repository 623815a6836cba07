"""A page to edit pictures by written instructions (InstructPix2Pix), over the same model as edit_cli.py."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from ldm.app.serving import add_page_options, check_address, forbid_fetching, launch, user_and_password
from ldm.app.texts import LANGUAGES, interface, language_script
from ldm.arguments import (
    Parser,
    add_model_options,
    add_safety_option,
    load_editor,
    whole_number,
)
from ldm.util import run_main

if TYPE_CHECKING:
    import gradio as gr

    from ldm.app.actions import Actions
    from ldm.editor import Defaults

EPILOG = """examples:
  python edit_app.py                                       # at http://127.0.0.1:7860, for this machine alone
  python edit_app.py --server-name 0.0.0.0 --auth ann:secret --language ja

The page is also an API (pip install gradio_client); what is left out is as on the page:

  from gradio_client import Client, handle_file
  client = Client("http://127.0.0.1:7860")                 # with --auth: auth=("ann", "secret")
  path, settings = client.predict(
      handle_file("imgs/example.jpg"), "turn him into a cyborg",
      steps=20, seed=1371, cfg_text=7.5, cfg_image=1.5, api_name="/edit",
  )                                                        # path is a PNG that holds its settings
"""
FILE_AGE = 2 * 3600  # seconds that a temporary file stays at most
SPARE_THREADS = 32
HEIGHT, TABS = 420, 58  # pixels of a picture on the page, and of the tabs above it


def build_page(actions: Actions, words: gr.I18n) -> gr.Blocks:
    """The page, with the API endpoint `edit`.

    Args:
        actions: answer its events.
        words: its texts, whose keys are those of `interface`.
    """
    import gradio as gr

    parts, avatars = actions.parts, actions.engine.avatars
    with gr.Blocks(title="InstructPix2Pix", analytics_enabled=False, delete_cache=(600, FILE_AGE)) as page:
        gr.Markdown("# " + words("title"))
        gr.HTML(words("about"), elem_classes="model")
        if avatars:
            gr.HTML(words("embedded"), elem_classes="model")
        if actions.store.checker:
            gr.HTML(words("checked"), elem_classes="model")
        add_pictures(parts, words, avatars)
        add_settings(parts, words, actions.defaults)
        with gr.Accordion(words("history"), visible=False) as parts.history_box:
            parts.history = gr.Gallery(
                show_label=False,
                elem_classes="history",
                height="auto",
                object_fit="contain",
                allow_preview=False,
                interactive=False,
                buttons=[],
            )
        with gr.Accordion(words("tips")):
            gr.Markdown(words("avatar_tips" if avatars else "photo_tips"))
        parts.current = gr.State()  # the Record that is shown
        parts.chain = gr.State(())  # pictures before the input with their instructions, oldest first
        parts.records = gr.State([])  # of the history
        connect(page, actions)
        add_endpoint(actions)
    return page


def add_pictures(parts: SimpleNamespace, words: gr.I18n, avatars: bool) -> None:
    """Instruction, buttons, input and result."""
    import gradio as gr

    parts.instruction = gr.Textbox(
        label=words("instruction"),
        placeholder=words("avatar_hint" if avatars else "photo_hint"),
        max_lines=4,
        autofocus=True,
    )
    with gr.Row():
        parts.generate = gr.Button(words("generate"), variant="primary", min_width=120, scale=2)
        parts.cancel = gr.Button(words("cancel"), variant="stop", min_width=90, interactive=False)
        parts.example = gr.Button(words("example"), min_width=140)
        parts.surprise = gr.Button(words("surprise"), min_width=120, elem_id="surprise")
        parts.reset = gr.Button(words("reset"), min_width=80)
    parts.message = gr.HTML()
    with gr.Row():
        with gr.Column(min_width=300):
            parts.input = gr.Image(
                label=words("input"),
                placeholder=words("drop"),
                type="filepath",
                sources=["upload", "clipboard"],
                height=HEIGHT,
                elem_classes="picture",
                buttons=[],
            )
        with gr.Column(min_width=300, elem_classes="result-column"):
            parts.live = gr.HTML()
            with gr.Tabs(elem_classes="results"):
                with gr.Tab(words("edited")):
                    parts.edited = gr.Image(
                        show_label=False,
                        interactive=False,
                        height=HEIGHT - TABS,
                        elem_classes="picture",
                        buttons=["fullscreen"],
                    )
                with gr.Tab(words("compare")):
                    parts.compare = gr.ImageSlider(
                        show_label=False,
                        interactive=False,
                        height=HEIGHT - TABS,
                        max_height=HEIGHT - TABS,
                        elem_classes="picture",
                        buttons=[],
                    )
            parts.warning = gr.HTML()
            with gr.Row():
                parts.again = gr.Button(words("again"), min_width=120)
                parts.download = gr.DownloadButton(words("download"), interactive=False, min_width=120)
                parts.make_gif = gr.Button(words("gif"), min_width=120)
            parts.gif = gr.Image(
                label=words("gif_made"), interactive=False, visible=False, buttons=["download"]
            )


def add_settings(parts: SimpleNamespace, words: gr.I18n, defaults: Defaults) -> None:
    """What `ldm.app.settings` checks."""
    import gradio as gr

    from ldm.app import settings
    from ldm.app.actions import FIX, RANDOMIZE

    start = settings.defaults_of(defaults)
    most_steps = max(settings.MAX_STEPS, defaults.steps)
    with gr.Row():
        parts.steps = gr.Slider(1, most_steps, start["steps"], step=1, label=words("steps"), buttons=[])
        parts.seed = gr.Number(start["seed"], label=words("seed"), precision=0)
        parts.seed_mode = gr.Radio(
            [(words("fix_seed"), FIX), (words("random_seed"), RANDOMIZE)],
            value=RANDOMIZE,
            label=words("seed_mode"),
        )
    with gr.Row():
        parts.cfg_text = gr.Number(start["cfg_text"], label=words("cfg_text"), step=0.1)
        parts.cfg_image = gr.Number(start["cfg_image"], label=words("cfg_image"), step=0.1)
        parts.cfg_mode = gr.Radio(
            [(words("fix_cfg"), FIX), (words("random_cfg"), RANDOMIZE)], value=FIX, label=words("cfg_mode")
        )
    with gr.Accordion(words("more"), open=False):
        with gr.Row():
            parts.count = gr.Slider(1, settings.MAX_COUNT, 1, step=1, label=words("count"), buttons=[])
            parts.resolution = gr.Slider(
                settings.MULTIPLE,
                settings.largest_resolution(defaults),
                start["resolution"],
                step=settings.MULTIPLE,
                label=words("resolution"),
                buttons=[],
            )
        with gr.Row():
            parts.sampler = gr.Dropdown(
                settings.offered_samplers(), value=start["sampler"], label=words("sampler")
            )
            parts.schedule = gr.Dropdown(
                list(settings.SCHEDULES), value=start["schedule"], label=words("schedule")
            )


def connect(page: gr.Blocks, actions: Actions) -> None:
    """Have the actions answer the events of the page."""
    import gradio as gr

    from ldm.app.actions import SETTINGS

    parts = actions.parts
    everything = set(vars(parts).values())
    others = ("count", "seed_mode", "cfg_mode", "instruction", "input", "current", "chain", "records")
    values = {getattr(parts, name) for name in (*SETTINGS, *others)}
    # Without preprocessing, no file is opened before it has been judged.
    common = {"show_progress": "hidden", "api_visibility": "private", "preprocess": False}
    at_once = {**common, "queue": False}  # not behind the edits
    gr.on(
        [parts.generate.click, parts.instruction.submit, parts.surprise.click],
        actions.generate,
        values,
        everything,
        concurrency_limit=None,
        **common,
    )
    parts.cancel.click(actions.cancel, None, everything, **at_once)
    parts.reset.click(actions.reset, None, everything, **at_once)
    parts.example.click(actions.load_example, None, everything, **at_once)
    parts.input.upload(actions.uploaded, values, everything, **at_once)
    parts.again.click(actions.edit_again, values, everything, **at_once)
    parts.make_gif.click(actions.make_gif, values, everything, **at_once)
    parts.history.select(actions.choose, values, everything, **at_once)
    page.unload(actions.leave)


def add_endpoint(actions: Actions) -> None:
    """What gradio_client calls; its inputs and their defaults are those of the page."""
    import gradio as gr

    from ldm.app.actions import SETTINGS

    parts = actions.parts
    with gr.Row(visible=False):
        edited, used = gr.Image(label="edited"), gr.JSON(label="settings")
        gr.Button("edit").click(
            actions.edit,
            [parts.input, parts.instruction, *(getattr(parts, name) for name in SETTINGS)],
            [edited, used],
            api_name="edit",
            concurrency_limit=None,
            preprocess=False,
        )


def make_parser() -> argparse.ArgumentParser:
    """All options, with defaults and units in their help."""
    parser = Parser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    page = parser.add_argument_group("page")
    add_page_options(page)
    page.add_argument(
        "--language",
        choices=("auto", *LANGUAGES),
        default="auto",
        help="of the page: auto goes by each browser (default: %(default)s)",
    )
    add = parser.add_argument_group("limits").add_argument
    add(
        "--queue-size",
        type=whole_number(1, 1000),
        default=32,
        metavar="EDITS",
        help="that may wait, 1 to 1000; more are refused (default: %(default)s)",
    )
    add(
        "--max-pixels",
        type=whole_number(4096, 178_000_000),
        default=50_000_000,
        metavar="PIXELS",
        help="of a picture that is sent, width times height, 4096 to 178000000; its file has at most 32 MB "
        "(default: %(default)s)",
    )
    add = parser.add_argument_group("edits").add_argument
    add(
        "--resolution",
        type=whole_number(64, 2048),
        metavar="PIXELS",
        help="about the longer side of a result, to start with, 64 to 2048 "
        "(default: the model's own, 512 for the published one, 64 for the embedded one)",
    )
    add(
        "--steps",
        type=whole_number(1, 1000),
        help="denoising steps to start with, 1 to 1000 "
        "(default: the model's own, 100 for the published one, 50 for the embedded one)",
    )
    add_model_options(parser.add_argument_group("model"))
    add_safety_option(parser.add_argument_group("safety"))
    return parser


def main(argv: list[str] | None = None) -> None:
    """Serve the page until the process is told to end.

    Args:
        argv: the options; those of the process when None.
    """
    args = make_parser().parse_args(argv)
    auth = [user_and_password(text) for text in args.auth]
    check_address(args.server_name, args.server_port)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the temporary files are removed
    with tempfile.TemporaryDirectory(prefix="edit_app_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = os.path.realpath(folder)  # before Gradio is imported
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        serve(args, auth, Path(os.path.realpath(folder)))


def serve(args: argparse.Namespace, auth: list[tuple[str, str]], folder: Path) -> None:
    """Load the model and serve the page, with all temporary files in `folder`."""
    from ldm.pictures.safety import SafetyChecker

    checker = SafetyChecker() if args.safety_checker else None  # what it misses is told before all else

    from ldm.editor import EMBEDDED_CONFIG, find_model

    files = find_model(args.config, args.ckpt)
    if files.notice:
        print(files.notice, file=sys.stderr)
    editor, about = load_editor(args, files)
    avatars = files.config.resolve() == EMBEDDED_CONFIG
    chosen = {name: getattr(args, name) for name in ("resolution", "steps") if getattr(args, name)}

    import gradio as gr

    from ldm.app.actions import Actions
    from ldm.app.engine import Engine
    from ldm.app.markup import STYLE
    from ldm.app.records import Records
    from ldm.app.uploads import MAX_BYTES

    forbid_fetching()
    actions = Actions(
        Engine(editor, avatars, args.queue_size, blur=args.safety_checker),
        Records(folder, about, checker),
        replace(editor.defaults, **chosen),
        args.max_pixels,
        None if args.language == "auto" else args.language,
    )
    words = gr.I18n(**interface(actions.language, **about))
    page = build_page(actions, words)
    address, link = launch(
        page,
        args,
        auth,
        STYLE,
        max_file_size=MAX_BYTES,
        max_threads=args.queue_size + SPARE_THREADS,  # Gradio runs no more events than that at once
        i18n=words,
        head=language_script(actions.language),
    )
    print(f"serves at {address}" + (f" and {link}" if args.share else ""), flush=True)
    try:
        page.block_thread()
    finally:
        page.close(verbose=False)


if __name__ == "__main__":
    run_main(main)
