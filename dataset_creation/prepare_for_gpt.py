"""Triples written by people, in the form that a language model is fine-tuned on.

    python dataset_creation/prepare_for_gpt.py --input-path human-written.jsonl --output-path tune.jsonl

Reads JSON lines with input (or caption), edit and output. Writes prompt and completion as published, or with
--format chat the conversations that today's fine-tuning takes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from dataset_creation.text.instructions import (
    chat_messages,
    completion_of,
    json_of,
    prompt_of,
    validated,
)
from ldm.arguments import Parser
from ldm.data.formats import Triple
from ldm.data.triples import read_triples
from ldm.files import replacing
from ldm.modules.encoders.bpe import token_count
from ldm.util import UserError, run_main

FORMATS = ("completion", "chat")


def parse_args() -> argparse.Namespace:
    parser = Parser.of(__doc__)
    add = parser.add_argument
    add("--input-path", metavar="FILE", help="triples to read (default: the first PATH)")
    add("--output-path", metavar="FILE", help="file to write (default: the second PATH)")
    add("--format", choices=FORMATS, default=FORMATS[0], help="of the lines (default: %(default)s)")
    add("--skip-invalid", action="store_true", help="write the good lines although others are bad")
    add("paths", nargs="*", metavar="PATH", help="input and output, in place of the two options")
    args = parser.parse_args()
    if args.paths and (args.input_path or args.output_path):
        parser.error("expected two paths or --input-path and --output-path, got some of each")
    if args.paths:
        if len(args.paths) != 2:
            parser.error(f"expected an input and an output path, got {len(args.paths)}")
        args.input_path, args.output_path = args.paths
    if not (args.input_path and args.output_path):
        parser.error("expected --input-path and --output-path")
    return args


def record(triple: Triple, form: str) -> dict[str, Any]:
    """A line of the fine-tuning file; the prompt is the one that is used with the model later."""
    if form == "completion":
        return {"prompt": prompt_of(triple.caption), "completion": completion_of(triple)}
    answer = {"role": "assistant", "content": json_of(triple)}
    return {"messages": [*chat_messages(triple.caption, ()), answer]}


def texts_of(line: dict[str, Any]) -> list[str]:
    """All texts of a line, which are what is paid for."""
    return [message["content"] for message in line["messages"]] if "messages" in line else [*line.values()]


def main() -> None:
    args = parse_args()
    lines, bad = [], 0
    for entry in read_triples(args.input_path):
        try:
            lines.append(record(validated(entry.triple), args.format))
        except ValueError as error:
            bad += 1
            print(f"{entry.name}: {error}", file=sys.stderr)
    if bad and not args.skip_invalid:
        raise UserError(f"{args.input_path}: {bad} bad lines, nothing written; --skip-invalid skips them")
    if not lines:
        raise UserError(f"{args.input_path}: expected triples, got none")
    with replacing(Path(args.output_path)) as part:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        part.write_text(text, encoding="utf-8")
    # CLIP's vocabulary cuts English about as finely as those of language models do.
    tokens = sum(token_count(text) for line in lines for text in texts_of(line))
    left_out = f", {bad} bad lines left out" if bad else ""
    print(f"{len(lines)} examples, about {tokens:,} tokens, in {args.output_path}{left_out}")


if __name__ == "__main__":
    run_main(main)
