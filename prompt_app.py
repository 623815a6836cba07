"""A page to try how a language model turns captions into edits: caption in, instruction and new caption out.

    python prompt_app.py --openai-model MODEL [--openai-base-url http://localhost:8000/v1]

What is asked and what of an answer is kept stands in dataset_creation/text/instructions.py.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import AsyncIterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from dataset_creation.text.captions import Captions, draw
from dataset_creation.text.instructions import EXAMPLES_FILE, Rejected, edit_for, read_examples
from dataset_creation.text.language_model import (
    LanguageModel,
    Refused,
    Unavailable,
    add_model_options,
    model_arguments,
)
from ldm.app.serving import add_page_options, check_address, launch, user_and_password
from ldm.arguments import Parser
from ldm.util import UserError, run_main

if TYPE_CHECKING:
    import gradio as gr

TITLE = "Captions to edits"
INTRODUCTION = (
    f"# {TITLE}\nThe caption of a picture goes in. The language model thinks of an edit of that picture: an "
    "instruction, and the caption of the picture after it."
)
POOL = 10_000  # captions that Random Input draws from
SHOWN = 4  # of them, to click on
LEGIBLE = 50  # characters; Gradio cuts longer examples
RETRIES = 1  # of a request: someone is waiting
AT_ONCE = 16  # requests
STYLE = """
.gradio-container { max-width: 900px !important; margin: 0 auto; }
.html-container { padding: 0 !important; overflow-wrap: anywhere; }
.model { opacity: 0.7; font-size: var(--text-sm); }
.problem { border-left: 4px solid #dc2626; padding: 0.7rem; background: var(--background-fill-secondary); }
.problem pre { margin: 0.5rem 0 0; white-space: pre-wrap; font-size: var(--text-sm); }
"""
# Runs in the browser: a result does not stand below another caption than the one that it was made for.
FORGET = "() => ['', '', '', {__type__: 'update', value: 'Generate', interactive: true}]"


async def propose(model: LanguageModel, caption: str) -> tuple[str, str, str]:
    """Instruction, new caption, and the HTML of what went wrong, empty where nothing did."""
    try:
        triple = await edit_for(model, caption)
    except Rejected as error:
        return "", "", problem(f"Not kept, {error}", error.answer)
    except Unavailable as error:
        return "", "", problem(f"No answer from {model.server}: {error}")
    except Refused as error:
        return "", "", problem(f"{model.server} refuses the request: {error}")
    except UserError as error:
        return "", "", problem(str(error))
    return triple.edit, triple.output, ""


def problem(message: str, answer: str = "") -> str:
    """HTML of what went wrong and, where there is one, of the answer that was no use."""
    said = f"<pre>{escape(answer)}</pre>" if answer else ""
    return f'<div class="problem" role="alert">{escape(message)}{said}</div>'


def build_page(model: LanguageModel, captions: Sequence[str]) -> gr.Blocks:
    """The page over a model; Random Input draws from the captions."""
    import gradio as gr

    shown = sorted(captions[:100], key=lambda text: len(text) > LEGIBLE)[:SHOWN]  # those that fit come first
    about = escape(f"Model {model.model} · {model.api} · {model.server}")
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        gr.HTML(f'<div class="model">{about}</div>')
        caption = gr.Textbox(
            label="Caption", placeholder="a photo of a girl on a horse", max_lines=4, autofocus=True
        )
        with gr.Row():
            generate = gr.Button("Generate", variant="primary", min_width=120)
            draw_one = gr.Button("Random Input", min_width=120)
            clear = gr.Button("Clear", min_width=120)
        instruction = gr.Textbox(label="Instruction", interactive=False)
        output = gr.Textbox(label="Edited caption", interactive=False, max_lines=4)
        trouble = gr.HTML()
        gr.Examples([[text] for text in shown], caption, label="Captions to try")
        results = [instruction, output, trouble, generate]

        async def run(text: str) -> AsyncIterator[tuple[Any, ...]]:
            yield "", "", "", gr.Button("Asking …", interactive=False)
            yield *await propose(model, text), gr.Button("Generate", interactive=True)

        job = gr.on(
            [generate.click, caption.submit],
            run,
            caption,
            results,
            concurrency_limit=AT_ONCE,
            show_progress_on=[instruction, output],
            api_visibility="private",
        )
        caption.change(None, None, results, js=FORGET, cancels=job)
        draw_one.click(lambda: random.choice(captions), None, caption, api_visibility="private")
        clear.click(lambda: ("", "", "", ""), None, [caption, *results[:3]], api_visibility="private")
    return page


def read_captions(source: str | None) -> list[str]:
    """Captions of a file or a hub dataset, `POOL` of them at most; our own when None.

    Raises:
        UserError: they cannot be read, or there are none.
    """
    if source is None:
        return [example.caption for example in read_examples(EXAMPLES_FILE)]
    captions = Captions(source)
    texts = [caption.text.strip() for caption in captions.rows(draw(captions, POOL, seed=0))]
    texts = [text for text in texts if text]
    if not texts:
        raise UserError(f"captions {source}: expected at least one, got none")
    return texts


def make_parser() -> argparse.ArgumentParser:
    parser = Parser.of(__doc__)
    add_model_options(parser.add_argument_group("language model"))
    group = parser.add_argument_group("page")
    group.add_argument(
        "--captions",
        metavar="FILE",
        help="what Random Input draws from: .txt with one a line, .jsonl with input or caption, .csv, "
        ".parquet or a dataset on the hub, as owner/name (default: some of our own)",
    )
    add_page_options(group)
    return parser


def main() -> None:
    args = make_parser().parse_args()
    auth = [user_and_password(text) for text in args.auth]
    model = LanguageModel(**model_arguments(args), retries=RETRIES)
    captions = read_captions(args.captions)
    check_address(args.server_name, args.server_port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    page = build_page(model, captions)
    address, _ = launch(page, args, auth, STYLE)
    print(f"serves at {address}", flush=True)
    page.block_thread()


if __name__ == "__main__":
    run_main(main)
