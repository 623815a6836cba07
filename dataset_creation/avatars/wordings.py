"""How people ask for an edit: templates for every kind of edit, for training and for the held-out wordings.

Slots:
    {he} {him} {his}  the person, in one of the forms of `REFERENCES`
    {new} {old}       the value after and before with its article ("a red beanie", "sunglasses")
    {was}             the name of the value before ("beanie", "red")
    {c}               a colour after
    {noun}            what a colour belongs to ("hoodie", "hat", "beard")

No template needs a verb form that depends on the subject, so that "they" and "the person" fit everywhere.
"""

REFERENCES = (
    ("he", "him", "his"),
    ("she", "her", "her"),
    ("they", "them", "their"),
    ("the person", "the person", "the person's"),
    ("this person", "this person", "this person's"),
    ("the man", "the man", "the man's"),
    ("the woman", "the woman", "the woman's"),
    ("the character", "the character", "the character's"),
)
REFERENCE_WEIGHTS = (30, 30, 10, 9, 8, 4, 4, 5)

_WEAR = (
    "give {him} {new}", "make {him} wear {new}", "put {new} on {him}", "{he} should wear {new}",
    "what if {he} wore {new}?", "please give {him} {new}", "can you put {new} on {him}?",
    "let {him} wear {new}", "I want {him} to wear {new}",
)  # fmt: skip
_ADD = ("add {new}", "{new}", "with {new}", "please add {new}", "could you add {new}?", "add {new} to {him}")
_REMOVE = (
    "remove the {was}", "remove {his} {was}", "no {was}", "without the {was}", "get rid of the {was}",
    "please remove the {was}", "can you remove {his} {was}?", "lose the {was}", "delete the {was}",
    "{he} should have no {was}", "what if {he} had no {was}?",
)  # fmt: skip
_TAKE_OFF = (
    "take off the {was}", "take off {his} {was}", "take {his} {was} off", "have {him} take off the {was}",
    "make {him} take off the {was}",
)  # fmt: skip
_CHANGE = (
    "replace the {was} with {new}", "change the {was} to {new}", "swap the {was} for {new}",
    "{new} instead of the {was}", "give {him} {new} instead of the {was}", "turn the {was} into {new}",
    "replace {his} {was} with {new}", "could you change {his} {was} to {new}?", "give {him} {new} instead",
    "please swap {his} {was} for {new}",
)  # fmt: skip
_RECOLOR = (
    "make the {noun} {c}", "make {his} {noun} {c}", "change the {noun} color to {c}", "turn the {noun} {c}",
    "{c} {noun}", "what if {his} {noun} were {c}?", "{his} {noun} should be {c}",
    "please make {his} {noun} {c}", "can you turn {his} {noun} {c}?", "change {his} {was} {noun} to {c}",
    "color {his} {noun} {c}", "make the {was} {noun} {c}", "I want {his} {noun} to be {c}",
    "{noun} color: {c}", "give {him} {c} {noun}",
)  # fmt: skip
# "give him green hoodie" is broken English; with "hair" and "clothes" it is right.
_RECOLOR_COUNTED = tuple(template for template in _RECOLOR if template != "give {him} {c} {noun}")

