"""ToonHead by Johan Melin, CC BY 4.0."""

from dataset_creation.avatars.styles.style import (
    ABSENT,
    BACKGROUND_COLORS,
    CLOTHES_COLORS,
    HAIR_COLORS,
    SKIN_COLORS,
    Style,
    Value,
    Values,
    colors,
    expressions,
    face,
    parts,
    present,
)

# For each name: front hair, hair behind the head, text.
HAIR = {
    "short": ("sideComed", None, "short {c} hair"),
    "undercut": ("undercut", None, "a {c} undercut"),
    "spiky": ("spiky", None, "spiky {c} hair"),
    "bun": ("bun", None, "a {c} bun"),
    "long straight": ("sideComed", "longStraight", "long straight {c} hair"),
    "long wavy": ("sideComed", "longWavy", "long wavy {c} hair"),
    "shoulder length": ("sideComed", "shoulderHigh", "shoulder-length {c} hair"),
    "bob": ("sideComed", "neckHigh", "a {c} bob"),
    "mullet": ("spiky", "neckHigh", "a spiky {c} mullet"),
    "bun and waves": ("bun", "longWavy", "a {c} bun with long wavy hair"),
}
BEARDS = {
    "beard": ("fullBeard", "a beard", "beard"),
    "long beard": ("longBeard", "a long beard", "long beard"),
    "moustache": ("moustacheTwirl", "a moustache", "moustache"),
}
CLOTHES = {
    "turtleneck": ("turtleNeck", "a {c} turtleneck", "turtleneck"),
    "jacket": ("openJacket", "an open {c} jacket", "jacket"),
    "dress": ("dress", "a {c} dress", "dress"),
    "shirt": ("shirt", "a {c} sweater with a collar", "sweater"),
    "t-shirt": ("tShirt", "a {c} t-shirt", "t-shirt"),
}
FACES = {
    "happy": face("happy", "smile", "happy"),
    "laughing": face("bow", "laugh", "raised"),
    "sad": face("humble", "sad", "sad"),
    "angry": face("wide", "angry", "angry"),
    "surprised": face("wide", "agape", "raised"),
    "winking": face("wink", "smile", "raised"),
    "sleeping": face("humble", "smile", "neutral"),
}


def _hair() -> Values:
    hair = {ABSENT: Value("a bald head", {"hairProbability": 0, "rearHairProbability": 0})}
    for name, (front, rear, text) in HAIR.items():
        behind = {"rearHair": [rear or "neckHigh"], "rearHairProbability": 100 if rear else 0}
        hair[name] = Value(text, {"hair": [front], "hairProbability": 100, **behind})
    return hair


def style() -> Style:
    """The table of the style."""
    beards = parts("beard", BEARDS)
    return Style(
        name="toonHead",
        fixed={"body": ["body"], "head": ["head"]},
        attributes={
            "skin": colors("skinColor", SKIN_COLORS),
            "hair": _hair(),
            "hair_color": colors("hairColor", HAIR_COLORS),
            "beard": beards,
            "expression": expressions(FACES),
            "clothes": {
                name: Value(text, {"clothes": [part]}, noun) for name, (part, text, noun) in CLOTHES.items()
            },
            "clothes_color": colors("clothesColor", CLOTHES_COLORS),
            "background": colors("backgroundColor", BACKGROUND_COLORS),
        },
        absent={"hair": 0.07, "beard": 0.65},
        hides=(("hair", (ABSENT,), ("hair_color",)),),
        ties=(("beard", present(beards), ("hair_color",)),),  # the beard has the hair's colour
        unseen=(
            (("hair_color", "red"), ("clothes_color", "blue")),
            (("hair_color", "green"), ("background", "orange")),
            (("hair", "bun"), ("clothes", "dress")),
            (("beard", "long beard"), ("background", "pink")),
        ),
    )
