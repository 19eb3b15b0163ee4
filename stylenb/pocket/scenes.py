"""Small landscapes drawn from a seed, each with a caption that is true of it.

Coordinates are in units of 1/128 of the picture's side, x to the right and y downwards, so that a
scene is the same at every size. Everything is drawn at twice the size and averaged down. Marks
are four units or more and shading is soft, because a factor-8 autoencoder has to carry them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image

UNIT = 128  # the side of a scene in drawing units


@dataclass(frozen=True)
class Scene:
    """A drawn landscape: RGB picture, caption without any style words, and what is in it.

    facts holds plain values only (str, bool, int, None and lists of str), ready for JSON.
    """

    picture: Image.Image
    caption: str
    facts: dict = field(default_factory=dict)


def _hex(code: str) -> np.ndarray:
    return np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / 255


def _mix(a, b, t: float):
    return a + (b - a) * np.float32(t)


# Sky colours: zenith, middle, horizon.
SKIES = {
    "dawn": [
        "5a79b8 e9a6a6 ffe0b0",
        "7c6fb0 f0a9b8 ffd9c0",
        "4f8fa8 f5c9a0 fff0c8",
        "93acd8 f4c7cf fbe8d3",
        "6fb5b0 f2d5b0 fff1cf",
        "496a9c c98fae ffc9a3",
    ],
    "day": [
        "3f8fd2 86c0ea dff0f5",
        "2f9fb8 86cfd0 f1efd8",
        "6db3e6 a9d6f0 fdf3dc",
        "1f66b0 5fa3dc cfe6ef",
        "6faac0 bcd6cc f7e2b5",
        "8f9fd6 bcc3e8 f3e6ee",
        "4aa3a0 9fd8c6 f4f1d6",
        "5596d8 9cc6f0 ffe9dc",
    ],
    "dusk": [
        "2d2f6b b0487a ffab5c",
        "3b2a5e d9534f ffc15e",
        "1f4a74 e07a5f ffd28a",
        "51306e c75b93 ffb199",
        "6b2737 e2583e ffd166",
        "22425c 8a6f9c f7b69a",
        "1d3557 6d5a8c ff8e72",
    ],
    "night": [
        "0b1540 1c3370 3f639e",
        "07182b 123a5a 2f7088",
        "140f3a 34246b 6a4c93",
        "0a1f2e 17434c 3b7a70",
        "101326 262c4a 52597d",
        "1a1030 45235a 8a4a7a",
    ],
}
OVERCAST = {
    "dawn": ["8c93a8 c3b4bb ead3c5", "9aa3a5 c4c2b8 e6dcc6"],
    "day": ["8e9aa6 b4bdc4 d9dcda", "7f8b92 a9afae d5d2c6", "78869c a3b0c2 cfd6df"],
    "dusk": ["4c4a66 8d6f85 d9a08c", "4d5668 86808c c9a892"],
    "night": ["151a2b 2a3248 4a536b"],
}
# What the light does to a colour seen in full daylight.
TINTS = {
    "dawn": (1.0, 0.90, 0.88),
    "day": (1.0, 1.0, 1.0),
    "dusk": (0.80, 0.61, 0.66),
    "night": (0.34, 0.42, 0.61),
}
LIGHTS = {"dawn": "fff0c4", "day": "fffbe6", "dusk": "ffe2a0", "night": "eef2ff"}
GROUNDS = {
    "meadow": ["7fb04f", "5f9a4a", "97b957", "4f8f5f", "8cbf6a"],
    "snow": ["eaf0f8", "f4f3f2", "dfe8f4"],
    "sand": ["ead09a", "e2bf86", "f0dcb4"],
    "autumn": ["c8943f", "b9803a", "cfa552", "a8793f"],
    "wheat": ["e0bd58", "d9b24a", "e8cc78"],
    "lavender": ["9a84c6", "8a76bd", "ad94d0"],
}
WALLS = {
    "red": "c0392f",
    "white": "f3efe6",
    "yellow": "efc04a",
    "blue": "4f86b8",
    "orange": "dd7b35",
    "pink": "e79aa5",
    "brown": "8a5a3c",
    "green": "5d9070",
}
ROOFS = ["5a4038", "8f3b2e", "4a4f5c", "a8563a", "3f5566", "6b5b4d"]
RIDGES = ["4f7f6a", "5b6c8f", "6a5f88", "3f6f80", "7d6a72", "56755a", "8a6f5c"]
CONIFERS = ["2f5e46", "27564f", "3d6b45", "2d4f58", "47703f"]
LEAVES = {
    "green": ["5f9a45", "4c8a4c", "7fae4a", "3f7f55"],
    "autumn": ["d9772b", "c9502b", "e3a52f", "b5402f"],
    "blossom": ["f0a6bd", "f5c2cf", "e68aa9"],
}
SAILS = {
    "white": "faf6ec",
    "red": "d2493a",
    "yellow": "f2c04b",
    "orange": "e8863a",
    "blue": "5d93c4",
}
HULLS = {"brown": "7a4a30", "red": "b03a2e", "white": "efe9dc", "blue": "34618f", "green": "4a7d62"}
BLACK, WHITE = _hex("000000"), _hex("ffffff")
_ANGLES = np.linspace(0, 2 * np.pi, 28, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)


def _ellipse(x, y, rx, ry) -> np.ndarray:
    return _CIRCLE * (rx, ry) + (x, y)


def _box(x0, y0, x1, y1) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


class _Canvas:
    """Planar float pixels (3, N, N) in 0..1 at twice the size, and who owns each pixel.

    The owner map is what makes captions true: a thing is named only if enough of it is still
    on top when everything has been drawn.
    """

    def __init__(self, size: int):
        self.n = 2 * size
        self.k = self.n / UNIT
        self.pix = np.zeros((3, self.n, self.n), np.float32)
        self.owner = np.zeros((self.n, self.n), np.uint8)
        self.axis = ((np.arange(self.n) + 0.5) / self.k).astype(np.float32)
        self.names = ["sky"]
        self.drawn = [0]

    def label(self, name: str) -> int:
        self.names.append(name)
        self.drawn.append(0)
        return len(self.names) - 1

    def done(self, label: int) -> None:
        """Remember how large a finished thing is, to know later how much of it got hidden."""
        self.drawn[label] = int(np.count_nonzero(self.owner == label))

    def visible(self) -> list[tuple[str, float, float]]:
        """(name, visible area in square units, visible share) of every thing drawn."""
        counts = np.bincount(self.owner.ravel(), minlength=len(self.names))
        return [
            (name, count / self.k**2, count / max(drawn, 1))
            for name, count, drawn in zip(self.names, counts, self.drawn, strict=True)
        ]

    def fill(self, shapes, colour, to=None, axis=None, alpha=1.0, blur=0.0, label=None, on=None):
        """Fill one polygon or the union of several; `to` fades the colour along `axis`.

        axis is (x0, y0, x1, y1): `colour` at its start, `to` at its end. `on` keeps the paint
        on the pixels of one label.
        """
        if isinstance(shapes, np.ndarray):
            shapes = [shapes]
        shapes = [s * self.k - 0.5 for s in shapes]
        lo = np.min([s.min(0) for s in shapes], 0)
        hi = np.max([s.max(0) for s in shapes], 0)
        pad = 2 + 3 * blur * self.k
        x0, y0 = (max(0, int(v - pad)) for v in lo)
        x1, y1 = (min(self.n, int(v + pad) + 1) for v in hi)
        if x1 <= x0 or y1 <= y0:
            return
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        for s in shapes:
            points = np.rint((s - (x0, y0)) * 16).astype(np.int32)
            cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, 4)
        if blur:
            mask = cv2.GaussianBlur(mask, (0, 0), blur * self.k)
        cover = mask * np.float32(alpha / 255)
        if on is not None:
            inside = (self.owner[y0:y1, x0:x1] == on).astype(np.float32)
            cover *= cv2.blur(inside, (3, 3))
        view = self.pix[:, y0:y1, x0:x1]
        colour = colour[:, None, None]
        if to is not None:
            ax, ay, bx, by = axis
            dx, dy = bx - ax, by - ay
            length = dx * dx + dy * dy
            along = (self.axis[None, x0:x1] - ax) * np.float32(dx / length) + (
                self.axis[y0:y1, None] - ay
            ) * np.float32(dy / length)
            colour = colour + (to[:, None, None] - colour) * np.clip(along, 0, 1)
        view += cover * (colour - view)
        if label is not None:
            self.owner[y0:y1, x0:x1][mask > 127] = label

    def glow(self, x, y, radius, colour, alpha, squash=1.0):
        """Lighten towards `colour`, falling off smoothly from (x, y)."""
        reach = 2.6 * radius
        x0, x1 = (int(np.clip(v * self.k, 0, self.n)) for v in (x - reach, x + reach))
        y0, y1 = (
            int(np.clip(v * self.k, 0, self.n)) for v in (y - reach * squash, y + reach * squash)
        )
        if x1 <= x0 or y1 <= y0:
            return
        gx = np.exp(-(((self.axis[x0:x1] - x) / radius) ** 2))
        gy = np.exp(-(((self.axis[y0:y1] - y) / (radius * squash)) ** 2))
        cover = np.float32(alpha) * gy[:, None] * gx[None, :]
        view = self.pix[:, y0:y1, x0:x1]
        view += cover * (colour[:, None, None] - view)

    def band(self, y, height, colour, alpha):
        """A soft horizontal band of mist, right across."""
        cover = np.float32(alpha) * np.exp(-(((self.axis - y) / height) ** 2))
        self.pix += cover[None, :, None] * (colour[:, None, None] - self.pix)

    def picture(self, size: int) -> Image.Image:
        pixels = cv2.resize(self.pix.transpose(1, 2, 0), (size, size), interpolation=cv2.INTER_AREA)
        return Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))


class _Scene:
    """One scene being drawn: the dice, the light and the canvas."""

    def __init__(self, seed: int, size: int):
        self.rng = np.random.default_rng([7001, seed])
        self.c = _Canvas(size)
        self.facts: dict = {}

    # --- dice -----------------------------------------------------------------------------
    def u(self, lo: float, hi: float) -> float:
        return lo + (hi - lo) * self.rng.random()

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def pick(self, items, weights=None):
        items = list(items)
        if weights is None:
            return items[int(self.rng.random() * len(items))]
        edges = np.cumsum(weights)
        return items[int(np.searchsorted(edges, self.rng.random() * edges[-1], side="right"))]

    def hue(self, codes) -> np.ndarray:
        """One of several colours, a little off."""
        colour = _hex(self.pick(codes)) if not isinstance(codes, str) else _hex(codes)
        shift = self.rng.normal(0, 0.025, 3).astype(np.float32)
        return np.clip(colour + shift, 0, 1)

    # --- light ----------------------------------------------------------------------------
    def tone(self, colour, depth=0.0, keep=0.0):
        """A daylight colour as this scene's light shows it, `depth` (0..1) into the haze.

        `keep` (0..1) holds back the tint, for things that must keep their colour.
        """
        tint = self.tint + (1 - self.tint) * np.float32(keep)
        return _mix(colour * tint, self.haze, depth)

    def side(self, x: float) -> float:
        """-1 if the light comes from the left of x, 1 if from the right."""
        return 1.0 if self.sun_x > x else -1.0

    def choose(self):
        self.time = self.pick(["dawn", "day", "dusk", "night"], [0.22, 0.36, 0.22, 0.20])
        self.layout = self.pick(
            ["lake", "meadow", "sea", "river", "peaks"], [0.28, 0.27, 0.18, 0.14, 0.13]
        )
        self.overcast = self.chance(0.05 if self.time == "night" else 0.16)
        skies = OVERCAST if self.overcast else SKIES
        self.sky = [self.hue(code) for code in self.pick(skies[self.time]).split()]
        self.tint = np.array(TINTS[self.time], np.float32)
        if self.overcast:
            self.tint = self.tint * np.float32(0.88)
        self.light = _hex(LIGHTS[self.time])
        self.haze = _mix(self.sky[2], self.sky[1], 0.25)
        self.horizon = self.u(58, 76)
        if self.layout == "peaks":
            self.horizon = self.u(78, 92)
        self.sun_x = self.u(16, 112)
        self.ground = self.pick(GROUNDS, [0.42, 0.17, 0.05, 0.16, 0.10, 0.10])
        if self.layout == "sea":
            self.ground = self.pick(["sand", "meadow", "snow"], [0.7, 0.22, 0.08])
        elif self.layout == "peaks":
            self.ground = self.pick(["meadow", "snow", "autumn"], [0.5, 0.32, 0.18])
        self.ground_colour = self.hue(GROUNDS[self.ground])
        self.snowy = self.ground == "snow" or (self.ground != "sand" and self.chance(0.4))
        if self.ground == "autumn":
            self.leaves = "autumn"
        elif self.ground == "meadow":
            self.leaves = self.pick(["green", "blossom"], [0.78, 0.22])
        else:
            self.leaves = "green"
        if self.ground == "snow":
            self.trees = ["conifer"]
        else:
            self.trees = self.pick(
                [["conifer"], ["broadleaf"], ["conifer", "broadleaf"]], [0.34, 0.42, 0.24]
            )
        if self.ground == "sand":
            self.trees = ["broadleaf"]
        self.ridge_colour = self.hue(RIDGES)
        self.rows = self.ground in ("wheat", "lavender") and self.chance(0.75)
        self.vanish = self.u(20, 108)

    # --- sky ------------------------------------------------------------------------------
    def draw_sky(self):
        c = self.c
        stops = [0, self.horizon * 0.55, self.horizon]
        rows = [np.interp(c.axis, stops, [s[i] for s in self.sky]) for i in range(3)]
        c.pix[:] = np.array(rows, np.float32)[:, :, None]
        if self.overcast:
            self.sun_y = 20.0
            self.draw_stratus(int(self.u(4, 7)), 0.6)
            return
        if self.time == "night":
            self.facts["northern_lights"] = self.chance(0.22)
            if self.facts["northern_lights"]:
                self.draw_northern_lights()
            self.draw_moon()
            for _ in range(int(self.u(9, 20))):
                x, y = self.u(3, 125), self.u(3, self.horizon - 18)
                if np.hypot(x - self.sun_x, y - self.sun_y) > 18:
                    c.glow(x, y, self.u(1.1, 1.9), WHITE, self.u(0.55, 0.95))
            self.facts["stars"] = True
        else:
            low = self.time != "day"
            self.sun_y = self.horizon - self.u(5, 26) if low else self.u(10, 30)
            radius = self.u(6, 11) if low else self.u(4.5, 7.5)
            c.glow(self.sun_x, self.sun_y, 48, self.sky[2], 0.5)
            c.glow(self.sun_x, self.sun_y, radius * 2.4, self.light, 0.55)
            disc = _mix(_mix(self.light, WHITE, 0.35), _hex("ffb066"), self.u(0, 0.5))
            label = c.label("sun")
            c.fill(_ellipse(self.sun_x, self.sun_y, radius, radius), disc, label=label)
            c.done(label)
        kind = self.pick(["none", "cumulus", "stratus", "both"], [0.3, 0.36, 0.22, 0.12])
        if kind in ("stratus", "both"):
            self.draw_stratus(int(self.u(2, 5)), 0.5)
        if kind in ("cumulus", "both"):
            for _ in range(int(self.u(1, 4.5))):
                self.draw_cumulus()

    def draw_northern_lights(self):
        """Soft curtains: bright at a wavy foot, fading upwards."""
        for _ in range(2):
            foot = self.curve(self.u(30, 46), 6, self.u(0.6, 1.1))
            colour = self.hue(["3fe0a0", "5ce6b8", "6fd0e0", "a07fe8"])
            for rise, alpha in ((9, 0.28), (18, 0.22), (30, 0.15)):
                self.c.fill(
                    np.concatenate([foot, (foot - (0, rise))[::-1]]), colour, alpha=alpha, blur=2.6
                )

    def draw_moon(self):
        c = self.c
        self.sun_y = self.u(13, max(16, self.horizon - 32))
        radius = self.u(6.5, 11)
        c.glow(self.sun_x, self.sun_y, 40, self.sky[2], 0.5)
        c.glow(self.sun_x, self.sun_y, radius * 2, self.light, 0.35)
        full = self.chance(0.6)
        disc = _ellipse(self.sun_x, self.sun_y, radius, radius)
        label = c.label("full moon" if full else "crescent moon")
        colour = _mix(self.light, _hex("ffe9b8"), self.u(0, 0.8))
        if full:
            c.fill(disc, colour, label=label)
            for dx, dy, r in ((-0.3, -0.2, 0.3), (0.3, 0.25, 0.24)):
                c.fill(
                    _ellipse(
                        self.sun_x + dx * radius, self.sun_y + dy * radius, r * radius, r * radius
                    ),
                    colour * 0.86,
                    alpha=0.6,
                    blur=0.5,
                )
        else:
            inner = _CIRCLE * radius * 0.92 + (self.sun_x + 0.62 * radius, self.sun_y - 1.2)
            gap = np.hypot(*(disc - inner.mean(0)).T) >= 0.92 * radius
            start = int(np.argmax(gap & ~np.roll(gap, 1)))
            outer = np.roll(disc, -start, 0)[np.roll(gap, -start)]
            back = np.hypot(*(inner - (self.sun_x, self.sun_y)).T) <= radius
            begin = int(np.argmax(back & ~np.roll(back, 1)))
            bite = np.roll(inner, -begin, 0)[np.roll(back, -begin)]
            c.fill(np.concatenate([outer, bite[::-1]]), colour, label=label)
        c.done(label)

    def cloud_colours(self):
        if self.time == "night":
            return _mix(self.sky[1], self.sky[2], 0.9), _mix(self.sky[1], self.sky[2], 0.25)
        if self.time == "day":
            return WHITE, _mix(self.sky[1], self.haze, 0.45)
        top = _mix(self.sky[1], WHITE, 0.35 if self.time == "dawn" else 0.12)
        return top, _mix(self.sky[2], self.light, 0.4)

    def draw_cumulus(self):
        x, y = self.u(5, 123), self.u(14, max(18, self.horizon - 22))
        width, height = self.u(24, 46), self.u(7, 13)
        top, bottom = self.cloud_colours()
        puffs = [_ellipse(x, y, width / 2, height * 0.34)]
        for t in np.linspace(-0.3, 0.3, int(self.u(4, 6))):
            r = height * self.u(0.5, 0.85) * (1.15 - abs(t) * 1.6)
            puffs.append(_ellipse(x + t * width, y - r * 0.55, r * 1.15, r))
        label = self.c.label("cloud")
        self.c.fill(
            puffs,
            top,
            bottom,
            (x, y - height, x, y + height * 0.35),
            alpha=0.9,
            blur=0.9,
            label=label,
        )
        self.c.done(label)

    def draw_stratus(self, count, alpha):
        top, bottom = self.cloud_colours()
        for i in range(count):
            y = self.u(6, self.horizon - 14)
            x = self.u(0, 128)
            colour = _mix(top, bottom, self.u(0, 1))
            if self.overcast:
                colour = _mix(self.sky[i % 3], WHITE if self.time == "day" else self.sky[2], 0.3)
            width = self.u(28, 60)
            bars = [
                _ellipse(x, y, width, self.u(3, 5.5)),
                _ellipse(x + self.u(-25, 25), y + self.u(2, 4), width * 0.6, self.u(2.5, 4)),
            ]
            label = self.c.label("cloud")
            self.c.fill(bars, colour, alpha=alpha, blur=1.8, label=label)
            self.c.done(label)

    # --- land far away --------------------------------------------------------------------
    def curve(self, base, amplitude, waves) -> np.ndarray:
        """A rolling line of points (x, y) across the picture, as a function of x."""
        xs = np.linspace(-4, 132, 40)
        ys = np.full_like(xs, base)
        for octave in (1, 2.1, 3.7):
            ys += (
                amplitude
                / octave
                * np.sin(xs / 128 * 2 * np.pi * waves * octave + self.u(0, 2 * np.pi))
                * self.u(0.5, 1)
            )
        return np.stack([xs, ys], 1)

    def under(self, line, bottom=132.0) -> np.ndarray:
        return np.concatenate([line, [(line[-1, 0], bottom), (line[0, 0], bottom)]])

    def draw_hills(self, base, height, depth, name="hills"):
        line = self.curve(base - height * 0.6, height * 0.5, self.u(0.5, 1.3))
        colour = self.tone(self.ridge_colour, depth)
        label = self.c.label(name)
        self.c.fill(
            self.under(line, base + 3),
            colour,
            _mix(colour, self.haze, 0.5),
            (0, base - height, 0, base + 3),
            label=label,
        )
        self.c.done(label)

    def draw_mountains(self, base, height, depth, snow):
        """A row of peaks with a lit and a shaded face, fading into the mist at their feet."""
        count = int(self.u(2, 4.99))
        centres = np.linspace(8, 120, count) + self.rng.uniform(-14, 14, count)
        heights = height * self.rng.uniform(0.6, 1.0, count)
        label = self.c.label("mountains")
        caps = self.c.label("snowcaps")
        for i in np.argsort(heights, kind="stable"):
            x, h = centres[i], heights[i]
            half = h * self.u(0.85, 1.25)
            apex = (x, base - h)
            lit = self.side(x)
            bright = self.tone(_mix(self.ridge_colour, WHITE, 0.2), depth)
            dark = self.tone(self.ridge_colour * 0.72, depth)
            foot = _mix(bright, self.haze, 0.55)
            shoulder = self.u(0.4, 0.6)
            outline = np.array(
                [
                    apex,
                    (x + half * shoulder * 0.8, base - h * (1 - shoulder)),
                    (x + half, base + 2),
                    (x - half, base + 2),
                    (x - half * shoulder * 0.85, base - h * (1 - shoulder)),
                ]
            )
            axis = (0, base - h, 0, base + 2)
            self.c.fill(outline, bright, foot, axis, label=label)
            away = -lit
            crease = [
                (x + away * half * 0.02, base - h * 0.72),
                (x + lit * half * 0.10, base - h * 0.5),
                (x + away * half * 0.08, base - h * 0.22),
                (x + lit * half * 0.12, base + 2),
            ]
            edge = outline[1:3] if away > 0 else outline[[4, 3]]
            shade = np.array([apex, *crease, *edge[::-1]])
            self.c.fill(shade, dark, _mix(dark, self.haze, 0.6), axis, label=label)
            if snow and h > 16:
                t = self.u(0.32, 0.46)
                w = half * t * 0.95 if t < shoulder else half * t * 0.85
                w = min(w, half * shoulder * 0.8 / shoulder * t)
                y = base - h * (1 - t)
                teeth = [
                    (x + w, y),
                    (x + w * 0.5, y - h * 0.06),
                    (x + w * 0.2, y + h * 0.06),
                    (x - w * 0.2, y - h * 0.05),
                    (x - w * 0.55, y + h * 0.05),
                    (x - w, y),
                ]
                white = self.tone(_hex("fdfdff"), depth * 0.5, 0.25)
                self.c.fill(np.array([apex, *teeth]), white, label=caps)
                grey = self.tone(_hex("b9c8de"), depth * 0.6, 0.15)
                if away > 0:
                    part = [apex, teeth[0], teeth[1], (x + w * 0.1, y - h * 0.02)]
                else:
                    part = [apex, teeth[5], teeth[4], (x - w * 0.1, y - h * 0.02)]
                self.c.fill(np.array(part), grey, label=caps)
        self.c.done(label)
        self.c.done(caps)

    def draw_background(self):
        y = self.horizon + 2
        if self.layout == "sea":
            if self.chance(0.7):
                x = self.pick([self.u(-8, 16), self.u(112, 136)])
                self.island(x, self.u(40, 72), self.u(10, 22), 0.5)
                if self.chance(0.4):
                    self.island(x, self.u(26, 38), self.u(6, 10), 0.28)
            elif self.chance(0.4):
                self.draw_mountains(self.horizon + 1, self.u(16, 28), 0.5, self.snowy)
            return
        if self.layout == "peaks":
            self.draw_mountains(y, self.u(34, 46), 0.55, self.snowy)
            self.draw_mountains(y + 4, self.u(24, 34), 0.25, self.snowy)
        elif self.chance(0.58):
            self.draw_mountains(y, self.u(22, 40), self.u(0.3, 0.5), self.snowy)
        else:
            self.draw_hills(y, self.u(14, 26), 0.62)
        for i in range(int(self.u(0.3, 2.6))):
            self.draw_hills(y + 2, self.u(7, 12) - 2 * i, 0.42 - 0.16 * i)
        self.mist = self.chance(0.45)
        if self.mist:
            up = self.u(9, 15) if self.layout == "peaks" else self.u(3, 9)
            self.c.band(y - up, self.u(5, 8), self.haze, self.u(0.55, 0.8))

    def island(self, x, half, height, depth):
        xs = np.linspace(-1, 1, 24)
        ys = (
            self.horizon
            + 0.5
            - height * (1 - xs**2) ** 1.2 * (1 + 0.22 * np.sin(xs * self.u(4, 9) + self.u(0, 6)))
        )
        colour = self.tone(self.ridge_colour, depth)
        label = self.c.label("hills")
        self.c.fill(
            np.stack([x + xs * half, ys], 1),
            colour,
            _mix(colour, self.haze, 0.4),
            (0, self.horizon - height, 0, self.horizon),
            label=label,
        )
        self.c.done(label)

    # --- land and water nearby ------------------------------------------------------------
    def depth_at(self, y) -> float:
        """How hazy a thing standing at y is: 0.35 at the horizon, 0 at the bottom."""
        return 0.35 * float(np.clip((112 - y) / (112 - self.horizon), 0, 1))

    def draw_land(self, line, colour, bottom=132.0):
        depth = self.depth_at(line[:, 1].mean())
        keep = 0.4 if self.ground == "snow" else 0.0  # snow turns to mud in a strong tint
        near = self.tone(colour * (_hex("d6def2") if keep else 0.84), depth * 0.4, keep)
        far = self.tone(_mix(colour, self.light, 0.18), depth, keep)
        top = line[:, 1].min()
        label = self.c.label("ground")
        self.c.fill(
            self.under(line, bottom),
            far,
            near,
            (self.sun_x, top, 128 - self.sun_x, top + 40),
            label=label,
        )
        self.c.done(label)
        if self.rows and line[:, 1].mean() > self.horizon + 5:
            self.draw_furrows(line[:, 1].min(), label, near)

    def draw_furrows(self, top, label, colour):
        """Rows of a field that run together at a point behind the horizon."""
        vanish, far = self.vanish, top - 10
        for foot in np.arange(vanish - 320, vanish + 320, 36):
            at = [
                (vanish + (foot + w - vanish) * t, far + (136 - far) * t)
                for w, t in ((0, 0.1), (16, 0.1), (16, 1), (0, 1))
            ]
            self.c.fill(np.array(at), colour * 0.8, alpha=0.5, blur=0.5, on=label)

    def draw_bushes(self, line_y, spread):
        for _ in range(int(self.u(0, 5))):
            x, r = self.u(0, 128), self.u(3.2, 5.5)
            y = line_y(x) + self.u(0, spread)
            if self.blocked(x, y, r * 1.8):
                continue
            leaf = self.hue(LEAVES["green" if self.leaves == "blossom" else self.leaves])
            if self.ground == "snow":
                leaf = self.hue("dfe6ee")
            depth, lit = self.depth_at(y), self.side(x)
            self.shadow(x, y, r * 1.5)
            puffs = [
                _ellipse(x + dx * r, y - r * h, r * h * 1.15, r * h)
                for dx, h in ((0, 0.9), (-1.05, 0.62), (1.0, 0.68))
            ]
            self.c.fill(
                puffs,
                self.tone(_mix(leaf, self.light, 0.15), depth),
                self.tone(leaf * 0.62, depth),
                (x + lit * r, y - 1.5 * r, x - lit * r, y),
            )

    def reflect(self, shore, shape):
        """Water in `shape`: what stands above the line y = shore, mirrored, softened and blued."""
        c = self.c
        top = max(0, int(round(shore * c.k)))
        rows = np.arange(top, c.n)
        if not len(rows):
            return
        depth = (rows - top) / c.k
        ripple = np.sin(depth * self.u(0.45, 0.7) + self.u(0, 6)) * np.minimum(depth * 0.09, 2.2)
        source = np.clip(2 * top - rows - 1 + np.rint(ripple * c.k).astype(int), 0, c.n - 1)
        mirror = c.pix[:, source]
        river = self.layout == "river"  # narrow water is told from a path by its colour alone
        deep = self.tone(
            _hex(self.pick(["2f6f8f", "2a5f86", "3a8288"])),
            0.1 if river else 0.25,
            0.5 if river else 0.0,
        )
        body = _mix(_mix(self.sky[1], self.sky[0], 0.4), deep, 0.45)
        start = 0.2
        if river:
            body, start = _mix(self.sky[0], deep * 1.1, 0.7), 0.45
        t = np.clip(start + depth / 120, 0, 0.66).astype(np.float32)[None, :, None]
        for plane in range(3):
            mirror[plane] = cv2.blur(mirror[plane], (int(4 * c.k) | 1, int(2 * c.k) | 1))
        mirror += t * (body[:, None, None] - mirror)
        mask = np.zeros((c.n, c.n), np.uint8)
        cv2.fillPoly(
            mask, [np.rint((shape * c.k - 0.5) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4
        )
        mask = mask[top:]
        view = c.pix[:, top:]
        view += (mask * np.float32(1 / 255)) * (mirror - view)
        label = c.label("water")
        c.owner[top:][mask > 127] = label
        c.done(label)
        self.water_label = label

    def draw_glitter(self, shore, bottom):
        """A few soft wide strokes of light under the sun or moon."""
        if self.overcast or (self.time == "day" and self.chance(0.5)):
            return
        y, width = shore + 3.0, self.u(7, 11)
        while y < bottom - 3:
            x = self.sun_x + self.u(-4, 4)
            self.c.fill(
                _ellipse(x, y, width * self.u(0.45, 1.15), 1.5),
                self.light,
                alpha=self.u(0.3, 0.55),
                blur=1.0,
                on=self.water_label,
            )
            y += self.u(4.5, 8)
            width *= 1.06

    def draw_strokes(self, shore, bottom):
        for _ in range(int(self.u(2, 6))):
            y = self.u(shore + 5, bottom)
            colour = self.pick([self.sky[2], self.sky[1], self.light])
            self.c.fill(
                _ellipse(self.u(0, 128), y, self.u(10, 24), self.u(1.3, 2)),
                colour,
                alpha=0.3,
                blur=1.0,
                on=self.water_label,
            )

    def ribbon(self, x0, y0, x1, y1, w0, w1, bend):
        """A tapering band that winds from (x0, y0) far away to (x1, y1) nearby."""
        t = np.linspace(0, 1, 24)
        y = y0 + (y1 - y0) * t**1.25
        mid = x0 + (x1 - x0) * t + bend * np.sin(t * np.pi * 1.6) * (0.25 + t)
        half = (w0 + (w1 - w0) * t**1.5) / 2
        self.ways.append((y, mid, half))
        return np.concatenate([np.stack([mid - half, y], 1), np.stack([mid + half, y], 1)[::-1]])

    def blocked(self, x, y, half) -> bool:
        """Would a thing of this half width stand on a path, in the river or in a house?"""
        for ys, mid, wide in self.ways:
            if ys[0] - 2 <= y <= ys[-1] and abs(x - np.interp(y, ys, mid)) < (
                np.interp(y, ys, wide) + half
            ):
                return True
        return any(abs(x - hx) < half + hw and y > hy - 16 for hx, hy, hw in self.plots)

    def draw_path(self, shape):
        base = {"snow": "b9bccb", "sand": "c9a671"}.get(self.ground, "d9bf93")
        colour = self.tone(self.hue(base), 0.1)
        label = self.c.label("path")
        self.c.fill(
            shape,
            _mix(colour, self.haze, 0.25),
            colour * 0.92,
            (0, shape[:, 1].min(), 0, 132),
            label=label,
        )
        self.c.done(label)

    # --- things ---------------------------------------------------------------------------
    def shadow(self, x, y, half):
        away = -self.side(x)
        self.c.fill(
            _ellipse(x + away * half * 0.5, y, half * 1.3, max(1.6, half * 0.24)),
            self.tone(_hex("25304a")),
            alpha=0.12 if self.overcast else 0.26,
            blur=0.9,
        )

    def draw_conifer(self, x, y, height):
        depth = self.depth_at(y)
        half = height * self.u(0.22, 0.3)
        lit = self.side(x)
        green = self.hue(CONIFERS)
        bright = self.tone(_mix(green, self.light, 0.2), depth)
        dark = self.tone(green * 0.62, depth)
        if self.ground == "snow":
            bright = self.tone(_mix(green, WHITE, 0.5), depth, 0.25)
        label = self.c.label("conifer")
        self.shadow(x, y, half)
        stem = max(1.3, height * 0.05)
        self.c.fill(
            _box(x - stem, y - height * 0.2, x + stem, y),
            self.tone(_hex("5a4334"), depth),
            label=label,
        )
        for low, high, wide in ((0.10, 0.55, 1.0), (0.34, 0.78, 0.78), (0.58, 1.0, 0.54)):
            w, yl, yh = half * wide, y - height * low, y - height * high
            tier = np.array([(x, yh), (x + w, yl), (x, yl + height * 0.04), (x - w, yl)])
            self.c.fill(
                tier,
                bright,
                dark,
                (x + lit * w * 0.8, yl, x - lit * w * 0.7, yl - height * 0.12),
                label=label,
            )
        self.c.done(label)

    def draw_broadleaf(self, x, y, height):
        depth = self.depth_at(y)
        lit = self.side(x)
        leaf = self.hue(LEAVES[self.leaves])
        bright = self.tone(_mix(leaf, self.light, 0.28), depth)
        dark = self.tone(leaf * 0.62, depth)
        label = self.c.label("broadleaf")
        r = height * self.u(0.27, 0.34)
        self.shadow(x, y, r)
        stem = max(1.4, height * 0.055)
        trunk = np.array(
            [
                (x - stem * 0.7, y - height * 0.6),
                (x + stem * 0.7, y - height * 0.6),
                (x + stem * 1.2, y),
                (x - stem * 1.2, y),
            ]
        )
        self.c.fill(trunk, self.tone(self.hue("6b4a36"), depth), label=label)
        cy = y - height + r
        crown = [_ellipse(x, cy, r * 0.95, r)]
        for dx, dy, s in ((-0.62, 0.32, 0.68), (0.62, 0.30, 0.70), (0.0, 0.55, 0.72)):
            crown.append(
                _ellipse(
                    x + (dx + self.u(-0.1, 0.1)) * r,
                    cy + dy * r,
                    r * s * self.u(0.92, 1.1),
                    r * s * 0.9,
                )
            )
        self.c.fill(
            crown,
            bright,
            dark,
            (x + lit * r * 0.9, cy - r * 0.8, x - lit * r * 0.8, cy + r * 1.1),
            label=label,
        )
        self.c.fill(
            _ellipse(x + lit * r * 0.35, cy - r * 0.25, r * 0.5, r * 0.42),
            _mix(bright, self.light, 0.25),
            alpha=0.45,
            blur=r * 0.1,
        )
        self.c.done(label)

    def draw_tree(self, x, y, height):
        if self.pick(self.trees) == "conifer":
            self.draw_conifer(x, y, height)
        else:
            self.draw_broadleaf(x, y, height * 0.9)

    def draw_forest(self, y, height, x0=-4.0, x1=132.0):
        """A far line of conifers as one silhouette."""
        points, x = [(x0, y + 2)], x0
        while x < x1:
            w, h = self.u(5, 8), height * self.u(0.6, 1.1)
            points += [(x, y - h * 0.25), (x + w / 2, y - h)]
            x += w
        points += [(x, y - height * 0.25), (x, y + 2)]
        green = self.tone(self.hue(CONIFERS), self.depth_at(y) + 0.1)
        label = self.c.label("forest")
        self.c.fill(
            np.array(points),
            green,
            _mix(green, self.haze, 0.35),
            (0, y - height, 0, y + 2),
            label=label,
        )
        self.c.done(label)

    def draw_house(self, x, y, width):
        """A gabled house seen from a corner; `width` is that of the gable and side together."""
        c, depth = self.c, self.depth_at(y) * 0.6
        name = self.pick(WALLS, [3, 3, 2, 1.5, 1.3, 1, 1.2, 0.7])
        wall = self.hue(WALLS[name])
        roof = self.hue(ROOFS)
        if self.ground == "snow":
            roof = _hex("eef2f8")
        lit_windows = self.time == "night" or (self.time == "dusk" and self.chance(0.7))
        turn = self.pick([-1, 1])
        lit = self.side(x)
        front, side = width * self.u(0.38, 0.5), 0.0
        side = width - front
        high, gable = width * self.u(0.36, 0.46), width * self.u(0.24, 0.34)

        def at(points):
            """House coordinates (along the front, up) to the picture, mirrored if turned."""
            return np.array([(x + turn * (px - width / 2), y - py) for px, py in points])

        front_lit = lit * turn < 0
        keep = 0.25
        bright = self.tone(_mix(wall, self.light, 0.12), depth, keep)
        dark = self.tone(wall * 0.76, depth, keep)
        label = c.label(f"house {name}")
        self.shadow(x, y, width * 0.55)
        a, b = (bright, dark) if front_lit else (dark, bright)
        eave = width * 0.05
        c.fill(
            at([(0, 0), (front, 0), (front, high), (front / 2, high + gable), (0, high)]),
            a,
            label=label,
        )
        c.fill(
            at([(front, 0), (width, 0), (width, high), (front, high)]),
            b,
            b * 0.9,
            (x, y - high, x, y),
            label=label,
        )
        top = self.tone(_mix(roof, self.light, 0.15), depth, keep)
        c.fill(
            at(
                [
                    (front / 2, high + gable + eave * 0.6),
                    (front / 2 + side, high + gable + eave * 0.6),
                    (width + eave, high - eave),
                    (front + eave, high - eave),
                ]
            ),
            top,
            top * 0.84,
            (x, y - high - gable, x, y - high),
            label=label,
        )
        edge = max(1.3, width * 0.06)
        under = self.tone(roof * 0.72, depth, keep)
        c.fill(
            at(
                [
                    (front / 2, high + gable + eave),
                    (front / 2, high + gable - edge * 1.2),
                    (-eave, high - eave * 1.2 - edge * 0.4),
                    (-eave, high - eave + edge),
                ]
            ),
            under,
            label=label,
        )
        if self.chance(0.6):
            cx = front / 2 + side * 0.62
            c.fill(
                at(
                    [
                        (cx, high + gable * 0.7),
                        (cx + width * 0.1, high + gable * 0.7),
                        (cx + width * 0.1, high + gable * 1.45),
                        (cx, high + gable * 1.45),
                    ]
                ),
                self.tone(_hex("8a5648"), depth, keep),
                label=label,
            )
        pane = _hex("ffd98a") if lit_windows else self.tone(_hex("4b6178"), depth)
        door = self.tone(_hex("5b3a2a"), depth, keep)
        dw = max(3.0, front * 0.3)
        c.fill(
            at(
                [
                    ((front - dw) / 2, 0),
                    ((front + dw) / 2, 0),
                    ((front + dw) / 2, high * 0.66),
                    ((front - dw) / 2, high * 0.66),
                ]
            ),
            door,
            label=label,
        )
        size = max(3.0, min(side * 0.22, high * 0.45))
        spots = [(front + side * s, high * 0.52) for s in ((0.3, 0.72) if side > 13 else (0.5,))]
        for px, py in spots:
            c.fill(
                at(
                    [
                        (px - size / 2, py - size / 2),
                        (px + size / 2, py - size / 2),
                        (px + size / 2, py + size / 2),
                        (px - size / 2, py + size / 2),
                    ]
                ),
                pane,
                label=label,
            )
        if lit_windows:
            for px, py in spots:
                gx, gy = at([(px, py)])[0]
                c.glow(gx, gy, size * 1.5, _hex("ffcf70"), 0.38)
                c.fill(_ellipse(gx, gy, size * 0.42, size * 0.42), _hex("fff0b8"), alpha=0.8)
            self.lit.add(label)
        self.plots.append((x, y, width * 0.55))
        c.done(label)
        return x - turn * (width / 2 - front / 2)  # where the door is

    def draw_lighthouse(self, x, y, height):
        c, lit = self.c, self.side(x)
        label = c.label("lighthouse")
        self.shadow(x, y, height * 0.16)
        low, high = height * 0.13, height * 0.085
        other = self.hue(["c0392f", "34618f", "3f4a5c"])

        def ring(t0, t1, paint, grow=0.0):
            w0, w1 = (low + (high - low) * t + grow for t in (t0, t1))
            shape = np.array(
                [
                    (x - w1, y - height * t1),
                    (x + w1, y - height * t1),
                    (x + w0, y - height * t0),
                    (x - w0, y - height * t0),
                ]
            )
            c.fill(
                shape,
                self.tone(_mix(paint, self.light, 0.1), 0, 0.25),
                self.tone(paint * 0.66, 0, 0.25),
                (x + lit * low, 0, x - lit * low, 0),
                label=label,
            )

        for i in range(5):
            ring(i * 0.155, (i + 1) * 0.155, _hex("f5f1e8") if i % 2 else other)
        ring(0.76, 0.80, _hex("3f4a5c"), 1.4)
        ring(0.80, 0.90, _hex("ffe9a8"), -0.8)
        c.fill(
            np.array(
                [
                    (x - high * 1.15, y - height * 0.895),
                    (x, y - height),
                    (x + high * 1.15, y - height * 0.895),
                ]
            ),
            self.tone(other * 0.8, 0, 0.2),
            label=label,
        )
        if self.time in ("dusk", "night"):
            c.glow(x, y - height * 0.85, 13, _hex("ffe08a"), 0.6)
            c.fill(_ellipse(x, y - height * 0.85, 2.2, 2.4), _hex("fff6d0"))
        self.plots.append((x, y, low + 2))
        c.done(label)

    def draw_boat(self, x, y, width):
        c, depth = self.c, self.depth_at(y) * 0.7
        kind = self.pick(["sailing", "rowing"])
        hull_name = self.pick(HULLS)
        hull = self.tone(self.hue(HULLS[hull_name]), depth, 0.25)
        turn = self.pick([-1, 1])
        high = width * 0.2
        parts = [
            (
                np.array([(-0.5, 1.0), (0.54, 1.15), (0.36, 0.0), (-0.38, 0.0)]) * (width, high),
                hull,
                hull * 0.75,
            )
        ]
        sail_name = None
        if kind == "sailing":
            sail_name = self.pick(SAILS, [4, 2, 1, 1, 1])
            sail = self.tone(self.hue(SAILS[sail_name]), depth, 0.45)
            tall = width * self.u(1.0, 1.25)
            parts.append(
                (
                    np.array(
                        [
                            (-0.03 * width, tall + high),
                            (-0.03 * width, high * 1.25),
                            (-0.46 * width, high * 1.35),
                        ]
                    ),
                    sail,
                    sail * 0.86,
                )
            )
            parts.append(
                (
                    np.array(
                        [
                            (0.04 * width, tall * 0.86 + high),
                            (0.46 * width, high * 1.5),
                            (0.04 * width, high * 1.25),
                        ]
                    ),
                    _mix(sail, BLACK, 0.12),
                    sail * 0.9,
                )
            )
        else:
            parts.append(
                (
                    _ellipse(0.02 * width, high * 1.02, width * 0.40, high * 0.24),
                    hull * 0.55,
                    hull * 0.4,
                )
            )
        mirror = [p * (turn, 0.8) + (x, y) for p, _, _ in parts]
        for shape, (_, colour, _) in zip(mirror, parts, strict=True):
            c.fill(shape, _mix(colour, self.sky[1], 0.2), alpha=0.38, blur=0.8)
        label = c.label(f"boat {kind} {sail_name or hull_name}")
        for p, colour, to in parts:
            c.fill(p * (turn, -1) + (x, y), colour, to, (0, y - width, 0, y), label=label)
        c.done(label)

    def draw_boats(self, top, bottom, weights=(0.4, 0.42, 0.18)):
        count = self.pick([0, 1, 2], weights)
        xs = self.rng.permutation([self.u(16, 50), self.u(78, 112)])
        ys = np.sort(self.rng.uniform(top + 5, max(top + 6, bottom - 4), 2))
        for x, y in list(zip(xs, ys, strict=True))[:count]:
            scale = float(np.clip((y - self.horizon) / 45, 0, 1))
            self.draw_boat(x, y, 13 + 14 * scale)

    def scatter(self, line_y, count, height, spread=6.0):
        """Trees in a few clumps at depths around line_y(x), the far ones first."""
        clumps = [self.u(4, 124) for _ in range(max(1, count // 4))]
        spots = []
        for _ in range(count):
            x = self.pick(clumps) + self.rng.normal(0, 13)
            y = line_y(x) + self.u(0, spread)
            h = height * self.u(0.75, 1.2)
            if -6 < x < 134 and not self.blocked(x, y, h * 0.22):
                spots.append((y, x, h))
        for y, x, h in sorted(spots):
            self.draw_tree(x, y, h)

    def frame(self, low=100.0):
        """One or two large trees at a side, close to the viewer."""
        edge = self.pick([0, 1])
        x = self.u(4, 20) if edge == 0 else self.u(108, 124)
        count = int(self.u(1, 2.99))
        for i in range(count):
            y = low + self.u(4, 14) + 5 * i
            if not self.blocked(x, y, 8):
                self.draw_tree(x, y, self.u(42, 62) - 8 * i)
            x += (1 if edge == 0 else -1) * self.u(12, 18)

    def flowers(self, top):
        if self.ground not in ("meadow", "lavender") or not self.chance(0.4):
            return
        colour = self.tone(self.hue(["f4e9e0", "f2c84b", "e0564f", "e58fb0", "9f86d6"]), 0, 0.3)
        for _ in range(int(self.u(8, 16))):
            x, y = self.u(2, 126), self.u(max(top, 104), 126)
            if not self.blocked(x, y, 2):
                r = 1.5 + 0.9 * (y - 104) / 22
                self.c.fill(_ellipse(x, y, r * 1.2, r), colour, alpha=0.9, blur=0.4)

    # --- layouts --------------------------------------------------------------------------
    def draw_lake(self):
        shore = self.horizon + self.u(4, 9)
        bank = self.curve(self.horizon + 1, 1.2, 1.0)

        def at(x):
            return float(np.interp(x, bank[:, 0], bank[:, 1]))

        if "conifer" in self.trees and self.chance(0.55):
            self.draw_forest(self.horizon + 3, self.u(9, 14))
        self.draw_land(bank, self.ground_colour, shore)
        house_count = self.pick([0, 1, 2, 3], [0.25, 0.42, 0.22, 0.11])
        for x in self.rng.permutation([24.0, 62.0, 100.0])[:house_count]:
            self.draw_house(x + self.u(-9, 9), shore - self.u(0.5, 2), self.u(17, 24))
        self.scatter(lambda x: at(x) + 1, int(self.u(2, 9)), self.u(14, 22), 3)
        self.reflect(shore, _box(-4, shore, 132, 132))
        self.c.fill(_box(-4, shore - 0.8, 132, shore + 0.8), self.haze, alpha=0.4, blur=0.6)
        near = self.chance(0.72)
        bottom = self.u(106, 114) if near else 124.0
        self.draw_glitter(shore, bottom)
        self.draw_strokes(shore, bottom)
        self.draw_boats(shore + 3, bottom - 4)
        if near:
            slope = self.u(-9, 9)
            line = self.curve(bottom + 2, 3, 0.7)
            line[:, 1] += (line[:, 0] - 64) / 64 * slope
            self.draw_land(line, self.ground_colour * 0.9)
            self.flowers(bottom + 6)
            if self.chance(0.6):
                self.frame(bottom - 2)

    def draw_sea(self):
        shore = self.horizon
        self.reflect(shore, _box(-4, shore, 132, 132))
        beach = self.chance(0.72)
        bottom = self.u(98, 110) if beach else 124.0
        self.draw_glitter(shore, bottom)
        self.draw_strokes(shore, bottom)
        self.draw_boats(shore + 3, bottom - 6, (0.2, 0.45, 0.35) if beach else (0, 0.5, 0.5))
        if beach:
            slope = self.pick([-1, 1]) * self.u(4, 16)
            line = self.curve(bottom + 4, 2.5, 0.6)
            line[:, 1] += (line[:, 0] - 64) / 64 * slope
            foam = line - (0, 2.2)
            self.c.fill(
                np.concatenate([foam, (line + (0, 2))[::-1]]),
                self.tone(_hex("fbfdff"), 0, 0.3),
                alpha=0.75,
                blur=0.8,
            )
            self.draw_land(line, self.ground_colour)
            high = 104.0 if slope < 0 else 24.0  # the side where the beach is broad
            x = high + self.u(-8, 8)
            y = float(np.interp(x, line[:, 0], line[:, 1]))
            kind = self.pick(["house", "lighthouse", "none"], [0.42, 0.3, 0.28])
            if kind == "house":
                self.draw_house(x, min(y + 9, 121), self.u(24, 34))
            elif kind == "lighthouse":
                self.draw_lighthouse(x, y + 8, self.u(44, 56))
            self.scatter(
                lambda x: float(np.interp(x, line[:, 0], line[:, 1])) + 5,
                int(self.u(0, 5)),
                self.u(24, 36),
                8,
            )

    def draw_meadow(self, river=False):
        top = self.horizon + 1
        far = self.curve(top, 2.0, 0.8)
        if self.chance(0.4) and "conifer" in self.trees:
            self.draw_forest(top + 2, self.u(9, 14))
        self.draw_land(far, _mix(self.ground_colour, self.hue(GROUNDS[self.ground]), 0.5))
        middle = top + self.u(12, 20)
        houses = self.pick([0, 1, 2, 3], [0.22, 0.48, 0.2, 0.1])
        rolls = [(middle, 4.0), (middle + self.u(14, 20), 5.0)]
        places = self.rng.permutation([26.0, 64.0, 102.0])
        if river:
            x0 = self.u(30, 98)
            shape = self.ribbon(
                x0, top + 4, self.u(34, 94), 132, 7, self.u(48, 72), self.u(-26, 26)
            )
            self.reflect(top + 1, shape)
            self.draw_glitter(top + 12, 124)
            if self.chance(0.35):
                ys, mid, _ = self.ways[0]
                y = self.u(106, 116)
                self.draw_boat(float(np.interp(y, ys, mid)), y, self.u(20, 24))
            rolls = []
        self.scatter(
            lambda x: float(np.interp(x, far[:, 0], far[:, 1])) + 2,
            int(self.u(1, 7)),
            self.u(12, 18),
            5,
        )
        line, path = far, None
        for i, (base, amplitude) in enumerate(rolls):
            line = self.curve(base, amplitude, self.u(0.5, 0.9))
            shade = _mix(self.ground_colour, BLACK if i else self.light, 0.08)
            self.draw_land(line, shade)
            if i == 0:
                path = self.place_houses(line, places[:houses], 6, self.u(24, 34))
                self.draw_bushes(lambda x, at=line: float(np.interp(x, at[:, 0], at[:, 1])), 8)
                self.scatter(
                    lambda x, at=line: float(np.interp(x, at[:, 0], at[:, 1])) + 3,
                    int(self.u(1, 6)),
                    self.u(22, 32),
                    6,
                )
        if path is not None:
            self.draw_path(path)
        if river:
            self.place_houses(line, places[:houses], 14, self.u(20, 30))
            self.scatter(lambda x: self.u(top + 8, 104), int(self.u(3, 9)), self.u(22, 32), 6)
            self.draw_bushes(lambda x: top + 12, 28)
        self.flowers(104)
        if self.chance(0.5):
            self.frame(102)

    def place_houses(self, line, places, drop, width):
        doors = []
        for x in places:
            x = x + self.u(-8, 8)
            y = float(np.interp(x, line[:, 0], line[:, 1])) + drop + self.u(0, 4)
            if not self.blocked(x, y, width * 0.6):
                doors.append((y, x, width * self.u(0.85, 1.1)))
        path = None
        for i, (y, x, w) in enumerate(sorted(doors)):
            door = self.draw_house(x, y, w)
            if i == len(doors) - 1 and self.layout != "river" and self.chance(0.65):
                path = self.ribbon(
                    door, y + 0.3, self.u(30, 98), 134, 4.5, self.u(16, 26), self.u(-14, 14)
                )
        return path

    def draw_peaks(self):
        top = self.horizon
        self.draw_forest(top + 3, self.u(11, 16))
        line = self.curve(top + 4, 3, 0.7)
        self.draw_land(line, self.ground_colour)
        if self.chance(0.6):
            path = self.place_houses(line, [self.u(30, 98)], 10, self.u(22, 32))
            if path is not None:
                self.draw_path(path)
        self.scatter(
            lambda x: float(np.interp(x, line[:, 0], line[:, 1])) + 4,
            int(self.u(3, 10)),
            self.u(24, 38),
            14,
        )
        if self.chance(0.5):
            self.frame(108)

    # --- the whole ------------------------------------------------------------------------
    def draw(self):
        self.ways: list = []
        self.plots: list = []
        self.lit: set = set()
        self.mist = False
        self.choose()
        self.draw_sky()
        self.draw_background()
        {
            "lake": self.draw_lake,
            "sea": self.draw_sea,
            "peaks": self.draw_peaks,
            "meadow": self.draw_meadow,
            "river": lambda: self.draw_meadow(river=True),
        }[self.layout]()
        if not self.overcast:
            self.c.glow(self.sun_x, self.sun_y, 70, self.light, 0.10)

    # --- words ----------------------------------------------------------------------------
    def gather(self) -> dict:
        """What can be seen, from the owner map."""
        seen: dict[str, list[float]] = {}
        houses, sailing, rowing, lit = [], [], [], False
        for index, (name, area, share) in enumerate(self.c.visible()):
            if name.startswith("house"):
                if share > 0.6 and area > 90:
                    houses.append(name.split()[1])
                    lit = lit or index in self.lit
            elif name.startswith("boat"):
                if share > 0.6 and area > 20:
                    (sailing if "sailing" in name else rowing).append(name.split()[2])
            elif area * (share > 0.35) > 0:
                seen.setdefault(name, []).append(area)
        total = {name: sum(areas) for name, areas in seen.items()}

        def large(name, least):
            return bool(total.get(name, 0) >= least)

        trees = {
            kind: int(sum(a > 40 for a in seen.get(kind, []))) for kind in ("conifer", "broadleaf")
        }
        return {
            "time": self.time,
            "overcast": self.overcast,
            "sun": large("sun", 45),
            "moon": next(
                (m.split()[0] for m in ("full moon", "crescent moon") if large(m, 25)), None
            ),
            "stars": bool(self.facts.get("stars")),
            "northern_lights": bool(self.facts.get("northern_lights")),
            "clouds": large("cloud", 150) and not self.overcast,
            "mist": self.mist,
            "mountains": large("mountains", 250),
            "snow_caps": large("snowcaps", 60) and large("mountains", 250),
            "hills": large("hills", 250) and not large("mountains", 250),
            "water": {"lake": "lake", "sea": "sea", "river": "river"}.get(self.layout)
            if large("water", 400)
            else None,
            "ground": self.ground if large("ground", 700) else None,
            "path": large("path", 90),
            "lighthouse": large("lighthouse", 150),
            "houses": houses,
            "lit_windows": lit,
            "sailing_boats": sailing,
            "rowing_boats": rowing,
            "conifers": trees["conifer"],
            "broadleaves": trees["broadleaf"],
            "forest": large("forest", 200),
            "leaves": self.leaves if trees["broadleaf"] else None,
        }

    def caption(self, f: dict) -> str:
        say = self.pick
        numbers = {2: "two", 3: "three"}
        ground = {
            "meadow": ["a green meadow", "a green field"],
            "snow": ["a snowy field", "snow"],
            "sand": ["the sand", "a sandy beach"] if f["water"] == "sea" else ["the sand"],
            "autumn": ["an autumn field", "an autumn meadow"],
            "wheat": ["a wheat field"],
            "lavender": ["a lavender field"],
        }.get(f["ground"])
        water = {"lake": "a lake", "sea": "the sea", "river": "a river"}.get(f["water"])
        houses = f["houses"]
        if len(houses) == 1:
            subject = f"a {houses[0]} house".replace("a orange", "an orange")
        elif houses:
            subject = f"{numbers[len(houses)]} houses"
            if len(houses) == 2 and houses[0] != houses[1] and self.chance(0.6):
                subject = f"a {houses[0]} house and a {houses[1]} house"
                subject = subject.replace("a orange", "an orange")
        else:
            subject = ""
        clauses = []
        if subject:
            where = f"by {water}" if water else (f"in {say(ground)}" if ground else "")
            subject = f"{subject} {where}".strip()
            if water and ground and self.chance(0.4):
                clauses.append(say(ground))
        elif f["lighthouse"]:
            subject = f"a lighthouse by {water}" if water else "a lighthouse"
        else:
            subject = water or (say(ground) if ground else "a landscape")
            if water and ground and self.chance(0.6):
                clauses.append(say(ground))
        if f["moon"]:
            subject += f" under a {f['moon']} moon"
        elif f["sun"] and self.chance(0.6):
            subject += {
                "day": " in the sun",
                "dawn": " under a rising sun",
                "dusk": " under a setting sun",
            }[f["time"]]
        elif f["overcast"]:
            clauses.append(
                say(["overcast sky", "grey sky"]) if f["time"] == "day" else "overcast sky"
            )
        boats = []
        for kind in ("sailing", "rowing"):
            colours = f[f"{kind}_boats"]
            if len(colours) == 1:
                if kind == "sailing":
                    boats.append(
                        f"a boat with {colours[0]} sails" if self.chance(0.5) else "a sailing boat"
                    )
                else:
                    boats.append("a rowing boat")
            elif colours:
                boats.append(f"two {kind} boats")
        clauses += boats
        if f["mountains"]:
            clauses.append(
                say(["snowy mountains", "mountains with snow"]) if f["snow_caps"] else "mountains"
            )
        elif f["hills"]:
            clauses.append("hills")
        leaf = {
            "green": "broadleaf trees",
            "autumn": "autumn trees",
            "blossom": "pink blossom trees",
        }.get(f["leaves"])
        if f["conifers"]:
            clauses.append("conifer trees" if f["conifers"] > 1 else "a conifer tree")
        elif f["forest"]:
            clauses.append("a conifer forest")
        if leaf:
            clauses.append(
                leaf if f["broadleaves"] > 1 else ("an " if leaf[0] == "a" else "a ") + leaf[:-1]
            )
        if f["path"]:
            clauses.append(say(["a path", "a winding path"]))
        if f["lit_windows"]:
            clauses.append(say(["lit windows", "glowing windows"]))
        if f["clouds"]:
            clauses.append("clouds")
        if f["northern_lights"]:
            clauses.append("northern lights")
        if f["stars"] and self.chance(0.7):
            clauses.append("stars")
        if f["mist"] and self.chance(0.7):
            clauses.append("mist")
        clauses = [clauses[i] for i in self.rng.permutation(len(clauses))]
        when = say(
            {
                "dawn": ["dawn", "early morning"],
                "day": ["day", "daytime"],
                "dusk": ["dusk", "sunset", "evening"],
                "night": ["night", "at night"],
            }[f["time"]]
        )
        if f["overcast"] and when == "sunset":
            when = "evening"
        while len(" ".join([subject, *clauses, when]).split()) > 28:
            clauses.pop()
        return ", ".join([subject, *clauses, when])


def draw_scene(seed: int, size: int = 128) -> Scene:
    """Draw the landscape that belongs to `seed` (>= 0): always the same bytes for the same seed.

    Returns a Scene with an RGB picture of size x size pixels, a caption of what can be seen
    (lower case, at most 30 words, no style words) and the facts behind it.
    """
    scene = _Scene(seed, size)
    scene.draw()
    facts = scene.gather()
    return Scene(scene.c.picture(size), scene.caption(facts), facts)
