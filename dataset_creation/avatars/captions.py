"""The words of a pair: captions from the attributes, and an instruction for an edit."""

import re
from random import Random

from dataset_creation.avatars import wordings
from dataset_creation.avatars.plan import PLAIN_HAT_COLOR, Edit, plain_beard_color
from dataset_creation.avatars.style import ABSENT, State, Style

SHARE_OF_EXTRA = 0.35
SHARE_OF_NAMED_HAIR = 0.5
COLOR_OF = {"hair": "hair_color", "hat": "hat_color", "beard": "beard_color", "clothes": "clothes_color"}


def tidy(text: str) -> str:
    """Single spaces, and "an" before a vowel."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", " ".join(text.split())).replace(" ,", ",")


def phrase(style: Style, state: State, attribute: str, *, color: bool) -> str:
    """The value of `attribute` in words, if asked for with its colour where that can be seen."""
    text = style.attributes[attribute][state[attribute]].text
    name = COLOR_OF.get(attribute, "")
    shown = color and name in style.visible(state)
    if attribute == "hair" and color and "hair_color" in state and state["hair"] != ABSENT and not shown:
        return tidy(text.replace("{c}", "black"))  # openPeeps draws most hair in black
    return tidy(text.replace("{c}", state[name] if shown else ""))


def caption(style: Style, state: State) -> str:
    """A sentence that names everything that can be seen."""
    seen = style.visible(state)
    has = [
        phrase(style, state, name, color=True)
        for name in ("hair", "beard")
        if seen.get(name, ABSENT) != ABSENT or (name == "hair" and "hair" in seen)  # a bald head is said
    ]
    wears = [
        phrase(style, state, name, color=True)
        for name in ("glasses", "mask", "hat", "clothes")
        if seen.get(name, ABSENT) != ABSENT
    ]
    if "clothes_color" in seen and "clothes" not in seen:
        wears.append(f"{seen['clothes_color']} clothes")
    clothed = f", wearing {' and '.join(wears)}" if wears else ""
    looks = f", looking {seen['expression']}" if "expression" in seen else ""
    return tidy(
        f"a drawn avatar of a person with {seen['skin']} skin{''.join(', ' + text for text in has)}"
        f"{clothed}{looks}, on a {seen['background']} background"
    )


def instruction(style: Style, state: State, edit: Edit, random: Random, *, held_out: str = "") -> str:
    """One way to ask for `edit` of `state`.

    Args:
        style: the style of the picture.
        state: the input.
        edit: what changes.
        random: source of the choice.
        held_out: empty in training; the name of the set otherwise. The set `wordings` uses its own templates,
            and a held-out instruction to take a hat off always names the hair below, which no model could
            guess.

    Returns:
        The instruction; one in three with a capital first letter, some of those with a full stop.
    """
    templates = (wordings.HELD_OUT if held_out == "wordings" else wordings.TRAIN)[edit.kind]
    if (
        edit.kind == "expression"
        and edit.after in wordings.EXPRESSIONS
        and held_out != "wordings"
        and random.random() < SHARE_OF_EXTRA
    ):
        templates = wordings.EXPRESSIONS[edit.after]
    if edit.kind == "hat_remove" and (held_out or random.random() < SHARE_OF_NAMED_HAIR):
        templates = tuple(template for template in templates if "{new}" in template)
    template = random.choice(templates)
    he, him, his = random.choices(wordings.REFERENCES, wordings.REFERENCE_WEIGHTS)[0]
    text = tidy(template.format(he=he, him=him, his=his, **_slots(style, state, edit)))
    if random.random() < 1 / 3:
        text = text[0].upper() + text[1:]
        if text[-1] not in "?.!" and random.random() < 0.5:
            text += "."
    return text


def _slots(style: Style, state: State, edit: Edit) -> dict[str, str]:
    after = {**state, edit.attribute: edit.after}
    values = style.attributes[edit.attribute]
    slots = {
        "old": values[edit.before].text, "new": values[edit.after].text, "was": edit.before, "c": edit.after,
    }  # fmt: skip
    if edit.attribute in COLOR_OF:
        slots["new"] = phrase(style, after, edit.attribute, color=_color_is_news(style, state, after, edit))
        slots["old"] = phrase(style, state, edit.attribute, color=False)
    if edit.kind == "hat_remove":
        slots["new"] = phrase(style, after, "hair", color=True)
    if edit.attribute.endswith("_color"):
        thing = edit.attribute.removesuffix("_color")
        slots["noun"] = "hair" if thing == "hair" else state.get(thing, "clothes")
    return slots


def _color_is_news(style: Style, state: State, after: State, edit: Edit) -> bool:
    """Whether the colour of the result has to be said, as it cannot be read off the input."""
    if edit.attribute == "hat":
        return edit.kind == "hat_add" and after.get("hat_color") != PLAIN_HAT_COLOR
    if edit.attribute == "beard":
        return edit.kind == "beard_add" and after.get("beard_color") != plain_beard_color(style, state)
    if edit.attribute == "hair":
        return ("hair_color" in style.hidden(state)) and ("hair_color" not in style.hidden(after))
    return False
