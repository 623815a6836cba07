"""An avatar style: which attributes it has, their values in words, and the DiceBear options that draw them.

A style is a table. An identity is one value for every attribute; its DiceBear options are the `fixed` ones
and then those of each attribute's value, in the order of the table (so that a hat overwrites the hair that it
covers). Every option is pinned, probabilities to 0 or 100, so that another value of one attribute changes
nothing else.

Words are shared between styles on purpose ("glasses", "a beard", "long straight hair"): what the model learns
on one style can then serve another. Within a style no two values look alike at 64 pixels.
"""

from dataclasses import dataclass, field

ABSENT = "none"
BALD = "a bald head"  # the text of hair that is absent

HAIR_COLORS = {
    "black": "1f1b1b", "brown": "74432a", "blonde": "e8c468", "red": "d0311e", "gray": "979797",
    "white": "f4f4f4", "pink": "ff7ab8", "blue": "2f66e0", "green": "37a24a", "purple": "8a3fd0",
}  # fmt: skip
CLOTHES_COLORS = {
    "red": "d93434", "orange": "f5892a", "yellow": "f5d33d", "green": "37a24a", "blue": "2f66e0",
    "purple": "8a3fd0", "pink": "ff7ab8", "white": "f7f7f7", "black": "262626", "gray": "979797",
}  # fmt: skip
BACKGROUND_COLORS = {
    "light blue": "b6e3f4", "blue": "4a78e8", "green": "79cf79", "yellow": "ffe66b", "pink": "ffb0d0",
    "purple": "b58cf2", "orange": "ffa654", "red": "e8584f", "white": "ffffff", "gray": "bcbcbc",
}  # fmt: skip
SKIN_COLORS = {
    "pale": "ffe0c4", "tan": "d9975f", "brown": "a35e33", "dark": "56331f", "yellow": "f8d44c",
    "green": "7cc56b",
}  # fmt: skip


@dataclass(frozen=True)
class Value:
    """One value of an attribute.

    Attributes:
        text: the words, with their article; `{c}` is where a colour may stand ("a {c} bob", "long {c} hair").
        options: the DiceBear options that draw it.
    """

    text: str
    options: dict[str, object] = field(default_factory=dict)


Values = dict[str, Value]
State = dict[str, str]


@dataclass(frozen=True)
class Style:
    """One DiceBear style as a table.

    Attributes:
        name: the style's name in `@dicebear/collection`.
        fixed: options that never change.
        attributes: for every attribute its values by name, in drawing order. The name is what stands in
            "remove the …".
        absent: how often an attribute that has the value `ABSENT` takes it.
        hides: (attribute, its values, attributes that then cannot be seen).
        ties: (attribute, its values, attributes that then must not be edited since something else would move
            along).
        excludes: pairs of attributes of which at most one is present.
        unseen: pairs of (attribute, value) that never occur together in training.
    """

    name: str
    fixed: dict[str, object]
    attributes: dict[str, Values]
    absent: dict[str, float]
    hides: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = ()
    ties: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = ()
    excludes: tuple[tuple[str, str], ...] = ()
    unseen: tuple[tuple[tuple[str, str], tuple[str, str]], ...] = ()

    def hidden(self, state: State) -> set[str]:
        """Names of the attributes that cannot be seen in `state`."""
        return {
            name for attribute, values, names in self.hides if state[attribute] in values for name in names
        }

    def tied(self, state: State) -> set[str]:
        """Names of the attributes that must not be edited in `state`."""
        return {
            name for attribute, values, names in self.ties if state[attribute] in values for name in names
        }

    def visible(self, state: State) -> State:
        """`state` without what cannot be seen: two equal results are one picture."""
        hidden = self.hidden(state)
        return {name: value for name, value in state.items() if name not in hidden}

    def options(self, state: State) -> dict[str, object]:
        """The DiceBear options that draw `state`."""
        options = dict(self.fixed)
        for name, values in self.attributes.items():
            options.update(values[state[name]].options)
        return options

    def unseen_in(self, state: State) -> bool:
        """Whether `state` shows a combination that training never sees."""
        seen = self.visible(state)
        return any(seen.get(a) == u and seen.get(b) == v for (a, u), (b, v) in self.unseen)

    def possible(self, state: State) -> bool:
        """Whether no two attributes exclude each other in `state`."""
        return not any(state[a] != ABSENT and state[b] != ABSENT for a, b in self.excludes)


def colors(option: str, codes: dict[str, str]) -> Values:
    """Values of a colour: {name: hexadecimal code}."""
    return {name: Value(name, {option: [code]}) for name, code in codes.items()}


def choices(option: str, table: dict[str, str | tuple[str, str]], **more: object) -> Values:
    """Values of a component, each drawn by its part and the options `more`.

    The table is {text: part}, or {text: (part, name)} where the name is not the text without article and
    colour.
    """
    values = {}
    for text, entry in table.items():
        bare = " ".join(word for word in text.split() if word not in ("a", "an", "{c}"))
        part, name = (entry, bare) if isinstance(entry, str) else entry
        values[name] = Value(text, {option: [part], **more})
    return values


def parts(option: str, table: dict[str, str | tuple[str, str]]) -> Values:
    """Values of a component that can be left out, by a table as for `choices`."""
    shown = choices(option, table, **{f"{option}Probability": 100})
    return {ABSENT: Value("", {f"{option}Probability": 0}), **shown}


def present(values: Values) -> tuple[str, ...]:
    """The names of all values but `ABSENT`."""
    return tuple(name for name in values if name != ABSENT)


def faces(options: str, table: dict[str, str]) -> Values:
    """Values of the whole face: {name: a part for each option}; the name fits "make him …"."""
    return {
        name: Value(name, {o: [part] for o, part in zip(options.split(), drawn.split(), strict=True)})
        for name, drawn in table.items()
    }


def skin_and_background(attributes: dict[str, Values]) -> dict[str, Values]:
    """`attributes` between the two that all styles have under the same names."""
    skin, background = colors("skinColor", SKIN_COLORS), colors("backgroundColor", BACKGROUND_COLORS)
    return {"skin": skin, **attributes, "background": background}
