"""The documents: what they link to and name is there, and the cards give the figures of files and code."""

import hashlib
import importlib
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from safetensors import safe_open

from dataset_creation.avatars import build, styles, wordings
from dataset_creation.avatars.plan import GROUP, HELD_OUT_SETS, HELD_OUT_STYLE
from ldm.editor import EMBEDDED, EMBEDDED_CONFIG, PUBLISHED, Sampling
from ldm.files import ROOT
from ldm.util import UserError, get_obj_from_str

MODEL_CARD = "checkpoints/README.md"
DATA_CARD = "dataset_creation/avatars/README.md"

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?\n(.*?)```|`([^`\n]+)`", re.DOTALL)
PATH = re.compile(r"[\w.*/-]+")
SUFFIXES = {".py", ".sh", ".mjs", ".yaml", ".toml", ".md"}  # of a file of ours, wherever it is
# What the commands in the documents write, in folders that also hold files of ours.
MADE = ("imgs/output*", f"checkpoints/{PUBLISHED.stem}.*", "stable_diffusion/models/*")
DOTTED = re.compile(r"\b(?:ldm|metrics|dataset_creation|edit_dataset|edit_cli|main)(?:\.(?!py\b)\w+)+")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


@cache
def files() -> frozenset[PurePosixPath]:
    """Every file that git tracks or would add, and the folders they are in, from the root."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [PurePosixPath(name) for name in listing.split("\0") if name and (ROOT / name).is_file()]
    return frozenset(paths).union(*(path.parents for path in paths))


def documents() -> list[str]:
    return sorted(str(path) for path in files() if path.suffix == ".md" or path.name == "NOTICE")


# ----------------------------------------------------------------------------------- what is linked and named


def broken_links(text: str, folder: str = "") -> Iterator[str]:
    """Links of a document in `folder` to no file or folder of ours, or to no heading of it."""
    for link in LINK.findall(text):
        name, _, heading = link.partition("#")
        target = (ROOT / folder / name).resolve()
        if "://" in link:
            continue
        if name and PurePosixPath(target.relative_to(ROOT).as_posix()) not in files():
            yield link
        elif heading and heading not in headings(target.read_text(encoding="utf-8") if name else text):
            yield link


def headings(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


def code_of(text: str) -> list[str]:
    """All that stands in backticks or between fences."""
    return [fenced or inline for fenced, inline in CODE.findall(text)]


def missing_paths(texts: list[str]) -> Iterator[str]:
    """Words that say they are files or folders of ours, and are not; `*` stands for anything."""
    tops = {path.parts[0] for path in files() if len(path.parts) > 1} | {"ldm"}
    for word in {word.rstrip(".") for text in texts for word in PATH.findall(text)}:
        path = PurePosixPath(word)
        says_so = ("/" in word and path.parts[0] in tops) or (path.suffix in SUFFIXES and path.stem != "*")
        if says_so and not any(path.match(made) for made in MADE):
            if not any(file.match(word) for file in files()):
                yield word


@cache
def sources() -> str:
    return "\n".join((ROOT / path).read_text() for path in sorted(files()) if path.suffix == ".py")


def missing_names(texts: list[str]) -> Iterator[str]:
    """Dotted names of ours that cannot be imported, and names of code that no source has."""
    for dotted in {name for text in texts for name in DOTTED.findall(text)}:
        try:
            importlib.import_module(dotted)
        except ModuleNotFoundError:
            try:
                get_obj_from_str(dotted)
            except UserError as error:
                yield str(error)
    for text in texts:
        words = text.split(".") if NAME.fullmatch(text) else []
        for word in words:
            looks_it = "_" in word or re.search(r"[a-z][A-Z]|[A-Z]{2}[a-z]", word)
            if looks_it and not re.search(rf"\b{word}\b", sources()):
                yield text


def test_links_lead_somewhere() -> None:
    found = {name: [*broken_links(read(name), str(PurePosixPath(name).parent))] for name in documents()}
    assert not any(found.values()), found


def test_paths_and_names_are_there() -> None:
    found = {}
    for name in documents():
        texts = code_of(read(name)) if name.endswith(".md") else [read(name)]
        found[name] = [*missing_paths(texts), *missing_names(texts)]
    assert not any(found.values()), found


def test_the_documents_are_found() -> None:
    known = {"README.md", "CONTRIBUTING.md", MODEL_CARD, DATA_CARD, "hosting/space/README.md", "NOTICE"}
    assert known <= set(documents())


def test_the_searches_find_what_is_missing() -> None:
    text = (
        "[a](README.md) [b](imgs/) [c](READ.md) [d](#a-heading) [e](#none) [f](README.md#train-your-own)\n"
        "## A heading\n"
        "`ldm/editor.py`, `editor.py`, `configs/*.yaml`, `imgs/output.gif`, `data/x.py-free`, `train/loss`, "
        "`ldm/gone.py`, `gone.yaml`, `imgs/gone*.jpg`, `ldm.pictures.fitting.to_tensor`, "
        "`ldm.pictures.reading.gone`, "
        "`find_model`, `find" + "NoModel`\n"
        "```\npython scripts/gone.py --config configs/generate.yaml x=checkpoints/gone.ckpt\n```\n"
    )
    assert list(broken_links(text)) == ["READ.md", "#none"]
    assert set(missing_paths(code_of(text))) == {
        "ldm/gone.py", "gone.yaml", "imgs/gone*.jpg", "scripts/gone.py", "checkpoints/gone.ckpt",
    }  # fmt: skip
    assert len(list(missing_names(code_of(text)))) == 2


# ------------------------------------------------------------------------------------------------- the cards


def head(document: str) -> dict[str, Any]:
    """The YAML that the hub reads."""
    empty, text, _ = read(document).split("---\n", 2)
    assert not empty
    return yaml.safe_load(text)


def table(document: str, corner: str) -> dict[str, list[str]]:
    """The one table whose header begins with the cell `corner`: of each row the first cell → the others."""
    before, after = read(document).split(f"\n| {corner} |")
    lines = takewhile(lambda line: line.startswith("|"), f"| {corner} |{after}".splitlines())
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert set("".join(rows[1])) <= set("-") and len(rows) > 2
    return {first: others for first, *others in [rows[0], *rows[2:]]}


def prose(document: str) -> str:
    """A document without its line breaks."""
    return " ".join(read(document).split())


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_heads_of_the_cards() -> None:
    model, data, space = (head(name) for name in (MODEL_CARD, DATA_CARD, "hosting/space/README.md"))
    assert re.search(r'^license = "(.+)"', read("pyproject.toml"), re.MULTILINE)[1].lower() == "mit"
    assert model["license"] == space["license"] == "mit" and model["pipeline_tag"] == "image-to-image"
    assert data["license"] == "other" and (ROOT / data["license_link"]).is_file()


def test_the_model_card_is_of_the_file() -> None:
    content = EMBEDDED.read_bytes()
    facts = table(MODEL_CARD, "file")
    assert facts["file"][0].startswith(f"`{EMBEDDED.relative_to(ROOT).as_posix()}`")
    assert facts["size"][0].startswith(f"{len(content):,} bytes")
    assert facts["SHA-256"] == [f"`{hashlib.sha256(content).hexdigest()}`"]


def test_the_model_card_counts_the_weights() -> None:
    with safe_open(EMBEDDED, "pt") as file:
        sizes = {key: file.get_tensor(key).numel() for key in file.keys()}
    for name, (_, tensors, numbers) in list(table(MODEL_CARD, "keys").items())[1:]:
        prefix = name.split("`")[1]
        # The noise schedule alone has keys without a dot; the row names some of them.
        of_row = [key for key in sizes if ("." not in key if prefix in sizes else key.startswith(prefix))]
        assert number(tensors) == len(of_row), name
        assert number(numbers) == sum(sizes[key] for key in of_row), name


def test_the_model_card_has_the_figures_of_the_readme() -> None:
    assert table(MODEL_CARD, "held-out set") == table("README.md", "held-out set")


def test_the_model_card_has_the_settings_of_the_configs() -> None:
    rows = list(table(MODEL_CARD, "training").values())[1:]
    assert len(rows) == 3
    for file, size, rate, _ in rows:
        config = OmegaConf.load(ROOT / file.strip("`"))
        steps, batch = size.split(" x ")
        assert number(steps) == config.lightning.trainer.max_steps, file
        assert number(batch) == config.data.params.batch_size, file
        assert float(rate) == config.model.base_learning_rate, file
    suits = Sampling.from_config(EMBEDDED_CONFIG)
    scales = f"`--cfg-text {suits.cfg_text}`, `--cfg-image {suits.cfg_image}`"
    assert f"{suits.steps} steps, {scales}" in prose(MODEL_CARD)


def credits() -> dict[str, tuple[str, str, str]]:
    """What the tables of the styles say first: name in DiceBear → title, artist, licence."""
    found = {}
    for table_of in (styles.avataaars, styles.open_peeps, styles.toon_head, styles.miniavs):
        found[table_of().name] = re.match(r"(.+?) by (.+?), (.+?)[.;](?!\d)", table_of.__doc__).groups()
    assert found.keys() == styles.styles().keys()
    return found


def test_the_data_card_has_the_styles_and_licences_of_the_code() -> None:
    trained = build.argument_parser().parse_args(["."]).styles
    uses = {name: "training" for name in trained} | {HELD_OUT_STYLE: "evaluation alone"}
    expected = {title: [artist, licence, uses[name]] for name, (title, artist, licence) in credits().items()}
    found = table(DATA_CARD, "style")
    assert found.pop("style") and found == expected
    noted = re.findall(r", by ([^(]+?)\s+\(http.+?licence: ([^,\n]+)", read("NOTICE"), re.DOTALL)
    assert sorted(noted) == sorted((artist, licence) for _, artist, licence in credits().values())


def test_the_data_card_has_the_attributes_of_the_code() -> None:
    rows = table(DATA_CARD, "attribute")
    titles = {title: name for name, (title, _, _) in credits().items()}
    known = [styles.styles()[titles[title]].attributes for title in rows.pop("attribute")]
    assert set(rows) == set().union(*known)
    for name, cells in rows.items():
        assert cells == [str(len(values[name])) if name in values else "" for values in known], name


def test_the_data_card_counts_what_is_built() -> None:
    args = build.argument_parser().parse_args(["."])
    rows = table(DATA_CARD, "folder")
    assert set(rows) == {"folder", "`train`", *(f"`{name}`" for name in HELD_OUT_SETS)}
    people, pairs, _ = rows["`train`"]
    assert number(people) == args.identities
    drawn = 2 * args.edits * args.identities
    assert f"{drawn:,} pairs, less {drawn - number(pairs)} that could not be seen" in prose(DATA_CARD)
    assert all(
        rows[f"`{name}`"][:2] == [str(args.groups), str(GROUP * args.groups)] for name in HELD_OUT_SETS
    )
    words, expressions, kept = (
        sum(map(len, templates.values()))
        for templates in (wordings.TRAIN, wordings.EXPRESSIONS, wordings.HELD_OUT)
    )
    assert f"one of {words} templates for {len(wordings.TRAIN)} kinds of edit" in prose(DATA_CARD)
    assert f"or of {expressions} for single expressions; {kept} others" in prose(DATA_CARD)
