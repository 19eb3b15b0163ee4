"""The exercises of lesson 04, training a style."""

import math
from types import SimpleNamespace

import torch

from ..losses import gram
from .check import Draw, Exercises
from .lesson_02 import scheduled_inputs, snr

EXERCISES = Exercises()
exercise, check = EXERCISES.add, EXERCISES.check


exercise(
    gram,
    lambda draw: (draw.normal(draw.integer(2, 5), draw.integer(6, 12), *draw.integers(3, 6, 2)),),
).mistakes(
    "It grows with the size of the picture: divide by the number of places, h × w.",
    lambda f: f.flatten(2) @ f.flatten(2).mT,
    "Divide by the places alone, h × w, not by the channels as well.",
    lambda f: f.flatten(2) @ f.flatten(2).mT / f[0].numel(),
    "That divides by the channels: divide by the places, h × w.",
    lambda f: f.flatten(2) @ f.flatten(2).mT / f.shape[1],
    "Divide by the places of one picture, h × w, and by nothing else.",
    lambda f: f.flatten(2) @ f.flatten(2).mT / f.numel(),
    "That compares places with places. For channels with channels, (N, C, C), the transposed one "
    "comes second.",
    lambda f: f.flatten(2).mT @ f.flatten(2) / f[0, 0].numel(),
    "One matrix for each picture, not one for all of them.",
    lambda f: torch.einsum("nchw,ndhw->cd", f, f) / (len(f) * f[0, 0].numel()),
    "reshape cuts the numbers anew and does not move the channels to the end: flatten(2) keeps "
    "each channel together.",
    lambda f: gram(f.reshape(len(f), -1, f.shape[1]).mT[..., None]),
    "That is the covariance: leave the mean in.",
    lambda f: gram(f - f.mean((2, 3), keepdim=True)),
)


def trust(scheduler, timestep) -> torch.Tensor:
    """What an estimate of the picture counts at timesteps (N,): min(1, SNR)."""
    return snr(scheduler, timestep).clamp(max=1)


def _trust_inputs(draw: Draw):
    scheduler, *_ = scheduled_inputs(draw)
    early = draw.integers(0, 25, 3)  # the SNR is above 1 here,
    late = draw.integers(70, 100, 3)  # and below 1 here
    return scheduler, torch.tensor([late[0], *early, *late[1:]])


exercise(trust, _trust_inputs).mistakes(
    "With little noise this goes far beyond 1: cut it off there.",
    snr,
    "That is the larger of the two: clamp(max=1).",
    lambda s, t: snr(s, t).clamp(min=1),
    "Upside down: the more noise, the less an estimate counts. (The weight of min-SNR, for the "
    "L2, looks like this.)",
    lambda s, t: snr(s, t).clamp(max=1) / snr(s, t),
    "That is the picture's share of everything: take the ratio to the noise, cut at 1.",
    lambda s, t: s.alphas_cumprod[t],
    "That is the ratio of the weights; take that of the variances, without the root.",
    lambda s, t: snr(s, t).sqrt().clamp(max=1),
    "That is a gate, open or shut: below an SNR of 1, let it fade.",
    lambda s, t: (snr(s, t) > 1).float(),
    "One number for each timestep, not their mean.",
    lambda s, t: snr(s, t).clamp(max=1).mean(),
)


