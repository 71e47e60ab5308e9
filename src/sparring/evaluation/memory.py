"""Memory between units: what the allocator hoards goes back to the system, so that long runs stay as small as short ones."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any


def give_back() -> None:
    """Return free memory to the system, where its C library can.

    A climb allocates tensors of ever new sizes as its batch shrinks, and glibc keeps the gaps: measured on MNIST, 10,000
    samples peaked a third above 1,000 without this.
    """
    trim = _trimmer()
    if trim is not None:
        trim(0)


@functools.cache
def _trimmer() -> Callable[[int], Any] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library than glibc
        return None
