"""Avataaars by Pablo Stanley, free for personal and commercial use."""

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
    drawn_by,
    expressions,
    face,
    parts,
    present,
)

HAIR = {
    "short": ("shortFlat", "short {c} hair"),
    "buzz cut": ("theCaesar", "a {c} buzz cut"),
    "short curly": ("shortCurly", "short curly {c} hair"),
    "side swept": ("shortWaved", "swept back {c} hair"),
    "shaggy": ("shaggy", "shaggy {c} hair"),
    "mullet": ("shaggyMullet", "a {c} mullet"),
    "spiky curls": ("dreads02", "wild spiky {c} hair"),
    "quiff": ("frizzle", "a {c} quiff"),
    "balding": ("sides", "balding {c} hair"),
    "bun": ("bun", "a {c} bun"),
    "bob": ("bob", "a {c} bob"),
    "shoulder length": ("longButNotTooLong", "shoulder-length {c} hair"),
    "curly": ("curly", "big curly {c} hair"),
    "long wavy": ("curvy", "long wavy {c} hair"),
    "long straight": ("straight02", "long straight {c} hair"),
    "dreadlocks": ("dreads", "long {c} dreadlocks"),
    "afro": ("fro", "a {c} afro"),
}
HATS = {
    "hat": ("hat", "a {c} hat", "hat"),
    "hijab": ("hijab", "a {c} hijab", "hijab"),
    "turban": ("turban", "a {c} turban", "turban"),
    "winter hat": ("winterHat1", "a {c} winter hat", "winter hat"),
    "knitted hat": ("winterHat02", "a {c} bobble hat with ear flaps", "bobble hat"),
    "beanie": ("winterHat03", "a {c} beanie", "beanie"),
    "cat hat": ("winterHat04", "a {c} hat with cat ears", "cat ear hat"),
}
CLOTHES = {
    "hoodie": ("hoodie", "a {c} hoodie", "hoodie"),
    "overalls": ("overall", "{c} overalls", "overalls"),
    "blazer": ("blazerAndShirt", "a {c} blazer", "blazer"),
    "sweater": ("collarAndSweater", "a {c} sweater with a collar", "sweater"),
    "v-neck": ("shirtVNeck", "a {c} v-neck shirt", "shirt"),
    "t-shirt": ("shirtCrewNeck", "a plain {c} t-shirt", "t-shirt"),
}
PRINTS = ("bear", "bat", "skull")
GLASSES = {
    "glasses": ("prescription02", "glasses", "glasses"),
    "round glasses": ("round", "round glasses", "round glasses"),
    "sunglasses": ("sunglasses", "sunglasses", "sunglasses"),
    "big sunglasses": ("kurt", "big dark sunglasses", "big sunglasses"),
    "eyepatch": ("eyepatch", "an eyepatch", "eyepatch"),
}
BEARDS = {
    "beard": ("beardMedium", "a {c} beard", "beard"),
    "stubble": ("beardLight", "a short {c} beard", "short beard"),
    "long beard": ("beardMajestic", "a long {c} beard", "long beard"),
    "moustache": ("moustacheMagnum", "a {c} moustache", "moustache"),
    "curled moustache": ("moustacheFancy", "a thin {c} moustache", "thin moustache"),
}
FACES = {
    "happy": face("happy", "smile", "default"),
    "neutral": face("default", "serious", "default"),
    "sad": face("default", "sad", "sadConcerned"),
    "crying": face("cry", "sad", "sadConcerned"),
    "surprised": face("surprised", "disbelief", "raisedExcited"),
    "angry": face("default", "grimace", "angry"),
    "in love": face("hearts", "smile", "default"),
    "winking": face("wink", "twinkle", "default"),
    "sleeping": face("closed", "serious", "default"),
    "dizzy": face("xDizzy", "concerned", "default"),
    "silly": face("default", "tongue", "default"),
    "screaming": face("default", "screamOpen", "raisedExcited"),
    "bored": face("eyeRoll", "serious", "raisedExcited"),
}


def _clothes() -> Values:
    clothes = {
        name: Value(text, {"clothing": [part], "clothingGraphic": ["bear"]}, noun)
        for name, (part, text, noun) in CLOTHES.items()
    }
    for image in PRINTS:
        text, noun = f"a {{c}} t-shirt with a {image} on it", f"{image} t-shirt"
        clothes[noun] = Value(text, {"clothing": ["graphicShirt"], "clothingGraphic": [image]}, noun)
    return clothes


def style() -> Style:
    """The table of the style; hats are drawn in the place of hair."""
    hats = drawn_by("top", HATS)
    hair = {name: Value(text, {"top": [part], "topProbability": 100}) for name, (part, text) in HAIR.items()}
    return Style(
        name="avataaars",
        fixed={
            "style": ["default"],
            "base": ["default"],
            "nose": ["default"],
            "accessoriesColor": ["262e33"],
        },
        attributes={
            "skin": colors("skinColor", SKIN_COLORS),
            "hair": {ABSENT: Value("a bald head", {"top": ["bob"], "topProbability": 0}), **hair},
            "hair_color": colors("hairColor", HAIR_COLORS),
            "hat": hats,
            "hat_color": colors("hatColor", CLOTHES_COLORS),
            "beard": parts("facialHair", BEARDS),
            "beard_color": colors("facialHairColor", HAIR_COLORS),
            "glasses": parts("accessories", GLASSES),
            "expression": expressions(FACES),
            "clothes": _clothes(),
            "clothes_color": colors("clothesColor", CLOTHES_COLORS),
            "background": colors("backgroundColor", BACKGROUND_COLORS),
        },
        absent={"hair": 0.07, "hat": 0.7, "beard": 0.65, "glasses": 0.55},
        hides=(
            ("hat", present(hats), ("hair", "hair_color")),
            ("hair", (ABSENT,), ("hair_color",)),
            ("hat", (ABSENT,), ("hat_color",)),
            ("beard", (ABSENT,), ("beard_color",)),
        ),
        unseen=(
            (("hair_color", "pink"), ("clothes_color", "green")),
            (("hair_color", "blue"), ("clothes_color", "yellow")),
            (("hat", "beanie"), ("glasses", "round glasses")),
            (("hair", "afro"), ("glasses", "sunglasses")),
            (("beard", "beard"), ("background", "purple")),
        ),
    )
