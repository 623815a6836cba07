"""Check a dataset before a training spends days on it: count, read every picture, name what is wrong.

    python dataset_creation/validate_dataset.py data/clip-filtered-dataset --sheet sheet.jpg
    python dataset_creation/validate_dataset.py "parquet/train-*.parquet" --before-column input_image

Reads the published layout and parquet files in the hub's. Exit code 0: nothing is wrong; 1: something is, and
is listed; 2: the command is wrong, or the parquet files cannot be opened.
"""

from __future__ import annotations

import argparse
import hashlib
import operator
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ldm.arguments import Parser
from ldm.data.formats import (
    INDEX,
    PROMPT,
    Example,
    pair_paths,
    read_examples,
    read_picture,
    read_prompt,
    seeds_on_disk,
)
from ldm.data.hub import Columns, HubRows
from ldm.pictures.sheet import GAP, sheet
from ldm.pictures.writing import prepare_output, save_image
from ldm.util import UserError, one_line, run_main

SheetExample = tuple[Image.Image, str, Image.Image]  # picture before, instruction, picture after
CELL, TEXT_WIDTH, FONT_SIZE = 192, 160, 16  # of the sheet, in pixels
SHEET_COLUMNS = 2  # examples beside one another
AT_ONCE = 1000  # examples handed to the threads before the first of them is done with


@dataclass(frozen=True)
class Problem:
    """Something wrong: its kind, the same words for all of the kind, and where it is, with the reason."""

    kind: str
    where: str


@dataclass
class Findings:
    """What was found in one example, or in several added up.

    Attributes:
        examples: prompts in the published layout, rows in parquet.
        pairs: pairs of pictures that should be there.
        pictures: pictures that could be read.
        sizes: (width, height) of the pairs whose two pictures are of one size.
        problems: in the order of the dataset.
        digests: of each whole pair, what it is called and what tells it from all others.
        good: the whole pairs, by index of the example and seed (none in parquet).
    """

    examples: int = 0
    pairs: int = 0
    pictures: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    digests: list[tuple[str, bytes]] = field(default_factory=list)
    good: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        for name, value in vars(other).items():
            setattr(self, name, operator.iadd(getattr(self, name), value))

    def problem(self, kind: str, where: str) -> None:
        self.problems.append(Problem(kind, where))


# --- The published layout -----------------------------------------------------------------------------------


# A source is a number of examples that are checked one by one, from any thread: `overall` says what is wrong
# with it as a whole, `check` what an example has and what is wrong with it, and `example` gives a good pair.
class FolderSource:
    """A dataset in the published layout; without a usable ``seeds.json`` the folders that are there."""

    def __init__(self, path: str) -> None:
        self.root = Path(path)
        self.whole = Findings()
        try:
            self.examples = read_examples(path)
        except UserError as error:
            self.whole.problem("seeds.json missing or broken", str(error))
            self.examples = list(examples_on_disk(self.root))
        if not self.examples:
            self.whole.problem("no examples", path)
        times = Counter(self._name(example) for example in self.examples)
        for name in (name for name, n in times.items() if n > 1):
            self.whole.problem("folder named more than once in seeds.json", name)

    def __len__(self) -> int:
        return len(self.examples)

    def overall(self) -> Findings:
        return self.whole

    def check(self, i: int) -> Findings:
        example, found = self.examples[i], Findings(examples=1, pairs=len(self.examples[i].seeds))
        name = self._name(example)
        if not example.folder.is_dir():
            found.problem("folder missing that seeds.json names", name)
            return found
        try:
            instruction = read_prompt(example.folder).edit
            if not instruction.strip():
                found.problem("empty instruction", f"{name}/prompt.json")
        except UserError as error:
            instruction = None
            kind = "missing" if not (example.folder / PROMPT).exists() else "broken"
            found.problem(f"prompt.json {kind}", name if kind == "missing" else str(error))
        for seed, n in Counter(example.seeds).items():
            if n > 1:
                found.problem("seed named more than once in seeds.json", f"{name}, seed {seed}")
            if self._check_pair(example, seed, instruction, found):
                found.good.append((i, seed))
        return found

    def example(self, i: int, seed: str) -> SheetExample:
        folder = self.examples[i].folder
        before, after = (read_picture(file) for file in pair_paths(folder, seed))
        return before, read_prompt(folder).edit, after

    def _name(self, example: Example) -> str:
        return os.path.relpath(example.folder, self.root)

    def _check_pair(self, example: Example, seed: str, instruction: str | None, found: Findings) -> bool:
        name, contents = self._name(example), []
        for file in pair_paths(example.folder, seed):
            where = f"{name}/{file.name}"
            try:
                contents.append((where, file.read_bytes()))
            except FileNotFoundError:
                found.problem("picture missing that seeds.json names", where)
            except OSError as error:
                found.problem("picture broken", f"{where}: {one_line(error)}")
        return check_pair(f"{name}, seed {seed}", contents, instruction, found)


