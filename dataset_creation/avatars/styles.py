"""The avatar styles as tables; `style.py` says what a style is and how a table is read."""

from dataset_creation.avatars.style import (
    ABSENT,
    BALD,
    CLOTHES_COLORS,
    HAIR_COLORS,
    Style,
    Value,
    choices,
    colors,
    faces,
    parts,
    present,
    skin_and_background,
)


def avataaars() -> Style:
    """Avataaars by Pablo Stanley, free for personal and commercial use; hats are drawn in hair's place."""
    hair = choices("top", {
        "short {c} hair": "shortFlat", "a {c} buzz cut": "theCaesar", "short curly {c} hair": "shortCurly",
        "swept back {c} hair": "shortWaved", "shaggy {c} hair": "shaggy", "a {c} mullet": "shaggyMullet",
        "wild spiky {c} hair": "dreads02", "a {c} quiff": "frizzle", "balding {c} hair": "sides",
        "a {c} bun": "bun", "a {c} bob": "bob", "shoulder-length {c} hair": "longButNotTooLong",
        "big curly {c} hair": "curly", "long wavy {c} hair": "curvy", "long straight {c} hair": "straight02",
        "long {c} dreadlocks": "dreads", "a {c} afro": "fro",
    }, topProbability=100)  # fmt: skip
    hats = choices("top", {
        "a {c} hat": "hat", "a {c} hijab": "hijab", "a {c} turban": "turban",
        "a {c} winter hat": "winterHat1", "a {c} bobble hat with ear flaps": ("winterHat02", "bobble hat"),
        "a {c} beanie": "winterHat03", "a {c} hat with cat ears": ("winterHat04", "cat ear hat"),
    }, topProbability=100)  # fmt: skip
    clothes = choices("clothing", {
        "a {c} hoodie": "hoodie", "{c} overalls": "overall", "a {c} blazer": "blazerAndShirt",
        "a {c} sweater with a collar": ("collarAndSweater", "sweater"),
        "a {c} v-neck shirt": ("shirtVNeck", "shirt"), "a plain {c} t-shirt": ("shirtCrewNeck", "t-shirt"),
    }, clothingGraphic=["bear"])  # fmt: skip
    for image in ("bear", "bat", "skull"):
        options: dict[str, object] = {"clothing": ["graphicShirt"], "clothingGraphic": [image]}
        clothes[f"{image} t-shirt"] = Value(f"a {{c}} t-shirt with a {image} on it", options)
    return Style(
        name="avataaars",
        fixed={**{part: ["default"] for part in ("style", "base", "nose")}, "accessoriesColor": ["262e33"]},
        attributes=skin_and_background({
            "hair": {ABSENT: Value(BALD, {"top": ["bob"], "topProbability": 0}), **hair},
            "hair_color": colors("hairColor", HAIR_COLORS),
            "hat": {ABSENT: Value(""), **hats},
            "hat_color": colors("hatColor", CLOTHES_COLORS),
            "beard": parts("facialHair", {
                "a {c} beard": "beardMedium", "a short {c} beard": "beardLight",
                "a long {c} beard": "beardMajestic", "a {c} moustache": "moustacheMagnum",
                "a thin {c} moustache": "moustacheFancy",
            }),
            "beard_color": colors("facialHairColor", HAIR_COLORS),
            "glasses": parts("accessories", {
                "glasses": "prescription02", "round glasses": "round", "sunglasses": "sunglasses",
                "big dark sunglasses": ("kurt", "big sunglasses"), "an eyepatch": "eyepatch",
            }),
            "expression": faces("eyes mouth eyebrows", {
                "happy": "happy smile default", "neutral": "default serious default",
                "sad": "default sad sadConcerned", "crying": "cry sad sadConcerned",
                "surprised": "surprised disbelief raisedExcited", "angry": "default grimace angry",
                "in love": "hearts smile default", "winking": "wink twinkle default",
                "sleeping": "closed serious default", "dizzy": "xDizzy concerned default",
                "silly": "default tongue default", "screaming": "default screamOpen raisedExcited",
                "bored": "eyeRoll serious raisedExcited",
            }),
            "clothes": clothes,
            "clothes_color": colors("clothesColor", CLOTHES_COLORS),
        }),
        absent={"hair": 0.07, "hat": 0.7, "beard": 0.65, "glasses": 0.55},
        hides=(
            ("hat", tuple(hats), ("hair", "hair_color")),
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
    )  # fmt: skip


def open_peeps() -> Style:
    """Open Peeps by Pablo Stanley, CC0 1.0; hats are heads of their own."""
    black_hair = choices("head", {
        "short {c} hair": "short1", "swept back {c} hair": "pomp", "{c} dreadlocks": "dreads1",
        "a {c} flat top": "flatTop", "a {c} afro": "afro", "long curly {c} hair": "longCurly",
        "long {c} hair": "long", "a {c} bob": "bangs2", "{c} bantu knots": "bantuKnots",
        "{c} space buns": "buns", "a {c} bun with a headband": "bun",
    })  # fmt: skip
    colored_hair = choices("head", {
        "shoulder-length {c} hair": "bangs", "a {c} bun": "grayBun", "wavy {c} hair": "grayMedium",
        "side-parted {c} hair": "grayShort", "a {c} mohawk": "mohawk",
        "curly {c} hair with bangs": "mediumBangs2", "a {c} quiff": "short4", "balding {c} hair": "noHair3",
    })  # fmt: skip
    hats = choices("head", {
        "a black hat": ("hatHip", "hat"), "a black hijab": ("hijab", "hijab"), "a turban": "turban",
        "a beanie": "hatBeanie",
    })  # fmt: skip
    return Style(
        name="openPeeps",
        fixed={},
        attributes=skin_and_background({
            "hair": {ABSENT: Value(BALD, {"head": ["noHair1"]}), **black_hair, **colored_hair},
            "hair_color": colors("headContrastColor", HAIR_COLORS),
            "hat": {ABSENT: Value(""), **hats},
            "beard": parts("facialHair", {
                "a beard": "full2", "a long beard": "full3", "a chin strap beard": "chin",
                "a goatee": "goatee2", "a moustache": "moustache6", "a big curly moustache": "moustache3",
                "a horseshoe moustache": "moustache2",
            }),
            "mask": parts("mask", {"a face mask": "medicalMask"}),
            "glasses": parts("accessories", {
                "glasses": "glasses3", "round glasses": "glasses5", "white glasses": "glasses4",
                "sunglasses": "sunglasses", "an eyepatch": "eyepatch",
            }),
            "expression": faces("face", {
                "happy": "smile", "laughing": "smileBig", "in love": "lovingGrin1", "sad": "solemn",
                "angry": "rage", "surprised": "awe", "scared": "fear", "sleeping": "calm",
                "serious": "serious", "one-eyed": "cyclops", "three-eyed": "monster", "old": "old",
            }),
            "clothes_color": colors("clothingColor", CLOTHES_COLORS),
        }),
        absent={"hair": 0.06, "hat": 0.85, "beard": 0.65, "glasses": 0.55, "mask": 0.92},
        hides=(
            ("hat", tuple(hats), ("hair", "hair_color")),
            ("hair", (ABSENT, *black_hair), ("hair_color",)),
        ),
        ties=(
            # These take the colour of the clothes.
            ("hat", ("hijab", "turban", "beanie"), ("clothes_color",)),
            ("hair", ("bun with headband",), ("clothes_color",)),
            ("mask", ("face mask",), ("expression",)),
        ),
        excludes=(("mask", "beard"),),
        unseen=(
            (("background", "yellow"), ("clothes_color", "purple")),
            (("hair", "afro"), ("glasses", "round glasses")),
            (("hair", "long hair"), ("glasses", "sunglasses")),
            (("beard", "beard"), ("clothes_color", "pink")),
            (("hat", "hat"), ("background", "green")),
        ),
    )  # fmt: skip


def toon_head() -> Style:
    """ToonHead by Johan Melin, CC BY 4.0; long hair is a front and what hangs behind the head."""
    hair = {ABSENT: Value(BALD, {"hairProbability": 0, "rearHairProbability": 0})}
    for text, drawn in {
        "short {c} hair": "sideComed", "a {c} undercut": "undercut", "spiky {c} hair": "spiky",
        "a {c} bun": "bun", "long straight {c} hair": "sideComed longStraight",
        "long wavy {c} hair": "sideComed longWavy", "shoulder-length {c} hair": "sideComed shoulderHigh",
        "a {c} bob": "sideComed neckHigh", "a spiky {c} mullet": "spiky neckHigh",
        "a {c} bun with long wavy hair": "bun longWavy",
    }.items():  # fmt: skip
        front, _, rear = drawn.partition(" ")
        behind = {"rearHair": [rear or "neckHigh"], "rearHairProbability": 100 if rear else 0}
        hair |= choices("hair", {text: front}, hairProbability=100, **behind)
    beards = parts("beard", {
        "a beard": "fullBeard", "a long beard": "longBeard", "a moustache": "moustacheTwirl",
    })  # fmt: skip
    return Style(
        name="toonHead",
        fixed={"body": ["body"], "head": ["head"]},
        attributes=skin_and_background({
            "hair": hair,
            "hair_color": colors("hairColor", HAIR_COLORS),
            "beard": beards,
            "expression": faces("eyes mouth eyebrows", {
                "happy": "happy smile happy", "laughing": "bow laugh raised", "sad": "humble sad sad",
                "angry": "wide angry angry", "surprised": "wide agape raised", "winking": "wink smile raised",
                "sleeping": "humble smile neutral",
            }),
            "clothes": choices("clothes", {
                "a {c} turtleneck": "turtleNeck", "an open {c} jacket": ("openJacket", "jacket"),
                "a {c} dress": "dress", "a {c} sweater with a collar": ("shirt", "sweater"),
                "a {c} t-shirt": "tShirt",
            }),
            "clothes_color": colors("clothesColor", CLOTHES_COLORS),
        }),
        absent={"hair": 0.07, "beard": 0.65},
        hides=(("hair", (ABSENT,), ("hair_color",)),),
        ties=(("beard", present(beards), ("hair_color",)),),  # the beard has the hair's colour
        unseen=(
            (("hair_color", "red"), ("clothes_color", "blue")),
            (("hair_color", "green"), ("background", "orange")),
            (("hair", "bun"), ("clothes", "dress")),
            (("beard", "long beard"), ("background", "pink")),
        ),
    )  # fmt: skip


def miniavs() -> Style:
    """Miniavs by Webpixels, CC BY 4.0; kept for evaluation, never trained on."""
    beards = parts("mustache", {
        "a moustache": "freddy", "a thin moustache": "pencilThinBeard", "a horseshoe moustache": "horshoe",
    })  # fmt: skip
    return Style(
        name="miniavs",
        fixed={
            "body": ["tShirt"], "head": ["normal"], "mouth": ["default"], "eyes": ["normal"],
            "blushes": ["default"], "blushesProbability": 0,
        },
        attributes=skin_and_background({
            "hair": choices("hair", {
                "short {c} hair": "stylish", "balding {c} hair": "slaughter", "a {c} ponytail": "ponyTail",
                "long straight {c} hair": "long", "short curly {c} hair": "curly", "a {c} quiff": "elvis",
            }),
            "hair_color": colors("hairColor", HAIR_COLORS),
            "beard": beards,
            "glasses": parts("glasses", {"glasses": "normal"}),
            "clothes_color": colors("bodyColor", CLOTHES_COLORS),
        }),
        absent={"beard": 0.65, "glasses": 0.6},
        ties=(("beard", present(beards), ("hair_color",)),),  # the moustache has the hair's colour
    )  # fmt: skip


def styles() -> dict[str, Style]:
    """All styles by name."""
    return {style.name: style for style in (avataaars(), open_peeps(), toon_head(), miniavs())}
