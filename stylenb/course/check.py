"""How an exercise is checked: right, or the likely mistake by name, in under a second.

An exercise is a function that the learner fills in. Beside its reference stand the wrong answers
that people give most, each with what to say to it: an answer that gives the same numbers as one of
these on random inputs gets that sentence. Nothing is raised, and whatever is not right is replaced
by the reference, so that "Run all" always reaches the end.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from numbers import Real

import torch

from ..errors import StylenbError

UNSOLVED = "it is not solved yet"
CHANGED = (
    "the result is right, but the tensors that were handed in have changed: make a new one instead "
    "of writing on them (no +=, no method that ends in _)."
)


class Draw:
    """Random inputs, the same ones whenever the exercise called ``name`` is checked."""

    def __init__(self, name: str):
        self.generator = torch.Generator().manual_seed(sum(map(ord, name)))

    def integers(self, low: int, high: int, count: int) -> list[int]:
        """``count`` whole numbers from ``low`` up to ``high`` - 1."""
        return torch.randint(low, high, (count,), generator=self.generator).tolist()

    def integer(self, low: int, high: int) -> int:
        return self.integers(low, high, 1)[0]

    def order(self, count: int) -> list[int]:
        """0 to ``count`` - 1, shuffled."""
        return torch.randperm(count, generator=self.generator).tolist()

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Numbers from 0 to 1."""
        return torch.rand(shape, generator=self.generator)

    def share(self) -> float:
        return float(self.uniform(1))

    def alpha(self) -> float:
        """A share that is neither near 0 nor near 1."""
        return 0.25 + 0.5 * self.share()


@dataclass(frozen=True)
class Exercise:
    reference: Callable
    inputs: Callable  # Draw -> the arguments of one trial
    also: Callable | None = None  # Draw -> a list of trials that must not be left out
    rows: list[tuple[str, Callable]] = field(default_factory=list)  # advice, wrong answer

    def mistakes(self, *advice_and_answer: str | Callable) -> None:
        """Add mistakes: what to say, then the wrong answer, and so on, each on its own line.

        Of two wrong answers that give the same numbers, the first is named.
        """
        self.rows.extend(zip(advice_and_answer[::2], advice_and_answer[1::2], strict=True))


class Exercises(dict[str, Exercise]):
    """The exercises of one lesson by name."""

    def add(self, reference: Callable, inputs: Callable, also: Callable | None = None) -> Exercise:
        """Add the exercise that is called as its ``reference`` is, and return it."""
        self[reference.__name__] = Exercise(reference, inputs, also)
        return self[reference.__name__]

    def check(self, name: str, answer: Callable) -> Callable:
        """Try ``answer`` against the exercise called ``name``; return it if right, else the
        reference.

        What came of it is printed. An answer that raises ``NotImplementedError`` or returns ``...``
        counts as not solved yet. Raises StylenbError if the lesson has no such exercise.
        """
        if name not in self:
            raise StylenbError(f"There is no exercise {name!r} here: choose {', '.join(self)}.")
        draw, exercise = Draw(name), self[name]
        trials = [exercise.inputs(draw) for _ in range(4)]
        trials += exercise.also(draw) if exercise.also else []
        advice = _advice(exercise, answer, trials)
        if advice == UNSOLVED:
            print(f"{name}: not solved yet, going on with the reference.")
        elif advice:
            advice = advice[0].upper() + advice[1:]
            print(f"{name}: not right yet. {advice}\nGoing on with the reference.")
        else:
            print(f"{name}: right.")
        return exercise.reference if advice else answer


def _advice(exercise: Exercise, answer: Callable, trials: list) -> str:
    """What to say to an answer; nothing if it is right."""
    given = deepcopy(trials)
    try:
        results = [answer(*arguments) for arguments in given]
    except NotImplementedError:
        return UNSOLVED
    except Exception as error:  # whatever the learner's code may raise
        return f"it stops with {type(error).__name__}: {error}"
    if results[0] is ...:
        return UNSOLVED
    expected = [exercise.reference(*trial) for trial in deepcopy(trials)]
    if _same(results, expected):  # the notebooks hand in weights of the base
        return "" if all(map(_untouched, trials, given)) else CHANGED
    if any(result is None for result in results):
        return "it returns None: is the return missing?"
    for advice, wrong in exercise.rows:
        if _same(results, [wrong(*trial) for trial in deepcopy(trials)]):
            return advice
    pairs = list(zip(results, expected, strict=True))
    for result, right in pairs:
        if _shape(result) != _shape(right):
            return f"the result has shape {_shape(result)}, expected {_shape(right)}."
    return _difference(*next(pair for pair in pairs if not _same(*([one] for one in pair))))


def _untouched(trial: tuple, given: list) -> bool:
    pairs = zip(trial, given, strict=True)
    return all(torch.equal(one, other) for one, other in pairs if isinstance(one, torch.Tensor))


def _shape(value) -> tuple | str:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    return () if isinstance(value, Real) else type(value).__name__


def _difference(result, right) -> str:
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
