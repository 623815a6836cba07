"""Whether texts are fit for a dataset: by the server's moderation, by a list of words, or not looked at."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from pathlib import Path

from dataset_creation.text.language_model import LanguageModel
from ldm.util import UserError

MODES = ("api", "wordlist", "off")

Flagged = Callable[[Sequence[str]], Awaitable[bool]]


def moderation(mode: str, model: LanguageModel, words: str | Path | None = None) -> Flagged:
    """Return what says whether any of some texts is to be dropped.

    Args:
        mode: "api" asks the server of the language model; "wordlist" looks for words of a list, that
            of the package `better_profanity` (English) or a file's; "off" lets all texts pass.
        model: the language model.
        words: file with a word or phrase a line, for "wordlist".

    Raises:
        UserError: no such mode, or the list cannot be read.
    """
    if mode not in MODES:
        raise UserError(f"--moderation: expected one of {', '.join(MODES)}, got {mode!r}")
    if words is not None and mode != "wordlist":
        raise UserError(f"--wordlist: expected --moderation wordlist with it, got {mode}")
    if mode == "api":
        return model.flagged
    if mode == "wordlist":
        return _by_words(words)
    return _pass


async def _pass(texts: Sequence[str]) -> bool:
    return False


def _by_words(file: str | Path | None) -> Flagged:
    """Look for whole words and phrases; letters of either case, any punctuation between words."""
    words = _read_words(file)
    if not words:
        raise UserError(f"--wordlist: expected a word a line in {file}, got none")
    # The library's own search takes 60 ms a text, for the sake of disguised spellings.
    pattern = re.compile(rf"\b(?:{'|'.join(words)})\b")

    async def flagged(texts: Sequence[str]) -> bool:
        return any(pattern.search(text.casefold()) for text in texts)

    return flagged


def _read_words(file: str | Path | None) -> list[str]:
    """Patterns of the words and phrases of a list, longest first."""
    try:
        source = Path(file) if file else files("better_profanity") / "profanity_wordlist.txt"
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except ModuleNotFoundError as error:
        raise UserError(f"--moderation wordlist needs `pip install better_profanity`: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--wordlist: cannot read {file}: {error}") from error
    phrases = {r"\W+".join(re.findall(r"\w+", line.casefold())) for line in lines}
    return sorted(phrases - {""}, key=len, reverse=True)