def balanced(sizes: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Weights (N,) with which terms of these sizes have these shares in the sum; the first is 1."""
    weights = shares / sizes
    return weights / weights[0]


def _balanced_inputs(draw: Draw):
    count = draw.integer(3, 6)
    shares = draw.uniform(count) + 0.2
    return 10 ** (2 * draw.uniform(count) - 1), shares / shares.sum()


exercise(balanced, _balanced_inputs).mistakes(
    "The proportions are right. Divide all of them by the first, so that it is 1.",
    lambda sizes, shares: shares / sizes,
    "Those are the shares. A term of twice the size needs half the weight for the same share.",
    lambda sizes, shares: shares,
    "As if all terms were of one size: divide by the sizes too.",
    lambda sizes, shares: shares / shares[0],
    "That gives every term the same share: multiply by the shares.",
    lambda sizes, shares: sizes[0] / sizes,
    "Upside down: a large term needs a small weight.",
    lambda sizes, shares: sizes / shares / (sizes[0] / shares[0]),
    "Multiplied by the sizes: a large term needs a small weight, so divide.",
    lambda sizes, shares: sizes * shares / (sizes[0] * shares[0]),
    "The weights need not add up to 1, the shares do: let the first weight be 1.",
    lambda sizes, shares: shares / sizes / (shares / sizes).sum(),
)


def rate_at(step: int, steps: int, highest: float, warmup: int) -> float:
    """The learning rate of a step: a linear warm-up times half a cosine from ``highest`` to 0."""
    from ..loop import rate_at as rate_of

    return rate_of(step, SimpleNamespace(steps=steps, learning_rate=highest, warmup=warmup))


def _rate_inputs(draw: Draw):
    steps, warmup = draw.integer(60, 90), draw.integer(10, 15)
    warming = draw.share() < 0.5
    step = draw.integer(2, warmup - 2) if warming else draw.integer(20, 50)
    return step, steps, 1 + draw.share(), warmup


exercise(rate_at, _rate_inputs).mistakes(
    "The warm-up is missing.",
    lambda i, n, top, w: top * 0.5 * (1 + math.cos(math.pi * i / n)),
    "The cosine is missing.",
    lambda i, n, top, w: top * min(1, (i + 1) / w),
    "Step 0 would not move at all: the warm-up counts step + 1.",
    lambda i, n, top, w: top * min(1, i / w) * 0.5 * (1 + math.cos(math.pi * i / n)),
    "After the warm-up its factor stays 1: take min(1, ...).",
    lambda i, n, top, w: top * (i + 1) / w * 0.5 * (1 + math.cos(math.pi * i / n)),
    "Multiply by the highest rate.",
    lambda i, n, top, w: min(1, (i + 1) / w) * 0.5 * (1 + math.cos(math.pi * i / n)),
    "That falls along a straight line: use the cosine.",
    lambda i, n, top, w: top * min(1, (i + 1) / w) * (1 - i / n),
    "The cosine goes from 1 to -1: add 1 and halve it.",
    lambda i, n, top, w: top * min(1, (i + 1) / w) * math.cos(math.pi * i / n),
    "Twice too much: 1 + cos begins at 2.",
    lambda i, n, top, w: top * min(1, (i + 1) / w) * (1 + math.cos(math.pi * i / n)),
    "A whole cosine comes up again: half of one ends at pi, not at 2 pi.",
    lambda i, n, top, w: top * min(1, (i + 1) / w) * 0.5 * (1 + math.cos(2 * math.pi * i / n)),
    "Half a cosine goes from 0 to pi: multiply step / steps by pi.",
    lambda i, n, top, w: top * min(1, (i + 1) / w) * 0.5 * (1 + math.cos(i / n)),
    "In use as well; but here the cosine starts at step 0, and the warm-up is a factor beside it.",
    lambda i, n, top, w: (
        top * ((i + 1) / w if i < w else 0.5 * (1 + math.cos(math.pi * (i - w) / (n - w))))
    ),
)


def places(step: int, batch_size: int, count: int) -> torch.Tensor:
    """(epoch, place) of each picture in a batch: (batch_size,2). An epoch has ``count`` of them."""
    return _at_positions(step * batch_size + torch.arange(batch_size), count)


def _at_positions(positions: torch.Tensor, count: int) -> torch.Tensor:
    return torch.stack([positions // count, positions % count], dim=1)


def _places_inputs(draw: Draw):
    count, batch_size = draw.integer(11, 20), draw.integer(4, 9)
    ends = count * draw.integer(1, 4)  # the batch in which an epoch ends
    return ends // batch_size, batch_size, count


def _in_one_epoch(epoch: int, places: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.full_like(places, epoch), places], dim=1)


def _over_one_end(step, batch_size, count) -> torch.Tensor:
    epoch, place = step * batch_size // count, step * batch_size % count + torch.arange(batch_size)
    over = place >= count
    return torch.stack([epoch + over.long(), place - count * over], dim=1)


exercise(places, _places_inputs, also=lambda draw: [(2, 40, 7)]).mistakes(
    "Lying down: one row for each picture, so stack along dim=1.",
    lambda i, n, count: places(i, n, count).T.contiguous(),
    "Swapped: the epoch comes first, then the place.",
    lambda i, n, count: places(i, n, count).flip(1),
    "Each step uses batch_size pictures, so a step begins at step × batch_size.",
    lambda i, n, count: _at_positions(i + torch.arange(n), count),
    "A batch may begin in one epoch and end in the next: find the epoch of each picture.",
    lambda i, n, count: _in_one_epoch(i * n // count, (i * n + torch.arange(n)) % count),
    "Count epochs and places from 0.",
    lambda i, n, count: places(i, n, count) + 1,
    "One too far: the first picture of step 0 is at position 0.",
    lambda i, n, count: _at_positions(i * n + torch.arange(n) + 1, count),
    "That leaves out the last pictures of an epoch where they fill no whole batch. Here the next "
    "epoch follows without a gap.",
    lambda i, n, count: _in_one_epoch(
        i // max(1, count // n), i % max(1, count // n) * n + torch.arange(n)
    ),
    "That is the step and the place in the batch: work from the position step × batch_size + "
    "place in the batch.",
    lambda i, n, count: _in_one_epoch(i, torch.arange(n)),
    "A batch may be longer than an epoch, and go over several ends.",
    _over_one_end,
)


def accumulated(means: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """The parts (N,) of a batch's mean loss, from the mean loss and the size of each part."""
    return means * sizes / sizes.sum()


def _accumulated_inputs(draw: Draw):
    count = draw.integer(3, 7)
    sizes = torch.tensor(draw.order(8)[:count]) + 2  # no two are equal
    return draw.uniform(count) + 0.5, sizes


exercise(accumulated, _accumulated_inputs).mistakes(
    "Gradients of several backward() add up: this gives the sum of the means, too large by the "
    "number of parts.",
    lambda means, sizes: means,
    "Right for parts of one size. Here a picture in a small part would count more than one in a "
    "large part.",
    lambda means, sizes: means / len(means),
    "That is the sum over pictures; for the mean, divide by how many there are in all.",
    lambda means, sizes: means * sizes,
    "Each loss is the mean of its part already: do not divide it by its size again.",
    lambda means, sizes: means / sizes,
    "Each loss is the mean of its part: multiply by the pictures in it first.",
    lambda means, sizes: means / sizes.sum(),
    "Divide by the number of pictures in all parts, not by the number of parts.",
    lambda means, sizes: means * sizes / len(means),
    "Divide by the sum of the sizes, not by the largest.",
    lambda means, sizes: means * sizes / sizes.max(),
    "That is the loss of the whole batch. Give what each part contributes to it, so that one "
    "part can be backpropagated and dropped before the next.",
    lambda means, sizes: (means * sizes).sum() / sizes.sum(),
)
