"""The paper in miniature: an edit model that has only seen generated pairs, measured on true ones.

    npm ci --prefix dataset_creation/avatars
    python benchmarks/paper_in_miniature.py --out data/miniature

Drawn avatars at 64 px, of one style unless told otherwise. The stages are those of Brooks et al. 2022: a
text-to-image model and a CLIP, here small ones trained on the avatars' pictures and captions; triples; pairs
by Prompt-to-Prompt; CLIP filtering; an edit model that starts from the text-to-image model, once for every
arm: ``filtered`` pairs, ``unfiltered`` ones, and a ``tenth`` of the filtered ones. Held-out true pairs then
tell how well each edits, by the measures of `benchmarks/embedded_model.py`.

The triples are made by the rules that caption the avatars and word their edits, not by a language model: none
knows what an avatar can look like. They are of training people; no true picture after an edit is used but as
a picture with a caption.

Every stage is a command of this project. A stage that was done with the same command is skipped, a stopped
one goes on where its program can.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ldm.arguments import Parser, add_settings
from ldm.data.formats import pair_paths, read_examples, read_prompt, write_index
from ldm.files import ROOT, replacing
from ldm.util import UserError, run_main

CONFIGS = ROOT / "configs/avatars"
TEXT_TO_IMAGE = CONFIGS / "text_to_image.yaml"
EDIT = (CONFIGS / "edit.yaml", CONFIGS / "miniature.yaml")
AUTOENCODER = ROOT / "checkpoints/avatars.safetensors"
ARMS = ("filtered", "unfiltered", "tenth")
RESOLUTION = 64
MEASURED = "identities"  # people that no training has seen
SHEET_EXAMPLES = 24
SMALLEST = 20  # prompts of which one is there to validate on


@dataclass(frozen=True)
class Stage:
    """A piece of the work.

    Attributes:
        name: of it, and of the note that it is done.
        words: a command line of this project's, after the Python that runs it; for a `step`, what it does.
        step: done in this process in place of a command.
        workers: processes that share the command's prompts among them.
    """

    name: str
    words: tuple[str, ...]
    step: Callable[[], None] | None = None
    workers: int = 1

    def commands(self) -> list[list[str]]:
        """What to run at the same time."""
        command = [sys.executable, *self.words]
        if self.workers == 1:
            return [command]
        shares = range(self.workers)
        return [[*command, "--n-partitions", str(self.workers), "--partition", str(i)] for i in shares]


def plan(args: argparse.Namespace) -> list[Stage]:
    """All stages, in order."""
    out, avatars = args.out, args.avatars
    stages = [
        command("avatars", "dataset_creation/avatars/build.py", avatars, "--styles", *args.styles,
                "--identities", args.identities),
        encoding("encode avatars", avatars / "train"),
        *text_to_image(args),
        command("clip", "dataset_creation/avatars/train_clip.py", avatars / "train", "--out",
                out / "clip.safetensors", "--steps", args.clip_steps, "--seed", args.seed),
        Stage("triples", (f"{args.prompts} triples, seed {args.seed}",), lambda: write_triples(args)),
    ]  # fmt: skip
    for arm in args.arms:
        if arm != "tenth":
            stages += pairs(args, arm)
    if "tenth" in args.arms:
        if "filtered" not in args.arms:
            stages += pairs(args, "filtered")
        stages.append(Stage("tenth", (f"seed {args.seed}",), lambda: write_tenth(args)))
    if args.sheet:
        stages.append(
            command("sheet", "dataset_creation/validate_dataset.py", out / args.arms[0], "--sheet",
                    args.sheet, "--sheet-examples", SHEET_EXAMPLES)
        )  # fmt: skip
    for arm in args.arms:
        stages += edit_model(args, arm)
    return stages


def command(name: str, *words: object) -> Stage:
    """A stage that is a command of the project."""
    program, *rest = map(str, words)
    return Stage(name, (str(ROOT / program), *rest))


def encoding(name: str, dataset: Path) -> Stage:
    """The latent cache of a dataset."""
    return command(
        name, "dataset_creation/cache_latents.py", dataset, "--config", TEXT_TO_IMAGE, "--ckpt", AUTOENCODER
    )


def training(
    name: str, args: argparse.Namespace, bases: Sequence[Path], data: Path, steps: int, *overrides: str
) -> Stage:
    """A training of `steps` steps on the latent cache of `data`."""
    return command(
        f"train {name}", "main.py", "--name", name, "--logdir", args.out / "runs", "--seed", args.seed,
        *(["--gpus", args.gpus] if args.gpus else []), "--base", *bases, "--train",
        f"data.params.train.params.path={data}", f"data.params.validation.params.path={data}",
        f"lightning.trainer.max_steps={steps}", *args.override, *overrides,
    )  # fmt: skip


def checkpoint(args: argparse.Namespace, base: Path, name: str) -> Path:
    """The last checkpoint of a training."""
    return args.out / "runs" / f"{base.stem}_{name}" / "checkpoints/last.ckpt"


def text_to_image(args: argparse.Namespace) -> list[Stage]:
    """The text-to-image model; its averaged weights, which the paper starts from, get a file of their own."""
    last = checkpoint(args, TEXT_TO_IMAGE, "miniature")
    return [
        training("miniature", args, [TEXT_TO_IMAGE], args.avatars / "train", args.t2i_steps),
        command("text to image", "scripts/convert_checkpoint.py", "--config", TEXT_TO_IMAGE, "--ckpt", last,
                "--output", args.out / "text_to_image.safetensors", "--dtype", "fp32"),
    ]  # fmt: skip


def pairs(args: argparse.Namespace, arm: str) -> list[Stage]:
    """Generated pairs, filtered or not, ready for training."""
    folder = args.out / arm
    if arm == "filtered":
        kept = ("--n-samples", args.n_samples, "--clip-model", CONFIGS / "clip.json", "--clip-weights",
                args.out / "clip.safetensors", "--clip-threshold", args.clip_threshold,
                "--clip-dir-threshold", args.clip_dir_threshold, "--clip-img-threshold",
                args.clip_img_threshold)  # fmt: skip
    else:
        kept = ("--n-samples", args.max_out_samples, "--clip-threshold", 0, "--clip-dir-threshold", 0,
                "--clip-img-threshold", 0)  # fmt: skip
    generation = command(
        f"pairs {arm}", "dataset_creation/generate_img_dataset.py", folder,
        args.out / "triples.jsonl", "--ckpt", args.out / "text_to_image.safetensors", "--config",
        TEXT_TO_IMAGE, "--vae-ckpt", "none", "--resolution", RESOLUTION, "--steps", args.steps,
        "--max-out-samples", args.max_out_samples, "--min-p2p", args.min_p2p, "--max-p2p", args.max_p2p,
        "--min-cfg", args.min_cfg, "--max-cfg", args.max_cfg, "--seed", args.seed, *kept,
    )  # fmt: skip
    return [
        replace(generation, workers=args.workers),
        command(f"prepare {arm}", "dataset_creation/prepare_dataset.py", folder),
    ]


def edit_model(args: argparse.Namespace, arm: str) -> list[Stage]:
    """The edit model of an arm, and its measures."""
    out = args.out
    start = f"model.params.ckpt_path={out / 'text_to_image.safetensors'}"
    limit = ["--limit", args.limit] if args.limit else []
    return [
        encoding(f"encode {arm}", out / arm),
        training(arm, args, EDIT, out / arm, args.edit_steps, start),
        Stage(f"config {arm}", ("the merged one of the run",), lambda: keep_config(args, arm)),
        command(f"measure {arm}", "benchmarks/embedded_model.py", "--config", out / f"{arm}.yaml", "--ckpt",
                checkpoint(args, EDIT[0], arm), "--data", args.avatars, "--sets", MEASURED, "--json",
                out / f"{arm}.json", "--sheet", out / f"{arm}.jpg", *limit),
    ]  # fmt: skip


def write_triples(args: argparse.Namespace) -> None:
    """Draw edits of training people: captions before and after, and an instruction."""
    examples = read_examples(args.avatars / "train")
    if args.prompts > len(examples):
        raise UserError(f"--prompts: expected at most {len(examples)} with these --identities")
    chosen = random.Random(args.seed).sample(examples, args.prompts)
    prompts = [read_prompt(example.folder) for example in chosen]
    lines = [json.dumps({"input": p.caption, "edit": p.edit, "output": p.output}) + "\n" for p in prompts]
    with replacing(args.out / "triples.jsonl") as part:
        part.write_text("".join(lines), encoding="utf-8", newline="\n")


def write_tenth(args: argparse.Namespace) -> None:
    """A dataset of links to a tenth of the filtered prompts, at least `SMALLEST`, drawn at random."""
    examples = read_examples(args.out / "filtered")
    count = min(len(examples), max(SMALLEST, len(examples) // 10))
    folder = args.out / "tenth"
    folder.mkdir(exist_ok=True)
    rows = {}
    for example in random.Random(args.seed).sample(examples, count):
        link = folder / example.folder.name
        if not link.is_symlink():
            link.symlink_to(example.folder.absolute(), target_is_directory=True)
        rows[link.name] = example.seeds
    write_index(folder, rows)


def keep_config(args: argparse.Namespace, arm: str) -> None:
    """Copy the configuration that a run has merged."""
    run = checkpoint(args, EDIT[0], arm).parents[1]
    newest = sorted((run / "configs").glob("*.yaml"))[-1]
    with replacing(args.out / f"{arm}.yaml") as part:
        part.write_bytes(newest.read_bytes())


def run(stage: Stage, args: argparse.Namespace) -> None:
    """Do a stage, unless its note says that it is done, and note what it was and how long it took.

    Raises:
        UserError: it failed, or was done with other settings.
    """
    note = args.out / "done" / f"{stage.name.replace(' ', '_')}.json"
    if note.exists():
        done = json.loads(note.read_text(encoding="utf-8"))["words"]
        if done != list(stage.words):
            raise UserError(
                f"{args.out} was begun with other settings: expected {shlex.join(done)}, got "
                f"{shlex.join(stage.words)}; choose another --out"
            )
        return
    print(f"\n{stage.name}: {shlex.join(stage.words)}", flush=True)
    started = time.perf_counter()
    if stage.step:
        stage.step()
    else:
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)} if args.threads else None
        processes = [subprocess.Popen(words, env=environment, cwd=ROOT) for words in stage.commands()]
        if code := max((process.wait() for process in processes), key=abs):
            raise UserError(f"stage {stage.name} ended with exit code {code}; the same command goes on there")
    seconds = time.perf_counter() - started
    with replacing(note) as part:
        part.write_text(
            json.dumps({"words": stage.words, "seconds": round(seconds, 1)}) + "\n",
            encoding="utf-8",
            newline="\n",
        )


def count_pairs(dataset: Path) -> int:
    """Pairs of a dataset that are there."""
    examples = read_examples(dataset)
    return sum(pair_paths(e.folder, seed)[0].is_file() for e in examples for seed in e.seeds)


def results(args: argparse.Namespace) -> dict[str, object]:
    """The measures of all arms, and of the input as it is, with the sizes of the datasets."""
    answers: dict[str, object] = {}
    for arm in args.arms:
        found = json.loads((args.out / f"{arm}.json").read_text(encoding="utf-8"))["sets"][MEASURED][
            "answers"
        ]
        answers["input copied"] = found["input copied"]
        answers[arm] = {"training pairs": count_pairs(args.out / arm), **found["model"]}
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items()}
    seconds = {
        file.stem: json.loads(file.read_text(encoding="utf-8"))["seconds"]
        for file in (args.out / "done").glob("*.json")
    }
    return {"settings": settings, "seconds": seconds, "answers": answers}


def report(found: dict[str, object]) -> str:
    """A table of the measures."""
    lines = [f"{'':16}{'pairs':>8}{'accuracy':>10}{'inside / copied':>17}{'outside':>9}"]
    for name, row in found["answers"].items():
        lines.append(
            f"{name:16}{row.get('training pairs', '-'):>8}{row['accuracy']:>10.1%}{row['inside']:>17.3f}"
            f"{row['outside']:>9.4f}"
        )
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = Parser.of(__doc__)
    _add_data(parser.add_argument_group("data"))
    _add_pairs(parser.add_argument_group("pairs"))
    _add_training(parser.add_argument_group("training"))
    _add_output(parser.add_argument_group("measurement and output"))
    return parser


def _add_data(group: argparse._ArgumentGroup) -> None:
    add_settings(
        group,
        ("--out", Path("data/miniature"), "folder of all that is made", "DIR"),
        ("--avatars", Path("data/avatars_one"), "folder of the avatars", "DIR"),
        ("--identities", 1200, "people to train on", "N"),
        ("--prompts", 400, "triples to make pairs of", "N"),
        ("--seed", 0, "of everything"),
    )
    styles = "of them (default: avataaars)"
    group.add_argument("--styles", nargs="+", default=["avataaars"], metavar="NAME", help=styles)


def _add_pairs(group: argparse._ArgumentGroup) -> None:
    add_settings(
        group,
        ("--n-samples", 6, "pairs drawn of a triple for the filter to choose from", "N"),
        ("--max-out-samples", 2, "pairs of a triple, at most", "N"),
        ("--steps", 20, "denoising steps of a pair", "STEPS"),
        ("--min-p2p", 0.1, "least share of steps with shared attention, 0 to 1", "SHARE"),
        ("--max-p2p", 0.9, "highest share of them", "SHARE"),
        ("--min-cfg", 2.0, "least guidance scale, no unit", "SCALE"),
        ("--max-cfg", 5.0, "highest guidance scale", "SCALE"),
        # Cosines of this CLIP are not those of the published one: of true pairs 95 % reach 0.79 with the
        # caption, three in four 0.31 in direction, nine in ten 0.52 as pictures.
        ("--clip-threshold", 0.5, "least similarity of either picture and its caption", "COSINE"),
        ("--clip-dir-threshold", 0.3, "least similarity of the changes of pictures and captions", "COSINE"),
        ("--clip-img-threshold", 0.5, "least similarity of the two pictures", "COSINE"),
        ("--workers", 1, "processes that make pairs together", "N"),
    )


def _add_training(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add_settings(
        group,
        ("--t2i-steps", 2500, "optimizer steps of the text-to-image model", "STEPS"),
        ("--clip-steps", 600, "optimizer steps of CLIP", "STEPS"),
        ("--edit-steps", 1000, "optimizer steps of each edit model", "STEPS"),
    )
    arms = f"what to train edit models on, out of {', '.join(ARMS)} (default: all)"
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=arms)
    override = "for every training, as for main.py (default: none)"
    add("--override", nargs="+", default=[], metavar="KEY=VALUE", help=override)
    add("--gpus", help="for trainings, as for main.py (default: none, train on the CPU)")


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--limit", type=int, metavar="N", help="measure so many groups of ten edits only (default: all)")
    add("--threads", type=int, metavar="N", help="of every program (default: as many as there are cores)")
    add("--json", type=Path, metavar="FILE", help="also write the figures there (default: none)")
    sheet = "contact sheet of pairs of the first arm, a JPEG (default: none)"
    add("--sheet", type=Path, metavar="FILE", help=sheet)
    add("--dry-run", action="store_true", help="print the stages only")


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `UserError` for budgets that make no sense; make the folders absolute."""
    counts = "identities prompts n_samples max_out_samples t2i_steps clip_steps edit_steps workers"
    for name in counts.split():
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(args, name)}")
    for name in ("out", "avatars", "sheet"):
        if getattr(args, name):
            setattr(args, name, getattr(args, name).absolute())


def main() -> None:
    args = make_parser().parse_args()
    check_arguments(args)
    stages = plan(args)
    if args.dry_run:
        print("\n".join(f"{stage.name}: {shlex.join(stage.words)}" for stage in stages))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        run(stage, args)
    found = results(args)
    text = json.dumps(found, indent=1) + "\n"
    for file in filter(None, (args.out / "results.json", args.json)):
        file.write_text(text, encoding="utf-8", newline="\n")
    print(report(found))


if __name__ == "__main__":
    run_main(main)
