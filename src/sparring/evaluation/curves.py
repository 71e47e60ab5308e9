"""Curves of an audit: accuracy against eps, against queries and against work, each with its exact interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparring.core.threat import Access
from sparring.evaluation.evidence import Evidence
from sparring.evaluation.intervals import PowerLaw, power_law, widened

_MOST_POINTS = 256
# The slope at small eps: at least so many broken samples, at most this share of those that were right at first.
_FEWEST, _SMALL = 3, 0.3


@dataclass(frozen=True, eq=False)
class Curve:
    """Accuracy over all samples at each point.

    Attributes:
        label: what runs along x: "eps", "queries", "passes".
        x: ascending, (m,).
        accuracy: the share of all samples right at first and not broken by x, (m,).
        lo, hi: its exact interval, (m,).
    """

    label: str
    x: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    lo: NDArray[np.float64]
    hi: NDArray[np.float64]

    def table(self) -> dict[str, Any]:
        """Plain data, one list per column."""
        return {"label": self.label, **{k: getattr(self, k).tolist() for k in ("x", "accuracy", "lo", "hi")}}


def survival(label: str, fell: NDArray[np.float64], confidence: float, x: NDArray[np.float64] | None = None) -> Curve:
    """The share of n samples that have not fallen by each x.

    Args:
        label: what runs along x.
        fell: where each sample fell, (n,): 0 for wrong from the start, inf for never.
        confidence: of the interval.
        x: points; None takes 0 and every place where a sample fell, thinned evenly above 256.
    """
    from scipy.special import betaincinv

    fell = np.sort(fell)
    if x is None:
        places = np.unique(fell[np.isfinite(fell) & (fell > 0)])
        apart = places[1:] > widened(1.0) * places[:-1]
        places = np.concatenate([places[:-1][apart], places[-1:]])  # those that rounding alone tells apart are one
        if len(places) > _MOST_POINTS:
            places = places[np.unique(np.linspace(0, len(places) - 1, _MOST_POINTS).round().astype(int))]
        x = np.concatenate([[0.0], places])
    n = len(fell)
    standing = n - np.searchsorted(fell, widened(1.0) * x, side="right")
    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore"):
        lo = np.where(standing > 0, betaincinv(standing, n - standing + 1, tail), 0.0)
        hi = np.where(standing < n, betaincinv(standing + 1, n - standing, 1 - tail), 1.0)
    return Curve(label, x, standing / max(1, n), lo, hi)


def eps_curve(evidence: Evidence, confidence: float, eps: NDArray[np.float64] | None = None) -> Curve:
    """Accuracy against eps by everything that the run found, smallest changes and balls alike."""
    if eps is None:
        radii = evidence.radius()
        asked = [s.eps for s in evidence.steps if s.eps is not None]
        found = survival("eps", radii, confidence)
        eps = np.unique(np.concatenate([found.x, asked]))
    return survival("eps", evidence.radius(), confidence, eps)


def query_curves(evidence: Evidence, confidence: float) -> dict[str, Curve]:
    """Accuracy against queries, one curve for each attack at the audit's eps that only asks the victim.

    Each begins with the samples that were still standing when that attack began.
    """
    found = {}
    n = len(evidence.samples["sample"])
    for step in evidence.steps:
        if step.role != "main" or step.spec is None or step.spec.card.access in (Access.GRADIENTS, Access.NOTHING):
            continue
        rows = evidence.attempt(step.index)
        if not len(rows["sample"]):
            continue
        broken = np.isfinite(rows["radius"]) & (rows["radius"] <= widened(step.eps or np.inf))
        fell = np.where(broken, np.maximum(rows["queries"], 1), np.inf)
        before = np.zeros(n - len(fell))
        found[step.label] = survival("queries", np.concatenate([before, fell]), confidence)
    return found


def cost_curve(evidence: Evidence, confidence: float) -> Curve:
    """Accuracy against the work spent on a sample, in forward plus backward passes, attack after attack."""
    count = len(evidence.samples["sample"])
    spent, breaker = np.zeros(count), evidence.breaker(evidence.plan.threat.eps or np.inf)
    fell = np.where(breaker == 0, 0.0, np.inf)
    for step in evidence.steps:
        if step.role != "main":
            continue
        rows = evidence.attempt(step.index)
        place = np.searchsorted(evidence.samples["sample"], rows["sample"])
        spent[place] += rows["forwards"] + rows["backwards"]
        here = breaker == step.index
        fell[here] = np.maximum(spent[here], 1)
    return survival("passes", fell, confidence)


def slope(evidence: Evidence) -> PowerLaw | None:
    """The exponent of the adversarial error at small eps, over the samples that were right at first.

    Twelve radii, evenly spaced in log eps, from where three samples are broken to where 30% are. None without a
    search for the smallest change, or where too few broke.
    """
    if not any(s.role == "curve" and s.eps is None for s in evidence.steps):
        return None
    radii = np.sort(evidence.radius()[evidence.samples["correct"]])
    most = int(_SMALL * len(radii))
    if most <= _FEWEST or not np.isfinite(radii[most - 1]) or radii[_FEWEST - 1] <= 0:
        return None
    eps = np.geomspace(radii[_FEWEST - 1], radii[most - 1], 12)
    error = np.searchsorted(radii, eps * (1 + 1e-9), side="right") / len(radii)
    return power_law(eps, error)
