"""How well the embedded model edits what it has never seen: the held-out sets of the avatar data.

    python benchmarks/embedded_model.py --json embedded_model.json --sheet imgs/embedded_model.jpg
    python benchmarks/embedded_model.py --sweep

For every held-out set: the share of edits that are nearest to the right one of the ten true edits of the same
picture (chance: 10 %), the error where the picture should change relative to that of leaving it as it is, and
the error elsewhere; metrics/editsets/edit_accuracy.py says exactly what they are. Beside the model stand the
input, as it is and through the autoencoder, and the true result through the autoencoder, which no edit can be
expected to beat.

--sweep compares guidance scales instead, on the validation part of the training set: people that the model
was not trained on and that no held-out set knows, so that the choice takes nothing from the held-out figures.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dataset_creation.avatars.kinds import edit_kind
from ldm.arguments import Parser, add_device_option, add_settings
from ldm.data.formats import SHARES, Example, read_examples, split_examples
from ldm.device import DTYPES
from ldm.editor import EMBEDDED, EMBEDDED_CONFIG, ImageEditor, Sampling
from ldm.files import ROOT
from ldm.pictures.fitting import to_image
from ldm.pictures.sheet import sheet
from ldm.pictures.writing import prepare_output
from ldm.util import UserError, run_main
from metrics.editsets.edit_accuracy import Averages, EditPairs, EditScores, measure, read_pairs

SETS = ("identities", "combinations", "wordings", "style")
GROUP_SIZE = 10
STEPS = 20

SWEEP_TEXT = (1.0, 1.5, 2.0, 3.0, 5.0, 7.5)
SWEEP_IMAGE = (1.0, 1.5, 2.0)
SWEEP_GROUPS = 40
TRAIN_GROUP_SIZE = 4  # edits of one picture in training data; chance is 25 % there

SHEET_PAIRS, SHEET_COLUMNS = 24, 3
SHEET_BYTES = 500_000
SIDE, GAP, LINE = 128, 6, 17  # of the sheet, in pixels: a picture, between pictures, a line of text


@dataclass(frozen=True)
class SetResult:
    """A held-out set, the model's edits of it [N, 3, H, W] in [-1, 1], and all measures."""

    pairs: EditPairs
    edited: Tensor
    scores: dict[str, EditScores]
    seconds: float

    def kinds(self) -> dict[str, Averages]:
        """Averages of the model for every kind of edit."""
        kinds = [edit_kind(prompt.caption, prompt.output) for prompt in self.pairs.prompts]
        rows = {kind: torch.tensor([k == kind for k in kinds]) for kind in sorted(set(kinds))}
        return {kind: self.scores["model"].averages(chosen) for kind, chosen in rows.items()}


def examples_of(folder: Path) -> list[Example]:
    """The examples of one set of the avatar data.

    Raises:
        UserError: it has not been built.
    """
    if not (folder / "seeds.json").is_file():
        raise UserError(
            f"there is no avatar data in {folder}: build it with npm ci --prefix dataset_creation/avatars && "
            f"python dataset_creation/avatars/build.py {folder.parent}"
        )
    return read_examples(folder)


def in_batches(
    function: Callable[[Tensor, int], Tensor], images: Tensor, editor: ImageEditor, batch_size: int
) -> Tensor:
    """`function` of (a batch, its place) over `images` [N, 3, H, W], there on the editor's device."""
    images = images.to(editor.device, DTYPES[editor.precision])
    parts = [function(x, batch_size * i).float().cpu() for i, x in enumerate(images.split(batch_size))]
    return torch.cat(parts)


def edit_all(
    editor: ImageEditor, pairs: EditPairs, args: argparse.Namespace, scales: tuple[float, float], bar: tqdm
) -> Tensor:
    """The model's edits of all pairs, [N, 3, H, W] in [-1, 1].

    Args:
        args: steps, batch size, and the seed, to which the i-th edit adds i.
        scales: guidance by text and by picture.
        bar: counts edits.
    """

    sampling = Sampling(steps=args.steps, cfg_text=scales[0], cfg_image=scales[1])

    def edit(x: Tensor, start: int) -> Tensor:
        samplings = [replace(sampling, seed=args.seed + start + i) for i in range(len(x))]
        edited = editor.edit_batch(x, pairs.instructions[start : start + len(x)], samplings)
        bar.update(len(x))
        return edited

    return in_batches(edit, pairs.before, editor, args.batch_size).clamp(-1, 1)


