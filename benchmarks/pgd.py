"""PGD against the bare gradient steps, and beside foolbox and torchattacks on the same work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import sparring as sp
from benchmarks.harness import bare_steps, foolbox_model, interleave, peer, spread, table
from benchmarks.zoo import network_and_data

STEPS = 40


def floor(rounds: int) -> str:
    """PGD-40 over the bare steps, with and without early stopping."""
    rows = []
    for name, n, eps in (("mnist_adv", 500, 0.3), ("cifar10_resnet20", 100, 4 / 255)):
        net, x, y = network_and_data(name, n)
        victim = sp.Victim(net, name=name)

        def attack(
            early_stop: bool,
            precision: str = "auto",
            victim: sp.Victim = victim,
            x: Any = x,
            y: Any = y,
            eps: float = eps,
        ) -> Any:
            climb = sp.PGD(steps=STEPS, precision=precision)
            return climb(victim, x, y, sp.Linf(eps), early_stop=early_stop, batch_size=len(x))

        timed = interleave(
            {
                "bare": lambda net=net, x=x, y=y: bare_steps(net, x, y, STEPS),
                "whole": lambda attack=attack: attack(False),
                "float32": lambda attack=attack: attack(False, "float32"),
                "early": lambda attack=attack: attack(True),
            },
            rounds,
        )
        modes = (("whole", "all 40 steps"), ("float32", "all 40 steps, float32"), ("early", "early stop"))
        for key, told in modes:
            result = timed[key].value
            share = float(result.backwards.sum()) / (STEPS * n)
            rows.append(
                [
                    *(name, f"{n}", f"{eps:.4g}", told, f"{result.robust_accuracy:.1%}", f"{share:.2f}"),
                    spread(timed[key].ratio(timed["bare"])),
                ]
            )
    return "PGD-40 over bare forward + input gradient, Linf\n\n" + table(
        ["victim", "n", "eps", "mode", "robust", "gradient steps taken", "time / bare"], rows
    )


def peers(rounds: int) -> str:
    """PGD-40 beside foolbox and torchattacks: the same steps, step size and random start, at equal robust accuracy."""
    rows = []
    for name, n, eps in (("mnist_adv", 200, 0.3), ("cifar10_adv_2px", 200, 2 / 255)):
        net, x, y = network_and_data(name, n)
        step = 2.5 * eps / STEPS
        contenders: dict[str, Callable[[], Any]] = {"sparring": _ours(net, x, y, eps, step)}
        if (foolbox := peer("foolbox")) is not None:
            contenders["foolbox"] = _foolbox(foolbox, net, x, y, eps, step)
        if (torchattacks := peer("torchattacks")) is not None:
            contenders["torchattacks"] = _torchattacks(torchattacks, net, x, y, eps, step)
        timed = interleave(contenders, rounds)
        for who, t in timed.items():
            ratio = spread(timed["sparring"].ratio(t)) if who != "sparring" else ""
            rows.append([name, f"{n}", f"{eps:.4g}", who, f"{t.value:.1%}", f"{t.median:.2f} s", ratio])
    return "PGD-40 beside the peers, Linf, one random start\n\n" + table(
        ["victim", "n", "eps", "library", "robust", "median", "sparring / this"], rows
    )


def _ours(net: Any, x: torch.Tensor, y: torch.Tensor, eps: float, step: float) -> Callable[[], float]:
    victim = sp.Victim(net)
    attack = sp.PGD(steps=STEPS, step_size=step)
    return lambda: attack(victim, x, y, sp.Linf(eps), batch_size=len(x)).robust_accuracy


def _foolbox(foolbox: Any, net: Any, x: torch.Tensor, y: torch.Tensor, eps: float, step: float) -> Callable[[], float]:
    model = foolbox_model(foolbox, net)
    attack = foolbox.attacks.LinfPGD(steps=STEPS, abs_stepsize=step)

    def run() -> float:
        _, _, hit = attack(model, x, y, epsilons=eps)
        return 1 - float(hit.float().mean())

    return run


def _torchattacks(
    peer: Any, net: Any, x: torch.Tensor, y: torch.Tensor, eps: float, step: float
) -> Callable[[], float]:
    attack = peer.PGD(net, eps=eps, alpha=step, steps=STEPS, random_start=True)

    def run() -> float:
        with torch.no_grad():
            clean = net(x).argmax(1) == y
        adversarial = attack(x, y)
        with torch.no_grad():
            return float((clean & (net(adversarial).argmax(1) == y)).float().mean())

    return run
