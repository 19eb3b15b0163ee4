"""The dice of a scene, and the plan that they draw first: time, weather, ground and light."""

from dataclasses import dataclass

import numpy as np

from stylenb.pocket.palettes import GROUNDS, LIGHTS, OVERCAST, RIDGES, SKIES, TINTS, mix, rgb


class Dice:
    """Every random choice of one scene. The order of the throws is part of the drawing."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng([7001, seed])

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def pick(self, items, weights=None):
        """One of `items`, all as likely unless weights say otherwise."""
        items = list(items)
        if weights is None:
            return items[int(self.rng.random() * len(items))]
        edges = np.cumsum(weights)
        return items[int(np.searchsorted(edges, self.rng.random() * edges[-1], side="right"))]

    def hue(self, codes: str | list[str]) -> np.ndarray:
        """A hex colour, or one of several, a little off."""
        colour = rgb(codes if isinstance(codes, str) else self.pick(codes))
        shift = self.rng.normal(0, 0.025, 3).astype(np.float32)
        return np.clip(colour + shift, 0, 1)

    def line(self, base, amplitude, waves, slope=0.0) -> np.ndarray:
        """A rolling line of points (x, y) across the picture, lower by `slope` at the right."""
        xs = np.linspace(-4, 132, 40)
        ys = np.full_like(xs, base)
        for octave in (1, 2.1, 3.7):
            turn = xs / 128 * 2 * np.pi * waves * octave + self.between(0, 2 * np.pi)
            ys += amplitude / octave * np.sin(turn) * self.between(0.5, 1)
        return np.stack([xs, ys + (xs - 64) / 64 * slope], 1)


@dataclass(frozen=True)
class Plan:
    """What holds for a whole scene, chosen before anything is drawn."""

    time: str  # dawn, day, dusk or night
    layout: str  # lake, meadow, sea, river or peaks
    overcast: bool
    northern_lights: bool
    sky: list[np.ndarray]  # its colours at the zenith, in the middle, at the horizon
    light: np.ndarray  # the colour of the sun or moon
    tint: np.ndarray  # what the light does to a colour seen in full daylight
    haze: np.ndarray  # what far things fade to
    horizon: float
    sun_x: float
    ground: str
    ground_colour: np.ndarray
    snowy: bool  # mountains wear caps of snow
    leaves: str  # of the broadleaf trees: green, autumn or blossom
    trees: list[str]  # kinds that grow here: conifer, broadleaf
    ridge_colour: np.ndarray
    furrows: bool
    furrows_meet: float  # x of the point behind the horizon where they run together

    @property
    def stars(self) -> bool:
        return self.time == "night" and not self.overcast

    def tone(self, colour, depth=0.0, keep=0.0):
        """A daylight colour as this scene's light shows it, `depth` (0..1) into the haze.

        `keep` (0..1) holds back the tint, for things that must keep their colour.
        """
        tint = self.tint + (1 - self.tint) * np.float32(keep)
        return mix(colour * tint, self.haze, depth)

    def shades(self, colour, lighter, darker, depth, keep=0.0):
        """Its tones in the light (mixed with `lighter` of it) and in the shade (times `darker`)."""
        bright = self.tone(mix(colour, self.light, lighter), depth, keep)
        return bright, self.tone(colour * darker, depth, keep)

    def light_side(self, x: float) -> float:
        """-1 if the light comes from the left of x, 1 if from the right."""
        return 1.0 if self.sun_x > x else -1.0

    def depth_at(self, y) -> float:
        """How hazy a thing standing at y is: 0.35 at the horizon, 0 at the bottom."""
        return 0.35 * float(np.clip((112 - y) / (112 - self.horizon), 0, 1))


def make_plan(dice: Dice) -> Plan:
    time = dice.pick(["dawn", "day", "dusk", "night"], [0.22, 0.36, 0.22, 0.20])
    layouts = ["lake", "meadow", "sea", "river", "peaks"]
    layout = dice.pick(layouts, [0.28, 0.27, 0.18, 0.14, 0.13])
    overcast = dice.chance(0.05 if time == "night" else 0.16)
    skies = OVERCAST if overcast else SKIES
    sky = [dice.hue(code) for code in dice.pick(skies[time]).split()]
    horizon = dice.between(58, 76)
    if layout == "peaks":
        horizon = dice.between(78, 92)
    sun_x = dice.between(16, 112)
    ground = dice.pick(GROUNDS, [0.42, 0.17, 0.05, 0.16, 0.10, 0.10])
    if layout == "sea":
        ground = dice.pick(["sand", "meadow", "snow"], [0.7, 0.22, 0.08])
    elif layout == "peaks":
        ground = dice.pick(["meadow", "snow", "autumn"], [0.5, 0.32, 0.18])
    ground_colour = dice.hue(GROUNDS[ground])
    snowy = ground == "snow" or (ground != "sand" and dice.chance(0.4))
    leaves = "autumn" if ground == "autumn" else "green"
    if ground == "meadow":
        leaves = dice.pick(["green", "blossom"], [0.78, 0.22])
    trees = ["conifer"]
    if ground != "snow":
        kinds = [["conifer"], ["broadleaf"], ["conifer", "broadleaf"]]
        trees = dice.pick(kinds, [0.34, 0.42, 0.24])
    return Plan(
        time=time,
        layout=layout,
        overcast=overcast,
        sky=sky,
        light=rgb(LIGHTS[time]),
        tint=np.array(TINTS[time], np.float32) * np.float32(0.88 if overcast else 1),
        haze=mix(sky[2], sky[1], 0.25),
        horizon=horizon,
        sun_x=sun_x,
        ground=ground,
        ground_colour=ground_colour,
        snowy=snowy,
        leaves=leaves,
        trees=["broadleaf"] if ground == "sand" else trees,
        ridge_colour=dice.hue(RIDGES),
        furrows=ground in ("wheat", "lavender") and dice.chance(0.75),
        furrows_meet=dice.between(20, 108),
        northern_lights=time == "night" and not overcast and dice.chance(0.22),
    )
