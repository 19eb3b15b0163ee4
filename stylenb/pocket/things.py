"""What stands on the land and floats on the water: trees, bushes, flowers, houses, boats."""

from dataclasses import dataclass

import numpy as np

from stylenb.pocket import palettes
from stylenb.pocket.canvas import Canvas, box, ellipse
from stylenb.pocket.palettes import BLACK, WHITE, mix, rgb
from stylenb.pocket.plan import Dice, Plan


def draw_shadow(canvas: Canvas, plan: Plan, x, y, half):
    """On the ground, on the side away from the light, for a thing of this half width."""
    shape = ellipse(x - plan.light_side(x) * half * 0.5, y, half * 1.3, max(1.6, half * 0.24))
    canvas.fill(shape, plan.tone(rgb("25304a")), alpha=0.12 if plan.overcast else 0.26, blur=0.9)


# ---- plants -------------------------------------------------------------------------------------


def draw_conifer(canvas: Canvas, dice: Dice, plan: Plan, x, y, height):
    depth, lit = plan.depth_at(y), plan.light_side(x)
    half = height * dice.between(0.22, 0.3)
    green = dice.hue(palettes.CONIFERS)
    bright, dark = plan.shades(green, 0.2, 0.62, depth)
    if plan.ground == "snow":
        bright = plan.tone(mix(green, WHITE, 0.5), depth, 0.25)
    draw_shadow(canvas, plan, x, y, half)
    stem = max(1.3, height * 0.05)
    trunk = box(x - stem, y - height * 0.2, x + stem, y)
    with canvas.thing("conifer") as label:
        canvas.fill(trunk, plan.tone(rgb("5a4334"), depth), label=label)
        for low, high, wide in ((0.10, 0.55, 1.0), (0.34, 0.78, 0.78), (0.58, 1.0, 0.54)):
            w, foot, top = half * wide, y - height * low, y - height * high
            tier = np.array([(x, top), (x + w, foot), (x, foot + height * 0.04), (x - w, foot)])
            fade = (x + lit * w * 0.8, foot, x - lit * w * 0.7, foot - height * 0.12)
            canvas.fill(tier, bright, dark, fade, label=label)


def draw_broadleaf(canvas, dice, plan, x, y, height):
    depth, lit = plan.depth_at(y), plan.light_side(x)
    leaf = dice.hue(palettes.LEAVES[plan.leaves])
    bright, dark = plan.shades(leaf, 0.28, 0.62, depth)
    r = height * dice.between(0.27, 0.34)
    draw_shadow(canvas, plan, x, y, r)
    stem, fork = max(1.4, height * 0.055), y - height * 0.6
    upper, lower = stem * 0.7, stem * 1.2
    trunk = np.array([(x - upper, fork), (x + upper, fork), (x + lower, y), (x - lower, y)])
    bark = plan.tone(dice.hue("6b4a36"), depth)
    cy = y - height + r
    crown = [ellipse(x, cy, r * 0.95, r)]
    for dx, dy, s in ((-0.62, 0.32, 0.68), (0.62, 0.30, 0.70), (0.0, 0.55, 0.72)):
        puff_x = x + (dx + dice.between(-0.1, 0.1)) * r
        crown.append(ellipse(puff_x, cy + dy * r, r * s * dice.between(0.92, 1.1), r * s * 0.9))
    fade = (x + lit * r * 0.9, cy - r * 0.8, x - lit * r * 0.8, cy + r * 1.1)
    with canvas.thing("broadleaf") as label:
        canvas.fill(trunk, bark, label=label)
        canvas.fill(crown, bright, dark, fade, label=label)
    spot = ellipse(x + lit * r * 0.35, cy - r * 0.25, r * 0.5, r * 0.42)
    canvas.fill(spot, mix(bright, plan.light, 0.25), alpha=0.45, blur=r * 0.1)


def draw_tree(canvas, dice, plan, x, y, height):
    if dice.pick(plan.trees) == "conifer":
        draw_conifer(canvas, dice, plan, x, y, height)
    else:
        draw_broadleaf(canvas, dice, plan, x, y, height * 0.9)


