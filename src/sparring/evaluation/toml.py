"""Plans as TOML: a small writer (the standard library only reads), and numbers that may be written as fractions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sparring.evaluation.errors import PlanError


def dump(document: Mapping[str, Any]) -> str:
    """A TOML document: plain values first, then tables, then arrays of tables. None is left out.

    Args:
        document: values are text, numbers, booleans, lists of those, mappings (tables) and lists of mappings.

    Raises:
        PlanError: a value that TOML cannot hold.
    """
    plain = [f"{_key(k)} = {_value(v)}" for k, v in document.items() if v is not None and not _is_table(v)]
    parts = ["\n".join(plain)] if plain else []
    for key, value in document.items():
        if isinstance(value, Mapping):
            parts.append("\n".join([f"[{_key(key)}]", *_rows(value)]))
        elif _is_table(value):
            parts += ["\n".join([f"[[{_key(key)}]]", *_rows(table)]) for table in value]
    return "\n\n".join(parts) + "\n"


def number(value: Any, what: str) -> float:
    """A number, or a fraction written as text: "8/255".

    Raises:
        PlanError: neither.
    """
    try:
        if isinstance(value, str):
            above, _, below = value.partition("/")
            found = float(above) / float(below) if below else float(above)
        elif isinstance(value, bool):
            raise ValueError
        else:
            found = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        raise PlanError(f'{what} is {value!r}; a number is needed, or a fraction such as "8/255"') from None
    if not math.isfinite(found):
        raise PlanError(f"{what} is {value!r}; a finite number is needed")
    return found


def _rows(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(k)} = {_value(v)}" for k, v in table.items() if v is not None]


def _is_table(value: Any) -> bool:
    many = isinstance(value, Sequence) and not isinstance(value, str)
    return isinstance(value, Mapping) or (many and bool(value) and all(isinstance(v, Mapping) for v in value))


def _key(key: str) -> str:
    return key if key and all(c.isascii() and (c.isalnum() or c in "_-") for c in key) else _text(key)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    raise PlanError(f"a plan cannot hold {value!r}, a {type(value).__name__}; text, numbers and lists can be written")
