"""The gradients that a run hands to an attack: those of the loss, repaired, averaged and counted."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
import tiny
from probe import At, Probe, below
from sparring.core.errors import VictimWarning
from sparring.core.losses import get_loss
from sparring.core.result import Outcome
from sparring.core.runner import Run

O = Outcome


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_gradients_are_those_of_the_loss_at_the_point() -> None:
    x, y = tiny.correct(4)
    victim = tiny.trained()

    def body(run: Run) -> None:
        run.begin(At(run.x.clone()))
        g = run.gradient(run.x, get_loss("margin"))
        leaf = x.clone().requires_grad_(True)
        with torch.enable_grad():
            scores = victim.scores(leaf)
            value = get_loss("margin")(scores, y, sp.Untargeted())
            expected = torch.autograd.grad(value.sum(), leaf)[0]
        torch.testing.assert_close(g.grad, expected)
        torch.testing.assert_close(g.loss, value.detach())
        torch.testing.assert_close(g.scores, scores.detach())
        scores, values, rows = run.jacobian(run.x, lambda s: s[:, :3] - s[:, 3:])
        torch.testing.assert_close(values, scores[:, :3] - scores[:, 3:])
        for j in range(3):
            with torch.enable_grad():
                again = victim.scores(leaf)
                one = (again[:, j] - again[:, 3]).sum()
            torch.testing.assert_close(rows[:, j], torch.autograd.grad(one, leaf)[0])
        assert not rows.requires_grad
        assert not values.requires_grad

    result = Probe(body=body)(victim, x, y, sp.Linf(0.1))
    assert result.forwards.tolist() == [2] * 4
    assert result.backwards.tolist() == [4] * 4


def test_a_gradient_of_nan_is_repaired() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([0.6 - x.sqrt(), x.sqrt() - 0.6], dim=1)

    def body(run: Run) -> None:
        run.begin(At(run.x.clone()))
        g = run.gradient(run.x, get_loss("margin"))
        assert torch.isfinite(g.grad).all()
        assert g.grad[1] > 0

    Probe(body=body)(sp.Victim(Root().eval()), *below(0.0, 0.2), sp.Linf(0.1))


class Saturated(nn.Module):
    """Logarithms of probabilities that have run out of digits: their gradient is no number, or zero."""

    def __init__(self, net: nn.Module, scale: float) -> None:
        super().__init__()
        self.net, self.scale = net, scale

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(torch.softmax(self.scale * self.net(x), 1))


def test_survival_where_no_gradient_leads_anywhere_is_warned_about() -> None:
    x, y = tiny.correct(6)
    net = tiny.trained().net
    assert isinstance(net, nn.Module)
    victim = sp.Victim(Saturated(net, 100.0).eval(), name="saturated")
    for attack in (sp.PGD(steps=5), sp.attacks.FAB(steps=3)):
        with pytest.warns(VictimWarning, match=r"gradient of 'saturated' is zero or no number at most inputs"):
            result = attack(victim, x, y, sp.Linf(0.15))
        assert not result.succeeded.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sp.PGD(steps=5)(tiny.trained(), x, y, sp.Linf(1e-4))  # stands, with a gradient
        sp.attacks.Square(queries=20)(victim, x, y, sp.Linf(0.01))  # asks for none


def test_a_compiled_network_gives_every_gradient_though_it_frees_its_graph() -> None:
    x, y = tiny.correct(3)
    net = tiny.trained().net
    assert isinstance(net, nn.Module)
    plain, compiled = (
        sp.attacks.DeepFool()(sp.Victim(n, name="n"), x, y, sp.L2())
        for n in (net, torch.compile(net, backend="aot_eager"))
    )
    assert plain.succeeded.all()
    torch.testing.assert_close(compiled.adversarial, plain.adversarial, atol=1e-4, rtol=1e-4)
    assert torch.equal(compiled.backwards, plain.backwards)
    assert (compiled.forwards > plain.forwards).all()


def test_expectation_over_transformation_averages_gradients_and_counts_each_draw() -> None:
    class Shake(nn.Module):
        traits = sp.Traits(stochastic=True)
        keyed = True

        def forward(self, x: Tensor, noise: Any = None, stream: int = 0) -> Tensor:
            return x if noise is None else x * (1 + noise.normal((1,), ("shake", stream)))

    victim = tiny.threshold().defended(pre=[Shake().eval()])
    slopes: dict[int, float] = {}

    def body(run: Run) -> None:
        run.begin(At(run.x.clone()))
        g = run.gradient(run.x, get_loss("margin")).grad
        slopes[len(slopes)] = float(g.std())

    x, y = torch.linspace(0.2, 0.3, 60)[:, None], torch.zeros(60, dtype=torch.int64)
    Probe(body=body)(victim, x, y, sp.Linf(0.01), early_stop=False)
    result = Probe(body=body)(victim.attack_view(eot=25), x, y, sp.Linf(0.01), early_stop=False)
    assert slopes[1] < 0.4 * slopes[0]  # a fifth, up to chance
    assert set(result.backwards.tolist()) == {25}
