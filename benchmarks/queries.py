"""Attacks that only ask: success and distance at 100, 1,000 and 5,000 queries, beside the peers at equal true queries."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import sparring as sp
from benchmarks.harness import foolbox_model, peer, seeded, table
from benchmarks.zoo import load_zoo
from sparring.core.registry import make_attack

BUDGETS = (100, 1000, 5000)
PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
SCORES = ("square", "simba", "bandits", "nes", "spsa", "genattack")
LABELS = ("hopskipjump", "boundary", "sign-opt", "surfree", "geoda")
SUBJECTS = (("mnist_adv", 0.3, 30), ("cifar10_adv_2px", 2 / 255, 30))


class SpentError(Exception):
    """Raised inside a peer when its queries are spent."""


@dataclass(eq=False)
class Counting:
    """A network that counts the queries of each sample, notes the nearest wrong answer, and stops at the last budget.

    Peers ask for whole batches: a call with k times n inputs is k queries of each of the n samples. What it notes is
    generous to a peer: the nearest adversarial input that it ever asked about, whether it returns it or not.
    """

    net: nn.Module
    x: Tensor
    y: Tensor
    norm: float
    calls: float = 0.0
    best: Tensor = field(init=False)
    at: dict[int, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.best = torch.full((len(self.x),), torch.inf)

    def __call__(self, z: Tensor) -> Tensor:
        """The scores."""
        with torch.no_grad():
            scores: Tensor = self.net(z)
        self.calls += len(z) / len(self.x)
        if len(z) == len(self.x):
            wrong = scores.argmax(1) != self.y
            size = torch.linalg.vector_norm((z - self.x).flatten(1), ord=self.norm, dim=1)
            self.best = torch.where(wrong & (size < self.best), size, self.best)
        for budget in BUDGETS:
            if self.calls <= budget:
                self.at[budget] = self.best.clone()
        if self.calls > BUDGETS[-1]:
            raise SpentError
        return scores


def by_scores(rounds: int) -> str:
    """Robust accuracy in the Linf ball at each budget."""
    zoo, rows = load_zoo(), []
    for name, eps, n in SUBJECTS:
        net = zoo.load(name)
        x, y = zoo.data(name.split("_")[0], n)
        victim = sp.Victim(net, name=name)
        for attack in SCORES:
            began = time.perf_counter()
            threat = sp.ThreatModel(sp.Linf(eps), access="scores", queries=BUDGETS[-1])
            result = make_attack(attack)(victim, x, y, threat)
            took = time.perf_counter() - began
            left = [
                float((result.clean_correct & ~(result.succeeded & (result.queries <= b))).float().mean())
                for b in BUDGETS
            ]
            bare = _floor(net, x, int(result.queries.sum()))
            rows.append([name, f"{n}", attack, *(f"{share:.0%}" for share in left), f"{took / bare:.2f}"])
        if (torchattacks := peer("torchattacks")) is not None:
            rows.append([name, f"{n}", "torchattacks Square", *_torchattacks(torchattacks, net, x, y, eps), ""])
    return "Robust accuracy after so many queries, Linf; our attacks planned for 5,000\n\n" + table(
        ["victim", "n", "attack", *(f"{b:,}" for b in BUDGETS), "time / bare forwards"], rows
    )


def _floor(net: nn.Module, x: Tensor, queries: int) -> float:
    """Seconds of so many bare forwards, at the batch of the samples."""
    with torch.no_grad():
        net(x)
        began = time.perf_counter()
        for _ in range(5):
            net(x)
    return (time.perf_counter() - began) / 5 / len(x) * queries


def _torchattacks(package: Any, net: nn.Module, x: Tensor, y: Tensor, eps: float) -> list[str]:
    left = []
    with torch.no_grad():
        right = net(x).argmax(1) == y
    for budget in BUDGETS:
        with seeded():
            attack = package.Square(net, norm="Linf", eps=eps, n_queries=budget, n_restarts=1, loss="margin", seed=0)
            adversarial = attack(x, y)
        with torch.no_grad():
            left.append(f"{float((right & (net(adversarial).argmax(1) == y)).float().mean()):.0%}")
    return left


def by_labels(rounds: int) -> str:
    """Median L2 distance at each budget, and the curves as a picture."""
    zoo, rows, curves = load_zoo(), [], {}
    for name, _, n in SUBJECTS:
        net = zoo.load(name)
        x, y = zoo.data(name.split("_")[0], n)
        with torch.no_grad():
            right = net(x).argmax(1) == y
        x, y = x[right], y[right]
        victim = sp.Victim(net, name=name)
        for attack in LABELS:
            medians, took, asked = [], 0.0, 0
            for budget in BUDGETS:
                began = time.perf_counter()
                threat = sp.ThreatModel(sp.L2(), access="labels", queries=budget)
                result = make_attack(attack)(victim, x, y, threat)
                took, asked = time.perf_counter() - began, int(result.queries.sum())
                medians.append(float(result.distance.masked_fill(~result.succeeded, torch.inf).median()))
            rows.append(
                [name, f"{len(x)}", attack, *(f"{m:.3g}" for m in medians), f"{took / _floor(net, x, asked):.2f}"]
            )
            curves.setdefault(name, {})[attack] = medians
        if (foolbox := peer("foolbox")) is not None:
            for told, make in (
                ("foolbox HopSkipJump", lambda: foolbox.attacks.HopSkipJumpAttack(steps=200)),
                ("foolbox Boundary", lambda: foolbox.attacks.BoundaryAttack(steps=25_000)),
            ):
                medians = _foolbox(foolbox, make, net, x, y)
                rows.append([name, f"{len(x)}", told, *(f"{m:.3g}" for m in medians), ""])
                curves[name][told] = medians
    _draw(curves)
    return (
        "Median L2 distance after so many queries, over the samples that are right at first; each budget is a run of its own\n\n"
        + table(["victim", "n", "attack", *(f"{b:,}" for b in BUDGETS), "time / bare forwards"], rows)
        + "\n\n![Median distance against queries](pictures/queries.png)"
    )


def _foolbox(foolbox: Any, make: Callable[[], Any], net: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    counting = Counting(net, x, y, 2.0)

    class Wrapped(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return counting(z)

    model = foolbox_model(foolbox, Wrapped().eval())
    with warnings.catch_warnings(), seeded():
        warnings.simplefilter("ignore")
        with contextlib.suppress(SpentError):
            make()(model, x, y, epsilons=None)
    return [float(counting.at.get(budget, counting.best).median()) for budget in BUDGETS]


def _draw(curves: dict[str, dict[str, list[float]]]) -> None:
    """A panel for each victim."""
    figure = Figure(figsize=(4.2 * len(curves), 3.6), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, lines) in zip(panels, curves.items(), strict=True):
        for attack, medians in lines.items():
            axes.plot(
                BUDGETS, medians, "o--" if "foolbox" in attack else "o-", label=attack, linewidth=1.4, markersize=4
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("queries")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("median L2 distance")
    panels[-1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(PICTURES / "queries.png", dpi=120)
