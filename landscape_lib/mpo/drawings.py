"""Pictures of our own, made of shapes, so that they can be drawn at any size.

A shape says of every point (x, y) whether it is inside; x grows to the right and y downwards, and
the picture fills the square from -1 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Inside = NDArray[np.bool_]
Corner = tuple[float, float]


def disc(x: Points, y: Points, cx: float, cy: float, radius: float, stretch: float = 1) -> Inside:
    """Say which points are in a disc, or in an ellipse ``stretch`` times as wide as high."""
    return ((x - cx) / stretch) ** 2 + (y - cy) ** 2 < radius**2


def box(x: Points, y: Points, left: float, top: float, right: float, bottom: float) -> Inside:
    """Say which points are in a rectangle."""
    return (left < x) & (x < right) & (top < y) & (y < bottom)


def polygon(x: Points, y: Points, *corners: Corner) -> Inside:
    """Say which points are in a polygon: a ray to the right crosses its border an odd time."""
    inside = np.zeros(x.shape, dtype=bool)
    for (x1, y1), (x2, y2) in pairwise((*corners, corners[0])):
        if y1 != y2:
            crosses = (y1 > y) != (y2 > y)
            inside ^= crosses & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
    return inside


def stroke(x: Points, y: Points, width: float, corners: Iterable[Corner]) -> Inside:
    """Say which points are on a line of some width through the corners, with round ends."""
    inside = np.zeros(x.shape, dtype=bool)
    for (x1, y1), (x2, y2) in pairwise(corners):
        dx, dy = x2 - x1, y2 - y1
        along = (((x - x1) * dx + (y - y1) * dy) / (dx * dx + dy * dy)).clip(0, 1)
        inside |= (x - x1 - along * dx) ** 2 + (y - y1 - along * dy) ** 2 < (width / 2) ** 2
    return inside


def arc(cx: float, cy: float, radius: float, start: float, stop: float) -> list[Corner]:
    """Return points on an arc, by angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, stop, 25))
    return [(cx + radius * np.cos(a), cy + radius * np.sin(a)) for a in angles]


def smiley(x: Points, y: Points) -> Inside:
    """A smiling face."""
    eyes = disc(np.abs(x), y, 0.34, -0.28, 0.17)
    return disc(x, y, 0, 0, 0.93) & ~eyes & ~stroke(x, y, 0.2, arc(0, 0, 0.55, 25, 155))


def heart(x: Points, y: Points) -> Inside:
    """A heart."""
    lobes = disc(np.abs(x), y, 0.43, -0.33, 0.47)
    return lobes | polygon(np.abs(x), y, (-0.1, -0.5), (0.43, -0.5), (0.8, -0.04), (0, 0.9))


def star(x: Points, y: Points) -> Inside:
    """A star with five points."""
    angles = np.radians(np.arange(-90, 270, 36))
    radii = [0.98, 0.42] * 5
    corners = [(r * np.cos(a), r * np.sin(a) + 0.08) for r, a in zip(radii, angles, strict=True)]
    return polygon(x, y, *corners)


def house(x: Points, y: Points) -> Inside:
    """A house with a door, a window and a chimney."""
    roof = polygon(x, y, (0, -0.9), (0.95, -0.05), (-0.95, -0.05))
    walls = box(x, y, -0.68, -0.1, 0.68, 0.88)
    openings = box(x, y, 0.08, 0.3, 0.42, 1) | box(x, y, -0.45, 0.2, -0.12, 0.52)
    return (roof | walls | box(x, y, 0.42, -0.85, 0.66, 0)) & ~openings


def spiral(x: Points, y: Points) -> Inside:
    """A spiral of almost three turns."""
    turns = np.linspace(0.15, 2.75, 120)
    line = [(0.31 * t * np.cos(2 * np.pi * t), 0.31 * t * np.sin(2 * np.pi * t)) for t in turns]
    return stroke(x, y, 0.15, line)


