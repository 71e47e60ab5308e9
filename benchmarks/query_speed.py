"""What a query costs: attacks that only ask, beside the same forwards of the bare network and beside the peers."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sparring as sp
from benchmarks.floors import Passes
from benchmarks.harness import Timed, foolbox_model, interleave, peer, seeded, spread, table
from benchmarks.queries import SpentError, foolbox_by_labels, room_for_art
from benchmarks.zoo import network_and_data, read_right
from sparring.core.registry import make_attack

# victim, samples and queries a sample, and the Linf radius: the tiny networks' own cost is next to nothing
FLOORS = (
    ("mnist_adv", 100, 300, 0.3),
    ("cifar10_adv_2px", 100, 300, 2 / 255),
    ("cifar10_resnet20", 50, 24, 0.5 / 255),
    ("imagenet_mobilenet_v1_025", 20, 60, 1 / 255),
)
SCORES = ("square", "simba", "bandits", "nes", "spsa", "genattack", "evolution", "sparse-rs", "one-pixel", "zoo")
LABELS = ("hopskipjump", "boundary", "sign-opt", "surfree", "geoda", "rays")
PEERED = (("mnist_adv", 0.3), ("cifar10_adv_2px", 2 / 255))
QUERIES, MANY = 300, 100


class Metered(nn.Module):
    """A network that counts the inputs it is asked about, and stops at `most`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.asked, self.most = net, 0, 0

    def forward(self, z: Tensor) -> Tensor:
        """The scores."""
        if self.asked >= self.most:
            raise SpentError
        self.asked += len(z)
        with torch.no_grad():
            scores: Tensor = self.net(z.float())
        return scores

    @contextlib.contextmanager
    def allowing(self, more: int) -> Iterator[None]:
        """So many inputs from here on, and quietly out when they are spent."""
        self.most = self.asked + more
        with contextlib.suppress(SpentError):
            yield


def threat(attack: str, eps: float, queries: int) -> sp.ThreatModel:
    """What each attack is made for, with so many queries."""
    space: Any = {"sparse-rs": sp.L0(3, pixels=True), "one-pixel": sp.L0(1, pixels=True), "rays": sp.Linf()}.get(attack)
    if space is None:
        space = sp.L2() if attack in (*LABELS, "zoo") else sp.Linf(eps)
    return sp.ThreatModel(space, access="labels" if attack in LABELS else "scores", queries=queries)


def floors(rounds: int) -> str:
    """Every query attack over its floor."""
    rows = []
    for name, n, queries, eps in FLOORS:
        net, x, y = network_and_data(name, n)
        victim = sp.Victim(net, name=name)
        victim.admit(x, y)  # the look at a new victim's traits belongs to none of the attacks
        for attack in (*SCORES, *LABELS):
            rows.append(
                [name, f"{n}", attack, *_over_floor(net, victim, x, y, attack, threat(attack, eps, queries), rounds)]
            )
    return (
        "Time of the attack over its floor: over the same forwards of the bare network, at the batches that it asked, and "
        "over as many queries at the batch of all n; and what a query costs beyond its forward\n\n"
        + table(
            ["victim", "n", "attack", "forwards", "time / same forwards", "time / at n", "beyond", "a forward"], rows
        )
    )


def _over_floor(
    net: nn.Module, victim: sp.Victim, x: Tensor, y: Tensor, attack: str, asked: sp.ThreatModel, rounds: int
) -> list[str]:
    def run() -> int:
        return int(make_attack(attack)(victim, x, y, asked).queries.sum())

    passes = Passes.of(net, run)
    inputs = {shape: torch.rand(shape) for shape in Counter(shape for shape, _ in passes.seen)}
    timed = interleave({"attack": run, "floor": lambda: passes.again(net, inputs)}, rounds, 0)
    ours, floor, one = timed["attack"], timed["floor"], _one_forward(net, x)
    beyond = (ours.median - floor.median) / ours.value
    at_n = ours.median / (one * ours.value)
    return [
        f"{len(passes.seen)}",
        spread(ours.ratio(floor)),
        f"{at_n:.2f}",
        f"{1e6 * beyond:.0f} us",
        f"{1e6 * one:.0f} us",
    ]


def _one_forward(net: nn.Module, x: Tensor) -> float:
    """Seconds a sample of a bare forward at the batch x."""
    times = []
    with torch.no_grad():
        for _ in range(6):
            began = time.perf_counter()
            net(x)
            times.append(time.perf_counter() - began)
    return sorted(times)[2] / len(x)


@dataclass(frozen=True)
class Contender:
    """A peer's attack: images it is given, and what runs it on them against a metered network."""

    images: int
    run: Callable[[Metered, Tensor, Tensor], None]


def peers(rounds: int) -> str:
    """Seconds for a thousand queries, ours and the peers', each stopped at the same number of true queries."""
    rows = []
    for name, eps in PEERED:
        net, x, y = network_and_data(name, 2 * MANY)
        x, y = (part[:MANY] for part in read_right(net, x, y))
        victim = sp.Victim(net, name=name)
        victim.admit(x, y)
        for attack, others in contenders(eps).items():
            rows += _beside(name, net, victim, x, y, attack, eps, others, rounds)
    return (
        f"Seconds for 1,000 true queries, up to {QUERIES} a sample and {MANY} samples at once; a peer that takes them one by "
        "one is given few. The ratio is ours over the peer's, and cannot be below that of the bare forwards\n\n"
        + table(["victim", "attack", "bare forwards", "ours", "peer", "images", "peer's", "ours / peer"], rows)
    )


