"""The report as plain data, for programs: everything that the page tells, in JSON, pictures apart."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparring.evaluation.findings import checks
from sparring.evaluation.reading import Audit
from sparring.report.again import again
from sparring.report.words import claim, headline

FORMAT, VERSION = "sparring.report", 1


def to_json(audit: Audit) -> str:
    """The report as one JSON object; what is not a number (no value, nothing found) is null."""
    return json.dumps(plain(audit), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def plain(audit: Audit) -> dict[str, Any]:
    """The report as nested plain data."""
    evidence, repeat, law = audit.evidence, again(audit), audit.slope
    names = titles()
    told: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "run": str(evidence.folder),
        "complete": audit.complete,
        "headline": headline(audit),
        "claim": claim(audit),
        "verdict": audit.verdict,
        "samples": audit.n,
        "clean_accuracy": audit.clean_accuracy,
        "clean_interval": audit.clean_interval,
        "robust_accuracy": audit.robust_accuracy,
        "interval": audit.interval,
        "attack_success_rate": audit.attack_success_rate,
        "threat": {**audit.plan.threat.table(), "text": str(audit.plan.threat)},
        "attacks": audit.attacks,
        "classes": audit.per_class,
        "checks": [{**dataclasses.asdict(f), "title": names.get(f.number, f.name)} for f in audit.findings],
        "curve": audit.curve().table(),
        "query_curves": {label: curve.table() for label, curve in audit.query_curves().items()},
        "cost_curve": audit.cost_curve().table(),
        "slope": law,
        "failures": audit.failures(),
        "close_calls": audit.close_calls(),
        "cost": {**dataclasses.asdict(audit.cost), "checks_share": audit.cost.checks_share},
        "sessions": evidence.sessions,
        "again": {**dataclasses.asdict(repeat), "commands": [list(pair) for pair in repeat.commands]},
        "header": evidence.header,
    }
    cleaned: dict[str, Any] = _clean(told)
    return cleaned


def titles() -> dict[int, str]:
    """What each registered check says must hold, by its number."""
    return {known.number: known.title for known in [*checks("before"), *checks("after")]}


def _clean(value: Any) -> Any:
    """Values that JSON has: records and mappings become objects, NaN and infinity null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(k): _clean(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_clean(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
