"""The exercises of lesson 02, noise and the UNet."""

from types import SimpleNamespace

import torch

from ..losses import estimate_x0
from .check import Draw, Exercises
from .lesson_00 import steps_inputs, steps_run
from .lesson_A1 import add_noise_at, clean_estimate

EXERCISES = Exercises()
exercise, check = EXERCISES.add, EXERCISES.check


def _kept(scheduler, timestep, device="cpu") -> torch.Tensor:
    """What is kept of the variance at timesteps (N,) or one, as (N,1,1,1).

    diffusers' add_noise leaves the table on the device of the latents that it was given last.
    """
    return scheduler.alphas_cumprod.to(device)[timestep].view(-1, 1, 1, 1)


def scheduled_inputs(draw: Draw, one: bool = False):
    """A schedule of its own, two batches of latents, and timesteps from its middle, or only one.

    A batch is as wide as it is long, so that numbers (N,) which lack the shape (N,1,1,1) are laid
    along the width without an error, and that mistake can be named.
    """
    count, height = draw.integer(2, 6), draw.integer(6, 9)
    kept = (1 - (draw.uniform(100) * 0.02 + 0.005)).cumprod(0)
    a, b = draw.normal(2, count, 4, height, count)
    timesteps = draw.integers(40, 90, count)
    return (
        SimpleNamespace(alphas_cumprod=kept),
        a,
        b,
        timesteps[0] if one else torch.tensor(timesteps),
    )


def add_noise(scheduler, latents, noise, timestep) -> torch.Tensor:
    """Latents (N,4,h,w) under the noise that the schedule has at each timestep (N,) or at one."""
    return add_noise_at(latents, noise, _kept(scheduler, timestep, latents.device))


exercise(add_noise, scheduled_inputs, also=lambda draw: [scheduled_inputs(draw, True)]).mistakes(
    "These are shares of the variance: the weights are their square roots.",
    lambda s, x, n, t: _kept(s, t) * x + (1 - _kept(s, t)) * n,
    "The noise needs its weight too: the square root of 1 - kept.",
    lambda s, x, n, t: _kept(s, t) ** 0.5 * x + n,
    "The picture needs its weight too: the square root of kept.",
    lambda s, x, n, t: x + (1 - _kept(s, t)) ** 0.5 * n,
    "For the noise, take the root of (1 - kept), not 1 minus the root.",
    lambda s, x, n, t: _kept(s, t) ** 0.5 * x + (1 - _kept(s, t) ** 0.5) * n,
    "Swapped: kept is the picture's share, the rest is the noise's.",
    lambda s, x, n, t: (1 - _kept(s, t)) ** 0.5 * x + _kept(s, t) ** 0.5 * n,
    "The formula is right, but kept runs along the width of the latents instead of along the "
    "batch: it needs the shape (N, 1, 1, 1), which kept_at gives.",
    lambda s, x, n, t: add_noise_at(x, n, s.alphas_cumprod[t]),
)


def snr(scheduler, timestep) -> torch.Tensor:
    """The picture's variance over the noise's at timesteps (N,)."""
    from diffusers.training_utils import compute_snr

    return compute_snr(scheduler, timestep)


exercise(snr, lambda draw: scheduled_inputs(draw)[::3]).mistakes(
    "Upside down: signal over noise, and the signal is the picture.",
    lambda s, t: (1 - s.alphas_cumprod[t]) / s.alphas_cumprod[t],
    "That is the ratio of the weights; take that of the variances, without the root.",
    lambda s, t: (s.alphas_cumprod[t] / (1 - s.alphas_cumprod[t])) ** 0.5,
    "Squared once too often: what is kept is a variance already.",
    lambda s, t: (s.alphas_cumprod[t] / (1 - s.alphas_cumprod[t])) ** 2,
    "That is the picture's share of everything; divide it by the noise's share.",
    lambda s, t: s.alphas_cumprod[t],
    "Those are decibels: leave the ratio as it is.",
    lambda s, t: 10 * torch.log10(s.alphas_cumprod[t] / (1 - s.alphas_cumprod[t])),
    "The formula is right, but kept_at has a shape for latents; here it is one number for each "
    "timestep: scheduler.alphas_cumprod[timestep].",
    lambda s, t: _kept(s, t) / (1 - _kept(s, t)),
)