def examples_on_disk(root: Path) -> Iterator[Example]:
    """The examples that the folders of a dataset hold, in order, whatever its ``seeds.json`` says."""
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if seeds := seeds_on_disk(folder):
            yield Example(folder, tuple(seeds))


# --- Parquet ------------------------------------------------------------------------------------------------


class ParquetSource:
    """A dataset in parquet files, of which every row is an example with one pair."""

    def __init__(self, path: str, columns: Columns) -> None:
        self.rows = HubRows(path, columns)

    def __len__(self) -> int:
        return len(self.rows)

    def overall(self) -> Findings:
        found = Findings()
        if not len(self.rows):
            found.problem("no examples", self.rows.path)
        return found

    def check(self, i: int) -> Findings:
        found = Findings(examples=1, pairs=1)
        before, text, after = self.rows.read(i)
        instruction = text or ""
        if not instruction.strip():
            found.problem("empty instruction", f"row {i}")
        contents = []
        for column, content in ((self.rows.columns.before, before), (self.rows.columns.after, after)):
            if content:
                contents.append((f"row {i}, {column}", content))
            else:
                found.problem("picture missing", f"row {i}, {column}")
        if check_pair(f"row {i}", contents, instruction, found):
            found.good.append((i, ""))
        return found

    def example(self, i: int, seed: str) -> SheetExample:
        before, instruction, after = self.rows.read(i)
        first, second = self.rows.pictures(i, before, after)
        return first, instruction or "", second


# --- Both ---------------------------------------------------------------------------------------------------


def check_pair(
    where: str, contents: list[tuple[str, bytes]], instruction: str | None, found: Findings
) -> bool:
    """Read the pictures of a pair and add what they show to `found`.

    Args:
        where: what the pair is called.
        contents: name and file of those of its two pictures that are there.
        instruction: None where it cannot be read.

    Returns:
        Whether both pictures are good and there is an instruction.
    """
    sizes, digest = [], hashlib.sha256()
    for name, content in contents:
        try:
            sizes.append(read_picture(BytesIO(content), name).size)
        except UserError as error:
            found.problem("picture broken", str(error).removeprefix("dataset: cannot read the picture "))
        digest.update(hashlib.sha256(content).digest())
    found.pictures += len(sizes)
    if len(sizes) < 2:
        return False
    if sizes[0] == sizes[1]:
        found.sizes[sizes[0]] += 1
    else:
        text = " and ".join(f"{width}x{height}" for width, height in sizes)
        found.problem("unequal sizes in a pair", f"{where}: {text}")
    if instruction is None:
        return False
    digest.update(instruction.encode())
    found.digests.append((where, digest.digest()))
    return True


def duplicates(digests: Sequence[tuple[str, bytes]]) -> list[Problem]:
    """One problem for every pair that is the same as an earlier one."""
    first: dict[bytes, str] = {}
    problems = []
    for where, digest in digests:
        if digest in first:
            problems.append(Problem("duplicate pair", f"{where} is the same as {first[digest]}"))
        else:
            first[digest] = where
    return problems


Source = FolderSource | ParquetSource


def open_source(path: str, columns: Columns) -> Source:
    """The dataset at `path`: a folder in the published layout, or parquet.

    Raises:
        UserError: nothing is there.
    """
    folder = Path(path)
    if folder.is_dir() and ((folder / INDEX).exists() or not any(folder.rglob("*.parquet"))):
        return FolderSource(path)
    if not folder.is_dir() and not path.endswith(".parquet"):
        raise UserError(f"expected a dataset folder or parquet files, got {path}")
    return ParquetSource(path, columns)


