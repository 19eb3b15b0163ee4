"""Exercise checks: right, or the likely mistake by name, in under a second on random shapes.

An exercise is a function that the learner fills in. Beside its reference stand the wrong versions
that people write most, each with what to say to it: an answer that gives the same numbers as one
of these gets that sentence. Nothing is raised, and whatever is not right is replaced by the
reference, so that "Run all" always reaches the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Exercise:
    reference: Callable
    inputs: Callable  # torch.Generator -> the arguments of one trial
    mistakes: dict[Callable, str] = field(
        default_factory=dict
    )  # wrong version -> what to say to it


def check(name: str, answer: Callable) -> Callable:
    """Try ``answer`` against the exercise called ``name``; return it if right, else the reference.

    What came of it is printed. An answer that raises ``NotImplementedError`` or returns ``...``
    counts as not solved yet.
    """
    exercise = EXERCISES[name]
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    trials = [exercise.inputs(generator) for _ in range(4)]
    try:
        results = [answer(*_copies(trial)) for trial in trials]
    except NotImplementedError:
        results = [...]
    except Exception as error:  # whatever the learner's code may raise
        return _refuse(name, f"it stops with {type(error).__name__}: {error}", exercise)
    if results[0] is ...:
        print(f"{name}: not solved yet, going on with the reference.")
        return exercise.reference
    expected = [exercise.reference(*_copies(trial)) for trial in trials]
    if _same(results, expected):
        print(f"{name}: right.")
        return answer
    if any(result is None for result in results):
        return _refuse(name, "it returns None: is the return missing?", exercise)
    for wrong, advice in exercise.mistakes.items():
        if _same(results, [wrong(*_copies(trial)) for trial in trials]):
            return _refuse(name, advice, exercise)
    for result, right in zip(results, expected, strict=True):
        if _shape(result) != _shape(right):
            return _refuse(
                name, f"the result has shape {_shape(result)}, expected {_shape(right)}.", exercise
            )
    return _refuse(
        name,
        f"for one input it gives {_first(results[0])}, expected {_first(expected[0])}.",
        exercise,
    )


def _refuse(name: str, advice: str, exercise: Exercise) -> Callable:
    print(f"{name}: not right yet. {advice[0].upper()}{advice[1:]}\nGoing on with the reference.")
    return exercise.reference


def _copies(trial: tuple) -> list:
    return [value.clone() if isinstance(value, torch.Tensor) else value for value in trial]


def _shape(value) -> tuple | str:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    return () if isinstance(value, (int, float)) else type(value).__name__


def _first(value) -> str:
    number = (
        float(value.flatten()[0]) if isinstance(value, torch.Tensor) and value.numel() else value
    )
    return f"{number:.4g}" if isinstance(number, (int, float)) else repr(value)


def _same(results: list, expected: list) -> bool:
    for result, right in zip(results, expected, strict=True):
        if _shape(result) != _shape(right) or isinstance(_shape(right), str):
            return False
        a, b = (torch.as_tensor(value, dtype=torch.float64) for value in (result, right))
        if not torch.allclose(a, b, rtol=1e-4, atol=1e-5):
            return False
    return True


def _sizes(generator: torch.Generator, low: int, high: int, count: int) -> list[int]:
    return torch.randint(low, high, (count,), generator=generator).tolist()


# --- 00 start here


def steps_run(steps: int, strength: float) -> int:
    """How many of ``steps`` denoising steps are run at ``strength``, 0 to 1."""
    return max(1, round(steps * strength))


def _steps_inputs(generator):
    run = _sizes(generator, 5, 20, 1)[0]
    away = 0.3 if torch.rand(1, generator=generator) < 0.5 else -0.3
    return 30, (run + away) / 30  # to the nearest number of steps, that is neither up nor down


# --- 01 the VAE latent space


def compression_factor(image_shape, latent_shape) -> float:
    """How many numbers of the image stand for one of the latent; both shapes without the batch."""
    return math.prod(image_shape) / math.prod(latent_shape)


def _compression_inputs(generator):
    height, width = (8 * n for n in _sizes(generator, 2, 40, 2))
    channels = _sizes(generator, 2, 17, 1)[0]
    return (3, height, width), (channels, height // 8, width // 8)


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio, in decibels, of pictures in [-1,1], where the peak is 2."""
    return 10 * torch.log10(4 / ((a - b) ** 2).mean())


