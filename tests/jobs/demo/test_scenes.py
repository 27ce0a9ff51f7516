"""Scenes are functions of their number, and their captions are true."""

import numpy as np
import pytest

from jobs.demo.scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, describe, draw_scene, paint


def test_a_scene_and_its_picture_depend_on_number_and_seed_alone():
    assert draw_scene(5, 0) == draw_scene(5, 0)
    assert len({draw_scene(number, 0) for number in range(200)}) == 200
    assert draw_scene(5, 0) != draw_scene(5, 1)
    first, again = (np.asarray(paint(draw_scene(5, 0))) for _ in range(2))
    assert np.array_equal(first, again)


def test_every_shape_colour_and_background_occurs():
    scenes = [draw_scene(number, 0) for number in range(300)]
    things = [thing for scene in scenes for thing in scene.things]
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {len(scene.things) for scene in scenes} == {1, 2, 3}


@pytest.mark.parametrize("number", range(40))
def test_a_thing_is_painted_where_and_in_the_colour_that_it_is_said(number):
    scene = draw_scene(number, 0)
    thing = scene.things[-1]  # nothing is painted over the last one
    pixels = np.asarray(paint(scene)).astype(int)
    column = int(PLACES[thing.place] * pixels.shape[1])
    near = pixels[:, max(0, column - 40) : column + 40].reshape(-1, 3)
    lighter = [value + (255 - value) // 2 for value in COLOURS[thing.colour]]
    like = [np.abs(near - np.array(c)).max(axis=1) < 25 for c in (COLOURS[thing.colour], lighter)]
    assert (like[0] | like[1]).sum() > 150


def test_captions_name_only_what_is_there():
    for number in range(100):
        scene = draw_scene(number, 0)
        shown = {thing.colour for thing in scene.things} | {scene.background.split()[-1]}
        captions = describe(scene, np.random.default_rng(number))
        assert 1 <= len(captions) <= 5
        for caption in captions:
            named = {colour for colour in COLOURS if colour in caption.split()}
            assert named <= shown
            assert any(thing.shape in caption for thing in scene.things)
            assert " a orange" not in caption
