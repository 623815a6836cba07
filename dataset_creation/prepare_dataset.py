"""List the pairs of a dataset in seeds.json, which training reads: the last step of making one.

    python dataset_creation/prepare_dataset.py data/my-dataset
    python dataset_creation/prepare_dataset.py data/my-dataset --min-clip-img 0.75

Tar shards in the folder are unpacked first. Pairs that are not complete are named and left out; with
--min-… also those of lower similarity by their metadata, so that a dataset can be filtered anew without
generating it again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dataset_creation.pairs.clip_filter import Similarities, Thresholds, failed
from ldm.arguments import Parser
from ldm.data.formats import INDEX, pair_paths, prompt_folders, read_metadata, read_prompt, write_index
from ldm.data.shards import unpack_all
from ldm.util import UserError, run_main

NAMED = 20  # incomplete pairs and prompts, of which the others are counted
UNKNOWN = "without metadata"


@dataclass
class Found:
    """What a prompt's folder holds.

    Attributes:
        seeds: of the pairs that are listed.
        dropped: pairs by the thresholds that they miss, maybe several, or `UNKNOWN`.
        problems: what is incomplete, in words.
    """

    seeds: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def look_into(folder: Path, thresholds: Thresholds | None) -> Found:
    """List the pairs of a prompt's folder.

    Args:
        thresholds: that pairs must reach by their metadata; None: all are listed.
    """
    found = Found()
    try:
        with os.scandir(folder) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries if entry.name.endswith(".jpg")}
        read_prompt(folder)
        lines = {str(line["seed"]): line for line in read_metadata(folder)} if thresholds else {}
    except (UserError, OSError) as error:
        found.problems.append(str(error))
        return found
    seeds = {name.rpartition("_")[0] for name in sizes}
    for seed in sorted(seeds):
        pictures = [file.name for file in pair_paths(folder, seed)]
        lacking = [name for name in pictures if not sizes.get(name)]
        if lacking or not seed.isdecimal():
            found.problems.append(f"{folder / (lacking or pictures)[0]}: expected a pair, got half of one")
        elif reasons := _reasons(lines.get(seed), thresholds):
            found.dropped.update(reasons)
        else:
            found.seeds.append(seed)
    return found


def _reasons(line: dict[str, Any] | None, thresholds: Thresholds | None) -> list[str]:
    """Why a pair is left out by its line of metadata."""
    if thresholds is None:
        return []
    similarities = Similarities.of(line or {})
    return failed(similarities, thresholds) if similarities else [UNKNOWN]


def collect(folders: list[Path], thresholds: Thresholds | None) -> Iterable[tuple[Path, Found]]:
    """Look into all folders, several at a time, in their order."""
    with ThreadPoolExecutor() as pool:
        work = pool.map(lambda folder: look_into(folder, thresholds), folders)
        yield from tqdm(zip(folders, work, strict=True), total=len(folders), unit="prompt", desc="prepare")


def prepare(root: Path, thresholds: Thresholds | None) -> str:
    """Write ``seeds.json``, and say in a line what is in it.

    Raises:
        UserError: no dataset there, or nothing to list; a ``seeds.json`` that is there stays.
    """
    prompt_folders(root)  # says if there is no such folder
    for shard, count in unpack_all(root):
        print(f"unpacked {shard.name}: {count} prompts")
    folders = prompt_folders(root)
    rows: dict[str, list[str]] = {}
    dropped: Counter[str] = Counter()
    problems: list[str] = []
    for folder, found in collect(folders, thresholds):
        if found.seeds:
            rows[folder.name] = found.seeds
        dropped += found.dropped
        problems += found.problems
    for problem in problems[:NAMED]:
        print(f"left out: {problem}", file=sys.stderr)
    if len(problems) > NAMED:
        print(f"left out: {len(problems) - NAMED} more", file=sys.stderr)
    if not rows:
        raise UserError(f"{root}: expected folders of prompts with pairs to list, got {len(folders)} without")
    write_index(root, rows)
    pairs = sum(map(len, rows.values()))
    losses = ", ".join(f"{name} {count}" for name, count in sorted(dropped.items()))
    return (
        f"{root / INDEX}: {pairs} pairs of {len(rows)} prompts; nothing listed of {len(folders) - len(rows)} "
        f"prompts; {len(problems)} incomplete" + (f"; dropped by {losses}" if losses else "")
    )


def thresholds_of(args: argparse.Namespace) -> Thresholds | None:
    """The thresholds of a command line, where those that it leaves out let everything pass."""
    given = {"clip": args.min_clip, "direction": args.min_clip_dir, "image": args.min_clip_img}
    for name, value in given.items():
        if value is not None and not -1 <= value <= 1:
            raise UserError(f"least similarity of {name}: expected -1 to 1, got {value}")
    if all(value is None for value in given.values()):
        return None
    return Thresholds(**{name: value or 0.0 for name, value in given.items()})


def main() -> None:
    parser = Parser.of(__doc__)
    add = parser.add_argument
    add("dataset_dir", type=Path, metavar="DATASET_DIR", help="folder that generate_img_dataset.py made")
    for name, what in (
        ("", "pictures and their captions"),
        ("-dir", "both changes"),
        ("-img", "both pictures"),
    ):
        add(
            f"--min-clip{name}",
            type=float,
            metavar="COSINE",
            help=f"least similarity of {what}, -1 to 1 (default: 0, any)",
        )
    args = parser.parse_args()
    print(prepare(args.dataset_dir, thresholds_of(args)))


if __name__ == "__main__":
    run_main(main)
