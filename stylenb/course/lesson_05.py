"""The exercises of lesson 05, DreamBooth and LoRA."""

import torch

from ..losses import noise_loss
from .check import Draw, Exercises

EXERCISES = Exercises()
exercise, check = EXERCISES.add, EXERCISES.check


def preserved_loss(prediction, noise, weight: float) -> torch.Tensor:
    """L2 of the noise of a batch (2n,4,h,w): of its first half, the instance pictures, plus
    ``weight`` times that of its second, the prior set."""
    return _of_halves(noise_loss(prediction, noise, None, None), weight)


def _of_halves(errors: torch.Tensor, weight: float) -> torch.Tensor:
    first, second = errors.chunk(2)
    return first.mean() + weight * second.mean()


def _halves_inputs(draw: Draw):
    half, height = draw.integer(2, 6), draw.integer(3, 9)
    prediction, noise = draw.normal(2, 2 * half, 4, height, height)
    far = draw.uniform(2 * half, 1, 1, 1) + 0.2
    return noise + far * (prediction - noise), noise, draw.alpha()


exercise(preserved_loss, _halves_inputs).mistakes(
    "That is one mean over the whole batch: each half has a mean of its own, and the second one "
    "is weighted.",
    lambda p, n, w: ((p - n) ** 2).mean(),
    "The weight is missing: it multiplies the mean of the second half.",
    lambda p, n, w: preserved_loss(p, n, 1.0),
    "Swapped: the instance pictures come first, and the weight belongs to the second half.",
    lambda p, n, w: preserved_loss(p.roll(len(p) // 2, 0), n.roll(len(n) // 2, 0), w),
    "The weight belongs to the prior half alone, not to both.",
    lambda p, n, w: w * preserved_loss(p, n, 1.0),
    "Add the two means, and do not halve the sum: without a prior set the loss should be the L2 "
    "as it was.",
    lambda p, n, w: preserved_loss(p, n, w) / 2,
    "That takes every other picture. The halves lie one behind the other: [:n] and [n:].",
    lambda p, n, w: ((p - n) ** 2)[::2].mean() + w * ((p - n) ** 2)[1::2].mean(),
    "That halves the channels: the batch is the first dimension.",
    lambda p, n, w: _of_halves(((p - n) ** 2).transpose(0, 1), w),
    "L2 is the squared error: square the difference.",
    lambda p, n, w: _of_halves((p - n).abs(), w),
    "Those are sums: take the mean of each half.",
    lambda p, n, w: preserved_loss(p, n, w) * (p.numel() // 2),
)


def min_snr_halves(errors, ratio, gamma: float, weight: float) -> torch.Tensor:
    """The same with min-SNR weighting: errors (2n,) of the pictures and their SNRs (2n,)."""
    return _of_halves(errors * ratio.clamp(max=gamma) / ratio, weight)


def _min_snr_inputs(draw: Draw):
    half, gamma = draw.integer(3, 7), 3 + 3 * draw.share()
    low = gamma * (0.1 + 0.7 * draw.uniform(2, half))  # these keep their weight
    ratio = torch.where(torch.arange(half) % 2 == 0, low, 10 * low + 2 * gamma)
    return draw.uniform(2 * half) + 0.2, ratio.flatten(), gamma, draw.alpha()


exercise(min_snr_halves, _min_snr_inputs).mistakes(
    "That is without min-SNR: multiply each error by min(SNR, gamma) / SNR first.",
    lambda e, r, g, w: _of_halves(e, w),
    "The second half has got the weights of the first. Every picture has a timestep of its own, "
    "so weigh before the batch is taken apart.",
    lambda e, r, g, w: _of_halves(e * (r.clamp(max=g) / r)[: len(r) // 2].repeat(2), w),
    "The division by the SNR is missing: that weight is for an error of the picture, and this is "
    "one of the noise.",
    lambda e, r, g, w: _of_halves(e * r.clamp(max=g), w),
    "That is the larger of the two: min(SNR, gamma) is clamp(max=gamma).",
    lambda e, r, g, w: _of_halves(e * r.clamp(min=g) / r, w),
    "The limit is gamma, not 1.",
    lambda e, r, g, w: min_snr_halves(e, r, 1.0, w),
    "Upside down: the SNR stands below, min(SNR, gamma) above.",
    lambda e, r, g, w: _of_halves(e * r / r.clamp(max=g), w),
    "The weight of the prior is missing: it multiplies the mean of the second half.",
    lambda e, r, g, w: min_snr_halves(e, r, g, 1.0),
    "The prior half is weighted by min-SNR as well.",
    lambda e, r, g, w: (e * r.clamp(max=g) / r)[: len(e) // 2].mean() + w * e[len(e) // 2 :].mean(),
    "The instance half is weighted by min-SNR as well.",
    lambda e, r, g, w: e[: len(e) // 2].mean() + w * (e * r.clamp(max=g) / r)[len(e) // 2 :].mean(),
)


def times_seen(steps: int, accumulate: int, batch_size: int, count: int) -> float:
    """How often each of ``count`` prior pictures is seen, with ``batch_size`` in every batch."""
    return steps * accumulate * batch_size / count


exercise(
    times_seen, lambda draw: [draw.integer(*r) for r in ((101, 400), (2, 5), (2, 6), (17, 90))]
).mistakes(
    "A step takes several batches: multiply by accumulate.",
    lambda s, a, b, n: s * b / n,
    "batch_size counts one half of the batch already: do not double it.",
    lambda s, a, b, n: 2 * s * a * b / n,
    "Every batch holds batch_size of them: multiply by it.",
    lambda s, a, b, n: s * a / n,
    "Those are all showings: divide by the pictures.",
    lambda s, a, b, n: s * a * b,
    "Upside down: divide the showings by the pictures.",
    lambda s, a, b, n: n / (s * a * b),
    "Right idea, but an epoch may end early: divide by /, which does not round.",
    lambda s, a, b, n: s * a * b // n,
    "More batches in a step show more pictures: multiply by accumulate.",
    lambda s, a, b, n: s * b / (a * n),
    "More pictures in a batch show more of them: multiply by batch_size.",
    lambda s, a, b, n: s * a / b / n,
)


def drift_of(before, after, noise) -> torch.Tensor:
    """Mean squared change of predictions (N,T,4,h,w) over their mean squared error before: (N,)."""
    from ..scores import NoisePredictions, prior_drift

    return prior_drift(NoisePredictions(before, noise), NoisePredictions(after, noise))


def _drift_inputs(draw: Draw):
    count, timesteps, side = draw.integers(2, 6, 3)
    noise, one, two = draw.normal(3, count, timesteps, 4, side, side)
    before = noise + one * (0.2 + draw.uniform(1, timesteps, 1, 1, 1))
    return before, before + 0.5 * two, noise


def _squares(one, other, dimensions: int = 1) -> torch.Tensor:
    """Mean squared differences over all but the first ``dimensions``."""
    return (one - other).pow(2).flatten(dimensions).mean(dimensions)


exercise(drift_of, _drift_inputs).mistakes(
    "That is how far it has moved. Divide by how wrong it was before, or nobody can say whether "
    "that is much.",
    lambda b, a, n: _squares(a, b),
    "That compares the errors. A model may have moved far and be as wrong as before: take the "
    "change from before to after.",
    lambda b, a, n: _squares(a, n) / _squares(b, n),
    "That is how much worse it has become. A model may have moved far and be as wrong as before: "
    "take the change from before to after.",
    lambda b, a, n: _squares(a, n) / _squares(b, n) - 1,
    "Divide by the error *before* the training, which is the same for all methods.",
    lambda b, a, n: _squares(a, b) / _squares(a, n),
    "Upside down: the change comes first.",
    lambda b, a, n: _squares(b, n) / _squares(a, b),
    "No root: squares over squares, as a loss is.",
    lambda b, a, n: (_squares(a, b) / _squares(b, n)) ** 0.5,
    "One number for each picture: take the means over all dimensions but the first.",
    lambda b, a, n: ((a - b) ** 2).mean() / ((b - n) ** 2).mean(),
    "Divide by the mean squared *error* of the first prediction, before - noise.",
    lambda b, a, n: _squares(a, b) / _squares(n, 0),
    "Average over the timesteps first, then divide: else a timestep with hardly an error would "
    "decide.",
    lambda b, a, n: (_squares(a, b, 2) / _squares(b, n, 2)).mean(1),
)


def training_bytes(trained: int, frozen: int, frozen_bytes: int, state_bytes: int) -> int:
    """Bytes that training holds besides activations: 4 for each trained weight, 4 for its gradient,
    ``state_bytes`` for the optimiser, and ``frozen_bytes`` for each frozen weight."""
    return trained * (4 + 4 + state_bytes) + frozen * frozen_bytes


def _bytes_inputs(draw: Draw):
    trained, frozen = draw.integers(100, 1000, 2)
    first, second = draw.uniform(2).round().int().tolist()
    return trained, frozen, (2, 4)[first], (2, 8)[second]


exercise(training_bytes, _bytes_inputs).mistakes(
    "Only one of weights and gradients is there: each trained number needs 4 bytes for itself "
    "and 4 for its gradient.",
    lambda t, f, b, s: t * (4 + s) + f * b,
    "The optimiser's memory is missing.",
    lambda t, f, b, s: t * 8 + f * b,
    "Frozen weights have to lie in memory as well.",
    lambda t, f, b, s: t * (8 + s),
    "Frozen weights get no gradient that is kept.",
    lambda t, f, b, s: t * (8 + s) + f * (b + 4),
    "Only what is trained needs gradients and the optimiser's memory.",
    lambda t, f, b, s: (t + f) * (8 + s),
    "The optimiser knows nothing of frozen weights.",
    lambda t, f, b, s: t * (8 + s) + f * (b + s),
    "state_bytes holds both of AdamW's averages already: do not double it.",
    lambda t, f, b, s: t * (8 + 2 * s) + f * b,
    "Trained weights are float32 whatever the frozen ones are: 4 bytes each.",
    lambda t, f, b, s: t * (b + 4 + s) + f * b,
)
