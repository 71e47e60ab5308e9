"""The boxes on which a tree ensemble is constant, and what it costs one sample to reach each of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from sparring.core.errors import InputError
from sparring.tabular.ensemble import Bools, Floats, Ints, TreeEnsemble


@dataclass(frozen=True, eq=False)
class Cells:
    """The predicates of an ensemble and the way from each node up to its root.

    A predicate is a distinct test. Whatever the library's comparison and precision, it reads "x_f <= cut", with `cut`
    the largest input that still goes left and `after` the smallest that goes right, both numbers of the ensemble's
    input precision.

    Args:
        ensemble: the trees.
        feature: per predicate, sorted by feature and then by cut, shape (p,).
        cut: per predicate, shape (p,).
        after: per predicate, shape (p,).
        predicate: per node, -1 at leaves and outside the trees, shape (m,).
        parent: per node, -1 at roots, shape (m,).
        is_left: per node, whether it is a left child, shape (m,).
        tree: per node, -1 outside the trees, shape (m,).
        leaves: node indices of all leaves.
        gain: what each leaf adds to each class's score, shape (m, k).
        base: what the scores start from, shape (k,).
    """

    ensemble: TreeEnsemble
    feature: Ints
    cut: Floats
    after: Floats
    predicate: Ints
    parent: Ints
    is_left: Bools
    tree: Ints
    leaves: Ints
    gain: Floats
    base: Floats


@lru_cache(maxsize=8)
def cells(ensemble: TreeEnsemble) -> Cells:
    """Derive the cells of an ensemble; the last few are kept, since attacks come back for every sample."""
    inner = np.concatenate([np.empty(0, dtype=np.int64), *ensemble.levels])
    feature, cut, after, numbers = _predicates(ensemble, inner)
    predicate, parent, tree = (np.full(ensemble.feature.size, -1, dtype=np.int64) for _ in range(3))
    is_left = np.zeros(ensemble.feature.size, dtype=bool)
    predicate[inner] = numbers
    tree[ensemble.roots] = np.arange(ensemble.n_trees)
    for level in ensemble.levels:
        for children in (ensemble.left[level], ensemble.right[level]):
            parent[children], tree[children] = level, tree[level]
        is_left[ensemble.left[level]] = True
    leaves = np.flatnonzero((tree >= 0) & (ensemble.feature < 0))
    gain, base = ensemble.value, ensemble.base
    if ensemble.link == "mean":
        gain = gain / ensemble.n_trees
    elif ensemble.link == "logistic":  # the score of class 0 is constantly zero
        gain, base = np.pad(gain, ((0, 0), (1, 0))), np.pad(base, (1, 0))
    return Cells(ensemble, feature, cut, after, predicate, parent, is_left, tree, leaves, gain, base)


def _predicates(ensemble: TreeEnsemble, inner: Ints) -> tuple[Ints, Floats, Floats, Ints]:
    """Reduce the inner nodes' tests to distinct predicates: features, cuts, next inputs, and each node's number."""
    number = np.dtype(ensemble.inputs).type
    threshold = ensemble.threshold[inner]
    with np.errstate(over="ignore"):  # a threshold beyond float32 is never passed, which infinity says as well
        cut = threshold.astype(number)
        beyond = cut > threshold if ensemble.rule == "<=" else cut >= threshold
        cut = np.where(beyond, np.nextafter(cut, number(-np.inf)), cut)
        tests = np.stack([ensemble.feature[inner].astype(np.float64), cut.astype(np.float64)], axis=1)
        pairs, numbers = np.unique(tests, axis=0, return_inverse=True)
        after = np.nextafter(pairs[:, 1].astype(number), number(np.inf))
    return pairs[:, 0].astype(np.int64), pairs[:, 1], after.astype(np.float64), numbers.reshape(-1)


@dataclass(frozen=True, eq=False)
class Standpoint:
    """One sample among the cells.

    Args:
        cells: the ensemble's predicates.
        x: the sample, shape (d,).
        weights: price of a unit of change per feature, shape (d,).
        went_left: per predicate, whether the sample satisfies it.
        cost: per predicate, the price of the smallest change that flips it; infinite where that is not allowed.
        reach: per node, the least weighted Linf radius whose box meets the node's box.
    """

    cells: Cells
    x: Floats
    weights: Floats
    went_left: Bools
    cost: Floats
    reach: Floats

    def distance(self, point: Floats) -> float:
        """Return the weighted Linf distance of `point`, shape (d,), from the sample."""
        change = np.abs(point - self.x)
        moved = change > 0  # leaves out missing values, and zero changes of infinite weight
        return float(np.max(self.weights[moved] * change[moved], initial=0.0))

    def nearest(self, leaves: Ints) -> Floats:
        """Move the sample by the shortest way into the box that a tuple of leaves, one per tree, has in common."""
        cells, node = self.cells, leaves
        low, high = np.full(self.x.size, -np.inf), np.full(self.x.size, np.inf)
        while (node := node[cells.parent[node] >= 0]).size:
            left, parent = cells.is_left[node], cells.parent[node]
            predicate = cells.predicate[parent]
            np.minimum.at(high, cells.feature[predicate[left]], cells.cut[predicate[left]])
            np.maximum.at(low, cells.feature[predicate[~left]], cells.after[predicate[~left]])
            node = parent
        seen = self.x.astype(cells.ensemble.inputs)
        return np.where(seen < low, low, np.where(seen > high, high, self.x))


def standpoint(
    ensemble: TreeEnsemble,
    x: ArrayLike,
    weights: ArrayLike | None = None,
    bounds: tuple[ArrayLike, ArrayLike] | None = None,
) -> Standpoint:
    """Measure what each predicate and node costs to flip or to reach from one sample.

    Args:
        ensemble: the trees.
        x: the sample, shape (d,); NaN is a missing value, which stays missing.
        weights: positive price of a unit of change, shape (d,) or a scalar; infinite forbids the change.
        bounds: lowest and highest value of each feature, each of shape (d,) or a scalar.

    Raises:
        InputError: a wrong shape, a sample outside the bounds, or weights that are not positive.
    """
    grid, d = cells(ensemble), ensemble.n_features
    try:
        point = np.array(x, dtype=np.float64)
        price, low, high = (
            np.broadcast_to(np.asarray(given, dtype=np.float64), (d,))
            for given in (1.0 if weights is None else weights, *(bounds or (-np.inf, np.inf)))
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"x, weights and each bound need {d} numbers, or one for all: {error}.") from error
    if point.shape != (d,):
        raise InputError(f"x is one sample of shape ({d},); got {point.shape}.")
    if not np.all(price > 0):
        raise InputError(
            "weights are positive prices per unit of change; use infinity for a feature that cannot change."
        )
    if np.isinf(point).any() or (point < low).any() or (point > high).any() or np.isnan([low, high]).any():
        raise InputError("x must be finite (or NaN where it is missing) and lie within the bounds, feature by feature.")
    f = grid.feature
    with np.errstate(over="ignore"):
        seen = point.astype(ensemble.inputs)[f]
    went_left = seen <= grid.cut
    goal = np.where(went_left, grid.after, grid.cut)
    legal = np.isfinite(goal) & ~np.isnan(seen) & (goal >= low[f]) & (goal <= high[f])
    cost = np.full(f.size, np.inf)
    cost[legal] = price[f[legal]] * np.abs(goal[legal] - point[f[legal]])
    return Standpoint(grid, point, price, went_left, cost, _reach(grid, point, went_left, cost))


def _reach(grid: Cells, point: Floats, went_left: Bools, cost: Floats) -> Floats:
    """Carry the dearest flip down every path; a box meets all the tests on its path at the price of the dearest."""
    ensemble = grid.ensemble
    reach = np.zeros(ensemble.feature.size)
    for level in ensemble.levels:
        predicate = grid.predicate[level]
        missing = np.isnan(point[ensemble.feature[level]])
        stays_left = np.where(missing, ensemble.missing_left[level], went_left[predicate])
        reach[ensemble.left[level]] = np.maximum(reach[level], np.where(stays_left, 0.0, cost[predicate]))
        reach[ensemble.right[level]] = np.maximum(reach[level], np.where(stays_left, cost[predicate], 0.0))
    return reach
