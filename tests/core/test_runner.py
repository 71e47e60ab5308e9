"""The runner's protocol: shrinking, early stop, restarts, budgets, and the smallest change."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

import sparring as sp
import tiny
from probe import CE, LABELS, MINIMAL, SCORES, At, Probe, ask_up, below, visit, walk
from sparring.core.errors import InputError
from sparring.core.result import Outcome
from sparring.core.runner import Run

O = Outcome


# -- the state shrinks with the run ------------------------------------------------------------------------------------


@dataclass
class Inner:
    moment: Tensor
    history: list[Tensor]


@dataclass
class Outer:
    x: Tensor
    tag: Tensor
    inner: Inner
    pair: tuple[Tensor, Tensor]
    words: list[str]
    count: int = 3
    nothing: None = None
    more: list[Inner] = field(default_factory=list)


def test_everything_in_the_state_shrinks_together() -> None:
    x, y = below(0.1, 0.2, 0.3, 0.4, 0.45)
    seen: list[list[int]] = []

    def body(run: Run) -> None:
        tag = torch.arange(5)
        s = run.begin(
            Outer(
                x=run.x.clone(),
                tag=tag,
                inner=Inner(tag * 10.0, [tag * k for k in range(7)]),
                pair=(tag * 4, tag * 5.0),
                words=[f"w{i}" for i in range(5)],
                more=[Inner(tag * 6, [])],
            )
        )
        for t in run.steps(5):
            rows = run.rows
            seen.append(rows.tolist())
            assert torch.equal(s.tag, rows)
            assert torch.equal(s.inner.moment, rows * 10.0)
            assert [h.tolist() for h in s.inner.history] == [(rows * k).tolist() for k in range(7)]
            assert torch.equal(s.pair[0], rows * 4)
            assert torch.equal(s.pair[1], rows * 5.0)
            assert torch.equal(s.more[0].moment, rows * 6)
            assert s.words == [f"w{i}" for i in rows.tolist()]
            assert s.count == 3
            assert s.nothing is None
            assert torch.equal(s.x, x[rows])
            assert torch.equal(run.x, x[rows])
            assert torch.equal(run.y, y[rows])
            assert torch.equal(run.space.eps, eps[rows])
            assert torch.equal(run.goal.of(run.y), target[rows])
            assert torch.equal(run.rng.ids, 7 + rows)
            run.give_up(rows == (3, 0, 4, 1, 2)[t])

    eps, target = torch.linspace(0.01, 0.05, 5), torch.tensor([1, 1, 1, 1, 1])
    result = Probe(body=body)(tiny.threshold(), x, y, sp.Linf(eps), goal=target, ids=7 + torch.arange(5))
    assert seen == [[0, 1, 2, 3, 4], [0, 1, 2, 4], [1, 2, 4], [1, 2], [2]]
    assert result.outcomes == [O.SURVIVED] * 5


def test_a_list_of_tensors_shrinks_item_by_item_even_when_it_is_as_long_as_the_batch() -> None:
    x, y = below(0.1, 0.2, 0.3)

    @dataclass
    class State:
        x: Tensor
        buffers: list[Tensor]

    def body(run: Run) -> None:
        s = run.begin(State(run.x, [run.rows * 1, run.rows * 2, run.rows * 3]))
        for _ in run.steps(2):
            assert len(s.buffers) == 3
            for k, buffer in enumerate(s.buffers):
                assert torch.equal(buffer, run.rows * (k + 1))
            run.give_up(run.rows == 1)

    Probe(body=body)(tiny.threshold(), x, y, sp.Linf(0.1))


def test_a_state_of_the_wrong_length_is_an_error_that_names_the_field() -> None:
    @dataclass
    class State:
        x: Tensor
        momentum: Tensor

    def body(run: Run) -> None:
        run.begin(State(run.x, torch.zeros(7)))
        for _ in run.steps(2):
            run.give_up(run.rows == 0)

    with pytest.raises(InputError, match=r"'momentum' has shape \(7,\).* 2 active"):
        Probe(body=body)(tiny.threshold(), *below(0.1, 0.2), sp.Linf(0.1))


# -- early stop, restarts, budgets -------------------------------------------------------------------------------------


def test_a_sample_stops_at_its_first_success_and_pays_no_backward_there() -> None:
    x, y = below(0.45, 0.25, 0.05)
    victim, spy = tiny.spied(tiny.threshold())
    result = Probe(body=walk(0.1))(victim, x, y, sp.Linf(0.9))
    assert result.outcomes == [O.SUCCEEDED] * 3
    assert result.forwards.tolist() == [2, 4, 6]
    assert result.backwards.tolist() == [2, 4, 5]  # the last success ends the search before its backward
    torch.testing.assert_close(result.adversarial, torch.full((3, 1), 0.55))
    assert spy.batches == [3, 3, 3, 2, 2, 1, 1, 3]  # clean, six steps, re-check


def test_without_early_stop_all_go_on_and_the_last_point_is_kept() -> None:
    x, y = below(0.45, 0.25)
    result = Probe(body=walk(0.1, 5))(tiny.threshold(), x, y, sp.Linf(0.9), early_stop=False)
    assert result.backwards.tolist() == [5, 5]
    torch.testing.assert_close(result.adversarial, x + 0.5)
    assert result.outcomes == [O.SUCCEEDED] * 2


def test_without_early_stop_an_earlier_success_replaces_a_last_point_that_fails() -> None:
    def there_and_back(run: Run) -> None:
        s = run.begin(At(run.x.clone()))
        for t in run.steps(4):
            run.gradient(s.x, CE)
            s.x = run.x + (0.2 if t < 2 else 0.0)

    result = Probe(body=there_and_back)(tiny.threshold(), *below(0.4), sp.Linf(0.5), early_stop=False)
    assert result.outcomes == [O.SUCCEEDED]
    torch.testing.assert_close(result.adversarial, torch.tensor([[0.6]]))


def test_without_early_stop_what_is_wrong_already_is_attacked_and_still_a_clean_error() -> None:
    x = torch.tensor([[0.45], [0.7]])
    y = torch.zeros(2, dtype=torch.int64)
    result = Probe(body=walk(0.01, 3))(tiny.threshold(), x, y, sp.Linf(0.9), early_stop=False)
    assert result.outcomes == [O.SURVIVED, O.CLEAN_ERROR]
    torch.testing.assert_close(result.adversarial, x + 0.03)
    stopped = Probe(body=walk(0.01, 3))(tiny.threshold(), x, y, sp.Linf(0.9))
    assert torch.equal(stopped.adversarial[1], x[1])
    assert stopped.forwards.tolist() == [3, 0]


def test_peer_bug_5_restarts_keep_the_best_of_each_sample_and_one_restart_is_enough() -> None:
    met: list[list[int]] = []

    def body(run: Run) -> None:
        met.append(run.rows.tolist())
        s = run.begin(At(run.x.clone()))
        for _ in run.steps(2):
            run.gradient(s.x, CE)
            s.x = torch.where((run.rows == run.restart)[:, None], run.x + 0.3, run.x)

    x, y = below(0.4, 0.4, 0.4, 0.4)
    result = Probe(body=body, restarts=3)(tiny.threshold(), x, y, sp.Linf(0.5))
    assert met == [[0, 1, 2, 3], [1, 2, 3], [2, 3]]
    assert result.outcomes == [O.SUCCEEDED, O.SUCCEEDED, O.SUCCEEDED, O.SURVIVED]
    torch.testing.assert_close(result.adversarial, x + torch.tensor([[0.3], [0.3], [0.3], [0.0]]))
    one = Probe(body=body, restarts=1)(tiny.threshold(), x, y, sp.Linf(0.5))
    assert one.outcomes == [O.SUCCEEDED, O.SURVIVED, O.SURVIVED, O.SURVIVED]


def test_the_last_point_of_every_restart_is_looked_at() -> None:
    """A climb's last point has had no forward; a later restart must not forget that it succeeded."""

    def body(run: Run) -> None:
        s = run.begin(At(run.x.clone()))
        for _ in run.steps(1):
            run.gradient(s.x, CE)
            s.x = run.x + (0.3 if run.restart == 0 else 0.0)

    result = Probe(body=body, restarts=3)(tiny.threshold(), *below(0.4), sp.Linf(0.5))
    assert result.outcomes == [O.SUCCEEDED]


