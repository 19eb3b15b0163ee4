"""The exercises of lesson 03, the LoRA formula."""

from collections.abc import Callable

import torch

from .check import Draw, Exercises

EXERCISES = Exercises()
exercise, check = EXERCISES.add, EXERCISES.check

PROGRAMS = ("course", "peft", "kohya")


def lora_forward(x, W, A, B, alpha: float) -> torch.Tensor:
    """Rows ``x`` (N,in) through W + alpha A B; W is (in,out), A (in,r) and B (r,out)."""
    return x @ W + alpha * (x @ A @ B)


def _forward_inputs(draw: Draw):
    (count, inputs, outputs), rank = draw.integers(6, 30, 3), draw.integer(2, 6)
    shapes = (count, inputs), (inputs, outputs), (inputs, rank), (rank, outputs)
    return *(draw.normal(*shape) for shape in shapes), draw.alpha()


exercise(lora_forward, _forward_inputs).mistakes(
    "Alpha is missing.",
    lambda x, W, A, B, a: x @ W + x @ A @ B,
    "That is the update alone: add x W.",
    lambda x, W, A, B, a: a * (x @ A @ B),
    "Alpha turns up the update only, not W.",
    lambda x, W, A, B, a: a * (x @ W + x @ A @ B),
    "A LoRA is added to W; W itself stays whole.",
    lambda x, W, A, B, a: (1 - a) * (x @ W) + a * (x @ A @ B),
    "The course's formula has no division by the rank.",
    lambda x, W, A, B, a: x @ W + a / A.shape[1] * (x @ A @ B),
    "That is the layer without its LoRA.",
    lambda x, W, A, B, a: x @ W,
)


def convert_alpha(value: float, rank: int, source: str, target: str) -> float:
    """The alpha of a LoRA as "course" or as "peft" and "kohya" write it, which divide by rank."""
    alpha = value if source == "course" else value / rank
    return alpha if target == "course" else alpha * rank


def _convert_inputs(draw: Draw):
    source, target = draw.order(3)[:2]
    return 8 * draw.alpha(), draw.integer(2, 17), PROGRAMS[source], PROGRAMS[target]


def _between_all(draw: Draw):
    return [(8 * draw.alpha(), 4, source, target) for source in PROGRAMS for target in PROGRAMS]


exercise(convert_alpha, _convert_inputs, also=_between_all).mistakes(
    "The number has to change: peft and kohya divide it by the rank, the course does not.",
    lambda v, r, s, t: v,
    "Upside down: peft and kohya divide by the rank themselves, so their number is the larger one.",
    lambda v, r, s, t: (v if s == "course" else v * r) / (1 if t == "course" else r),
    "That is the course's alpha. Now write it the way of the target.",
    lambda v, r, s, t: v if s == "course" else v / r,
    "First make it the course's alpha, which depends on where the number comes from.",
    lambda v, r, s, t: v if t == "course" else v * r,
    "From the course to the course the number stays as it is, too.",
    lambda v, r, s, t: v * r if s == "course" else v / r if t == "course" else v,
    "It depends on source and target whether to divide.",
    lambda v, r, s, t: v / r,
    "It depends on source and target whether to multiply.",
    lambda v, r, s, t: v * r,
    "Between peft and kohya the number stays as it is: both divide by the rank.",
    lambda v, r, s, t: v / r if t == "course" else v * r,
    "Between peft and kohya the number stays as it is: both divide by the rank.",
    lambda v, r, s, t: v * r if s == "course" else v / r,
)


def lora_parameters(shapes, rank: int) -> int:
    """Numbers in A and B together for layers with weights of ``shapes``, a list of (out, in)."""
    return sum(rank * (outputs + inputs) for outputs, inputs in shapes)


def _shapes_inputs(draw: Draw):
    sides = draw.integers(8, 80, 10)
    return list(zip(sides[::2], sides[1::2], strict=True)), draw.integer(3, 9)


exercise(lora_parameters, _shapes_inputs).mistakes(
    "Those are the numbers of W, which is not trained.",
    lambda shapes, r: sum(o * i for o, i in shapes),
    "A has in × r and B r × out numbers: the sides are added, not multiplied.",
    lambda shapes, r: sum(r * o * i for o, i in shapes),
    "That is rank 1: each side counts r times.",
    lambda shapes, r: sum(o + i for o, i in shapes),
    "That is B alone: A counts too.",
    lambda shapes, r: sum(r * o for o, i in shapes),
    "That is A alone: B counts too.",
    lambda shapes, r: sum(r * i for o, i in shapes),
    "The layers differ in shape: take each with its own.",
    lambda shapes, r: r * len(shapes) * sum(shapes[0]),
)


def keep_rank(update: torch.Tensor, k: int) -> torch.Tensor:
    """The matrix of rank ``k`` that is nearest to ``update``; same shape."""
    U, S, Vh = torch.linalg.svd(update, full_matrices=False)
    return U[:, :k] * S[:k] @ Vh[:k]


