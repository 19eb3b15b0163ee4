"""The exercises of lesson 01, the VAE latent space."""

import math

import torch

from .check import Draw, Exercises

EXERCISES = Exercises()
exercise, check = EXERCISES.add, EXERCISES.check


def compression_factor(image_shape, latent_shape) -> float:
    """How many numbers of the image stand for one of the latent; both shapes without the batch."""
    return math.prod(image_shape) / math.prod(latent_shape)


def _compression_inputs(draw: Draw):
    height, width = (8 * n for n in draw.integers(2, 40, 2))
    return (3, height, width), (draw.integer(2, 17), height // 8, width // 8)


exercise(compression_factor, _compression_inputs).mistakes(
    "Upside down: divide the image by the latent.",
    lambda i, z: math.prod(z) / math.prod(i),
    "Width and height are there; the channels count too.",
    lambda i, z: math.prod(i[1:]) / math.prod(z[1:]),
    "That is how much one side shrinks. Count all numbers.",
    lambda i, z: i[1] / z[1],
    "Those are the numbers of the image; divide by the latent's.",
    lambda i, z: math.prod(i),
)


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio, in decibels, of pictures in [-1,1], where the peak is 2."""
    return 10 * torch.log10(4 / ((a - b) ** 2).mean())


def _pair_inputs(draw: Draw):
    count, height, width = draw.integers(2, 9, 3)
    a = draw.uniform(count, 3, height, width) * 2 - 1
    return a, (a + 0.3 * draw.normal(*a.shape)).clamp(-1, 1)


exercise(psnr, _pair_inputs).mistakes(
    "6 dB too low: from -1 to 1 the peak is 2, so its square is 4.",
    lambda a, b: 10 * torch.log10(1 / ((a - b) ** 2).mean()),
    "Upside down: the peak stands over the error.",
    lambda a, b: -10 * torch.log10(4 / ((a - b) ** 2).mean()),
    "3 dB too low: the peak, 2, is squared as well.",
    lambda a, b: 10 * torch.log10(2 / ((a - b) ** 2).mean()),
    "Twice too much: 10, not 20, goes with squared errors.",
    lambda a, b: 20 * torch.log10(4 / ((a - b) ** 2).mean()),
    "Square the differences rather than taking their absolute value.",
    lambda a, b: 10 * torch.log10(4 / (a - b).abs().mean()),
    "Natural logarithm: decibels take log10.",
    lambda a, b: 10 * torch.log(4 / ((a - b) ** 2).mean()),
)


def scaling_factor(latents: torch.Tensor) -> torch.Tensor:
    """The one number that brings all latents (N,4,h,w) together to a standard deviation of 1."""
    return 1 / latents.std()


def latents_inputs(draw: Draw):
    count, height, width = draw.integers(2, 9, 3)
    spread = draw.uniform(4, 1, 1) * 6 + 1
    return (draw.normal(count, 4, height, width) * spread + spread.flip(0),)


exercise(scaling_factor, latents_inputs).mistakes(
    "That is the spread itself. Multiply by what to make it 1?",
    lambda z: z.std(),
    "Variance is the square of the spread: take the standard deviation.",
    lambda z: 1 / z.var(),
    "One number for all channels, not one for each.",
    lambda z: 1 / z.std(dim=(0, 2, 3)),
    "Take the spread over all numbers at once; the channels' own means count too.",
    lambda z: 1 / z.std(dim=(0, 2, 3)).mean(),
    "The mean size is not the standard deviation: use .std().",
    lambda z: 1 / z.abs().mean(),
)


def mix(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """The point at ``t`` on the straight line from ``a`` (t = 0) to ``b`` (t = 1)."""
    return (1 - t) * a + t * b


def _mix_inputs(draw: Draw):
    (a,) = latents_inputs(draw)
    return a, draw.normal(*a.shape), draw.share() * 0.4


exercise(mix, _mix_inputs).mistakes(
    "Swapped: t = 0 should give a, t = 1 should give b.",
    lambda a, b, t: t * a + (1 - t) * b,
    "At t = 1 this is a + b: a has to fade as b comes.",
    lambda a, b, t: a + t * b,
    "That is the middle, whatever t is.",
    lambda a, b, t: (a + b) / 2,
    "It goes away from b: turn the difference round.",
    lambda a, b, t: a + t * (a - b),
)


def noisy(x: torch.Tensor, noise: torch.Tensor, amount: float) -> torch.Tensor:
    """``x`` with ``amount`` (0 to 1) of noise, so that a variance of 1 stays 1."""
    return math.sqrt(1 - amount**2) * x + amount * noise


exercise(noisy, _mix_inputs).mistakes(
    "The signal has to shrink as noise comes, or the variance grows.",
    lambda x, n, s: x + s * n,
    "The shares add up to 1, but it is their squares that have to: variances add, not spreads.",
    lambda x, n, s: (1 - s) * x + s * n,
    "Here amount is the spread of the noise, not its variance: amount times noise.",
    lambda x, n, s: math.sqrt(1 - s) * x + math.sqrt(s) * n,
    "The square root is missing over 1 - amount ** 2.",
    lambda x, n, s: (1 - s**2) * x + s * n,
    "Signal and noise are swapped.",
    lambda x, n, s: s * x + math.sqrt(1 - s**2) * n,
)
