"""The plan of the avatar data set: what is drawn, asked for and held out. Pure Python, no drawing."""

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from dataset_creation.avatars import build, wordings
from dataset_creation.avatars.captions import caption, instruction, tidy
from dataset_creation.avatars.plan import (
    CANDIDATES,
    HELD_OUT_SETS,
    HELD_OUT_STYLE,
    WEIGHTS,
    Person,
    held_out_people,
    identity_key,
    possible_edits,
    train_people,
)
from dataset_creation.avatars.style import ABSENT, Style
from dataset_creation.avatars.styles import styles
from ldm.util import UserError

SAMPLE = Path(__file__).parent / "data" / "avatars_held_out"
STYLES = styles()
TRAINED = [STYLES[name] for name in ("avataaars", "openPeeps", "toonHead")]
# Options by which a component is there or not; everything else is a list of one value.
PROBABILITIES = {0, 100}


@pytest.fixture(scope="module")
def people() -> list[Person]:
    return list(train_people(TRAINED, 300, 4, seed=0))


def _words(people: list[Person]) -> list[str]:
    words = []
    for person in people:
        random = Random(person.number)
        words.append(caption(person.style, person.state))
        words += [instruction(person.style, person.state, edit, random) for edit in person.edits]
    return words


def _strangers(name: str, groups: int, taken: set[tuple] = frozenset()) -> list[Person]:
    drawn = [STYLES[HELD_OUT_STYLE]] if name == "style" else TRAINED
    return list(held_out_people(name, drawn, groups, 0, taken))


def test_the_plan_follows_from_the_seed():
    first, again, other = (list(train_people(TRAINED, 60, 4, seed)) for seed in (0, 0, 1))
    assert first == again
    assert _words(first) == _words(again)
    assert first != other
    # More people do not change the ones before them.
    assert list(train_people(TRAINED, 90, 4, 0))[:60] == first


def test_nobody_is_drawn_twice(people):
    keys = [identity_key(person.style, person.state) for person in people]
    assert len(set(keys)) == len(keys)


def test_one_edit_changes_one_visible_attribute(people):
    for person in people:
        assert len({(edit.attribute, edit.after) for edit in person.edits}) == len(person.edits) == 4
        before = person.style.visible(person.state)
        for edit in person.edits:
            assert before[edit.attribute] == edit.before != edit.after
            after = person.after(edit)
            assert identity_key(person.style, after) != identity_key(person.style, person.state)
            assert person.style.possible(after)


def test_every_option_is_pinned(people):
    for person in people:
        for option, value in person.style.options(person.state).items():
            assert value in PROBABILITIES if option.endswith("Probability") else len(value) == 1


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_tables_are_consistent(style: Style):
    for name, values in style.attributes.items():
        assert name in WEIGHTS
        assert (name in style.absent) == (ABSENT in values)
    rules = (*style.hides, *style.ties)
    named = [(attribute, value) for attribute, values, _ in rules for value in values]
    for attribute, value in (*named, *(pair for rule in style.unseen for pair in rule)):
        assert value in style.attributes[attribute]
    assert {name for _, _, names in rules for name in names} <= set(style.attributes)
    assert style.name == HELD_OUT_STYLE or style.unseen


def test_training_never_shows_an_unseen_combination(people):
    for person in people:
        states = [person.state, *(person.after(edit) for edit in person.edits)]
        assert not any(person.style.unseen_in(state) for state in states)


def test_held_out_sets_hold_what_they_say(people):
    taken = {
        identity_key(p.style, state)
        for p in train_people(TRAINED, 300, 4, 0)
        for state in (p.state, *map(p.after, p.edits))
    }
    for name in HELD_OUT_SETS:
        strangers = _strangers(name, 12, taken)
        assert len(strangers) == 12
        for person in strangers:
            states = [person.state, *(person.after(edit) for edit in person.edits)]
            assert len(states) == CANDIDATES + 1
            assert not taken & {identity_key(person.style, state) for state in states}
            assert person.style.unseen_in(person.state) == (name == "combinations")
            assert (person.style.name == HELD_OUT_STYLE) == (name == "style")


def test_a_picture_that_training_has_is_not_held_out():
    first = _strangers("identities", 1)[0]
    taken = {identity_key(first.style, first.state)}
    again = _strangers("identities", 1, taken)[0]
    assert identity_key(again.style, again.state) not in taken
    # Nor is an edit that leads to one.
    edit = first.edits[0]
    taken = {identity_key(first.style, first.after(edit))}
    assert edit not in _strangers("identities", 1, taken)[0].edits


def test_reverse_undoes(people):
    opposites = {"add": "remove", "remove": "add", "change": "change"}
    for person in people:
        for edit in person.edits:
            back = edit.reverse()
            assert (back.before, back.after, back.attribute) == (edit.after, edit.before, edit.attribute)
            assert back.reverse() == edit
            stem, _, end = edit.kind.rpartition("_")
            assert back.kind == (f"{stem}_{opposites[end]}" if end in opposites else edit.kind)
            # The way back is an edit that the other picture really offers.
            offered = possible_edits(person.style, person.after(edit), unseen=False)[edit.attribute]
            assert back in offered


def test_wordings():
    assert set(wordings.TRAIN) == set(wordings.HELD_OUT)
    for kind, templates in wordings.TRAIN.items():
        kept = wordings.HELD_OUT[kind]
        assert len(set(templates)) == len(templates) >= 8, kind
        assert len(set(kept)) == len(kept) >= 2, kind
        assert not set(templates) & set(kept), kind
    trained = {template for templates in wordings.TRAIN.values() for template in templates}
    trained |= {template for templates in wordings.EXPRESSIONS.values() for template in templates}
    assert not trained & {template for templates in wordings.HELD_OUT.values() for template in templates}


