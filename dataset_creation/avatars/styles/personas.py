"""Personas by Draftbit, CC BY 4.0."""

from dataset_creation.avatars.styles.style import (
    ABSENT,
    BACKGROUND_COLORS,
    CLOTHES_COLORS,
    HAIR_COLORS,
    SKIN_COLORS,
    Style,
    Value,
    choices,
    colors,
    expressions,
    parts,
    present,
)

HAIR = {
    "short": ("shortCombover", "short {c} hair"),
    "side shave": ("sideShave", "side-shaved {c} hair"),
    "flat top": ("curlyHighTop", "a curly {c} flat top"),
    "bob": ("bobCut", "a {c} bob"),
    "curly": ("curly", "big curly {c} hair"),
    "pigtails": ("pigtails", "{c} pigtails"),
    "curly bun": ("curlyBun", "a curly {c} bun with a headband"),
    "buzz cut": ("buzzcut", "a {c} buzz cut"),
    "balding": ("balding", "balding {c} hair"),
    "quiff": ("fade", "a {c} quiff"),
    "long straight": ("extraLong", "long straight {c} hair"),
    "mohawk": ("mohawk", "a {c} mohawk"),
}
BEARDS = {
    "beard": ("beardMustache", "a beard", "beard"),
    "moustache": ("walrus", "a moustache", "moustache"),
    "curled moustache": ("pyramid", "a thin moustache", "thin moustache"),
    "goatee": ("goatee", "a goatee", "goatee"),
    "stubble": ("shadow", "stubble", "stubble"),
}
HATS = {
    "cap": ("cap", "an orange cap", "cap"),
    "beanie": ("beanie", "a red beanie", "beanie"),
}
GLASSES = {
    "glasses": ("glasses", "glasses", "glasses"),
    "sunglasses": ("sunglasses", "sunglasses", "sunglasses"),
}
CLOTHES = {
    "sweater": ("rounded", "a {c} sweater", "sweater"),
    "t-shirt": ("squared", "a plain {c} t-shirt", "t-shirt"),
    "checkered shirt": ("checkered", "a checkered {c} shirt", "shirt"),
}
# For each name: eyes, mouth.
FACES = {
    "happy": ("happy", "bigSmile"),
    "neutral": ("open", "smirk"),
    "sad": ("open", "frown"),
    "surprised": ("open", "surprise"),
    "winking": ("wink", "smile"),
    "sleeping": ("sleep", "lips"),
}


def style() -> Style:
    """The table of the style; glasses are drawn in the place of eyes, hats in the place of hair."""
    beards = parts("facialHair", BEARDS)
    hats = {name: Value(text, {"hair": [part]}, noun) for name, (part, text, noun) in HATS.items()}
    glasses = {name: Value(text, {"eyes": [part]}, noun) for name, (part, text, noun) in GLASSES.items()}
    faces = {name: {"eyes": [eyes], "mouth": [mouth]} for name, (eyes, mouth) in FACES.items()}
    return Style(
        name="personas",
        fixed={"nose": ["mediumRound"]},
        attributes={
            "skin": colors("skinColor", SKIN_COLORS),
            "hair": {ABSENT: Value("a bald head", {"hair": ["bald"]}), **choices("hair", HAIR)},
            "hair_color": colors("hairColor", HAIR_COLORS),
            "hat": {ABSENT: Value(""), **hats},
            "beard": beards,
            "expression": expressions(faces),
            "glasses": {ABSENT: Value(""), **glasses},
            "clothes": {
                name: Value(text, {"body": [part]}, noun) for name, (part, text, noun) in CLOTHES.items()
            },
            "clothes_color": colors("clothingColor", CLOTHES_COLORS),
            "background": colors("backgroundColor", BACKGROUND_COLORS),
        },
        absent={"hair": 0.07, "hat": 0.85, "beard": 0.65, "glasses": 0.6},
        hides=(
            ("hat", present(hats), ("hair", "hair_color")),
            ("hair", (ABSENT,), ("hair_color",)),
            ("glasses", present(glasses), ("expression",)),
        ),
        ties=(("beard", present(beards), ("hair_color",)),),  # the beard has the hair's colour
        unseen=(
            (("hair_color", "purple"), ("clothes_color", "red")),
            (("hair", "bob"), ("glasses", "sunglasses")),
            (("beard", "beard"), ("background", "blue")),
        ),
    )
