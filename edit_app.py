"""A page to edit pictures by written instructions (InstructPix2Pix), over the same model as edit_cli.py."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

from ldm.app.about import About
from ldm.app.serving import add_page_options, check_address, forbid_fetching, launch, user_and_password
from ldm.app.texts import LANGUAGES, interface, language_script
from ldm.arguments import (
    Parser,
    add_model_options,
    add_safety_option,
    add_sampling_options,
    load_editor,
    model_files,
    whole_number,
)
from ldm.sampling.options import Sampling
from ldm.util import run_main

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


def make_parser() -> argparse.ArgumentParser:
    """All options, with defaults and units in their help."""
    parser = Parser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    page = parser.add_argument_group("page")
    add_page_options(page)
    page.add_argument(
        "--language",
        choices=("auto", *LANGUAGES),
        default="auto",
        help="language of the page; auto follows each visitor's browser (default: %(default)s)",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--queue-size",
        type=whole_number(1, 1000),
        default=32,
        metavar="EDITS",
        help="how many edits may wait, 1 to 1000; more are refused (default: %(default)s)",
    )
    limits.add_argument(
        "--max-pixels",
        type=whole_number(4096, 178_000_000),
        default=50_000_000,
        metavar="PIXELS",
        help="most pixels of an upload, width times height, 4096 to 178000000; its file has at most 32 MB "
        "(default: %(default)s)",
    )
    edits = parser.add_argument_group("edits", "what the page starts with")
    add_sampling_options(edits, "resolution", "steps")
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

    files = model_files(args)
    about = About.from_config(files.config)
    editor, facts = load_editor(args, files)

    import gradio as gr

    from ldm.app.actions import Actions
    from ldm.app.engine import Engine
    from ldm.app.markup import STYLE
    from ldm.app.page import lay_out
    from ldm.app.records import Records
    from ldm.app.settings import start_of
    from ldm.app.uploads import MAX_BYTES

    forbid_fetching()
    language = None if args.language == "auto" else args.language
    words = gr.I18n(**interface(language, **facts))
    start = start_of(Sampling.from_arguments(args, editor.defaults))
    engine = Engine(editor, about.preview, args.queue_size, blur=args.safety_checker)
    store = Records(folder, facts, checker)
    with gr.Blocks(title="InstructPix2Pix", analytics_enabled=False, delete_cache=(600, FILE_AGE)) as blocks:
        page = lay_out(words, about, start, safe=args.safety_checker)
        Actions(page, engine, store, about, start, args.max_pixels, language).connect(blocks)
    address, link = launch(
        blocks,
        args,
        auth,
        STYLE,
        max_file_size=MAX_BYTES,
        max_threads=args.queue_size + SPARE_THREADS,  # Gradio runs no more events than that at once
        i18n=words,
        head=language_script(language),
    )
    print(f"serves at {address}" + (f" and {link}" if args.share else ""), flush=True)
    try:
        blocks.block_thread()
    finally:
        blocks.close(verbose=False)


if __name__ == "__main__":
    run_main(main)
