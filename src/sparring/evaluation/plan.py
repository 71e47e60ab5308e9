"""The plan of an audit: victim, data, threat, attacks, shard size and seed as plain data that hashes, in TOML and back.

A plan says what evidence an audit gathers. How fast it is gathered (batch size, executor) and how it is read
afterwards (claim, confidence) are carried along and are no part of its hash.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sparring.core.errors import LoadError, UnknownNameError
from sparring.evaluation import toml
from sparring.evaluation.errors import PlanError
from sparring.evaluation.specs import AttackSpec, Source
from sparring.evaluation.threats import ThreatSpec

Role = Literal["clean", "main", "curve"]


@dataclass(frozen=True)
class Step:
    """One column of the work: an attack of the plan at its place. Step 0 is the clean pass and has no spec.

    Attributes:
        index: its place in the order, from 0.
        role: "clean", "main" (worst case at the plan's eps) or "curve" (other radii, smallest changes).
        label: its name in the evidence, unique in the plan: "pgd", "pgd-2".
        spec: what to run, None for the clean pass.
        eps: the radius of this step; None where the smallest change is sought.
        seed: of this step's randomness: the plan's seed + index.
    """

    index: int
    role: Role
    label: str
    spec: AttackSpec | None
    eps: float | None
    seed: int


@dataclass(frozen=True)
class Plan:
    """What an audit gathers. Frozen and hashable; equal plans gather equal evidence.

    Attributes:
        threat: what the attacker may do.
        attacks: the attacks at the threat's eps, in order: each meets only the samples that no earlier one broke. Empty
            until the preset is filled in for a victim (`presets.fill`).
        curve: attacks for accuracy against eps, run after them: each has an eps of its own or seeks the smallest
            change.
        victim, data: where they come from.
        shard: samples per unit of work.
        seed: of all randomness.
        checks: whether the soundness checks run.
        with_curve: whether the preset fills in a curve too; no part of the hash, which holds the curve itself.
        surrogates: names of victims that the attacker owns, for the preset's transfer attacks; no part of the hash, which
            holds those attacks.
        preset: the preset that an empty list of attacks is filled from, and a label afterwards.
        batch_size: samples attacked at once; no part of the hash.
        executor: "local" or "ray"; no part of the hash.
        claim: robust means: robust accuracy of at least this; no part of the hash.
        confidence: of every interval; no part of the hash.
    """

    threat: ThreatSpec
    attacks: tuple[AttackSpec, ...] = ()
    curve: tuple[AttackSpec, ...] = ()
    victim: Source = field(default_factory=Source)
    data: Source = field(default_factory=Source)
    shard: int = 256
    seed: int = 0
    checks: bool = True
    with_curve: bool = field(default=True, compare=False)
    surrogates: tuple[str, ...] = field(default=(), compare=False)
    preset: str = field(default="standard", compare=False)
    batch_size: int | None = field(default=None, compare=False)
    executor: str = field(default="local", compare=False)
    claim: float = field(default=0.5, compare=False)
    confidence: float = field(default=0.95, compare=False)

    def __post_init__(self) -> None:
        for name, least in (("shard", 1), ("seed", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if value is None and name == "batch_size":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise PlanError(f"{name} is {value!r}; a whole number >= {least} is needed")
        if not 0 <= self.claim <= 1:
            raise PlanError(f"claim is {self.claim!r}; a robust accuracy between 0 and 1 is needed, for example 0.45")
        if not 0 < self.confidence < 1:
            raise PlanError(f"confidence is {self.confidence!r}; a number between 0 and 1 is needed, for example 0.95")
        if self.attacks and self.threat.eps is None and self.threat.is_ball:
            raise PlanError('the threat has no eps, so there is no ball to be robust in; give one: eps = "8/255"')

    @property
    def steps(self) -> tuple[Step, ...]:
        """The clean pass, the attacks, and the curve's attacks, each at its place."""
        found: list[Step] = [Step(0, "clean", "clean", None, None, self.seed)]
        seen: dict[str, int] = {}
        roles: list[tuple[Role, AttackSpec]] = [("main", s) for s in self.attacks]
        roles += [("curve", s) for s in self.curve]
        for role, spec in roles:
            seen[spec.attack] = seen.get(spec.attack, 0) + 1
            label = spec.attack if seen[spec.attack] == 1 else f"{spec.attack}-{seen[spec.attack]}"
            index = len(found)
            eps = self.threat.eps if role == "main" else spec.eps
            found.append(Step(index, role, label, spec, eps, self.seed + index))
        return tuple(found)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides the evidence: the same for equal plans, whatever the batch size."""
        told = self.table()
        for name in _NOT_HASHED:
            told["audit"].pop(name, None)
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def table(self) -> dict[str, Any]:
        """Nested plain data, as TOML and `run.json` hold it."""
        audit = {name: getattr(self, name) for name in _AUDIT_KEYS} | {"surrogates": list(self.surrogates) or None}
        audit |= {"victim": self.victim.table(), "data": self.data.table()}
        return {
            "audit": {k: v for k, v in audit.items() if v is not None},
            "threat": self.threat.table(),
            "attack": [spec.table() for spec in self.attacks],
            "curve": [spec.table() for spec in self.curve],
        }

    def to_toml(self, path: str | Path | None = None) -> str:
        """The plan as TOML text, written to `path` as well where one is given."""
        text = toml.dump({k: v for k, v in self.table().items() if v})
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Plan:
        """From nested plain data.

        Raises:
            PlanError, UnknownNameError: an unknown key, or a value that cannot be right.
        """
        for key in table:
            if key not in ("audit", "threat", "attack", "curve"):
                raise UnknownNameError.among("table of a plan", key, ("audit", "threat", "attack", "curve"))
        audit = dict(table.get("audit", {}))
        for key in audit:
            if key not in (*_AUDIT_KEYS, "victim", "data"):
                raise UnknownNameError.among("key of [audit]", key, (*_AUDIT_KEYS, "victim", "data"))
        audit["surrogates"] = tuple(audit.get("surrogates", ()))
        for name in ("claim", "confidence"):
            if name in audit:
                audit[name] = toml.number(audit[name], name)
        return cls(
            threat=ThreatSpec.from_table(table.get("threat", {})),
            attacks=_specs(table.get("attack", ()), "attack"),
            curve=_specs(table.get("curve", ()), "curve"),
            victim=Source.of(audit.pop("victim", None)),
            data=Source.of(audit.pop("data", None)),
            **audit,
        )

    @classmethod
    def from_toml(cls, path: str | Path) -> Plan:
        """Read a plan file.

        Raises:
            LoadError: no such file, or no TOML.
            PlanError, UnknownNameError: see `from_table`.
        """
        try:
            with Path(path).expanduser().open("rb") as file:
                table = tomllib.load(file)
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
            told = "it is no text" if isinstance(cause, UnicodeDecodeError) else str(cause)
            raise LoadError(
                f"the plan {str(path)!r} cannot be read: {told}. A plan is a TOML file; models and data go into --model and "
                "--data, and one picture to `sparring attack`"
            ) from cause
        return cls.from_table(table)


_NOT_HASHED = ("surrogates", "with_curve", "preset", "batch_size", "executor", "claim", "confidence")
_AUDIT_KEYS = (
    "surrogates",
    "with_curve",
    "preset",
    "shard",
    "seed",
    "checks",
    "batch_size",
    "executor",
    "claim",
    "confidence",
)


def _specs(tables: Any, what: str) -> tuple[AttackSpec, ...]:
    if not isinstance(tables, Sequence) or isinstance(tables, str):
        raise PlanError(f"[{what}] is one table; write [[{what}]], once for every attack")
    return tuple(AttackSpec.of(t) for t in tables)
