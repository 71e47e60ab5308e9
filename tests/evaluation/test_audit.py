"""Audits: worst case per sample, the same for every batch size, order and worker count, and numbers that add up."""

from __future__ import annotations

import itertools
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.evaluation.conftest import ATTACKS, EPS

import sparring as sp
import tiny
from sparring.core import events
from sparring.core.errors import InputError, ThreatError, UnknownNameError
from sparring.core.result import Outcome
from sparring.core.rng import content_ids
from sparring.evaluation import AttackSpec, Audit, Plan, PlanError, ThreatSpec, audit
from sparring.evaluation.comparing import differences
from sparring.evaluation.executors import LocalExecutor
from sparring.evaluation.progress import AuditEnded, AuditStarted, UnitFinished, UnitStarted
from sparring.evaluation.units import Job, UnitResult, run_unit

QUICK: dict[str, Any] = {"shard": 16, "checks": False}


def outcomes(found: Audit) -> dict[int, tuple[Any, ...]]:
    """By content id: label, what broke the sample, and for every attack that met it its outcome, queries and forwards."""
    evidence = found.evidence
    samples, attempts, breaker = evidence.samples, evidence.attempts, evidence.breaker(found.eps)
    told: dict[int, list[Any]] = {}
    for place, sample in enumerate(samples["sample"].tolist()):
        told[sample] = [samples["label"][place], samples["correct"][place], breaker[place]]
    for row in range(len(attempts["step"])):
        columns = ("step", "outcome", "queries", "forwards")
        told[int(attempts["sample"][row])].append(tuple(int(attempts[c][row]) for c in columns))
    ids = dict(zip(samples["sample"].tolist(), samples["id"].tolist(), strict=True))
    assert len(set(ids.values())) == len(ids)
    return {ids[sample]: tuple(rows) for sample, rows in told.items()}


@pytest.fixture(scope="module")
def black_and_white() -> list[Any]:
    """A white-box attack, one that only asks, and a search for the smallest change."""

    return [sp.FGSM(), AttackSpec.of({"name": "square", "params": {"queries": 30}}), sp.PGD(steps=8)]


@pytest.fixture(scope="module")
def reference(black_and_white: list[Any]) -> Audit:
    data = tiny.pictures(36, seed=9)
    return audit(tiny.trained(), data, sp.Linf(EPS), attacks=black_and_white, batch_size=256, **QUICK)


@pytest.mark.parametrize("batch_size", [1, 7, None])
def test_the_batch_size_changes_no_outcome(
    batch_size: int | None, reference: Audit, black_and_white: list[Any]
) -> None:
    data = tiny.pictures(36, seed=9)
    found = audit(tiny.trained(), data, sp.Linf(EPS), attacks=black_and_white, batch_size=batch_size, **QUICK)
    assert outcomes(found) == outcomes(reference)
    assert differences(reference.evidence, found.evidence, inputs=False) == []
    assert np.allclose(found.evidence.attempts["distance"], reference.evidence.attempts["distance"], atol=1e-4)


@pytest.mark.parametrize("shard", [16, 7])
def test_order_and_shards_change_no_outcome(shard: int, reference: Audit, black_and_white: list[Any]) -> None:
    x, y = tiny.pictures(36, seed=9)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(1))
    found = audit(
        tiny.trained(), (x[order], y[order]), sp.Linf(EPS), attacks=black_and_white, shard=shard, checks=False
    )
    assert outcomes(found) == outcomes(reference)