def test_the_end_of_a_restart_costs_no_forward_for_what_is_decided() -> None:
    result = Probe(body=walk(0.1), restarts=3)(tiny.threshold(), *below(0.45, 0.25), sp.Linf(0.9))
    assert result.outcomes == [O.SUCCEEDED] * 2
    assert result.forwards.tolist() == [2, 4]


def test_giving_up_lasts_for_one_restart() -> None:
    def body(run: Run) -> None:
        s = run.begin(At(run.x.clone()))
        for _ in run.steps(3):
            run.gradient(s.x, CE)
            if run.restart == 0:
                run.give_up(torch.ones(len(run.rows), dtype=torch.bool))
            else:
                s.x = run.x + 0.3

    result = Probe(body=body, restarts=2)(tiny.threshold(), *below(0.4), sp.Linf(0.5))
    assert result.outcomes == [O.SUCCEEDED]


@pytest.mark.parametrize("restarts", [1, 3])
def test_the_threats_steps_cap_the_attacks_own_over_all_restarts(restarts: int) -> None:
    x, y = below(0.1, 0.4)
    threat = sp.ThreatModel(sp.Linf(0.9), steps=7)
    result = Probe(body=walk(0.03, 5 if restarts > 1 else 40), restarts=restarts)(tiny.threshold(), x, y, threat)
    assert result.backwards[0] == 7
    assert result.backwards[1] <= 7
    assert result.outcomes == [O.SURVIVED, O.SUCCEEDED]
    none = Probe(body=walk(0.03), restarts=restarts)(tiny.threshold(), x, y, sp.ThreatModel(sp.Linf(0.9), steps=0))
    assert none.backwards.tolist() == [0, 0]


