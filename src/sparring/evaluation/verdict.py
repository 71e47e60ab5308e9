"""The verdict: robust, broken or inconclusive about a claim, at a stated confidence, with the next thing to try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sparring.evaluation.findings import Finding
from sparring.evaluation.intervals import Interval, samples_needed


@dataclass(frozen=True)
class Verdict:
    """What an audit concludes.

    Attributes:
        result: "robust": the interval of the robust accuracy lies at or above the claim, and no check spoils that;
            "broken": it lies below the claim; "inconclusive": neither, or the evaluation itself is in doubt.
        claim: the robust accuracy that robust means.
        confidence: of the interval.
        sentence: the whole of it in one sentence.
        reasons: what stands in the way of a clear verdict, one sentence each.
        next_step: what to do or try next.
    """

    result: Literal["robust", "broken", "inconclusive"]
    claim: float
    confidence: float
    sentence: str
    reasons: tuple[str, ...]
    next_step: str


@dataclass(frozen=True)
class Standing:
    """What a verdict is made from: the robust accuracy, its interval, over how many samples, within which threat."""

    accuracy: float
    interval: Interval
    n: int
    threat: str
    complete: bool
    preset: str


def judge(standing: Standing, claim: float, findings: Sequence[Finding]) -> Verdict:
    """The verdict about the claim "robust accuracy is at least `claim`".

    A number below the claim stands even where a check says that an attack was weak: a stronger one would only lower
    it. A check that doubts the whole evaluation (wrong inputs, wrong labels, outside the threat model) spoils every
    verdict.
    """
    failed = [f for f in findings if f.result == "fail"]
    doubts = [f for f in failed if f.taints == "any"]
    weak = [f for f in failed if f.taints == "robust"]
    interval = standing.interval
    reasons = [_told(f) for f in doubts]
    step = doubts[0].next_step if doubts else ""
    result: Literal["robust", "broken", "inconclusive"] = "inconclusive"
    if not standing.complete:
        reasons.append("The audit is unfinished, so not every attack has met every sample.")
        step = step or "Finish it: sparring resume RUN"
    elif doubts:
        pass
    elif interval.hi < claim:
        result, step = "broken", "Look at the failures in the report, and keep them as tests: sparring regress RUN"
    elif interval.lo < claim:
        needed = samples_needed(standing.accuracy, claim, interval.confidence)
        reasons.append(f"The interval {interval} holds the claim of {claim:.0%}: {standing.n:,} samples cannot tell.")
        more = (
            f"Audit about {needed:,} samples."
            if needed
            else "The rate equals the claim; no number of samples tells them apart."
        )
        step = weak[0].next_step if weak else more
    elif weak:
        reasons += [_told(f) for f in weak]
        step = weak[0].next_step
    else:
        result = "robust"
        step = (
            "Nothing is left in this toolkit but attacks made for this very defence."
            if standing.preset == "thorough"
            else "Try the thorough preset: the same command with --preset thorough"
        )
    sentence = (
        f"{_WORDS[result]}: {standing.accuracy:.1%} of {standing.n:,} samples stay right under the attacks "
        f"({interval.confidence:.0%} interval {interval.lo:.1%} to {interval.hi:.1%}; {standing.threat}), "
        f"against a claim of at least {claim:.0%}."
    )
    return Verdict(result, claim, interval.confidence, sentence, tuple(reasons), step)


def _told(finding: Finding) -> str:
    return f"Check {finding.number} ({finding.name}) failed: {finding.says}"


_WORDS = {"robust": "Robust", "broken": "Broken", "inconclusive": "Inconclusive"}