class Shuffled(LocalExecutor):
    """Several workers in one process, which end their jobs in an order of their own."""

    name = "shuffled"

    def __init__(self, workers: int) -> None:
        super().__init__()
        self.workers = workers
        self._waiting: deque[Job] = self._jobs
        self.most = 0

    def next(self) -> tuple[UnitResult, str]:
        self.most = max(self.most, len(self._jobs))
        self._jobs.rotate(len(self._jobs) // 2)
        assert self._victim is not None
        return run_unit(self._victim, self._jobs.pop()), "another"


@pytest.mark.parametrize("workers", [2, 5])
def test_the_number_of_workers_changes_nothing(workers: int, reference: Audit, black_and_white: list[Any]) -> None:
    executor = Shuffled(workers)
    found = audit(
        tiny.trained(),
        tiny.pictures(36, seed=9),
        sp.Linf(EPS),
        attacks=black_and_white,
        batch_size=256,
        executor=executor,
        **QUICK,
    )
    assert executor.most == min(workers, 3)
    assert differences(reference.evidence, found.evidence) == []


def test_each_attack_meets_what_no_earlier_one_broke(finished: Audit) -> None:
    evidence = finished.evidence
    alive = set(evidence.samples["sample"][evidence.samples["correct"]].tolist())
    for step in evidence.steps[1:4]:
        rows = evidence.attempt(step.index)
        assert set(rows["sample"].tolist()) == alive
        alive -= set(rows["sample"][rows["outcome"] == Outcome.SUCCEEDED].tolist())
    assert 0 < len(alive) < 60


def test_the_worst_case_is_at_least_as_bad_as_every_attack_alone(finished: Audit) -> None:
    x, y = tiny.pictures(60, seed=9)
    alone = []
    for step, attack in zip(finished.evidence.steps[1:4], ATTACKS, strict=True):
        result = attack(tiny.trained(), x, y, sp.Linf(EPS), seed=step.seed)
        alone.append(result.robust_accuracy)
    assert finished.robust_accuracy <= min(alone)
    first = finished.attacks[1]
    assert first.robust_accuracy == alone[0]


def test_the_numbers_add_up(finished: Audit) -> None:
    rows = finished.attacks
    assert rows[0].standing == round(finished.clean_accuracy * 60)
    for before, after in itertools.pairwise(rows):
        assert before.standing - after.broke == after.standing
    assert rows[-1].robust_accuracy == finished.robust_accuracy
    assert finished.interval.lo < finished.robust_accuracy < finished.interval.hi
    per_class = finished.per_class
    assert sum(row.n for row in per_class) == 60
    assert sum(round(row.robust_accuracy * row.n) for row in per_class) == finished.standing.sum()
    assert finished.attack_success_rate == pytest.approx(1 - finished.standing.sum() / rows[0].standing)
    assert finished.complete
    cost = finished.cost
    assert cost.forwards == finished.evidence.attempts["forwards"].sum() > 0
    assert cost.checks_share == 0


def test_every_kept_input_is_what_it_claims_to_be(finished: Audit) -> None:
    x, y = tiny.pictures(60, seed=9)
    victim = tiny.trained()
    cases = finished.failures()
    assert len(cases) == 60 - finished.standing.sum() - (~finished.evidence.samples["correct"]).sum()
    assert [case.radius for case in cases] == sorted(case.radius for case in cases)
    for case in cases:
        original, adversarial = finished.evidence.pair(case.step, case.sample)
        # a copy: a view would keep every input of its file in memory
        assert original.untyped_storage().nbytes() == original.nbytes
        assert torch.equal(original, x[case.sample])
        assert case.label == y[case.sample]
        assert int(victim.query(adversarial[None]).labels) == case.predicted != case.label
        assert float((adversarial - original).abs().max()) == pytest.approx(case.radius, abs=1e-6)
        assert case.radius <= EPS
        assert case.id == int(content_ids(original[None]))
    close = finished.close_calls()
    assert close
    assert all(case.radius > EPS for case in close)
    assert {case.sample for case in close}.isdisjoint(case.sample for case in cases)


def test_the_curve_falls_from_the_clean_accuracy_to_nothing(finished: Audit) -> None:
    curve = finished.curve()
    assert curve.x[0] == 0
    assert curve.accuracy[0] == finished.clean_accuracy
    assert (np.diff(curve.accuracy) <= 0).all()
    assert curve.accuracy[-1] == 0
    assert (curve.lo <= curve.accuracy).all()
    assert (curve.accuracy <= curve.hi).all()
    at_eps = finished.curve(eps=[EPS])
    assert at_eps.accuracy[0] == finished.robust_accuracy
    assert (at_eps.lo[0], at_eps.hi[0]) == pytest.approx((finished.interval.lo, finished.interval.hi))


def test_the_curve_on_a_linear_victim_is_the_one_on_paper() -> None:
    x = 0.3 + 0.4 * torch.rand(80, 2, generator=torch.Generator().manual_seed(4))
    weight, bias = torch.tensor([3.1, -1.3]), -0.9
    score = x @ weight + bias
    victim = tiny.linear(torch.stack([-weight, weight]), [-bias, bias])
    plan = Plan(
        ThreatSpec("linf", 0.1), attacks=(AttackSpec("pgd"),), curve=(AttackSpec("deepfool"),), checks=False, shard=30
    )
    found = audit(victim, (x, (score > 0).long()), plan=plan)
    distance = (score.abs() / weight.abs().sum()).double().numpy()
    assert np.allclose(found.evidence.radius(("curve",)), distance * 1.02, rtol=0.001, atol=1e-5)  # DeepFool overshoots
    assert found.robust_accuracy == (distance > 0.1).mean()
    for eps in (0.02, 0.05, 0.1, 0.15):
        assert found.curve(eps=[eps]).accuracy[0] == pytest.approx((distance * 1.02 > eps).mean(), abs=1.5 / len(x))
    law = found.slope
    assert law is not None
    assert law.slope == pytest.approx(1.0, abs=0.3)  # samples spread evenly: the error grows in proportion to eps


def test_queries_and_passes_have_curves(reference: Audit) -> None:
    curves = reference.query_curves()
    assert list(curves) == ["square"]
    curve = curves["square"]
    rows = {row.label: row for row in reference.attacks}
    assert curve.accuracy[0] == rows["fgsm"].robust_accuracy
    assert curve.accuracy[-1] == rows["square"].robust_accuracy
    assert curve.x[-1] <= 30
    work = reference.cost_curve()
    assert work.accuracy[0] == reference.clean_accuracy
    assert work.accuracy[-1] == rows["pgd"].robust_accuracy
    assert work.x[1] == 2  # FGSM: one forward, one backward


class Noisy(torch.nn.Module):
    """A network behind noise from the global generator."""

    def __init__(self) -> None:
        super().__init__()
        net = tiny.trained().net
        assert isinstance(net, torch.nn.Module)
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x + 0.1 * torch.randn_like(x))
        return out


