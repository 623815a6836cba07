"""What is drawn: people, their edits, and the split into training and held-out sets. Pure Python, no drawing.

Everything follows from the seed: each person has a random generator of their own, seeded by (seed, set,
number).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from dataset_creation.avatars.style import ABSENT, State, Style

# How often an attribute is chosen for an edit. Expressions change few pixels, so they stay in the minority;
# what many pictures do not show (the colour of a hat, of drawn-black hair) is chosen the more often where
# they do.
WEIGHTS = {
    "hair": 3.0, "hair_color": 5.0, "clothes_color": 2.5, "clothes": 2.0, "background": 2.2, "skin": 1.6,
    "glasses": 3.5, "beard": 3.0, "hat": 3.0, "expression": 2.2, "hat_color": 5.0, "beard_color": 5.0,
    "mask": 1.5,
}  # fmt: skip
OPTIONAL = ("beard", "glasses", "hat", "mask", "hair")
PLAIN_HAT_COLOR = "black"
HELD_OUT_SETS = ("identities", "combinations", "wordings", "style")
HELD_OUT_STYLE = "miniavs"
GROUP = 10
# A group is drawn with some edits to spare, since edits that turn out too alike are dropped.
CANDIDATES = 18


@dataclass(frozen=True)
class Edit:
    """One change of one attribute.

    Attributes:
        kind: what sort of change it is, a key of `wordings.TRAIN`.
        attribute: the attribute that changes.
        before: its value in the input.
        after: its value in the output.
    """

    kind: str
    attribute: str
    before: str
    after: str

    def reverse(self) -> "Edit":
        """The edit that undoes this one."""
        return Edit(_kind(self.attribute, self.after, self.before), self.attribute, self.after, self.before)


@dataclass(frozen=True)
class Person:
    """One input picture and the edits made of it.

    Attributes:
        number: the person's place in its set.
        style: the style that draws it.
        state: a value for every attribute of the style.
        edits: in training all of them are used; in a held-out set the first ten that can be told apart.
    """

    number: int
    style: Style
    state: State
    edits: tuple[Edit, ...]

    def after(self, edit: Edit) -> State:
        """The person's state after `edit`."""
        return {**self.state, edit.attribute: edit.after}

    def states(self) -> Iterator[State]:
        """The person as it is, then after each edit."""
        yield self.state
        yield from map(self.after, self.edits)


def _kind(attribute: str, before: str, after: str) -> str:
    if attribute not in OPTIONAL:
        return attribute
    if before == ABSENT:
        return f"{attribute}_add"
    if after == ABSENT:
        return f"{attribute}_remove"
    return "hair" if attribute == "hair" else f"{attribute}_change"


def draw_state(style: Style, random: Random) -> State:
    """A random value for every attribute of `style`."""
    while True:
        state = {}
        for name, values in style.attributes.items():
            present = [value for value in values if value != ABSENT]
            absent = ABSENT in values and random.random() < style.absent[name]
            state[name] = ABSENT if absent else random.choice(present)
        _settle_colors(style, state, random)
        if style.possible(state):
            return state


def _settle_colors(style: Style, state: State, random: Random) -> None:
    """Mostly gives colours that cannot be seen yet the value that "add a hat" leaves unsaid."""
    if "hat_color" in state and state["hat"] == ABSENT and random.random() < 0.4:
        state["hat_color"] = PLAIN_HAT_COLOR
    if "beard_color" in state and random.random() < 0.7:
        state["beard_color"] = plain_beard_color(style, state)


def plain_beard_color(style: Style, state: State) -> str:
    """The colour of a beard that nobody names: that of the hair, or black where no hair can be seen."""
    return "black" if "hair_color" in style.hidden(state) else state["hair_color"]


def possible_edits(style: Style, state: State, *, unseen: bool) -> dict[str, list[Edit]]:
    """All edits of `state` by attribute; with `unseen` also those that training never sees."""
    closed = style.hidden(state) | style.tied(state)
    edits: dict[str, list[Edit]] = {}
    for name, values in style.attributes.items():
        if name in closed:
            continue
        for value in values:
            changed = {**state, name: value}
            if value == state[name] or not style.possible(changed) or name in style.tied(changed):
                continue
            if unseen or not style.unseen_in(changed):
                edits.setdefault(name, []).append(
                    Edit(_kind(name, state[name], value), name, state[name], value)
                )
    return edits


def _choose(edits: dict[str, list[Edit]], count: int, random: Random) -> tuple[Edit, ...]:
    """Chooses `count` edits: by weight one of each attribute, then over again while there are any."""
    left = {name: random.sample(choices, len(choices)) for name, choices in edits.items()}
    for name, choices in left.items():
        # Taking a thing off is one edit among many that put on another; half of the time it comes first.
        if name in OPTIONAL and name != "hair" and random.random() < 0.5:
            choices.sort(key=lambda edit: edit.after != ABSENT)
    chosen: list[Edit] = []
    while len(chosen) < count and left:
        names = sorted(left, key=lambda name: random.random() ** (1 / WEIGHTS[name]), reverse=True)
        for name in names[: count - len(chosen)]:
            chosen.append(left[name].pop(0))
        left = {name: choices for name, choices in left.items() if choices}
    return tuple(chosen)


def train_people(styles: list[Style], identities: int, edits: int, seed: int) -> Iterator[Person]:
    """The people of the training set, the styles in turn; none twice, no unseen combination anywhere."""
    taken: set[tuple] = set()
    for number in range(identities):
        style = styles[number % len(styles)]
        random = Random(f"{seed}/train/{number}")
        state = draw_state(style, random)
        while style.unseen_in(state) or identity_key(style, state) in taken:
            state = draw_state(style, random)
        taken.add(identity_key(style, state))
        chosen = _choose(possible_edits(style, state, unseen=False), edits, random)
        yield Person(number, style, state, chosen)


def identity_key(style: Style, state: State) -> tuple:
    """Equal for two states that are the same picture."""
    return (style.name, *sorted(style.visible(state).items()))


def held_out_people(
    name: str, styles: list[Style], groups: int, seed: int, taken: set[tuple]
) -> Iterator[Person]:
    """People of one held-out set, none of whom is a picture in `taken`.

    Args:
        name: one of `HELD_OUT_SETS`.
        styles: the training styles, or for the set `style` that one style.
        groups: number of people.
        seed: seed of the whole data set.
        taken: the keys (`identity_key`) of every training picture, inputs and outputs.

    Yields:
        People with `CANDIDATES` edits each, none of whose results is in `taken`. Only in the set
        `combinations` inputs show a combination that training never does.
    """
    for number in range(groups):
        style = styles[number % len(styles)]
        random = Random(f"{seed}/{name}/{number}")
        combine = name == "combinations"
        while True:
            state = draw_state(style, random)
            if combine:
                for attribute, value in style.unseen[number // len(styles) % len(style.unseen)]:
                    state[attribute] = value
            fits = style.possible(state) and style.unseen_in(state) == combine
            if fits and identity_key(style, state) not in taken:
                break
        edits = {
            attribute: kept
            for attribute, choices in possible_edits(style, state, unseen=combine).items()
            if (
                kept := [
                    e for e in choices if identity_key(style, {**state, attribute: e.after}) not in taken
                ]
            )
        }
        yield Person(number, style, state, _choose(edits, CANDIDATES, random))