TRAIN: dict[str, tuple[str, ...]] = {
    "hair": (
        "give {him} {new}", "change {his} hair to {new}", "{new}", "{he} should have {new}",
        "what if {he} had {new}?", "could you give {him} {new}?", "please give {him} {new}",
        "I want {him} to have {new}", "show {him} with {new}", "replace {his} hair with {new}",
        "turn {his} hairstyle into {new}", "change the hairstyle to {new}", "hairstyle: {new}",
        "style {his} hair as {new}", "with {new}",
    ),
    "hair_add": (
        "give {him} {new}", "add {new}", "let {him} grow {new}", "{new}", "what if {he} had {new}?",
        "{he} should have {new}", "put {new} on {his} head", "please give {him} {new}",
        "cover {his} bald head with {new}", "with {new}", "I want {him} to have {new}",
    ),
    "hair_remove": (
        "make {him} bald", "shave {his} head", "remove {his} hair", "bald", "what if {he} was bald?",
        "no hair", "{he} should be bald", "cut off all of {his} hair", "please make {him} bald",
        "get rid of {his} hair", "give {him} a bald head", "can you shave {his} head?", "turn {him} bald",
    ),
    "hair_color": (*_RECOLOR, "dye {his} hair {c}", "what if {he} had {c} hair?", "color {his} hair {c}"),
    "beard_add": (
        "give {him} {new}", *_ADD, "let {him} grow {new}", "what if {he} had {new}?",
        "{he} should have {new}", "can you give {him} {new}?", "please give {him} {new}",
        "make {him} grow {new}", "put {new} on {his} face",
    ),
    "beard_remove": (
        *_REMOVE, "shave off {his} {was}", "shave {his} {was}", "shave {him}", "make {him} clean-shaven",
        "clean-shaven", "shave off the {was}",
    ),
    "beard_change": (*_CHANGE, "trim {his} {was} into {new}", "make the {was} {new}"),
    "beard_color": (*_RECOLOR_COUNTED, "dye {his} {noun} {c}", "give {him} a {c} {noun}", "a {c} {noun}"),
    "glasses_add": (*_WEAR, *_ADD, "{he} needs {new}", "get {him} {new}", "put on {new}"),
    "glasses_remove": (*_REMOVE, *_TAKE_OFF),
    "glasses_change": (*_CHANGE, "make the {was} {new}", "{he} should wear {new} instead"),
    "hat_add": (*_WEAR, *_ADD, "put {new} on {his} head", "cover {his} hair with {new}"),
    "hat_remove": (
        *_REMOVE, *_TAKE_OFF, "take off the {was} to show {new}", "replace the {was} with {new}",
        "{new} instead of the {was}", "remove {his} {was} and give {him} {new}",
        "give {him} {new} instead of the {was}", "take {his} {was} off, {he} has {new}",
        "swap the {was} for {new}", "no {was}, just {new}",
    ),
    "hat_change": (*_CHANGE, "make the {was} {new}", "{he} should wear {new} instead"),
    "hat_color": (*_RECOLOR_COUNTED, "give {him} a {c} {noun}", "a {c} {noun}", "paint the {noun} {c}"),
    "mask_add": (*_WEAR, *_ADD, "cover {his} mouth with {new}", "put on {new}"),
    "mask_remove": (*_REMOVE, *_TAKE_OFF),
    "expression": (
        "make {him} {new}", "make {him} look {new}", "{new}", "{he} should look {new}",
        "what if {he} was {new}?", "change {his} expression to {new}", "please make {him} {new}",
        "can you make {him} look {new}?", "make {his} face {new}", "I want {him} to be {new}",
        "{he} should be {new}", "turn {him} {new}", "change {his} face from {old} to {new}",
        "expression: {new}",
    ),
    "skin": (
        "give {him} {c} skin", "make {his} skin {c}", "{c} skin", "change {his} skin to {c}",
        "turn {his} skin {c}", "what if {he} had {c} skin?", "{his} skin should be {c}",
        "please make {his} skin {c}", "change the skin color to {c}", "can you give {him} {c} skin?",
        "{he} should have {c} skin", "skin color: {c}", "change {his} skin tone from {was} to {c}",
        "make {him} {c}-skinned",
    ),
    "clothes": (
        "put {him} in {new}", "change {his} clothes to {new}", "{he} should wear {new}",
        "dress {him} in {new}", "make {him} wear {new}", "{new}", "swap the {was} for {new}",
        "what if {he} wore {new}?", "replace the {was} with {new}", "give {him} {new}",
        "change the {was} to {new}", "wearing {new}", "please put {him} in {new}",
        "can you dress {him} in {new}?", "turn the {was} into {new}",
    ),
    "clothes_color": (
        *_RECOLOR_COUNTED, "{c} clothes", "make {his} clothes {c}",
        "change the color of {his} clothes to {c}", "dress {him} in {c}", "give {him} {c} clothes",
        "{he} should wear {c}", "put {him} in {c}",
    ),
    "background": (
        "make the background {c}", "turn the background {c}", "{c} background",
        "change the background to {c}", "put {him} on a {c} background", "set the background color to {c}",
        "what if the background was {c}?", "please make the background {c}",
        "can you change the background to {c}?", "use a {c} background", "the background should be {c}",
        "a {c} backdrop", "color the background {c}", "background: {c}", "change the {was} background to {c}",
        "place {him} in front of a {c} wall",
    ),
}  # fmt: skip

