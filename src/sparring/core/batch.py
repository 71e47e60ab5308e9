"""Batches of any kind: a tensor's rows, or a list of strings, documents, graphs. The core indexes them only through
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Batch = Tensor | Sequence[Any]
B = TypeVar("B", bound=Batch)


def take(batch: B, index: Tensor) -> B:
    """The samples of `batch` at `index`, int64 (m,), in that order."""
    if isinstance(batch, Tensor):
        return batch.index_select(0, index.to(batch.device))  # type: ignore[return-value]
    return [batch[i] for i in index.tolist()]  # type: ignore[return-value]


def pick(batch: B, index: Tensor | None) -> B:
    """The same as `take` for an index that rises: the batch itself, uncopied, where that leaves none out or is None."""
    return batch if index is None or len(index) == len(batch) else take(batch, index)


def choose(mask: Tensor, these: Tensor, others: Tensor) -> Tensor:
    """The samples of `these` where bool (m,) is true and of `others` elsewhere; one of the two itself where it has them all.

    On CPUs a selection by element takes several times as long as a copy, and in most steps all samples agree.
    """
    if these.device.type != "cpu":  # a look at the mask would make the device wait
        return torch.where(mask.reshape(-1, *([1] * (these.ndim - 1))), these, others)
    rows = mask.nonzero().squeeze(1)
    if len(rows) == len(mask):
        return these
    return others.index_copy(0, rows, these.index_select(0, rows)) if len(rows) else others


def put(batch: Batch, index: Tensor, rows: Batch) -> None:
    """Write `rows` into `batch` at `index`, in place; `batch` is a tensor or a list."""
    if isinstance(batch, Tensor) and isinstance(rows, Tensor):
        batch.index_copy_(0, index.to(batch.device), rows.to(batch.dtype))
    elif isinstance(batch, list):
        for i, row in zip(index.tolist(), rows, strict=True):
            batch[i] = row


def own(batch: B) -> B:
    """A copy that can be written with `put` while the caller's batch stays as it is."""
    return batch.detach().clone() if isinstance(batch, Tensor) else list(batch)  # type: ignore[return-value]


def concat(parts: Sequence[Batch]) -> Batch:
    """The parts one after another."""
    if all(isinstance(part, Tensor) for part in parts):
        return torch.cat(list(parts))  # type: ignore[arg-type]
    return [item for part in parts for item in part]
