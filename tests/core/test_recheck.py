"""The final re-check, which believes no attack, and the lattice that results keep to."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
import tiny
from probe import CE, LABELS, MINIMAL, SCORES, At, Probe, ask_up, below, walk
from sparring.core.registry import Card
from sparring.core.result import Outcome
from sparring.core.runner import Run

O = Outcome


# -- the final re-check ------------------------------------------------------------------------------------------------


def test_a_success_outside_the_bounds_is_the_attacks_failure() -> None:
    victim = tiny.linear([[10.0], [-10.0]], [0.5, -0.5])  # class 1 below -0.05, outside the bounds
    result = Probe(body=walk(-0.1, 5))(victim, *below(0.2, 0.1), sp.Linf(0.9))
    assert result.outcomes == [O.FAILED] * 2
    assert result.robust_accuracy == 1.0
    assert result.attack_success_rate == 0.0


@pytest.mark.parametrize("early_stop", [True, False])
def test_a_success_outside_the_ball_is_the_attacks_failure(early_stop: bool) -> None:
    def leave(run: Run) -> None:
        s = run.begin(At(run.x.clone()))
        for _ in run.steps(2):
            run.gradient(s.x, CE)
            s.x = run.x + 0.3

    result = Probe(body=leave)(tiny.threshold(), *below(0.4, 0.1), sp.Linf(0.2), early_stop=early_stop)
    assert not result.succeeded.any()
    assert result.outcomes == [O.FAILED, O.SURVIVED]


def test_a_lying_record_of_success_is_not_believed() -> None:
    def lie(run: Run) -> None:
        run.begin(At(run.x + 0.01))
        run.ledger.found[:] = True
        run.ledger.best_cost[:] = 0.01

    result = Probe(body=lie)(tiny.threshold(), *below(0.1, 0.4), sp.Linf(0.2))
    assert result.outcomes == [O.SURVIVED] * 2


def test_a_point_of_nan_is_no_success() -> None:
    def spoil(run: Run) -> None:
        run.begin(At(run.x * torch.nan))

    victim = tiny.linear([[1.0], [1.0]], [0.0, -1.0])
    victim.net.register_forward_pre_hook(lambda m, args: torch.nan_to_num(args[0], nan=0.9))
    result = Probe(body=spoil)(victim, *below(0.1), sp.Linf(0.9))
    assert not result.succeeded.any()


@pytest.mark.parametrize(("card", "outcome", "at"), [(LABELS, O.SUCCEEDED, 0.52), (SCORES, O.SURVIVED, 0.51)])
def test_a_success_that_a_rounding_undoes_gives_way_to_one_before(card: Card, outcome: O, at: float) -> None:
    """Labels do not tell how sure a success is: the nearest one may be gone when the victim is asked once more."""
    victim = tiny.threshold()
    layer: Any = next(m for m in victim.modules[0].modules() if isinstance(m, nn.Linear))

    def nearer(run: Run) -> None:
        for point in (0.8, 0.52, 0.51004, 0.51):  # the last two are hardly apart
            run.ask(torch.full_like(run.x, point))
        layer.bias.data += torch.tensor([0.15, -0.15])  # the rounding: class 1 begins at 0.515

    attack = Probe(body=nearer, card=dataclasses.replace(card, minimal=True))
    result = attack(victim, *below(0.45), sp.ThreatModel(sp.Linf(), access=card.access))
    assert result.outcomes == [outcome]
    assert float(result.adversarial) == pytest.approx(at)


def test_the_recheck_is_not_charged() -> None:
    threat = sp.ThreatModel(sp.Linf(0.9), access="labels", queries=3)
    victim, spy = tiny.spied(tiny.threshold())
    result = Probe(body=ask_up(0.03), card=LABELS)(victim, *below(0.45), threat)
    assert result.queries.tolist() == [2]
    assert sum(spy.batches) == 4  # clean, two queries, re-check


def test_a_random_victim_must_fall_on_most_fresh_draws() -> None:
    """Noise that fools the victim one time in five is no success, however lucky the search was."""

    class Noisy(nn.Module):
        traits = sp.Traits(stochastic=True)
        keyed = True

        def forward(self, x: Tensor, noise: Any = None, stream: int = 0) -> Tensor:
            jump = 0.0 if noise is None else noise.uniform((1,), ("jump", stream)).lt(self.chance).float()
            return x + jump

        chance = 0.2

    shaky = Noisy().eval()
    victim = tiny.threshold().defended(pre=[shaky])
    x, y = torch.linspace(0.1, 0.4, 40)[:, None], torch.zeros(40, dtype=torch.int64)
    result = Probe(body=walk(0.0, 20))(victim, x, y, sp.Linf(0.01))
    assert int(result.forwards.max()) > 1
    tried = int((result.outcome != O.CLEAN_ERROR).sum())
    assert tried > 20
    assert result.succeeded.sum() < 0.15 * tried
    shaky.chance = 0.9
    assert Probe(body=walk(0.0, 20))(victim, x, y, sp.Linf(0.01)).attack_success_rate == 1.0


def test_a_white_box_search_consults_the_detector() -> None:
    """Wrong but rejected is no success: the search goes on to a point that is wrong and accepted."""
    victim = tiny.threshold().defended(detector=lambda x: (x < 0.5).flatten() | (x > 0.75).flatten())
    result = Probe(body=walk(0.1, 10))(victim, *below(0.42), sp.Linf(0.9))
    assert result.outcomes == [O.SUCCEEDED]
    assert float(result.adversarial) > 0.75


# -- the lattice -------------------------------------------------------------------------------------------------------


def on_grid(x: Tensor) -> bool:
    return bool((x * 255 - (x * 255).round()).abs().max() < 1e-3)


@pytest.mark.parametrize("space", [sp.Linf(0.15, lattice=256), sp.L2(0.8, lattice=256), sp.L1(4.0, lattice=256)])
def test_results_on_the_lattice_stay_on_it(space: Any) -> None:
    x, y = tiny.correct(8)
    seen: list[Tensor] = []
    victim = tiny.trained()

    def body(run: Run) -> None:
        s = run.begin(At(run.space.sample(run.x, run.rng, "start")))
        for _ in run.steps(20):
            g = run.gradient(s.x, CE)
            s.x = run.space.project(run.x, s.x + 0.3 * run.space.eps[:, None, None, None] * run.space.steepest(g.grad))

    assert isinstance(victim.net, nn.Module)
    hook = victim.net.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    try:
        result = Probe(body=body)(victim, x, y, space)
    finally:
        hook.remove()
    assert result.succeeded.any()
    assert all(on_grid(batch) for batch in seen)
    assert on_grid(result.adversarial)
    read_back = (result.adversarial * 255).round().to(torch.uint8).float() / 255
    assert torch.equal(victim.query(read_back).labels != y, result.succeeded)


@pytest.mark.parametrize(("undone", "outcome"), [(2e-4, O.SUCCEEDED), (2e-2, O.SURVIVED)])
@pytest.mark.parametrize("limit", [None, 0.051])
def test_a_smallest_change_that_a_rounding_undoes_is_looked_at_a_little_farther(
    undone: float, outcome: O, limit: float | None
) -> None:
    victim = tiny.threshold()
    layer: Any = next(m for m in victim.modules[0].modules() if isinstance(m, nn.Linear))

    def touch(run: Run) -> None:
        run.evaluate(torch.full_like(run.x, 0.50001))
        layer.bias.data += torch.tensor([undone, -undone])  # class 1 begins at .5 + undone / 10

    result = Probe(body=touch, card=MINIMAL)(victim, *below(0.45), sp.Linf() if limit is None else sp.Linf(limit))
    assert result.outcomes == [outcome]
    if outcome is O.SUCCEEDED:
        assert 0.05 < float(result.distance) < 0.0502


def test_a_little_farther_must_not_leave_the_ball() -> None:
    victim = tiny.threshold()
    layer: Any = next(m for m in victim.modules[0].modules() if isinstance(m, nn.Linear))

    def touch(run: Run) -> None:
        run.evaluate(torch.full_like(run.x, 0.50001))
        layer.bias.data += torch.tensor([2e-4, -2e-4])

    result = Probe(body=touch, card=MINIMAL)(victim, *below(0.45), sp.Linf(0.05002))
    assert result.outcomes == [O.SURVIVED]
