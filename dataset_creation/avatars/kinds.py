"""What sort of edit a pair of captions describes: `captions.caption` read backwards."""

import re
from functools import cache

from dataset_creation.avatars.captions import COLOR_OF
from dataset_creation.avatars.plan import OPTIONAL
from dataset_creation.avatars.style import ABSENT, BALD, CLOTHES_COLORS, HAIR_COLORS
from dataset_creation.avatars.styles import styles

CAPTION = re.compile(
    r"a drawn avatar of a person with (?P<skin>.+?) skin(?P<has>(?:, (?!wearing |looking |on an? ).+?)*)"
    r"(?:, wearing (?P<wears>.+?))?(?:, looking (?P<expression>.+?))?, on an? (?P<background>.+) background"
)
# Not part of what a thing is: its colour and its article.
LOOSE_WORDS = {"a", "an", *HAIR_COLORS, *CLOTHES_COLORS}
# What covers other things comes first: a hat takes the hair out of the caption, a mask the beard.
ORDER = ("hat", "mask", "beard", "glasses", "hair", "clothes", "skin", "expression", "background")


def edit_kind(before: str, after: str) -> str:
    """The kind of the edit between two captions of one person, a key of `wordings.TRAIN`.

    Args:
        before: caption of the input.
        after: caption of the output.

    Raises:
        ValueError: if the captions are not those of such a pair.
    """
    old, new = _attributes(before), _attributes(after)
    changed = [name for name in ORDER if old.get(name) != new.get(name)]
    if not changed:
        raise ValueError(f"expected captions that differ, got {before!r} twice")
    name = changed[0]
    was, now = old.get(name, BALD), new.get(name, BALD)
    if name in OPTIONAL and (name != "hair" or BALD in (was, now)):
        if name not in old or was == BALD:
            return f"{name}_add"
        if name not in new or now == BALD:
            return f"{name}_remove"
    if name in COLOR_OF and _thing(was) == _thing(now):
        return COLOR_OF[name]
    return f"{name}_change" if name in OPTIONAL and name != "hair" else name


def _attributes(caption: str) -> dict[str, str]:
    match = CAPTION.fullmatch(caption)
    if match is None:
        raise ValueError(f"expected the caption of an avatar, got {caption!r}")
    found = {name: match[name] for name in ("skin", "expression", "background") if match[name]}
    for phrase in (*match["has"].split(", ")[1:], *(match["wears"] or "").split(" and ")):
        if phrase:
            thing = _thing(phrase)
            if thing not in _attribute_of():
                raise ValueError(f"expected words of an avatar style, got {phrase!r}")
            found[_attribute_of()[thing]] = phrase
    return found


def _thing(phrase: str) -> tuple[str, ...]:
    """The words of a phrase without article and colour."""
    return tuple(word for word in phrase.split() if word not in LOOSE_WORDS)


@cache
def _attribute_of() -> dict[tuple[str, ...], str]:
    """Which attribute the words of any style belong to."""
    found: dict[tuple[str, ...], str] = {("clothes",): "clothes"}
    for style in styles().values():
        for name, values in style.attributes.items():
            if name in ("skin", "expression", "background") or name in COLOR_OF.values():
                continue
            for value, words in values.items():
                if words.text and not (name == "hair" and value == ABSENT):
                    found[_thing(words.text.replace("{c}", ""))] = name
    found[_thing(BALD)] = "hair"
    return found
