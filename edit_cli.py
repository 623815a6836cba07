"""Edit a picture by written instructions: read the arguments, check them, edit, save.

What takes time to import comes after the checks, so that `--help` and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.app.about import About
from ldm.arguments import (
    Parser,
    add_model_options,
    add_safety_option,
    add_sampling_options,
    load_editor,
    model_files,
)
from ldm.pictures import animation
from ldm.pictures.fitting import fit_to_model
from ldm.pictures.reading import open_image
from ldm.pictures.safety import BLUR_OVER, SafetyChecker, Verdict, in_settings
from ldm.pictures.writing import prepare_output, save_image
from ldm.sampling.options import LIMITS, Sampling
from ldm.util import UserError, run_main

if TYPE_CHECKING:
    from PIL import Image

    from ldm.editor import ImageEditor

LONGEST_INSTRUCTION = 4000  # characters, of all together; the text encoder reads 77 tokens, EXIF holds 64 KB
SURPRISES, SHEET_COLUMNS = 5, 3  # with the input, two full rows
EPILOG = """examples:
  python edit_cli.py --input imgs/example.jpg --output imgs/output.jpg --edit "turn him into a cyborg"
  python edit_cli.py --steps 100 --resolution 512 --seed 1371 --cfg-text 7.5 --cfg-image 1.2 \\
      --input imgs/example.jpg --output imgs/output.jpg --edit "turn him into a cyborg"
  python edit_cli.py --input imgs/example.jpg --output imgs/output.jpg --gif imgs/output.gif \\
      --edit "add sunglasses" --edit "make the background green" --edit "give him a beard"
  python edit_cli.py --input imgs/example.jpg --output imgs/output.jpg --surprise-me

If the picture changes too little, raise --cfg-text or lower --cfg-image; if it changes too much, the reverse.
"""


def instruction_text(text: str) -> str:
    """Check that an instruction can be encoded and stored."""
    if len(text) > LONGEST_INSTRUCTION:
        raise argparse.ArgumentTypeError(
            f"expected at most {LONGEST_INSTRUCTION} characters, got {len(text)}"
        )
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of the command line that are no UTF-8
        raise argparse.ArgumentTypeError(f"expected UTF-8 text, got {text!r}") from None
    return text


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all options, with defaults and units in its help."""
    parser = Parser(
        description="Edit a picture by written instructions (InstructPix2Pix).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_picture_options(parser.add_argument_group("picture"))
    add_sampling_options(
        parser.add_argument_group("guidance and sampling"),
        *("cfg_text", "cfg_image", "steps", "seed", "sampler", "schedule"),
        seed="whole number; the same gives the same picture; of several --edit the second takes this seed + "
        "1 and so on, so that each draws noise of its own",
    )
    add_model_options(parser.add_argument_group("model"))
    add_safety_option(parser.add_argument_group("safety"))
    return parser


def _add_picture_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--input", required=True, metavar="FILE", help="picture to edit, any format Pillow reads"
    )
    group.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="where to save the result; its suffix sets the format: png, jpg, webp, tiff and others",
    )
    what = group.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--edit",
        action="append",
        metavar="TEXT",
        type=instruction_text,
        help='instruction, such as "turn him into a cyborg"; an empty one only resizes the picture. Given '
        "several times, each edits the picture that the one before gave; --output is the last",
    )
    what.add_argument(
        "--surprise-me",
        action="store_true",
        help=f"try {SURPRISES} instructions that suit the model, each on the input; --output is a sheet of "
        "all, and the single pictures stand beside it, with -1, -2 and so on after the name (default: no)",
    )
    group.add_argument(
        "--gif",
        metavar="FILE",
        help="also write an animation that morphs from the input through all results, .gif or .webp "
        "(default: none)",
    )
    add_sampling_options(group, "resolution")


def result_paths(args: argparse.Namespace) -> list[Path]:
    """The files of single pictures: --output, or with --surprise-me those beside it."""
    output = Path(args.output)
    if not args.surprise_me:
        return [output]
    return [output.with_stem(f"{output.stem}-{i}") for i in range(1, SURPRISES + 1)]


def check_request(args: argparse.Namespace) -> None:
    """Check what only shows in several options together, and that every file can be written.

    Raises:
        UserError: they do not fit, or a file cannot be written.
    """
    edits = args.edit or []
    if (length := sum(map(len, edits))) > LONGEST_INSTRUCTION:
        raise UserError(f"--edit: expected at most {LONGEST_INSTRUCTION} characters in all, got {length}")
    most = LIMITS["seed"][1] - max(len(edits) - 1, 0)
    if args.seed is not None and args.seed > most:
        raise UserError(f"--seed: expected at most {most} for {len(edits)} edits, got {args.seed}")
    paths = dict.fromkeys([Path(args.output), *result_paths(args)])
    for path in paths:
        prepare_output(path)
    if args.gif:
        animation.check_animation_path(args.gif)
        prepare_output(args.gif)
        if Path(args.gif).resolve() in {path.resolve() for path in paths}:
            raise UserError(f"expected another file for --gif than for the result, got {args.gif}")