def evaluate(editor: ImageEditor, pairs: EditPairs, args: argparse.Namespace, name: str) -> SetResult:
    """All measures of one set."""

    @torch.inference_mode()
    def reconstruct(x: Tensor, start: int) -> Tensor:
        autoencoder = editor.model.first_stage_model
        return autoencoder.decode(autoencoder.encode(x).mode())

    started = time.perf_counter()
    with tqdm(total=len(pairs.prompts), desc=name, unit="edit") as bar:
        edited = edit_all(editor, pairs, args, (args.cfg_text, args.cfg_image), bar)
    seconds = time.perf_counter() - started
    answers = {
        "model": edited,
        "input copied": pairs.before,
        "autoencoder, input": in_batches(reconstruct, pairs.before, editor, args.batch_size),
        "autoencoder, true result": in_batches(reconstruct, pairs.after, editor, args.batch_size),
    }
    scores = {answer: measure(pictures, pairs) for answer, pictures in answers.items()}
    return SetResult(pairs, edited, scores, seconds)


def print_result(name: str, result: SetResult) -> None:
    n = len(result.edited)
    print(f"\n{name}: {n} pairs, {n / result.seconds:.2f} edits/s")
    print(f"  {'':26}accuracy  inside / copied  outside")
    for answer, scores in result.scores.items():
        mean = scores.averages()
        print(f"  {answer:26}{mean.accuracy:7.1%}  {mean.inside:15.3f}  {mean.outside:7.4f}")


def print_kinds(results: dict[str, SetResult]) -> None:
    """A table of accuracy, error inside relative to copied, and number of edits, by kind and set."""
    kinds = {name: result.kinds() for name, result in results.items()}
    print("\nby kind of edit: accuracy, inside / copied (edits)")
    print(f"  {'':18}" + "".join(f"{name:>20}" for name in kinds))
    for kind in sorted({kind for found in kinds.values() for kind in found}):
        cells = [
            f"{mean.accuracy:.0%} {mean.inside:.2f} ({mean.pairs})" if (mean := found.get(kind)) else "-"
            for found in kinds.values()
        ]
        print(f"  {kind:18}" + "".join(f"{cell:>20}" for cell in cells))


