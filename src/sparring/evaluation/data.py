"""The samples of an audit: read by position, identified by content, and fingerprinted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparring.core.batch import Batch, take
from sparring.core.errors import InputError
from sparring.core.rng import content_ids

_CHUNK = 256


class Data:
    """Labelled samples that are read a few at a time.

    Args:
        x: inputs (n, ...) in the victim's raw units; 8-bit pictures may stay uint8 and become k/255 as they are read;
            or a list of texts or documents.
        y: true labels, (n,).
        name: what reports call it.
    """

    def __init__(self, x: Batch, y: Any, name: str = "data") -> None:
        self.y = _labels(y)
        self.name = name
        self._x = x
        if len(x) != len(self.y):
            raise InputError(f"{len(x)} inputs came with {len(self.y)} labels; one label per input is needed")
        if not len(self.y):
            raise InputError("the data are empty; an audit needs samples")

    def __len__(self) -> int:
        return len(self.y)

    def inputs(self, index: Tensor) -> Batch:
        """The inputs at `index`, int64 (m,)."""
        x = take(self._x, index)
        if isinstance(x, Tensor):
            x = x.detach().cpu()
            return x.float() / 255 if x.dtype == torch.uint8 else x
        return x

    def take(self, index: Tensor) -> tuple[Batch, Tensor, Tensor]:
        """Inputs, labels and ids of the samples at `index`, int64 (m,)."""
        return self.inputs(index), self.y[index], self.ids[index]

    @cached_property
    def ids(self) -> Tensor:
        """Content ids of all samples, int64 (n,); reading them once reads all inputs."""
        parts = torch.arange(len(self)).split(_CHUNK)
        return torch.cat([content_ids(self.inputs(part)) for part in parts])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the ids and labels in order."""
        digest = hashlib.sha256(f"{len(self)}".encode())
        for values in (self.ids, self.y):
            digest.update(values.numpy().tobytes())
        return digest.hexdigest()


class DatasetData(Data):
    """A map-style dataset, `dataset[i] -> (input, label)`, read item by item: nothing is held in memory.

    Args:
        dataset: has a length and gives tensors (...) in the victim's raw units with whole-number labels.
        name: what reports call it.
    """

    def __init__(self, dataset: Any, name: str | None = None) -> None:
        self._dataset = dataset
        targets = getattr(dataset, "targets", None)
        labels = targets if targets is not None and len(targets) == len(dataset) else None
        super().__init__(
            range(len(dataset)),
            [int(dataset[i][1]) for i in range(len(dataset))] if labels is None else labels,
            name or type(dataset).__name__,
        )

    def inputs(self, index: Tensor) -> Batch:
        """The inputs at `index`, int64 (m,), stacked where they are tensors."""
        items = [self._dataset[i][0] for i in index.tolist()]
        if not all(isinstance(item, Tensor) for item in items):
            return items
        x = torch.stack(items).cpu()
        return x.float() / 255 if x.dtype == torch.uint8 else x


class Part(Data):
    """Some of another set's samples, in its order.

    Args:
        whole: the other set.
        index: positions in it, int64 (m,).
    """

    def __init__(self, whole: Data, index: Tensor) -> None:
        self._whole, self._index = whole, index
        super().__init__(range(len(index)), whole.y[index], whole.name)

    def inputs(self, index: Tensor) -> Batch:
        """The inputs at `index`, int64 (m,)."""
        return self._whole.inputs(self._index[index])


def as_data(given: Any) -> Data:
    """`Data` from a pair (x, y), a map-style dataset, or `Data`.

    Raises:
        InputError: something else; the message says what is taken.
    """
    if isinstance(given, Data):
        return given
    if isinstance(given, tuple) and len(given) == 2:
        x, y = given
        if isinstance(x, np.ndarray):
            x = torch.from_numpy(np.ascontiguousarray(x))
        return Data(x, y)
    if hasattr(given, "dataset") and hasattr(given, "batch_size"):
        raise InputError(
            f"a {type(given).__name__} came; pass its dataset (loader.dataset): the audit makes its own batches"
        )
    if hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, (str, Tensor, dict)):
        return DatasetData(given)
    raise InputError(
        f"the data are a {type(given).__name__}; a pair (inputs, labels), a dataset of (input, label) items, or a name "
        'such as "digits" is needed'
    )


def _labels(y: Any) -> Tensor:
    labels = torch.as_tensor(y) if not isinstance(y, Sequence) else torch.tensor(list(y))
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(
            f"the labels have shape {tuple(labels.shape)} and dtype {labels.dtype}; class numbers (n,) are needed"
        )
    return labels.to(torch.int64).cpu()