@pytest.mark.parametrize("restarts", [1, 4])
def test_peer_bug_9_queries_are_counted_over_the_whole_attack(restarts: int) -> None:
    x, y = below(0.45, 0.1, 0.2)
    threat = sp.ThreatModel(sp.Linf(0.9), access="labels", queries=6)
    result = Probe(body=ask_up(0.02, 4 if restarts > 1 else 40), card=LABELS, restarts=restarts)(
        tiny.threshold(), x, y, threat
    )
    assert result.queries.tolist() == [3, 6, 6]
    assert result.outcomes == [O.SUCCEEDED, O.OUT_OF_BUDGET, O.OUT_OF_BUDGET]
    none = dataclasses.replace(threat, queries=0)
    result = Probe(body=ask_up(0.02), card=LABELS)(tiny.threshold(), x, y, none)
    assert result.queries.tolist() == [0, 0, 0]
    assert result.outcomes == [O.OUT_OF_BUDGET] * 3


def test_many_candidates_at_once_are_each_paid_for() -> None:
    granted_all: list[list[bool]] = []

    def body(run: Run) -> None:
        s = run.begin(At(run.x.clone()))
        for _ in run.steps(3):
            mine = torch.arange(len(run.rows)).repeat_interleave(4)
            _, granted = run.ask(s.x[mine] + 0.01, mine)
            granted_all.append(granted.tolist())

    threat = sp.ThreatModel(sp.Linf(0.9), access="scores", queries=6)
    result = Probe(body=body, card=SCORES)(tiny.threshold(), *below(0.1, 0.2), threat)
    assert result.queries.tolist() == [6, 6]
    assert granted_all == [[True] * 8, [True, True, False, False] * 2]