def _beside(
    name: str,
    net: nn.Module,
    victim: sp.Victim,
    x: Tensor,
    y: Tensor,
    attack: str,
    eps: float,
    others: dict[str, Contender],
    rounds: int,
) -> list[list[str]]:
    def ours() -> int:
        return int(make_attack(attack)(victim, x, y, threat(attack, eps, QUERIES)).queries.sum())

    def theirs(one: Contender) -> int:
        metered = Metered(net).eval()
        with warnings.catch_warnings(), seeded(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            one.run(metered, x[: one.images], y[: one.images])
        return metered.asked

    runs: dict[str, Callable[[], Any]] = {"ours": ours}
    runs |= {told: lambda one=one: theirs(one) for told, one in others.items()}  # type: ignore[misc]
    timed = interleave(runs, rounds, 0)
    cost = {told: _per_thousand(one) for told, one in timed.items()}
    bare, rows = f"{1000 * _one_forward(net, x):.3f}", []
    for told, one in others.items():
        ratio = cost["ours"].ratio(cost[told])
        figures = [bare, f"{cost['ours'].median:.3f}", told, f"{one.images}", f"{cost[told].median:.3f}", spread(ratio)]
        rows.append([name, attack, *figures])
    return rows


def _per_thousand(timed: Timed) -> Timed:
    """The same rounds, in seconds per thousand of the queries made."""
    return Timed(timed.name, [1000 * s / max(1, timed.value) for s in timed.seconds])


def contenders(eps: float) -> dict[str, dict[str, Contender]]:
    """The peers' implementations of our attacks, as far as they are installed."""
    found: dict[str, dict[str, Contender]] = {
        "square": {},
        "boundary": {},
        "hopskipjump": {},
        "geoda": {},
        "one-pixel": {},
    }
    if (torchattacks := peer("torchattacks")) is not None:

        def square(metered: Metered, x: Tensor, y: Tensor) -> None:
            with metered.allowing(QUERIES * len(x)):
                torchattacks.Square(metered, norm="Linf", eps=eps, n_queries=QUERIES, loss="margin", seed=0)(x, y)

        def one_pixel(metered: Metered, x: Tensor, y: Tensor) -> None:
            for i in range(len(x)):
                with metered.allowing(QUERIES):
                    torchattacks.OnePixel(metered, pixels=1, steps=1000, popsize=25)(x[i : i + 1], y[i : i + 1])

        found["square"]["torchattacks"] = Contender(MANY, square)
        found["one-pixel"]["torchattacks"] = Contender(5, one_pixel)
    if peer("pyautoattack") is not None:
        from pyautoattack.square import SquareAttack

        def autoattack(metered: Metered, x: Tensor, y: Tensor) -> None:
            with metered.allowing(QUERIES * len(x)):
                SquareAttack(metered, norm="Linf", eps=eps, n_queries=QUERIES, seed=0, device="cpu").perturb(x, y)

        found["square"]["pyautoattack"] = Contender(MANY, autoattack)
    if (foolbox := peer("foolbox")) is not None:
        for name, theirs in foolbox_by_labels(foolbox).items():
            found[name]["foolbox"] = Contender(MANY, _foolbox(foolbox, theirs))
    if peer("art") is not None:
        from art.attacks import evasion

        for attack, images, make in (
            ("square", MANY, lambda c: evasion.SquareAttack(c, eps=eps, max_iter=QUERIES, verbose=False)),
            ("boundary", 3, lambda c: evasion.BoundaryAttack(c, targeted=False, verbose=False)),
            ("hopskipjump", 3, lambda c: evasion.HopSkipJump(c, max_iter=200, verbose=False)),
            ("geoda", 3, lambda c: evasion.GeoDA(c, max_iter=4000, verbose=False)),
            ("one-pixel", 2, lambda c: evasion.PixelAttack(c, th=1, es=1, max_iter=100, verbose=False)),
        ):
            found[attack]["ART"] = Contender(images, _art(make, one_by_one=images < MANY))
    return found


def _foolbox(foolbox: Any, attack: Any) -> Callable[[Metered, Tensor, Tensor], None]:
    def run(metered: Metered, x: Tensor, y: Tensor) -> None:
        model = foolbox_model(foolbox, metered)
        with metered.allowing(QUERIES * len(x)):
            attack(model, x, y, epsilons=None)

    return run


def _art(make: Callable[[Any], Any], one_by_one: bool) -> Callable[[Metered, Tensor, Tensor], None]:
    def run(metered: Metered, x: Tensor, y: Tensor) -> None:
        from art.estimators.classification import PyTorchClassifier

        classifier = PyTorchClassifier(
            metered, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0.0, 1.0), device_type="cpu"
        )
        size = 1 if one_by_one else len(x)
        for start in range(0, len(x), size):
            part, labels = x[start : start + size].numpy(), y[start : start + size].numpy()
            with room_for_art(), metered.allowing(QUERIES * len(part)):
                make(classifier).generate(part, np.eye(10, dtype=np.float32)[labels])

    return run
