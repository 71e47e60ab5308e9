"""One unit of work: one step of the plan on one shard of the samples, a pure function of what is in the job."""

from __future__ import annotations

import contextlib
import functools
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparring.core.attack import VOTES, batch_for
from sparring.core.balls import Ball
from sparring.core.batch import Batch, put, take
from sparring.core.errors import VanishedGradientWarning
from sparring.core.network import Victim
from sparring.core.outputs import Prediction
from sparring.core.result import AttackResult, Outcome
from sparring.core.rng import KeyedRandom
from sparring.core.threat import ThreatModel
from sparring.core.victim import BaseVictim, query_in_batches
from sparring.evaluation.errors import PlanError
from sparring.evaluation.memory import give_back
from sparring.evaluation.plan import Step
from sparring.evaluation.specs import AttackSpec
from sparring.evaluation.starts import starting_points


class Unit(NamedTuple):
    """The address of a unit: the plan's step and the shard of samples."""

    step: int
    shard: int


@dataclass(frozen=True)
class Job:
    """Everything a worker needs beside the victim.

    Attributes:
        unit: its address.
        step: what to run; step 0 is the clean pass.
        threat: the audit's threat model; the step's own eps, access and budget are put in here by `run_unit`.
        samples: the samples' positions in the data, int64 (m,).
        x, y: their inputs and labels, m of them.
        ids: their content ids, int64 (m,).
        batch_size: samples attacked at once, or None.
    """

    unit: Unit
    step: Step
    threat: ThreatModel
    samples: Tensor
    x: Batch
    y: Tensor
    ids: Tensor
    batch_size: int | None


@dataclass(frozen=True)
class UnitResult:
    """What a unit found, as the store writes it.

    Attributes:
        unit: its address.
        columns: one list per column of the table `samples` (step 0) or `evidence` (later steps), aligned.
        originals, adversarials: the inputs of the samples for which an adversarial input was found, in the order of
            column `row`; None where there are none.
        seconds: wall time of the unit.
    """

    unit: Unit
    columns: dict[str, list[Any]]
    originals: Batch | None
    adversarials: Batch | None
    seconds: float

    def total(self, column: str) -> int:
        """The sum of a counting column, 0 where the unit has none."""
        return sum(self.columns.get(column, ()))

    @property
    def broken(self) -> int:
        """How many samples this unit broke within its own radius."""
        return sum(outcome == Outcome.SUCCEEDED for outcome in self.columns.get("outcome", ()))


def run_unit(victim: BaseVictim, job: Job) -> UnitResult:
    """Run one unit; equal jobs give equal results on any worker.

    Raises:
        SparringError: what the attack or the victim raised.
    """
    started = time.perf_counter()
    originals: Batch | None = None
    adversarials: Batch | None = None
    with seeded(job.step.seed * 1_000_003 + job.unit.shard, victim.device):
        if job.step.spec is None:
            columns = clean_pass(victim, job)
        else:
            result = attack_standing(victim, job, job.step.spec)
            columns = _evidence(job, result)
            rows = torch.tensor([i for i, row in enumerate(columns["row"]) if row is not None], dtype=torch.int64)
            if len(rows):
                originals, adversarials = take(job.x, rows), take(result.adversarial, rows)
    give_back()
    return UnitResult(job.unit, columns, originals, adversarials, time.perf_counter() - started)


def clean_pass(victim: BaseVictim, job: Job) -> dict[str, list[Any]]:
    """The victim's answers before any change; a random victim is right when most of ten fresh draws are."""
    size = job.batch_size or batch_for(job.x)
    with victim.at_rest():
        x, y = victim.admit(job.x, job.y)
        rng = KeyedRandom(job.step.seed, job.ids.to(y.device))
        draws = VOTES if victim.traits.stochastic else 1
        tally = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        answer = Prediction(torch.zeros(0, dtype=torch.int64))
        for draw in range(draws):
            noise = rng.fork(("clean", draw)) if victim.traits.stochastic else None
            answer = query_in_batches(victim, x, size, noise)
            right = answer.labels == y
            tally += (right if answer.accepted is None else right & answer.accepted).long()
    confidence = answer.confidence
    return {
        "sample": job.samples.tolist(),
        "id": job.ids.tolist(),
        "shard": [job.unit.shard] * len(y),
        "label": y.tolist(),
        "predicted": answer.labels.tolist(),
        "confidence": [None] * len(y) if confidence is None else confidence.tolist(),
        "correct": (tally * 2 > draws).long().tolist(),
        "accepted": [None] * len(y) if answer.accepted is None else answer.accepted.long().tolist(),
    }


