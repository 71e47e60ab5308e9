"""One call of an attack: batches, seeds, outcomes, and what it leaves behind."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
import tiny
from probe import LABELS, Probe, ask_up, below, walk
from sparring.core import events
from sparring.core.errors import InputError, ThreatError
from sparring.core.outputs import Prediction
from sparring.core.registry import make_attack
from sparring.core.result import Outcome
from sparring.core.runner import Run

O = Outcome


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("goal", [None, 0])
@pytest.mark.parametrize("early_stop", [True, False])
def test_peer_bug_2_verdicts_that_depend_on_the_batch_size(goal: int | None, early_stop: bool) -> None:
    x, y = tiny.pictures(15, seed=4)
    y = y.clone()
    y[3] = (y[3] + 1) % tiny.CLASSES  # a clean error among them
    eps = torch.linspace(0.0, 0.2, 15)
    attack = sp.PGD(steps=4, restarts=2)

    def run(order: Tensor, size: int | None) -> sp.AttackResult:
        return attack(
            tiny.trained(),
            x[order],
            y[order],
            sp.Linf(eps[order]),
            goal=goal,
            batch_size=size,
            early_stop=early_stop,
            seed=5,
        )

    reference = run(torch.arange(15), None)
    assert 0 < reference.attack_success_rate < 1
    for size in (1, 4, 7, 15):
        for order in (torch.arange(15), torch.randperm(15, generator=torch.Generator().manual_seed(size))):
            other = run(order, size)
            for name in ("outcome", "queries", "ids", "y"):
                assert torch.equal(getattr(other, name), getattr(reference, name)[order]), name
            torch.testing.assert_close(other.distance, reference.distance[order], atol=1e-4, rtol=0)
            torch.testing.assert_close(other.adversarial, reference.adversarial[order], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "y",
    [
        torch.zeros(0, dtype=torch.int64),
        None,
        [],
    ],
    ids=["tensor", "None", "list"],
)
def test_empty_batches_give_empty_results(y: Any) -> None:
    victim, spy = tiny.spied(tiny.trained())
    x = torch.zeros(0, 1, 6, 6)
    result = sp.PGD()(victim, x, y, sp.Linf(0.1))
    assert len(result) == 0
    assert result.adversarial.shape == x.shape
    assert result.outcomes == []
    assert spy.batches == []


def test_nothing_to_attack_is_no_error() -> None:
    x, y = tiny.correct(3)
    result = sp.PGD()(tiny.trained(), x, (y + 1) % tiny.CLASSES, sp.Linf(0.1))
    assert result.outcomes == [O.CLEAN_ERROR] * 3
    assert torch.equal(result.adversarial, x)
    assert result.backwards.tolist() == [0, 0, 0]


def test_peer_bug_6_eps_0_changes_nothing_even_where_the_victim_normalises() -> None:
    x, y = tiny.correct(6)
    victim = sp.Victim(tiny.trained().net, mean=[0.5], std=[0.25])
    y = victim.query(x).labels
    for space in (sp.Linf(0.0), sp.L2(0.0), sp.L1(0.0), sp.Linf(0.0, lattice=256)):
        result = sp.PGD(steps=5)(victim, x, y, space)
        torch.testing.assert_close(result.adversarial, x, atol=1e-6, rtol=0)
        assert result.outcomes == [O.SURVIVED] * 6


@pytest.mark.parametrize("size", [-1, 0])
def test_a_batch_size_below_one_is_refused(size: int) -> None:
    with pytest.raises(InputError, match="batch_size"):
        sp.PGD(steps=1)(tiny.threshold(), *below(0.1), sp.Linf(0.1), batch_size=size)


@pytest.mark.parametrize("ids", [torch.arange(3), torch.zeros(2), torch.zeros(2, 1, dtype=torch.int64)])
def test_impossible_ids_are_refused(ids: Tensor) -> None:
    with pytest.raises(InputError, match="ids"):
        sp.PGD(steps=1)(tiny.threshold(), *below(0.1, 0.2), sp.Linf(0.1), ids=ids)


# -- outcomes ----------------------------------------------------------------------------------------------------------


def test_outcomes_before_any_attack() -> None:
    x = torch.tensor([[0.2], [0.8], [0.8], [0.8], [0.2]])
    y = torch.tensor([0, 0, 1, 0, 1])
    target = torch.tensor([1, 1, 1, 0, 1])
    result = Probe(body=walk(0.0, 1))(tiny.threshold(), x, y, sp.Linf(0.5), goal=target)
    assert result.outcomes == [O.SURVIVED, O.ALREADY_TARGET, O.NOT_APPLICABLE, O.NOT_APPLICABLE, O.NOT_APPLICABLE]
    assert result.target is not None
    assert torch.equal(result.target, target)
    assert result.attack_success_rate == 0.0


def test_labels_default_to_the_victims_own() -> None:
    x = torch.tensor([[0.2], [0.8]])
    result = Probe(body=walk(0.0, 1))(tiny.threshold(), x, None, sp.Linf(0.5))
    assert result.y.tolist() == [0, 1]
    assert result.clean_accuracy == 1.0


def test_a_goal_of_ones_own_by_labels() -> None:
    """A predicate without a loss: any victim, any rule, by queries."""
    goal = sp.Predicate(lambda output, y: output.labels == 1, name="ones")
    threat = sp.ThreatModel(sp.Linf(0.9), goal=goal, access="labels", queries=20)
    result = Probe(body=ask_up(0.1), card=LABELS)(tiny.threshold(), *below(0.45, 0.1), threat)
    assert result.outcomes == [O.SUCCEEDED] * 2
    with pytest.raises(ThreatError, match="no loss"):
        Probe(body=walk(0.1))(tiny.threshold(), *below(0.45), sp.ThreatModel(sp.Linf(0.9), goal=goal))


def test_texts_run_through_the_same_runner() -> None:
    """The core is no picture core: a list of strings, a space that counts added words, a victim that counts letters."""

    class Additions:
        name = "words"
        limit = 2.0

        def contains(self, x: list[str], x_adv: list[str]) -> Tensor:
            return self.cost(x, x_adv) <= self.limit

        def cost(self, x: list[str], x_adv: list[str]) -> Tensor:
            pairs = zip(x, x_adv, strict=True)
            return torch.tensor([float(len(b.split()) - len(a.split())) for a, b in pairs])

        def take(self, index: Tensor) -> Additions:
            return self

        def bound(self, x: list[str], bounds: Any) -> Additions:
            return self

    @dataclass
    class Text:
        x: list[str]

    def body(run: Run) -> None:
        s = run.begin(Text(list(run.x)))
        for _ in run.steps(4):
            s.x = [t + " good" for t in s.x]
            run.ask(s.x)

    victim = sp.BlackBox(
        lambda batch: torch.tensor([int("bad" in t and t.count("good") < 2) for t in batch]), classes=2
    )
    card = dataclasses.replace(LABELS, spaces=("words",))
    texts = ["bad", "fine", "bad bad good"]
    result = Probe(body=body, card=card)(victim, texts, [1, 1, 1], Additions())
    assert result.outcomes == [O.SUCCEEDED, O.CLEAN_ERROR, O.SUCCEEDED]
    assert result.adversarial == ["bad good good", "fine", "bad bad good good"]
    assert result.distance.tolist() == [2.0, 0.0, 1.0]
    assert result.queries.tolist() == [2, 0, 1]
    assert texts == ["bad", "fine", "bad bad good"]


# -- what a call leaves behind, and tells ------------------------------------------------------------------------------


def test_inputs_labels_targets_and_radii_stay_as_they_were() -> None:
    x, y = tiny.correct(6)
    eps, target = torch.full((6,), 0.15), (y + 1) % tiny.CLASSES
    copies = [t.clone() for t in (x, y, eps, target)]
    sp.PGD(steps=5, restarts=2)(tiny.trained(), x, y, sp.Linf(eps), goal=target, batch_size=4)
    assert all(torch.equal(a, b) for a, b in zip((x, y, eps, target), copies, strict=True))


def test_a_result_does_not_share_memory_with_the_callers_batch() -> None:
    x, y = tiny.correct(2)
    result = sp.PGD(steps=1)(tiny.trained(), x, y, sp.Linf(0.0))
    x += 5
    assert result.adversarial.max() <= 1
    assert result.original.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_of_the_inputs_is_kept(dtype: torch.dtype) -> None:
    x, y = tiny.correct(4)
    net = tiny.network()
    net.load_state_dict(tiny.trained().net.state_dict())
    for space in (sp.Linf(0.15), sp.L2(0.8), sp.L1(4.0), sp.Linf(0.15, lattice=256)):
        result = sp.PGD(steps=10)(sp.Victim(net.to(dtype)), x.to(dtype), y, space)
        assert result.adversarial.dtype is result.original.dtype is dtype
        assert result.succeeded.any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_inputs_and_victim_on_different_devices_meet_and_results_come_home() -> None:
    x, y = tiny.correct(8)
    net = tiny.network()
    net.load_state_dict(tiny.trained().net.state_dict())
    eps = torch.linspace(0.05, 0.2, 8)
    here = sp.PGD(steps=10)(tiny.trained(), x, y, sp.Linf(eps))
    there = sp.PGD(steps=10)(sp.Victim(net.cuda()), x, y, sp.Linf(eps))
    assert there.adversarial.device == x.device
    assert there.outcomes == here.outcomes
    torch.testing.assert_close(there.distance, here.distance, atol=1e-4, rtol=0)


def test_seeds_repeat_and_differ() -> None:
    x, y = tiny.correct(6)

    def adversarial(seed: int) -> Tensor:
        return sp.PGD(steps=2)(tiny.trained(), x, y, sp.Linf(0.05), seed=seed).adversarial

    assert torch.equal(adversarial(3), adversarial(3))
    assert not torch.equal(adversarial(3), adversarial(4))


def test_a_result_says_how_to_run_it_again() -> None:
    result = sp.PGD(steps=2)(tiny.threshold(), *below(0.1), sp.Linf(0.05), seed=3, goal=1)
    expected = {"steps": 2, "step_size": None, "restarts": 1, "random_start": True, "loss": "ce", "seed": 3}
    assert expected.items() <= result.params.items()
    assert result.params["goal"] == "targeted"
    assert result.params["access"] == "gradients"
    assert result.attack == "pgd"
    assert result.space == "Linf(0.05)"
    assert result.seconds > 0


def test_listeners_hear_every_step() -> None:
    heard: list[events.Event] = []
    with events.listening(heard.append):
        Probe(body=walk(0.1, 5))(tiny.threshold(), *below(0.45, 0.25), sp.Linf(0.9))
    steps = [e for e in heard if isinstance(e, events.AttackProgress)]
    assert [e.step for e in steps] == [0, 1, 2, 3]
    assert [e.standing for e in steps] == [2, 2, 1, 1]
    assert all((e.attack, e.total, e.steps) == ("probe", 2, 5) for e in steps)
    count = len(heard)
    Probe(body=walk(0.1, 5))(tiny.threshold(), *below(0.45), sp.Linf(0.9))
    assert len(heard) == count


def test_what_a_prediction_is_worth_is_decided_in_float_with_a_margin() -> None:
    """A success by less than float rounding could vanish at another batch size; the search does not claim it."""
    scores = Prediction.of(torch.tensor([[100.0, 100.0 + 2e-5]]))
    assert sp.Untargeted().achieved(scores, torch.tensor([0]))
    assert not sp.Untargeted().achieved(scores, torch.tensor([0]), 1e-5)


@pytest.mark.parametrize(
    ("victim", "cure"), [(nn.Linear(2, 2), r"sparring\.Victim\(net\)"), ("digits", r"sparring\.load\('digits'\)")]
)
def test_what_is_no_victim_is_told_how_to_become_one(victim: Any, cure: str) -> None:
    with pytest.raises(InputError, match=cure):
        sp.PGD()(victim, torch.rand(1, 2), None, sp.Linf(0.1))


# -- numbers under which nothing is searched ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack",
    [
        sp.PGD(steps=0),
        sp.PGD(steps=-1),
        sp.PGD(steps=2.5),  # type: ignore[arg-type]
        sp.PGD(restarts=0),
        sp.PGD(step_size=0.0),
        sp.PGD(step_size=-0.1),
        sp.PGD(step_size=float("nan")),
        sp.attacks.APGDT(classes=0),
        sp.attacks.HopSkipJump(steps=0),
    ],
    ids=repr,
)
def test_an_attack_that_would_search_nothing_is_refused(attack: sp.Attack) -> None:
    x, y = tiny.pictures(2, seed=4)
    space: Any = sp.L2() if attack.card.minimal else sp.Linf(0.1)
    with pytest.raises(InputError, match="is needed"):
        attack(tiny.trained(), x, y, space)
    if attack.card.name == "pgd":
        with pytest.raises(InputError, match="is needed"):
            attack.craft(tiny.trained(), x, y, space)


@pytest.mark.parametrize("name", ["square", "zoo", "nes", "boundary", "rays"])
def test_without_a_query_nothing_is_asked(name: str) -> None:
    x, y = tiny.correct(3)
    attack = make_attack(name)
    space: Any = sp.L2() if attack.card.minimal and name != "rays" else sp.Linf(None if name == "rays" else 0.1)
    result = attack(tiny.trained(), x, y, sp.ThreatModel(space, queries=0))
    assert result.queries.tolist() == [0, 0, 0]
    assert result.outcome.tolist() == [int(O.OUT_OF_BUDGET)] * 3
    assert torch.equal(result.adversarial, x)
