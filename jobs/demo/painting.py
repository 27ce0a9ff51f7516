"""Scenes as pictures: a background of gradients and hills, and things of polygons on it."""

import numpy as np
from PIL import Image, ImageDraw

from jobs.demo.drawings import DRAWINGS
from jobs.demo.scenes import PLACES, Scene, Thing

SIDE_PX = 256
_FINE = 2
"""Pictures are painted this many times larger, then reduced, which smooths the edges."""
_LARGE_PX = SIDE_PX * _FINE
HALF_PX = {"small": 35, "big": 51}
"""Half the side of a thing, in pixels."""
_OFF_MIDDLE_PX = 55
"""From the middle of the picture to that of a thing, along each side."""

Colour = tuple[int, ...]

COLOURS: dict[str, Colour] = {
    "red": (212, 38, 44),
    "yellow": (250, 216, 50),
    "green": (40, 150, 62),
    "blue": (36, 88, 206),
    "white": (248, 248, 244),
    "black": (34, 34, 40),
}
_FIXED: dict[str, Colour] = {
    "wood": (126, 84, 50),
    "leaf": (70, 140, 60),
    "glass": (206, 232, 244),
    "cream": (250, 240, 214),
    "tyre": (44, 44, 48),
    "beak": (240, 160, 40),
}
"""Tones of the parts that have not the colour of their thing."""

_SKIES: dict[str, tuple[Colour, Colour]] = {
    "meadow": ((110, 176, 236), (214, 236, 248)),
    "sea": ((150, 205, 236), (236, 244, 238)),
    "night": ((20, 26, 76), (72, 80, 146)),
    "sunset": ((120, 76, 148), (252, 156, 110)),
}
"""Colours of the sky, at the top and at the bottom."""
_HILLS: dict[str, tuple[Colour, Colour]] = {
    "meadow": ((130, 190, 96), (96, 168, 72)),
    "night": ((66, 90, 112), (54, 76, 94)),
    "sunset": ((122, 70, 96), (84, 52, 82)),
}
"""Colours of the hills, behind and before."""
_WALLS: tuple[Colour, ...] = (
    (232, 224, 208),
    (206, 220, 214),
    (222, 208, 222),
    (204, 214, 230),
    (214, 210, 206),
)


def paint(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of 256 by 256 pixels, with a little noise."""
    rng = np.random.default_rng(scene.seed)
    picture = _background(scene.background, rng)
    for thing in scene.things:
        _draw(picture, thing, rng)
    pixels = np.asarray(picture.reduce(_FINE), dtype=np.int16)
    noise = rng.integers(-5, 6, (SIDE_PX, SIDE_PX, 1), dtype=np.int16)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def _background(name: str, rng: np.random.Generator) -> Image.Image:
    if name.endswith("wall"):
        return _wall(name, rng)
    picture = _gradient(*_SKIES[name])
    pen = ImageDraw.Draw(picture)
    if name == "night":
        for x, y in rng.integers(0, _LARGE_PX, (40, 2)).tolist():
            pen.ellipse((x, y, x + 3, y + 3), fill=(240, 240, 210))
        x = int(rng.integers(_LARGE_PX // 3, _LARGE_PX * 2 // 3))
        pen.ellipse((x - 28, 10, x + 28, 66), fill=(244, 240, 214))
    if name == "sea":
        horizon = int(rng.integers(45, 60) * _LARGE_PX / 100)
        pen.rectangle((0, horizon, _LARGE_PX, _LARGE_PX), fill=(52, 124, 178))
        for x, y in rng.integers((-40, horizon + 8), _LARGE_PX, (26, 2)).tolist():
            pen.line((x, y, x + 60, y), fill=(112, 172, 212), width=5)
    else:
        for colour, height in zip(_HILLS[name], (0.55, 0.68), strict=True):
            x = np.linspace(0, _LARGE_PX, 33)
            y = (height + 0.04 * np.sin(x / 90 + rng.uniform(0, 6.28))) * _LARGE_PX
            line = list(zip(x.tolist(), y.tolist(), strict=True))
            pen.polygon([*line, (_LARGE_PX, _LARGE_PX), (0, _LARGE_PX)], fill=colour)
    return picture


def _gradient(top: Colour, bottom: Colour) -> Image.Image:
    share = np.linspace(0, 1, _LARGE_PX)[:, None]
    column = (np.array(top) * (1 - share) + np.array(bottom) * share).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(column[:, None], (_LARGE_PX, _LARGE_PX, 3)).copy())


def _wall(name: str, rng: np.random.Generator) -> Image.Image:
    colour = _WALLS[rng.integers(len(_WALLS))]
    picture = Image.new("RGB", (_LARGE_PX, _LARGE_PX), colour)
    pen = ImageDraw.Draw(picture)
    darker = _shade(colour, 0.8)
    step = 64
    for i in range(0, _LARGE_PX, step):
        if name == "striped wall":
            pen.rectangle((i, 0, i + step // 2 - 1, _LARGE_PX), fill=darker)
        else:
            for j in range((i // step % 2) * step, _LARGE_PX, 2 * step):
                pen.rectangle((i, j, i + step - 1, j + step - 1), fill=darker)
    return picture


def _draw(picture: Image.Image, thing: Thing, rng: np.random.Generator) -> None:
    """Draw the thing, a little off its place, turned and perhaps mirrored."""
    half = HALF_PX[thing.size] * _FINE
    shift = np.array(PLACES[thing.place]) * _OFF_MIDDLE_PX + rng.uniform(-5, 5, 2)
    angle, mirror = rng.uniform(-0.14, 0.14), rng.choice((-1, 1))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    colour = _shade(COLOURS[thing.colour], rng.uniform(0.92, 1.05))
    tones = {"body": colour, "dark": _shade(colour, 0.72), "light": _lighter(colour), **_FIXED}
    outline = _shade(colour, 0.5)
    pen = ImageDraw.Draw(picture)
    for tone, polygon in DRAWINGS[thing.kind]:
        at = (np.array(polygon) * (mirror, 1)) @ turn.T * half
        points = [tuple(p) for p in (at + (SIDE_PX / 2 + shift) * _FINE).tolist()]
        own = tone in ("body", "dark", "light")
        if tone == "body" and thing.texture == "striped":
            _striped(picture, points, colour)
            pen.polygon(points, outline=outline, width=3)
        else:
            pen.polygon(points, fill=tones[tone], outline=outline if own else None, width=3)


def _striped(picture: Image.Image, points: list[Colour], colour: Colour) -> None:
    mask = Image.new("1", picture.size)
    ImageDraw.Draw(mask).polygon(points, fill=1)
    picture.paste(_stripes(colour), (0, 0), mask)


def _stripes(colour: Colour) -> Image.Image:
    rows = np.arange(_LARGE_PX) // 16 % 2
    pale = np.array(_lighter(colour, 0.7) if sum(colour) < 600 else _shade(colour, 0.6))
    column = np.where(rows[:, None] == 0, np.array(colour), pale).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(column[:, None], (_LARGE_PX, _LARGE_PX, 3)).copy())


def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(min(255, int(value * factor)) for value in colour)


def _lighter(colour: Colour, share: float = 0.4) -> Colour:
    return tuple(int(value + (255 - value) * share) for value in colour)
