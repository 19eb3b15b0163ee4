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
from numbers import Real
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
    given = [_copies(trial) for trial in trials]
    try:
        results = [answer(*arguments) for arguments in given]
    except NotImplementedError:
        results = [...]
    except Exception as error:  # whatever the learner's code may raise
        return _refuse(name, f"it stops with {type(error).__name__}: {error}", exercise)
    if results[0] is ...:
        print(f"{name}: not solved yet, going on with the reference.")
        return exercise.reference
    expected = [exercise.reference(*_copies(trial)) for trial in trials]
    if _same(results, expected):
        if not all(map(_untouched, trials, given)):  # the notebooks hand in weights of the base
            return _refuse(
                name,
                "the result is right, but the tensors that were handed in have changed: make a new "
                "one instead of writing on them (no +=, no method that ends in _).",
                exercise,
            )
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


def _untouched(trial: tuple, given: list) -> bool:
    return all(
        torch.equal(before, after)
        for before, after in zip(trial, given, strict=True)
        if isinstance(before, torch.Tensor)
    )


def _shape(value) -> tuple | str:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    return () if isinstance(value, Real) else type(value).__name__


def _largest_difference(result, right) -> str:
    if isinstance(right, str):
        return f"for one input it gives {result!r}, expected {right!r}."
    a, b = (torch.as_tensor(value, dtype=torch.float64).flatten() for value in (result, right))
    where = (a - b).abs().argmax()
    return f"for one input it gives {a[where].item():.4g}, expected {b[where].item():.4g}."


def _same(results: list, expected: list) -> bool:
    for result, right in zip(results, expected, strict=True):
        if isinstance(right, str) and result == right:
            continue
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
        (8 * _alpha(generator), 4, source, target) for source in programs for target in programs
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


def _places_over_one_end(step, batch_size, count) -> torch.Tensor:
    epoch, place = step * batch_size // count, step * batch_size % count + torch.arange(batch_size)
    over = place >= count
    return torch.stack([epoch + over.long(), place - count * over], dim=1)


