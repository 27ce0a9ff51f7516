"""Scenes are functions of their number, and their captions are true."""

import re

import numpy as np
import pytest

from jobs.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    SIZES,
    TEXTURES,
    WORLDS,
    Scene,
    describe,
    draw_scene,
)

KINDS = [kind for world in WORLDS for kind in world.flying + world.standing]
SCENES = [draw_scene(number, 0) for number in range(300)]
SIZE_OF = {word: size for size, words in SIZES.items() for word in words}
THING = re.compile(
    rf"\ba (?:({'|'.join(SIZE_OF)}) )?(?:(striped) )?({'|'.join(COLOURS)}) "
    rf"({'|'.join(KINDS)})((?: (?:at the|on the) (?:(?:top|bottom|left|right) ?)+)?)"
)


def captions_of(number: int) -> list[str]:
    return describe(SCENES[number], np.random.default_rng(number))


def test_a_scene_depends_on_number_and_seed_alone():
    assert draw_scene(5, 0) == draw_scene(5, 0)
    assert len(set(SCENES)) == 300
    assert draw_scene(5, 0) != draw_scene(5, 1)


def test_every_kind_colour_size_texture_place_and_background_occurs():
    things = [thing for scene in SCENES for thing in scene.things]
    assert {thing.kind for thing in things} == set(KINDS)
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {thing.size for thing in things} == set(SIZES)
    assert {thing.texture for thing in things} == set(TEXTURES)
    assert {thing.place for thing in things} == set(PLACES)
    assert {scene.background for scene in SCENES} == set(BACKGROUNDS)
    assert {len(scene.things) for scene in SCENES} == {2, 3, 4}


def test_a_world_shows_its_own_kinds_and_what_stands_is_below():
    for scene in SCENES:
        (world,) = [world for world in WORLDS if scene.background in world.backgrounds]
        assert len({thing.place for thing in scene.things}) == len(scene.things)
        for thing in scene.things:
            allowed = world.flying if thing.place.startswith("top") else world.standing
            assert thing.kind in world.flying + allowed


def test_fewer_worlds_show_fewer_kinds():
    scenes = [draw_scene(number, 0, WORLDS[:1]) for number in range(100)]
    kinds = {thing.kind for scene in scenes for thing in scene.things}
    assert kinds == set(WORLDS[0].flying + WORLDS[0].standing)


@pytest.mark.parametrize("number", range(60))
def test_captions_are_true(number):
    captions = captions_of(number)
    assert 1 <= len(captions) <= 5
    assert len(set(captions)) == len(captions)
    for caption in captions:
        assert is_true(caption, SCENES[number]), caption


def test_the_check_of_captions_can_fail():
    wrong = [is_true(text, SCENES[(n + 1) % 60]) for n in range(60) for text in captions_of(n)]
    assert sum(wrong) < 0.02 * len(wrong)


def test_most_captions_tell_a_scene_from_others_in_few_words():
    captions = [(number, text) for number in range(100) for text in captions_of(number)]
    alone = [
        [n for n in range(100) if is_true(text, SCENES[n])] == [number] for number, text in captions
    ]
    assert np.mean(alone) > 0.85
    words = {word for _, text in captions for word in text.replace(",", "").split()}
    assert len(words) < 100
    assert max(len(text.split()) for _, text in captions) <= 30


def is_true(caption: str, scene: Scene) -> bool:
    """Whether the scene has what the caption tells, read with regular expressions alone."""
    said = [name for name, forms in BACKGROUNDS.items() if caption.endswith(forms)]
    if said and said != [scene.background]:
        return False
    found = []
    for size, texture, colour, kind, where in THING.findall(caption):
        like = [t for t in scene.things if (t.kind, t.colour) == (kind, colour)]
        if not like:
            return False
        (thing,) = like
        if (size and SIZE_OF[size] != thing.size) or (texture and thing.texture != texture):
            return False
        if not set(where.split()) - {"at", "on", "the"} <= set(thing.place.split()):
            return False
        found.append(thing)
    assert found
    return all(
        holds(PLACES[found[0].place], PLACES[found[1].place])
        for words, holds in RELATIONS.items()
        if words in caption
    )


RELATIONS = {
    " to the left of ": lambda a, b: a[0] < b[0],
    " to the right of ": lambda a, b: a[0] > b[0],
    " above ": lambda a, b: a[1] < b[1],
    " below ": lambda a, b: a[1] > b[1],
}
