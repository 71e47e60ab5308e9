"""Tree ensembles as victims: rows of a table in, class scores out, and the trees for attacks that read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparring.core.batch import Batch
from sparring.core.door import admit_tensor
from sparring.core.errors import InputError
from sparring.core.outputs import Prediction
from sparring.core.rng import KeyedRandom
from sparring.core.space import Bounds
from sparring.core.threat import Access
from sparring.core.victim import BaseVictim
from sparring.tabular.ensemble import TreeEnsemble
from sparring.tabular.importers import from_sklearn

_LEAST_LOG = -100.0  # stands for log(0), where no tree votes for a class


class TreeVictim(BaseVictim):
    """A tree ensemble, read from whatever library grew it. It answers as that library does, bit for bit.

    Scores are logits, whose softmax are the probabilities; for forests the logarithm of the averaged votes, with log(0)
    as -100. Rows may be float32 or float64, and are compared as the library compares them.

    Args:
        model: a `TreeEnsemble` (from `from_xgboost_json`, say), or a fitted scikit-learn tree, forest or boosting
            classifier.
        labels: class names; None takes the ensemble's.
        bounds: (lo, hi) of rows, if they have any: numbers, or per column, (d,).
        scores: whether the victim shows its scores; False leaves the labels alone.
        name: what messages and reports call it.

    Raises:
        InputError: a model whose trees cannot be read, or names that do not fit its classes.
    """

    domain = "table"

    def __init__(
        self,
        model: Any,
        *,
        labels: Sequence[str] | None = None,
        bounds: tuple[float | Tensor, float | Tensor] | None = None,
        scores: bool = True,
        name: str | None = None,
    ) -> None:
        self.ensemble = model if isinstance(model, TreeEnsemble) else from_sklearn(model)
        k = self.ensemble.n_classes
        names = self.ensemble.names if labels is None else tuple(labels)
        if isinstance(labels, str) or len(names) != k:
            raise InputError(f"labels are {labels!r}; {k} class names are needed, or None")
        super().__init__(labels=names, name=name or type(model).__name__)
        self.bounds = None if bounds is None else Bounds.of(bounds)
        self.access = Access.SCORES if scores else Access.LABELS

    def query(self, x: Batch, noise: KeyedRandom | None = None) -> Prediction:
        """The ensemble's own labels, and its scores in float64 where it shows them.

        Raises:
            InputError: no rows of d columns.
        """
        if not isinstance(x, Tensor):
            raise InputError(f"{self.name!r} takes rows as a float tensor (n, d); a {type(x).__name__} came")
        rows = x.detach().cpu().double().numpy()
        scores = torch.from_numpy(self.ensemble.scores(rows))
        labels = scores.argmax(1) if len(rows) else torch.zeros(0, dtype=torch.int64)
        if self.access is Access.LABELS:
            return Prediction(labels)
        if self.ensemble.link == "mean":
            scores = scores.log().clamp(min=_LEAST_LOG)
        return Prediction(labels, scores)

    def admit(self, x: Batch, y: Any) -> tuple[Batch, Tensor]:
        """Rows (n, d), float32 or float64, finite and inside the bounds; labels by number or name.

        Raises:
            InputError: another type or shape, a missing value, or a label out of range.
        """
        d = self.ensemble.n_features
        if not isinstance(x, Tensor):
            raise InputError(f"{self.name!r} takes rows as a float tensor (n, {d}); a {type(x).__name__} came")
        if x.is_floating_point() and x.dtype not in (torch.float32, torch.float64):
            raise InputError(f"rows have dtype {x.dtype}, too coarse for the trees' thresholds; x.float() is needed")
        x = admit_tensor(x, self.bounds, self.name).detach().cpu()
        if x.shape[1:] != (d,):
            raise InputError(f"rows have shape {tuple(x.shape)}; {self.name!r} has {d} columns, so (n, {d}) is needed")
        return x, self._admit_labels(y, len(x))

    def capability(self, name: str) -> Any:
        """`"trees"`: the `TreeEnsemble`.

        Raises:
            CapabilityError: anything else.
        """
        return self.ensemble if name == "trees" else super().capability(name)

    def fingerprint(self) -> str:
        """SHA-256 over the trees, the class names and the bounds."""
        bounds = None if self.bounds is None else [self.bounds.lo.tolist(), self.bounds.hi.tolist()]
        told = json.dumps([self.ensemble.to_dict(), self.labels, bounds, str(self.access)], sort_keys=True)
        return hashlib.sha256(f"TreeVictim:{told}".encode()).hexdigest()