def accumulated(means: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """What to backpropagate for each part (N,) of a batch, from the mean loss of each part and the
    number of pictures in it, so that together they are the mean loss of the whole batch."""
    return means * sizes / sizes.sum()


def _accumulated_inputs(generator):
    (count,) = _sizes(generator, 3, 7, 1)
    sizes = torch.randperm(8, generator=generator)[:count] + 2  # no two are equal
    return torch.rand(count, generator=generator) + 0.5, sizes


# --- 05 DreamBooth and LoRA


def preserved_loss(prediction, noise, weight: float) -> torch.Tensor:
    """L2 of the noise of a batch (2n,4,h,w): of its first half, the instance pictures, plus
    ``weight`` times that of its second, the prior set."""
    error = (prediction - noise) ** 2
    half = len(error) // 2
    return error[:half].mean() + weight * error[half:].mean()


def _halves_inputs(generator):
    half, height = _sizes(generator, 2, 6, 1)[0], _sizes(generator, 3, 9, 1)[0]
    prediction, noise = torch.randn(2, 2 * half, 4, height, height, generator=generator)
    far = torch.rand(2 * half, 1, 1, 1, generator=generator) + 0.2
    return noise + far * (prediction - noise), noise, _alpha(generator)


def min_snr_halves(errors, ratio, gamma: float, weight: float) -> torch.Tensor:
    """The same with min-SNR weighting: errors (2n,) of the pictures and their SNRs (2n,)."""
    weighted = errors * ratio.clamp(max=gamma) / ratio
    half = len(errors) // 2
    return weighted[:half].mean() + weight * weighted[half:].mean()


def _min_snr_inputs(generator):
    half = _sizes(generator, 3, 7, 1)[0]
    gamma = 3 + 3 * float(torch.rand(1, generator=generator))
    low = gamma * (0.1 + 0.7 * torch.rand(2, half, generator=generator))  # these keep their weight
    ratio = torch.where(torch.arange(half) % 2 == 0, low, 10 * low + 2 * gamma)
    return (
        torch.rand(2 * half, generator=generator) + 0.2,
        ratio.flatten(),
        gamma,
        _alpha(generator),
    )


def _min_snr(weights: Callable) -> Callable:
    """``min_snr_halves`` with the weights (2n,) that ``weights`` makes of SNRs and gamma."""

    def wrong(errors, ratio, gamma, weight):
        weighted, half = errors * weights(ratio, gamma), len(errors) // 2
        return weighted[:half].mean() + weight * weighted[half:].mean()

    return wrong


def times_seen(steps: int, accumulate: int, batch_size: int, count: int) -> float:
    """How often each of ``count`` prior pictures is seen when ``batch_size`` of them are in every
    batch, and ``accumulate`` batches in every step."""
    return steps * accumulate * batch_size / count


def _seen_inputs(generator):
    steps, accumulate = _sizes(generator, 101, 400, 1)[0], _sizes(generator, 2, 5, 1)[0]
    return steps, accumulate, _sizes(generator, 2, 6, 1)[0], _sizes(generator, 17, 90, 1)[0]


def drift_of(before, after, noise) -> torch.Tensor:
    """How far a model has moved on N pictures, (N,), from what it predicted before and after a
    training and the noise that was added, (N,T,4,h,w): mean squared change over mean squared error
    before."""
    change, error = (
        (one - two).pow(2).flatten(1).mean(1) for one, two in ((after, before), (before, noise))
    )
    return change / error


def _drift_inputs(generator):
    count, timesteps, side = _sizes(generator, 2, 6, 3)
    noise, one, two = torch.randn(3, count, timesteps, 4, side, side, generator=generator)
    before = noise + one * (0.2 + torch.rand(1, timesteps, 1, 1, 1, generator=generator))
    return before, before + 0.5 * two, noise


def _drift(function: Callable) -> Callable:
    """A wrong drift, (N,), from the means over all but the first dimension."""

    def square(one, two):
        return (one - two).pow(2).flatten(1).mean(1)

    return lambda b, a, n: function(square(a, b), square(b, n), square(a, n))


def training_bytes(trained: int, frozen: int, frozen_bytes: int, state_bytes: int) -> int:
    """Bytes that training holds besides activations: 4 for each trained weight, 4 for its gradient,
    ``state_bytes`` for the optimiser, and ``frozen_bytes`` for each frozen weight."""
    return trained * (4 + 4 + state_bytes) + frozen * frozen_bytes


def _bytes_inputs(generator):
    trained, frozen = _sizes(generator, 100, 1000, 2)
    first, second = torch.rand(2, generator=generator).round().int().tolist()
    return trained, frozen, (2, 4)[first], (2, 8)[second]


def _bytes_of_both(generator):
    return [(*_sizes(generator, 100, 1000, 2), frozen, 8) for frozen in (2, 4)]


# --- 06 using it


def unet_predictions(steps: int, strength: float, inverted: bool, guided: bool) -> int:
    """How many predictions of the noise one picture costs: on the way down two for each step with
    guidance and one without, and one for each on the way up, if that is by inversion."""
    run = steps_run(steps, strength)
    return run * (2 if guided else 1) + (run if inverted else 0)


def _predictions_inputs(generator):
    steps, strength = _steps_inputs(generator)
    inverted, guided = (bool(n) for n in _sizes(generator, 0, 2, 2))
    return steps, strength, inverted, guided


def _predictions_of_all_kinds(generator):
    kinds = [(inverted, guided) for inverted in (False, True) for guided in (False, True)]
    return [(*_steps_inputs(generator), *kind) for kind in kinds] + [(20, 0.01, True, False)]


def layer_scale(layer: str, groups: dict, scales: dict) -> float:
    """What a layer's LoRA is multiplied by: the product of the ``scales`` of all groups that it is
    in. ``groups`` has for each group the part of a layer's name that stands for it."""
    parts = layer.split(".")
    return math.prod(scale for group, scale in scales.items() if groups[group] in parts)


def _layer_inputs(generator, scaled=4):
    groups = {"self": "attn1", "cross": "attn2", "down": "down", "mid": "mid", "up": "up"}
    attention, where = _sizes(generator, 1, 3, 1)[0], _sizes(generator, 0, 3, 1)[0]
    block, projection = ("down.0", "mid", "up.1")[where], ("to_q", "to_k")[attention - 1]
    layer = f"{block}.upper.attentions.0.attn{attention}.{projection}"  # no "up", for all that
    chosen = [list(groups)[i] for i in torch.randperm(5, generator=generator)[:scaled].tolist()]
    return layer, groups, {group: 0.3 + 0.9 * _alpha(generator) for group in chosen}


def _layers_in_two_groups_and_in_none(generator):
    return [_layer_inputs(generator, scaled) for scaled in (5, 5, 5, 0)]


def _layer_scale_by(combine: Callable, inside: Callable = None) -> Callable:
    """``layer_scale`` with the scales of the groups that a layer is in put together otherwise."""
    inside = inside or (lambda part, layer: part in layer.split("."))
    return lambda layer, groups, scales: combine(
        [s for group, s in scales.items() if inside(groups[group], layer)]
    )


def mix_weights(loudness: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Weights (N,) at which styles of this loudness have these shares, which add up to 1, of their
    mean loudness: weight times loudness is share times mean."""
    return shares * loudness.mean() / loudness


def _loudness_inputs(generator):
    (count,) = _sizes(generator, 2, 5, 1)
    shares = torch.rand(count, generator=generator) + 0.3
    return torch.rand(count, generator=generator) * 3 + 0.3, shares / shares.sum()


def in_colours_of(photo: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """Both CIE Lab, (H,W,3): the lightness of the picture and the two colours of the photo."""
    return torch.cat([picture[..., :1], photo[..., 1:]], dim=-1)


def _lab_inputs(generator):
    (size,) = _sizes(generator, 4, 9, 1)
    a, b = torch.rand(2, size, size, 3, generator=generator) * 2 - 1
    return 100 * a.abs(), 100 * b.abs()


def batch_sizes(count: int, limit: float, fixed: float, each: float) -> torch.Tensor:
    """The sizes of the batches in which ``count`` pictures are drawn: as many at once as fit, where
    n of them need ``fixed + n * each`` of at most ``limit``, and the last what is left."""
    most = int((limit - fixed) / each)
    return torch.tensor([min(most, count - first) for first in range(0, count, most)])


def _batches_inputs(generator):
    most, whole, fixed = (
        _sizes(generator, low, high, 1)[0] for low, high in ((4, 9), (2, 5), (2, 6))
    )
    rest = _sizes(generator, 1, most, 1)[0]
    each = 0.5 + _alpha(generator)
    return whole * most + rest, fixed + (most + 0.6) * each, float(fixed), each


def _batches_without_a_rest(generator):
    count, limit, fixed, each = _batches_inputs(generator)
    return [(count // 2 * 2, fixed + 2.5 * each, fixed, each), (7, 5.0, 2.0, 1.0)]


def _batches_of(most: Callable) -> Callable:
    """``batch_sizes`` with as many at once as ``most(limit, fixed, each)`` says."""

    def sizes(count, limit, fixed, each):
        n = max(1, int(most(limit, fixed, each)))
        return torch.tensor([min(n, count - first) for first in range(0, count, n)])

    return sizes


def kohya_key(key: str) -> str:
    """The name that kohya's scripts give to a matrix of a LoRA which diffusers calls ``key``."""
    layer, _, part = key.removeprefix("unet.").rpartition(".lora_")
    half = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}[part]
    return f"lora_unet_{layer.replace('.', '_')}.{half}"


def _key_inputs(generator):
    side, block, at, which, half = _sizes(generator, 0, 2, 5)
    where = (f"down_blocks.{block}", f"up_blocks.{block + 1}")[side]
    layer = f"{where}.attentions.{at}.transformer_blocks.0.attn{which + 1}.to_out.0"
    return (f"unet.{layer}.lora_{'AB'[half]}.weight",)


def _both_halves(generator):
    (key,) = _key_inputs(generator)
    return [
        (key.replace("lora_A", f"lora_{half}").replace("lora_B", f"lora_{half}"),) for half in "AB"
    ]


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


def _opposite_maps(generator):
    a, b = _maps_inputs(generator)
    return [(a, 3 - b)]


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
    nearest = distance.argmin()  # of all of them, at first
    return [(kept, distance, 0.95), (kept, distance, float(kept[nearest]))]


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
            lambda n, s: n - max(1, int(n * s)): "Close: the steps that run are rounded down; take "
            "the nearest number, as round() does.",
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
            lambda v, r, s, t: (
                v * r if s == "course" else v / r if t == "course" else v
            ): "From the course to the course the number stays as it is, too.",
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
                    torch.full((n,), i // max(1, count // n)),
                    i % max(1, count // n) * n + torch.arange(n),
                ],
                dim=1,
            ): "That leaves out the last pictures of an epoch where they fill no whole batch. Here "
            "the next epoch follows without a gap.",
            lambda i, n, count: torch.stack(
                [torch.full((n,), i), torch.arange(n)], dim=1
            ): "That is the step and the place in the batch: work from the position step × "
            "batch_size + place in the batch.",
            _places_over_one_end: "A batch may be longer than an epoch, and go over several ends.",
        },
        also=lambda generator: [(2, 40, 7)],  # a batch that is longer than an epoch
    ),
    "accumulated": Exercise(
        accumulated,
        _accumulated_inputs,
        {
            lambda means, sizes: means: "Gradients of several backward() add up: this gives the "
            "sum of the means, too large by the number of parts.",
            lambda means, sizes: (
                means / len(means)
            ): "Right for parts of one size. Here a picture in a small part would count more than "
            "one in a large part.",
            lambda means, sizes: (
                means * sizes
            ): "That is the sum over pictures; for the mean, divide by how many there are in all.",
            lambda means, sizes: (
                means / sizes
            ): "Each loss is the mean of its part already: do not divide it by its size again.",
            lambda means, sizes: (
                means / sizes.sum()
            ): "Each loss is the mean of its part: multiply by the pictures in it first.",
            lambda means, sizes: (
                means * sizes / len(means)
            ): "Divide by the number of pictures in all parts, not by the number of parts.",
            lambda means, sizes: (
                means * sizes / sizes.max()
            ): "Divide by the sum of the sizes, not by the largest.",
            lambda means, sizes: (
                (means * sizes).sum() / sizes.sum()
            ): "That is the loss of the whole batch. Give what each part contributes to it, so "
            "that one part can be backpropagated and dropped before the next.",
        },
    ),
    "preserved_loss": Exercise(
        preserved_loss,
        _halves_inputs,
        {
            lambda p, n, w: (
                (p - n) ** 2
            ).mean(): "That is one mean over the whole batch: each half has a mean of its "
            "own, and the second one is weighted.",
            lambda p, n, w: preserved_loss(
                p, n, 1.0
            ): "The weight is missing: it multiplies the mean of the second half.",
            lambda p, n, w: preserved_loss(
                p.roll(len(p) // 2, 0), n.roll(len(n) // 2, 0), w
            ): "Swapped: the instance pictures come first, and the weight belongs to the second "
            "half.",
            lambda p, n, w: (
                w * preserved_loss(p, n, 1.0)
            ): "The weight belongs to the prior half alone, not to both.",
            lambda p, n, w: (
                preserved_loss(p, n, w) / 2
            ): "Add the two means, and do not halve the sum: without a prior set the loss should "
            "be the L2 as it was.",
            lambda p, n, w: (
                ((p - n) ** 2)[::2].mean() + w * ((p - n) ** 2)[1::2].mean()
            ): "That takes every other picture. The halves lie one behind the other: [:n] and "
            "[n:].",
            lambda p, n, w: (
                ((p - n) ** 2)[:, :2].mean() + w * ((p - n) ** 2)[:, 2:].mean()
            ): "That halves the channels: the batch is the first dimension.",
            lambda p, n, w: (
                (p - n).abs()[: len(p) // 2].mean() + w * (p - n).abs()[len(p) // 2 :].mean()
            ): "L2 is the squared error: square the difference.",
            lambda p, n, w: (
                preserved_loss(p, n, w) * (p.numel() // 2)
            ): "Those are sums: take the mean of each half.",
            lambda p, n, w: (
                ((p - n) ** 2)[: len(p) // 2].mean() + (w * (p - n)[len(p) // 2 :]).pow(2).mean()
            ): "The weight has been squared: multiply after squaring.",
        },
    ),
    "min_snr_halves": Exercise(
        min_snr_halves,
        _min_snr_inputs,
        {
            _min_snr(
                lambda r, g: torch.ones_like(r)
            ): "That is without min-SNR: multiply each error by min(SNR, gamma) / SNR first.",
            _min_snr(
                lambda r, g: (r.clamp(max=g) / r)[: len(r) // 2].repeat(2)
            ): "The second half has got the weights of the first. Every picture has a timestep of "
            "its own, so weigh before the batch is taken apart.",
            _min_snr(
                lambda r, g: (r.clamp(max=g) / r)[len(r) // 2 :].repeat(2)
            ): "The first half has got the weights of the second. Every picture has a timestep of "
            "its own, so weigh before the batch is taken apart.",
            _min_snr(
                lambda r, g: (r.clamp(max=g) / r).roll(len(r) // 2)
            ): "Each half has got the weights of the other one.",
            _min_snr(
                lambda r, g: r.clamp(max=g)
            ): "The division by the SNR is missing: that weight is for an error of the picture, "
            "and this is one of the noise.",
            _min_snr(
                lambda r, g: r.clamp(min=g) / r
            ): "That is the larger of the two: min(SNR, gamma) is clamp(max=gamma).",
            _min_snr(lambda r, g: r.clamp(max=1) / r): "The limit is gamma, not 1.",
            _min_snr(
                lambda r, g: r / r.clamp(max=g)
            ): "Upside down: the SNR stands below, min(SNR, gamma) above.",
            lambda e, r, g, w: min_snr_halves(
                e, r, g, 1.0
            ): "The weight of the prior is missing: it multiplies the mean of the second half.",
            lambda e, r, g, w: (
                (e * r.clamp(max=g) / r)[: len(e) // 2].mean() + w * e[len(e) // 2 :].mean()
            ): "The prior half is weighted by min-SNR as well.",
            lambda e, r, g, w: (
                e[: len(e) // 2].mean() + w * (e * r.clamp(max=g) / r)[len(e) // 2 :].mean()
            ): "The instance half is weighted by min-SNR as well.",
            lambda e, r, g, w: (e * r.clamp(max=g) / r).mean(): "That is one mean over the whole "
            "batch: each half has a mean of its own, and the second one is weighted.",
        },
    ),
    "times_seen": Exercise(
        times_seen,
        _seen_inputs,
        {
            lambda s, a, b, n: s * b / n: "A step takes several batches: multiply by accumulate.",
            lambda s, a, b, n: (
                2 * s * a * b / n
            ): "batch_size counts one half of the batch already: do not double it.",
            lambda s, a, b, n: s * a / n: "Every batch holds batch_size of them: multiply by it.",
            lambda s, a, b, n: s * a * b: "Those are all showings: divide by the pictures.",
            lambda s, a, b, n: n / (s * a * b): "Upside down: divide the showings by the pictures.",
            lambda s, a, b, n: s * a * b // n: "Right idea, but an epoch may end early: divide by "
            "/, which does not round.",
            lambda s, a, b, n: s * b / (a * n): "More batches in a step show more pictures: "
            "multiply by accumulate.",
            lambda s, a, b, n: s * a / b / n: "More pictures in a batch show more of them: "
            "multiply by batch_size.",
        },
    ),
    "drift_of": Exercise(
        drift_of,
        _drift_inputs,
        {
            _drift(lambda change, was, now: change): "That is how far it has moved. Divide by how "
            "wrong it was before, or nobody can say whether that is much.",
            _drift(
                lambda change, was, now: now / was
            ): "That compares the errors. A model may have moved far and be as wrong as before: "
            "take the change from before to after.",
            _drift(
                lambda change, was, now: (now - was) / was
            ): "That is how much worse it has become. A model may have moved far and be as wrong "
            "as before: take the change from before to after.",
            _drift(
                lambda change, was, now: change / now
            ): "Divide by the error *before* the training, which is the same for all methods.",
            _drift(lambda change, was, now: was / change): "Upside down: the change comes first.",
            _drift(
                lambda change, was, now: (change / was) ** 0.5
            ): "No root: squares over squares, as a loss is.",
            lambda b, a, n: (
                ((a - b) ** 2).mean() / ((b - n) ** 2).mean()
            ): "One number for each picture: take the means over all dimensions but the first.",
            lambda b, a, n: (
                (a - b).pow(2).flatten(1).mean(1) / n.pow(2).flatten(1).mean(1)
            ): "Divide by the mean squared *error* of the first prediction, before - noise.",
            lambda b, a, n: (
                (a - b).pow(2).flatten(2).mean(2) / (b - n).pow(2).flatten(2).mean(2)
            ).mean(1): "Average over the timesteps first, then divide: else a timestep with hardly "
            "an error would decide.",
            lambda b, a, n: (
                (a - b).abs().flatten(1).mean(1) / (b - n).abs().flatten(1).mean(1)
            ): "Mean *squares*: square the differences.",
        },
    ),
    "training_bytes": Exercise(
        training_bytes,
        _bytes_inputs,
        {
            lambda t, f, b, s: (
                t * (4 + s) + f * b
            ): "Only one of weights and gradients is there: each trained number needs 4 bytes for "
            "itself and 4 for its gradient.",
            lambda t, f, b, s: t * 8 + f * b: "The optimiser's memory is missing.",
            lambda t, f, b, s: t * (8 + s): "Frozen weights have to lie in memory as well.",
            lambda t, f, b, s: (
                t * (8 + s) + f * (b + 4)
            ): "Frozen weights get no gradient that is kept.",
            lambda t, f, b, s: (t + f) * (8 + s): "Only what is trained needs gradients and the "
            "optimiser's memory.",
            lambda t, f, b, s: (
                t * (8 + s) + f * (b + s)
            ): "The optimiser knows nothing of frozen weights.",
            lambda t, f, b, s: t * (8 + 2 * s) + f * b: "state_bytes holds both of AdamW's "
            "averages already: do not double it.",
            lambda t, f, b, s: t * (8 + 4 * s) + f * b: "state_bytes is in bytes already.",
            lambda t, f, b, s: t * (b + 4 + s) + f * b: "Trained weights are float32 whatever the "
            "frozen ones are: 4 bytes each.",
            lambda t, f, b, s: (
                t * (8 + s) + (f - t) * b
            ): "frozen counts the frozen ones alone: nothing is to be taken off.",
        },
    ),
    "unet_predictions": Exercise(
        unet_predictions,
        _predictions_inputs,
        {
            lambda n, s, i, g: (
                steps_run(n, s) * (2 if i else 1)
            ): "Guidance is missing: with it, each step down needs two predictions.",
            lambda n, s, i, g: (
                steps_run(n, s) * (2 if g else 1)
            ): "The way up is missing: by inversion it costs as many steps as the way down.",
            lambda n, s, i, g: (
                steps_run(n, s) * (2 if i else 1) * (2 if g else 1)
            ): "The way up is never guided: only the predictions on the way down are doubled.",
            lambda n, s, i, g: (
                n * (2 if g else 1) + (n if i else 0)
            ): "That is for strength 1: below it, fewer steps are run.",
            lambda n, s, i, g: (
                steps_run(n, s) * (1 if g else 2) + (steps_run(n, s) if i else 0)
            ): "The wrong way round: guidance is what costs two.",
            lambda n, s, i, g: (
                int(n * s) * (2 if g else 1) + (int(n * s) if i else 0)
            ): "Close: int() always rounds down; take the nearest whole number of steps.",
            lambda n, s, i, g: (
                round(n * s) * (2 if g else 1) + (round(n * s) if i else 0)
            ): "Nearly: at a very low strength, one step is run at least.",
            lambda n, s, i, g: steps_run(n, s): "Those are the steps: some need two predictions.",
        },
        also=_predictions_of_all_kinds,
    ),
    "layer_scale": Exercise(
        layer_scale,
        _layer_inputs,
        {
            _layer_scale_by(sum): "A layer in two groups is multiplied by both: not their sum.",
            _layer_scale_by(
                lambda found: sum(found) if found else 1.0
            ): "A layer in two groups is multiplied by both: not their sum.",
            _layer_scale_by(
                lambda found: sum(found) / len(found) if found else 1.0
            ): "That is the mean: multiply by both.",
            _layer_scale_by(
                lambda found: found[0] if found else 1.0
            ): "A layer may be in two groups, such as self and up: do not stop at the first.",
            _layer_scale_by(
                lambda found: found[-1] if found else 1.0
            ): "A layer may be in two groups: the last must not replace the first.",
            _layer_scale_by(
                lambda found: math.prod(found) if found else 0.0
            ): "A layer in no group keeps all of its LoRA, so the factor is 1, not 0.",
            _layer_scale_by(
                math.prod, lambda part, layer: part in layer
            ): "'up' in 'upper' is true as well: split the name at its dots and compare the parts.",
            lambda layer, groups, scales: math.prod(
                scales.values()
            ): "That takes the scales of all groups: only those count that the layer is in.",
        },
        also=_layers_in_two_groups_and_in_none,
    ),
    "mix_weights": Exercise(
        mix_weights,
        _loudness_inputs,
        {
            lambda loudness, shares: shares: "At these weights the loud style still has more than "
            "its share: the louder it is, the less weight it needs.",
            lambda loudness, shares: (
                shares / loudness
            ): "The proportions are right. Together they should be as loud as the styles are on "
            "average: multiply by the mean loudness.",
            lambda loudness, shares: (
                shares * loudness / loudness.mean()
            ): "Upside down: a loud style needs a small weight.",
            lambda loudness, shares: (
                shares / loudness / (shares / loudness).sum()
            ): "The shares add up to 1, the weights need not: multiply by the mean loudness.",
            lambda loudness, shares: (
                shares * loudness.max() / loudness
            ): "That makes the mix as loud as the loudest: take the mean.",
            lambda loudness, shares: (
                shares * loudness.sum() / loudness
            ): "That makes the mix as loud as all of them together: take the mean.",
            lambda loudness, shares: (
                loudness.mean() / loudness
            ): "Now all are equally loud: multiply by the shares.",
            lambda loudness, shares: (
                shares * loudness[0] / loudness
            ): "As loud as the first? Take the mean of all.",
        },
    ),
    "in_colours_of": Exercise(
        in_colours_of,
        _lab_inputs,
        {
            lambda photo, picture: torch.cat(
                [photo[..., :1], picture[..., 1:]], dim=-1
            ): "The wrong way round: that is the photo in the colours of the style.",
            lambda photo, picture: torch.cat(
                [picture[:1], photo[1:]], dim=0
            ): "That swaps rows of the picture: L, a and b lie in the last dimension, [..., 0].",
            lambda photo, picture: torch.cat(
                [picture[..., :2], photo[..., 2:]], dim=-1
            ): "a is a colour too: take one number from the picture and two from the photo.",
            lambda photo, picture: torch.cat(
                [photo[..., :2], picture[..., 2:]], dim=-1
            ): "L comes first: [..., :1] from the picture, [..., 1:] from the photo.",
            lambda photo, picture: (
                (photo + picture) / 2
            ): "That blends all three: lightness from one, colours from the other.",
            lambda photo, picture: torch.cat(
                [picture[..., :1], photo[..., 1:].mean((0, 1)).expand_as(photo[..., 1:])], dim=-1
            ): "That is one colour for the whole picture: take the photo's at every place.",
        },
    ),
    "batch_sizes": Exercise(
        batch_sizes,
        _batches_inputs,
        {
            _batches_of(
                lambda limit, fixed, each: limit / each
            ): "The base itself is in memory too: take `fixed` off the limit first.",
            _batches_of(
                lambda limit, fixed, each: math.ceil((limit - fixed) / each)
            ): "One too many: a part of a picture that fits is no picture. Round down.",
            _batches_of(
                lambda limit, fixed, each: round((limit - fixed) / each)
            ): "Rounded up, the batch is beyond the limit: round down.",
            _batches_of(lambda limit, fixed, each: 1): "That is safe, and the slowest: fill the "
            "limit.",
            _batches_of(
                lambda limit, fixed, each: limit / (fixed + each)
            ): "`fixed` is needed once, whatever the batch, not once for each picture.",
            lambda count, limit, fixed, each: torch.tensor(
                [int((limit - fixed) / each)] * (count // int((limit - fixed) / each))
            ): "The last pictures are left out where they fill no whole batch.",
            lambda count, limit, fixed, each: torch.tensor(
                [int((limit - fixed) / each)] * math.ceil(count / int((limit - fixed) / each))
            ): "Those are more pictures than there are: the last batch may be smaller.",
            lambda count, limit, fixed, each: batch_sizes(count, limit, fixed, each).flip(
                0
            ): "The smaller batch comes last.",
            _batches_of(
                lambda limit, fixed, each: math.ceil((limit - fixed) / each) - 1
            ): "What fits exactly does fit.",
        },
        also=_batches_without_a_rest,
    ),
    "kohya_key": Exercise(
        kohya_key,
        _key_inputs,
        {
            lambda key: kohya_key(
                key.replace("lora_A", "lora_C")
                .replace("lora_B", "lora_A")
                .replace("lora_C", "lora_B")
            ): "A goes down to the rank, B up again.",
            lambda key: kohya_key(key).replace(".", "_"): "The last two dots stay: '.lora_down"
            ".weight'.",
            lambda key: kohya_key(key).removeprefix("lora_unet_"): "It begins with 'lora_unet_'.",
            lambda key: kohya_key(key).replace(
                "lora_unet_", "lora_unet_unet_"
            ): "'unet.' gives way to 'lora_unet_': take it off first.",
            lambda key: kohya_key(key).replace(
                "lora_unet_", "lora_"
            ): "It begins with 'lora_unet_', so that nobody takes it for the text encoder's.",
            lambda key: (
                key.replace("unet.", "lora_unet_")
                .replace("lora_A", "lora_down")
                .replace("lora_B", "lora_up")
            ): "The dots in the layer's name become '_'.",
            lambda key: (
                "lora_unet_"
                + key.removeprefix("unet.").rpartition(".lora_")[0].replace(".", "_")
                + ".lora_"
                + key.rpartition(".lora_")[2]
            ): "kohya says lora_down for A, lora_up for B.",
            lambda key: kohya_key(key).removesuffix(".weight"): "'.weight' stays at the end.",
        },
        also=_both_halves,
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
            lambda a, b: abs(correlation(a, b)): "Of two maps of which one rises where the other "
            "falls, it is negative: keep the sign.",
        },
        also=_opposite_maps,
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
            lambda k, d, m: (
                int(d.masked_fill(k <= m, math.inf).argmin()) if (k > m).any() else int(k.argmax())
            ): "Nearly: one that keeps just the least that is asked for keeps enough.",
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
