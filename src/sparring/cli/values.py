"""Values as people type them: fractions such as 8/255, lists of numbers, sizes, and name=value pairs."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from sparring.core.errors import InputError

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_FRACTION = re.compile(rf"\s*({_NUMBER})\s*(?:/\s*({_NUMBER})\s*)?")
_WORDS: dict[str, Any] = {"true": True, "false": False, "none": None}


def parse_number(text: str, what: str) -> float:
    """A number, or a fraction of two: "8/255", "0.03", "1e-3".

    Raises:
        InputError: something else.
    """
    match = _FRACTION.fullmatch(text)
    if match is None:
        raise InputError(f"{what} is {text!r}; a number or a fraction is needed, such as 0.03 or 8/255")
    top, bottom = Fraction(match[1]), Fraction(match[2] or 1)
    if bottom == 0:
        raise InputError(f"{what} is {text!r}, which divides by zero")
    try:
        return float(top / bottom)
    except OverflowError as cause:
        raise InputError(f"{what} is {text!r}, which is too large") from cause


def parse_numbers(text: str, what: str) -> tuple[float, ...]:
    """Numbers with commas between them, one per channel."""
    return tuple(parse_number(part, what) for part in text.split(","))


def parse_size(text: str, what: str) -> int | tuple[int, int]:
    """Pixels: "224", or height and width as "224x320".

    Raises:
        InputError: something else.
    """
    match = re.fullmatch(r"\s*(\d{1,6})\s*(?:[x,]\s*(\d{1,6})\s*)?", text)
    if match is None or not int(match[1]) or match[2] == "0":
        raise InputError(f"{what} is {text!r}; pixels are needed, such as 224, or height x width, such as 224x320")
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


def parse_params(pairs: list[str]) -> dict[str, Any]:
    """The parameters that "name=value" pairs give; a value is a number, a fraction, true, false, none, or text.

    Raises:
        InputError: no "=", no name, or one name twice.
    """
    params: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise InputError(f"the parameter {pair!r} is not of the form name=value, for example --param steps=100")
        if name in params:
            raise InputError(f"the parameter {name!r} came twice; give it once")
        params[name] = parse_value(value.strip())
    return params


def parse_value(text: str) -> Any:
    """The value that a text stands for."""
    if text.casefold() in _WORDS:
        return _WORDS[text.casefold()]
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    return parse_number(text, "the value") if _FRACTION.fullmatch(text) else text
