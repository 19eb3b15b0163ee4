"""Small landscapes drawn from a seed, each with a caption that is true of it.

A scene is planned (plan.py), drawn from the sky down to what stands closest, and then looked at:
the caption names what can still be seen (captions.py). Marks are four units or more and shading
is soft, because a factor-8 autoencoder has to carry them.
"""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from stylenb.pocket.canvas import Canvas, average_down, box
from stylenb.pocket.captions import find_facts, write_caption
from stylenb.pocket.land import (
    draw_background,
    draw_glitter,
    draw_land,
    draw_path,
    draw_ripples,
    draw_water,
    level,
    ribbon,
)
from stylenb.pocket.palettes import BLACK, GROUNDS, mix, rgb
from stylenb.pocket.plan import Dice, make_plan
from stylenb.pocket.sky import draw_sky
from stylenb.pocket.things import (
    draw_boat,
    draw_boats,
    draw_bushes,
    draw_flowers,
    draw_forest,
    draw_house,
    draw_lighthouse,
    draw_near_trees,
    draw_trees,
)


@dataclass(frozen=True)
class Scene:
    """A drawn landscape: RGB picture, caption without any style words, and what is in it.

    facts holds plain values only (str, bool, int, None and lists of str), ready for JSON.
    """

    picture: Image.Image
    caption: str
    facts: dict = field(default_factory=dict)


def draw_scene(seed: int, size: int = 128) -> Scene:
    """Draw the landscape that belongs to `seed` (>= 0): always the same bytes for the same seed.

    Returns a Scene with an RGB picture of size x size pixels, a caption of what can be seen
    (lower case, at most 30 words, no style words) and the facts behind it.
    """
    canvas, dice = Canvas(size), Dice(seed)
    plan = make_plan(dice)
    sun_y = draw_sky(canvas, dice, plan)
    mist = draw_background(canvas, dice, plan)
    LAYOUTS[plan.layout](canvas, dice, plan)
    if sun_y is not None:
        canvas.glow(plan.sun_x, sun_y, 70, plan.light, 0.10)
    facts = find_facts(canvas, plan, mist)
    return Scene(average_down(canvas.pixels, size), write_caption(dice, facts), facts)


# ---- layouts: how what lies in front of the horizon is put together -----------------------------


def draw_lake(canvas, dice, plan):
    shore = plan.horizon + dice.between(4, 9)
    bank = dice.line(plan.horizon + 1, 1.2, 1.0)
    if "conifer" in plan.trees and dice.chance(0.55):
        draw_forest(canvas, dice, plan, plan.horizon + 3, dice.between(9, 14))
    draw_land(canvas, plan, bank, plan.ground_colour, shore)
    house_count = dice.pick([0, 1, 2, 3], [0.25, 0.42, 0.22, 0.11])
    for x in dice.rng.permutation([24.0, 62.0, 100.0])[:house_count]:
        x, y = x + dice.between(-9, 9), shore - dice.between(0.5, 2)
        draw_house(canvas, dice, plan, x, y, dice.between(17, 24))
    count, height = int(dice.between(2, 9)), dice.between(14, 22)
    draw_trees(canvas, dice, plan, lambda x: level(bank, x) + 1, count, height, 3)
    water = draw_water(canvas, dice, plan, shore)
    canvas.fill(box(-4, shore - 0.8, 132, shore + 0.8), plan.haze, alpha=0.4, blur=0.6)
    near = dice.chance(0.72)
    bottom = dice.between(106, 114) if near else 124.0
    draw_glitter(canvas, dice, plan, shore, bottom, water)
    draw_ripples(canvas, dice, plan, shore, bottom, water)
    draw_boats(canvas, dice, plan, shore + 3, bottom - 4)
    if near:
        slope = dice.between(-9, 9)
        line = dice.line(bottom + 2, 3, 0.7, slope)
        draw_land(canvas, plan, line, plan.ground_colour * 0.9)
        draw_flowers(canvas, dice, plan, bottom + 6)
        if dice.chance(0.6):
            draw_near_trees(canvas, dice, plan, bottom - 2)


def draw_sea(canvas, dice, plan):
    shore = plan.horizon
    water = draw_water(canvas, dice, plan, shore)
    beach = dice.chance(0.72)
    bottom = dice.between(98, 110) if beach else 124.0
    draw_glitter(canvas, dice, plan, shore, bottom, water)
    draw_ripples(canvas, dice, plan, shore, bottom, water)
    boats = (0.2, 0.45, 0.35) if beach else (0, 0.5, 0.5)
    draw_boats(canvas, dice, plan, shore + 3, bottom - 6, boats)
    if beach:
        draw_beach(canvas, dice, plan, bottom)


def draw_beach(canvas, dice, plan, bottom):
    slope = dice.pick([-1, 1]) * dice.between(4, 16)
    line = dice.line(bottom + 4, 2.5, 0.6, slope)
    foam = np.concatenate([line - (0, 2.2), (line + (0, 2))[::-1]])
    canvas.fill(foam, plan.tone(rgb("fbfdff"), 0, 0.3), alpha=0.75, blur=0.8)
    draw_land(canvas, plan, line, plan.ground_colour)
    broad = 104.0 if slope < 0 else 24.0  # x where the beach is broad
    x = broad + dice.between(-8, 8)
    y = level(line, x)
    kind = dice.pick(["house", "lighthouse", "none"], [0.42, 0.3, 0.28])
    if kind == "house":
        draw_house(canvas, dice, plan, x, min(y + 9, 121), dice.between(24, 34))
    elif kind == "lighthouse":
        draw_lighthouse(canvas, dice, plan, x, y + 8, dice.between(44, 56))
    count, height = int(dice.between(0, 5)), dice.between(24, 36)
    draw_trees(canvas, dice, plan, lambda x: level(line, x) + 5, count, height, 8)