def test_photographs_are_asked_about_in_batches_that_a_processors_cache_holds() -> None:
    sizes: list[int] = []

    class Net(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return x.mean((2, 3))

    x = torch.rand(4, 3, 224, 224)
    result = sp.attacks.NES(samples=10)(sp.Victim(Net().eval()), x, None, sp.ThreatModel(sp.Linf(1e-4), queries=42))
    assert max(sizes[2:]) <= 2**20 // x[0].numel() + 1  # the first two look at the victim's traits
    assert (result.queries <= 42).all()


def test_the_first_success_of_a_sample_counts_in_a_ball_and_the_nearest_where_the_smallest_is_sought() -> None:
    def body(run: Run) -> None:
        run.begin(At(run.x.clone()))
        for _ in run.steps(1):
            mine = torch.tensor([1, 0, 1, 0, 1])
            run.ask(torch.tensor([[0.2], [0.9], [0.8], [0.7], [0.6]]), mine)

    x, y = below(0.4, 0.4)
    ball = Probe(body=body, card=LABELS)(tiny.threshold(), x, y, sp.Linf(0.9))
    assert ball.adversarial.flatten().tolist() == pytest.approx([0.9, 0.8])
    least = Probe(body=body, card=dataclasses.replace(LABELS, minimal=True))(tiny.threshold(), x, y, sp.Linf())
    assert least.adversarial.flatten().tolist() == pytest.approx([0.7, 0.6])


# -- the smallest change -----------------------------------------------------------------------------------------------


def test_peer_bug_4_the_nearest_success_and_never_the_clean_input_at_distance_0() -> None:
    x, y = below(0.4, 0.3)
    result = Probe(body=visit(0.4, 0.9, 0.6, 0.7, 0.3), card=MINIMAL)(tiny.threshold(), x, y, sp.L2())
    assert result.outcomes == [O.SUCCEEDED] * 2
    torch.testing.assert_close(result.adversarial, torch.full((2, 1), 0.6))
    torch.testing.assert_close(result.distance, torch.tensor([0.2, 0.3]))
    assert result.limit is None


def test_the_nearest_success_of_all_restarts_is_kept() -> None:
    def body(run: Run) -> None:
        visit((0.9, 0.6, 0.8)[run.restart])(run)

    result = Probe(body=body, card=MINIMAL, restarts=3)(tiny.threshold(), *below(0.4), sp.L2())
    assert float(result.distance) == pytest.approx(0.2)


def test_a_smallest_change_beyond_eps_is_survival_and_within_eps_an_early_end() -> None:
    x, y = below(0.45, 0.1)
    result = Probe(body=visit(0.9, 0.6, 0.55, 0.52), card=MINIMAL)(tiny.threshold(), x, y, sp.Linf(0.2))
    assert result.outcomes == [O.SUCCEEDED, O.SURVIVED]
    assert result.forwards.tolist() == [2, 4]
    assert float(result.adversarial[0]) == pytest.approx(0.6)


def test_some_samples_can_be_evaluated_alone() -> None:
    def body(run: Run) -> None:
        scores = run.evaluate(torch.tensor([[0.9], [0.1]]), torch.tensor([2, 0]))
        assert scores.argmax(1).tolist() == [1, 0]
        run.evaluate(torch.tensor([[0.7]]), torch.tensor([1]))

    result = Probe(body=body, card=MINIMAL)(tiny.threshold(), *below(0.1, 0.2, 0.3, 0.4), sp.Linf())
    assert result.succeeded.tolist() == [False, True, True, False]
    assert result.distance[1:3].tolist() == pytest.approx([0.5, 0.6])
    assert result.forwards.tolist() == [1, 1, 1, 0]
