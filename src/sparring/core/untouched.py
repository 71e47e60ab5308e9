"""Calls that leave their input as it was, of networks that do not: in-place normalisation, a first ReLU(inplace=True).

An attack keeps the points it asks about. A network that writes into them would have the attack record, and step on from, other
points than those that were answered: searches by queries would fail on it and it would pass for robust; and gradients raise.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Whether a part has been seen to write into its input.
_WRITES: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def untouched(part: Callable[..., Any], x: Tensor, **how: Any) -> Any:
    """part(x, **how), which cannot change x.

    The first call of a part is given a copy, which tells whether it writes; from then on only writers are.
    """
    try:
        writes = _WRITES.get(part)
    except TypeError:  # it cannot be remembered
        writes = True
    if writes is not None:
        return part(x.clone() if writes else x, **how)
    mine = x.clone()
    before = _version(mine)
    out = part(mine, **how)
    _WRITES[part] = _version(mine) != before or not torch.equal(mine.detach(), x.detach())
    return out


def _version(x: Tensor) -> int:
    """How often autograd has seen x written into; it counts nothing in inference mode."""
    return 0 if x.is_inference() else x._version
