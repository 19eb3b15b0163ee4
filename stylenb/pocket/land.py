"""Land and water: mountains, hills and mist far away, ground, fields, water and paths nearby."""

import cv2
import numpy as np

from stylenb.pocket.canvas import Canvas, box, ellipse, fill_polygons
from stylenb.pocket.palettes import WHITE, mix, rgb
from stylenb.pocket.plan import Dice, Plan


def level(line: np.ndarray, x: float) -> float:
    """y of a line of points (x, y) at x."""
    return float(np.interp(x, line[:, 0], line[:, 1]))


def below(line, bottom) -> np.ndarray:
    """The polygon between a line and y = bottom."""
    return np.concatenate([line, [(line[-1, 0], bottom), (line[0, 0], bottom)]])


# ---- far away -----------------------------------------------------------------------------------


def draw_background(canvas: Canvas, dice: Dice, plan: Plan) -> bool:
    """Mountains, hills or islands along the horizon; says whether there is mist before them."""
    y = plan.horizon + 2
    if plan.layout == "sea":
        draw_far_shore(canvas, dice, plan)
        return False
    if plan.layout == "peaks":
        draw_mountains(canvas, dice, plan, y, dice.between(34, 46), 0.55)
        draw_mountains(canvas, dice, plan, y + 4, dice.between(24, 34), 0.25)
    elif dice.chance(0.58):
        draw_mountains(canvas, dice, plan, y, dice.between(22, 40), dice.between(0.3, 0.5))
    else:
        draw_hills(canvas, dice, plan, y, dice.between(14, 26), 0.62)
    for i in range(int(dice.between(0.3, 2.6))):
        draw_hills(canvas, dice, plan, y + 2, dice.between(7, 12) - 2 * i, 0.42 - 0.16 * i)
    mist = dice.chance(0.45)
    if mist:
        up = dice.between(9, 15) if plan.layout == "peaks" else dice.between(3, 9)
        canvas.band(y - up, dice.between(5, 8), plan.haze, dice.between(0.55, 0.8))
    return mist


def draw_far_shore(canvas, dice, plan):
    if dice.chance(0.7):
        x = dice.pick([dice.between(-8, 16), dice.between(112, 136)])
        draw_island(canvas, dice, plan, x, dice.between(40, 72), dice.between(10, 22), 0.5)
        if dice.chance(0.4):
            draw_island(canvas, dice, plan, x, dice.between(26, 38), dice.between(6, 10), 0.28)
    elif dice.chance(0.4):
        draw_mountains(canvas, dice, plan, plan.horizon + 1, dice.between(16, 28), 0.5)


def draw_island(canvas, dice, plan, x, half, height, depth):
    xs = np.linspace(-1, 1, 24)
    bumps = 1 + 0.22 * np.sin(xs * dice.between(4, 9) + dice.between(0, 6))
    ys = plan.horizon + 0.5 - height * (1 - xs**2) ** 1.2 * bumps
    colour = plan.tone(plan.ridge_colour, depth)
    fade = (0, plan.horizon - height, 0, plan.horizon)
    shape = np.stack([x + xs * half, ys], 1)
    canvas.add("hills", shape, colour, mix(colour, plan.haze, 0.4), fade)


def draw_hills(canvas, dice, plan, base, height, depth):
    line = dice.line(base - height * 0.6, height * 0.5, dice.between(0.5, 1.3))
    colour = plan.tone(plan.ridge_colour, depth)
    fade = (0, base - height, 0, base + 3)
    canvas.add("hills", below(line, base + 3), colour, mix(colour, plan.haze, 0.5), fade)


def draw_mountains(canvas, dice, plan, base, height, depth):
    """A row of peaks, the lowest first, fading into the mist at their feet."""
    count = int(dice.between(2, 4.99))
    centres = np.linspace(8, 120, count) + dice.rng.uniform(-14, 14, count)
    heights = height * dice.rng.uniform(0.6, 1.0, count)
    with canvas.thing("mountains") as rock, canvas.thing("snowcaps") as snow:
        for i in np.argsort(heights, kind="stable"):
            draw_peak(canvas, dice, plan, centres[i], base, heights[i], depth, rock, snow)


