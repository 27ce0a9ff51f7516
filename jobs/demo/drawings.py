"""What the things of the scenes look like: polygons in tones, from back to front."""

import numpy as np

Point = tuple[float, float]


def _box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _poly(*numbers: float) -> list[Point]:
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _oval(
    x: float, y: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0
) -> list[Point]:
    """An ellipse, or the part of it between two angles (degrees, clockwise from the right)."""
    angles = np.radians(np.linspace(start, end, 29))
    return [(x + rx * float(np.cos(a)), y + ry * float(np.sin(a))) for a in angles]


def _star(x: float, y: float, radius: float) -> list[Point]:
    radii = [radius * (1.0 if i % 2 == 0 else 0.45) for i in range(10)]
    angles = [np.pi * i / 5 - np.pi / 2 for i in range(10)]
    return [(x + r * np.cos(a), y + r * np.sin(a)) for a, r in zip(angles, radii, strict=True)]


def _heart() -> list[Point]:
    angles = np.linspace(0, 2 * np.pi, 41)
    x = np.sin(angles) ** 3
    y = np.cos(angles) - 0.385 * np.cos(2 * angles) - 0.154 * np.cos(3 * angles)
    return list(zip(x.tolist(), (-0.8 * y - 0.05).tolist(), strict=True))


