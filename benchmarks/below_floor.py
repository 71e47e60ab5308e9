"""What goes below the float32 floor of gradient attacks, and what each part of it buys."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import sparring as sp
from benchmarks.harness import bare_steps, interleave, spread, table
from benchmarks.zoo import network_and_data
from sparring.attacks.gradient.apgd import APGD
from sparring.core.arrangement import plan_of

STEPS = 40
# On the ResNet-20 and the MobileNet the least eps at which bfloat16 is thought of: one of its rounding steps.
CASES = (
    ("mnist_adv", 200, 0.3),
    ("cifar10_adv_2px", 200, 2 / 255),
    ("cifar10_resnet20", 100, 1 / 255),
    ("imagenet_mobilenet_v1_025", 25, 1 / 255),
)


def below(rounds: int) -> str:
    """PGD and auto-PGD, all steps, over as many bare float32 steps: the network as it is, and each thing done to it."""
    rows = []
    for name, n, eps in CASES:
        net, x, y = network_and_data(name, n)
        for told, make in (("PGD", _pgd), ("auto-PGD", _apgd)):
            contenders: dict[str, Callable[[], Any]] = {"bare": lambda net=net, x=x, y=y: bare_steps(net, x, y, STEPS)}
            for mode, victim, precision in _modes(net, x):
                climb = make(precision)
                contenders[mode] = lambda victim=victim, climb=climb, x=x, y=y, eps=eps: climb(
                    victim, x, y, sp.Linf(eps), early_stop=False, batch_size=len(x)
                )
            timed = interleave(contenders, rounds)
            for mode, t in timed.items():
                if mode != "bare":
                    robust = f"{t.value.robust_accuracy:.1%}"
                    rows.append([name, f"{n}", f"{eps:.4g}", told, mode, robust, spread(t.ratio(timed["bare"]))])
    return f"Gradient attacks of {STEPS} steps without early stop over {STEPS} bare float32 steps, Linf\n\n" + table(
        ["victim", "n", "eps", "attack", "network", "robust", "time / bare"], rows
    )


def _modes(net: nn.Module, x: Tensor) -> Iterator[tuple[str, sp.Victim, str]]:
    """What is done to a network, the victim to whom it is, and the precision of the search."""
    yield "as it is, float32", sp.Victim(net, quick=False), "float32"
    if any(isinstance(m, nn.BatchNorm2d) for m in net.modules()):
        for mode, off in (("channels last", "folds"), ("batch-norms folded", "last")):
            mine = copy.deepcopy(net)
            plan = plan_of(mine)
            with torch.no_grad():
                plan.learn(mine, x)
            setattr(plan, off, False)
            yield mode, sp.Victim(mine), "float32"
    yield "rearranged, float32", sp.Victim(net), "float32"
    yield "rearranged, auto", sp.Victim(net), "auto"


def _pgd(precision: str) -> sp.Attack:
    return sp.PGD(steps=STEPS, precision=precision)


def _apgd(precision: str) -> sp.Attack:
    return APGD(steps=STEPS, precision=precision)
