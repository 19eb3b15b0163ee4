"""What scenes are drawn with: soft polygons, glows and mist on a canvas that knows what is on top.

Coordinates are in units of 1/128 of the picture's side, x to the right and y downwards, so that a
scene is the same at every size. Everything is drawn at twice the size and averaged down.
"""

from contextlib import contextmanager

import cv2
import numpy as np
from PIL import Image

UNIT = 128  # the side of a scene in drawing units
_ANGLES = np.linspace(0, 2 * np.pi, 28, endpoint=False)
CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)


def ellipse(x, y, rx, ry) -> np.ndarray:
    return CIRCLE * (rx, ry) + (x, y)


def box(x0, y0, x1, y1) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def to_image(array: np.ndarray) -> Image.Image:
    """Floats (H, W, 3) in 0..1 -> RGB picture; what lies outside is clipped."""
    return Image.fromarray(np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8))


def average_down(planes: np.ndarray, size: int) -> Image.Image:
    """Floats (3, N, N) in 0..1 -> RGB picture of size x size pixels."""
    array = planes.transpose(1, 2, 0)
    return to_image(cv2.resize(array, (size, size), interpolation=cv2.INTER_AREA))


def fill_polygons(mask: np.ndarray, polygons: list[np.ndarray]) -> None:
    """Set polygons (points in pixels) to 255 with smooth edges; where two overlap is a hole."""
    points = [np.rint(polygon * 16).astype(np.int32) for polygon in polygons]
    cv2.fillPoly(mask, points, 255, cv2.LINE_AA, 4)


class Canvas:
    """Planar float pixels (3, N, N) in 0..1 at twice the size, and who owns each pixel.

    The owner map is what makes captions true: a thing is named only if enough of it is still
    on top when everything has been drawn. ways and plots remember which ground is taken: winding
    bands as (y, x of the middle, half width) and houses as (x, y, half width).
    """

    def __init__(self, size: int):
        self.n = 2 * size
        self.scale = self.n / UNIT  # pixels of the canvas in a unit
        self.pixels = np.zeros((3, self.n, self.n), np.float32)
        self.owner = np.zeros((self.n, self.n), np.uint8)
        self.axis = ((np.arange(self.n) + 0.5) / self.scale).astype(np.float32)
        self.things: list[tuple] = [("sky",)]
        self.drawn = [0]
        self.ways: list[tuple] = []
        self.plots: list[tuple] = []

    @contextmanager
    def thing(self, kind: str, *details):
        """Yields the label that the fills of one thing share.

        At the end its size is remembered, to know later how much of it got hidden.
        """
        label = len(self.things)
        self.things.append((kind, *details))
        self.drawn.append(0)
        yield label
        self.drawn[label] = int(np.count_nonzero(self.owner == label))

    def add(self, kind: str, *fill, **options) -> None:
        """A thing that is made of one fill."""
        with self.thing(kind) as label:
            self.fill(*fill, **options, label=label)

    def visible(self) -> list[tuple[tuple, float, float]]:
        """((kind, *details), visible area in square units, visible share) of every thing drawn."""
        counts = np.bincount(self.owner.ravel(), minlength=len(self.things))
        return [
            (thing, count / self.scale**2, count / max(drawn, 1))
            for thing, count, drawn in zip(self.things, counts, self.drawn, strict=True)
        ]

    def blocked(self, x, y, half) -> bool:
        """Would a thing of this half width stand on a path, in the river or in a house?"""
        for ys, middle, wide in self.ways:
            if ys[0] - 2 <= y <= ys[-1]:
                if abs(x - np.interp(y, ys, middle)) < np.interp(y, ys, wide) + half:
                    return True
        return any(abs(x - hx) < half + hw and y > hy - 16 for hx, hy, hw in self.plots)

    def fill(self, shapes, colour, to=None, axis=None, alpha=1.0, blur=0.0, label=None, on=None):
        """Fill one polygon or the union of several; `to` fades the colour along `axis`.

        axis is (x0, y0, x1, y1): `colour` at its start, `to` at its end. `on` keeps the paint
        on the pixels of one label.
        """
        shapes = [shapes] if isinstance(shapes, np.ndarray) else shapes
        shapes = [shape * self.scale - 0.5 for shape in shapes]
        low = np.min([shape.min(0) for shape in shapes], 0)
        high = np.max([shape.max(0) for shape in shapes], 0)
        pad = 2 + 3 * blur * self.scale
        x0, y0 = (max(0, int(v - pad)) for v in low)
        x1, y1 = (min(self.n, int(v + pad) + 1) for v in high)
        if x1 <= x0 or y1 <= y0:
            return
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        for shape in shapes:
            fill_polygons(mask, [shape - (x0, y0)])
        if blur:
            mask = cv2.GaussianBlur(mask, (0, 0), blur * self.scale)
        cover = mask * np.float32(alpha / 255)
        if on is not None:
            inside = (self.owner[y0:y1, x0:x1] == on).astype(np.float32)
            cover *= cv2.blur(inside, (3, 3))
        colour = colour[:, None, None]
        if to is not None:
            ax, ay, bx, by = axis
            dx, dy = bx - ax, by - ay
            length = dx * dx + dy * dy
            right, down = self.axis[None, x0:x1] - ax, self.axis[y0:y1, None] - ay
            along = right * np.float32(dx / length) + down * np.float32(dy / length)
            colour = colour + (to[:, None, None] - colour) * np.clip(along, 0, 1)
        view = self.pixels[:, y0:y1, x0:x1]
        view += cover * (colour - view)
        if label is not None:
            self.owner[y0:y1, x0:x1][mask > 127] = label

    def glow(self, x, y, radius, colour, alpha):
        """Lighten towards `colour`, falling off smoothly from (x, y)."""
        reach = 2.6 * radius
        (x0, x1), (y0, y1) = (
            [int(np.clip(edge * self.scale, 0, self.n)) for edge in (v - reach, v + reach)]
            for v in (x, y)
        )
        across = np.exp(-(((self.axis[x0:x1] - x) / radius) ** 2))
        down = np.exp(-(((self.axis[y0:y1] - y) / radius) ** 2))
        view = self.pixels[:, y0:y1, x0:x1]
        view += np.float32(alpha) * down[:, None] * across * (colour[:, None, None] - view)

    def band(self, y, height, colour, alpha):
        """A soft horizontal band of mist, right across."""
        cover = np.float32(alpha) * np.exp(-(((self.axis - y) / height) ** 2))
        self.pixels += cover[None, :, None] * (colour[:, None, None] - self.pixels)
