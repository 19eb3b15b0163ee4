"""What a setting or an argument may be: written as its type, read by one function.

    Count = Annotated[int, Within(1)]

    @dataclass(frozen=True)
    class Settings:
        steps: Count = 400
        def __post_init__(self):
            check_fields(self)

Numbers come as text from YAML ("1e-4"), from argparse, and as numpy's own types: what means one
number is understood, everything else is refused with one sentence that names the limits.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from .errors import StylenbError


@dataclass(frozen=True)
class Within:
    """Limits of a number: from `low` up to `high`, or above `low` if that is `open`."""

    low: float = -math.inf
    high: float = math.inf
    open: bool = False  # whether `low` itself is left out
    nonzero: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.open else self.low <= value
        return (
            above
            and value <= self.high
            and math.isfinite(value)
            and not (self.nonzero and value == 0)
        )

    def __str__(self) -> str:
        if self.nonzero:
            return "other than 0"
        start = f"above {self.low:g}" if self.open else f"from {_short(self.low)}"
        if self.low == -math.inf:
            return "that is finite" if self.high == math.inf else f"up to {_short(self.high)}"
        end = "" if self.open else " up"
        if self.high < math.inf:
            end = f" and up to {_short(self.high)}" if self.open else f" to {_short(self.high)}"
        return start + end


Count = Annotated[int, Within(1)]
Natural = Annotated[int, Within(0)]
Seed = Annotated[int, Within(0, 2**63 - 1)]
Timestep = Annotated[int, Within(1, 1000)]  # of a schedule of a thousand
Positive = Annotated[float, Within(0, open=True)]
NonNegative = Annotated[float, Within(0)]
Share = Annotated[float, Within(0, 1)]
Strength = Annotated[float, Within(0, 1, open=True)]
Nonzero = Annotated[float, Within(nonzero=True)]
Finite = Annotated[float, Within()]


def read(name: str, value: Any, kind: Any) -> Any:
    """`value` as the `kind`: a type of this module, bool, str, int, float, Literal, or one of them
    | None. Values of any other kind are handed back as they are.

    Raises StylenbError with the name and what it may be.
    """
    optional = NoneType in get_args(kind)
    if optional:
        if value is None:
            return None
        kinds = [one for one in get_args(kind) if one is not NoneType]
        kind = kinds[0] if len(kinds) == 1 else Any
    if get_origin(kind) not in (Annotated, Literal) and kind not in (bool, str, int, float):
        return value
    try:
        return _parse(value, kind)
    except (TypeError, ValueError, OverflowError) as error:
        raise StylenbError(
            f"{name} is {describe(kind)}{', or None' * optional}, not {value!r}."
        ) from error


def describe(kind: Any) -> str:
    """What a value of this kind is, in words."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if get_origin(kind) is Annotated:
        number, limits = get_args(kind)
        return f"a {'whole ' * (number is int)}number {limits}"
    return {bool: "True or False", str: "text", int: "a whole number", float: "a number"}[kind]


def argument(kind: Any) -> Callable[[str], Any]:
    """The same as a `type` of argparse, which puts the option's name before the sentence."""
    import argparse

    def parse(text: str):
        try:
            return _parse(text, kind)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} must be {describe(kind)}") from error

    return parse


def check_fields(settings: Any) -> None:
    """Read every field of a frozen dataclass by its type, in place."""
    kinds = get_type_hints(type(settings), include_extras=True)
    for field in fields(settings):
        value = read(field.name, getattr(settings, field.name), kinds[field.name])
        object.__setattr__(settings, field.name, value)


def _parse(value: Any, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        if isinstance(value, str) and value in get_args(kind):
            return value
        raise ValueError
    if kind in (bool, str):
        if isinstance(value, kind):
            return value
        if kind is bool and type(value).__name__ in ("bool", "bool_"):  # numpy's
            return bool(value)
        raise ValueError
    number, limits = get_args(kind) if get_origin(kind) is Annotated else (kind, Within())
    if type(value).__name__ in ("bool", "bool_"):
        raise ValueError
    parsed = _whole(value) if number is int else _decimal(value)
    if parsed not in limits:
        raise ValueError
    return parsed


def _whole(value: Any) -> int:
    if isinstance(value, str):
        value = float(value) if set(value) & set(".eE") else int(value)
    if isinstance(value, float) or hasattr(value, "is_integer"):  # 20.0 counts as 20
        if not float(value).is_integer():
            raise ValueError
        return int(value)
    return operator.index(value)


def _decimal(value: Any) -> float:
    """Of a numpy float32 the decimal number that was rounded to it: 0.3, not 0.30000001."""
    return float(str(value) if type(value).__module__ == "numpy" else value)


def _short(number: float) -> str:
    return f"{number:d}" if isinstance(number, int) else f"{number:g}"
