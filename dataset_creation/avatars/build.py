"""Build the avatar data set: pairs of drawings, captions and instructions in the published dataset layout.

    npm ci --prefix dataset_creation/avatars
    python dataset_creation/avatars/build.py data/avatars

OUT_DIR then holds train/ and the held-out sets identities/, combinations/, wordings/ and style/, each a data
set of its own: NNNNNNN/prompt.json (input, edit, output), NNNNNNN/{seed}_0.jpg, {seed}_1.jpg and seeds.json.
In training every edit is there in both directions. In a held-out set ten edits of one picture form a group
("group" in prompt.json), so that an answer can be told from the nine wrong ones.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
from tqdm import tqdm

from dataset_creation.avatars.captions import caption, instruction
from dataset_creation.avatars.plan import (
    GROUP,
    HELD_OUT_SETS,
    HELD_OUT_STYLE,
    Person,
    held_out_people,
    identity_key,
    train_people,
)
from dataset_creation.avatars.style import Style
from dataset_creation.avatars.styles import styles
from ldm.arguments import Parser, add_settings
from ldm.data.formats import folder_name, jpeg, pair_names, write_index, write_prompt
from ldm.data.json_lines import JsonLines
from ldm.util import UserError, run_main

HERE = Path(__file__).parent
KNOWN_HASH = HERE / "held_out.sha256"
CHUNK = 250
# Two pictures of 64 x 64 differ if at least so many pixels change by more than a tenth in some channel; in a
# held-out group, where the right answer is to be recognised, it takes more.
CHANGED_PIXELS = 12
CHANGED_PIXELS_IN_GROUP = 24
VISIBLE_STEP = 25


@dataclass(frozen=True)
class Pair:
    """One example before it is written: `before` and `after` are JPEG files as bytes."""

    number: int
    seed: int
    prompt: dict[str, str | int]
    before: bytes
    after: bytes


def renderer() -> list[str]:
    """The command that renders, after a check that it starts.

    Raises:
        UserError: if Node.js or the npm packages are missing.
    """
    node = shutil.which("node")
    if node is None:
        raise UserError("Node.js not found: expected `node` (version 18 or later) on the PATH")
    command = [node, str(HERE / "render.mjs")]
    probe = subprocess.run([*command, "8"], stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8")
    if "ERR_MODULE_NOT_FOUND" in probe.stderr:
        raise UserError("npm packages are missing: run `npm ci --prefix dataset_creation/avatars`")
    if probe.returncode:
        raise UserError(f"the renderer does not start: {probe.stderr.strip().splitlines()[-1:]}")
    return command


def render(command: list[str], pictures: list[tuple[Style, dict[str, str]]], size: int) -> np.ndarray:
    """Draws states: [N, size, size, 3] uint8 RGB, in order."""
    lines = (
        json.dumps({"style": style.name, "seed": "0", "options": style.options(state)})
        for style, state in pictures
    )
    done = subprocess.run([*command, str(size)], input="\n".join(lines).encode(), capture_output=True)
    if done.returncode:
        raise RuntimeError(f"render.mjs failed: {done.stderr.decode().strip()}")
    return np.frombuffer(done.stdout, np.uint8).reshape(len(pictures), size, size, 3)


def draw(command: list[str], people: list[Person], size: int) -> Iterator[np.ndarray]:
    """The pictures of all `Person.states`, person by person, each [size, size, 3] uint8 RGB."""
    return iter(render(command, [(p.style, state) for p in people for state in p.states()], size))


def differ(a: np.ndarray, b: np.ndarray, pixels: int) -> bool:
    """Whether two pictures [size, size, 3] differ visibly, in at least `pixels` pixels of 64 x 64."""
    step = np.abs(a.astype(np.int16) - b.astype(np.int16)).max(axis=-1)
    return int((step > VISIBLE_STEP).sum()) >= pixels * a.shape[0] ** 2 / 64**2


def to_jpeg(picture: np.ndarray) -> bytes:
    """A JPEG file of [size, size, 3] uint8, as good as the format gets, with full chroma."""
    return jpeg(picture, subsampling=0)


def _prompt(person: Person, before: dict, after: dict, text: str) -> dict[str, str | int]:
    return {"input": caption(person.style, before), "edit": text, "output": caption(person.style, after)}


def train_pairs(people: list[Person], command: list[str], size: int, edits: int, seed: int) -> list[Pair]:
    """Both directions of every edit of `people`; edits that cannot be seen are dropped."""
    pictures = draw(command, people, size)
    pairs = []
    for person in people:
        random = Random(f"{seed}/words/{person.number}")
        base = next(pictures)
        before = to_jpeg(base)
        for place, edit in enumerate(person.edits):
            changed, state = next(pictures), person.after(edit)
            there = instruction(person.style, person.state, edit, random)
            back = instruction(person.style, state, edit.reverse(), random)
            if not differ(base, changed, CHANGED_PIXELS):
                continue
            after = to_jpeg(changed)
            number = 2 * (person.number * edits + place)
            forward = _prompt(person, person.state, state, there)
            pairs.append(Pair(number, person.number, forward, before, after))
            backward = _prompt(person, state, person.state, back)
            pairs.append(Pair(number + 1, person.number, backward, after, before))
    return pairs


def held_out_pairs(people: list[Person], command: list[str], size: int, name: str, seed: int) -> list[Pair]:
    """Ten edits of each of `people`, all results different from the input and from one another."""
    pictures = draw(command, people, size)
    pairs = []
    for person in people:
        random = Random(f"{seed}/words/{name}/{person.number}")
        base, changed = next(pictures), [next(pictures) for _ in person.edits]
        kept: list[int] = []
        for place, picture in enumerate(changed):
            others = [base, *(changed[i] for i in kept)]
            if len(kept) < GROUP and all(differ(picture, other, CHANGED_PIXELS_IN_GROUP) for other in others):
                kept.append(place)
        if len(kept) < GROUP:
            continue
        before = to_jpeg(base)
        for place, index in enumerate(kept):
            edit = person.edits[index]
            text = instruction(person.style, person.state, edit, random, held_out=name)
            prompt = {**_prompt(person, person.state, person.after(edit), text), "group": person.number}
            number = GROUP * person.number + place
            pairs.append(Pair(number, person.number, prompt, before, to_jpeg(changed[index])))
    return pairs


def _chunks(people: Iterator[Person]) -> Iterator[list[Person]]:
    while chunk := list(islice(people, CHUNK)):
        yield chunk


def build_set(folder: Path, people: Iterator[Person], total: int, make, jobs: int) -> None:
    """Writes one data set, chunk by chunk; what an interrupted run finished is kept.

    Args:
        folder: the set's folder; it appears under this name once it is complete.
        people: whom to draw.
        total: how many they are.
        make: turns a list of people into pairs.
        jobs: how many renderers run at a time.
    """
    if folder.exists():
        return
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    log = partial / "chunks.jsonl"
    rows: dict[str, list[int]] = {}
    with (
        JsonLines(log) as lines,
        tqdm(total=total, desc=folder.name, unit="person") as bar,
        ThreadPoolExecutor(jobs) as pool,
    ):
        done = {line["first"]: line["seeds"] for line in lines.rows}

        def work(chunk: list[Person]) -> tuple[list[Person], dict[str, list[int]]]:
            if chunk[0].number in done:
                return chunk, done[chunk[0].number]
            pairs = {folder_name(pair.number): pair for pair in make(chunk)}
            for name, pair in pairs.items():
                pictures = dict(zip(pair_names(pair.seed), (pair.before, pair.after), strict=True))
                write_prompt(partial / name, pair.prompt, pictures)
            return chunk, {name: [pair.seed] for name, pair in pairs.items()}

        for chunk, seeds in pool.map(work, _chunks(people)):
            if chunk[0].number not in done:
                lines.append({"first": chunk[0].number, "seeds": seeds})
            rows |= seeds
            bar.update(len(chunk))
    write_index(partial, rows)
    log.unlink()
    partial.rename(folder)


def hash_files(folders: list[Path]) -> str:
    """One SHA-256 over names and contents of all files in `folders`, in the order of their names."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(f"{folder.name}/{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _choose_styles(names: list[str]) -> list[Style]:
    known = styles()
    for name in names:
        if name not in known or name == HELD_OUT_STYLE:
            trainable = ", ".join(sorted(set(known) - {HELD_OUT_STYLE}))
            raise UserError(f"expected --styles out of {trainable}, got {name!r}")
    return [known[name] for name in names]


def _settle_arguments(out: Path, arguments: dict) -> None:
    """Keeps the arguments of a build beside it, and refuses to go on with another's."""
    note = out / "build.json"
    if note.exists():
        if (given := json.loads(note.read_text(encoding="utf-8"))) != arguments:
            raise UserError(f"{out} holds a build with other arguments: expected {given}, got {arguments}")
        return
    if out.exists() and any(out.iterdir()):
        raise UserError(f"expected an empty or new folder, got {out} with files in it")
    out.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(arguments), encoding="utf-8")


