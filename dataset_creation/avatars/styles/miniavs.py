"""Miniavs by Webpixels, CC BY 4.0; kept for evaluation, never trained on."""

from dataset_creation.avatars.styles.style import (
    BACKGROUND_COLORS,
    CLOTHES_COLORS,
    HAIR_COLORS,
    SKIN_COLORS,
    Style,
    choices,
    colors,
    parts,
    present,
)

HAIR = {
    "short": ("stylish", "short {c} hair"),
    "balding": ("slaughter", "balding {c} hair"),
    "ponytail": ("ponyTail", "a {c} ponytail"),
    "long straight": ("long", "long straight {c} hair"),
    "short curly": ("curly", "short curly {c} hair"),
    "quiff": ("elvis", "a {c} quiff"),
}
BEARDS = {
    "moustache": ("freddy", "a moustache", "moustache"),
    "thin moustache": ("pencilThinBeard", "a thin moustache", "thin moustache"),
    "horseshoe moustache": ("horshoe", "a horseshoe moustache", "horseshoe moustache"),
}


def style() -> Style:
    """The table of the style."""
    beards = parts("mustache", BEARDS)
    return Style(
        name="miniavs",
        fixed={
            "body": ["tShirt"],
            "head": ["normal"],
            "mouth": ["default"],
            "eyes": ["normal"],
            "blushes": ["default"],
            "blushesProbability": 0,
        },
        attributes={
            "skin": colors("skinColor", SKIN_COLORS),
            "hair": choices("hair", HAIR),
            "hair_color": colors("hairColor", HAIR_COLORS),
            "beard": beards,
            "glasses": parts("glasses", {"glasses": ("normal", "glasses", "glasses")}),
            "clothes_color": colors("bodyColor", CLOTHES_COLORS),
            "background": colors("backgroundColor", BACKGROUND_COLORS),
        },
        absent={"beard": 0.65, "glasses": 0.6},
        ties=(("beard", present(beards), ("hair_color",)),),  # the moustache has the hair's colour
    )