@contextlib.contextmanager
def findings_tell() -> Iterator[None]:
    """Leave it to soundness check 5 to say that gradients vanish: a warning from each attack of an audit would only repeat it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VanishedGradientWarning)
        yield


def attack_standing(victim: BaseVictim, job: Job, spec: AttackSpec) -> AttackResult:
    """The attack on the job's samples. A random victim that errs on one draw of a clean input is met again on
    another.
    """
    attack, threat = spec.build(), threat_of(job.threat, job.step, spec)
    view = view_of(victim, spec)

    def run(index: Tensor, seed: int) -> AttackResult:
        x, ids = take(job.x, index), job.ids[index]
        part = replace(threat, goal=threat.goal.take(index), space=threat.space.take(index))
        if spec.start is not None:
            points = starting_points(spec.start, part.space, x, victim.bounds, KeyedRandom(seed, ids))
            part = replace(part, knowledge=replace(part.knowledge, starts=points))
        with findings_tell():
            return attack(view, x, job.y[index], part, seed=seed, ids=ids, batch_size=job.batch_size)

    everyone = torch.arange(len(job.y))
    result = run(everyone, job.step.seed)
    if not victim.traits.stochastic:
        return result
    for again in range(1, VOTES):
        missed = (result.outcome == Outcome.CLEAN_ERROR).nonzero().squeeze(1).cpu()
        if not len(missed):
            break
        _overwrite(result, missed, run(missed, job.step.seed + (again << 40)))
    return result


def threat_of(threat: ThreatModel, step: Step, spec: AttackSpec) -> ThreatModel:
    """The audit's threat model with this step's radius, access, budget and surrogates.

    Raises:
        PlanError: a step of the curve over a space without a radius.
    """
    if step.role == "curve":
        if not isinstance(threat.space, Ball):
            raise PlanError(f"the curve needs a norm ball; the threat is {threat.space!r}")
        threat = threat.with_space(replace(threat.space, eps=step.eps))
    budgets = [q for q in (spec.queries, threat.queries) if q is not None]
    knowledge = threat.knowledge
    if spec.surrogates:
        knowledge = replace(knowledge, surrogates=tuple(_surrogate(name) for name in spec.surrogates))
    access = threat.access if spec.access is None else spec.access
    return replace(threat, access=access, queries=min(budgets, default=None), knowledge=knowledge)


def view_of(victim: BaseVictim, spec: AttackSpec) -> BaseVictim:
    """The victim with the gradients that this step asks for: averaged over draws, or through surrogates of its
    stages.
    """
    if not isinstance(victim, Victim):
        return victim
    bridged = spec.bpda and any(getattr(stage, "surrogate", None) is not None for stage in victim.stages)
    return victim.attack_view(bpda=spec.bpda, eot=spec.eot) if bridged or spec.eot > 1 else victim


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """A forked global random state with a seed of its own, for victims that draw from it; put back on leaving."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
        yield


def _evidence(job: Job, result: AttackResult) -> dict[str, list[Any]]:
    """The columns of the table `evidence`; `row` numbers the samples whose adversarial input is kept."""
    succeeded = result.succeeded.cpu()
    radius = result.distance.double().cpu().clone()
    if result.limit is not None:  # a success inside the ball may measure a rounding more than its radius
        radius = torch.where(succeeded, torch.minimum(radius, result.limit.double().cpu()), radius)
    shows = succeeded.clone()
    if job.step.spec is not None and job.step.spec.card.minimal:
        # the smallest change found may lie outside this step's radius: no success here, and a point of the curve
        goal = job.threat.goal.achieved(result.final, result.y).cpu()
        shows |= goal & (result.outcome == Outcome.SURVIVED).cpu() & (radius > 0)
    confidence = result.final.confidence
    rows = (shows.long().cumsum(0) - 1).tolist()
    return {
        "sample": job.samples.tolist(),
        "outcome": result.outcome.tolist(),
        "distance": result.distance.double().tolist(),
        "radius": [r if s else None for r, s in zip(radius.tolist(), shows.tolist(), strict=True)],
        "queries": result.queries.tolist(),
        "forwards": result.forwards.tolist(),
        "backwards": result.backwards.tolist(),
        "predicted": result.final.labels.tolist(),
        "confidence": [None] * len(result) if confidence is None else confidence.tolist(),
        "row": [row if s else None for row, s in zip(rows, shows.tolist(), strict=True)],
    }


def _overwrite(result: AttackResult, index: Tensor, newer: AttackResult) -> None:
    """Put the newer result of the samples at `index` in their place; what both runs cost is added up."""
    for name in ("outcome", "distance"):
        getattr(result, name)[index] = getattr(newer, name)
    for name in ("queries", "forwards", "backwards"):
        getattr(result, name)[index] += getattr(newer, name)
    put(result.adversarial, index, newer.adversarial)
    for name in ("labels", "scores", "accepted"):
        old, fresh = getattr(result.final, name), getattr(newer.final, name)
        if old is not None and fresh is not None:
            old[index] = fresh


@functools.cache
def _surrogate(name: str) -> BaseVictim:
    from sparring.victims import load

    return load(name)