def argument_parser() -> argparse.ArgumentParser:
    parser = Parser.of(__doc__)
    group = parser.add_argument_group("data set")
    add = group.add_argument
    add(
        "out_dir",
        type=Path,
        metavar="OUT_DIR",
        help="folder of the data set; an interrupted build goes on there",
    )
    add_settings(group, ("--size", 64, "side of the pictures", "PIXELS"))
    add(
        "--styles",
        nargs="+",
        default=["avataaars", "openPeeps", "toonHead"],
        metavar="NAME",
        help="of the avatars to train on; a wrong one lists all (default: avataaars openPeeps toonHead)",
    )
    add_settings(
        group,
        ("--identities", 7000, "people in the training set", "N"),
        ("--edits", 4, "edits of each of them", "N"),
        ("--groups", 60, "groups of ten edits in each held-out set", "N"),
    )
    group = parser.add_argument_group("work")
    add_settings(group, ("--seed", 0, "of everything random"))
    jobs = "renderers at a time (default: one for each processor)"
    group.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help=jobs)
    return parser


def _content(args: argparse.Namespace) -> dict:
    """The arguments that the content of the data set depends on."""
    return {name: value for name, value in vars(args).items() if name not in ("out_dir", "jobs")}


def main() -> None:
    """Builds the training set and the held-out sets, and hashes the latter."""
    parser = argument_parser()
    args = parser.parse_args()
    if args.size < 8 or min(args.identities, args.edits, args.groups, args.jobs) < 1:
        raise UserError("expected --size of at least 8 and all numbers positive")
    chosen = _choose_styles(args.styles)
    command = renderer()
    arguments = _content(args)
    _settle_arguments(args.out_dir, arguments)

    def people() -> Iterator[Person]:
        return train_people(chosen, args.identities, args.edits, args.seed)

    def make_train(chunk: list[Person]) -> list[Pair]:
        return train_pairs(chunk, command, args.size, args.edits, args.seed)

    build_set(args.out_dir / "train", people(), args.identities, make_train, args.jobs)
    taken = {identity_key(p.style, state) for p in people() for state in p.states()}
    for name in HELD_OUT_SETS:

        def make_held_out(chunk: list[Person], name: str = name) -> list[Pair]:
            return held_out_pairs(chunk, command, args.size, name, args.seed)

        drawn = [styles()[HELD_OUT_STYLE]] if name == "style" else chosen
        strangers = held_out_people(name, drawn, args.groups, args.seed, taken)
        build_set(args.out_dir / name, strangers, args.groups, make_held_out, args.jobs)

    found = hash_files([args.out_dir / name for name in HELD_OUT_SETS])
    (args.out_dir / KNOWN_HASH.name).write_text(f"{found}\n", encoding="utf-8", newline="\n")
    if arguments == _content(parser.parse_args([str(args.out_dir)])) and found != (
        known := KNOWN_HASH.read_text(encoding="utf-8").strip()
    ):
        raise UserError(
            f"the held-out sets are not those of {KNOWN_HASH.name}: expected {known}, got {found}"
        )
    print(f"{args.out_dir}: complete; held-out sets {found}")


if __name__ == "__main__":
    run_main(main)
