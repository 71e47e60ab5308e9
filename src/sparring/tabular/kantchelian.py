"""The exact minimal change that fools a tree ensemble, by mixed-integer programming (Kantchelian et al., 2016)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from sparring.core.errors import InputError
from sparring.tabular.cells import Standpoint, standpoint
from sparring.tabular.ensemble import Bools, Floats, Ints, TreeEnsemble

Status = Literal["optimal", "limit", "infeasible"]

_ROW_SCALE = 100.0  # the largest step of a leaf in a row: the solver's tolerance of 1e-6 becomes 1e-8 of that step
_OBJECTIVE_SCALE = 1e3  # makes the solver's absolute gap of 1e-6 small against the tolerance
_MAX_CUTS = 100  # leaf tuples that only look like a win, refused one by one before a radius counts as undecided
_GALLOP = 4  # growth of the step while no radius has been feasible yet


@dataclass(frozen=True, eq=False)
class Minimal:
    """The answer of `minimal_change`.

    Args:
        x_adv: the closest point found with another label, shape (d,), or None where there is none.
        distance: its distance from x; infinite without a point.
        status: "optimal" (proved minimal), "limit" (time ran out, or the solver could not tell: the minimum lies
            between `bound` and `distance`) or "infeasible" (no change within the bounds flips the label).
        bound: proved lower bound on the minimal distance.
        label: the class that `x_adv` gets; the label of x where there is no point.
    """

    x_adv: Floats | None
    distance: float
    status: Status
    bound: float
    label: int


def minimal_change(
    ensemble: TreeEnsemble,
    x: ArrayLike,
    y: int,
    *,
    target: int | None = None,
    weights: ArrayLike | None = None,
    bounds: tuple[ArrayLike, ArrayLike] | None = None,
    time_limit: float | None = None,
    tolerance: float = 1e-6,
) -> Minimal:
    r"""Find the smallest (weighted) Linf change that takes one sample's label away from `y`.

    .. math:: \min_{x'} \max_f w_f |x'_f - x_f| \quad\text{subject to}\quad \arg\max_c F_c(x') \ne y

    The ensemble is constant on boxes, so the minimum is one of finitely many radii: the distances to the thresholds. A
    bisection over them decides each radius by a mixed-integer programme in the paper's variables, restricted to what
    the radius can reach: one binary per predicate :math:`x_f \le \theta`, ordered along each feature, and one number
    in [0, 1] per leaf, one leaf per tree, tied to the predicates on its path. It maximises the rival's lead. Deciding
    by radius instead of minimising the radius in one programme, as the paper does, keeps every programme small and
    leaves no constraint on the lead for the solver's tolerances to blur.

    Untargeted, the result is the smallest over all rival classes. Ties fall as in `TreeEnsemble.labels`. Features that
    the label does not need stay as they were, as do missing values (NaN). The others hold numbers of the ensemble's
    own input precision, on the right side of every threshold, and the ensemble itself has classified the point.

    Args:
        ensemble: the trees.
        x: one sample, shape (d,).
        y: its true class, as an index; a sample that the ensemble gets wrong already has distance 0.
        target: the class to reach; None for any class but `y`.
        weights: positive price of a unit of change, shape (d,) or a scalar; infinite forbids the change.
        bounds: lowest and highest value of each feature, each of shape (d,) or a scalar; x must lie within.
        time_limit: seconds for the whole search; None for no limit.
        tolerance: a lead smaller than this fraction of the largest step that a leaf makes may be taken for a tie.

    Returns:
        The point with its distance, a lower bound, and whether the two have met.

    Raises:
        InputError: a wrong shape or class, a sample outside the bounds, or weights that are not positive.

    References:
        Kantchelian, Tygar, Joseph. Evasion and Hardening of Tree Ensemble Classifiers. ICML 2016.
    """
    _check(ensemble, y, target, time_limit, tolerance)
    start = standpoint(ensemble, x, weights, bounds)
    label = int(ensemble.labels(start.x[None])[0])
    if label == target or (target is None and label != y):
        return Minimal(start.x.copy(), 0.0, "optimal", 0.0, label)
    deadline = None if time_limit is None else time.monotonic() + time_limit
    others = [c for c in range(ensemble.n_classes) if c != (y if target is None else target)]
    contests = [(rival, [y]) for rival in others] if target is None else [(target, others)]
    searches = [_Search(start, rival, losers, y, target, tolerance, deadline) for rival, losers in contests]
    best, distance = None, np.inf
    for search in sorted(searches, key=lambda search: search.bound):
        point = search.run(below=distance)
        if point is not None:
            best, distance = point, start.distance(point)
    bound = min(distance, *(search.bound for search in searches))
    status: Status = "limit" if bound < distance else "infeasible" if best is None else "optimal"
    if best is None:
        return Minimal(None, distance, status, bound, label)
    best = _restored(start, best, y, target)
    return Minimal(best, start.distance(best), status, bound, int(ensemble.labels(best[None])[0]))


def _restored(start: Standpoint, point: Floats, y: int, target: int | None) -> Floats:
    """Give back every feature, the least changed first, that the label does not need: the lead was maximised."""
    changed = np.flatnonzero(np.abs(point - start.x) > 0)
    for feature in changed[np.argsort(np.abs(point - start.x)[changed], kind="stable")]:
        trial = point.copy()
        trial[feature] = start.x[feature]
        if _wanted(start, trial, y, target):
            point = trial
    return point


def _wanted(start: Standpoint, point: Floats, y: int, target: int | None) -> bool:
    label = int(start.cells.ensemble.labels(point[None])[0])
    return label != y if target is None else label == target


def _check(ensemble: TreeEnsemble, y: int, target: int | None, time_limit: float | None, tolerance: float) -> None:
    last = ensemble.n_classes - 1
    for name, given in (("y", y), ("target", target)):
        if given is not None and not 0 <= given <= last:
            raise InputError(f"{name} is the index of a class, from 0 to {last}; got {given}.")
    if target is not None and target == y:
        raise InputError(f"the target {target} is the true class itself; name another class.")
    if not 0 < tolerance <= 1e-3:
        raise InputError(f"the tolerance is a small fraction, above 0 and at most 0.001; got {tolerance}.")
    if time_limit is not None and not time_limit >= 0:
        raise InputError(f"the time limit is in seconds, 0 or more, or None; got {time_limit}.")


@dataclass(eq=False)
class _Search:
    """Bisection over the radii for one rival class; `bound` is what has been proved so far."""

    start: Standpoint
    rival: int
    losers: list[int]  # the classes that the rival must beat
    y: int
    target: int | None
    tolerance: float
    deadline: float | None
    unit: float = field(init=False)  # the largest step of a leaf: what the tolerance is a fraction of
    needs: tuple[float, ...] = field(init=False)  # the lead that the rival needs over each loser
    bound: float = field(init=False)

    def __post_init__(self) -> None:
        """Set the scale of the leads, and the bound that needs no programme."""
        grid = self.start.cells
        leads = [grid.gain[grid.leaves, self.rival] - grid.gain[grid.leaves, loser] for loser in self.losers]
        self.unit = float(np.abs(leads).max()) or 1.0
        # the lower class wins a tie (unless zero wins), so only a rival of higher index needs a lead of its own
        loses_tie = [(self.rival > loser) != grid.ensemble.zero_wins for loser in self.losers]
        self.needs = tuple(self.unit * self.tolerance if loses else 0.0 for loses in loses_tie)
        gaps = [grid.base[self.rival] - grid.base[loser] for loser in self.losers]
        self.bound = max(self._sum_bound(lead, gap) for lead, gap in zip(leads, gaps, strict=True))

    def _sum_bound(self, lead: Floats, gap: float) -> float:
        """Find the least radius at which the trees' best leaves, each chosen for itself, make up for the gap."""
        grid = self.start.cells
        reach, tree = self.start.reach[grid.leaves], grid.tree[grid.leaves]
        radii = np.unique(reach[np.isfinite(reach)])
        low, high = 0, radii.size
        while low < high:
            middle = (low + high) // 2
            inside = reach <= radii[middle]
            best = np.full(grid.ensemble.n_trees, -np.inf)
            np.maximum.at(best, tree[inside], lead[inside])
            enough = best.sum() + gap >= -self.unit * self.tolerance
            low, high = (low, middle) if enough else (middle + 1, high)
        return float(radii[low]) if low < radii.size else np.inf

    def run(self, below: float) -> Floats | None:
        """Search the radii from `bound` up to, not including, `below`; return the closest point and raise `bound`."""
        cost = self.start.cost
        radii = np.unique(cost[np.isfinite(cost) & (cost >= self.bound) & (cost < below)])
        low, high, step = 0, int(radii.size), 1
        best: Floats | None = None
        while low < high:
            self.bound = float(radii[low])
            middle = min(low + step, high) - 1 if best is None else (low + high - 1) // 2
            decided, point = self._decide(float(radii[middle]))
            if point is not None:
                best, high = point, int(np.searchsorted(radii, self.start.distance(point)))
            elif decided:
                low, step = middle + 1, step * _GALLOP
            else:
                return best
        self.bound = max(self.bound, below) if best is None else self.start.distance(best)
        return best

    def _decide(self, radius: float) -> tuple[bool, Floats | None]:
        """Say whether the radius could be decided and, if it holds a point with the wanted label, which."""
        programme = _Programme(self.start, radius)
        if not programme.leaves.size:
            return True, None
        for loser, need in zip(self.losers, self.needs, strict=True):
            programme.maximise_lead(self.rival, loser, need, _ROW_SCALE / self.unit)
        for _ in range(_MAX_CUTS):
            remaining = None if self.deadline is None else self.deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return False, None
            finished, lead, changed = programme.solve(remaining)
            if changed is None:
                return finished, None
            leaves = self.start.cells.ensemble.apply(changed[None])[0]
            point = self.start.nearest(leaves)
            if _wanted(self.start, point, self.y, self.target):
                return True, point
            if not finished or lead < -self.tolerance / 2 * _ROW_SCALE:
                return finished, None
            programme.forbid(leaves)  # a win by rounding alone; the next best tuple may be a true one
        return False, None


class _Programme:
    """The mixed-integer programme of one radius: how far ahead can a rival be on leaves that one point can reach?

    The variables are a binary per predicate that the radius can flip, a number in [0, 1] per leaf of each tree that
    the radius leaves open, and the lead z, which is maximised. z lives in a window around 0: below it a radius is lost
    and above it won, so that the solver spends no time on how much; the window is wide against the solver's
    tolerances, so that they cannot decide.
    """

    def __init__(self, start: Standpoint, radius: float) -> None:
        grid = start.cells
        self.start = start
        self.near = (start.reach <= radius) & (grid.tree >= 0)
        leaves = grid.leaves[self.near[grid.leaves]]
        single = np.bincount(grid.tree[leaves], minlength=grid.ensemble.n_trees)[grid.tree[leaves]] == 1
        self.settled, self.leaves = leaves[single], leaves[~single]
        self.window = _ROW_SCALE * max(1e-3, 1e-5 * grid.ensemble.n_trees)
        self.predicates: Ints = np.empty(0, dtype=np.int64)
        self._entries: list[tuple[Ints, Ints, Floats]] = []
        self._limits: list[tuple[Floats, Floats]] = []
        self._rows = 0
        if self.leaves.size:
            self._tie_leaves_to_predicates()

    def _add(
        self, low: ArrayLike, high: ArrayLike, count: int, *entries: tuple[ArrayLike, ArrayLike, ArrayLike]
    ) -> None:
        """Add `count` rows, low <= row <= high, from (row, column, coefficient) triples."""
        for rows, columns, coefficients in entries:
            row, column, number = np.broadcast_arrays(np.asarray(rows) + self._rows, columns, coefficients)
            self._entries.append((row, column, number.astype(np.float64)))
        self._limits.append(
            (np.broadcast_to(low, count).astype(np.float64), np.broadcast_to(high, count).astype(np.float64))
        )
        self._rows += count

    def _tie_leaves_to_predicates(self) -> None:
        """In each tree, the leaves left of a predicate sum to at most p, those right of it to 1 - p, and all to 1."""
        rows, (row, leaf) = self._forks()
        grid = self.start.cells
        self.predicates, predicate = np.unique((rows // 2) % self.start.cost.size, return_inverse=True)
        first_leaf, left = self.predicates.size, rows % 2 == 1
        sides = np.arange(rows.size), predicate, np.where(left, -1.0, 1.0)
        self._add(-np.inf, np.where(left, 0.0, 1.0), rows.size, (row, first_leaf + leaf, 1.0), sides)
        trees, tree = np.unique(grid.tree[self.leaves], return_inverse=True)
        self._add(1.0, 1.0, trees.size, (tree, first_leaf + np.arange(self.leaves.size), 1.0))
        lower = np.flatnonzero(np.diff(grid.feature[self.predicates]) == 0)  # its cut is below that of the next
        order = np.arange(lower.size)
        self._add(-np.inf, 0.0, lower.size, (order, lower, 1.0), (order, lower + 1, -1.0))

    def _forks(self) -> tuple[Ints, tuple[Ints, Ints]]:
        """Climb from every leaf to its root and note on which side of which open predicate it lies.

        Returns:
            The distinct (tree, predicate, side) keys, side 1 for left, and the pairs (position of a key, leaf) that
            hold.
        """
        grid, ensemble, n_predicates = self.start.cells, self.start.cells.ensemble, self.start.cost.size
        inner = np.flatnonzero(self.near & (ensemble.feature >= 0))
        open_fork = np.zeros(self.near.size, dtype=bool)
        open_fork[inner] = self.near[ensemble.left[inner]] & self.near[ensemble.right[inner]]
        node, leaf = self.leaves, np.arange(self.leaves.size)
        pairs: list[NDArray[np.int64]] = []
        while node.size:
            up = grid.parent[node] >= 0
            node, leaf = node[up], leaf[up]
            parent = grid.parent[node]
            key = (grid.tree[parent] * n_predicates + grid.predicate[parent]) * 2 + grid.is_left[node]
            pairs.append(np.stack([key, leaf], axis=1)[open_fork[parent]])
            node = parent
        distinct = np.unique(np.concatenate(pairs), axis=0)
        keys, row = np.unique(distinct[:, 0], return_inverse=True)
        return keys, (row, distinct[:, 1])

    def maximise_lead(self, rival: int, loser: int, need: float, scale: float) -> None:
        """Hold z below the rival's lead over one loser, less the lead that it needs."""
        grid = self.start.cells
        gap = grid.gain[self.settled].sum(axis=0) + grid.base
        lead = grid.gain[self.leaves, rival] - grid.gain[self.leaves, loser]
        columns = self.predicates.size + np.arange(self.leaves.size + 1)
        self._add((need - gap[rival] + gap[loser]) * scale, np.inf, 1, (0, columns, np.append(lead * scale, -1.0)))

    def forbid(self, leaves: Ints) -> None:
        """Exclude one tuple of leaves, given as one node per tree."""
        columns = self.predicates.size + np.flatnonzero(np.isin(self.leaves, leaves))
        self._add(-np.inf, columns.size - 1.0, 1, (0, columns, 1.0))

    def solve(self, seconds: float | None) -> tuple[bool, float, Floats | None]:
        """Solve; return whether the answer is final, the lead, and the sample moved accordingly (None: no solution)."""
        p, leaves = self.predicates.size, self.leaves.size
        row, column, coefficient = (np.concatenate(part) for part in zip(*self._entries, strict=True))
        matrix = csr_array((coefficient, (row, column)), shape=(self._rows, p + leaves + 1))
        low, high = (np.concatenate(part) for part in zip(*self._limits, strict=True))
        zeros, ones = np.zeros(p + leaves), np.ones(p + leaves)
        options: dict[str, Any] = {"mip_rel_gap": 0.0} | ({} if seconds is None else {"time_limit": seconds})
        answer = milp(
            np.append(zeros, -_OBJECTIVE_SCALE),
            integrality=np.concatenate([np.ones(p), np.zeros(leaves + 1)]),
            bounds=Bounds(np.append(zeros, -self.window), np.append(ones, self.window)),
            constraints=LinearConstraint(matrix, low, high),
            options=options,
        )
        finished = answer.status in (0, 2)  # optimal or infeasible
        if answer.x is None:
            return finished, -np.inf, None
        return finished, float(answer.x[-1]), self._moved(answer.x[:p] > 0.5)

    def _moved(self, holds: Bools) -> Floats:
        """Move the sample to the near side of the farthest predicate that changed, feature by feature."""
        start, grid = self.start, self.start.cells
        left, feature = start.went_left[self.predicates], grid.feature[self.predicates]
        point = start.x.copy()
        falls, rises = holds & ~left, ~holds & left
        np.minimum.at(point, feature[falls], grid.cut[self.predicates[falls]])
        np.maximum.at(point, feature[rises], grid.after[self.predicates[rises]])
        return point
