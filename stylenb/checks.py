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
from types import SimpleNamespace

import torch


@dataclass(frozen=True)
class Exercise:
    reference: Callable
    inputs: Callable  # torch.Generator -> the arguments of one trial
    mistakes: dict[Callable, str] = field(
        default_factory=dict
    )  # wrong version -> what to say to it
    also: Callable | None = None  # torch.Generator -> a list of trials that must not be left out


def check(name: str, answer: Callable) -> Callable:
    """Try ``answer`` against the exercise called ``name``; return it if right, else the reference.

    What came of it is printed. An answer that raises ``NotImplementedError`` or returns ``...``
    counts as not solved yet.
    """
    exercise = EXERCISES[name]
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    trials = [exercise.inputs(generator) for _ in range(4)]
    trials += exercise.also(generator) if exercise.also else []
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
    for result, right in zip(results, expected, strict=True):
        if not _same([result], [right]):
            break
    return _refuse(name, _largest_difference(result, right), exercise)


def _refuse(name: str, advice: str, exercise: Exercise) -> Callable:
    print(f"{name}: not right yet. {advice[0].upper()}{advice[1:]}\nGoing on with the reference.")
    return exercise.reference


def _copies(trial: tuple) -> list:
    return [value.clone() if isinstance(value, torch.Tensor) else value for value in trial]


def _shape(value) -> tuple | str:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    return () if isinstance(value, (int, float)) else type(value).__name__


def _largest_difference(result, right) -> str:
    a, b = (torch.as_tensor(value, dtype=torch.float64).flatten() for value in (result, right))
    where = (a - b).abs().argmax()
    return f"for one input it gives {a[where].item():.4g}, expected {b[where].item():.4g}."


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


# --- 02 noise and the UNet


def _kept(scheduler, timestep, device="cpu") -> torch.Tensor:
    """What is kept of the variance at timesteps (N,) or one, as (N,1,1,1).

    diffusers' add_noise leaves the table on the device of the latents that it was given last.
    """
    return scheduler.alphas_cumprod.to(device)[timestep].view(-1, 1, 1, 1)


def add_noise(scheduler, latents, noise, timestep) -> torch.Tensor:
    """Latents (N,4,h,w) under the noise that the schedule has at each timestep (N,) or at one."""
    kept = _kept(scheduler, timestep, latents.device)
    return kept**0.5 * latents + (1 - kept) ** 0.5 * noise


def snr(scheduler, timestep) -> torch.Tensor:
    """The picture's variance over the noise's at timesteps (N,)."""
    kept = scheduler.alphas_cumprod.to(timestep.device)[timestep]
    return kept / (1 - kept)


def estimate_x0(scheduler, noisy, noise, timestep) -> torch.Tensor:
    """The latents that ``add_noise`` was given, from what it returned and the noise."""
    kept = _kept(scheduler, timestep, noisy.device)
    return (noisy - (1 - kept) ** 0.5 * noise) / kept**0.5


def ddim_step(scheduler, noisy, noise, timestep, previous) -> torch.Tensor:
    """Noisy latents at ``timestep`` brought to ``previous``, with no randomness (DDIM, eta 0)."""
    return add_noise(scheduler, estimate_x0(scheduler, noisy, noise, timestep), noise, previous)


