"""The engine: units of work in their order, each meeting what still stands, each in the store before the next one
counts.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, replace

import torch

from sparring.core import events
from sparring.core.threat import ThreatModel
from sparring.core.victim import BaseVictim
from sparring.evaluation.data import Data
from sparring.evaluation.evidence import Evidence
from sparring.evaluation.executors import Executor
from sparring.evaluation.findings import Check, Context, Finding, Phase, checks
from sparring.evaluation.intervals import clopper_pearson, widened
from sparring.evaluation.memory import give_back
from sparring.evaluation.plan import Plan, Step
from sparring.evaluation.presets import Facts
from sparring.evaluation.progress import AuditEnded, AuditStarted, CheckFinished, UnitFinished, UnitStarted
from sparring.evaluation.store import Store
from sparring.evaluation.units import Job, Unit, UnitResult, findings_tell, seeded


@dataclass(frozen=True)
class Setting:
    """What the engine works with: a plan with its attacks filled in, and the objects that it names."""

    plan: Plan
    victim: BaseVictim
    data: Data
    threat: ThreatModel
    facts: Facts
    batch_size: int | None


class Engine:
    """Works a plan off into a store.

    Args:
        store: the run's store, open for writing.
        setting: the plan and its objects.
        executor: who runs the units.
    """

    def __init__(self, store: Store, setting: Setting, executor: Executor) -> None:
        self.store, self.setting, self.executor = store, setting, executor
        plan = setting.plan
        self.eps = plan.threat.eps
        self.steps = plan.steps
        self.shards = -(-len(setting.data) // plan.shard)
        self.done = store.finished()
        self.total = len(self.steps) * self.shards
        self.seen, self.broken = store.tally(self.eps)

    def run(self) -> None:
        """Run every unit and check that the store does not hold yet.

        Raises:
            SparringError: what a unit or the store raised; finished units stay in the store.
            KeyboardInterrupt: passed on, with the store closed.
        """
        plan = self.setting.plan
        self.store.open_session(self.executor.name, self.executor.workers, self.setting.batch_size)
        labels = tuple(step.label for step in self.steps)
        self._tell(
            AuditStarted(
                "audit",
                str(self.store.folder),
                len(self.setting.data),
                self.total,
                len(self.done),
                labels,
                plan.confidence,
            )
        )
        how = "finished"
        try:
            self.executor.open(self.setting.victim)
            try:
                self._work([Unit(0, shard) for shard in range(self.shards)])
                self._check("before")
                self._work([Unit(step.index, shard) for step in self.steps[1:] for shard in range(self.shards)])
                self._check("after")
            finally:
                self.executor.close()
        except KeyboardInterrupt:
            how = "interrupted"
            raise
        except BaseException as cause:
            how = f"failed: {cause}"
            raise
        finally:
            self.store.close(how)
            self._tell(AuditEnded("audit-end", str(self.store.folder), how))

    # -- units ---------------------------------------------------------------------------------------------------------

    def _work(self, units: list[Unit]) -> None:
        """Every unit of the list that is left: attack after attack, and within a shard each after the one before."""
        waiting = {unit for unit in units if unit not in self.done}
        ready = [unit for unit in waiting if unit.step == 0 or Unit(unit.step - 1, unit.shard) in self.done]
        heapq.heapify(ready)
        flying = 0
        while ready or flying:
            while ready and flying < self.executor.workers:
                unit = heapq.heappop(ready)
                if self._launch(unit):
                    flying += 1
                else:
                    self._follow(unit, waiting, ready)
            if flying:
                result, worker = self.executor.next()
                flying -= 1
                self._keep(result, worker)
                self._follow(result.unit, waiting, ready)

    def _follow(self, unit: Unit, waiting: set[Unit], ready: list[Unit]) -> None:
        """A finished unit makes the next step of its shard ready."""
        after = Unit(unit.step + 1, unit.shard)
        if after in waiting:
            heapq.heappush(ready, after)

    def _launch(self, unit: Unit) -> bool:
        """Submit a unit; False where no sample stands, and it is finished at once."""
        step, setting = self.steps[unit.step], self.setting
        first = unit.shard * setting.plan.shard
        if step.role == "clean":
            positions = list(range(first, min(first + setting.plan.shard, len(setting.data))))
        else:
            positions = self.store.standing(unit.shard, step, self.eps)
        self._tell(UnitStarted("unit-start", unit.step, unit.shard, step.label, len(positions)))
        if not positions:
            self._keep(UnitResult(unit, {}, None, None, 0.0), "")
            return False
        index = torch.tensor(positions, dtype=torch.int64)
        x, y, ids = setting.data.take(index)
        self.executor.submit(Job(unit, step, setting.threat, index, x, y, ids, setting.batch_size))
        return True

    def _keep(self, result: UnitResult, worker: str) -> None:
        step = self.steps[result.unit.step]
        self.store.commit(step, result, worker)
        self.done.add(result.unit)
        columns = result.columns
        if step.role == "clean":
            self.seen += len(columns["sample"])
            self.broken |= {s for s, right in zip(columns["sample"], columns["correct"], strict=True) if not right}
        elif columns and self.eps is not None:
            reach = widened(self.eps)
            pairs = zip(columns["sample"], columns["radius"], strict=True)
            self.broken |= {s for s, radius in pairs if radius is not None and radius <= reach}
        if events.heard():
            self._report(step, result)

    def _report(self, step: Step, result: UnitResult) -> None:
        standing = self.seen - len(self.broken)
        self._tell(
            UnitFinished(
                kind="unit",
                step=result.unit.step,
                shard=result.unit.shard,
                label=step.label,
                role=step.role,
                met=len(result.columns.get("sample", ())),
                broke=result.broken,
                seconds=result.seconds,
                forwards=result.total("forwards"),
                backwards=result.total("backwards"),
                queries=result.total("queries"),
                done=len(self.done),
                units=self.total,
                seen=self.seen,
                standing=standing,
                interval=clopper_pearson(standing, self.seen, self.setting.plan.confidence),
            )
        )

    # -- checks --------------------------------------------------------------------------------------------------------

    def _check(self, phase: Phase) -> None:
        if not self.setting.plan.checks:
            return
        left = [check for check in checks(phase) if check.number not in self.store.found()]
        if not left:
            return
        evidence, setting = Evidence.open(self.store.folder), self.setting
        seed = setting.plan.seed
        context = Context(setting.victim, setting.data, setting.threat, evidence, seed, setting.batch_size)
        for check in left:
            with seeded(seed * 1_000_003 + check.number, setting.victim.device):
                finding = run_check(check, context)
            give_back()
            self.store.write_finding(finding)
            self._tell(CheckFinished("check", finding))

    def _tell(self, event: events.Event) -> None:
        events.emit(event)


def run_check(check: Check, context: Context) -> Finding:
    """What a check finds. An exception inside it is a failed finding that spoils nothing: no audit is lost to it."""
    started = time.perf_counter()
    try:
        with findings_tell():
            finding = check.function(context)
    except Exception as cause:
        says = f"The check itself stopped with {type(cause).__name__}: {cause}"
        finding = Finding(check.number, check.name, "fail", None, "", says, "Report this to the project.", "nothing")
    if finding is None:
        finding = Finding(
            check.number, check.name, "skipped", None, "", "It does not apply to this victim.", taints="nothing"
        )
    return replace(finding, seconds=time.perf_counter() - started)