exercise(estimate_x0, scheduled_inputs, also=lambda draw: [scheduled_inputs(draw, True)]).mistakes(
    "Half way: now undo the weight of the picture, by dividing.",
    lambda s, x, n, t: x - (1 - _kept(s, t)) ** 0.5 * n,
    "Both weights are missing: the noise was added with one, and the picture shrunk by the other.",
    lambda s, x, n, t: x - n,
    "The noise was added with a weight: take away as much, not all of it.",
    lambda s, x, n, t: (x - n) / _kept(s, t) ** 0.5,
    "Divide by the square root of kept, not by kept.",
    lambda s, x, n, t: (x - (1 - _kept(s, t)) ** 0.5 * n) / _kept(s, t),
    "These are shares of the variance: the weights are their square roots.",
    lambda s, x, n, t: (x - (1 - _kept(s, t)) * n) / _kept(s, t),
    "Multiplied where exercise 1 multiplied: to undo that, divide.",
    lambda s, x, n, t: (x - (1 - _kept(s, t)) ** 0.5 * n) * _kept(s, t) ** 0.5,
    "First take the noise away, then divide all of it.",
    lambda s, x, n, t: x / _kept(s, t) ** 0.5 - (1 - _kept(s, t)) ** 0.5 * n,
    "That adds the noise once more.",
    add_noise,
    "The formula is right, but kept runs along the width of the latents instead of along the "
    "batch: it needs the shape (N, 1, 1, 1), which kept_at gives.",
    lambda s, x, n, t: clean_estimate(x, n, s.alphas_cumprod[t]),
)


def ddim_step(scheduler, noisy, noise, timestep, previous) -> torch.Tensor:
    """Noisy latents at ``timestep`` brought to ``previous``, with no randomness (DDIM, eta 0)."""
    return add_noise(scheduler, estimate_x0(scheduler, noisy, noise, timestep), noise, previous)


def _ddim_inputs(draw: Draw, one: bool = False):
    scheduler, a, b, timestep = scheduled_inputs(draw, one)
    return scheduler, a, b, timestep, timestep - draw.integer(10, 40)


exercise(ddim_step, _ddim_inputs, also=lambda draw: [_ddim_inputs(draw, True)]).mistakes(
    "That jumps to the clean estimate. Put back on as much noise as `previous` has.",
    lambda s, x, n, t, p: estimate_x0(s, x, n, t),
    "That adds noise to latents that are noisy already: estimate the clean ones first.",
    lambda s, x, n, t, p: add_noise(s, x, n, p),
    "It gives the latents back as they were: the estimate belongs to `timestep`, the noise that "
    "is put back to `previous`.",
    lambda s, x, n, t, p: add_noise(s, estimate_x0(s, x, n, t), n, t),
    "timestep and previous are swapped: this goes up the schedule, not down.",
    lambda s, x, n, t, p: add_noise(s, estimate_x0(s, x, n, p), n, t),
    "The noise of `previous` is missing: the next guess will look for it.",
    lambda s, x, n, t, p: _kept(s, p) ** 0.5 * estimate_x0(s, x, n, t),
    "The formula is right, but with several timesteps kept needs the shape (N, 1, 1, 1), which "
    "kept_at gives; or call estimate_x0 and add_noise.",
    lambda s, x, n, t, p: add_noise_at(
        clean_estimate(x, n, s.alphas_cumprod[t]), n, s.alphas_cumprod[p]
    ),
)


def guided(without: torch.Tensor, with_prompt: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance: at scale 0 the first guess, at 1 the second, beyond it further."""
    return without + scale * (with_prompt - without)


exercise(guided, lambda draw: (*scheduled_inputs(draw)[1:3], 1.5 + 6 * draw.share())).mistakes(
    "One too far: at scale 1 this should be the guess with the prompt itself.",
    lambda a, b, k: b + k * (b - a),
    "That is the way to go, and it lacks where to start from: the guess without.",
    lambda a, b, k: k * (b - a),
    "Swapped: scale 0 should be the guess without the prompt, scale 1 that with it.",
    lambda a, b, k: b + k * (a - b),
    "It goes away from the prompt: turn the difference round.",
    lambda a, b, k: a + k * (a - b),
    "At scale 1 this adds both guesses: multiply the difference of the two.",
    lambda a, b, k: a + k * b,
    "At scale 0 this should be the guess without the prompt.",
    lambda a, b, k: k * b,
    "The difference counts as it is: leave out the clamp.",
    lambda a, b, k: a + (b - a).clamp(-1, 1) * k,
)


def start_index(steps: int, strength: float) -> int:
    """The first of ``steps`` timesteps that is run at ``strength``, above 0 and up to 1."""
    return steps - steps_run(steps, strength)


exercise(start_index, steps_inputs, also=lambda draw: [(20, 0.01)]).mistakes(
    "That is how many are run; the index is how many are skipped.",
    lambda n, s: round(n * s),
    "Counted from the wrong end: high strength starts early in the list.",
    lambda n, s: round(n * s) - 1,
    "One too early: a list counts from 0, so skipping n entries leads to index n.",
    lambda n, s: n - round(n * s) - 1,
    "One too late: a list counts from 0, so skipping n entries leads to index n.",
    lambda n, s: n - round(n * s) + 1,
    "Right idea, but an index is a whole number: round the steps.",
    lambda n, s: n - n * s,
    "Close: int() always rounds the steps down; take the nearest number.",
    lambda n, s: n - int(n * s),
    "Close: the steps that run are rounded down; take the nearest number, as round() does.",
    lambda n, s: n - max(1, int(n * s)),
    "Close: int() always rounds down; round the steps that run to the nearest number.",
    lambda n, s: int(n - n * s),
    "Nearly: at a very low strength nothing is left to run. Take at least one step, max(1, ...).",
    lambda n, s: n - round(n * s),
)
