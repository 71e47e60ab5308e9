"""Floor 4: an audit, from a plan through units of work and a store to a verdict with its evidence."""

from sparring.evaluation.data import Data
from sparring.evaluation.errors import PlanError, RunMismatchError, StoreError
from sparring.evaluation.evidence import Evidence
from sparring.evaluation.findings import Context, Finding, check
from sparring.evaluation.intervals import Interval, clopper_pearson
from sparring.evaluation.plan import Plan
from sparring.evaluation.reading import Audit
from sparring.evaluation.running import audit, resume
from sparring.evaluation.specs import AttackSpec, Source
from sparring.evaluation.threats import ThreatSpec
from sparring.evaluation.verdict import Verdict

__all__ = [
    "AttackSpec",
    "Audit",
    "Context",
    "Data",
    "Evidence",
    "Finding",
    "Interval",
    "Plan",
    "PlanError",
    "RunMismatchError",
    "Source",
    "StoreError",
    "ThreatSpec",
    "Verdict",
    "audit",
    "check",
    "clopper_pearson",
    "resume",
]
