"""Big Smile (Custom Avatar) by Ashley Seo, CC BY 4.0."""

from dataset_creation.avatars.styles.style import (
    BACKGROUND_COLORS,
    HAIR_COLORS,
    SKIN_COLORS,
    Style,
    choices,
    colors,
    drawn_by,
    expressions,
)

HAIR = {
    "short": ("shortHair", "short {c} hair"),
    "mohawk": ("mohawk", "a {c} mohawk"),
    "wavy": ("wavyBob", "wavy {c} hair"),
    "bowl cut": ("bowlCutHair", "a {c} bowl cut"),
    "curly": ("curlyBob", "big curly {c} hair"),
    "long straight": ("straightHair", "long straight {c} hair"),
    "braids": ("braids", "{c} braids"),
    "buzz cut": ("shavedHead", "a {c} buzz cut"),
    "bun": ("bunHair", "a {c} bun"),
    "curly bun": ("froBun", "a curly {c} bun"),
    "bob": ("bangs", "a {c} bob"),
    "side shave": ("halfShavedHead", "side-shaved {c} hair"),
    "short curly": ("curlyShortHair", "short curly {c} hair"),
}
GLASSES = {
    "round glasses": ("glasses", "round glasses", "round glasses"),
    "sunglasses": ("sunglasses", "sunglasses", "sunglasses"),
}
ACCESSORIES = {
    "cat ears": ("catEars", "cat ears", "cat ears"),
    "crown": ("sailormoonCrown", "a golden crown", "crown"),
    "clown nose": ("clownNose", "a clown nose", "clown nose"),
    "sleep mask": ("sleepMask", "a sleep mask", "sleep mask"),
}
# For each name: eyes, mouth.
FACES = {
    "happy": ("normal", "openedSmile"),
    "laughing": ("cheery", "teethSmile"),
    "sad": ("sad", "openSad"),
    "angry": ("angry", "unimpressed"),
    "winking": ("winking", "awkwardSmile"),
    "sleeping": ("sleepy", "kawaii"),
    "starstruck": ("starstruck", "openedSmile"),
    "serious": ("normal", "unimpressed"),
}


def style() -> Style:
    """The table of the style; all that is worn takes the same place, so there is one such thing at most."""
    faces = {name: {"eyes": [eyes], "mouth": [mouth]} for name, (eyes, mouth) in FACES.items()}
    return Style(
        name="bigSmile",
        fixed={"face": ["base"], "accessoriesProbability": 0},
        attributes={
            "skin": colors("skinColor", SKIN_COLORS),
            "hair": choices("hair", HAIR),
            "hair_color": colors("hairColor", HAIR_COLORS),
            "beard": drawn_by("accessories", {"moustache": ("mustache", "a brown moustache", "moustache")}),
            "mask": drawn_by("accessories", {"mask": ("faceMask", "a face mask", "face mask")}),
            "glasses": drawn_by("accessories", GLASSES),
            "accessory": drawn_by("accessories", ACCESSORIES),
            "expression": expressions(faces),
            "background": colors("backgroundColor", BACKGROUND_COLORS),
        },
        absent={"beard": 0.9, "mask": 0.92, "glasses": 0.75, "accessory": 0.75},
        ties=(("mask", ("mask",), ("expression",)),),
        excludes=(
            ("beard", "mask"),
            ("beard", "glasses"),
            ("beard", "accessory"),
            ("mask", "glasses"),
            ("mask", "accessory"),
            ("glasses", "accessory"),
        ),
        unseen=(
            (("hair_color", "pink"), ("background", "green")),
            (("hair", "bun"), ("glasses", "sunglasses")),
            (("skin", "yellow"), ("hair_color", "blue")),
        ),
    )
