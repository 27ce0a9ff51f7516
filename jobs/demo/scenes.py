"""Procedural scenes: a few coloured shapes on a background, and what one would say of them."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE_PX = 256
COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 150, 64),
    "blue": (38, 84, 200),
    "yellow": (240, 200, 40),
    "purple": (128, 60, 170),
    "orange": (240, 130, 30),
    "pink": (240, 150, 190),
    "brown": (120, 80, 50),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
TEXTURES = ("plain", "striped", "dotted")
SIZES = {"small": 26, "medium": 40, "large": 56}  # half of the side, in pixels
BACKGROUNDS = {
    "white": (250, 250, 250),
    "grey": (150, 150, 155),
    "black": (25, 25, 30),
    "beige": (235, 220, 190),
    "light blue": (175, 210, 240),
}
PLACES = {"left": 0.25, "middle": 0.5, "right": 0.75}


@dataclass(frozen=True)
class Thing:
    """One shape in a scene."""

    shape: str
    colour: str
    texture: str
    size: str
    place: str

    def words(self, rng: np.random.Generator) -> str:
        """The thing as a noun phrase; texture is said where there is one, size sometimes."""
        size = f"{self.size} " if rng.random() < 0.5 else ""
        texture = "" if self.texture == "plain" else f"{self.texture} "
        phrase = f"{size}{texture}{self.colour} {self.shape}"
        return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


@dataclass(frozen=True)
class Scene:
    """One to three things, each in a place of its own, on a background."""

    things: tuple[Thing, ...]
    background: str
    seed: int
    """Decides what no caption tells: heights and noise."""


def draw_scene(number: int, seed: int) -> Scene:
    """The scene of that number; the same for the same seed."""
    rng = np.random.default_rng((seed, number))
    places = rng.permutation(list(PLACES))[: rng.integers(1, 4)]
    things = tuple(
        Thing(
            shape=str(rng.choice(SHAPES)),
            colour=str(rng.choice(list(COLOURS))),
            texture=str(rng.choice(TEXTURES)),
            size=str(rng.choice(list(SIZES))),
            place=str(place),
        )
        for place in places
    )
    return Scene(things, str(rng.choice(list(BACKGROUNDS))), int(rng.integers(2**31)))


def paint(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of 256 by 256 pixels, with a little noise."""
    rng = np.random.default_rng(scene.seed)
    picture = Image.new("RGB", (SIDE_PX, SIDE_PX), BACKGROUNDS[scene.background])
    for thing in scene.things:
        centre = (PLACES[thing.place] * SIDE_PX, rng.uniform(0.3, 0.7) * SIDE_PX)
        mask = _mask(thing.shape, centre, SIZES[thing.size])
        picture.paste(_texture(thing), (0, 0), mask)
    noise = rng.normal(0, 4, (SIDE_PX, SIDE_PX, 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def describe(scene: Scene, rng: np.random.Generator) -> list[str]:
    """One to five captions in varied English, each true, none complete."""
    captions = [_caption(scene, rng) for _ in range(rng.integers(1, 6))]
    return list(dict.fromkeys(captions))


def _caption(scene: Scene, rng: np.random.Generator) -> str:
    order = rng.permutation(len(scene.things))
    things = [scene.things[i] for i in order]
    phrases = [thing.words(rng) for thing in things]
    listed = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    side = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
    first, where = phrases[0], side[things[0].place]
    forms = [
        f"{listed} on a {scene.background} background",
        f"{listed}",
        f"a picture of {listed}",
        f"{first} {where}",
        f"there is {first} {where} of a {scene.background} picture",
        f"{len(phrases)} shape{'s' if len(phrases) > 1 else ''}: {listed}",
    ]
    return str(rng.choice(forms))


def _mask(shape: str, centre: tuple[float, float], half: int) -> Image.Image:
    """Where the shape is, as a mask of the picture's size."""
    mask = Image.new("L", (SIDE_PX, SIDE_PX))
    pen = ImageDraw.Draw(mask)
    x, y = centre
    box = (x - half, y - half, x + half, y + half)
    if shape in ("circle", "ring"):
        pen.ellipse(box, fill=255)
        if shape == "ring":
            pen.ellipse((x - half / 2, y - half / 2, x + half / 2, y + half / 2), fill=0)
    elif shape == "square":
        pen.rectangle(box, fill=255)
    elif shape == "cross":
        pen.rectangle((x - half, y - half / 3, x + half, y + half / 3), fill=255)
        pen.rectangle((x - half / 3, y - half, x + half / 3, y + half), fill=255)
    else:
        corners, inner = (3, 1.0) if shape == "triangle" else (10, 0.45)
        radii = [half * (1.0 if i % 2 == 0 or corners == 3 else inner) for i in range(corners)]
        angles = [2 * np.pi * i / corners - np.pi / 2 for i in range(corners)]
        points = zip(angles, radii, strict=True)
        pen.polygon([(x + r * np.cos(a), y + r * np.sin(a)) for a, r in points], fill=255)
    return mask


def _texture(thing: Thing) -> Image.Image:
    """The thing's colour over the whole picture, with stripes or dots of a lighter tone."""
    colour = COLOURS[thing.colour]
    lighter = tuple(value + (255 - value) // 2 for value in colour)
    picture = Image.new("RGB", (SIDE_PX, SIDE_PX), colour)
    pen = ImageDraw.Draw(picture)
    if thing.texture == "striped":
        for y in range(0, SIDE_PX, 12):
            pen.rectangle((0, y, SIDE_PX, y + 5), fill=lighter)
    elif thing.texture == "dotted":
        for y in range(0, SIDE_PX, 14):
            for x in range(0, SIDE_PX, 14):
                pen.ellipse((x, y, x + 6, y + 6), fill=lighter)
    return picture
