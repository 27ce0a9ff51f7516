"""Procedural scenes: a few things in a landscape or a room, and what one would say of them."""

from dataclasses import dataclass
from itertools import product

import numpy as np

COLOURS = ("red", "yellow", "green", "blue", "white", "black")
NUM_THINGS = (2, 3, 4)
TEXTURES = ("plain", "striped")
SIZES = {"small": ("small", "little"), "big": ("big", "large")}
PLACES = {
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
}
"""Places to their directions from the middle: right and down are positive."""

BACKGROUNDS = {
    "meadow": ("on a meadow", "in a green field", "under a blue sky"),
    "sunset": ("at sunset", "in the evening", "under a pink evening sky"),
    "sea": ("by the sea", "at sea", "in front of the water"),
    "night": ("at night", "under the moon", "under a dark sky"),
    "checked wall": ("in front of a checked wall", "on a checked background"),
    "striped wall": ("in front of a striped wall", "on a striped background"),
}
"""Backgrounds to what one says of them."""


@dataclass(frozen=True)
class World:
    """Backgrounds, and the kinds of things that are seen before them."""

    backgrounds: tuple[str, ...]
    flying: tuple[str, ...]
    """Kinds that may be anywhere."""
    standing: tuple[str, ...]
    """Kinds that are in the lower half of a picture."""


WORLDS = (
    World(("meadow", "sea", "night"), ("star", "balloon", "butterfly"), ("house",)),
    World(("sunset",), ("bird", "kite", "rocket"), ("tree", "flower")),
    World(("checked wall",), ("heart", "umbrella"), ("cup", "mushroom")),
    World(("striped wall",), ("fish", "boat"), ("car",)),
)
"""Few kinds go with each background, so that it takes their colours and places to tell scenes
apart: a bag of kinds would name a scene by itself."""


@dataclass(frozen=True)
class Thing:
    """One thing in a scene."""

    kind: str
    colour: str
    texture: str
    size: str
    place: str

    def words(self, rng: np.random.Generator) -> str:
        """The thing as a noun phrase, always with its colour, sometimes with its size."""
        words = [self.colour, self.kind]
        if self.texture != "plain" and rng.random() < 0.8:
            words.insert(0, self.texture)
        if rng.random() < 0.1:
            words.insert(0, str(rng.choice(SIZES[self.size])))
        return f"a {' '.join(words)}"


@dataclass(frozen=True)
class Scene:
    """Two to four things, each in a place of its own, no two of one kind and colour."""

    things: tuple[Thing, ...]
    background: str
    seed: int
    """Decides what no caption tells: tilts, tones, hills and noise."""


def draw_scene(number: int, seed: int, worlds: tuple[World, ...] = WORLDS) -> Scene:
    """The scene of that number, of one of the worlds; the same for the same seed."""
    rng = np.random.default_rng((seed, number))
    world = worlds[rng.integers(len(worlds))]
    count = rng.choice(NUM_THINGS, p=(0.2, 0.4, 0.4))
    things: list[Thing] = []
    for place in rng.permutation(list(PLACES))[:count]:
        kinds = world.flying if place.startswith("top") else world.flying + world.standing
        told = {(thing.kind, thing.colour) for thing in things}
        free = [pair for pair in product(kinds, COLOURS) if pair not in told]
        kind, colour = free[rng.integers(len(free))]
        things.append(
            Thing(
                kind=kind,
                colour=colour,
                texture=str(rng.choice(TEXTURES, p=(0.9, 0.1))),
                size=str(rng.choice(list(SIZES), p=(0.35, 0.65))),
                place=str(place),
            )
        )
    return Scene(tuple(things), str(rng.choice(world.backgrounds)), int(rng.integers(2**31)))


def describe(scene: Scene, rng: np.random.Generator) -> list[str]:
    """One to five captions in varied English, each true; most of them tell of all things."""
    captions = [_caption(scene, rng) for _ in range(rng.integers(1, 6))]
    return list(dict.fromkeys(captions))


def _caption(scene: Scene, rng: np.random.Generator) -> str:
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]
    told = rng.choice(("all", "related", "one"), p=(0.85, 0.1, 0.05))
    if told == "one":
        text = f"{things[0].words(rng)} {_at(things[0], rng)}"
    elif told == "related":
        first, second, *rest = things[:3]
        text = f"{first.words(rng)} {_relation(first, second, rng)} {second.words(rng)}"
        text = _listed([text, *(thing.words(rng) for thing in rest)], " and ")
    else:
        joint = str(rng.choice((" and ", " with ", " beside "))) if len(things) == 2 else " and "
        text = _listed([thing.words(rng) for thing in things], joint)
    if len(things) == max(NUM_THINGS):  # long enough
        return text
    if rng.random() < 0.3:
        text += f" {rng.choice(BACKGROUNDS[scene.background])}"
    lead = rng.choice(("", "", "", "a picture of ", "a drawing of ", "there is ", "we see "))
    return f"{lead}{text}"


def _listed(phrases: list[str], joint: str) -> str:
    """The phrases with commas, and `joint` before the last."""
    *head, last = phrases
    return f"{', '.join(head)}{joint}{last}" if head else last


def _at(thing: Thing, rng: np.random.Generator) -> str:
    """Where the thing is in the picture, whole or in part."""
    row, column = thing.place.split()
    forms = (f"at the {row} {column}", f"on the {column}", f"at the {row}")
    return str(rng.choice(forms, p=(0.5, 0.3, 0.2)))


def _relation(first: Thing, second: Thing, rng: np.random.Generator) -> str:
    """How the first thing lies to the second."""
    (x, y), (other_x, other_y) = PLACES[first.place], PLACES[second.place]
    forms = []
    if x != other_x:
        forms.append("to the left of" if x < other_x else "to the right of")
    if y != other_y:
        forms.append("above" if y < other_y else "below")
    return str(rng.choice(forms))
