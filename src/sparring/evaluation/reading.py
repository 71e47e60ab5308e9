"""What an audit says: the numbers, curves and the verdict that follow from a run's evidence."""

from __future__ import annotations

import importlib
import math
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparring.core.errors import ThreatError
from sparring.evaluation import curves
from sparring.evaluation.evidence import Evidence
from sparring.evaluation.findings import Finding
from sparring.evaluation.intervals import Interval, PowerLaw, clopper_pearson
from sparring.evaluation.plan import Plan
from sparring.evaluation.tables import AttackRow, Case, ClassRow, Cost
from sparring.evaluation.verdict import Standing, Verdict, judge


class Audit:
    """An audit's evidence, read under a claim and a confidence.

    Args:
        evidence: a snapshot of the run folder.
        claim: robust means: robust accuracy of at least this; None takes the plan's.
        confidence: of every interval; None takes the plan's.
    """

    def __init__(self, evidence: Evidence, *, claim: float | None = None, confidence: float | None = None) -> None:
        self.evidence = evidence
        self.claim = evidence.plan.claim if claim is None else claim
        self.confidence = evidence.plan.confidence if confidence is None else confidence

    @classmethod
    def open(cls, folder: str | Path, *, claim: float | None = None, confidence: float | None = None) -> Audit:
        """The audit in a run folder, finished or not.

        Raises:
            StoreError: no run folder, or a damaged one.
        """
        return cls(Evidence.open(folder), claim=claim, confidence=confidence)

    # -- the headline --------------------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """What was to be gathered."""
        return self.evidence.plan

    @property
    def complete(self) -> bool:
        """Whether every attack has met every sample that it had to."""
        return self.evidence.complete

    @property
    def n(self) -> int:
        """Samples seen by the clean pass: all of them once the first step is done."""
        return len(self.evidence.samples["sample"])

    @property
    def eps(self) -> float:
        """The radius of the audit.

        Raises:
            ThreatError: the threat has none.
        """
        eps = self.plan.threat.eps
        if eps is None:
            raise ThreatError(f"the threat {self.plan.threat} has no radius; audit.curve() holds what is known")
        return eps

    @property
    def clean_accuracy(self) -> float:
        """The share of all samples that are right before any change."""
        return float(self.evidence.samples["correct"].mean()) if self.n else math.nan

    @property
    def clean_interval(self) -> Interval:
        """The exact interval of `clean_accuracy`."""
        return self._interval(int(self.evidence.samples["correct"].sum()), self.n)

    @cached_property
    def standing(self) -> NDArray[np.bool_]:
        """Which samples were right at first and no step broke within eps, (n,)."""
        return np.equal(self.evidence.breaker(self.eps), -1)

    @property
    def robust_accuracy(self) -> float:
        """The share of all samples that are right before any change and that nothing broke within eps."""
        return float(self.standing.mean()) if self.n else math.nan

    @property
    def interval(self) -> Interval:
        """The exact interval of `robust_accuracy`."""
        return self._interval(int(self.standing.sum()), self.n)

    @property
    def attack_success_rate(self) -> float:
        """The share of the samples right at first that something broke within eps."""
        right = int(self.evidence.samples["correct"].sum())
        return 1 - int(self.standing.sum()) / right if right else math.nan

    @property
    def findings(self) -> list[Finding]:
        """What the soundness checks found."""
        return self.evidence.findings

    @property
    def verdict(self) -> Verdict:
        """Robust, broken or inconclusive about the claim."""
        threat = str(self.plan.threat)
        standing = Standing(self.robust_accuracy, self.interval, self.n, threat, self.complete, self.plan.preset)
        return judge(standing, self.claim, self.findings)

    # -- tables --------------------------------------------------------------------------------------------------------

    @property
    def attacks(self) -> list[AttackRow]:
        """What each step added, in order; the clean pass is the first row."""
        breaker = self.evidence.breaker(self.eps)
        rows = []
        for step in self.evidence.steps:
            units = [u for u in self.evidence.units if u["step"] == step.index]
            left = int(((breaker > step.index) | (breaker == -1)).sum())
            rows.append(
                AttackRow(
                    step=step.index,
                    label=step.label,
                    role=step.role,
                    eps=step.eps,
                    met=sum(u["met"] for u in units),
                    broke=int((breaker == step.index).sum()),
                    standing=left,
                    robust_accuracy=left / max(1, self.n),
                    interval=self._interval(left, self.n),
                    forwards=sum(u["forwards"] for u in units),
                    backwards=sum(u["backwards"] for u in units),
                    queries=sum(u["queries"] for u in units),
                    seconds=sum(u["seconds"] for u in units),
                )
            )
        return rows

    @property
    def per_class(self) -> list[ClassRow]:
        """The same numbers for every true class."""
        labels, correct = self.evidence.samples["label"], self.evidence.samples["correct"]
        names = self.evidence.header["victim"].get("labels") or []
        rows = []
        for label in np.unique(labels).tolist():
            mine = labels == label
            left, n = int((self.standing & mine).sum()), int(mine.sum())
            name = names[label] if label < len(names) else str(label)
            rows.append(ClassRow(label, name, n, float(correct[mine].mean()), left / n, self._interval(left, n)))
        return rows

    @property
    def cost(self) -> Cost:
        """Passes, queries and seconds over all steps, and those of the checks."""
        units, findings = self.evidence.units, self.findings
        return Cost(
            forwards=sum(u["forwards"] for u in units),
            backwards=sum(u["backwards"] for u in units),
            queries=sum(u["queries"] for u in units),
            seconds=sum(u["seconds"] for u in units),
            checks_forwards=sum(f.forwards for f in findings),
            checks_backwards=sum(f.backwards for f in findings),
            checks_seconds=sum(f.seconds for f in findings),
        )

    def failures(self) -> list[Case]:
        """The samples broken within eps, the smallest change first."""
        return self._cases(~self.standing & self.evidence.samples["correct"])

    def close_calls(self) -> list[Case]:
        """The samples that stand, for which a larger change is known, the smallest first."""
        return self._cases(self.standing)

    # -- curves --------------------------------------------------------------------------------------------------------

    def curve(self, eps: list[float] | None = None) -> curves.Curve:
        """Accuracy against eps, by everything that was found.

        Args:
            eps: radii; None takes 0, the plan's radii, and those at which samples broke.
        """
        points = None if eps is None else np.sort(np.asarray(eps, dtype=np.float64))
        return curves.eps_curve(self.evidence, self.confidence, points)

    def query_curves(self) -> dict[str, curves.Curve]:
        """Accuracy against queries, for each attack that only asks the victim."""
        return curves.query_curves(self.evidence, self.confidence)

    def cost_curve(self) -> curves.Curve:
        """Accuracy against forward plus backward passes per sample."""
        return curves.cost_curve(self.evidence, self.confidence)

    @property
    def slope(self) -> PowerLaw | None:
        """The exponent of the adversarial error at small eps, or None where too little is known."""
        return curves.slope(self.evidence)

    # -- out of here ---------------------------------------------------------------------------------------------------

    def report(self, path: str | Path) -> Path:
        """Write the report; the suffix chooses the form (.html, .md, .json, .xml for JUnit)."""
        # the report is built on evaluations, so it is looked up by name: this room imports nothing from above
        return importlib.import_module("sparring.report").write_report(self, path)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return (
            f"<Audit: {self.verdict.sentence}>" if self.n else f"<Audit in {str(self.evidence.folder)!r}: nothing yet>"
        )

    # -- inside --------------------------------------------------------------------------------------------------------

    def _interval(self, k: int, n: int) -> Interval:
        return clopper_pearson(k, n, self.confidence)

    def _cases(self, mask: NDArray[np.bool_]) -> list[Case]:
        attempts, samples = self.evidence.attempts, self.evidence.samples
        labels = {step.index: step.label for step in self.evidence.steps}
        rows = np.flatnonzero(attempts["row"] >= 0)
        rows = rows[np.lexsort((attempts["step"][rows], attempts["radius"][rows]))]
        rows = rows[np.sort(np.unique(attempts["sample"][rows], return_index=True)[1])]  # the smallest of each sample
        places = np.searchsorted(samples["sample"], attempts["sample"][rows])
        return [
            Case(
                sample=int(attempts["sample"][row]),
                id=int(samples["id"][place]),
                label=int(samples["label"][place]),
                predicted=int(attempts["predicted"][row]),
                confidence=float(attempts["confidence"][row]),
                radius=float(attempts["radius"][row]),
                step=int(attempts["step"][row]),
                attack=labels[int(attempts["step"][row])],
            )
            for row, place in zip(rows.tolist(), places.tolist(), strict=True)
            if mask[place]
        ]