def settings_of(editor: ImageEditor, args: argparse.Namespace) -> dict[str, object]:
    """What the figures depend on."""
    names = ("steps", "seed", *(() if args.sweep else ("cfg_text", "cfg_image")))
    return {
        **{name: getattr(args, name) for name in names},
        "ckpt": args.ckpt.name,
        "device": editor.device.type,
        "precision": editor.precision,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def as_json(results: dict[str, SetResult], settings: dict[str, object]) -> str:
    """All figures, as they are printed but not rounded."""
    sets = {
        name: {
            "edits_per_second": len(result.edited) / result.seconds,
            "answers": {answer: asdict(scores.averages()) for answer, scores in result.scores.items()},
            "kinds": {kind: asdict(mean) for kind, mean in result.kinds().items()},
        }
        for name, result in results.items()
    }
    return json.dumps({"settings": settings, "sets": sets}, indent=1)


def contact_sheet(results: dict[str, SetResult], seed: int) -> Image.Image:
    """Of pairs drawn at random, as many of each set: instruction, and below it input, output and truth."""
    draw_lots = random.Random(seed)
    chosen = []
    for name, result in results.items():
        n = len(result.edited)
        chosen += [(name, i) for i in draw_lots.sample(range(n), min(SHEET_PAIRS // len(results), n))]
    cells = []
    for name, i in chosen:
        pairs, edited, scores = results[name].pairs, results[name].edited, results[name].scores
        kind = "the right" if scores["model"].correct[i] else "a wrong"
        text = f"{pairs.instructions[i]}\n{name}: nearest to {kind} one of ten"
        pictures = [to_image(of[i]) for of in (pairs.before, edited, pairs.after)]
        cells.append([sheet([pictures], [SIDE] * 3, [SIDE], GAP), text])
    wide, tall = cells[0][0].size
    titles = sheet([["input", "output", "truth"]], [SIDE] * 3, [LINE], GAP)
    table = [[titles] * SHEET_COLUMNS]
    for k in range(0, len(cells), SHEET_COLUMNS):
        pictures, texts = zip(*cells[k : k + SHEET_COLUMNS], strict=True)
        table += [texts, pictures]
    heights = [titles.height, *[3 * LINE, tall] * (len(table) // 2)]
    return sheet(table, [wide] * SHEET_COLUMNS, heights, GAP)


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Save as a JPEG of the best quality that fits into SHEET_BYTES."""
    for quality in range(92, 20, -4):
        sheet.save(path, "JPEG", quality=quality, optimize=True)
        if path.stat().st_size <= SHEET_BYTES:
            break
    print(f"wrote {path}: {sheet.width}x{sheet.height} pixels, {path.stat().st_size / 1000:.0f} kB")


def sweep(editor: ImageEditor, args: argparse.Namespace) -> None:
    """Print the measures for every pair of guidance scales, on validation pairs of the training set."""
    examples = split_examples(examples_of(args.data / "train"), "val", SHARES)
    pairs = read_pairs(examples, TRAIN_GROUP_SIZE, args.limit or SWEEP_GROUPS)
    scales = [(text, image) for image in SWEEP_IMAGE for text in SWEEP_TEXT]
    with tqdm(total=len(scales) * len(pairs.prompts), desc="sweep", unit="edit") as bar:
        found = {pair: measure(edit_all(editor, pairs, args, pair, bar), pairs).averages() for pair in scales}
    print(f"{len(pairs.prompts)} validation pairs in groups of {TRAIN_GROUP_SIZE}, {args.steps} steps")
    print("cfg-text  cfg-image  accuracy  inside / copied  outside")
    for (text, image), mean in found.items():
        print(f"{text:8}{image:11}{mean.accuracy:10.1%}{mean.inside:17.3f}{mean.outside:9.4f}")
    best = min(found, key=lambda scales: (-found[scales].accuracy, found[scales].inside))
    print(f"best accuracy: --cfg-text {best[0]} --cfg-image {best[1]}")


def make_parser() -> argparse.ArgumentParser:
    parser = Parser.of(__doc__)
    _add_measured(parser.add_argument_group("what is measured"))
    _add_edits(parser.add_argument_group("edits"))
    add = parser.add_argument_group("output").add_argument
    add("--json", type=Path, metavar="FILE", help="write all figures there (default: none)")
    add("--sheet", type=Path, metavar="FILE", help="write a JPEG of random pairs there (default: none)")
    return parser


def _add_measured(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    for option, default, metavar, help in (
        ("--ckpt", EMBEDDED, "FILE", "weights (default: the embedded model's)"),
        ("--config", EMBEDDED_CONFIG, "FILE", "YAML file of the model (default: the embedded model's)"),
        (
            "--data",
            ROOT / "data/avatars",
            "DIR",
            "of dataset_creation/avatars/build.py (default: data/avatars)",
        ),
    ):
        add(option, type=Path, default=default, metavar=metavar, help=help)
    sets = f"held-out sets, out of {', '.join(SETS)} (default: all)"
    add("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET", help=sets)
    add("--limit", type=int, metavar="N", help="only so many groups of each set (default: none, all)")
    add("--sweep", action="store_true", help="compare guidance scales on validation pairs instead")


def _add_edits(group: argparse._ArgumentGroup) -> None:
    for name, what in (("text", "instruction"), ("image", "picture")):
        help = f"guidance by the {what}, no unit (default: the model's own)"
        group.add_argument(f"--cfg-{name}", type=float, metavar="SCALE", help=help)
    add_settings(
        group,
        ("--steps", STEPS, "denoising steps"),
        ("--batch-size", 60, "edits at once; changes no figure", "N"),
        ("--seed", 0, "of the noise, and of the sheet's draw"),
    )
    add_device_option(group)


def main() -> None:
    """Measure, print, and write what the command line asks for."""
    args = make_parser().parse_args()
    if min(args.steps, args.batch_size, 1 if args.limit is None else args.limit) < 1:
        raise UserError("expected --steps, --batch-size and --limit of at least 1")
    for file in filter(None, (args.sheet, args.json)):
        file.parent.mkdir(parents=True, exist_ok=True)
    if args.sheet:
        prepare_output(args.sheet)
    if not args.sweep:  # before the model, so that missing data is told at once
        sets = {name: read_pairs(examples_of(args.data / name), GROUP_SIZE, args.limit) for name in args.sets}
    editor = ImageEditor.load(args.config, args.ckpt, device=args.device)
    sampling = Sampling.from_arguments(args, editor.defaults)
    args.cfg_text, args.cfg_image = sampling.cfg_text, sampling.cfg_image
    settings = settings_of(editor, args)
    print("settings:", json.dumps(settings))
    if args.sweep:
        sweep(editor, args)
        return
    results = {}
    for name, pairs in sets.items():
        results[name] = evaluate(editor, pairs, args, name)
        print_result(name, results[name])
    print_kinds(results)
    if args.json:
        args.json.write_text(as_json(results, settings) + "\n", encoding="utf-8", newline="\n")
        print(f"wrote {args.json}")
    if args.sheet:
        save_sheet(contact_sheet(results, args.seed), args.sheet)


if __name__ == "__main__":
    run_main(main)
