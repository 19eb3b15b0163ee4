"""Small landscapes drawn from a seed, each with a caption that is true of it.

A scene is planned (plan.py), drawn from the sky down to what stands closest, in one of five
layouts, and then looked at: the caption names what can still be seen (captions.py). Marks are
four units or more and shading is soft, because a factor-8 autoencoder has to carry them.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from stylenb.pocket import land, things
from stylenb.pocket.canvas import Canvas, average_down, box
from stylenb.pocket.captions import find_facts, write_caption
from stylenb.pocket.palettes import BLACK, GROUNDS, mix, rgb
from stylenb.pocket.plan import Dice, make_plan
from stylenb.pocket.sky import draw_sky


@dataclass(frozen=True)
class Scene:
    """A drawn landscape: RGB picture, caption without any style words, and what is in it.

    facts holds plain values only (str, bool, int, None and lists of str), ready for JSON.
    """

    picture: Image.Image
    caption: str
    facts: dict


def draw_scene(seed: int, size: int = 128) -> Scene:
    """Draw the landscape that belongs to `seed` (>= 0): always the same bytes for the same seed.

    Returns a Scene with an RGB picture of size x size pixels, a caption of what can be seen
    (lower case, at most 30 words, no style words) and the facts behind it.
    """
    canvas, dice = Canvas(size), Dice(seed)
    plan = make_plan(dice)
    sun_y = draw_sky(canvas, dice, plan)
    mist = land.draw_background(canvas, dice, plan)
    LAYOUTS[plan.layout](canvas, dice, plan)
    if sun_y is not None:
        canvas.glow(plan.sun_x, sun_y, 70, plan.light, 0.10)
    facts = find_facts(canvas, plan, mist)
    return Scene(average_down(canvas.pixels, size), write_caption(dice, facts), facts)


def draw_lake(canvas, dice, plan):
    shore = plan.horizon + dice.between(4, 9)
    bank = dice.line(plan.horizon + 1, 1.2, 1.0)
    if "conifer" in plan.trees and dice.chance(0.55):
        things.draw_forest(canvas, dice, plan, plan.horizon + 3, dice.between(9, 14))
    land.draw_land(canvas, plan, bank, plan.ground_colour, shore)
    house_count = dice.pick([0, 1, 2, 3], [0.25, 0.42, 0.22, 0.11])
    for x in dice.rng.permutation([24.0, 62.0, 100.0])[:house_count]:
        x, y = x + dice.between(-9, 9), shore - dice.between(0.5, 2)
        things.draw_house(canvas, dice, plan, x, y, dice.between(17, 24))
    things.draw_trees(canvas, dice, plan, lambda x: land.level(bank, x) + 1, (2, 9), (14, 22), 3)
    water = land.draw_water(canvas, dice, plan, shore)
    canvas.fill(box(-4, shore - 0.8, 132, shore + 0.8), plan.haze, alpha=0.4, blur=0.6)
    near = dice.chance(0.72)
    bottom = dice.between(106, 114) if near else 124.0
    land.draw_glitter(canvas, dice, plan, shore, bottom, water)
    land.draw_ripples(canvas, dice, plan, shore, bottom, water)
    things.draw_boats(canvas, dice, plan, shore + 3, bottom - 4)
    if near:
        line = dice.line(bottom + 2, 3, 0.7, dice.between(-9, 9))
        land.draw_land(canvas, plan, line, plan.ground_colour * 0.9)
        things.draw_flowers(canvas, dice, plan, bottom + 6)
        if dice.chance(0.6):
            things.draw_near_trees(canvas, dice, plan, bottom - 2)


def draw_sea(canvas, dice, plan):
    shore = plan.horizon
    water = land.draw_water(canvas, dice, plan, shore)
    beach = dice.chance(0.72)
    bottom = dice.between(98, 110) if beach else 124.0
    land.draw_glitter(canvas, dice, plan, shore, bottom, water)
    land.draw_ripples(canvas, dice, plan, shore, bottom, water)
    boats = (0.2, 0.45, 0.35) if beach else (0, 0.5, 0.5)
    things.draw_boats(canvas, dice, plan, shore + 3, bottom - 6, boats)
    if beach:
        draw_beach(canvas, dice, plan, bottom)


def draw_beach(canvas, dice, plan, bottom):
    slope = dice.pick([-1, 1]) * dice.between(4, 16)
    line = dice.line(bottom + 4, 2.5, 0.6, slope)
    foam = np.concatenate([line - (0, 2.2), (line + (0, 2))[::-1]])
    canvas.fill(foam, plan.tone(rgb("fbfdff"), 0, 0.3), alpha=0.75, blur=0.8)
    land.draw_land(canvas, plan, line, plan.ground_colour)
    x = (104.0 if slope < 0 else 24.0) + dice.between(-8, 8)  # where the beach is broad
    y = land.level(line, x)
    kind = dice.pick(["house", "lighthouse", "none"], [0.42, 0.3, 0.28])
    if kind == "house":
        things.draw_house(canvas, dice, plan, x, min(y + 9, 121), dice.between(24, 34))
    elif kind == "lighthouse":
        things.draw_lighthouse(canvas, dice, plan, x, y + 8, dice.between(44, 56))
    things.draw_trees(canvas, dice, plan, lambda x: land.level(line, x) + 5, (0, 5), (24, 36), 8)


def draw_meadow(canvas, dice, plan):
    far, levels, places = draw_far_field(canvas, dice, plan)
    things.draw_trees(canvas, dice, plan, lambda x: land.level(far, x) + 2, (1, 7), (12, 18), 5)
    line = dice.line(levels[0], 4.0, dice.between(0.5, 0.9))
    land.draw_land(canvas, plan, line, mix(plan.ground_colour, plan.light, 0.08))
    path = draw_houses(canvas, dice, plan, line, places, 6, dice.between(24, 34))
    things.draw_bushes(canvas, dice, plan, lambda x: land.level(line, x), 8)
    things.draw_trees(canvas, dice, plan, lambda x: land.level(line, x) + 3, (1, 6), (22, 32), 6)
    nearer = dice.line(levels[1], 5.0, dice.between(0.5, 0.9))
    land.draw_land(canvas, plan, nearer, mix(plan.ground_colour, BLACK, 0.08))
    if path is not None:
        land.draw_path(canvas, dice, plan, path)
    draw_close_by(canvas, dice, plan)


def draw_river(canvas, dice, plan):
    top = plan.horizon + 1
    far, _, places = draw_far_field(canvas, dice, plan)
    ends = dice.between(30, 98), top + 4, dice.between(34, 94), 132
    shape = land.ribbon(canvas, *ends, 7, dice.between(48, 72), dice.between(-26, 26))
    water = land.draw_water(canvas, dice, plan, top + 1, shape)
    land.draw_glitter(canvas, dice, plan, top + 12, 124, water)
    if dice.chance(0.35):
        ys, middle, _ = canvas.ways[0]
        y = dice.between(106, 116)
        x = float(np.interp(y, ys, middle))
        things.draw_boat(canvas, dice, plan, x, y, dice.between(20, 24))
    things.draw_trees(canvas, dice, plan, lambda x: land.level(far, x) + 2, (1, 7), (12, 18), 5)
    draw_houses(canvas, dice, plan, far, places, 14, dice.between(20, 30))
    things.draw_trees(canvas, dice, plan, lambda x: dice.between(top + 8, 104), (3, 9), (22, 32), 6)
    things.draw_bushes(canvas, dice, plan, lambda x: top + 12, 28)
    draw_close_by(canvas, dice, plan)


def draw_far_field(canvas, dice, plan):
    """Returns the line where the land begins, y of two rolls of land nearby, and x of houses."""
    top = plan.horizon + 1
    far = dice.line(top, 2.0, 0.8)
    if dice.chance(0.4) and "conifer" in plan.trees:
        things.draw_forest(canvas, dice, plan, top + 2, dice.between(9, 14))
    land.draw_land(canvas, plan, far, mix(plan.ground_colour, dice.hue(GROUNDS[plan.ground]), 0.5))
    middle = top + dice.between(12, 20)
    houses = dice.pick([0, 1, 2, 3], [0.22, 0.48, 0.2, 0.1])
    levels = middle, middle + dice.between(14, 20)
    return far, levels, dice.rng.permutation([26.0, 64.0, 102.0])[:houses]


def draw_close_by(canvas, dice, plan):
    things.draw_flowers(canvas, dice, plan, 104)
    if dice.chance(0.5):
        things.draw_near_trees(canvas, dice, plan, 102)


def draw_houses(canvas, dice, plan, line, places, drop, width):
    """Houses `drop` below the line near the x in places; returns the path of the last or None."""
    spots, path = [], None
    for x in places:
        x = x + dice.between(-8, 8)
        y = land.level(line, x) + drop + dice.between(0, 4)
        if not canvas.blocked(x, y, width * 0.6):
            spots.append((y, x, width * dice.between(0.85, 1.1)))
    for y, x, w in sorted(spots):
        door = things.draw_house(canvas, dice, plan, x, y, w)
    if spots and plan.layout != "river" and dice.chance(0.65):
        ends = door, y + 0.3, dice.between(30, 98), 134
        path = land.ribbon(canvas, *ends, 4.5, dice.between(16, 26), dice.between(-14, 14))
    return path


def draw_peaks(canvas, dice, plan):
    things.draw_forest(canvas, dice, plan, plan.horizon + 3, dice.between(11, 16))
    line = dice.line(plan.horizon + 4, 3, 0.7)
    land.draw_land(canvas, plan, line, plan.ground_colour)
    if dice.chance(0.6):
        place = dice.between(30, 98)
        path = draw_houses(canvas, dice, plan, line, [place], 10, dice.between(22, 32))
        if path is not None:
            land.draw_path(canvas, dice, plan, path)
    things.draw_trees(canvas, dice, plan, lambda x: land.level(line, x) + 4, (3, 10), (24, 38), 14)
    if dice.chance(0.5):
        things.draw_near_trees(canvas, dice, plan, 108)


LAYOUTS = {
    "lake": draw_lake,
    "sea": draw_sea,
    "meadow": draw_meadow,
    "river": draw_river,
    "peaks": draw_peaks,
}