DRAWINGS: dict[str, list[tuple[str, list[Point]]]] = {
    "balloon": [
        ("wood", _poly(-0.3, 0.3, -0.24, 0.3, -0.14, 0.75, -0.2, 0.75)),
        ("wood", _poly(0.3, 0.3, 0.24, 0.3, 0.14, 0.75, 0.2, 0.75)),
        ("body", _oval(0, -0.3, 0.72, 0.7)),
        ("dark", _oval(0, -0.3, 0.28, 0.7)),
        ("wood", _box(-0.22, 0.7, 0.22, 1)),
    ],
    "bird": [
        ("beak", _poly(0.75, -0.45, 1, -0.32, 0.75, -0.25)),
        ("tyre", _poly(-0.1, 0.5, -0.04, 0.5, -0.04, 0.95, -0.1, 0.95)),
        ("tyre", _poly(0.15, 0.5, 0.21, 0.5, 0.21, 0.95, 0.15, 0.95)),
        ("dark", _poly(-0.5, 0, -1, -0.35, -0.95, 0.2)),
        ("body", _oval(0, 0.12, 0.68, 0.48)),
        ("body", _oval(0.55, -0.4, 0.32, 0.32)),
        ("dark", _oval(-0.1, 0.05, 0.42, 0.26)),
        ("cream", _oval(0.62, -0.46, 0.1, 0.1)),
        ("tyre", _oval(0.64, -0.46, 0.05, 0.05)),
    ],
    "boat": [
        ("wood", _box(-0.05, -1, 0.05, 0.4)),
        ("light", _poly(0.1, -0.92, 0.1, 0.25, 0.85, 0.25)),
        ("light", _poly(-0.1, -0.7, -0.1, 0.25, -0.75, 0.25)),
        ("body", _poly(-1, 0.35, 1, 0.35, 0.65, 0.9, -0.65, 0.9)),
    ],
    "butterfly": [
        ("body", _oval(-0.5, -0.32, 0.48, 0.42)),
        ("body", _oval(0.5, -0.32, 0.48, 0.42)),
        ("light", _oval(-0.4, 0.4, 0.36, 0.36)),
        ("light", _oval(0.4, 0.4, 0.36, 0.36)),
        ("dark", _oval(-0.52, -0.32, 0.2, 0.18)),
        ("dark", _oval(0.52, -0.32, 0.2, 0.18)),
        ("tyre", _oval(0, 0.05, 0.1, 0.7)),
        ("tyre", _poly(-0.03, -0.6, -0.35, -0.98, -0.28, -1, 0.03, -0.6)),
        ("tyre", _poly(0.03, -0.6, 0.35, -0.98, 0.28, -1, -0.03, -0.6)),
    ],
    "car": [
        ("body", _poly(-0.6, 0.05, -0.4, -0.42, 0.32, -0.42, 0.62, 0.05)),
        ("body", _poly(-1, 0.05, 0.85, 0.05, 1, 0.2, 1, 0.55, -1, 0.55)),
        ("glass", _poly(-0.42, 0.02, -0.29, -0.3, -0.06, -0.3, -0.06, 0.02)),
        ("glass", _poly(0.06, 0.02, 0.06, -0.3, 0.26, -0.3, 0.44, 0.02)),
        ("tyre", _oval(-0.52, 0.58, 0.24, 0.24)),
        ("tyre", _oval(0.52, 0.58, 0.24, 0.24)),
        ("cream", _oval(-0.52, 0.58, 0.1, 0.1)),
        ("cream", _oval(0.52, 0.58, 0.1, 0.1)),
    ],
    "cup": [
        ("dark", _oval(0.62, 0.15, 0.36, 0.38) + _oval(0.62, 0.15, 0.2, 0.22)[::-1]),
        ("body", _poly(-0.75, -0.45, 0.65, -0.45, 0.5, 0.85, -0.6, 0.85)),
        ("light", _oval(-0.05, -0.45, 0.7, 0.2)),
        ("wood", _oval(-0.05, -0.42, 0.56, 0.13)),
    ],
    "fish": [
        ("dark", _poly(0.45, 0, 1, -0.5, 0.86, 0, 1, 0.5)),
        ("dark", _poly(-0.3, -0.35, 0.1, -0.8, 0.3, -0.3)),
        ("body", _oval(-0.2, 0, 0.8, 0.5)),
        ("light", _oval(0.0, 0.08, 0.22, 0.14)),
        ("cream", _oval(-0.62, -0.12, 0.13, 0.13)),
        ("tyre", _oval(-0.64, -0.12, 0.06, 0.06)),
    ],
    "flower": [
        ("leaf", _box(-0.05, -0.2, 0.05, 1)),
        ("leaf", _poly(0, 0.85, 0.5, 0.4, 0.45, 0.75)),
        ("leaf", _poly(0, 0.9, -0.5, 0.5, -0.42, 0.82)),
        *[
            ("body", _oval(0.42 * float(np.cos(a)), 0.42 * float(np.sin(a)) - 0.35, 0.27, 0.27))
            for a in np.arange(6) * np.pi / 3
        ],
        ("cream", _oval(0, -0.35, 0.24, 0.24)),
    ],
    "heart": [("body", _heart())],
    "house": [
        ("body", _box(-0.75, -0.15, 0.75, 0.9)),
        ("dark", _poly(-1, -0.1, 0, -0.95, 1, -0.1)),
        ("wood", _box(-0.16, 0.35, 0.18, 0.9)),
        ("glass", _box(-0.6, 0.1, -0.3, 0.42)),
        ("glass", _box(0.32, 0.1, 0.62, 0.42)),
    ],
    "kite": [
        ("wood", _poly(0, 0.4, 0.06, 0.4, 0.32, 0.98, 0.24, 1)),
        ("body", _poly(0, -1, 0.62, -0.3, 0, 0.55, -0.62, -0.3)),
        ("light", _poly(0, -1, 0.62, -0.3, 0, -0.3)),
        ("dark", _poly(0, 0.55, -0.62, -0.3, 0, -0.3)),
        ("dark", _poly(0.05, 0.7, 0.35, 0.55, 0.3, 0.8)),
    ],
    "mushroom": [
        ("cream", _poly(-0.22, 0, 0.22, 0, 0.34, 0.9, -0.34, 0.9)),
        ("body", _oval(0, 0.12, 0.95, 0.95, 180, 360)),
        ("cream", _oval(-0.45, -0.2, 0.16, 0.14)),
        ("cream", _oval(0.05, -0.5, 0.17, 0.15)),
        ("cream", _oval(0.5, -0.15, 0.15, 0.13)),
    ],
    "rocket": [
        ("beak", _poly(-0.2, 0.6, 0.2, 0.6, 0, 1)),
        ("dark", _poly(-0.3, 0.05, -0.7, 0.75, -0.25, 0.55)),
        ("dark", _poly(0.3, 0.05, 0.7, 0.75, 0.25, 0.55)),
        ("body", _poly(0, -1, 0.25, -0.65, 0.35, -0.2, 0.3, 0.6, 0, 0.6)),
        ("body", _poly(0, -1, -0.25, -0.65, -0.35, -0.2, -0.3, 0.6, 0, 0.6)),
        ("dark", _poly(0, -1, 0.25, -0.65, -0.25, -0.65)),
        ("glass", _oval(0, -0.2, 0.18, 0.18)),
    ],
    "star": [("body", _star(0, 0.05, 1))],
    "tree": [
        ("wood", _poly(-0.12, 0.2, 0.12, 0.2, 0.18, 1, -0.18, 1)),
        ("body", _oval(-0.42, 0.02, 0.42, 0.36)),
        ("body", _oval(0.42, 0.02, 0.42, 0.36)),
        ("body", _oval(0, -0.4, 0.56, 0.55)),
        ("body", _oval(0, 0.0, 0.5, 0.36)),
    ],
    "umbrella": [
        ("wood", _box(-0.05, -0.9, 0.05, 0.9)),
        ("wood", _box(-0.3, 0.8, 0.05, 0.9)),
        ("body", _oval(0, 0.1, 1, 0.9, 180, 360)),
        ("dark", _oval(0, 0.1, 0.36, 0.9, 180, 360)),
    ],
}
"""What each kind of thing is made of, from back to front: a tone and a polygon, in half sides."""