def tree(x: Points, y: Points) -> Inside:
    """A fir tree."""
    parts = [(-0.95, -0.3, 0.42), (-0.6, 0.15, 0.6), (-0.2, 0.6, 0.78)]
    inside = box(x, y, -0.14, 0.5, 0.14, 0.95)
    for top, bottom, half in parts:
        inside |= polygon(x, y, (0, top), (half, bottom), (-half, bottom))
    return inside


def cat(x: Points, y: Points) -> Inside:
    """The head of a cat."""
    side = np.abs(x)
    head = disc(x, y, 0, 0.22, 0.65, stretch=1.25)
    ears = polygon(side, y, (0.82, -0.9), (0.82, 0.25), (0.18, -0.35))
    eyes = disc(side, y, 0.34, 0.1, 0.14)
    nose = polygon(x, y, (-0.13, 0.38), (0.13, 0.38), (0, 0.54))
    mouth = stroke(side, y, 0.07, [(0, 0.5), (0.06, 0.64), (0.2, 0.66)])
    return (head | ears) & ~(eyes | nose | mouth)


def key(x: Points, y: Points) -> Inside:
    """A key."""
    bow = disc(x, y, -0.52, 0, 0.42) & ~disc(x, y, -0.52, 0, 0.2)
    teeth = box(x, y, 0.42, 0, 0.6, 0.36) | box(x, y, 0.74, 0, 0.92, 0.46)
    return bow | teeth | box(x, y, -0.15, -0.1, 0.92, 0.1)


def anchor(x: Points, y: Points) -> Inside:
    """An anchor."""
    ring = disc(x, y, 0, -0.7, 0.24) & ~disc(x, y, 0, -0.7, 0.1)
    arms = stroke(x, y, 0.17, arc(0, 0.13, 0.7, 8, 172))
    tips = polygon(np.abs(x), y, (0.48, 0.28), (0.74, -0.12), (0.98, 0.32))
    shaft = box(x, y, -0.09, -0.5, 0.09, 0.88) | box(x, y, -0.4, -0.36, 0.4, -0.18)
    return ring | arms | tips | shaft


def sailboat(x: Points, y: Points) -> Inside:
    """A boat with two sails."""
    hull = polygon(x, y, (-0.95, 0.5), (0.95, 0.5), (0.6, 0.9), (-0.6, 0.9))
    sails = polygon(x, y, (-0.08, -0.92), (-0.08, 0.36), (-0.82, 0.36))
    return hull | sails | polygon(x, y, (0.08, -0.7), (0.7, 0.36), (0.08, 0.36))


def fish(x: Points, y: Points) -> Inside:
    """A fish."""
    body = disc(x, y, -0.16, 0, 0.5, stretch=1.55)
    tail = polygon(x, y, (0.4, 0), (0.95, -0.52), (0.82, 0), (0.95, 0.52))
    gill = stroke(x, y, 0.09, arc(-0.66, 0, 0.38, -40, 40))
    return (body | tail) & ~disc(x, y, -0.58, -0.12, 0.1) & ~gill


def moon(x: Points, y: Points) -> Inside:
    """A crescent moon."""
    return disc(x, y, 0, 0, 0.92) & ~disc(x, y, 0.4, -0.18, 0.76)


DRAWINGS: dict[str, Callable[[Points, Points], Inside]] = {
    shape.__name__: shape
    for shape in (
        smiley, heart, star, house, spiral, tree, cat, key, anchor, sailboat, fish, moon,
    )
}  # fmt: skip

# Points along each side of a cell, of which more than half must be inside.
FINENESS = 4


def draw(name: str, height: int, width: int) -> Inside:
    """Return one of ``DRAWINGS``, shape (height, width), as large as fits."""
    inside = np.zeros((height, width))
    offsets = (np.arange(FINENESS) + 0.5) / FINENESS
    half = min(height, width) / 2
    for dy in offsets:
        for dx in offsets:
            rows = (np.arange(height) + dy - height / 2) / half
            columns = (np.arange(width) + dx - width / 2) / half
            x, y = np.meshgrid(columns, rows)
            inside += DRAWINGS[name](x, y)
    return inside > FINENESS**2 / 2
