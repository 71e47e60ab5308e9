"""DDN, FMN, DeepFool and SuperDeepFool: how long their steps are, what their last forwards bring, and known figures."""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import nn

import sparring as sp
import tiny
from sparring.attacks.minimum_norm import DDN, FMN, DeepFool, SuperDeepFool
from sparring.core.balls import Ball


@pytest.mark.parametrize("space", [sp.L1(), sp.L2(), sp.Linf()], ids=["l1", "l2", "linf"])
def test_fmns_steps_follow_the_distance(space: Ball) -> None:
    """A linear victim: a boundary two hundred times nearer is found as exactly, by steps as much shorter."""
    w = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, -2.0, 3.0, -1.0]])
    x, y = torch.full((1, 4), 0.5), torch.tensor([0])
    size = {1.0: 3.0, 2.0: math.sqrt(15.0), math.inf: 7.0}[space.p]
    for far in (0.2, 0.001):
        gap = far * size
        victim = tiny.linear(w, [gap + 0.5, 0.0])  # <w, x> is 0.5
        distance = FMN(steps=60, polish=0)(victim, x, y, space).distance.item()
        assert distance == pytest.approx(far, rel=0.01)


@pytest.mark.parametrize("attack", [DDN(steps=30), FMN(steps=30)], ids=["ddn", "fmn"])
def test_polishing_brings_every_sample_nearer_and_takes_no_gradient(attack: DDN | FMN) -> None:
    x, y = tiny.correct(12)
    rough = replace(attack, polish=0)(tiny.trained(), x, y, sp.L2())
    fine = attack(tiny.trained(), x, y, sp.L2())
    assert (fine.distance <= rough.distance).all()
    assert fine.distance.mean() < 0.999 * rough.distance.mean()
    assert torch.equal(fine.backwards, rough.backwards)
    assert torch.equal(fine.forwards, rough.forwards + attack.polish)


def test_superdeepfool_differentiates_one_class_after_the_first_step() -> None:
    x, y = tiny.correct(6)
    victim = tiny.trained()
    classes = int(victim.query(x).scores.shape[1])
    result = SuperDeepFool(steps=9, patience=99)(victim, x, y, sp.L2())
    assert (result.backwards == classes - 1 + 8).all()


def test_deepfool_follows_three_rivals_after_the_first_step() -> None:
    g = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 8)).eval().requires_grad_(False)
    for p in net.parameters():
        p.copy_(torch.randn(p.shape, generator=g) * 0.8)
    victim, x = sp.Victim(net), torch.rand(40, 10, generator=g)
    result = DeepFool()(victim, x, victim.query(x).labels, sp.L2())
    later = result.backwards - 7
    assert (later % 3 == 0).all()
    assert (later > 0).any()
    assert result.succeeded.all()


def test_known_figures_on_digits(zoo: ModuleType) -> None:
    """Digits against Linf training: long steps reach the corners of the cube, and half turns do not swing about."""
    victim = sp.Victim(zoo.load("mnist_adv"))
    x, y = zoo.data("mnist", 30)
    assert FMN(steps=100)(victim, x, y, sp.Linf()).median_distance < 0.385
    assert FMN(steps=100, step_size=1.0)(victim, x, y, sp.Linf()).median_distance > 0.42
    assert SuperDeepFool()(victim, x, y, sp.L2()).median_distance < 2.1
    assert SuperDeepFool(turn=1.0)(victim, x, y, sp.L2()).median_distance > 2.5


def test_known_figures_on_pictures(zoo: ModuleType) -> None:
    """An undefended ResNet-20, whose boundaries are a hundredth of a digit's distance away."""
    victim = sp.Victim(zoo.load("cifar10_resnet20"))
    x, y = zoo.data("cifar10", 8)
    for space in (sp.Linf(), sp.L2()):
        ours = FMN(steps=30)(victim, x, y, space)
        assert ours.median_distance < 0.9 * FMN(steps=30, step_size=10.0)(victim, x, y, space).median_distance
