"""Random overlapping shapes ("dead leaves"), so that a model also sees pictures of nothing at all.

The occlusion model is the one of Lee, Mumford and Huang, "Occlusion models for natural images",
IJCV 41, 2001: sizes follow a power law, so edges come at every scale, as in photographs.
"""

import colorsys

import cv2
import numpy as np
from PIL import Image

from stylenb.pocket.canvas import average_down, fill_polygons

_ANGLES = np.linspace(0, 2 * np.pi, 36, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)
KINDS = ["ellipse", "polygon", "rectangle", "ring", "blob"]
MOODS = {  # saturation range, value range
    "pale": ((0.05, 0.35), (0.8, 1.0)),
    "dark": ((0.2, 0.9), (0.05, 0.4)),
    "saturated": ((0.75, 1.0), (0.55, 1.0)),
    "grey": ((0.0, 0.1), (0.05, 1.0)),
    "natural": ((0.15, 0.6), (0.25, 0.85)),
    "any": ((0.0, 1.0), (0.0, 1.0)),
}


def _outline(rng, kind: str, radius: float) -> list[np.ndarray]:
    """Polygons round the origin that together make the shape (inner ones are holes)."""
    squash = rng.uniform(0.45, 1.0)
    if kind == "rectangle":
        return [np.array([(-1, -squash), (1, -squash), (1, squash), (-1, squash)]) * radius * 0.9]
    if kind == "polygon":
        count = int(rng.integers(3, 8))
        turn = np.sort(
            rng.uniform(0, 2 * np.pi / count * 0.7, count) + np.arange(count) * 2 * np.pi / count
        )
        return [np.stack([np.cos(turn), np.sin(turn)], 1) * radius]
    if kind == "blob":
        bumps = 1 + sum(
            rng.uniform(0.05, 0.22) * np.cos(n * _ANGLES + rng.uniform(0, 6.3)) for n in (2, 3, 4)
        )
        return [_CIRCLE * bumps[:, None] * radius * 0.9]
    if kind == "ring":
        inner = min(rng.uniform(0.45, 0.7), 1 - 5 / radius)
        outer = _CIRCLE * (radius, radius * max(squash, 0.8))
        return [outer, outer * inner] if inner > 0.2 else [outer]
    return [_CIRCLE * (radius, radius * squash)]


def _fade(first, second, turn, centre, reach, x0, x1, y0, y1):
    """A linear fade from one colour to the other, over `reach` to both sides of the centre."""
    xs, ys = np.arange(x0, x1, dtype=np.float32), np.arange(y0, y1, dtype=np.float32)
    along = ((xs[None] - centre[0]) * np.cos(turn) + (ys[:, None] - centre[1]) * np.sin(turn)) / (
        2 * reach
    ) + 0.5
    return first + (second - first) * np.clip(along, 0, 1).astype(np.float32)


def _draw_leaf(pixels, rng, colour):
    """One random shape on top of pixels (3, N, N); `colour` draws a colour at each call."""
    n = pixels.shape[-1]
    k = n / 128
    # Inverse of the cumulative power law r**-1.8 between 5 and 45.
    low, high, power = 5.0, 45.0, -0.8
    radius = (low**power + rng.random() * (high**power - low**power)) ** (1 / power) * k
    kind = KINDS[int(rng.integers(len(KINDS)))]
    turn = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(turn), np.sin(turn)
    centre = rng.uniform(-0.05, 1.05, 2) * n
    rotate = np.array([(cos, sin), (-sin, cos)])
    parts = [(p * k) @ rotate + centre for p in _outline(rng, kind, radius / k)]
    x0, y0 = (max(0, int(v) - 2) for v in parts[0].min(0))
    x1, y1 = (min(n, int(v) + 3) for v in parts[0].max(0))
    if x1 <= x0 or y1 <= y0:
        return
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    fill_polygons(mask, [p - (x0, y0) for p in parts])
    if rng.random() < 0.12:
        mask = cv2.GaussianBlur(mask, (0, 0), rng.uniform(1, 2.5) * k)
    fill, box, style = colour(), (x0, x1, y0, y1), rng.random()
    if style < 0.5:
        second = colour() if style < 0.35 else fill * np.float32(0.55)
        fill = _fade(fill, second, rng.uniform(0, 6.3), centre, radius, *box)
    elif style < 0.64 and radius > 12 * k:
        width = rng.uniform(5, 10) * k
        xs, ys = np.arange(x0, x1, dtype=np.float32), np.arange(y0, y1, dtype=np.float32)
        wave = np.sin((xs[None] * cos + ys[:, None] * sin) * (np.pi / width))
        # A steep ramp instead of a sign keeps the edges of the stripes smooth.
        fill = fill + (colour() - fill) * np.clip(wave * width / np.pi / 2 + 0.5, 0, 1)
    view = pixels[:, y0:y1, x0:x1]
    view += (mask * np.float32(1 / 255)) * (fill - view)


def dead_leaves(seed: int, size: int = 128) -> Image.Image:
    """Random overlapping shapes: RGB, size x size, always the same bytes for the same seed (>= 0).

    Radii follow a power law from 5 to 45 px at size 128; stripes are at least 5 px wide.
    """
    rng = np.random.default_rng([7002, seed])
    n = 2 * size
    moods = [list(MOODS)[i] for i in rng.integers(0, len(MOODS), int(rng.integers(1, 4)))]
    hues = rng.random(int(rng.integers(1, 5))) if rng.random() < 0.5 else None

    def colour() -> np.ndarray:
        (s0, s1), (v0, v1) = MOODS[moods[int(rng.integers(len(moods)))]]
        hue = rng.random() if hues is None else rng.choice(hues) + rng.normal(0, 0.03)
        rgb = colorsys.hsv_to_rgb(hue % 1, rng.uniform(s0, s1), rng.uniform(v0, v1))
        return np.array(rgb, np.float32)[:, None, None]

    pixels = np.empty((3, n, n), np.float32)
    pixels[:] = _fade(colour(), colour(), rng.uniform(0, 6.3), (n / 2, n / 2), n / 2, 0, n, 0, n)
    for _ in range(int(rng.integers(24, 64))):
        _draw_leaf(pixels, rng, colour)
    return average_down(pixels, size)
