"""Instructions to try: for the embedded model of drawn avatars, and for a model of photographs."""

from __future__ import annotations

import random

# In the words that the model was trained with. None of them takes for granted what a picture may lack.
AVATARS = (
    "add sunglasses",
    "put round glasses on them",
    "add an eyepatch",
    "put a red beanie on their head",
    "add a blue hat",
    "make them wear a turban",
    "give them a long beard",
    "add a moustache",
    "make their hair pink",
    "dye their hair blue",
    "give them long blonde hair",
    "give them short curly red hair",
    "cover their mouth with a face mask",
    "make them laugh",
    "make them look surprised",
    "make their skin green",
    "put them in a purple hoodie",
    "dress them in a yellow t-shirt",
    "make their clothes blue",
    "make the background orange",
    "change the background to blue",
    "put them in front of a pink wall",
)
# Styles, seasons, materials, places and small changes, so that most photographs find some that fit.
PHOTOGRAPHS = (
    "turn it into a watercolor painting",
    "make it a pencil sketch",
    "as if it were built from toy bricks",
    "make it look like a stained glass window",
    "turn the photo into a comic book panel",
    "make it a black and white film still from the 1940s",
    "what would it look like as a clay figure?",
    "make it snow",
    "have it take place in autumn",
    "turn day into night, with street lights",
    "make it a stormy day with dark clouds",
    "add a rainbow to the sky",
    "set it under the northern lights",
    "let it be underwater",
    "move the scene to the surface of Mars",
    "overgrow everything with ivy and moss",
    "cover everything with flowers",
    "make everything out of gold",
    "turn it into a city of the far future",
    "add fireworks in the background",
    "give it the light of a sunset",
    "replace the background with a snowy mountain range",
)


def suggestions(avatars: bool) -> tuple[str, ...]:
    """All instructions that fit a model: one of the drawn avatars, or else one of photographs."""
    return AVATARS if avatars else PHOTOGRAPHS


def draw_suggestions(avatars: bool, count: int, seed: int) -> list[str]:
    """`count` different ones of `suggestions`, the same for the same seed."""
    return random.Random(seed).sample(suggestions(avatars), count)