def test_a_random_victim_is_judged_by_most_of_its_draws_and_runs_repeat() -> None:
    def run() -> Audit:
        victim = sp.Victim(Noisy().eval(), traits=sp.Traits(stochastic=True), name="noisy")
        attacks = [{"name": "pgd", "params": {"steps": 6}, "eot": 4}]
        return audit(victim, tiny.pictures(40, seed=9), sp.Linf(EPS), attacks=attacks, curve=False, **QUICK)

    state = torch.random.get_rng_state()
    first, second = run(), run()
    assert torch.equal(state, torch.random.get_rng_state())
    assert differences(first.evidence, second.evidence) == []
    rows = first.evidence.attempt(1)
    assert Outcome.CLEAN_ERROR not in rows["outcome"]  # what is right by vote is attacked, whatever one draw says
    assert (rows["forwards"] >= 4).all()
    assert first.robust_accuracy < first.clean_accuracy


def test_an_audit_tells_how_it_goes() -> None:
    told: list[events.Event] = []
    with events.listening(told.append):
        found = audit(
            tiny.trained(), tiny.pictures(32, seed=9), sp.Linf(EPS), attacks=["fgsm"], curve=False, claim=0.9, **QUICK
        )
    kinds = [type(event) for event in told if not isinstance(event, events.AttackProgress)]
    unit = [UnitStarted, UnitFinished]
    assert kinds == [AuditStarted, *unit * 4, AuditEnded]
    last = [event for event in told if isinstance(event, UnitFinished)][-1]
    assert (last.done, last.units, last.seen) == (4, 4, 32)
    assert last.standing == found.standing.sum()
    assert found.verdict.result == "broken"
    assert found.verdict.claim == 0.9


def test_data_come_in_many_shapes(finished: Audit) -> None:
    x, y = tiny.pictures(24, seed=9)
    levels = (x * 255).round().to(torch.uint8)

    class Set:
        def __len__(self) -> int:
            return 24

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            return x[i], int(y[i])

    def run(data: Any) -> Audit:
        return audit(tiny.trained(), data, sp.Linf(EPS), attacks=["fgsm"], curve=False, **QUICK)

    plain = run((x, y))
    for data in ((levels, y.tolist()), (x.numpy(), y.numpy()), Set()):
        assert differences(plain.evidence, run(data).evidence) == []
        assert outcomes(run(data)) == outcomes(plain)


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"data": torch.utils.data.DataLoader([1])}, InputError, "loader.dataset"),
        ({"data": None}, InputError, "without data"),
        ({"victim": None}, InputError, "without a victim"),
        ({"threat": sp.Linf()}, PlanError, "no eps"),
        ({"threat": 0.1}, ThreatError, "wrap it in a space"),
        ({"preset": "standrad"}, UnknownNameError, "standard"),
        ({"atacks": ["fgsm"]}, UnknownNameError, "attacks"),
        ({"executor": "slurm"}, UnknownNameError, "ray"),
        ({"plan": "plan.toml", "seed": 3}, InputError, "inside the plan"),
        ({"data": (torch.rand(4, 1, 6, 6), torch.rand(4))}, InputError, "class numbers"),
        ({"data": (torch.rand(4, 1, 6, 6), torch.zeros(3, dtype=torch.int64))}, InputError, "4 inputs came with 3"),
    ],
)
def test_what_cannot_be_right_is_refused(how: dict[str, Any], error: type, says: str, tmp_path: Path) -> None:
    given = {"victim": tiny.trained(), "data": tiny.pictures(4, seed=9), "threat": sp.Linf(EPS), **how}
    if "plan" in how:
        del given["threat"]
    with pytest.raises(error, match=says):
        audit(run=tmp_path / "run", **given)
    assert not (tmp_path / "run" / "evidence.sqlite").exists()
