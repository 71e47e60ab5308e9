"""Leaky gradients: the answers stay, the gradient passes closed ReLUs, and a flat network falls."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import sparring as sp
from sparring.core.errors import VanishedGradientWarning
from sparring.core.slopes import leaky_gradients


def _statement(x: Tensor) -> Tensor:
    h = x * 1.0
    functional.relu(h, inplace=True)
    return h


@pytest.mark.parametrize(
    "relu",
    [nn.ReLU(), nn.ReLU(inplace=True), functional.relu, torch.relu, Tensor.relu, lambda x: (x * 1).relu_(), _statement],
    ids=["module", "module in place", "functional", "torch", "method", "method in place", "statement"],
)
def test_every_kind_of_relu_leaks(relu: Callable[[Tensor], Tensor]) -> None:
    leaf = torch.tensor([-2.0, -0.5, 0.5, 2.0], requires_grad=True)
    with leaky_gradients(0.25):
        out = relu(leaf * 1.0)
    assert out.tolist() == [0, 0, 0.5, 2]
    (grad,) = torch.autograd.grad((out * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum(), leaf)
    assert grad.tolist() == [0.25, 0.5, 3, 4]


def test_no_slope_changes_nothing() -> None:
    leaf = torch.tensor([-2.0, 2.0], requires_grad=True)
    with leaky_gradients(0.0):
        out = torch.relu(leaf)
    (grad,) = torch.autograd.grad(out.sum(), leaf)
    assert grad.tolist() == [0, 1]


def test_a_network_that_is_flat_around_an_input_falls() -> None:
    # score of class 1 rises only once the mean passes .4, and says nothing of it before
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        net[1].weight.fill_(1 / 16)
        net[1].bias.fill_(-0.4)
        net[3].weight.copy_(torch.tensor([[0.0], [10.0]]))
        net[3].bias.copy_(torch.tensor([0.5, 0.0]))
    victim, x, y = sp.Victim(net), torch.full((3, 1, 4, 4), 0.2), torch.zeros(3, dtype=torch.int64)
    with pytest.warns(VanishedGradientWarning):
        blind = sp.attacks.APGD(steps=20)(victim, x, y, sp.Linf(0.3))
    seeing = sp.attacks.APGD(steps=20, relu_slope=0.1)(victim, x, y, sp.Linf(0.3))
    assert blind.robust_accuracy == 1
    assert seeing.robust_accuracy == 0


def test_a_certified_network_beyond_its_radius(zoo) -> None:  # type: ignore[no-untyped-def]
    victim = sp.Victim(zoo.load("mnist_certified_0.1").eval())
    x, y = zoo.data("mnist", 200)
    x, y = x[178:179], y[178:179]
    threat = sp.ThreatModel(sp.Linf(0.15), knowledge=sp.Knowledge(starts=(x + 0.15).clamp(max=1)))
    plain = sp.attacks.APGD(steps=40, loss="margin")(victim, x, y, threat)
    leaky = sp.attacks.APGD(steps=40, loss="margin", relu_slope=0.075)(victim, x, y, threat)
    assert plain.robust_accuracy == 1
    assert leaky.robust_accuracy == 0