# Whole instructions for single expressions, beside the templates of "expression"; for training only.
EXPRESSIONS: dict[str, tuple[str, ...]] = {
    "happy": ("make {him} smile", "put a smile on {his} face", "smile", "cheer {him} up", "a big smile"),
    "sad": ("make {him} frown", "a sad mouth", "{he} should be feeling down", "turn {his} smile upside down"),
    "crying": ("make {him} cry", "add tears", "tears in {his} eyes", "let {him} cry"),
    "surprised": ("surprise {him}", "make {him} gasp", "open {his} eyes wide in surprise", "wide eyes"),
    "angry": ("make {him} mad", "make {him} furious", "{he} should be mad", "anger"),
    "in love": (
        "give {him} heart eyes", "heart eyes", "make {his} eyes hearts", "turn {his} eyes into hearts",
    ),
    "winking": ("make {him} wink", "wink", "{he} should wink", "let {him} wink at us"),
    "sleeping": ("close {his} eyes", "closed eyes", "make {him} fall asleep", "put {him} to sleep"),
    "dizzy": ("give {him} crossed-out eyes", "x eyes", "make {him} look knocked out"),
    "silly": ("make {him} stick out {his} tongue", "tongue out", "stick {his} tongue out"),
    "laughing": ("make {him} laugh", "let {him} laugh", "laugh", "{he} should laugh out loud"),
    "screaming": (
        "make {him} scream", "make {him} shout", "{he} should scream", "open {his} mouth in a scream",
    ),
    "scared": ("scare {him}", "make {him} afraid", "frighten {him}"),
    "bored": ("make {him} roll {his} eyes", "roll {his} eyes", "{he} should roll {his} eyes"),
    "one-eyed": ("turn {him} into a cyclops", "make {him} a cyclops", "one big eye", "cyclops"),
    "serious": ("wipe the smile off {his} face", "a straight face", "no smile"),
}  # fmt: skip

HELD_OUT: dict[str, tuple[str, ...]] = {
    "hair": (
        "I'd like to see {him} with {new}", "restyle {his} hair so that it becomes {new}", "how about {new}?",
    ),
    "hair_add": ("I'd like to see {him} with {new}", "how about {new} on {him}?"),
    "hair_remove": ("take away every bit of {his} hair", "I'd like to see {him} completely bald"),
    "hair_color": (
        "I'd like to see {him} with {c} hair", "how about {c} for {his} hair?", "recolor the hair to {c}",
    ),
    "beard_add": ("I'd like to see {him} with {new}", "how about {new} on {him}?"),
    "beard_remove": ("take away {his} {was}", "I'd like to see {him} without the {was}"),
    "beard_change": ("make it {new} rather than the {was}", "I'd prefer {new} over the {was}"),
    "beard_color": ("how about {c} for the {noun}?", "recolor {his} {noun} to {c}"),
    "glasses_add": (
        "I'd like to see {him} with {new}", "how about {new} on {him}?", "draw {new} on {his} face",
    ),
    "glasses_remove": ("take away {his} {was}", "I'd like to see {him} without the {was}"),
    "glasses_change": ("make it {new} rather than the {was}", "I'd prefer {new} over the {was}"),
    "hat_add": ("I'd like to see {him} in {new}", "how about {new} on {him}?"),
    "hat_remove": (
        "I'd like to see {him} with {new} rather than the {was}", "take away the {was} so {new} shows",
    ),
    "hat_change": ("make it {new} rather than the {was}", "I'd prefer {new} over the {was}"),
    "hat_color": ("how about {c} for the {noun}?", "recolor {his} {noun} to {c}"),
    "mask_add": ("I'd like to see {him} with {new}", "draw {new} on {him}"),
    "mask_remove": ("take away {his} {was}", "I'd like to see {him} without the {was}"),
    "expression": ("I'd like to see {him} {new}", "how about {him} looking {new}?", "draw {him} as {new}"),
    "skin": (
        "I'd like to see {him} with {c} skin", "how about {c} for {his} skin?", "recolor the skin to {c}",
    ),
    "clothes": ("I'd like to see {him} in {new}", "how about {new} on {him}?", "draw {him} in {new}"),
    "clothes_color": ("how about {c} for {his} {noun}?", "recolor the {noun} to {c}"),
    "background": (
        "how about a {c} background?", "recolor the background to {c}", "I'd like {c} behind {him}",
    ),
}  # fmt: skip
