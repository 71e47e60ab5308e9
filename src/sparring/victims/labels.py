"""Class names from a list, a text file with one name per line, or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from sparring.core.errors import InputError, LoadError

_LARGEST_FILE = 10_000_000


def read_labels(labels: Sequence[str] | Mapping[int | str, str] | str | Path) -> tuple[str, ...]:
    """Class names in the order of the class numbers.

    Args:
        labels: the names; a mapping from class number to name; or the path of a file that holds one name per line, or,
            with the suffix .json, a list or an object of them.

    Raises:
        LoadError: the file is missing, too large, or no text.
        InputError: no names at all, names that are no text, or a mapping whose numbers do not count from 0.
    """
    if isinstance(labels, (str, Path)):
        return _from_file(Path(labels).expanduser())
    if isinstance(labels, Mapping):
        return _in_order(labels, "the labels")
    return _checked(labels, "the labels")


def _from_file(path: Path) -> tuple[str, ...]:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise LoadError(
                f"the label file {str(path)!r} is larger than {_LARGEST_FILE:,} bytes; one name per line is needed"
            )
        text = path.read_text(encoding="utf-8-sig")
    except OSError as cause:
        raise LoadError(f"the label file {str(path)!r} cannot be read: {cause.strerror or cause}") from cause
    except UnicodeDecodeError as cause:
        raise LoadError(f"the label file {str(path)!r} is no UTF-8 text; one name per line is needed") from cause
    shown = f"the label file {str(path)!r}"
    if path.suffix.lower() != ".json":
        return _checked(text.splitlines(), shown)
    try:
        found = json.loads(text)
    except ValueError as cause:
        raise LoadError(f"{shown} is no JSON: {cause}") from cause
    return _in_order(found, shown) if isinstance(found, dict) else _checked(found, shown)


def _in_order(names: Mapping[int | str, str], shown: str) -> tuple[str, ...]:
    try:
        numbered = {int(number): name for number, name in names.items()}
    except ValueError as cause:
        raise InputError(f"{shown} must map class numbers to names; {cause}") from cause
    if sorted(numbered) != list(range(len(numbered))):
        raise InputError(f"{shown} number {len(numbered)} classes, but not as 0..{len(numbered) - 1}")
    return _checked([numbered[i] for i in range(len(numbered))], shown)


def _checked(names: Sequence[str], shown: str) -> tuple[str, ...]:
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{shown} must be one name per class, in order; got {names!r:.80}")
    return tuple(name.strip() for name in names)
