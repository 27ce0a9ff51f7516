"""Pictures show the things of their scene: where they are said to be, and in their colour."""

from dataclasses import replace

import numpy as np
import pytest

from jobs.demo.drawings import DRAWINGS
from jobs.demo.painting import COLOURS, SIDE_PX, paint
from jobs.demo.scenes import BACKGROUNDS, PLACES, WORLDS, Scene, draw_scene
from jobs.demo.scenes import COLOURS as NAMES


def pixels(scene: Scene) -> np.ndarray:
    return np.asarray(paint(scene)).astype(int)


def quarter(array: np.ndarray, place: str) -> np.ndarray:
    x, y = PLACES[place]
    half = SIDE_PX // 2
    return array[(y > 0) * half :, (x > 0) * half :][:half, :half]


def test_every_kind_has_a_drawing_and_every_colour_a_tone():
    assert {kind for world in WORLDS for kind in world.flying + world.standing} == set(DRAWINGS)
    assert set(NAMES) == set(COLOURS)
    assert {name for world in WORLDS for name in world.backgrounds} == set(BACKGROUNDS)


def test_drawings_fill_about_their_square_and_do_not_leave_it():
    for kind, parts in DRAWINGS.items():
        points = np.concatenate([np.array(polygon) for _, polygon in parts])
        assert np.abs(points).max() <= 1.01, kind
        assert np.ptp(points, axis=0).max() > 1.5, kind
        assert any(tone == "body" for tone, _ in parts), kind


def test_a_picture_depends_on_its_scene_alone():
    scene = draw_scene(5, 0)
    assert paint(scene).size == (SIDE_PX, SIDE_PX)
    assert np.array_equal(pixels(scene), pixels(scene))
    assert not np.array_equal(pixels(scene), pixels(replace(scene, seed=scene.seed + 1)))


@pytest.mark.parametrize("number", range(40))
def test_a_thing_is_painted_where_and_in_the_colour_that_it_is_said(number):
    scene = draw_scene(number, 0)
    thing = scene.things[0]
    without = replace(scene, things=scene.things[1:])
    empty = replace(scene, things=())
    changed = np.abs(pixels(replace(scene, things=(thing,))) - pixels(empty)).max(axis=2) > 20
    inside = quarter(changed, thing.place).sum()
    assert inside > 0.8 * changed.sum()
    assert inside > 500
    near = quarter(pixels(scene), thing.place).reshape(-1, 3)
    like = near[np.abs(near - np.array(COLOURS[thing.colour])).max(axis=1) < 32]
    before = quarter(pixels(without), thing.place).reshape(-1, 3)
    had = before[np.abs(before - np.array(COLOURS[thing.colour])).max(axis=1) < 32]
    assert len(like) > len(had) + 150


def test_big_things_are_bigger_and_stripes_are_seen():
    scene = draw_scene(3, 0)
    thing = replace(scene.things[0], texture="plain", size="big")
    empty = pixels(replace(scene, things=()))

    def area(**changes: str) -> int:
        shown = pixels(replace(scene, things=(replace(thing, **changes),)))
        return int((np.abs(shown - empty).max(axis=2) > 20).sum())

    assert area() > 1.6 * area(size="small")
    plain, striped = (
        pixels(replace(scene, things=(replace(thing, texture=t),))) for t in ("plain", "striped")
    )
    assert (np.abs(plain - striped).max(axis=2) > 40).sum() > 300
