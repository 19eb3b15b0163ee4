"""What a setting or an argument may be, however its number is written."""

import argparse
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest

from stylenb import StylenbError
from stylenb.limits import (
    Count,
    Finite,
    Natural,
    NonNegative,
    Nonzero,
    Positive,
    Seed,
    Share,
    Strength,
    Timestep,
    argument,
    check_fields,
    read,
)

Colour = Literal["red", "green"]

UNDERSTOOD = [
    (Positive, "1e-4", 1e-4),  # text to YAML, since it has no dot
    (Positive, np.float32(1e-4), 1e-4),  # not 0.00009999999747378752
    (Positive, 1, 1.0),
    (Strength, "1", 1.0),
    (Share, 0, 0.0),
    (Finite, "-2", -2.0),
    (Count, np.int64(2), 2),
    (Count, np.array(3), 3),
    (Count, "20", 20),
    (Count, 20.0, 20),
    (Count | None, "5", 5),
    (Count | None, None, None),
    (Natural, 0, 0),
    (Seed, str(2**63 - 1), 2**63 - 1),  # which a float would round
    (int, "-7", -7),
    (bool, np.True_, True),
    (str, "x", "x"),
    (Colour, "red", "red"),
    (Positive | str, "as it is", "as it is"),
    (dict, {}, {}),
]
REFUSED = [
    (Count, 0, "a whole number from 1 up, not 0"),
    (Count, 2.5, "a whole number from 1 up, not 2.5"),
    (Count, True, "a whole number from 1 up, not True"),
    (Count, None, "a whole number from 1 up, not None"),
    (Count, "many", "a whole number from 1 up, not 'many'"),
    (Count, [2], "a whole number from 1 up, not [2]"),
    (Count, 10**400, "a whole number from 1 up, not 1000"),
    (Count | None, -1, "a whole number from 1 up, or None, not -1"),
    (Natural, -1, "a whole number from 0 up, not -1"),
    (Timestep, 1001, "a whole number from 1 to 1000, not 1001"),
    (Seed, 2**63, "a whole number from 0 to 9223372036854775807, not 9223372036854775808"),
    (int, "x", "a whole number, not 'x'"),
    (Positive, 0, "a number above 0, not 0"),
    (Positive, "inf", "a number above 0, not 'inf'"),
    (NonNegative, -0.1, "a number from 0 up, not -0.1"),
    (Share, 1.1, "a number from 0 to 1, not 1.1"),
    (Strength, 0, "a number above 0 and up to 1, not 0"),
    (Nonzero, 0.0, "a number other than 0, not 0.0"),
    (Nonzero, float("nan"), "a number other than 0, not nan"),
    (Finite, float("-inf"), "a number that is finite, not -inf"),
    (bool, 1, "True or False, not 1"),
    (str, 1, "text, not 1"),
    (Colour, "blue", "one of 'red', 'green', not 'blue'"),
    (Colour | None, 1, "one of 'red', 'green', or None, not 1"),
]


@pytest.mark.parametrize("kind, value, expected", UNDERSTOOD)
def test_what_means_one_value_is_understood(kind, value, expected):
    found = read("it", value, kind)
    assert found == expected and type(found) is type(expected)
    if isinstance(value, str) and not isinstance(expected, str) and kind != Count | None:
        assert argument(kind)(value) == expected


@pytest.mark.parametrize("kind, value, sentence", REFUSED)
def test_all_else_is_refused_with_its_limits(kind, value, sentence):
    with pytest.raises(StylenbError) as caught:
        read("it", value, kind)
    assert str(caught.value).startswith(f"it is {sentence}") and str(caught.value).endswith(".")


def test_fields_and_options(capsys):
    @dataclass(frozen=True)
    class Settings:
        rate: Positive = 1.0
        steps: Count | None = None
        layers: object = ()

        def __post_init__(self):
            check_fields(self)

    assert Settings("1e-4", np.int64(2)) == Settings(1e-4, 2)
    with pytest.raises(StylenbError, match="^steps is a whole number from 1 up, or None, not 0.$"):
        Settings(steps=0)

    parser = argparse.ArgumentParser()
    parser.add_argument("--strength", type=argument(Strength))
    assert parser.parse_args(["--strength", "5e-1"]).strength == 0.5
    for wrong in ("0", "nan", "much"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--strength", wrong])
        assert f"argument --strength: '{wrong}' must be a number above 0 and up to 1" in (
            capsys.readouterr().err
        )