def guided(without: torch.Tensor, with_prompt: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance: at scale 0 the first guess, at 1 the second, beyond it further."""
    return without + scale * (with_prompt - without)


def start_index(steps: int, strength: float) -> int:
    """The first of ``steps`` timesteps that is run at ``strength``, above 0 and up to 1."""
    return steps - steps_run(steps, strength)


def _scheduled_inputs(generator):
    """A schedule of its own, two batches of latents, and timesteps from its middle.

    A batch is as wide as it is long, so that numbers (N,) which lack the shape (N,1,1,1) are laid
    along the width without an error, and that mistake can be named.
    """
    count, height = _sizes(generator, 2, 6, 1)[0], _sizes(generator, 6, 9, 1)[0]
    kept = (1 - (torch.rand(100, generator=generator) * 0.02 + 0.005)).cumprod(0)
    a, b = torch.randn(2, count, 4, height, count, generator=generator)
    timestep = torch.randint(40, 90, (count,), generator=generator)
    return SimpleNamespace(alphas_cumprod=kept), a, b, timestep


def _ddim_inputs(generator):
    scheduler, a, b, timestep = _scheduled_inputs(generator)
    return scheduler, a, b, timestep, timestep - _sizes(generator, 10, 40, 1)[0]


def _with_one_timestep(inputs: Callable) -> Callable:
    """A trial as ``inputs`` makes it, but with one timestep, a whole number, for all latents."""

    def trials(generator):
        scheduler, a, b, *timesteps = inputs(generator)
        return [(scheduler, a, b, *(int(timestep[0]) for timestep in timesteps))]

    return trials


def _guided_inputs(generator):
    _, a, b, _ = _scheduled_inputs(generator)
    return a, b, 1.5 + 6 * float(torch.rand(1, generator=generator))


# --- 03 the LoRA formula


def lora_forward(x, W, A, B, alpha: float) -> torch.Tensor:
    """Rows ``x`` (N,in) through W + alpha A B; W is (in,out), A (in,r) and B (r,out)."""
    return x @ W + alpha * (x @ A @ B)


def _forward_inputs(generator):
    count, inputs, outputs = _sizes(generator, 6, 30, 3)
    (rank,) = _sizes(generator, 2, 6, 1)
    shapes = (count, inputs), (inputs, outputs), (inputs, rank), (rank, outputs)
    return *(torch.randn(shape, generator=generator) for shape in shapes), _alpha(generator)


def _alpha(generator) -> float:
    return 0.25 + 0.5 * float(torch.rand(1, generator=generator))


def convert_alpha(value: float, rank: int, source: str, target: str) -> float:
    """The alpha of a LoRA as "course" or as "peft" and "kohya" write it, which divide by rank."""
    alpha = value if source == "course" else value / rank
    return alpha if target == "course" else alpha * rank


def _convert_inputs(generator):
    source, target = torch.randperm(3, generator=generator)[:2].tolist()
    programs = "course", "peft", "kohya"
    return 8 * _alpha(generator), _sizes(generator, 2, 17, 1)[0], programs[source], programs[target]


def _convert_between_all(generator):
    programs = "course", "peft", "kohya"
    return [
        (8 * _alpha(generator), 4, source, target)
        for source in programs
        for target in programs
        if source != target
    ]


def lora_parameters(shapes, rank: int) -> int:
    """Numbers in A and B together for layers with weights of ``shapes``, a list of (out, in)."""
    return sum(rank * (outputs + inputs) for outputs, inputs in shapes)


def _shapes_inputs(generator):
    sizes = _sizes(generator, 8, 80, 10)
    return list(zip(sizes[::2], sizes[1::2], strict=True)), _sizes(generator, 3, 9, 1)[0]


def keep_rank(update: torch.Tensor, k: int) -> torch.Tensor:
    """The matrix of rank ``k`` that is nearest to ``update``; same shape."""
    U, S, Vh = torch.linalg.svd(update, full_matrices=False)
    return U[:, :k] * S[:k] @ Vh[:k]


def _rank_inputs(generator):
    shape = _sizes(generator, 8, 20, 2)
    return torch.randn(shape, generator=generator), _sizes(generator, 2, 6, 1)[0]


def _nearest_but(function: Callable) -> Callable:
    """``keep_rank`` with the pieces of the SVD put together by ``function`` instead."""
    return lambda m, k: function(*torch.linalg.svd(m, full_matrices=False), k)


def merge(weight, A, B, alpha: float) -> torch.Tensor:
    """A layer's weight (out,in), as torch stores it, with alpha A B added; A (in,r), B (r,out)."""
    return weight + alpha * (A @ B).T


def _merge_inputs(generator):
    (size,) = _sizes(generator, 6, 30, 1)  # square, as in self-attention: no shape gives it away
    (rank,) = _sizes(generator, 2, 6, 1)
    shapes = (size, size), (size, rank), (rank, size)
    return *(torch.randn(shape, generator=generator) for shape in shapes), _alpha(generator)


def add_two(W, A1, B1, alpha1: float, A2, B2, alpha2: float) -> torch.Tensor:
    """W (in,out) with two LoRAs added: W + alpha1 A1 B1 + alpha2 A2 B2."""
    return W + alpha1 * A1 @ B1 + alpha2 * A2 @ B2


def _two_inputs(generator):
    inputs, outputs = _sizes(generator, 6, 30, 2)
    (rank,) = _sizes(generator, 2, 6, 1)
    W = torch.randn(inputs, outputs, generator=generator)
    pairs = [
        (
            torch.randn(inputs, rank, generator=generator),
            torch.randn(rank, outputs, generator=generator),
            _alpha(generator),
        )
        for _ in range(2)
    ]
    return W, *pairs[0], *pairs[1]


# --- 04 training a style


def gram(features: torch.Tensor) -> torch.Tensor:
    """Gram matrices (N,C,C) of features (N,C,h,w), divided by the h w places."""
    flat = features.flatten(2)
    return flat @ flat.mT / flat.shape[2]


def _features_inputs(generator):
    count, channels = _sizes(generator, 2, 5, 1)[0], _sizes(generator, 6, 12, 1)[0]
    height, width = _sizes(generator, 3, 6, 2)
    return (torch.randn(count, channels, height, width, generator=generator),)


def trust(scheduler, timestep) -> torch.Tensor:
    """What an estimate of the picture counts at timesteps (N,): min(1, SNR)."""
    return snr(scheduler, timestep).clamp(max=1)


def _trust_inputs(generator):
    scheduler, *_ = _scheduled_inputs(generator)
    early = torch.randint(0, 25, (3,), generator=generator)  # the SNR is above 1 here,
    late = torch.randint(70, 100, (3,), generator=generator)  # and below 1 here
    return scheduler, torch.cat([late[:1], early, late[1:]])


def balanced(sizes: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Weights (N,) with which terms of these sizes have these shares in the sum; the first is 1."""
    weights = shares / sizes
    return weights / weights[0]


def _balanced_inputs(generator):
    (count,) = _sizes(generator, 3, 6, 1)
    shares = torch.rand(count, generator=generator) + 0.2
    return 10 ** torch.empty(count).uniform_(-1, 1, generator=generator), shares / shares.sum()


def rate_at(step: int, steps: int, highest: float, warmup: int) -> float:
    """The learning rate of a step: a linear warm-up times half a cosine from ``highest`` to 0."""
    warm = min(1, (step + 1) / warmup)
    return highest * warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def _rate_inputs(generator):
    steps, warmup = _sizes(generator, 60, 90, 1)[0], _sizes(generator, 10, 15, 1)[0]
    warming = torch.rand(1, generator=generator) < 0.5
    step = _sizes(generator, 2, warmup - 2, 1) if warming else _sizes(generator, 20, 50, 1)
    return step[0], steps, 1 + float(torch.rand(1, generator=generator)), warmup


def _one_after_warmup(step, steps, highest, warmup) -> float:
    if step < warmup:
        return highest * (step + 1) / warmup
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def places(step: int, batch_size: int, count: int) -> torch.Tensor:
    """(epoch, place) of each picture in the batch of a step, (batch_size,2), with ``count``
    pictures in an epoch and no gap between epochs."""
    positions = step * batch_size + torch.arange(batch_size)
    return torch.stack([positions // count, positions % count], dim=1)


def _places_inputs(generator):
    count, batch_size = _sizes(generator, 11, 20, 1)[0], _sizes(generator, 4, 9, 1)[0]
    ends = count * _sizes(generator, 1, 4, 1)[0]  # the batch in which an epoch ends
    return ends // batch_size, batch_size, count


def _places(positions, count) -> torch.Tensor:
    return torch.stack([positions // count, positions % count], dim=1)


def accumulated(losses: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """What to backpropagate for each part (N,) of a batch, from the mean loss of each part and the
    number of pictures in it, so that together they are the mean loss of the whole batch."""
    return losses * sizes / sizes.sum()


def _accumulated_inputs(generator):
    (count,) = _sizes(generator, 3, 7, 1)
    sizes = torch.randperm(8, generator=generator)[:count] + 2  # no two are equal
    return torch.rand(count, generator=generator) + 0.5, sizes


# --- 07 does it work?


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation of two maps (H,W): 1 if one is the other times a positive number plus
    a number, 0 if they have nothing to do with each other."""
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / (a.norm() * b.norm())


def _maps_inputs(generator):
    height, width = _sizes(generator, 5, 12, 2)
    a = torch.rand(height, width, generator=generator) + 0.5
    return a, 0.6 * a + 0.3 * torch.rand(height, width, generator=generator) + 1


def standard_error(values: torch.Tensor) -> torch.Tensor:
    """By about how much the mean of values (N,) would move with other scenes."""
    return values.std() / len(values) ** 0.5


def _values_inputs(generator):
    (count,) = _sizes(generator, 3, 9, 1)
    return (2 + 3 * torch.rand(count, generator=generator),)


def paired_interval(a: torch.Tensor, b: torch.Tensor, reach: float) -> torch.Tensor:
    """Both ends (2,) of the interval of the mean difference a - b of the same N scenes; it goes
    ``reach`` standard errors to each side."""
    difference = a - b
    error = standard_error(difference)
    return torch.stack([difference.mean() - reach * error, difference.mean() + reach * error])


def _paired_inputs(generator):
    (count,) = _sizes(generator, 4, 10, 1)
    a = 1 + 2 * torch.rand(count, generator=generator)
    b = a - 0.5 + 0.4 * torch.rand(count, generator=generator)
    return a, b, 2 + float(torch.rand(1, generator=generator))


def _around(mean, half) -> torch.Tensor:
    return torch.stack([mean - half, mean + half])


def unbeaten(points: torch.Tensor) -> torch.Tensor:
    """Which of the points (N,K), smaller being better, no other one beats: (N,) of True and False.
    One beats another if it is nowhere worse and somewhere better."""
    one, other = points[:, None], points[None]
    beaten = (other <= one).all(2) & (other < one).any(2)
    return ~beaten.any(1)


def _points_inputs(generator):
    """Whole numbers, so that there are ties in one coordinate, and two points that are equal."""
    (count,) = _sizes(generator, 6, 12, 1)
    points = torch.randint(1, 7, (count, 2), generator=generator).float()
    return (torch.cat([points, points[points.sum(1).argmin()][None]]),)


def at_content(kept_a, kept_b, score_a, score_b, content) -> torch.Tensor:
    """Scores (N,) where a mean of ``content`` is kept, between two settings a and b of a knob that
    keep ``kept_a`` and ``kept_b``, on a straight line."""
    share = (content - kept_a) / (kept_b - kept_a)
    return (1 - share) * score_a + share * score_b


def _between_inputs(generator):
    (count,) = _sizes(generator, 3, 8, 1)
    low, gap, share = torch.rand(3, generator=generator).tolist()
    kept_a, kept_b = 0.9 - 0.1 * low, 0.4 - 0.2 * gap
    content = kept_a + (0.15 + 0.25 * share) * (kept_b - kept_a)
    a, b = torch.rand(2, count, generator=generator)
    return kept_a, kept_b, 1 + a, b, content


def to_ship(kept: torch.Tensor, distance: torch.Tensor, least: float) -> int:
    """Which of N settings to ship: of those that keep at least ``least``, the one nearest to the
    truth; if there is none, the one that keeps most."""
    enough = kept >= least
    if not enough.any():
        return int(kept.argmax())
    return int(distance.masked_fill(~enough, math.inf).argmin())


def _settings_inputs(generator):
    """Distances fall as less is kept, and the first of the settings keeps least."""
    (count,) = _sizes(generator, 7, 12, 1)
    kept = 0.3 + 0.5 * torch.rand(count, generator=generator)
    kept[0] = 0.2
    distance = kept + 0.2 * torch.rand(count, generator=generator)
    return kept, distance, float(kept.sort().values[count // 2]) - 0.01


def _asks_too_much(generator):
    kept, distance, _ = _settings_inputs(generator)
    return [(kept, distance, 0.95)]


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
    "add_noise": Exercise(
        add_noise,
        _scheduled_inputs,
        {
            lambda s, x, n, t: (
                _kept(s, t) * x + (1 - _kept(s, t)) * n
            ): "These are shares of the variance: the weights are their square roots.",
            lambda s, x, n, t: (
                _kept(s, t) ** 0.5 * x + n
            ): "The noise needs its weight too: the square root of 1 - kept.",
            lambda s, x, n, t: (
                x + (1 - _kept(s, t)) ** 0.5 * n
            ): "The picture needs its weight too: the square root of kept.",
            lambda s, x, n, t: (
                _kept(s, t) ** 0.5 * x + (1 - _kept(s, t) ** 0.5) * n
            ): "For the noise, take the root of (1 - kept), not 1 minus the root.",
            lambda s, x, n, t: (
                (1 - _kept(s, t)) ** 0.5 * x + _kept(s, t) ** 0.5 * n
            ): "Swapped: kept is the picture's share, the rest is the noise's.",
            lambda s, x, n, t: (
                s.alphas_cumprod[t] ** 0.5 * x + (1 - s.alphas_cumprod[t]) ** 0.5 * n
            ): "The formula is right, but kept runs along the width of the latents instead of "
            "along the batch: it needs the shape (N, 1, 1, 1), which kept_at gives.",
        },
        also=_with_one_timestep(_scheduled_inputs),
    ),
    "snr": Exercise(
        snr,
        lambda generator: _scheduled_inputs(generator)[::3],
        {
            lambda s, t: (
                (1 - s.alphas_cumprod[t]) / s.alphas_cumprod[t]
            ): "Upside down: signal over noise, and the signal is the picture.",
            lambda s, t: (
                (s.alphas_cumprod[t] / (1 - s.alphas_cumprod[t])) ** 0.5
            ): "That is the ratio of the weights; take that of the variances, without the root.",
            lambda s, t: (
                (s.alphas_cumprod[t] / (1 - s.alphas_cumprod[t])) ** 2
            ): "Squared once too often: what is kept is a variance already.",
            lambda s, t: s.alphas_cumprod[
                t
            ]: "That is the picture's share of everything; divide it by the noise's share.",
            lambda s, t: (
                10 * torch.log10(s.alphas_cumprod[t] / (1 - s.alphas_cumprod[t]))
            ): "Those are decibels: leave the ratio as it is.",
            lambda s, t: (
                _kept(s, t) / (1 - _kept(s, t))
            ): "The formula is right, but kept_at has a shape for latents; here it is one number "
            "for each timestep: scheduler.alphas_cumprod[timestep].",
        },
    ),
    "estimate_x0": Exercise(
        estimate_x0,
        _scheduled_inputs,
        {
            lambda s, x, n, t: (
                x - (1 - _kept(s, t)) ** 0.5 * n
            ): "Half way: now undo the weight of the picture, by dividing.",
            lambda s, x, n, t: x - n: "Both weights are missing: the noise was added with one, and "
            "the picture shrunk by the other.",
            lambda s, x, n, t: (
                (x - n) / _kept(s, t) ** 0.5
            ): "The noise was added with a weight: take away as much, not all of it.",
            lambda s, x, n, t: (
                (x - (1 - _kept(s, t)) ** 0.5 * n) / _kept(s, t)
            ): "Divide by the square root of kept, not by kept.",
            lambda s, x, n, t: (
                (x - (1 - _kept(s, t)) * n) / _kept(s, t)
            ): "These are shares of the variance: the weights are their square roots.",
            lambda s, x, n, t: (
                (x - (1 - _kept(s, t)) ** 0.5 * n) * _kept(s, t) ** 0.5
            ): "Multiplied where exercise 1 multiplied: to undo that, divide.",
            lambda s, x, n, t: (
                x / _kept(s, t) ** 0.5 - (1 - _kept(s, t)) ** 0.5 * n
            ): "First take the noise away, then divide all of it.",
            lambda s, x, n, t: add_noise(s, x, n, t): "That adds the noise once more.",
            lambda s, x, n, t: (
                (x - (1 - s.alphas_cumprod[t]) ** 0.5 * n) / s.alphas_cumprod[t] ** 0.5
            ): "The formula is right, but kept runs along the width of the latents instead of "
            "along the batch: it needs the shape (N, 1, 1, 1), which kept_at gives.",
        },
        also=_with_one_timestep(_scheduled_inputs),
    ),
    "ddim_step": Exercise(
        ddim_step,
        _ddim_inputs,
        {
            lambda s, x, n, t, p: estimate_x0(
                s, x, n, t
            ): "That jumps to the clean estimate. Put back on as much noise as `previous` has.",
            lambda s, x, n, t, p: add_noise(
                s, x, n, p
            ): "That adds noise to latents that are noisy already: estimate the clean ones first.",
            lambda s, x, n, t, p: add_noise(
                s, estimate_x0(s, x, n, t), n, t
            ): "It gives the latents back as they were: the estimate belongs to `timestep`, the "
            "noise that is put back to `previous`.",
            lambda s, x, n, t, p: add_noise(
                s, estimate_x0(s, x, n, p), n, t
            ): "timestep and previous are swapped: this goes up the schedule, not down.",
            lambda s, x, n, t, p: (
                _kept(s, p) ** 0.5 * estimate_x0(s, x, n, t)
            ): "The noise of `previous` is missing: the next guess will look for it.",
            lambda s, x, n, t, p: (
                s.alphas_cumprod[p] ** 0.5
                * (x - (1 - s.alphas_cumprod[t]) ** 0.5 * n)
                / s.alphas_cumprod[t] ** 0.5
                + (1 - s.alphas_cumprod[p]) ** 0.5 * n
            ): "The formula is right, but with several timesteps kept needs the shape "
            "(N, 1, 1, 1), which kept_at gives; or call estimate_x0 and add_noise.",
        },
        also=_with_one_timestep(_ddim_inputs),
    ),
    "guided": Exercise(
        guided,
        _guided_inputs,
        {
            lambda a, b, k: (
                b + k * (b - a)
            ): "One too far: at scale 1 this should be the guess with the prompt itself.",
            lambda a, b, k: (
                k * (b - a)
            ): "That is the way to go, and it lacks where to start from: the guess without.",
            lambda a, b, k: (
                b + k * (a - b)
            ): "Swapped: scale 0 should be the guess without the prompt, scale 1 that with it.",
            lambda a, b, k: (
                a + k * (a - b)
            ): "It goes away from the prompt: turn the difference round.",
            lambda a, b, k: (
                a + k * b
            ): "At scale 1 this adds both guesses: multiply the difference of the two.",
            lambda a, b, k: k * b: "At scale 0 this should be the guess without the prompt.",
            lambda a, b, k: (
                a + (b - a).clamp(-1, 1) * k
            ): "The difference counts as it is: leave out the clamp.",
        },
    ),
    "start_index": Exercise(
        start_index,
        _steps_inputs,
        {
            lambda n, s: round(n * s): "That is how many are run; the index is how many are "
            "skipped.",
            lambda n, s: (
                round(n * s) - 1
            ): "Counted from the wrong end: high strength starts early in the list.",
            lambda n, s: (
                n - round(n * s) - 1
            ): "One too early: a list counts from 0, so skipping n entries leads to index n.",
            lambda n, s: (
                n - round(n * s) + 1
            ): "One too late: a list counts from 0, so skipping n entries leads to index n.",
            lambda n, s: n - n * s: "Right idea, but an index is a whole number: round the steps.",
            lambda n, s: (
                n - int(n * s)
            ): "Close: int() always rounds the steps down; take the nearest number.",
            lambda n, s: int(
                n - n * s
            ): "Close: int() always rounds down; round the steps that run to the nearest number.",
            lambda n, s: round(
                1000 * s
            ): "That is about the timestep itself; asked for is its place in the list.",
            lambda n, s: (
                n - round(n * s)
            ): "Nearly: at a very low strength nothing is left to run. Take at least one step, "
            "max(1, ...).",
        },
        also=lambda generator: [(20, 0.01)],
    ),
    "lora_forward": Exercise(
        lora_forward,
        _forward_inputs,
        {
            lambda x, W, A, B, a: x @ W + x @ A @ B: "Alpha is missing.",
            lambda x, W, A, B, a: a * (x @ A @ B): "That is the update alone: add x W.",
            lambda x, W, A, B, a: a * (x @ W + x @ A @ B): "Alpha turns up the update only, not W.",
            lambda x, W, A, B, a: (
                (1 - a) * (x @ W) + a * (x @ A @ B)
            ): "A LoRA is added to W; W itself stays whole.",
            lambda x, W, A, B, a: (
                x @ W + a / A.shape[1] * (x @ A @ B)
            ): "The course's formula has no division by the rank.",
            lambda x, W, A, B, a: x @ W: "That is the layer without its LoRA.",
        },
    ),
    "convert_alpha": Exercise(
        convert_alpha,
        _convert_inputs,
        {
            lambda v, r, s, t: v: "The number has to change: peft and kohya divide it by the rank, "
            "the course does not.",
            lambda v, r, s, t: (
                (v if s == "course" else v * r) / (1 if t == "course" else r)
            ): "Upside down: peft and kohya divide by the rank themselves, so their number is "
            "the larger one.",
            lambda v, r, s, t: (
                v if s == "course" else v / r
            ): "That is the course's alpha. Now write it the way of the target.",
            lambda v, r, s, t: (
                v if t == "course" else v * r
            ): "First make it the course's alpha, which depends on where the number comes from.",
            lambda v, r, s, t: v / r: "It depends on source and target whether to divide.",
            lambda v, r, s, t: v * r: "It depends on source and target whether to multiply.",
            lambda v, r, s, t: (
                v / r if t == "course" else v * r
            ): "Between peft and kohya the number stays as it is: both divide by the rank.",
            lambda v, r, s, t: (
                v * r if s == "course" else v / r
            ): "Between peft and kohya the number stays as it is: both divide by the rank.",
        },
        also=_convert_between_all,
    ),
    "lora_parameters": Exercise(
        lora_parameters,
        _shapes_inputs,
        {
            lambda shapes, r: sum(
                o * i for o, i in shapes
            ): "Those are the numbers of W, which is not trained.",
            lambda shapes, r: sum(
                r * o * i for o, i in shapes
            ): "A has in × r and B r × out numbers: the sides are added, not multiplied.",
            lambda shapes, r: sum(
                o + i for o, i in shapes
            ): "That is rank 1: each side counts r times.",
            lambda shapes, r: sum(r * o for o, i in shapes): "That is B alone: A counts too.",
            lambda shapes, r: sum(r * i for o, i in shapes): "That is A alone: B counts too.",
            lambda shapes, r: (
                r * len(shapes) * sum(shapes[0])
            ): "The layers differ in shape: take each with its own.",
        },
    ),
    "keep_rank": Exercise(
        keep_rank,
        _rank_inputs,
        {
            _nearest_but(
                lambda U, S, Vh, k: U[:, :k] @ Vh[:k]
            ): "The singular values are missing: each column of U times its own.",
            _nearest_but(
                lambda U, S, Vh, k: U[:, -k:] * S[-k:] @ Vh[-k:]
            ): "Those are the smallest: singular values come largest first.",
            _nearest_but(
                lambda U, S, Vh, k: U[:, :k] * S[:k] @ Vh.T[:k]
            ): "Vh is transposed already: take its first k rows as it is.",
            _nearest_but(
                lambda U, S, Vh, k: U[:, : k + 1] * S[: k + 1] @ Vh[: k + 1]
            ): "One too many: [:k] are k of them.",
            _nearest_but(
                lambda U, S, Vh, k: U[:, k:] * S[k:] @ Vh[k:]
            ): "That is what should be left out: take [:k].",
            lambda m, k: torch.cat(
                [m[:, :k], torch.zeros_like(m[:, k:])], dim=1
            ): "That keeps k columns. It has rank k, but it is not the nearest: use the SVD.",
        },
    ),
    "merge": Exercise(
        merge,
        _merge_inputs,
        {
            lambda w, A, B, a: (
                w + a * A @ B
            ): "A B is (in, out) and the weight (out, in): transpose. In a square layer nothing "
            "else tells you.",
            lambda w, A, B, a: (
                w.T + a * A @ B
            ): "Right, but as (in, out): torch wants it as (out, in) again.",
            lambda w, A, B, a: w + (A @ B).T: "Alpha is missing.",
            lambda w, A, B, a: (
                w + a / A.shape[1] * (A @ B).T
            ): "The course's formula has no division by the rank.",
            lambda w, A, B, a: w - a * (A @ B).T: "That takes the LoRA out again.",
            lambda w, A, B, a: a * (A @ B).T: "That is the update alone: add the weight.",
        },
    ),
    "add_two": Exercise(
        add_two,
        _two_inputs,
        {
            lambda W, A1, B1, a1, A2, B2, a2: (
                W + (a1 * A1 + a2 * A2) @ (B1 + B2)
            ): "Multiply first, then add: this has A1 B2 and A2 B1 in it, which belong to neither.",
            lambda W, A1, B1, a1, A2, B2, a2: (
                W + (a1 * A1 + a2 * A2) @ (a1 * B1 + a2 * B2)
            ): "Multiply first, then add: this has A1 B2 and A2 B1 in it, and alpha twice.",
            lambda W, A1, B1, a1, A2, B2, a2: (
                W + (a1**0.5 * A1 + a2**0.5 * A2) @ (a1**0.5 * B1 + a2**0.5 * B2)
            ): 'Multiply first, then add: this is peft\'s "linear", with A1 B2 and A2 B1 in it.',
            lambda W, A1, B1, a1, A2, B2, a2: (
                W + (A1 + A2) @ (B1 + B2)
            ): "Multiply first, then add, and each with its alpha.",
            lambda W, A1, B1, a1, A2, B2, a2: (
                2 * W + a1 * A1 @ B1 + a2 * A2 @ B2
            ): "W counts once, not once for each LoRA.",
            lambda W, A1, B1, a1, A2, B2, a2: (
                W + (a1 * A1 @ B1 + a2 * A2 @ B2) / 2
            ): "That is their mean. The sum has each at its own alpha.",
            lambda W, A1, B1, a1, A2, B2, a2: W + A1 @ B1 + A2 @ B2: "The alphas are missing.",
            lambda W, A1, B1, a1, A2, B2, a2: (
                a1 * A1 @ B1 + a2 * A2 @ B2
            ): "Those are the updates alone: add W.",
        },
    ),
    "gram": Exercise(
        gram,
        _features_inputs,
        {
            lambda f: f.flatten(2) @ f.flatten(2).mT: "It grows with the size of the picture: "
            "divide by the number of places, h × w.",
            lambda f: (
                f.flatten(2) @ f.flatten(2).mT / f[0].numel()
            ): "Divide by the places alone, h × w, not by the channels as well.",
            lambda f: (
                f.flatten(2) @ f.flatten(2).mT / f.shape[1]
            ): "That divides by the channels: divide by the places, h × w.",
            lambda f: (
                f.flatten(2) @ f.flatten(2).mT / f.numel()
            ): "Divide by the places of one picture, h × w, and by nothing else.",
            lambda f: (
                f.flatten(2).mT @ f.flatten(2) / f[0, 0].numel()
            ): "That compares places with places. For channels with channels, (N, C, C), the "
            "transposed one comes second.",
            lambda f: (
                torch.einsum("nchw,ndhw->cd", f, f) / (len(f) * f[0, 0].numel())
            ): "One matrix for each picture, not one for all of them.",
            lambda f: (
                f.reshape(len(f), -1, f.shape[1]).mT
                @ f.reshape(len(f), -1, f.shape[1])
                / f[0, 0].numel()
            ): "reshape cuts the numbers anew and does not move the channels to the end: "
            "flatten(2) keeps each channel together.",
            lambda f: (
                (f - f.mean((2, 3), keepdim=True)).flatten(2)
                @ (f - f.mean((2, 3), keepdim=True)).flatten(2).mT
                / f[0, 0].numel()
            ): "That is the covariance: leave the mean in.",
        },
    ),
    "trust": Exercise(
        trust,
        _trust_inputs,
        {
            lambda s, t: snr(s, t): "With little noise this goes far beyond 1: cut it off there.",
            lambda s, t: snr(s, t).clamp(min=1): "That is the larger of the two: clamp(max=1).",
            lambda s, t: (
                snr(s, t).clamp(max=1) / snr(s, t)
            ): "Upside down: the more noise, the less an estimate counts. (The weight of min-SNR, "
            "for the L2, looks like this.)",
            lambda s, t: s.alphas_cumprod[
                t
            ]: "That is the picture's share of everything: take the ratio to the noise, cut at 1.",
            lambda s, t: (
                snr(s, t).sqrt().clamp(max=1)
            ): "That is the ratio of the weights; take that of the variances, without the root.",
            lambda s, t: (
                snr(s, t) > 1
            ).float(): "That is a gate, open or shut: below an SNR of 1, let it fade.",
            lambda s, t: (
                snr(s, t).clamp(max=1).mean()
            ): "One number for each timestep, not their mean.",
        },
    ),
    "balanced": Exercise(
        balanced,
        _balanced_inputs,
        {
            lambda sizes, shares: (
                shares / sizes
            ): "The proportions are right. Divide all of them by the first, so that it is 1.",
            lambda sizes, shares: shares: "Those are the shares. A term of twice the size needs "
            "half the weight for the same share.",
            lambda sizes, shares: (
                shares / shares[0]
            ): "As if all terms were of one size: divide by the sizes too.",
            lambda sizes, shares: (
                sizes[0] / sizes
            ): "That gives every term the same share: multiply by the shares.",
            lambda sizes, shares: (
                sizes / shares / (sizes[0] / shares[0])
            ): "Upside down: a large term needs a small weight.",
            lambda sizes, shares: (
                sizes * shares / (sizes[0] * shares[0])
            ): "Multiplied by the sizes: a large term needs a small weight, so divide.",
            lambda sizes, shares: (
                shares / sizes / (shares / sizes).sum()
            ): "The weights need not add up to 1, the shares do: let the first weight be 1.",
        },
    ),
    "rate_at": Exercise(
        rate_at,
        _rate_inputs,
        {
            lambda i, n, top, w: (
                top * 0.5 * (1 + math.cos(math.pi * i / n))
            ): "The warm-up is missing.",
            lambda i, n, top, w: top * min(1, (i + 1) / w): "The cosine is missing.",
            lambda i, n, top, w: (
                top * min(1, i / w) * 0.5 * (1 + math.cos(math.pi * i / n))
            ): "Step 0 would not move at all: the warm-up counts step + 1.",
            lambda i, n, top, w: (
                top * (i + 1) / w * 0.5 * (1 + math.cos(math.pi * i / n))
            ): "After the warm-up its factor stays 1: take min(1, ...).",
            lambda i, n, top, w: (
                min(1, (i + 1) / w) * 0.5 * (1 + math.cos(math.pi * i / n))
            ): "Multiply by the highest rate.",
            lambda i, n, top, w: (
                top * min(1, (i + 1) / w) * (1 - i / n)
            ): "That falls along a straight line: use the cosine.",
            lambda i, n, top, w: (
                top * min(1, (i + 1) / w) * math.cos(math.pi * i / n)
            ): "The cosine goes from 1 to -1: add 1 and halve it.",
            lambda i, n, top, w: (
                top * min(1, (i + 1) / w) * (1 + math.cos(math.pi * i / n))
            ): "Twice too much: 1 + cos begins at 2.",
            lambda i, n, top, w: (
                top * min(1, (i + 1) / w) * 0.5 * (1 + math.cos(2 * math.pi * i / n))
            ): "A whole cosine comes up again: half of one ends at pi, not at 2 pi.",
            lambda i, n, top, w: (
                top * min(1, (i + 1) / w) * 0.5 * (1 + math.cos(i / n))
            ): "Half a cosine goes from 0 to pi: multiply step / steps by pi.",
            _one_after_warmup: "In use as well; but here the cosine starts at step 0, and the "
            "warm-up is a factor beside it.",
        },
    ),
    "places": Exercise(
        places,
        _places_inputs,
        {
            lambda i, n, count: places(
                i, n, count
            ).T.contiguous(): "Lying down: one row for each picture, so stack along dim=1.",
            lambda i, n, count: places(i, n, count).flip(
                1
            ): "Swapped: the epoch comes first, then the place.",
            lambda i, n, count: _places(
                i + torch.arange(n), count
            ): "Each step uses batch_size pictures, so a step begins at step × batch_size.",
            lambda i, n, count: torch.stack(
                [torch.full((n,), i * n // count), (i * n + torch.arange(n)) % count], dim=1
            ): "A batch may begin in one epoch and end in the next: find the epoch of each "
            "picture.",
            lambda i, n, count: places(i, n, count) + 1: "Count epochs and places from 0.",
            lambda i, n, count: _places(
                i * n + torch.arange(n) + 1, count
            ): "One too far: the first picture of step 0 is at position 0.",
            lambda i, n, count: torch.stack(
                [
                    torch.full((n,), i // (count // n)),
                    i % (count // n) * n + torch.arange(n),
                ],
                dim=1,
            ): "That leaves out the last pictures of an epoch where they fill no whole batch. Here "
            "the next epoch follows without a gap.",
            lambda i, n, count: torch.stack(
                [torch.full((n,), i), torch.arange(n)], dim=1
            ): "That is the step and the place in the batch: work from the position step × "
            "batch_size + place in the batch.",
        },
    ),
    "accumulated": Exercise(
        accumulated,
        _accumulated_inputs,
        {
            lambda losses, sizes: losses: "Gradients of several backward() add up: this gives the "
            "sum of the means, too large by the number of parts.",
            lambda losses, sizes: (
                losses / len(losses)
            ): "Right for parts of one size. Here a picture in a small part would count more than "
            "one in a large part.",
            lambda losses, sizes: (
                losses * sizes
            ): "That is the sum over pictures; for the mean, divide by how many there are in all.",
            lambda losses, sizes: (
                losses / sizes
            ): "Each loss is the mean of its part already: do not divide it by its size again.",
            lambda losses, sizes: (
                losses / sizes.sum()
            ): "Each loss is the mean of its part: multiply by the pictures in it first.",
            lambda losses, sizes: (
                losses * sizes / len(losses)
            ): "Divide by the number of pictures in all parts, not by the number of parts.",
            lambda losses, sizes: (
                losses * sizes / sizes.max()
            ): "Divide by the sum of the sizes, not by the largest.",
            lambda losses, sizes: (
                (losses * sizes).sum() / sizes.sum()
            ): "That is the loss of the whole batch. Give what each part contributes to it, so "
            "that one part can be backpropagated and dropped before the next.",
        },
    ),
    "correlation": Exercise(
        correlation,
        _maps_inputs,
        {
            lambda a, b: (
                (a * b).sum() / (a.norm() * b.norm())
            ): "First take the mean off each map: two maps that are only both positive are not "
            "alike.",
            lambda a, b: (
                (a - a.mean()) * (b - b.mean())
            ).mean(): "That is the covariance, which grows with contrast: divide by both lengths.",
            lambda a, b: (
                (a - a.mean()) * (b - b.mean())
            ).sum(): "It grows with the picture and its contrast: divide by both lengths.",
            lambda a, b: (
                ((a - a.mean()) * (b - b.mean())).sum() / (a.norm() * b.norm())
            ): "The lengths, too, are those of the maps with their means taken off.",
            lambda a, b: correlation(a, b) ** 2: "Squared, it no longer tells alike from opposite: "
            "leave the square out.",
            lambda a, b: (
                ((a - a.mean()) * (b - b.mean())).mean() / (a.var() * b.var())
            ): "Divide by the two spreads, not by the variances, which are their squares.",
            lambda a, b: (
                ((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std())
            ): "Nearly: .mean() divides by N and .std() by N - 1. Take sums and lengths (.norm()).",
        },
    ),
    "standard_error": Exercise(
        standard_error,
        _values_inputs,
        {
            lambda v: v.std(): "That is how far single scenes scatter. Their mean moves less: "
            "divide by the root of N.",
            lambda v: v.std() / len(v): "Divide by the root of N, not by N.",
            lambda v: v.var() / len(v): "That is its square: take the root.",
            lambda v: v.var() / len(v) ** 0.5: "Take the standard deviation, not the variance.",
            lambda v: (
                v.std(unbiased=False) / len(v) ** 0.5
            ): "The spread is taken around the mean of these same values, which makes it too "
            "small: divide the squares by N - 1, as .std() does by itself.",
            lambda v: v.std() / (len(v) - 1) ** 0.5: "N - 1 is in .std() already: here divide by "
            "the root of N.",
            lambda v: v.mean() / len(v) ** 0.5: "The spread is what counts, not the mean.",
        },
    ),
    "paired_interval": Exercise(
        paired_interval,
        _paired_inputs,
        {
            lambda a, b, k: _around(
                (a - b).mean(), k * (a.var() / len(a) + b.var() / len(b)) ** 0.5
            ): "That is right for two sets of different scenes. Here the scenes are the same: take "
            "the difference of each first, then the error of those.",
            lambda a, b, k: paired_interval(b, a, k): "Turned round: asked for is a - b.",
            lambda a, b, k: _around(
                (a - b).mean(), k * (a - b).std()
            ): "That is where single scenes lie. The mean is known better: divide by the root of "
            "N.",
            lambda a, b, k: paired_interval(
                a, b, 1.0
            ): "That is one standard error to each side: multiply it by reach.",
            lambda a, b, k: _around(
                (a - b).mean(), k * (standard_error(a) + standard_error(b))
            ): "Errors of two means do not add up like this. Take the differences first, then "
            "their standard error.",
            lambda a, b, k: _around(
                (a - b).mean(), k * (standard_error(a) - standard_error(b))
            ): "The difference of two errors is not the error of the difference: take a - b first.",
            lambda a, b, k: paired_interval(a, b, k).flip(0): "The lower end comes first.",
            lambda a, b, k: _around((a - b).mean(), k): "reach counts standard errors: multiply by "
            "that of the differences.",
        },
    ),
    "unbeaten": Exercise(
        unbeaten,
        _points_inputs,
        {
            lambda p: (
                ~(p[None] < p[:, None]).all(2).any(1)
            ): "A point that is equal in one thing and better in the other beats as well: nowhere "
            "worse, and better somewhere.",
            lambda p: (
                ~(p[None] <= p[:, None]).all(2).any(1)
            ): "Every point is nowhere worse than itself, so all of them are out: ask for "
            "somewhere better, too.",
            lambda p: (
                ~((p[None] <= p[:, None]).all(2) & ~torch.eye(len(p), dtype=torch.bool)).any(1)
            ): "Two equal points do not beat each other: ask for somewhere better.",
            lambda p: (
                ~(p[None] < p[:, None]).any(2).any(1)
            ): "Better somewhere is not enough: it must be nowhere worse as well.",
            lambda p: ~unbeaten(p): "Turned round: True for those that nobody beats.",
            lambda p: unbeaten(-p): "Smaller is better here.",
            lambda p: p.sum(1) == p.sum(1).min(): "A sum says what a step in one is worth in the "
            "other. Here nobody has said so: compare in each by itself.",
            lambda p: (p == p.min(0).values).any(
                1
            ): "Those are the best in one thing; points that are good in both, and best in none, "
            "count too.",
        },
    ),
    "at_content": Exercise(
        at_content,
        _between_inputs,
        {
            lambda ka, kb, a, b, c: at_content(
                kb, ka, a, b, c
            ): "Swapped: where all of kept_a is kept, it should be score_a.",
            lambda ka, kb, a, b, c: (a + b) / 2: "That is half way: how far along is content?",
            lambda ka, kb, a, b, c: (
                (1 - c) * a + c * b
            ): "content is not the share: find how far it lies on the way from kept_a to kept_b.",
            lambda ka, kb, a, b, c: (
                c * a + (1 - c) * b
            ): "content is not the share: find how far it lies on the way from kept_a to kept_b.",
            lambda ka, kb, a, b, c: (
                a + (c - ka) * (b - a)
            ): "Nearly: divide the way that is gone by the whole way, kept_b - kept_a.",
            lambda ka, kb, a, b, c: at_content(
                ka, kb, a.mean(), b.mean(), c
            ): "One number for each scene: do not take the mean yet, pairs will need them.",
            lambda ka, kb, a, b, c: a: "That is the nearer of the two settings: go the rest of the "
            "way along the line.",
            lambda ka, kb, a, b, c: (
                a + abs((c - ka) / (kb - ka)) * (a - b)
            ): "It goes away from score_b: turn the difference round.",
        },
    ),
    "to_ship": Exercise(
        to_ship,
        _settings_inputs,
        {
            lambda k, d, m: int(d.argmin()): "That one does not keep enough: leave out those below "
            "the limit first.",
            lambda k, d, m: int(k.argmax()): "That one keeps most. Of all that keep enough, take "
            "the one nearest to the truth.",
            lambda k, d, m: (
                int(d[k >= m].argmin()) if (k >= m).any() else int(k.argmax())
            ): "That is its place among those that keep enough: return its place among all.",
            lambda k, d, m: int(
                d.masked_fill(k < m, math.inf).argmin()
            ): "Right while one of them keeps enough. If none does, all are infinite, and "
            "argmin gives the first: take the one that keeps most then.",
            lambda k, d, m: int((k - m).abs().argmin()): "That is the one nearest to the limit; "
            "asked for is the one nearest to the truth that is not below it.",
            lambda k, d, m: (
                int(d.masked_fill(k > m, math.inf).argmin()) if (k > m).any() else int(k.argmax())
            ): "Turned round: those that keep too little are left out, not those that keep enough.",
            lambda k, d, m: (
                int(d.masked_fill(k < m, -math.inf).argmax()) if (k >= m).any() else int(k.argmax())
            ): "Distance: less is better.",
        },
        also=_asks_too_much,
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