def draw_peak(canvas, dice, plan, x, base, height, depth, rock, snow):
    """A peak with a lit and a shaded face; rock and snow are the labels of what it is made of."""
    half = height * dice.between(0.85, 1.25)
    apex, lit = (x, base - height), plan.light_side(x)
    bright = plan.tone(mix(plan.ridge_colour, WHITE, 0.2), depth)
    dark = plan.tone(plan.ridge_colour * 0.72, depth)
    shoulder = dice.between(0.4, 0.6)
    shoulder_y = base - height * (1 - shoulder)
    right = [(x + half * shoulder * 0.8, shoulder_y), (x + half, base + 2)]
    left = [(x - half * shoulder * 0.85, shoulder_y), (x - half, base + 2)]
    fade = (0, base - height, 0, base + 2)
    face = np.array([apex, *right, *left[::-1]])
    canvas.fill(face, bright, mix(bright, plan.haze, 0.55), fade, label=rock)
    crease = [
        (x - lit * half * 0.02, base - height * 0.72),
        (x + lit * half * 0.10, base - height * 0.5),
        (x - lit * half * 0.08, base - height * 0.22),
        (x + lit * half * 0.12, base + 2),
    ]
    shaded = left if lit > 0 else right
    shade = np.array([apex, *crease, *shaded[::-1]])
    canvas.fill(shade, dark, mix(dark, plan.haze, 0.6), fade, label=rock)
    if plan.snowy and height > 16:
        draw_snowcap(canvas, dice, plan, x, base, height, half, shoulder, depth, snow)


def draw_snowcap(canvas, dice, plan, x, base, height, half, shoulder, depth, label):
    apex = (x, base - height)
    share = dice.between(0.32, 0.46)  # of the height
    width = half * share * (0.95 if share < shoulder else 0.85)
    width = min(width, half * shoulder * 0.8 / shoulder * share)
    y = base - height * (1 - share)
    edge = ((1, 0), (0.5, -0.06), (0.2, 0.06), (-0.2, -0.05), (-0.55, 0.05), (-1, 0))
    teeth = [(x + width * across, y + height * down) for across, down in edge]
    white = plan.tone(rgb("fdfdff"), depth * 0.5, 0.25)
    grey = plan.tone(rgb("b9c8de"), depth * 0.6, 0.15)
    canvas.fill(np.array([apex, *teeth]), white, label=label)
    shaded = -plan.light_side(x)
    outer = teeth[:2] if shaded > 0 else teeth[:-3:-1]
    part = np.array([apex, *outer, (x + shaded * width * 0.1, y - height * 0.02)])
    canvas.fill(part, grey, label=label)


# ---- nearby -------------------------------------------------------------------------------------


def draw_land(canvas, plan, line, colour, bottom=132.0):
    """Ground from the line down to y = bottom, with furrows where the field has them."""
    middle, top = line[:, 1].mean(), line[:, 1].min()
    depth = plan.depth_at(middle)
    keep, shade = (0.4, rgb("d6def2")) if plan.ground == "snow" else (0.0, 0.84)
    near = plan.tone(colour * shade, depth * 0.4, keep)  # snow turns to mud in a strong tint
    far = plan.tone(mix(colour, plan.light, 0.18), depth, keep)
    with canvas.thing("ground") as label:
        fade = (plan.sun_x, top, 128 - plan.sun_x, top + 40)
        canvas.fill(below(line, bottom), far, near, fade, label=label)
    if plan.furrows and middle > plan.horizon + 5:
        draw_furrows(canvas, plan, top, label, near)


def draw_furrows(canvas, plan, top, label, colour):
    """Rows of a field that run together at a point behind the horizon."""
    meet, far = plan.furrows_meet, top - 10
    for foot in np.arange(meet - 320, meet + 320, 36):
        row = [
            (meet + (foot + w - meet) * t, far + (136 - far) * t)
            for w, t in ((0, 0.1), (16, 0.1), (16, 1), (0, 1))
        ]
        canvas.fill(np.array(row), colour * 0.8, alpha=0.5, blur=0.5, on=label)


