"""A hash of a fitted estimator from its parameters and arrays, with nothing pickled."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from types import CodeType
from typing import Any, Protocol

import numpy as np

_TIME = re.compile(r"(^|_)times?(_|$)")  # a second fit on the same data takes other seconds and is the same model


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def digest(thing: Any) -> str:
    """SHA-256 over everything that a fitted object holds: arrays by their bytes, estimators and trees by attribute.

    Two objects with equal parameters and equal fitted arrays have equal digests, in this process and in another. Of a
    function that is part of a model, its name and its compiled code count.
    """
    sha = hashlib.sha256()
    _feed(sha, thing, [])
    return sha.hexdigest()


def _feed(sha: _Hash, thing: Any, above: list[int]) -> None:
    """Add one object; `above` holds the ids of the containers that it lies in, so that a cycle ends."""
    if id(thing) in above:
        sha.update(f"cycle {above[::-1].index(id(thing))};".encode())
        return
    below = [*above, id(thing)]
    if thing is None or isinstance(thing, (bool, int, float, complex, str, bytes)):
        sha.update(f"{type(thing).__name__} {thing!r};".encode())
    elif isinstance(thing, (np.ndarray, np.generic)):
        _feed_array(sha, np.asarray(thing), below)
    elif isinstance(thing, Mapping):
        keys = [key for key in thing if not (isinstance(key, str) and _TIME.search(key))]
        sha.update(f"map {len(keys)};".encode())
        for key in sorted(keys, key=lambda k: (type(k).__name__, repr(k))):
            _feed(sha, key, below)
            _feed(sha, thing[key], below)
    elif isinstance(thing, (set, frozenset)):
        sha.update(f"set {sorted(map(repr, thing))};".encode())
    elif isinstance(thing, Sequence):
        sha.update(f"{type(thing).__name__} {len(thing)};".encode())
        for item in thing:
            _feed(sha, item, below)
    else:
        _feed_object(sha, thing, below)


def _feed_array(sha: _Hash, array: np.ndarray[Any, Any], below: list[int]) -> None:
    sha.update(f"array {array.dtype.descr if array.dtype.names else array.dtype.str} {array.shape};".encode())
    if array.dtype.names:  # trees keep their nodes in records, whose padding holds whatever was in memory
        for name in array.dtype.names:
            _feed_array(sha, array[name], below)
    elif array.dtype.hasobject:
        for item in array.ravel().tolist():
            _feed(sha, item, below)
    else:
        sha.update(np.ascontiguousarray(array).tobytes())


def _feed_object(sha: _Hash, thing: Any, below: list[int]) -> None:
    if isinstance(thing, type):
        sha.update(f"type {thing.__module__}.{thing.__qualname__};".encode())
        return
    sha.update(f"{type(thing).__module__}.{type(thing).__qualname__};".encode())
    code = getattr(thing, "__code__", None)
    if isinstance(code, CodeType):
        sha.update(f"{thing.__module__}.{thing.__qualname__};".encode() + code.co_code)
        _feed(sha, [c for c in code.co_consts if not isinstance(c, CodeType)], below)
        return
    state = getattr(thing, "__dict__", None)
    if not state:  # compiled classes (scikit-learn's Tree, numpy's generators) tell their state instead
        state = _told_state(thing)
    _feed(sha, state, below)


def _told_state(thing: Any) -> Any:
    for name in ("get_arrays", "__getstate__", "get_state"):  # search trees count their calls, beside their arrays
        tell = getattr(thing, name, None)
        if callable(tell):
            try:
                return tell()
            except TypeError:  # a compiled class that has no state to tell
                continue
    return getattr(thing, "__name__", None)
