"""README.ja.md says section by section what README.md says, in Japanese.

That the code in the blocks is the same is for `test_readme.py`, that files and headings exist for
`test_documents.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from test_documents import LINK, headings, read

ENGLISH, JAPANESE = read("README.md"), read("README.ja.md")

BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"(?:^|\s)#\s(.*)$", re.MULTILINE)
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`]+)`")
QUOTED = re.compile(r'"[^"]*"')  # instructions, which are English in every language
KANA_AND_KANJI = r"[\u3041-\u30ff\u3400-\u9fff]"
UNITS = {"million": 10**6, "万": 10**4, "億": 10**8}
NUMBER = re.compile(rf"(\d+(?:[.,]\d+)*)(?: ?({'|'.join(UNITS)}))?")
# What the English text says in words, and the Japanese may write in digits.
COUNTS = "zero one two three four five six seven eight nine ten eleven twelve"
WORDS = {word: str(number) for number, word in enumerate(COUNTS.split())} | {
    "once": "1", "twice": "2", "two and a half": "2.5", "twenty": "20", "six hundred": "600",
    "half a second": "0.5", "half a minute": "30", "a million": "1000000", "January": "1",
}  # fmt: skip

# --- What a section holds -----------------------------------------------------------------------------------


def sections(text: str) -> list[str]:
    """A document in parts, each from a heading to the next."""
    found: list[list[str]] = []
    fenced = False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if not fenced and re.match("#+ ", line):
            found.append([])
        found[-1].append(line)
    return ["\n".join(lines) for lines in found]


def prose(section: str) -> str:
    """A section without code and without where its links lead."""
    return LINK.sub("]", SPAN.sub(" ", BLOCK.sub("", section)))


def depth(section: str) -> int:
    return len(section.split()[0])


def blocks(section: str) -> int:
    return len(BLOCK.findall(section))


def comments(section: str) -> list[str]:
    """The comments in its blocks."""
    return COMMENT.findall("\n".join(BLOCK.findall(section)))


def pictures(section: str) -> list[str]:
    return PICTURE.findall(section)


def links(section: str) -> set[str]:
    """Where it leads to, but to no heading of the same document; the other language is one place."""
    found = {link for link in LINK.findall(section) if not link.startswith("#")}
    return {"the other language" if link in ("README.md", "README.ja.md") else link for link in found}


def spans(section: str) -> set[str]:
    """Its code outside of blocks, without line breaks."""
    return {" ".join(span.split()) for span in SPAN.findall(BLOCK.sub("", section))}


def table(section: str) -> list[list[tuple[Counter[str], set[str]]]]:
    """The numbers and the code of each cell, by row, of all its tables."""
    rows = [line.strip("|").split("|") for line in BLOCK.sub("", section).splitlines() if line[:1] == "|"]
    return [[(numbers(cell), spans(cell)) for cell in row] for row in rows]


def numbers(section: str) -> Counter[str]:
    """Its numbers outside of code, in ASCII digits without thousands separators; 18 million is 1,800 万."""
    found: Counter[str] = Counter()
    for digits, unit in NUMBER.findall(unicodedata.normalize("NFKC", prose(section))):
        digits = re.sub(r",(?=\d{3})", "", digits)
        found[f"{Decimal(digits) * UNITS[unit]:.0f}" if unit else digits] += 1
    return found


def in_words(section: str) -> set[str]:
    """The numbers that an English section may say in words."""
    text = " ".join(prose(section).split())
    return {digits for word, digits in WORDS.items() if re.search(rf"\b{word}\b", text, re.IGNORECASE)}


def is_japanese(text: str) -> bool:
    """Whether most letters are kana and kanji and no four words in a row are not, quotations aside."""
    text = QUOTED.sub("", text)
    if re.search(r"[A-Za-z]+(?:\s[A-Za-z]+){3}", text):
        return False
    return len(re.findall(KANA_AND_KANJI, text)) >= len(re.findall("[A-Za-z]", text))


# --- Two documents ------------------------------------------------------------------------------------------

SAME: tuple[Callable[[str], Any], ...] = (depth, blocks, pictures, links, spans, table)


def differences(english: str, japanese: str) -> Iterator[str]:
    """Where the Japanese document does not hold what the English one does, or is not Japanese."""
    ours, theirs = sections(english), sections(japanese)
    if len(ours) != len(theirs):
        yield f"sections: expected {len(ours)}, got {len(theirs)}"
    for number, (expected, got) in enumerate(zip(ours, theirs, strict=False)):
        where = got.splitlines()[0]
        for of in SAME:
            if of(expected) != of(got):
                yield f"{where}: {of.__name__}: expected {of(expected)}, got {of(got)}"
        if _leads_to(ours, number) != _leads_to(theirs, number):
            yield f"{where}: links to other headings than those of the English document"
        missing = set(numbers(expected) - numbers(got))
        added = set(numbers(got) - numbers(expected)) - in_words(expected)
        if missing or added:
            yield f"{where}: numbers: missing {missing}, added {added}"
        if len(comments(expected)) != len(comments(got)):
            yield f"{where}: comments: expected {len(comments(expected))}, got {len(comments(got))}"
        _, *paragraphs = re.split(r"\n\s*\n", prose(got))
        yield from (f"{where}: not Japanese: {text}" for text in paragraphs if not is_japanese(text))
        named = (text for text in comments(got) if not re.search(KANA_AND_KANJI, text))
        yield from (f"{where}: not Japanese: {text}" for text in named)


def _leads_to(parts: list[str], number: int) -> list[int]:
    """Which sections of a document a section of it links to, in order; -1 for none."""
    found = [link.removeprefix("#") for link in LINK.findall(parts[number]) if link.startswith("#")]
    places = {anchor: i for i, part in enumerate(parts) for anchor in headings(part.splitlines()[0])}
    return [places.get(anchor, -1) for anchor in found]


def test_says_what_the_english_readme_says() -> None:
    assert not [*differences(ENGLISH, JAPANESE)]


BREAKS = {  # what is broken → pattern, what stands there instead, what is said of it
    "a section lost": (r"^### 1\.2 .*?(?=^### )", "", "sections"),
    "a heading too deep": (r"^## ", "### ", "depth"),
    "a block lost": (r"^```$.*?^```$", "", "blocks"),
    "an English comment": (r"# テストを実行する$", "# runs the tests", "not Japanese: runs the tests"),
    "a comment lost": (r"# テストを実行する$", "", "comments"),
    "another picture": (r"imgs/training\.png", "imgs/dataset.jpg", "pictures"),
    "another file": (r"\(CONTRIBUTING\.md\)", "(NOTICE)", "links"),
    "another heading": (r"\(#web-ui\)", "(#付属モデル)", "other headings"),
    "no heading": (r"\(#web-ui\)", "(#page)", "other headings"),
    "another option": (r"`--cfg-text`", "`--cfg-txt`", "spans"),
    "a row lost": (r"^\| `--seed`.*?\n", "", "table"),
    "cells exchanged": (r"\| ([\d.]+) \| ([\d.]+) \|", r"| \2 | \1 |", "table"),
    "another number": (r"7\.7 GB", "7.6 GB", "numbers: missing {'7.7'}, added {'7.6'}"),
    "another unit": (r"1,860 万", "1,860", "numbers"),
    "a number twice": (r"7\.7 GB", "7.7 GB（7.7 GB）", "numbers"),
    "an English cell": (r"長辺のおおよその長さ", "about the longer side", "not Japanese"),
    "English prose": (r"^変えたいところ.*?$(?=\n\n)", "Edit a picture by writing.", "not Japanese: Edit"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_finds_what_is_broken(what: str) -> None:
    pattern, other, expected = BREAKS[what]
    broken, found = re.subn(pattern, other, JAPANESE, count=1, flags=re.MULTILINE | re.DOTALL)
    assert found == 1
    assert expected in "\n".join(differences(ENGLISH, broken))


def test_numbers_in_either_language() -> None:
    assert numbers("18 million, 2,668 of 1.50 and `7`") == numbers("１，８００ 万、2668 と 1.50、`8`")
    assert numbers("[9](8.md) 0.50") == {"9": 1, "0.50": 1} != numbers("9 と 0.5")
    assert in_words("Two, someone, half\na minute") == {"2", "30"}