def draw_water(canvas, dice, plan, shore, shape=None) -> int:
    """Water in `shape` (all below the shore if None): what stands above the line y = shore,
    mirrored, softened and blued. Returns its label."""
    shape = box(-4, shore, 132, 132) if shape is None else shape
    top = max(0, int(round(shore * canvas.scale)))
    rows = np.arange(top, canvas.n)
    depth = (rows - top) / canvas.scale
    ripple = np.sin(depth * dice.between(0.45, 0.7) + dice.between(0, 6))
    ripple = np.rint(ripple * np.minimum(depth * 0.09, 2.2) * canvas.scale).astype(int)
    mirror = canvas.pixels[:, np.clip(2 * top - rows - 1 + ripple, 0, canvas.n - 1)]
    code = dice.pick(["2f6f8f", "2a5f86", "3a8288"])
    if plan.layout == "river":  # narrow water is told from a path by its colour alone
        body, start = mix(plan.sky[0], plan.tone(rgb(code), 0.1, 0.5) * 1.1, 0.7), 0.45
    else:
        body = mix(mix(plan.sky[1], plan.sky[0], 0.4), plan.tone(rgb(code), 0.25), 0.45)
        start = 0.2
    share = np.clip(start + depth / 120, 0, 0.66).astype(np.float32)[None, :, None]
    for plane in mirror:
        plane[:] = cv2.blur(plane, (int(4 * canvas.scale) | 1, int(2 * canvas.scale) | 1))
    mirror += share * (body[:, None, None] - mirror)
    mask = np.zeros((canvas.n, canvas.n), np.uint8)
    fill_polygons(mask, [shape * canvas.scale - 0.5])
    mask = mask[top:]
    view = canvas.pixels[:, top:]
    view += (mask * np.float32(1 / 255)) * (mirror - view)
    with canvas.thing("water") as label:
        canvas.owner[top:][mask > 127] = label
    return label


def draw_glitter(canvas, dice, plan, shore, bottom, water):
    """A few soft wide strokes of light under the sun or moon."""
    if plan.overcast or (plan.time == "day" and dice.chance(0.5)):
        return
    y, width = shore + 3.0, dice.between(7, 11)
    while y < bottom - 3:
        x = plan.sun_x + dice.between(-4, 4)
        stroke = ellipse(x, y, width * dice.between(0.45, 1.15), 1.5)
        canvas.fill(stroke, plan.light, alpha=dice.between(0.3, 0.55), blur=1.0, on=water)
        y += dice.between(4.5, 8)
        width *= 1.06


def draw_ripples(canvas, dice, plan, shore, bottom, water):
    for _ in range(int(dice.between(2, 6))):
        y = dice.between(shore + 5, bottom)
        colour = dice.pick([plan.sky[2], plan.sky[1], plan.light])
        stroke = ellipse(dice.between(0, 128), y, dice.between(10, 24), dice.between(1.3, 2))
        canvas.fill(stroke, colour, alpha=0.3, blur=1.0, on=water)


def ribbon(canvas, x0, y0, x1, y1, w0, w1, bend) -> np.ndarray:
    """A tapering band that winds from (x0, y0) far away to (x1, y1) nearby, and takes its ground.

    w0 and w1 are its widths there.
    """
    t = np.linspace(0, 1, 24)
    y = y0 + (y1 - y0) * t**1.25
    middle = x0 + (x1 - x0) * t + bend * np.sin(t * np.pi * 1.6) * (0.25 + t)
    half = (w0 + (w1 - w0) * t**1.5) / 2
    canvas.ways.append((y, middle, half))
    return np.concatenate([np.stack([middle - half, y], 1), np.stack([middle + half, y], 1)[::-1]])


def draw_path(canvas, dice, plan, shape):
    base = {"snow": "b9bccb", "sand": "c9a671"}.get(plan.ground, "d9bf93")
    colour = plan.tone(dice.hue(base), 0.1)
    fade = (0, shape[:, 1].min(), 0, 132)
    canvas.add("path", shape, mix(colour, plan.haze, 0.25), colour * 0.92, fade)
