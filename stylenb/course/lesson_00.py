"""The exercise of lesson 00, start here."""

import math

from .check import Draw, Exercises

EXERCISES = Exercises()
exercise, check = EXERCISES.add, EXERCISES.check


def steps_run(steps: int, strength: float) -> int:
    """How many of ``steps`` denoising steps are run at ``strength``, 0 to 1."""
    return max(1, round(steps * strength))


def steps_inputs(draw: Draw):
    run = draw.integer(5, 20)
    away = 0.3 if draw.share() < 0.5 else -0.3
    return 30, (run + away) / 30  # to the nearest number of steps, that is neither up nor down


exercise(steps_run, steps_inputs).mistakes(
    "That is every step; at strength 0.5, half of them are skipped.",
    lambda n, s: n,
    "Those are the skipped ones; count the ones that run.",
    lambda n, s: n - round(n * s),
    "Right idea, but no step runs in part: round to a whole number.",
    lambda n, s: n * s,
    "Close: int() always rounds down; take the nearest number.",
    lambda n, s: int(n * s),
    "Close: take the nearest whole number, not the next.",
    lambda n, s: math.ceil(n * s),
)
