"""The exercises of the appendix A1, how the pocket model was made."""

import torch

from .check import Draw, Exercises
from .lesson_01 import latents_inputs

EXERCISES = Exercises()
exercise, check = EXERCISES.add, EXERCISES.check


def add_noise_at(x: torch.Tensor, noise: torch.Tensor, kept) -> torch.Tensor:
    """``x`` noised so that the share ``kept`` (alpha bar, 0 to 1) of its variance is left."""
    return kept**0.5 * x + (1 - kept) ** 0.5 * noise


def _kept_inputs(draw: Draw):
    (a,) = latents_inputs(draw)
    kept = draw.uniform(len(a), 1, 1, 1) * 0.8 + 0.1
    return a, draw.normal(*a.shape), kept


exercise(add_noise_at, _kept_inputs).mistakes(
    "These are variances: the weights are their roots.",
    lambda x, n, k: k * x + (1 - k) * n,
    "The noise needs its weight too: the root of 1 - kept.",
    lambda x, n, k: k**0.5 * x + n,
    "x needs its weight too: the root of kept.",
    lambda x, n, k: x + (1 - k) ** 0.5 * n,
    "Take the root of (1 - kept), not 1 minus the root.",
    lambda x, n, k: k**0.5 * x + (1 - k**0.5) * n,
    "Swapped: kept belongs to x.",
    lambda x, n, k: (1 - k) ** 0.5 * x + k**0.5 * n,
)


def clean_estimate(noisy: torch.Tensor, noise: torch.Tensor, kept) -> torch.Tensor:
    """What ``add_noise_at`` was given as ``x``."""
    return (noisy - (1 - kept) ** 0.5 * noise) / kept**0.5


exercise(clean_estimate, _kept_inputs).mistakes(
    "Half way: now undo the weight of x, by dividing.",
    lambda z, n, k: z - (1 - k) ** 0.5 * n,
    "The noise was added with a weight: take away as much.",
    lambda z, n, k: (z - n) / k**0.5,
    "Divide by the root of kept, not by kept.",
    lambda z, n, k: (z - (1 - k) ** 0.5 * n) / k,
    "These are variances: the weights are their roots.",
    lambda z, n, k: (z - (1 - k) * n) / k,
    "Divide where you multiply.",
    lambda z, n, k: (z - (1 - k) ** 0.5 * n) * k**0.5,
    "First take the noise away, then divide all of it.",
    lambda z, n, k: z / k**0.5 - (1 - k) ** 0.5 * n,
)
