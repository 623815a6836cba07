"""Open Peeps by Pablo Stanley, CC0 1.0."""

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

BLACK_HAIR = {
    "short": ("short1", "short {c} hair"),
    "side swept": ("pomp", "swept back {c} hair"),
    "dreadlocks": ("dreads1", "{c} dreadlocks"),
    "flat top": ("flatTop", "a {c} flat top"),
    "afro": ("afro", "a {c} afro"),
    "curly": ("longCurly", "long curly {c} hair"),
    "long": ("long", "long {c} hair"),
    "bob": ("bangs2", "a {c} bob"),
    "bantu knots": ("bantuKnots", "{c} bantu knots"),
    "buns": ("buns", "{c} space buns"),
    "bun with headband": ("bun", "a {c} bun with a headband"),
}
COLORED_HAIR = {
    "shoulder length": ("bangs", "shoulder-length {c} hair"),
    "bun": ("grayBun", "a {c} bun"),
    "wavy": ("grayMedium", "wavy {c} hair"),
    "side part": ("grayShort", "side-parted {c} hair"),
    "mohawk": ("mohawk", "a {c} mohawk"),
    "curly bangs": ("mediumBangs2", "curly {c} hair with bangs"),
    "quiff": ("short4", "a {c} quiff"),
    "balding": ("noHair3", "balding {c} hair"),
}
HATS = {
    "hat": ("hatHip", "a black hat", "hat"),
    "hijab": ("hijab", "a black hijab", "hijab"),
    "turban": ("turban", "a turban", "turban"),
    "beanie": ("hatBeanie", "a beanie", "beanie"),
}
GLASSES = {
    "glasses": ("glasses3", "glasses", "glasses"),
    "round glasses": ("glasses5", "round glasses", "round glasses"),
    "white glasses": ("glasses4", "white glasses", "white glasses"),
    "sunglasses": ("sunglasses", "sunglasses", "sunglasses"),
    "eyepatch": ("eyepatch", "an eyepatch", "eyepatch"),
}
BEARDS = {
    "beard": ("full2", "a beard", "beard"),
    "long beard": ("full3", "a long beard", "long beard"),
    "chin strap": ("chin", "a chin strap beard", "chin strap beard"),
    "goatee": ("goatee2", "a goatee", "goatee"),
    "moustache": ("moustache6", "a moustache", "moustache"),
    "big moustache": ("moustache3", "a big curly moustache", "big curly moustache"),
    "horseshoe moustache": ("moustache2", "a horseshoe moustache", "horseshoe moustache"),
}
FACES = {
    "happy": "smile",
    "laughing": "smileBig",
    "in love": "lovingGrin1",
    "sad": "solemn",
    "angry": "rage",
    "surprised": "awe",
    "scared": "fear",
    "sleeping": "calm",
    "serious": "serious",
    "one-eyed": "cyclops",
    "three-eyed": "monster",
    "old": "old",
}


def style() -> Style:
    """The table of the style; hats are heads of their own."""
    hats = {name: Value(text, {"head": [part]}, noun) for name, (part, text, noun) in HATS.items()}
    hair = choices("head", {**BLACK_HAIR, **COLORED_HAIR})
    return Style(
        name="openPeeps",
        fixed={},
        attributes={
            "skin": colors("skinColor", SKIN_COLORS),
            "hair": {ABSENT: Value("a bald head", {"head": ["noHair1"]}), **hair},
            "hair_color": colors("headContrastColor", HAIR_COLORS),
            "hat": {ABSENT: Value(""), **hats},
            "beard": parts("facialHair", BEARDS),
            "mask": parts("mask", {"mask": ("medicalMask", "a face mask", "face mask")}),
            "glasses": parts("accessories", GLASSES),
            "expression": expressions({name: {"face": [part]} for name, part in FACES.items()}),
            "clothes_color": colors("clothingColor", CLOTHES_COLORS),
            "background": colors("backgroundColor", BACKGROUND_COLORS),
        },
        absent={"hair": 0.06, "hat": 0.85, "beard": 0.65, "glasses": 0.55, "mask": 0.92},
        hides=(
            ("hat", present(hats), ("hair", "hair_color")),
            ("hair", (ABSENT, *BLACK_HAIR), ("hair_color",)),
        ),
        ties=(
            # These take the colour of the clothes.
            ("hat", ("hijab", "turban", "beanie"), ("clothes_color",)),
            ("hair", ("bun with headband",), ("clothes_color",)),
            ("mask", ("mask",), ("expression",)),
        ),
        excludes=(("mask", "beard"),),
        unseen=(
            (("background", "yellow"), ("clothes_color", "purple")),
            (("hair", "afro"), ("glasses", "round glasses")),
            (("hair", "long"), ("glasses", "sunglasses")),
            (("beard", "beard"), ("clothes_color", "pink")),
            (("hat", "hat"), ("background", "green")),
        ),
    )
