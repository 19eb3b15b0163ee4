"""The exercises of lesson 07, does it work?"""

import math

import torch

from .check import Draw, Exercises

EXERCISES = Exercises()
exercise, check = EXERCISES.add, EXERCISES.check


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation of two maps (H,W), from -1 to 1."""
    return _products(a, b).sum() / ((a - a.mean()).norm() * (b - b.mean()).norm())


def _products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - a.mean()) * (b - b.mean())


def _maps_inputs(draw: Draw, sign: int = 1):
    height, width = draw.integers(5, 12, 2)
    a = draw.uniform(height, width) + 0.5
    return a, sign * (0.6 * a + 0.3 * draw.uniform(height, width)) + 1


exercise(correlation, _maps_inputs, also=lambda draw: [_maps_inputs(draw, -1)]).mistakes(
    "First take the mean off each map: two maps that are only both positive are not alike.",
    lambda a, b: (a * b).sum() / (a.norm() * b.norm()),
    "That is the covariance, which grows with contrast: divide by both lengths.",
    lambda a, b: _products(a, b).mean(),
    "It grows with the picture and its contrast: divide by both lengths.",
    lambda a, b: _products(a, b).sum(),
    "The lengths, too, are those of the maps with their means taken off.",
    lambda a, b: _products(a, b).sum() / (a.norm() * b.norm()),
    "Squared, it no longer tells alike from opposite: leave the square out.",
    lambda a, b: correlation(a, b) ** 2,
    "Divide by the two spreads, not by the variances, which are their squares.",
    lambda a, b: _products(a, b).mean() / (a.var() * b.var()),
    "Nearly: .mean() divides by N and .std() by N - 1. Take sums and lengths (.norm()).",
    lambda a, b: _products(a, b).mean() / (a.std() * b.std()),
    "Of two maps of which one rises where the other falls, it is negative: keep the sign.",
    lambda a, b: abs(correlation(a, b)),
)


def standard_error(values: torch.Tensor) -> torch.Tensor:
    """By about how much the mean of values (N,) would move with other scenes."""
    from ..scores import mean_and_error

    return torch.tensor(mean_and_error(values)[1])


exercise(standard_error, lambda draw: (2 + 3 * draw.uniform(draw.integer(3, 9)),)).mistakes(
    "That is how far single scenes scatter. Their mean moves less: divide by the root of N.",
    lambda v: v.std(),
    "Divide by the root of N, not by N.",
    lambda v: v.std() / len(v),
    "That is its square: take the root.",
    lambda v: v.var() / len(v),
    "Take the standard deviation, not the variance.",
    lambda v: v.var() / len(v) ** 0.5,
    "The spread is taken around the mean of these same values, which makes it too small: divide "
    "the squares by N - 1, as .std() does by itself.",
    lambda v: v.std(unbiased=False) / len(v) ** 0.5,
    "N - 1 is in .std() already: here divide by the root of N.",
    lambda v: v.std() / (len(v) - 1) ** 0.5,
    "The spread is what counts, not the mean.",
    lambda v: v.mean() / len(v) ** 0.5,
)


def paired_interval(a: torch.Tensor, b: torch.Tensor, reach: float) -> torch.Tensor:
    """Both ends (2,) of the mean difference a - b, ``reach`` standard errors to each side of it."""
    return _around(a - b, reach * standard_error(a - b))


def _around(differences: torch.Tensor, half) -> torch.Tensor:
    return torch.stack([differences.mean() - half, differences.mean() + half])


def _paired_inputs(draw: Draw):
    count = draw.integer(4, 10)
    a = 1 + 2 * draw.uniform(count)
    return a, a - 0.5 + 0.4 * draw.uniform(count), 2 + draw.share()


exercise(paired_interval, _paired_inputs).mistakes(
    "That is right for two sets of different scenes. Here the scenes are the same: take the "
    "difference of each first, then the error of those.",
    lambda a, b, k: _around(a - b, k * (a.var() / len(a) + b.var() / len(b)) ** 0.5),
    "Turned round: asked for is a - b.",
    lambda a, b, k: paired_interval(b, a, k),
    "That is where single scenes lie. The mean is known better: divide by the root of N.",
    lambda a, b, k: _around(a - b, k * (a - b).std()),
    "That is one standard error to each side: multiply it by reach.",
    lambda a, b, k: paired_interval(a, b, 1.0),
    "Errors of two means do not add up like this. Take the differences first, then their "
    "standard error.",
    lambda a, b, k: _around(a - b, k * (standard_error(a) + standard_error(b))),
    "The difference of two errors is not the error of the difference: take a - b first.",
    lambda a, b, k: _around(a - b, k * (standard_error(a) - standard_error(b))),
    "The lower end comes first.",
    lambda a, b, k: paired_interval(a, b, k).flip(0),
    "reach counts standard errors: multiply by that of the differences.",
    lambda a, b, k: _around(a - b, k),
)


def unbeaten(points: torch.Tensor) -> torch.Tensor:
    """Which of the points (N,K), smaller being better, no other one beats: True or False (N,)."""
    from ..scores import pareto

    return torch.isin(torch.arange(len(points)), torch.tensor(pareto(points)))


def _points_inputs(draw: Draw):
    """Whole numbers, so that there are ties in one coordinate, and two points that are equal."""
    count = draw.integer(6, 12)
    points = torch.tensor(draw.integers(1, 7, 2 * count)).float().view(count, 2)
    return (torch.cat([points, points[points.sum(1).argmin()][None]]),)


exercise(unbeaten, _points_inputs).mistakes(
    "A point that is equal in one thing and better in the other beats as well: nowhere worse, "
    "and better somewhere.",
    lambda p: ~(p[None] < p[:, None]).all(2).any(1),
    "Every point is nowhere worse than itself, so all of them are out: ask for somewhere better, "
    "too.",
    lambda p: ~(p[None] <= p[:, None]).all(2).any(1),
    "Two equal points do not beat each other: ask for somewhere better.",
    lambda p: ~((p[None] <= p[:, None]).all(2) & ~torch.eye(len(p), dtype=torch.bool)).any(1),
    "Better somewhere is not enough: it must be nowhere worse as well.",
    lambda p: ~(p[None] < p[:, None]).any(2).any(1),
    "Turned round: True for those that nobody beats.",
    lambda p: ~unbeaten(p),
    "Smaller is better here.",
    lambda p: unbeaten(-p),
    "A sum says what a step in one is worth in the other. Here nobody has said so: compare in "
    "each by itself.",
    lambda p: p.sum(1) == p.sum(1).min(),
    "Those are the best in one thing; points that are good in both, and best in none, count too.",
    lambda p: (p == p.min(0).values).any(1),
)


def at_content(kept_a, kept_b, score_a, score_b, content) -> torch.Tensor:
    """Scores (N,) where ``content`` is kept, on the straight line between two settings a and b."""
    share = (content - kept_a) / (kept_b - kept_a)
    return (1 - share) * score_a + share * score_b


def _between_inputs(draw: Draw):
    count = draw.integer(3, 8)
    low, gap, share = draw.uniform(3).tolist()
    kept_a, kept_b = 0.9 - 0.1 * low, 0.4 - 0.2 * gap
    content = kept_a + (0.15 + 0.25 * share) * (kept_b - kept_a)
    a, b = draw.uniform(2, count)
    return kept_a, kept_b, 1 + a, b, content


exercise(at_content, _between_inputs).mistakes(
    "Swapped: where all of kept_a is kept, it should be score_a.",
    lambda ka, kb, a, b, c: at_content(kb, ka, a, b, c),
    "That is half way: how far along is content?",
    lambda ka, kb, a, b, c: (a + b) / 2,
    "content is not the share: find how far it lies on the way from kept_a to kept_b.",
    lambda ka, kb, a, b, c: (1 - c) * a + c * b,
    "content is not the share: find how far it lies on the way from kept_a to kept_b.",
    lambda ka, kb, a, b, c: c * a + (1 - c) * b,
    "Nearly: divide the way that is gone by the whole way, kept_b - kept_a.",
    lambda ka, kb, a, b, c: a + (c - ka) * (b - a),
    "One number for each scene: do not take the mean yet, pairs will need them.",
    lambda ka, kb, a, b, c: at_content(ka, kb, a.mean(), b.mean(), c),
    "That is the nearer of the two settings: go the rest of the way along the line.",
    lambda ka, kb, a, b, c: a,
    "It goes away from score_b: turn the difference round.",
    lambda ka, kb, a, b, c: a + abs((c - ka) / (kb - ka)) * (a - b),
)


def to_ship(kept: torch.Tensor, distance: torch.Tensor, least: float) -> int:
    """Of those that keep at least ``least`` the nearest one; if none does, which keeps most."""
    return _nearest(kept, distance, kept >= least)


def _nearest(kept: torch.Tensor, distance: torch.Tensor, enough: torch.Tensor) -> int:
    return int(distance.masked_fill(~enough, math.inf).argmin() if enough.any() else kept.argmax())


def _settings_inputs(draw: Draw):
    """Distances fall as less is kept, and the first of the settings keeps least."""
    count = draw.integer(7, 12)
    kept = 0.3 + 0.5 * draw.uniform(count)
    kept[0] = 0.2
    distance = kept + 0.2 * draw.uniform(count)
    return kept, distance, float(kept.sort().values[count // 2]) - 0.01


def _asks_too_much(draw: Draw):
    kept, distance, _ = _settings_inputs(draw)
    nearest = distance.argmin()  # of all of them, at first
    return [(kept, distance, 0.95), (kept, distance, float(kept[nearest]))]


exercise(to_ship, _settings_inputs, also=_asks_too_much).mistakes(
    "That one does not keep enough: leave out those below the limit first.",
    lambda k, d, m: int(d.argmin()),
    "Nearly: one that keeps just the least that is asked for keeps enough.",
    lambda k, d, m: _nearest(k, d, k > m),
    "That one keeps most. Of all that keep enough, take the one nearest to the truth.",
    lambda k, d, m: int(k.argmax()),
    "That is its place among those that keep enough: return its place among all.",
    lambda k, d, m: int(d[k >= m].argmin()) if (k >= m).any() else int(k.argmax()),
    "Right while one of them keeps enough. If none does, all are infinite, and argmin gives the "
    "first: take the one that keeps most then.",
    lambda k, d, m: int(d.masked_fill(k < m, math.inf).argmin()),
    "That is the one nearest to the limit; asked for is the one nearest to the truth that is not "
    "below it.",
    lambda k, d, m: int((k - m).abs().argmin()),
    "Turned round: those that keep too little are left out, not those that keep enough.",
    lambda k, d, m: (
        int(d.masked_fill(k > m, math.inf).argmin()) if (k > m).any() else int(k.argmax())
    ),
    "Distance: less is better.",
    lambda k, d, m: _nearest(k, -d, k >= m),
)