def test_every_wording_can_be_filled_in(people):
    class Pick(Random):
        """Goes through the templates in turn."""

        def choice(self, seq):
            seen[id(seq)] = seq
            return seq[turn % len(seq)]

    seen: dict[int, tuple] = {}
    strangers = [person for name in HELD_OUT_SETS for person in _strangers(name, 6)]
    kinds = set()
    for turn in range(30):
        random = Pick(turn)
        for person in (*people[:60], *strangers):
            for edit in person.edits:
                kinds.add(edit.kind)
                for held_out in ("", "identities", "wordings"):
                    text = instruction(person.style, person.state, edit, random, held_out=held_out)
                    assert text and not set("{}") & set(text) and text == " ".join(text.split())
    assert len(kinds) >= 20


def test_instructions_say_what_cannot_be_seen():
    style = STYLES["avataaars"]
    person = _strangers("identities", 1)[0]
    state = {
        **person.state, "hat": "beanie", "hat_color": "red", "hair": "bob", "hair_color": "pink",
        "beard": ABSENT, "glasses": ABSENT,
    }  # fmt: skip
    edits = {
        (e.attribute, e.after): e
        for group in possible_edits(style, state, unseen=True).values()
        for e in group
    }
    off = edits["hat", ABSENT]
    for turn in range(20):
        # The hair under a hat is anybody's guess, so a held-out instruction names it.
        assert "a pink bob" in instruction(style, state, off, Random(turn), held_out="identities").lower()
        bare = {**state, "hat": ABSENT}
        assert "a red beanie" in instruction(style, bare, off.reverse(), Random(turn)).lower()
    assert ("hair", "afro") not in edits and ("hair_color", "blue") not in edits


def test_caption_names_what_is_visible():
    style = STYLES["toonHead"]
    state = {
        "skin": "tan", "hair": "bun", "hair_color": "red", "beard": "beard", "expression": "happy",
        "clothes": "jacket", "clothes_color": "orange", "background": "light blue",
    }  # fmt: skip
    assert caption(style, state) == (
        "a drawn avatar of a person with tan skin, a red bun, a beard, wearing an open orange jacket, "
        "looking happy, on a light blue background"
    )
    assert "red" not in caption(style, {**state, "hair": ABSENT})


def test_tidy():
    assert tidy("give him a  afro") == "give him an afro"
    assert tidy("a orange hat on a  hoodie") == "an orange hat on a hoodie"


def test_differ():
    before = np.zeros((64, 64, 3), np.uint8)
    after = before.copy()
    after[0, :11] = 255
    assert not build.differ(before, after, 12)
    after[0, 11] = 255
    assert build.differ(before, after, 12)
    # Twice the side: the same twelve pixels are a quarter of what they were.
    assert not build.differ(*(np.zeros((128, 128, 3), np.uint8) for _ in range(2)), 12)
    faint = before + 20
    assert not build.differ(before, faint, 12)


def test_an_interrupted_build_goes_on(tmp_path):
    people = list(train_people(TRAINED, 2 * build.CHUNK, 1, 0))
    made = []

    def make(chunk: list[Person], fail: bool = False) -> list[build.Pair]:
        if fail and chunk[0].number:
            raise KeyboardInterrupt
        made.append(chunk[0].number)
        return [build.Pair(p.number, p.number, {"edit": "e"}, b"before", b"after") for p in chunk]

    folder = tmp_path / "train"
    with pytest.raises(KeyboardInterrupt):
        build.build_set(folder, iter(people), len(people), lambda chunk: make(chunk, True), 1)
    assert not folder.exists()
    build.build_set(folder, iter(people), len(people), make, 1)
    assert made == [0, build.CHUNK]
    seeds = json.loads((folder / "seeds.json").read_text())
    assert seeds == [[f"{n:07d}", [n]] for n in range(2 * build.CHUNK)]
    assert sorted(path.name for path in (folder / "0000007").iterdir()) == [
        "7_0.jpg",
        "7_1.jpg",
        "prompt.json",
    ]
    build.build_set(folder, iter(people), len(people), make, 1)
    assert made == [0, build.CHUNK]


def test_another_build_in_the_folder_is_refused(tmp_path):
    build._settle_arguments(tmp_path / "new", {"seed": 0})
    build._settle_arguments(tmp_path / "new", {"seed": 0})
    with pytest.raises(UserError, match="other arguments"):
        build._settle_arguments(tmp_path / "new", {"seed": 1})
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(UserError, match="empty or new folder"):
        build._settle_arguments(tmp_path, {"seed": 0})


def test_unknown_styles_are_refused():
    for name in ("pixelArt", HELD_OUT_STYLE):
        with pytest.raises(UserError, match="avataaars"):
            build._choose_styles([name])


def test_the_sample_has_the_published_layout():
    seeds = json.loads((SAMPLE / "seeds.json").read_text())
    assert seeds == sorted(seeds) and len(seeds) == 40
    groups: dict[int, set[bytes]] = {}
    for name, (seed,) in seeds:
        prompt = json.loads((SAMPLE / name / "prompt.json").read_text())
        assert set(prompt) == {"input", "edit", "output", "group"}
        groups.setdefault(prompt["group"], set()).add((SAMPLE / name / f"{seed}_1.jpg").read_bytes())
        with Image.open(SAMPLE / name / f"{seed}_0.jpg") as image:
            assert image.size == (64, 64)
    assert [len(outputs) for outputs in groups.values()] == [10] * 4
