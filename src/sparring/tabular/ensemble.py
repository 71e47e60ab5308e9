"""One neutral, frozen form for every tree ensemble: flat arrays of nodes, a comparison rule and a link to classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparring.core.errors import InputError, LoadError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Link = Literal["mean", "logistic", "softmax"]
Rule = Literal["<=", "<"]
Precision = Literal["float32", "float64"]

_FORMAT = "sparring-trees"
_VERSION = 1
_CHUNK = 1 << 21  # samples x trees walked at once: bounds the memory of `apply` near 100 MB
_LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True, eq=False)
class TreeEnsemble:
    r"""A classifier made of decision trees, whatever library grew them.

    The nodes of all t trees lie in flat arrays of length m; a node is a leaf when its feature is -1. A sample goes
    left at an inner node when :math:`x_f \le \theta` (or :math:`x_f < \theta`, see `rule`) and right otherwise; a
    missing value (NaN) goes where `missing_left` says. The raw outputs are the sum of the values of the leaves that it
    reaches,

    .. math:: F(x) = b + s \sum_{i=1}^{t} v_{\mathrm{leaf}_i(x)},

    with s = 1/t for the link "mean" and s = 1 otherwise.

    Args:
        n_features: number of features d that a sample has.
        roots: node index of each tree's root, shape (t,).
        feature: feature that each node tests, -1 at a leaf, shape (m,).
        threshold: threshold of each inner node, shape (m,); infinities are stored as the largest finite number.
        left: index of each inner node's left child, shape (m,); ignored at leaves.
        right: index of each inner node's right child, shape (m,); ignored at leaves.
        missing_left: whether a missing value goes left, shape (m,).
        value: what each leaf adds to each of the o raw outputs, shape (m, o); ignored at inner nodes.
        base: what the outputs start from, shape (o,).
        link: "mean" (outputs are votes or probabilities, averaged over the trees), "logistic" (one output, the
            log-odds of class 1 of two) or "softmax" (one margin per class).
        rule: "<=" as in scikit-learn, "<" as in XGBoost.
        inputs: precision to which a sample is rounded before it is compared: "float32" in scikit-learn's trees,
            forests and gradient boosting and in XGBoost, "float64" in scikit-learn's histogram gradient boosting.
        sums: precision in which the outputs are summed, tree by tree: "float32" in XGBoost.
        zero_wins: for the link "logistic", whether a margin of exactly zero means class 1, as in scikit-learn's
            `GradientBoostingClassifier`; elsewhere a tie goes to the lower class.
        names: the k class names; empty means "0", "1", ...

    Raises:
        LoadError: the arrays do not describe trees: wrong shapes, a feature or child out of range, a node with two
            parents (which a cycle also is), or numbers that are not finite.
    """

    n_features: int
    roots: Ints
    feature: Ints
    threshold: Floats
    left: Ints
    right: Ints
    missing_left: Bools
    value: Floats
    base: Floats
    link: Link
    rule: Rule = "<="
    inputs: Precision = "float32"
    sums: Precision = "float64"
    zero_wins: bool = False
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Copy, freeze and validate the arrays."""
        for name, dtype in _ARRAYS.items():
            object.__setattr__(self, name, _frozen(name, getattr(self, name), dtype))
        for name, known in (("link", Link), ("rule", Rule), ("inputs", Precision), ("sums", Precision)):
            if getattr(self, name) not in get_args(known):
                raise LoadError(f"a tree ensemble's {name} is one of {get_args(known)}, not {getattr(self, name)!r}.")
        object.__setattr__(self, "names", tuple(map(str, self.names)) or tuple(map(str, range(self.n_classes))))
        self._check_shapes()
        self._check_nodes()
        object.__setattr__(
            self, "threshold", _frozen("threshold", np.clip(self.threshold, -_LARGEST, _LARGEST), np.float64)
        )
        _ = self.levels  # walks every tree once, so a cycle is met here and not in the first prediction

    def _check_shapes(self) -> None:
        m = self.feature.size
        for name in ("feature", "threshold", "left", "right", "missing_left"):
            if getattr(self, name).shape != (m,):
                raise LoadError(
                    f"a tree ensemble's {name} needs one entry per node ({m}), not shape {getattr(self, name).shape}."
                )
        if self.base.ndim != 1 or self.base.size == 0 or self.value.shape != (m, self.base.size):
            raise LoadError(
                f"leaf values need shape (nodes, outputs) and base (outputs,); got {self.value.shape} for {m} nodes "
                f"and {self.base.shape}."
            )
        if (self.base.size == 1) != (self.link == "logistic"):
            raise LoadError(
                f"the link {self.link!r} does not fit {self.base.size} output(s): only 'logistic' has exactly one."
            )
        if type(self.n_features) is not int or self.n_features < 1:
            raise LoadError(f"a tree ensemble has a whole number of features, 1 or more; got {self.n_features!r}.")
        if self.roots.ndim != 1 or self.roots.size == 0:
            raise LoadError("an ensemble without trees is no model; it needs a list with at least one root.")
        if len(self.names) != self.n_classes:
            raise LoadError(f"{len(self.names)} class names for {self.n_classes} classes; give one per class or none.")

    def _check_nodes(self) -> None:
        m, inner = self.feature.size, self.feature >= 0
        if np.any((self.feature < -1) | (self.feature >= self.n_features)):
            bad = int(np.flatnonzero((self.feature < -1) | (self.feature >= self.n_features))[0])
            raise LoadError(
                f"node {bad} tests feature {self.feature[bad]}, but the features are 0 to {self.n_features - 1}."
            )
        for name, index in (("left child", self.left[inner]), ("right child", self.right[inner]), ("root", self.roots)):
            if np.any((index < 0) | (index >= m)):
                raise LoadError(f"a {name} points outside the {m} nodes of the ensemble.")
        if (
            np.isnan(self.threshold[inner]).any()
            or not np.isfinite(self.value[~inner]).all()
            or not np.isfinite(self.base).all()
        ):
            raise LoadError("thresholds, leaf values and the base must be numbers; one of them is NaN or infinite.")

    @property
    def n_trees(self) -> int:
        """Number of trees t."""
        return int(self.roots.size)

    @property
    def n_classes(self) -> int:
        """Number of classes k; a single margin tells two classes apart."""
        return 2 if self.link == "logistic" else int(self.base.size)

    @cached_property
    def levels(self) -> tuple[Ints, ...]:
        """Inner nodes by depth, roots first; every one is a child of the level before.

        Raises:
            LoadError: a node is reached twice, so the links form a cycle or two trees share a node.
        """
        seen = np.zeros(self.feature.size, dtype=bool)
        frontier, levels = self.roots, []
        while frontier.size:
            if np.unique(frontier).size < frontier.size or seen[frontier].any():
                raise LoadError(
                    "a node of a tree is reached by two ways: the child links form a cycle or share a branch."
                )
            seen[frontier] = True
            inner = frontier[self.feature[frontier] >= 0]
            if inner.size:
                levels.append(inner)
            frontier = np.concatenate([self.left[inner], self.right[inner]])
        return tuple(levels)

    @cached_property
    def _steps(self) -> tuple[Ints, Ints, Ints]:
        """Feature and children, where a leaf tests feature 0 and leads to itself: so every walk has the same length."""
        leaf, own = self.feature < 0, np.arange(self.feature.size)
        return np.where(leaf, 0, self.feature), np.where(leaf, own, self.left), np.where(leaf, own, self.right)

    def apply(self, X: ArrayLike) -> Ints:
        """Find the leaf that each sample reaches in each tree.

        Args:
            X: samples in the units of the thresholds, shape (n, d); NaN is a missing value.

        Returns:
            Node indices, shape (n, t).

        Raises:
            InputError: X has another shape or is not numeric.
        """
        samples = self._cast(X)
        leaves = np.empty((len(samples), self.n_trees), dtype=np.int64)
        size = max(1, _CHUNK // self.n_trees)
        for start in range(0, len(samples), size):
            leaves[start : start + size] = self._walk(samples[start : start + size])
        return leaves

    def _cast(self, X: ArrayLike) -> NDArray[Any]:
        try:
            with np.errstate(over="ignore"):  # beyond float32 is infinite, which still compares rightly
                samples = np.asarray(X).astype(self.inputs)
        except (TypeError, ValueError) as error:
            raise InputError(f"samples must be numbers: {error}.") from error
        if samples.ndim != 2 or samples.shape[1] != self.n_features:
            raise InputError(
                f"samples need the shape (n, {self.n_features}), one column per feature; got {samples.shape}."
            )
        return samples

    def _walk(self, samples: NDArray[Any]) -> Ints:
        feature, left, right = self._steps
        rows, missing = np.arange(len(samples))[:, None], bool(np.isnan(samples).any())
        node = np.repeat(self.roots[None], len(samples), axis=0)
        for _ in self.levels:
            x, cut = samples[rows, feature[node]], self.threshold[node]
            goes_left = x <= cut if self.rule == "<=" else x < cut
            if missing:
                goes_left |= np.isnan(x) & self.missing_left[node]
            node = np.where(goes_left, left[node], right[node])
        return node

    def raw(self, X: ArrayLike) -> Floats:
        """Sum the leaves' values: what scikit-learn calls `decision_function` and XGBoost the output margin.

        Args:
            X: samples, shape (n, d).

        Returns:
            Raw outputs F(x), shape (n, o): one column for the link "logistic", else one per class.
        """
        leaves = self.apply(X)
        dtype = np.dtype(self.sums)
        value, start = self.value.astype(dtype), self.base.astype(dtype)
        total = np.repeat((np.zeros_like(start) if self.link == "mean" else start)[None], len(leaves), axis=0)
        for column in leaves.T:  # tree by tree: the libraries' own order of rounding, so that ties fall as theirs do
            total += value[column]
        if self.link == "mean":
            total = start + total / self.n_trees
        return total.astype(np.float64)

    def scores(self, X: ArrayLike) -> Floats:
        """Score the classes; the largest score, the first among equals, is the label.

        Args:
            X: samples, shape (n, d).

        Returns:
            Shape (n, k): averaged votes or probabilities (link "mean") or logits, whose softmax are the probabilities
            (a single margin F becomes the logits 0 and F).
        """
        raw = self.raw(X)
        if self.link != "logistic":
            return raw
        if self.zero_wins:
            raw[raw == 0] = np.finfo(np.float64).smallest_subnormal
        return np.concatenate([np.zeros_like(raw), raw], axis=1)

    def labels(self, X: ArrayLike) -> Ints:
        """Return the index of the highest-scoring class of each sample, shape (n,); `names` translates it."""
        return cast(Ints, np.argmax(self.scores(X), axis=1).astype(np.int64))

    def probabilities(self, X: ArrayLike) -> Floats:
        """Return the class probabilities, shape (n, k): the scores for the link "mean", else their softmax."""
        scores = self.scores(X)
        if self.link == "mean":
            return scores
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return cast(Floats, weights / weights.sum(axis=1, keepdims=True))

    def to_dict(self) -> dict[str, Any]:
        """Describe the ensemble in plain lists, strings and numbers that JSON can carry without loss."""
        plain = {name: getattr(self, name) for name in ("n_features", "link", "rule", "inputs", "sums", "zero_wins")}
        arrays = {name: getattr(self, name).tolist() for name in _ARRAYS}
        return {"format": _FORMAT, "version": _VERSION, **plain, "names": list(self.names), **arrays}

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> TreeEnsemble:
        """Rebuild an ensemble from `to_dict`.

        Raises:
            LoadError: an entry is absent, unknown or damaged, or the format is another.
        """
        if not isinstance(description, Mapping) or description.get("format") != _FORMAT:
            raise LoadError(
                f"this is no tree ensemble: needed a mapping with format {_FORMAT!r}, as `to_dict` writes it."
            )
        if description.get("version") != _VERSION:
            raise LoadError(
                f"tree format version {description.get('version')!r} is unknown; this sparring reads {_VERSION}."
            )
        entries = {name: entry for name, entry in description.items() if name not in ("format", "version")}
        needed = set(cls.__dataclass_fields__)
        if needed != set(entries):
            absent, extra = sorted(needed - set(entries)), sorted(set(entries) - needed)
            raise LoadError(f"a tree ensemble's entries do not match: absent {absent}, unknown {extra}.")
        if not isinstance(entries["zero_wins"], bool) or not isinstance(entries["names"], (list, tuple)):
            raise LoadError("a tree ensemble's zero_wins must be true or false, and names a list.")
        return cls(**entries)


_ARRAYS: dict[str, type[np.generic]] = {
    "roots": np.int64,
    "feature": np.int64,
    "threshold": np.float64,
    "left": np.int64,
    "right": np.int64,
    "missing_left": np.bool_,
    "value": np.float64,
    "base": np.float64,
}


def _frozen(name: str, entries: ArrayLike, dtype: type[np.generic]) -> NDArray[Any]:
    """Copy into a read-only array of `dtype`, refusing what would change its meaning on the way."""
    try:
        given = np.asarray(entries)
        array = given.astype(dtype)
        same = (
            given.size == 0 or given.dtype == dtype or np.array_equal(given, array, equal_nan=given.dtype.kind == "f")
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise LoadError(f"a tree ensemble's {name} is not an array of {np.dtype(dtype)}: {error}.") from error
    if given.dtype.kind not in "biuf" or not same:
        raise LoadError(
            f"a tree ensemble's {name} needs {np.dtype(dtype)} numbers, not {given.dtype} that would change."
        )
    array.setflags(write=False)
    return array
