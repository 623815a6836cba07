"""What strangers wrote: JSON within bounds, and text that a terminal can show."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

DEEPEST = 100  # lists and objects within each other
LONGEST_NUMBER = 40  # characters; 64 bits have 20

# Control characters, those that turn the direction of writing, and halves of characters.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; bytes are UTF-8, with or without a byte order mark.

    Raises:
        ValueError: no JSON, NaN or infinite numbers, numbers of more than `LONGEST_NUMBER` characters, or
            more than `DEEPEST` levels.
    """
    if isinstance(text, bytes | bytearray):
        text = text.decode("utf-8-sig")
    deep = ValueError(f"expected at most {DEEPEST} lists and objects within each other")
    try:
        value = json.loads(text, parse_int=_whole, parse_float=_real, parse_constant=_no_number)
    except RecursionError:
        raise deep from None
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [whole for whole in level if isinstance(whole, dict | list)]
        if not level:
            return value
        level = [part for whole in level for part in (whole.values() if isinstance(whole, dict) else whole)]
    raise deep


def printable(text: object, longest: int | None = None) -> str:
    """A text for a terminal: control characters escaped, and cut where it is longer than `longest`."""
    words = _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))
    return words if longest is None or len(words) <= longest else f"{words[:longest]}…"


def _whole(digits: str) -> int:
    return int(_short(digits))


def _real(digits: str) -> float:
    value = float(_short(digits))
    return value if math.isfinite(value) else _no_number(digits)


def _short(digits: str) -> str:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"expected numbers of at most {LONGEST_NUMBER} characters, got {len(digits)}")
    return digits


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"expected finite numbers, got {name}")