def draw_meadow(canvas, dice, plan):
    far, levels, places = draw_far_field(canvas, dice, plan)
    draw_far_trees(canvas, dice, plan, far)
    line = dice.line(levels[0], 4.0, dice.between(0.5, 0.9))
    draw_land(canvas, plan, line, mix(plan.ground_colour, plan.light, 0.08))
    path = draw_houses(canvas, dice, plan, line, places, 6, dice.between(24, 34))
    draw_bushes(canvas, dice, plan, lambda x: level(line, x), 8)
    count, height = int(dice.between(1, 6)), dice.between(22, 32)
    draw_trees(canvas, dice, plan, lambda x: level(line, x) + 3, count, height, 6)
    nearer = dice.line(levels[1], 5.0, dice.between(0.5, 0.9))
    draw_land(canvas, plan, nearer, mix(plan.ground_colour, BLACK, 0.08))
    if path is not None:
        draw_path(canvas, dice, plan, path)
    draw_close_by(canvas, dice, plan)


def draw_river(canvas, dice, plan):
    top = plan.horizon + 1
    far, _, places = draw_far_field(canvas, dice, plan)
    ends = dice.between(30, 98), top + 4, dice.between(34, 94), 132
    shape = ribbon(canvas, *ends, 7, dice.between(48, 72), dice.between(-26, 26))
    water = draw_water(canvas, dice, plan, top + 1, shape)
    draw_glitter(canvas, dice, plan, top + 12, 124, water)
    if dice.chance(0.35):
        ys, middle, _ = canvas.ways[0]
        y = dice.between(106, 116)
        x = float(np.interp(y, ys, middle))
        draw_boat(canvas, dice, plan, x, y, dice.between(20, 24))
    draw_far_trees(canvas, dice, plan, far)
    draw_houses(canvas, dice, plan, far, places, 14, dice.between(20, 30))
    count, height = int(dice.between(3, 9)), dice.between(22, 32)
    draw_trees(canvas, dice, plan, lambda x: dice.between(top + 8, 104), count, height, 6)
    draw_bushes(canvas, dice, plan, lambda x: top + 12, 28)
    draw_close_by(canvas, dice, plan)


def draw_far_field(canvas, dice, plan):
    """Returns the line where the land begins, y of two rolls of land nearby, and x of houses."""
    top = plan.horizon + 1
    far = dice.line(top, 2.0, 0.8)
    if dice.chance(0.4) and "conifer" in plan.trees:
        draw_forest(canvas, dice, plan, top + 2, dice.between(9, 14))
    draw_land(canvas, plan, far, mix(plan.ground_colour, dice.hue(GROUNDS[plan.ground]), 0.5))
    middle = top + dice.between(12, 20)
    houses = dice.pick([0, 1, 2, 3], [0.22, 0.48, 0.2, 0.1])
    levels = middle, middle + dice.between(14, 20)
    return far, levels, dice.rng.permutation([26.0, 64.0, 102.0])[:houses]


def draw_far_trees(canvas, dice, plan, far):
    count, height = int(dice.between(1, 7)), dice.between(12, 18)
    draw_trees(canvas, dice, plan, lambda x: level(far, x) + 2, count, height, 5)


def draw_close_by(canvas, dice, plan):
    draw_flowers(canvas, dice, plan, 104)
    if dice.chance(0.5):
        draw_near_trees(canvas, dice, plan, 102)


def draw_houses(canvas, dice, plan, line, places, drop, width):
    """Houses `drop` below the line near the x in places; returns the path of the last or None."""
    spots, path = [], None
    for x in places:
        x = x + dice.between(-8, 8)
        y = level(line, x) + drop + dice.between(0, 4)
        if not canvas.blocked(x, y, width * 0.6):
            spots.append((y, x, width * dice.between(0.85, 1.1)))
    for y, x, w in sorted(spots):
        door = draw_house(canvas, dice, plan, x, y, w)
    if spots and plan.layout != "river" and dice.chance(0.65):
        ends = door, y + 0.3, dice.between(30, 98), 134
        path = ribbon(canvas, *ends, 4.5, dice.between(16, 26), dice.between(-14, 14))
    return path


def draw_peaks(canvas, dice, plan):
    top = plan.horizon
    draw_forest(canvas, dice, plan, top + 3, dice.between(11, 16))
    line = dice.line(top + 4, 3, 0.7)
    draw_land(canvas, plan, line, plan.ground_colour)
    if dice.chance(0.6):
        places = [dice.between(30, 98)]
        path = draw_houses(canvas, dice, plan, line, places, 10, dice.between(22, 32))
        if path is not None:
            draw_path(canvas, dice, plan, path)
    count, height = int(dice.between(3, 10)), dice.between(24, 38)
    draw_trees(canvas, dice, plan, lambda x: level(line, x) + 4, count, height, 14)
    if dice.chance(0.5):
        draw_near_trees(canvas, dice, plan, 108)


LAYOUTS = {
    "lake": draw_lake,
    "sea": draw_sea,
    "meadow": draw_meadow,
    "river": draw_river,
    "peaks": draw_peaks,
}