def apply_edits(
    editor: ImageEditor,
    picture: Image.Image,
    edits: Sequence[str],
    sampling: Sampling,
    in_turn: bool,
    callback: Callable[[dict[str, Any]], None],
) -> list[Image.Image]:
    """Edit the picture by each instruction; `in_turn`, each edits what the one before gave."""
    results: list[Image.Image] = []
    for edit in edits:
        if in_turn and results:
            picture = results[-1]
            # Its own size: one that is no multiple of 64 would be fitted to the model's again.
            sampling = replace(sampling, seed=sampling.drawn_seed() + 1, resolution=max(picture.size))
        results.append(editor.edit(picture, edit, sampling, callback=callback))
    return results


def save_results(
    args: argparse.Namespace,
    frames: Sequence[Image.Image],
    edits: Sequence[str],
    verdicts: Sequence[Verdict],
    settings: dict[str, Any],
) -> Image.Image:
    """Write all files that the arguments ask for; return the picture of --output.

    Args:
        args: the arguments.
        frames: the input, sized as the model takes it, and the results as they may be shown.
        edits: the instruction of each result.
        verdicts: on each result; none where they were not checked.
        settings: to store in --output.
    """
    captions = ["input", *edits]
    for i, verdict in enumerate(verdicts, 1):
        captions[i] = "blurred: " * verdict.blurred + captions[i]
    output = frames[-1]
    if args.surprise_me:
        for i, (path, edit) in enumerate(zip(result_paths(args), edits, strict=True)):
            found = in_settings(verdicts[i] if verdicts else None)
            save_image(frames[i + 1], path, {**settings, "edit": edit, **found})
            print(f"wrote {str(path)!a}: {edit}")
        output = animation.sheet_of(frames, captions, SHEET_COLUMNS)
    save_image(output, args.output, settings)
    if args.gif:
        animation.save_animation(frames, captions, args.gif)
        print(f"wrote {args.gif!a}: {len(frames)} pictures")
    return output


def name_blurred(args: argparse.Namespace, edits: Sequence[str], verdicts: Sequence[Verdict]) -> None:
    """Say of each blurred result that was written in which files it is."""
    for i, verdict in enumerate(verdicts):
        files = [args.output] if args.surprise_me or i == len(edits) - 1 else []
        if args.surprise_me:
            files.insert(0, str(result_paths(args)[i]))
        if args.gif:
            files.append(args.gif)
        if verdict.blurred and files:
            where = f"{edits[i]!a} in {', '.join(map(ascii, files))}"
            print(f"safety: blurred the result of {where}: score {verdict.score:.3f}, over {BLUR_OVER}")


def main() -> None:
    """Edit a picture as the command line says."""
    started = time.perf_counter()
    args = make_parser().parse_args()
    picture = open_image(args.input)
    check_request(args)
    checker = SafetyChecker() if args.safety_checker else None

    from tqdm import tqdm

    files = model_files(args)
    sampling = Sampling.from_arguments(args, Sampling.from_config(files.config)).seeded()
    sampling.check()
    edits = args.edit or About.from_config(files.config).draw(SURPRISES, sampling.drawn_seed())
    editor, facts = load_editor(args, files)
    settings = {
        **asdict(sampling),
        "edit": edits[0] if len(edits) == 1 else edits,
        "input": Path(args.input).name,
        **facts,
    }
    print("settings:", json.dumps(settings))  # ASCII, which every terminal can show
    steps = sampling.steps * sum(bool(edit.strip()) for edit in edits)
    with tqdm(total=steps, desc="edit", unit="step", disable=not steps) as bar:
        results = apply_edits(
            editor, picture, edits, sampling, not args.surprise_me, lambda state: bar.update()
        )
    verdicts: list[Verdict] = []
    if checker is not None:  # only now: a chain goes on from pictures as they are
        results, verdicts = checker.check(results)
        found = [verdict._asdict() for verdict in verdicts]
        settings["safety"] = found[0] if len(found) == 1 else found
    frames = [fit_to_model(picture, sampling.resolution), *results]
    output = save_results(args, frames, edits, verdicts, settings)
    width, height = output.size
    print(f"wrote {args.output!a}: {width}x{height} pixels, {time.perf_counter() - started:.1f} s")
    name_blurred(args, edits, verdicts)


if __name__ == "__main__":
    run_main(main)
