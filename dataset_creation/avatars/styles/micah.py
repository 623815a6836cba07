"""Micah (Avatar Illustration System) by Micah Lanier, CC BY 4.0."""

from dataset_creation.avatars.styles.style import (
    ABSENT,
    BACKGROUND_COLORS,
    CLOTHES_COLORS,
    HAIR_COLORS,
    SKIN_COLORS,
    Style,
    Value,
    colors,
    expressions,
    parts,
)

HAIR = {
    "short": ("fonze", "short {c} hair"),
    "mohawk": ("mrT", "a {c} mohawk"),
    "bob": ("dannyPhantom", "a {c} bob"),
    "long wavy": ("full", "long wavy {c} hair"),
    "shoulder length": ("pixie", "shoulder-length {c} hair"),
}
BEARDS = {
    "beard": ("beard", "a {c} beard", "beard"),
    "stubble": ("scruff", "{c} stubble", "stubble"),
}
GLASSES = {
    "round glasses": ("round", "round glasses", "round glasses"),
    "glasses": ("square", "glasses", "glasses"),
}
ACCESSORIES = {"earring": ("hoop", "a golden earring", "earring")}
CLOTHES = {
    "sweater": ("crew", "a {c} sweater", "sweater"),
    "shirt": ("collared", "a {c} shirt with a collar", "shirt"),
    "wide top": ("open", "a wide {c} top", "top"),
}
# For each name: eyes, mouth, eyebrows.
FACES = {
    "happy": ("eyes", "smile", "up"),
    "laughing": ("smiling", "laughing", "up"),
    "surprised": ("round", "surprised", "up"),
    "scared": ("round", "nervous", "up"),
    "sad": ("eyes", "sad", "down"),
    "pouting": ("eyes", "pucker", "down"),
}
FIXED_COLORS = {
    "earringColor": "f4d150",
    "eyeShadowColor": "ffffff",
    "eyebrowsColor": "000000",
    "eyesColor": "000000",
    "glassesColor": "000000",
    "mouthColor": "000000",
}


def style() -> Style:
    """The table of the style."""
    hair = {
        name: Value(text, {"hair": [part], "hairProbability": 100}) for name, (part, text) in HAIR.items()
    }
    faces = {name: dict(zip(("eyes", "mouth", "eyebrows"), ([part] for part in face), strict=True))
             for name, face in FACES.items()}  # fmt: skip
    components = {"base": ["standard"], "ears": ["attached"], "nose": ["curve"]}
    return Style(
        name="micah",
        fixed={**components, **{option: [code] for option, code in FIXED_COLORS.items()}},
        attributes={
            "skin": colors("baseColor", SKIN_COLORS),
            "hair": {ABSENT: Value("a bald head", {"hairProbability": 0}), **hair},
            "hair_color": colors("hairColor", HAIR_COLORS),
            "beard": parts("facialHair", BEARDS),
            "beard_color": colors("facialHairColor", HAIR_COLORS),
            "glasses": parts("glasses", GLASSES),
            "accessory": parts("earrings", ACCESSORIES),
            "expression": expressions(faces),
            "clothes": {
                name: Value(text, {"shirt": [part]}, noun) for name, (part, text, noun) in CLOTHES.items()
            },
            "clothes_color": colors("shirtColor", CLOTHES_COLORS),
            "background": colors("backgroundColor", BACKGROUND_COLORS),
        },
        absent={"hair": 0.1, "beard": 0.65, "glasses": 0.6, "accessory": 0.75},
        hides=(("hair", (ABSENT,), ("hair_color",)), ("beard", (ABSENT,), ("beard_color",))),
        ties=(("beard", ("beard",), ("expression",)),),  # it hides most of the mouth
        unseen=(
            (("hair_color", "gray"), ("clothes_color", "pink")),
            (("hair", "mohawk"), ("glasses", "glasses")),
            (("skin", "dark"), ("background", "yellow")),
        ),
    )
