"""The sky: its colours, the sun or the moon and stars, northern lights and clouds."""

import numpy as np

from stylenb.pocket.canvas import CIRCLE, Canvas, ellipse
from stylenb.pocket.palettes import WHITE, mix, rgb
from stylenb.pocket.plan import Dice, Plan


def draw_sky(canvas: Canvas, dice: Dice, plan: Plan) -> float | None:
    """Returns y of the sun or moon, None where clouds cover everything."""
    stops = [0, plan.horizon * 0.55, plan.horizon]
    rows = [np.interp(canvas.axis, stops, [s[i] for s in plan.sky]) for i in range(3)]
    canvas.pixels[:] = np.array(rows, np.float32)[:, :, None]
    if plan.overcast:
        draw_stratus(canvas, dice, plan, int(dice.between(4, 7)), 0.6)
        return None
    if plan.northern_lights:
        draw_northern_lights(canvas, dice)
    sun_y = (draw_moon if plan.stars else draw_sun)(canvas, dice, plan)
    if plan.stars:
        draw_stars(canvas, dice, plan, sun_y)
    kind = dice.pick(["none", "cumulus", "stratus", "both"], [0.3, 0.36, 0.22, 0.12])
    if kind in ("stratus", "both"):
        draw_stratus(canvas, dice, plan, int(dice.between(2, 5)), 0.5)
    if kind in ("cumulus", "both"):
        for _ in range(int(dice.between(1, 4.5))):
            draw_cumulus(canvas, dice, plan)
    return sun_y


def draw_northern_lights(canvas, dice):
    """Soft curtains: bright at a wavy foot, fading upwards."""
    for _ in range(2):
        foot = dice.line(dice.between(30, 46), 6, dice.between(0.6, 1.1))
        colour = dice.hue(["3fe0a0", "5ce6b8", "6fd0e0", "a07fe8"])
        for rise, alpha in ((9, 0.28), (18, 0.22), (30, 0.15)):
            curtain = np.concatenate([foot, (foot - (0, rise))[::-1]])
            canvas.fill(curtain, colour, alpha=alpha, blur=2.6)


def draw_sun(canvas, dice, plan) -> float:
    x, low = plan.sun_x, plan.time != "day"
    y = plan.horizon - dice.between(5, 26) if low else dice.between(10, 30)
    radius = dice.between(6, 11) if low else dice.between(4.5, 7.5)
    canvas.glow(x, y, 48, plan.sky[2], 0.5)
    canvas.glow(x, y, radius * 2.4, plan.light, 0.55)
    disc = mix(mix(plan.light, WHITE, 0.35), rgb("ffb066"), dice.between(0, 0.5))
    canvas.add("sun", ellipse(x, y, radius, radius), disc)
    return y


def draw_moon(canvas, dice, plan) -> float:
    x, y = plan.sun_x, dice.between(13, max(16, plan.horizon - 32))
    radius = dice.between(6.5, 11)
    canvas.glow(x, y, 40, plan.sky[2], 0.5)
    canvas.glow(x, y, radius * 2, plan.light, 0.35)
    full = dice.chance(0.6)
    colour = mix(plan.light, rgb("ffe9b8"), dice.between(0, 0.8))
    if not full:
        canvas.add("crescent moon", crescent(x, y, radius), colour)
        return y
    canvas.add("full moon", ellipse(x, y, radius, radius), colour)
    for dx, dy, r in ((-0.3, -0.2, 0.3), (0.3, 0.25, 0.24)):
        spot = ellipse(x + dx * radius, y + dy * radius, r * radius, r * radius)
        canvas.fill(spot, colour * 0.86, alpha=0.6, blur=0.5)
    return y


def crescent(x, y, radius) -> np.ndarray:
    """A disc round (x, y) from which a slightly smaller one, further right, has bitten a part."""
    disc = ellipse(x, y, radius, radius)
    smaller = CIRCLE * radius * 0.92 + (x + 0.62 * radius, y - 1.2)

    def arc(circle, kept):
        """The points that are kept, in one piece from the first to the last."""
        first = int(np.argmax(kept & ~np.roll(kept, 1)))
        return np.roll(circle, -first, 0)[np.roll(kept, -first)]

    outer = arc(disc, np.hypot(*(disc - smaller.mean(0)).T) >= 0.92 * radius)
    inner = arc(smaller, np.hypot(*(smaller - (x, y)).T) <= radius)
    return np.concatenate([outer, inner[::-1]])


def draw_stars(canvas, dice, plan, moon_y):
    for _ in range(int(dice.between(9, 20))):
        x, y = dice.between(3, 125), dice.between(3, plan.horizon - 18)
        if np.hypot(x - plan.sun_x, y - moon_y) > 18:
            canvas.glow(x, y, dice.between(1.1, 1.9), WHITE, dice.between(0.55, 0.95))


def cloud_colours(plan):
    """Of the top and of the bottom of a cloud."""
    _, middle, low = plan.sky
    if plan.time == "night":
        return mix(middle, low, 0.9), mix(middle, low, 0.25)
    if plan.time == "day":
        return WHITE, mix(middle, plan.haze, 0.45)
    return mix(middle, WHITE, 0.35 if plan.time == "dawn" else 0.12), mix(low, plan.light, 0.4)


def draw_cumulus(canvas, dice, plan):
    x, y = dice.between(5, 123), dice.between(14, max(18, plan.horizon - 22))
    width, height = dice.between(24, 46), dice.between(7, 13)
    puffs = [ellipse(x, y, width / 2, height * 0.34)]
    for t in np.linspace(-0.3, 0.3, int(dice.between(4, 6))):
        r = height * dice.between(0.5, 0.85) * (1.15 - abs(t) * 1.6)
        puffs.append(ellipse(x + t * width, y - r * 0.55, r * 1.15, r))
    fade = (x, y - height, x, y + height * 0.35)
    canvas.add("cloud", puffs, *cloud_colours(plan), fade, alpha=0.9, blur=0.9)


def draw_stratus(canvas, dice, plan, count, alpha):
    """Long flat clouds; under an overcast sky they take the colours of the sky itself."""
    for i in range(count):
        y = dice.between(6, plan.horizon - 14)
        x = dice.between(0, 128)
        colour = mix(*cloud_colours(plan), dice.between(0, 1))
        if plan.overcast:
            colour = mix(plan.sky[i % 3], WHITE if plan.time == "day" else plan.sky[2], 0.3)
        width = dice.between(28, 60)
        long = ellipse(x, y, width, dice.between(3, 5.5))
        x, y = x + dice.between(-25, 25), y + dice.between(2, 4)
        short = ellipse(x, y, width * 0.6, dice.between(2.5, 4))
        canvas.add("cloud", [long, short], colour, alpha=alpha, blur=1.8)
