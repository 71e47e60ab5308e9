"""Exact statistics: Clopper-Pearson intervals, McNemar's test, how many samples a claim needs, a power law's slope."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparring.core.errors import InputError


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval of a rate.

    Attributes:
        lo, hi: its ends, between 0 and 1.
        confidence: 0.95 for 95%.
    """

    lo: float
    hi: float
    confidence: float = 0.95

    def __str__(self) -> str:
        return f"[{self.lo:.1%}, {self.hi:.1%}]"


@dataclass(frozen=True)
class PowerLaw:
    """error = exp(intercept) * eps ** slope, fitted on a log-log plot.

    Attributes:
        slope: about 1 for many networks (Cubuk et al. 2017).
        intercept: log error at eps 1.
        r2: how much of the variance the line explains.
        points: how many radii it rests on.
        largest: the largest eps among them.
    """

    slope: float
    intercept: float
    r2: float
    points: int
    largest: float


def widened(eps: float) -> float:
    """A radius with room for the rounding of a distance: what lies within it lies within eps."""
    return eps * (1 + 1e-6)


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """The exact interval of a rate: the rates whose binomial tails beyond what was seen are at least (1 - confidence)
    / 2.

    Args:
        successes: how many of n.
        n: trials; 0 gives [0, 1].
        confidence: of the interval.

    Raises:
        InputError: successes outside 0..n.

    Paper:
        Clopper and Pearson 1934, The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial.
    """
    from scipy.special import betaincinv

    if not 0 <= successes <= n:
        raise InputError(f"{successes} successes came for {n} trials; a number from 0 to {n} is needed")
    if n == 0:
        return Interval(0.0, 1.0, confidence)
    tail = (1 - confidence) / 2
    lo = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    hi = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return Interval(lo, hi, confidence)


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p-value that two paired rates are equal.

    Given the pairs that differ, the number that favours A is binomial with chance 1/2.

    Args:
        only_a: pairs in which A alone holds.
        only_b: pairs in which B alone holds.

    Paper:
        McNemar 1947, Note on the Sampling Error of the Difference between Correlated Proportions or Percentages.
    """
    from scipy.stats import binomtest

    differ = only_a + only_b
    return 1.0 if differ == 0 else float(binomtest(only_a, differ, 0.5).pvalue)


def samples_needed(rate: float, claim: float, confidence: float = 0.95) -> int | None:
    """About how many samples would tell an observed rate from a claimed one, if the rate stays as it is.

    The least n (within a tenth) whose exact interval at that rate leaves the claim out; None where that takes more
    than a million.
    """

    def apart(n: int) -> bool:
        found = clopper_pearson(round(rate * n), n, confidence)
        return claim < found.lo or claim > found.hi

    n = 8
    while not apart(n):
        n = math.ceil(n * 1.1)
        if n > 1_000_000:
            return None
    return n


def power_law(eps: NDArray[np.float64], error: NDArray[np.float64]) -> PowerLaw | None:
    """The least-squares line through (log eps, log error); None below three distinct points.

    Args:
        eps: radii (m,), positive.
        error: the adversarial error at each, (m,), positive.

    Paper:
        Cubuk, Zoph, Schoenholz and Le 2017, Intriguing Properties of Adversarial Examples, arXiv:1711.02846.
    """
    good = (eps > 0) & (error > 0)
    x, y = np.log(eps[good]), np.log(error[good])
    if len(np.unique(x)) < 3:
        return None
    slope, intercept = np.polyfit(x, y, 1)
    left = float(np.square(y - (slope * x + intercept)).sum())
    whole = float(np.square(y - y.mean()).sum())
    r2 = 1.0 if whole == 0 else 1 - left / whole
    return PowerLaw(float(slope), float(intercept), r2, len(x), float(eps[good].max()))
