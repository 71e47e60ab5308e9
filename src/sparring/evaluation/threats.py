"""The threat model of a plan as plain data, and the `ThreatModel` that it stands for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from sparring.core.balls import NORMS, Ball
from sparring.core.errors import ThreatError, UnknownNameError
from sparring.core.threat import Access, Targeted, ThreatModel, Untargeted
from sparring.evaluation import toml
from sparring.evaluation.errors import PlanError


@dataclass(frozen=True)
class ThreatSpec:
    """A threat model in words and numbers.

    Attributes:
        norm: "linf", "l2", "l1", "l0"; or "object" for a space that was given in Python.
        eps: the radius in the victim's raw units.
        lattice: levels between the bounds (256 for 8-bit pictures), or None.
        target: the label to reach; None for untargeted.
        access: what the attacker sees at most ("gradients", "scores", "labels"); None for everything the victim has.
        queries: queries per sample at most; None for the attacks' own numbers.
        shown: how an "object" presents itself; part of the plan's hash.
    """

    norm: str = "linf"
    eps: float | None = None
    lattice: int | None = None
    target: int | None = None
    access: str | None = None
    queries: int | None = None
    shown: str | None = None

    def __post_init__(self) -> None:
        if self.norm not in (*NORMS, "object"):
            raise UnknownNameError.among("norm", self.norm, NORMS)
        if self.access is not None:
            object.__setattr__(self, "access", str(Access.parse(self.access)))

    @property
    def is_ball(self) -> bool:
        """Whether `build` can make it from the words alone."""
        return self.norm != "object"

    @classmethod
    def of(cls, threat: ThreatModel) -> ThreatSpec:
        """What a plan writes down about a threat model."""
        space, goal = threat.space, threat.goal
        plain_goal = isinstance(goal, Untargeted) or (isinstance(goal, Targeted) and isinstance(goal.target, int))
        eps = None
        if isinstance(space, Ball) and space.eps is not None:
            radii = torch.as_tensor(space.eps).flatten()
            eps = float(space.eps) if radii.numel() == 1 else math.nan
        known = isinstance(space, Ball) and type(space) in NORMS.values() and not getattr(space, "pixels", False)
        beside = threat.steps is None and not threat.knowledge.surrogates and threat.knowledge.starts is None
        access = None if threat.access is None else str(threat.access)
        if known and plain_goal and beside and not (eps is not None and math.isnan(eps)):
            target = goal.target if isinstance(goal, Targeted) else None
            return cls(space.name, eps, space.lattice, target, access, threat.queries)  # type: ignore[attr-defined,arg-type]
        limit = space.limit
        whole = float(limit) if isinstance(limit, (int, float)) else None
        return cls("object", whole, None, None, access, threat.queries, shown=f"{space!r}, {goal.name}")

    def build(self) -> ThreatModel:
        """The threat model.

        Raises:
            ThreatError: it was an object given in Python, which cannot be made again from words.
        """
        if not self.is_ball:
            raise ThreatError(
                f"this run's threat model was given in Python ({self.shown}); pass it again: "
                "sparring.evaluation.resume(run, threat=...)"
            )
        goal = Untargeted() if self.target is None else Targeted(self.target)
        return ThreatModel(NORMS[self.norm](self.eps, self.lattice), goal, access=self.access, queries=self.queries)

    def table(self) -> dict[str, Any]:
        """What `from_table` reads; what is None is left out."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> ThreatSpec:
        """From plain data.

        Raises:
            UnknownNameError, PlanError: an unknown key, or a value that cannot be right.
        """
        values = dict(table)
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise UnknownNameError.among("key of [threat]", key, known)
        if "eps" in values:
            values["eps"] = toml.number(values["eps"], "eps")
            if values["eps"] < 0:
                raise PlanError(f"eps is {values['eps']!r}; a number >= 0 is needed")
        return cls(**values)

    def __str__(self) -> str:
        if not self.is_ball:
            return str(self.shown)
        radius = "" if self.eps is None else f" {self.eps:.4g}"
        goal = "" if self.target is None else f", towards label {self.target}"
        limits = "".join(
            f", {word}"
            for word in (
                f"{self.lattice} levels" if self.lattice else "",
                f"{self.access} only" if self.access else "",
                f"{self.queries:,} queries" if self.queries is not None else "",
            )
            if word
        )
        return f"{self.norm.capitalize()}{radius}{goal}{limits}"
