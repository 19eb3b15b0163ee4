"""What a setting or an argument may be: said by its type, and read by one function.

    @dataclass(frozen=True)
    class Settings:
        steps: Count = 400
        def __post_init__(self):
            check_fields(self)

Numbers come as text from YAML ("1e-4") and argparse, and in numpy's own types: what means one
number is understood, everything else is refused with one sentence that names the limits.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from .errors import StylenbError


@dataclass(frozen=True)
class Within:
    """Limits of a number: from `low` to `high`, or above `low` if that is `open`."""

    low: float = -math.inf
    high: float = math.inf
    open: bool = False
    nonzero: bool = False

    def __contains__(self, value: float) -> bool:
        fits = self.low < value <= self.high if self.open else self.low <= value <= self.high
        return fits and math.isfinite(value) and not (self.nonzero and value == 0)

    def __str__(self) -> str:
        if self.nonzero:
            return "other than 0"
        if self.low == -math.inf:
            return "that is finite"
        start = f"{'above' if self.open else 'from'} {self.low}"
        if self.high == math.inf:
            return start if self.open else f"{start} up"
        return f"{start} {'and up ' * self.open}to {self.high}"


Count = Annotated[int, Within(1)]
Natural = Annotated[int, Within(0)]
Seed = Annotated[int, Within(0, 2**63 - 1)]
Timestep = Annotated[int, Within(1, 1000)]  # or how many, of a schedule of a thousand
Side = Annotated[int, Within(16, 4096)]  # pixels; the UNet's work grows with its fourth power
Positive = Annotated[float, Within(0, open=True)]
NonNegative = Annotated[float, Within(0)]
Share = Annotated[float, Within(0, 1)]
Guidance = Annotated[float, Within(1)]
Strength = Annotated[float, Within(0, 1, open=True)]
Nonzero = Annotated[float, Within(nonzero=True)]
Finite = Annotated[float, Within()]


def read(name: str, value: Any, kind: Any) -> Any:
    """`value` as the `kind`: a type of this module, bool, str, int, Literal, or one of them | None.
    Values of any other kind are handed back as they are.

    Raises StylenbError with the name and what it may be.
    """
    kinds = [one for one in get_args(kind) if one is not NoneType]
    optional = NoneType in get_args(kind)
    if optional and (value is None or len(kinds) > 1):
        return value
    kind = kinds[0] if optional else kind
    if get_origin(kind) not in (Annotated, Literal) and kind not in (bool, str, int):
        return value
    try:
        return _parse(value, kind)
    except (TypeError, ValueError, OverflowError) as error:
        what = f"{_describe(kind)}{', or None' * optional}"
        raise StylenbError(f"{name} is {what}, not {value!r}.") from error


def as_path(path: str | os.PathLike) -> Path:
    """A path as a shell reads it: "~" is the home folder, "$NAME" an environment variable."""
    return Path(os.path.expandvars(os.fsdecode(path))).expanduser()


def argument(kind: Any) -> Callable[[str], Any]:
    """The same as a `type` of argparse, which puts the option's name before the sentence."""

    def parse(text: str):
        try:
            return _parse(text, kind)
        except (ValueError, OverflowError) as error:
            raise argparse.ArgumentTypeError(f"{text!r} must be {_describe(kind)}") from error

    return parse


def check_fields(settings: Any) -> None:
    """Read every field of a frozen dataclass by its type, in place."""
    kinds = get_type_hints(type(settings), include_extras=True)
    for field in fields(settings):
        value = read(field.name, getattr(settings, field.name), kinds[field.name])
        object.__setattr__(settings, field.name, value)


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if get_origin(kind) is Annotated:
        number, limits = get_args(kind)
        return f"a {'whole ' * (number is int)}number {limits}"
    return {bool: "True or False", str: "text", int: "a whole number"}[kind]


def _parse(value: Any, kind: Any) -> Any:
    if get_origin(kind) is Literal or kind in (bool, str):
        is_bool = type(value).__name__ in ("bool", "bool_")  # Python's or numpy's
        fits = is_bool if kind is bool else isinstance(value, str)
        if not fits or (get_origin(kind) is Literal and value not in get_args(kind)):
            raise ValueError
        return bool(value) if is_bool else value
    number, limits = (int, Within()) if kind is int else get_args(kind)
    text = str(value)  # of True not a number; of a float32 the decimal that was rounded to it
    parsed = int(text) if number is int and text.lstrip("-").isdigit() else float(text)
    if parsed not in limits or parsed != number(parsed):  # 20.0 counts as 20
        raise ValueError
    return number(parsed)