def draw_trees(canvas, dice, plan, foot, counts, heights, spread):
    """Trees in a few clumps, each up to `spread` below y = foot(x), the far ones first.

    counts and heights are ranges (least, below) of their number and of how tall they are.
    """
    count, height = int(dice.between(*counts)), dice.between(*heights)
    clumps = [dice.between(4, 124) for _ in range(max(1, count // 4))]
    spots = []
    for _ in range(count):
        x = dice.pick(clumps) + dice.rng.normal(0, 13)
        y = foot(x) + dice.between(0, spread)
        h = height * dice.between(0.75, 1.2)
        if -6 < x < 134 and not canvas.blocked(x, y, h * 0.22):
            spots.append((y, x, h))
    for y, x, h in sorted(spots):
        draw_tree(canvas, dice, plan, x, y, h)


def draw_near_trees(canvas, dice, plan, low):
    """One or two large trees at a side, close to the viewer, that frame the view."""
    left = dice.pick([True, False])
    x = dice.between(4, 20) if left else dice.between(108, 124)
    for i in range(int(dice.between(1, 2.99))):
        y = low + dice.between(4, 14) + 5 * i
        if not canvas.blocked(x, y, 8):
            draw_tree(canvas, dice, plan, x, y, dice.between(42, 62) - 8 * i)
        x += (1 if left else -1) * dice.between(12, 18)


def draw_forest(canvas, dice, plan, y, height):
    """A far line of conifers as one silhouette."""
    x = -4.0
    points = [(x, y + 2)]
    while x < 132:
        w, h = dice.between(5, 8), height * dice.between(0.6, 1.1)
        points += [(x, y - h * 0.25), (x + w / 2, y - h)]
        x += w
    points += [(x, y - height * 0.25), (x, y + 2)]
    green = plan.tone(dice.hue(palettes.CONIFERS), plan.depth_at(y) + 0.1)
    fade = (0, y - height, 0, y + 2)
    canvas.add("forest", np.array(points), green, mix(green, plan.haze, 0.35), fade)


def draw_bushes(canvas, dice, plan, foot, spread):
    """Up to four bushes, each up to `spread` below y = foot(x)."""
    for _ in range(int(dice.between(0, 5))):
        x, r = dice.between(0, 128), dice.between(3.2, 5.5)
        y = foot(x) + dice.between(0, spread)
        if canvas.blocked(x, y, r * 1.8):
            continue
        leaf = dice.hue(palettes.LEAVES["green" if plan.leaves == "blossom" else plan.leaves])
        if plan.ground == "snow":
            leaf = dice.hue("dfe6ee")
        depth, lit = plan.depth_at(y), plan.light_side(x)
        draw_shadow(canvas, plan, x, y, r * 1.5)
        puffs = [
            ellipse(x + dx * r, y - r * h, r * h * 1.15, r * h)
            for dx, h in ((0, 0.9), (-1.05, 0.62), (1.0, 0.68))
        ]
        fade = (x + lit * r, y - 1.5 * r, x - lit * r, y)
        canvas.fill(puffs, *plan.shades(leaf, 0.15, 0.62, depth), fade)


def draw_flowers(canvas, dice, plan, top):
    if plan.ground not in ("meadow", "lavender") or not dice.chance(0.4):
        return
    colour = plan.tone(dice.hue(["f4e9e0", "f2c84b", "e0564f", "e58fb0", "9f86d6"]), 0, 0.3)
    for _ in range(int(dice.between(8, 16))):
        x, y = dice.between(2, 126), dice.between(max(top, 104), 126)
        if not canvas.blocked(x, y, 2):
            r = 1.5 + 0.9 * (y - 104) / 22
            canvas.fill(ellipse(x, y, r * 1.2, r), colour, alpha=0.9, blur=0.4)


# ---- houses -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class House:
    """A gabled house seen from a corner: the gable's wall in front, a long side under the roof.

    (x, y) is the middle of its foot, width that of front and side together. Its parts are given
    in coordinates of its own: along the front and then the side, and upwards.
    """

    x: float
    y: float
    width: float
    front: float  # width of the gable's wall
    high: float  # of the walls, without the gable
    gable: float
    turn: int  # 1: the front is at the left, -1: at the right
    depth: float

    def at(self, points) -> np.ndarray:
        """House coordinates -> coordinates of the picture."""
        return (np.array(points) - (self.width / 2, 0)) * (self.turn, -1) + (self.x, self.y)


def draw_house(canvas, dice, plan, x, y, width) -> float:
    """Returns x of its door."""
    colour = dice.pick(palettes.WALLS, [3, 3, 2, 1.5, 1.3, 1, 1.2, 0.7])
    wall = dice.hue(palettes.WALLS[colour])
    roof = dice.hue(palettes.ROOFS)
    if plan.ground == "snow":
        roof = rgb("eef2f8")
    lit_windows = plan.time == "night" or (plan.time == "dusk" and dice.chance(0.7))
    turn = dice.pick([-1, 1])
    front = width * dice.between(0.38, 0.5)
    high, gable = width * dice.between(0.36, 0.46), width * dice.between(0.24, 0.34)
    house = House(x, y, width, front, high, gable, turn, plan.depth_at(y) * 0.6)
    draw_shadow(canvas, plan, x, y, width * 0.55)
    with canvas.thing("house", colour, lit_windows) as label:
        draw_walls(canvas, plan, house, wall, label)
        draw_roof(canvas, plan, house, roof, label)
        if dice.chance(0.6):
            left = front / 2 + (width - front) * 0.62
            chimney = box(left, high + gable * 0.7, left + width * 0.1, high + gable * 1.45)
            brick = plan.tone(rgb("8a5648"), house.depth, 0.25)
            canvas.fill(house.at(chimney), brick, label=label)
        draw_door_and_windows(canvas, plan, house, lit_windows, label)
    canvas.plots.append((x, y, width * 0.55))
    return x - turn * (width / 2 - front / 2)


def draw_walls(canvas, plan, house, wall, label):
    front, high, gable = house.front, house.high, house.gable
    bright, dark = plan.shades(wall, 0.12, 0.76, house.depth, 0.25)
    if plan.light_side(house.x) * house.turn > 0:  # the light falls on the side
        bright, dark = dark, bright
    face = [(0, 0), (front, 0), (front, high), (front / 2, high + gable), (0, high)]
    canvas.fill(house.at(face), bright, label=label)
    fade = (house.x, house.y - high, house.x, house.y)
    side = box(front, 0, house.width, high)
    canvas.fill(house.at(side), dark, dark * 0.9, fade, label=label)


def draw_roof(canvas, plan, house, roof, label):
    """The slope above the long side, and the edge of the other slope along the gable."""
    front, high, width = house.front, house.high, house.width
    start, end = front / 2, front / 2 + (width - front)  # of the ridge
    eave, edge = width * 0.05, max(1.3, width * 0.06)
    top, low = high + house.gable, high - eave
    ridge = top + eave * 0.6
    slope = [(start, ridge), (end, ridge), (width + eave, low), (front + eave, low)]
    lit, dark = plan.shades(roof, 0.15, 0.72, house.depth, 0.25)
    fade = (house.x, house.y - high - house.gable, house.x, house.y - high)
    canvas.fill(house.at(slope), lit, lit * 0.84, fade, label=label)
    rim = [
        (start, top + eave),
        (start, top - edge * 1.2),
        (-eave, high - eave * 1.2 - edge * 0.4),
        (-eave, low + edge),
    ]
    canvas.fill(house.at(rim), dark, label=label)


def draw_door_and_windows(canvas, plan, house, lit_windows, label):
    front, high, side = house.front, house.high, house.width - house.front
    wide = max(3.0, front * 0.3)
    door = box((front - wide) / 2, 0, (front + wide) / 2, high * 0.66)
    canvas.fill(house.at(door), plan.tone(rgb("5b3a2a"), house.depth, 0.25), label=label)
    size = max(3.0, min(side * 0.22, high * 0.45))
    spots = [(front + side * s, high * 0.52) for s in ((0.3, 0.72) if side > 13 else (0.5,))]
    pane = rgb("ffd98a") if lit_windows else plan.tone(rgb("4b6178"), house.depth)
    for x, y in spots:
        window = box(x - size / 2, y - size / 2, x + size / 2, y + size / 2)
        canvas.fill(house.at(window), pane, label=label)
    for x, y in house.at(spots) if lit_windows else ():
        canvas.glow(x, y, size * 1.5, rgb("ffcf70"), 0.38)
        canvas.fill(ellipse(x, y, size * 0.42, size * 0.42), rgb("fff0b8"), alpha=0.8)


def draw_lighthouse(canvas, dice, plan, x, y, height):
    lit, low, high = plan.light_side(x), height * 0.13, height * 0.085
    draw_shadow(canvas, plan, x, y, height * 0.16)
    paint = dice.hue(["c0392f", "34618f", "3f4a5c"])
    rings = [(i * 0.155, (i + 1) * 0.155, rgb("f5f1e8") if i % 2 else paint, 0.0) for i in range(5)]
    gallery, lamp = (0.76, 0.80, rgb("3f4a5c"), 1.4), (0.80, 0.90, rgb("ffe9a8"), -0.8)
    with canvas.thing("lighthouse") as label:
        for start, end, colour, grow in (*rings, gallery, lamp):
            w0, w1 = (low + (high - low) * t + grow for t in (start, end))
            top, foot = y - height * end, y - height * start
            shape = np.array([(x - w1, top), (x + w1, top), (x + w0, foot), (x - w0, foot)])
            fade = (x + lit * low, 0, x - lit * low, 0)
            canvas.fill(shape, *plan.shades(colour, 0.1, 0.66, 0, 0.25), fade, label=label)
        wide, foot = high * 1.15, y - height * 0.895
        cap = np.array([(x - wide, foot), (x, y - height), (x + wide, foot)])
        canvas.fill(cap, plan.tone(paint * 0.8, 0, 0.2), label=label)
    if plan.time in ("dusk", "night"):
        canvas.glow(x, y - height * 0.85, 13, rgb("ffe08a"), 0.6)
        canvas.fill(ellipse(x, y - height * 0.85, 2.2, 2.4), rgb("fff6d0"))
    canvas.plots.append((x, y, low + 2))


# ---- boats --------------------------------------------------------------------------------------


def draw_boat(canvas, dice, plan, x, y, width):
    """A sailing or rowing boat and its mirror image in the water."""
    depth = plan.depth_at(y) * 0.7
    kind = dice.pick(["sailing", "rowing"])
    colour = dice.pick(palettes.HULLS)
    hull = plan.tone(dice.hue(palettes.HULLS[colour]), depth, 0.25)
    turn = dice.pick([-1, 1])
    high = width * 0.2
    shape = np.array([(-0.5, 1.0), (0.54, 1.15), (0.36, 0.0), (-0.38, 0.0)]) * (width, high)
    parts = [(shape, hull, hull * 0.75)]  # seen from the foot of the boat, upwards
    if kind == "sailing":
        colour = dice.pick(palettes.SAILS, [4, 2, 1, 1, 1])
        sail = plan.tone(dice.hue(palettes.SAILS[colour]), depth, 0.45)
        tall = width * dice.between(1.0, 1.25)
        left, right = -0.03 * width, 0.04 * width  # of the mast
        large = [(left, tall + high), (left, high * 1.25), (-0.46 * width, high * 1.35)]
        small = [(right, tall * 0.86 + high), (0.46 * width, high * 1.5), (right, high * 1.25)]
        parts.append((np.array(large), sail, sail * 0.86))
        parts.append((np.array(small), mix(sail, BLACK, 0.12), sail * 0.9))
    else:
        inside = ellipse(0.02 * width, high * 1.02, width * 0.40, high * 0.24)
        parts.append((inside, hull * 0.55, hull * 0.4))
    for part, bright, _ in parts:
        mirrored = part * (turn, 0.8) + (x, y)
        canvas.fill(mirrored, mix(bright, plan.sky[1], 0.2), alpha=0.38, blur=0.8)
    with canvas.thing("boat", kind, colour) as label:
        for part, bright, dark in parts:
            fade = (0, y - width, 0, y)
            canvas.fill(part * (turn, -1) + (x, y), bright, dark, fade, label=label)


def draw_boats(canvas, dice, plan, top, bottom, weights=(0.4, 0.42, 0.18)):
    """None, one or two boats, as likely as weights say, between y = top and y = bottom."""
    count = dice.pick([0, 1, 2], weights)
    xs = dice.rng.permutation([dice.between(16, 50), dice.between(78, 112)])
    ys = np.sort(dice.rng.uniform(top + 5, max(top + 6, bottom - 4), 2))
    for x, y in zip(xs[:count], ys[:count], strict=True):
        scale = float(np.clip((y - plan.horizon) / 45, 0, 1))
        draw_boat(canvas, dice, plan, x, y, 13 + 14 * scale)
