"""Two runs side by side: paired per sample with McNemar's exact test, and whether two runs hold the same evidence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparring.core.errors import InputError
from sparring.evaluation.evidence import Evidence
from sparring.evaluation.intervals import mcnemar
from sparring.evaluation.reading import Audit
from sparring.evaluation.shards import read_shard
from sparring.evaluation.store import INPUTS_FOLDER


@dataclass(frozen=True)
class Comparison:
    """Two audits on the samples that they share.

    Attributes:
        shared: samples in both, by content.
        both, only_a, only_b, neither: how many of them stand in both, in one alone, in none.
        robust_a, robust_b: the robust accuracies over the shared samples.
        clean_a, clean_b: and the clean ones.
        p_value: of McNemar's exact two-sided test that the robust accuracies are equal.
        fell, rose: positions (in A and in B) of samples that stand in A alone, and in B alone.
        notes: what makes the two hard to compare: other threats, other samples.
    """

    shared: int
    both: int
    only_a: int
    only_b: int
    neither: int
    robust_a: float
    robust_b: float
    clean_a: float
    clean_b: float
    p_value: float
    fell: tuple[tuple[int, int], ...]
    rose: tuple[tuple[int, int], ...]
    notes: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """What it comes to, in one sentence."""
        change = self.robust_b - self.robust_a
        how = "no change" if change == 0 else f"{abs(change) * 100:.1f} points {'more' if change > 0 else 'less'}"
        return (
            f"{self.robust_a:.1%} against {self.robust_b:.1%} robust on {self.shared:,} shared samples: {how} "
            f"({self.only_a:,} fell, {self.only_b:,} rose; McNemar's exact p = {self.p_value:.3g})."
        )


def compare_runs(a: Audit, b: Audit) -> Comparison:
    """Pair two audits sample by sample; equal contents are paired in data order.

    Raises:
        InputError: they share no sample.
    """
    left, right = _keys(a.evidence), _keys(b.evidence)
    shared = [key for key in left if key in right]
    if not shared:
        raise InputError(
            f"{str(a.evidence.folder)!r} and {str(b.evidence.folder)!r} share no sample; audit the same data"
        )
    i, j = np.array([left[key] for key in shared]), np.array([right[key] for key in shared])
    stands_a, stands_b = a.standing[i], b.standing[j]
    only_a, only_b = stands_a & ~stands_b, stands_b & ~stands_a
    notes = []
    for what, one, other in (
        ("threats", a.plan.threat, b.plan.threat),
        ("attacks", a.plan.attacks, b.plan.attacks),
        ("seeds", a.plan.seed, b.plan.seed),
    ):
        if one != other:
            notes.append(f"the {what} differ" + (f": {one} and {other}" if what != "attacks" else ""))
    for name, audit in (("the first", a), ("the second", b)):
        if audit.n > len(shared):
            notes.append(f"{audit.n - len(shared):,} samples of {name} are not in the other")
        if not audit.complete:
            notes.append(f"{name} is unfinished")
    place = [(int(p), int(q)) for p, q in zip(_positions(a, i), _positions(b, j), strict=True)]
    return Comparison(
        shared=len(shared),
        both=int((stands_a & stands_b).sum()),
        only_a=int(only_a.sum()),
        only_b=int(only_b.sum()),
        neither=int((~stands_a & ~stands_b).sum()),
        robust_a=float(stands_a.mean()),
        robust_b=float(stands_b.mean()),
        clean_a=float(a.evidence.samples["correct"][i].mean()),
        clean_b=float(b.evidence.samples["correct"][j].mean()),
        p_value=mcnemar(int(only_a.sum()), int(only_b.sum())),
        fell=tuple(place[k] for k in np.flatnonzero(only_a)),
        rose=tuple(place[k] for k in np.flatnonzero(only_b)),
        notes=tuple(notes),
    )


def differences(a: Evidence, b: Evidence, *, inputs: bool = True) -> list[str]:
    """What differs between the evidence of two runs of one plan, in words; empty where all is equal, timings apart.

    Args:
        a, b: the runs, each on the same samples in the same order.
        inputs: compare every bit of the adversarial inputs, distances and backward passes as well; False compares
            outcomes, queries, forward passes and answers alone. Bits hold at equal batch shapes and thread counts only,
            and a backward pass is saved where the last samples of a batch fall together.
    """
    found = []
    if a.header["plan_digest"] != b.header["plan_digest"]:
        found.append("the plans differ")
    found += [
        f"the {k} differs" for k in ("victim", "data") if a.header[k]["fingerprint"] != b.header[k]["fingerprint"]
    ]
    free = set() if inputs else {"distance", "radius", "confidence", "backwards"}
    for table, one, other in (("samples", a.samples, b.samples), ("evidence", a.attempts, b.attempts)):
        for column in one:
            if column in free:
                continue
            if not np.array_equal(one[column], other[column], equal_nan=one[column].dtype.kind == "f"):
                found.append(f"{table}: {column} differs")
    kept: tuple[str, ...] = (
        "step",
        "shard",
        "label",
        "role",
        "eps",
        "met",
        "broke",
        "forwards",
        "queries",
        "file",
    )
    kept += ("backwards", "digest") if inputs else ()
    if [[u[k] for k in kept] for u in a.units] != [[u[k] for k in kept] for u in b.units]:
        found.append("units differ")
    if inputs:
        for unit in a.units:
            if unit["file"] and not _same_inputs(unit, a, b):
                found.append(f"{unit['file']} differs")
    return found


def _same_inputs(unit: dict[str, Any], a: Evidence, b: Evidence) -> bool:
    import torch

    one, other = (read_shard(e.folder / INPUTS_FOLDER / unit["file"], unit["digest"]) for e in (a, b))
    same = all(torch.equal(one[k], other[k]) if isinstance(one[k], torch.Tensor) else one[k] == other[k] for k in one)
    return same


def _keys(evidence: Evidence) -> dict[tuple[int, int], int]:
    """Each sample's place in the columns by (content id, how many equal ones came before it)."""
    seen: Counter[int] = Counter()
    keys = {}
    for place, sample in enumerate(evidence.samples["id"].tolist()):
        keys[sample, seen[sample]] = place
        seen[sample] += 1
    return keys


def _positions(audit: Audit, places: NDArray[np.int64]) -> NDArray[np.int64]:
    return audit.evidence.samples["sample"][places]