def _pair_inputs(generator):
    count, height, width = _sizes(generator, 2, 9, 3)
    a = torch.rand(count, 3, height, width, generator=generator) * 2 - 1
    return a, (a + 0.3 * torch.randn(a.shape, generator=generator)).clamp(-1, 1)


def scaling_factor(latents: torch.Tensor) -> torch.Tensor:
    """The one number that brings all latents (N,4,h,w) together to a standard deviation of 1."""
    return 1 / latents.std()


def _latents_inputs(generator):
    count, height, width = _sizes(generator, 2, 9, 3)
    spread = torch.rand(4, 1, 1, generator=generator) * 6 + 1
    return (torch.randn(count, 4, height, width, generator=generator) * spread + spread.flip(0),)


def mix(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """The point at ``t`` on the straight line from ``a`` (t = 0) to ``b`` (t = 1)."""
    return (1 - t) * a + t * b


def _mix_inputs(generator):
    (a,) = _latents_inputs(generator)
    return (
        a,
        torch.randn(a.shape, generator=generator),
        float(torch.rand(1, generator=generator)) * 0.4,
    )


def noisy(x: torch.Tensor, noise: torch.Tensor, amount: float) -> torch.Tensor:
    """``x`` with ``amount`` (0 to 1) of noise, so that a variance of 1 stays 1."""
    return math.sqrt(1 - amount**2) * x + amount * noise


# --- A1 how the pocket model was made


def add_noise_at(x: torch.Tensor, noise: torch.Tensor, kept) -> torch.Tensor:
    """``x`` noised so that the share ``kept`` (alpha bar, 0 to 1) of its variance is left."""
    return kept**0.5 * x + (1 - kept) ** 0.5 * noise


def clean_estimate(noisy: torch.Tensor, noise: torch.Tensor, kept) -> torch.Tensor:
    """What ``add_noise_at`` was given as ``x``."""
    return (noisy - (1 - kept) ** 0.5 * noise) / kept**0.5


def _kept_inputs(generator):
    (a,) = _latents_inputs(generator)
    kept = torch.rand(len(a), 1, 1, 1, generator=generator) * 0.8 + 0.1
    return a, torch.randn(a.shape, generator=generator), kept


EXERCISES = {
    "steps_run": Exercise(
        steps_run,
        _steps_inputs,
        {
            lambda n, s: n: "That is every step; at strength 0.5, half of them are skipped.",
            lambda n, s: n - round(n * s): "Those are the skipped ones; count the ones that run.",
            lambda n, s: n * s: "Right idea, but no step runs in part: round to a whole number.",
            lambda n, s: int(n * s): "Close: int() always rounds down; take the nearest number.",
            lambda n, s: math.ceil(n * s): "Close: take the nearest whole number, not the next.",
        },
    ),
    "compression_factor": Exercise(
        compression_factor,
        _compression_inputs,
        {
            lambda i, z: (
                math.prod(z) / math.prod(i)
            ): "Upside down: divide the image by the latent.",
            lambda i, z: (
                math.prod(i[1:]) / math.prod(z[1:])
            ): "Width and height are there; the channels count too.",
            lambda i, z: i[1] / z[1]: "That is how much one side shrinks. Count all numbers.",
            lambda i, z: math.prod(
                i
            ): "Those are the numbers of the image; divide by the latent's.",
        },
    ),
    "psnr": Exercise(
        psnr,
        _pair_inputs,
        {
            lambda a, b: (
                10 * torch.log10(1 / ((a - b) ** 2).mean())
            ): "6 dB too low: from -1 to 1 the peak is 2, so its square is 4.",
            lambda a, b: (
                -10 * torch.log10(4 / ((a - b) ** 2).mean())
            ): "Upside down: the peak stands over the error.",
            lambda a, b: (
                10 * torch.log10(2 / ((a - b) ** 2).mean())
            ): "3 dB too low: the peak, 2, is squared as well.",
            lambda a, b: (
                20 * torch.log10(4 / ((a - b) ** 2).mean())
            ): "Twice too much: 10, not 20, goes with squared errors.",
            lambda a, b: (
                10 * torch.log10(4 / (a - b).abs().mean())
            ): "Square the differences rather than taking their absolute value.",
            lambda a, b: (
                10 * torch.log(4 / ((a - b) ** 2).mean())
            ): "Natural logarithm: decibels take log10.",
        },
    ),
    "scaling_factor": Exercise(
        scaling_factor,
        _latents_inputs,
        {
            lambda z: z.std(): "That is the spread itself. Multiply by what to make it 1?",
            lambda z: (
                1 / z.var()
            ): "Variance is the square of the spread: take the standard deviation.",
            lambda z: 1 / z.std(dim=(0, 2, 3)): "One number for all channels, not one for each.",
            lambda z: (
                1 / z.std(dim=(0, 2, 3)).mean()
            ): "Take the spread over all numbers at once; the channels' own means count too.",
            lambda z: (
                1 / z.abs().mean()
            ): "The mean size is not the standard deviation: use .std().",
        },
    ),
    "mix": Exercise(
        mix,
        _mix_inputs,
        {
            lambda a, b, t: (
                t * a + (1 - t) * b
            ): "Swapped: t = 0 should give a, t = 1 should give b.",
            lambda a, b, t: a + t * b: "At t = 1 this is a + b: a has to fade as b comes.",
            lambda a, b, t: (a + b) / 2: "That is the middle, whatever t is.",
            lambda a, b, t: a + t * (a - b): "It goes away from b: turn the difference round.",
        },
    ),
    "noisy": Exercise(
        noisy,
        lambda generator: _mix_inputs(generator),
        {
            lambda x, n, s: (
                x + s * n
            ): "The signal has to shrink as noise comes, or the variance grows.",
            lambda x, n, s: (
                (1 - s) * x + s * n
            ): "The shares add up to 1, but it is their squares that "
            "have to: variances add, not spreads.",
            lambda x, n, s: (
                math.sqrt(1 - s) * x + math.sqrt(s) * n
            ): "Here amount is the spread of the noise, not its variance: amount times noise.",
            lambda x, n, s: (
                (1 - s**2) * x + s * n
            ): "The square root is missing over 1 - amount ** 2.",
            lambda x, n, s: s * x + math.sqrt(1 - s**2) * n: "Signal and noise are swapped.",
        },
    ),
    "add_noise_at": Exercise(
        add_noise_at,
        _kept_inputs,
        {
            lambda x, n, k: (
                k * x + (1 - k) * n
            ): "These are variances: the weights are their roots.",
            lambda x, n, k: k**0.5 * x + n: "The noise needs its weight too: the root of 1 - kept.",
            lambda x, n, k: x + (1 - k) ** 0.5 * n: "x needs its weight too: the root of kept.",
            lambda x, n, k: k**0.5 * x + (1 - k**0.5) * n: "Take the root of (1 - kept), not "
            "1 minus the root.",
            lambda x, n, k: (1 - k) ** 0.5 * x + k**0.5 * n: "Swapped: kept belongs to x.",
        },
    ),
    "clean_estimate": Exercise(
        clean_estimate,
        _kept_inputs,
        {
            lambda z, n, k: (
                z - (1 - k) ** 0.5 * n
            ): "Half way: now undo the weight of x, by dividing.",
            lambda z, n, k: (
                (z - n) / k**0.5
            ): "The noise was added with a weight: take away as much.",
            lambda z, n, k: (
                (z - (1 - k) ** 0.5 * n) / k
            ): "Divide by the root of kept, not by kept.",
            lambda z, n, k: (
                (z - (1 - k) * n) / k
            ): "These are variances: the weights are their roots.",
            lambda z, n, k: (z - (1 - k) ** 0.5 * n) * k**0.5: "Divide where you multiply.",
            lambda z, n, k: (
                z / k**0.5 - (1 - k) ** 0.5 * n
            ): "First take the noise away, then divide all of it.",
        },
    ),
}
