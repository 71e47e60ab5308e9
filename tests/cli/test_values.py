"""Values as people type them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.cli.values import parse_number, parse_numbers, parse_params, parse_size, parse_value
from sparring.core.errors import InputError


@pytest.mark.parametrize(
    ("text", "number"),
    [("8/255", 8 / 255), ("0.03", 0.03), (" 1e-3 ", 1e-3), (".5", 0.5), ("3.", 3.0), ("1.5/3", 0.5), ("-2", -2.0)],
)
def test_numbers_and_fractions(text: str, number: float) -> None:
    assert parse_number(text, "eps") == pytest.approx(number, rel=1e-15)


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_every_fraction_is_the_nearest_float(top: int, bottom: int) -> None:
    assert parse_number(f"{top}/{bottom}", "eps") == top / bottom


@pytest.mark.parametrize("text", ["", "eight", "8/255/2", "1/", "/2", "0x10", "8 255", "inf", "nan", "1_0", "1e999"])
def test_texts_that_are_no_number(text: str) -> None:
    with pytest.raises(InputError, match="eps is"):
        parse_number(text, "eps")


def test_dividing_by_zero_is_said() -> None:
    with pytest.raises(InputError, match="divides by zero"):
        parse_number("8/0", "eps")


def test_lists_of_numbers() -> None:
    assert parse_numbers("0.5,1/4, 1", "--mean") == (0.5, 0.25, 1.0)
    with pytest.raises(InputError, match="--mean is ''"):
        parse_numbers("0.5,,1", "--mean")


@pytest.mark.parametrize(("text", "size"), [("224", 224), ("224x320", (224, 320)), ("8, 9", (8, 9))])
def test_sizes(text: str, size: Any) -> None:
    assert parse_size(text, "--size") == size


@pytest.mark.parametrize("text", ["", "0", "-3", "2.5", "1x0", "1x2x3", "big"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="--size is"):
        parse_size(text, "--size")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("0.5", 0.5),
        ("2/255", 2 / 255),
        ("true", True),
        ("False", False),
        ("none", None),
        ("dlr", "dlr"),
        ("", ""),
    ],
)
def test_values(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_parameters() -> None:
    assert parse_params(["steps=10", "step-size=1/255", "loss=dlr=x"]) == {
        "steps": 10,
        "step_size": 1 / 255,
        "loss": "dlr=x",
    }
    for pairs, told in ((["steps"], "not of the form"), (["=3"], "not of the form"), (["a=1", "a=2"], "came twice")):
        with pytest.raises(InputError, match=told):
            parse_params(pairs)