def _from_svd(function: Callable) -> Callable:
    """``keep_rank`` with the pieces of the SVD put together by ``function`` instead."""
    return lambda m, k: function(*torch.linalg.svd(m, full_matrices=False), k)


exercise(
    keep_rank, lambda draw: (draw.normal(*draw.integers(8, 20, 2)), draw.integer(2, 6))
).mistakes(
    "The singular values are missing: each column of U times its own.",
    _from_svd(lambda U, S, Vh, k: U[:, :k] @ Vh[:k]),
    "Those are the smallest: singular values come largest first.",
    _from_svd(lambda U, S, Vh, k: U[:, -k:] * S[-k:] @ Vh[-k:]),
    "Vh is transposed already: take its first k rows as it is.",
    _from_svd(lambda U, S, Vh, k: U[:, :k] * S[:k] @ Vh.T[:k]),
    "One too many: [:k] are k of them.",
    lambda m, k: keep_rank(m, k + 1),
    "That is what should be left out: take [:k].",
    lambda m, k: m - keep_rank(m, k),
    "That keeps k columns. It has rank k, but it is not the nearest: use the SVD.",
    lambda m, k: torch.cat([m[:, :k], torch.zeros_like(m[:, k:])], dim=1),
)


def merge(weight, A, B, alpha: float) -> torch.Tensor:
    """A layer's weight (out,in), as torch stores it, with alpha A B added; A (in,r), B (r,out)."""
    return weight + alpha * (A @ B).T


def _merge_inputs(draw: Draw):
    side, rank = draw.integer(6, 30), draw.integer(2, 6)
    shapes = (side, side), (side, rank), (rank, side)  # as in self-attention: none gives it away
    return *(draw.normal(*shape) for shape in shapes), draw.alpha()


exercise(merge, _merge_inputs).mistakes(
    "A B is (in, out) and the weight (out, in): transpose. In a square layer nothing else tells "
    "you.",
    lambda w, A, B, a: w + a * A @ B,
    "Right, but as (in, out): torch wants it as (out, in) again.",
    lambda w, A, B, a: w.T + a * A @ B,
    "Alpha is missing.",
    lambda w, A, B, a: w + (A @ B).T,
    "The course's formula has no division by the rank.",
    lambda w, A, B, a: w + a / A.shape[1] * (A @ B).T,
    "That takes the LoRA out again.",
    lambda w, A, B, a: w - a * (A @ B).T,
    "That is the update alone: add the weight.",
    lambda w, A, B, a: a * (A @ B).T,
)


def add_two(W, A1, B1, alpha1: float, A2, B2, alpha2: float) -> torch.Tensor:
    """W (in,out) with two LoRAs added: W + alpha1 A1 B1 + alpha2 A2 B2."""
    return W + alpha1 * A1 @ B1 + alpha2 * A2 @ B2


def _two_inputs(draw: Draw):
    (inputs, outputs), rank = draw.integers(6, 30, 2), draw.integer(2, 6)

    def lora():
        return draw.normal(inputs, rank), draw.normal(rank, outputs), draw.alpha()

    return draw.normal(inputs, outputs), *lora(), *lora()


exercise(add_two, _two_inputs).mistakes(
    "Multiply first, then add: this has A1 B2 and A2 B1 in it, which belong to neither.",
    lambda W, A1, B1, a1, A2, B2, a2: W + (a1 * A1 + a2 * A2) @ (B1 + B2),
    "Multiply first, then add: this has A1 B2 and A2 B1 in it, and alpha twice.",
    lambda W, A1, B1, a1, A2, B2, a2: W + (a1 * A1 + a2 * A2) @ (a1 * B1 + a2 * B2),
    'Multiply first, then add: this is peft\'s "linear", with A1 B2 and A2 B1 in it.',
    lambda W, A1, B1, a1, A2, B2, a2: (
        W + (a1**0.5 * A1 + a2**0.5 * A2) @ (a1**0.5 * B1 + a2**0.5 * B2)
    ),
    "Multiply first, then add, and each with its alpha.",
    lambda W, A1, B1, a1, A2, B2, a2: W + (A1 + A2) @ (B1 + B2),
    "W counts once, not once for each LoRA.",
    lambda W, A1, B1, a1, A2, B2, a2: 2 * W + a1 * A1 @ B1 + a2 * A2 @ B2,
    "That is their mean. The sum has each at its own alpha.",
    lambda W, A1, B1, a1, A2, B2, a2: W + (a1 * A1 @ B1 + a2 * A2 @ B2) / 2,
    "The alphas are missing.",
    lambda W, A1, B1, a1, A2, B2, a2: W + A1 @ B1 + A2 @ B2,
    "Those are the updates alone: add W.",
    lambda W, A1, B1, a1, A2, B2, a2: a1 * A1 @ B1 + a2 * A2 @ B2,
)