def validate(source: Source, workers: int) -> Findings:
    """Check every example, with a progress bar; what comes back does not depend on `workers`."""
    found = Findings()
    found.add(source.overall())
    with (
        tqdm(total=len(source), desc="checking", unit=" examples") as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        for start in range(0, len(source), AT_ONCE):
            for one in pool.map(source.check, range(start, min(start + AT_ONCE, len(source)))):
                found.add(one)
                bar.update()
    found.problems += duplicates(found.digests)
    return found


def summary(found: Findings, show: int) -> str:
    """The counts and, kind by kind, the first `show` problems."""
    lines = [f"{found.examples} examples, {found.pairs} pairs, {found.pictures} pictures that can be read"]
    if found.sizes:
        common = [f"{width}x{height}: {n}" for (width, height), n in found.sizes.most_common(show)]
        rest = len(found.sizes) - len(common)
        lines.append("pairs by size: " + ", ".join(common) + (f", and {rest} other sizes" if rest else ""))
    kinds: dict[str, list[str]] = {}
    for problem in found.problems:
        kinds.setdefault(problem.kind, []).append(problem.where)
    for kind, places in kinds.items():
        lines.append(f"{kind}: {len(places)}")
        lines += [f"  {place}" for place in places[:show]]
        if len(places) > show:
            lines.append(f"  … and {len(places) - show} more")
    lines.append(f"{len(found.problems)} problems" if found.problems else "nothing is wrong")
    return "\n".join(lines)


def write_sheet(source: Source, found: Findings, path: str, count: int) -> int:
    """Write the contact sheet of `count` good pairs at equal distances; return how many it shows."""
    count = min(count, len(found.good))
    if count:
        chosen = (found.good[k * len(found.good) // count] for k in range(count))
        save_image(contact_sheet([source.example(*one) for one in chosen]), path)
    return count


def contact_sheet(examples: Sequence[SheetExample]) -> Image.Image:
    """Draw examples from left to right and down: picture before, instruction, picture after."""
    columns = min(SHEET_COLUMNS, len(examples))
    rows = []
    for k in range(0, len(examples), columns):
        rows.append([cell for example in examples[k : k + columns] for cell in (*example, "")])
    widths = [CELL, TEXT_WIDTH, CELL, GAP] * columns
    return sheet(rows, widths[:-1], [CELL] * len(rows), font_size=FONT_SIZE)


def positive(text: str) -> int:
    """Convert an argument to a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    parser = Parser.of(__doc__)
    add = parser.add_argument_group("dataset").add_argument
    add("dataset", metavar="DATASET", help="folder with seeds.json, or parquet: a file, a folder, a pattern")
    for name, what in (("before", "picture before"), ("edit", "instruction"), ("after", "picture after")):
        add(
            f"--{name}-column",
            default=getattr(Columns, name),
            metavar="NAME",
            help=f"parquet column of the {what} (default: %(default)s)",
        )
    add = parser.add_argument_group("report").add_argument
    add(
        "--show",
        type=positive,
        default=10,
        metavar="N",
        help="problems of a kind, and sizes, to print (default: %(default)s)",
    )
    add("--sheet", metavar="FILE", help="write a contact sheet of some examples there (default: none)")
    add("--sheet-examples", type=positive, default=16, metavar="N", help="on it (default: %(default)s)")
    add(
        "--workers",
        type=positive,
        default=os.cpu_count(),
        metavar="N",
        help="threads that read (default: one for each processor)",
    )
    return parser


def main() -> None:
    args = make_parser().parse_args()
    if args.sheet:
        prepare_output(args.sheet)
    source = open_source(args.dataset, Columns(args.before_column, args.edit_column, args.after_column))
    found = validate(source, args.workers)
    print(summary(found, args.show))
    if args.sheet:
        shown = write_sheet(source, found, args.sheet, args.sheet_examples)
        print(f"{args.sheet}: {shown} examples" if shown else f"{args.sheet}: not written, no pair is good")
    if found.problems:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
