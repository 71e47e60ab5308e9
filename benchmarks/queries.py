"""Attacks that only ask: success and distance at 100, 1,000 and 5,000 queries, beside the peers at equal true queries."""

from __future__ import annotations

import contextlib
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor, nn

import sparring as sp
from benchmarks.harness import foolbox_model, interleave, peer, seeded, spread, table
from benchmarks.zoo import load_zoo, network_and_data, read_right
from sparring.core.registry import make_attack

BUDGETS = (100, 1000, 5000)
PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
SCORES = ("square", "simba", "bandits", "nes", "spsa", "genattack")
LABELS = ("hopskipjump", "boundary", "sign-opt", "surfree", "geoda")
# Budgets at which we look whether ours is as near as a peer.
STAIRS = (300, 400, 500, 600, 700, 850, 1000, 1300, 1600, 2000, 2500, 3000, 4000, 5000)
PIXEL_STAIRS = (100, 200, 300, 400, 500, 600, 800, 1000, 1300, 1600, 2000)
# ART takes inputs one by one: it is given so many of them
FEW = 10
# Numbers in the inputs that foolbox is given at once: its HopSkipJump draws some hundred directions for each
AT_ONCE = 2**20


@dataclass(frozen=True)
class Subject:
    """A network, the radius of the ball for attacks by scores, how many samples, and at how many queries to look.

    A frozen network is the same function without batch norms and gradients, a fifth faster, for all who ask it.
    """

    name: str
    eps: float
    n: int
    budgets: tuple[int, ...] = BUDGETS
    frozen: bool = False

    def load(self) -> tuple[nn.Module, Tensor, Tensor]:
        """The network and the first n samples that it reads right."""
        net, x, y = network_and_data(self.name, 3 * self.n)
        x, y = read_right(net, x, y)
        if self.frozen:
            net = torch.jit.optimize_for_inference(torch.jit.trace(net.eval(), x[:2]))
        return net, x[: self.n], y[: self.n]

    def attacked(self) -> tuple[nn.Module, sp.Victim, Tensor, Tensor]:
        """The same, and the victim, whose traits have been looked at: that belongs to none of the attacks."""
        net, x, y = self.load()
        victim = sp.Victim(net, name=self.name)
        victim.admit(x, y)
        return net, victim, x, y


TINY = (Subject("mnist_adv", 0.3, 30), Subject("cifar10_adv_2px", 2 / 255, 30))
PHOTOS = "imagenet_mobilenet_v1_025"
LARGE = (Subject("cifar10_resnet20", 1 / 255, 10), Subject(PHOTOS, 2 / 255, 20, BUDGETS[:2]))


class SpentError(Exception):
    """Raised inside a peer when its queries are spent."""


class Counting(nn.Module):
    """A network that counts the queries of each sample, notes the nearest wrong answer, and stops at the last budget.

    Peers ask for whole batches: a call with k times n inputs is k queries of each of the n samples. What it notes is
    generous to a peer: the nearest adversarial input that it ever asked about, whether it returns it or not.
    """

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor, norm: float, budgets: tuple[int, ...]) -> None:
        super().__init__()
        self.net, self.x, self.y, self.norm, self.budgets = net, x, y, norm, budgets
        self.calls = 0.0
        self.best = torch.full((len(x),), torch.inf)
        self.at: dict[int, Tensor] = {}

    def forward(self, z: Tensor) -> Tensor:
        """The scores."""
        z = z.float()
        with torch.no_grad():
            scores: Tensor = self.net(z)
        self.calls += len(z) / len(self.x)
        if len(z) == len(self.x) or len(self.x) == 1:
            wrong = scores.argmax(1) != self.y
            size = torch.linalg.vector_norm((z - self.x).flatten(1), ord=self.norm, dim=1)
            near = size.masked_fill(~wrong, torch.inf).reshape(-1, len(self.x)).amin(0)
            self.best = torch.minimum(self.best, near)
        for budget in self.budgets:
            if self.calls <= budget:
                self.at[budget] = self.best.clone()
        if self.calls > self.budgets[-1]:
            raise SpentError
        return scores

    def distances(self) -> list[Tensor]:
        """The nearest wrong answers at each budget."""
        return [self.at.get(budget, self.best) for budget in self.budgets]


def by_scores(rounds: int) -> str:
    """The share that stands in the Linf ball at each budget, on networks whose forwards cost next to nothing."""
    return _scores(TINY)


def by_scores_large(rounds: int) -> str:
    """The same on networks of ordinary size."""
    return _scores(LARGE)


def by_scores_photos(rounds: int) -> str:
    """Square, which has a peer, on more photographs and with more queries."""
    return _scores((Subject(PHOTOS, 2 / 255, 50),), ("square",))


def _scores(subjects: tuple[Subject, ...], attacks: tuple[str, ...] = SCORES) -> str:
    rows = []
    for subject in subjects:
        net, victim, x, y = subject.attacked()
        head = [subject.name, f"{subject.eps:.3g}"]
        for attack in attacks:
            left = []
            for budget in subject.budgets:
                began = time.perf_counter()
                threat = sp.ThreatModel(sp.Linf(subject.eps), access="scores", queries=budget)
                result = make_attack(attack)(victim, x, y, threat)
                took = time.perf_counter() - began
                left.append(1 - float(result.succeeded.float().mean()))
            bare = _floor(net, x, int(result.queries.sum()))
            rows.append([*head, f"{len(x)}", attack, *_shares(left), f"{took / bare:.2f}"])
        if (torchattacks := peer("torchattacks")) is not None:
            left = _torchattacks(torchattacks, net, x, y, subject)
            rows.append([*head, f"{len(x)}", "torchattacks Square", *_shares(left), ""])
        if peer("art") is not None and subject in TINY:
            rows.append([*head, f"{FEW}", "ART Square", *_shares(_art_square(net, x[:FEW], y[:FEW], subject)), ""])
            threat = sp.ThreatModel(sp.Linf(subject.eps), access="scores", queries=subject.budgets[-1])
            left = _left(make_attack("square")(victim, x[:FEW], y[:FEW], threat), subject)
            rows.append([*head, f"{FEW}", "square on those", *_shares(left), ""])
    return (
        "The share still read right after so many queries, of samples that are right at first, Linf; each budget is a run of "
        "its own, but for ART's and ours on the same samples\n\n"
        + table(["victim", "eps", "n", "attack", *(f"{b:,}" for b in BUDGETS), "time / bare forwards"], rows)
    )


def _left(result: sp.AttackResult, subject: Subject) -> list[float]:
    """The share that stands at each budget."""
    return [1 - float((result.succeeded & (result.queries <= b)).float().mean()) for b in subject.budgets]


def _shares(left: list[float]) -> list[str]:
    return [f"{share:.0%}" for share in left] + [""] * (len(BUDGETS) - len(left))


def _floor(net: nn.Module, x: Tensor, queries: int) -> float:
    """Seconds of so many bare forwards, at the batch of the samples."""
    with torch.no_grad():
        net(x)
        began = time.perf_counter()
        for _ in range(5):
            net(x)
    return (time.perf_counter() - began) / 5 / len(x) * queries


def _torchattacks(package: Any, net: nn.Module, x: Tensor, y: Tensor, subject: Subject) -> list[float]:
    left = []
    for budget in subject.budgets:
        with seeded():
            attack = package.Square(net, norm="Linf", eps=subject.eps, n_queries=budget, loss="margin", seed=0)
            adversarial = attack(x, y)
        with torch.no_grad():
            left.append(float((net(adversarial).argmax(1) == y).float().mean()))
    return left


@contextlib.contextmanager
def room_for_art() -> Iterator[None]:
    """Where ART runs: its GeoDA calls `np.mat`, which NumPy 2 has dropped, and leaves files in the working folder."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        mock.patch.object(np, "mat", np.asmatrix, create=True),
    ):
        yield


def _art_square(net: nn.Module, x: Tensor, y: Tensor, subject: Subject) -> list[float]:
    from art.attacks.evasion import SquareAttack

    def make(classifier: Any) -> Any:
        return SquareAttack(classifier, eps=subject.eps, max_iter=subject.budgets[-1], verbose=False)

    return [float(torch.isinf(d).float().mean()) for d in _art(make, net, x, y, torch.inf, subject.budgets)]


def _art(
    make: Callable[[Any], Any], net: nn.Module, x: Tensor, y: Tensor, norm: float, budgets: tuple[int, ...]
) -> list[Tensor]:
    """The nearest wrong answers that an attack of ART has met at each budget, one sample after another."""
    from art.estimators.classification import PyTorchClassifier

    found = []
    for i in range(len(x)):
        counting = Counting(net, x[i : i + 1], y[i : i + 1], norm, budgets).eval()
        classifier = PyTorchClassifier(
            counting, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0.0, 1.0), device_type="cpu"
        )
        with warnings.catch_warnings(), seeded(), room_for_art(), contextlib.suppress(SpentError):
            warnings.simplefilter("ignore")
            make(classifier).generate(x[i : i + 1].numpy(), np.eye(10, dtype=np.float32)[y[i : i + 1].numpy()])
        found.append(torch.stack(counting.distances()))
    return list(torch.cat(found, dim=1))


def published(rounds: int) -> str:
    """Square's published setting on ImageNet: queries of the successes at Linf .05, and the share that falls."""
    zoo, rows = load_zoo(), []
    net = zoo.load(PHOTOS)
    x, y = zoo.data("imagenet")
    with torch.no_grad():
        right = net(x).argmax(1) == y
    x, y = x[right], y[right]
    victim = sp.Victim(net, name=PHOTOS)
    threat = sp.ThreatModel(sp.Linf(0.05), access="scores", queries=10_000)
    for told, options in (("the paper's windows, p = .05", {"p_init": 0.05}), ("our default, p = .8", {})):
        result = make_attack("square", **options)(victim, x, y, threat)
        queries = result.queries[result.succeeded].float()
        figures = [f"{result.succeeded.float().mean():.1%}", f"{queries.median():.0f}", f"{queries.mean():.0f}"]
        rows.append([f"{told}: MobileNet .25", f"{len(x)}", *figures])
    rows.append(["published, p = .05: ResNet-50", "1,000", "100.0%", "11", "73"])
    return (
        "Square, Linf .05, at most 10,000 queries: photos that are read right, the share that falls, and the queries of "
        "those (Andriushchenko et al. 2020, table 2)\n\n" + table(["setting", "n", "success", "median", "mean"], rows)
    )


def by_labels(rounds: int) -> str:
    """Median L2 distance at each budget on the tiny networks."""
    return _labels(TINY, "queries")


def by_labels_large(rounds: int) -> str:
    """The same on networks of ordinary size."""
    return _labels(LARGE, "queries-large")


def by_labels_photos(rounds: int) -> str:
    """The attacks that have a peer, on more photographs and with more queries; hours."""
    return _labels((Subject(PHOTOS, 2 / 255, 50, frozen=True),), "queries-photos", ("hopskipjump", "boundary"))


def by_labels_equal(rounds: int) -> str:
    """Our time until the median is as near as foolbox's after its last budget, over foolbox's, on a hundred samples."""
    foolbox = peer("foolbox")
    if foolbox is None:
        return "foolbox is not installed"
    rows = []
    for tiny in TINY:
        subject = replace(tiny, n=100)
        net, victim, x, y = subject.attacked()
        for told, attack in foolbox_by_labels(foolbox).items():
            theirs = partial(_foolbox, foolbox, attack, net, x, y, subject)
            goal = float(theirs()[-1].median())
            runs = {budget: partial(_at, told, victim, x, y, budget) for budget in STAIRS}
            enough = next((budget for budget in STAIRS if runs[budget]() <= goal), STAIRS[-1])
            timed = interleave({"ours": runs[enough], "theirs": theirs}, rounds, 0)
            ours, peers = timed["ours"], timed["theirs"]
            rows.append(
                [
                    *(subject.name, f"{len(x)}", told, f"{goal:.3g}", f"{peers.median:.1f} s"),
                    *(f"{enough:,}", f"{ours.value:.3g}", f"{ours.median:.1f} s", spread(ours.ratio(peers))),
                ]
            )
    return (
        f"Label attacks until the median L2 distance is as near as foolbox's after {BUDGETS[-1]:,} queries a sample\n\n"
        + table(
            [
                "victim",
                "n",
                "attack",
                "foolbox",
                "its time",
                "our queries",
                "sparring",
                "our time",
                "sparring / foolbox",
            ],
            rows,
        )
    )


def by_pixels_equal(rounds: int) -> str:
    """Our time until one pixel fools as many samples as a peer's search does with its last query, over the peer's."""
    rows = []
    for tiny in TINY:
        subject = replace(tiny, n=100)
        net, victim, x, y = subject.attacked()
        ours = {budget: partial(_one_pixel, victim, x, y, budget) for budget in PIXEL_STAIRS}
        for told, attack in _peers_by_pixel().items():
            theirs = partial(attack, net, x, y)
            goal = theirs()
            enough = next((budget for budget in PIXEL_STAIRS if ours[budget]() >= goal), PIXEL_STAIRS[-1])
            timed = interleave({"ours": ours[enough], "theirs": theirs}, rounds, 0)
            mine, peers = timed["ours"], timed["theirs"]
            rows.append(
                [
                    *(subject.name, f"{len(x)}", told, f"{goal:.0%}", f"{peers.median:.1f} s", f"{enough:,}"),
                    *(f"{mine.value:.0%}", f"{mine.median:.1f} s", spread(mine.ratio(peers))),
                ]
            )
    return (
        "One pixel by differential evolution, until as many samples are fooled as by a peer with "
        f"{PIXEL_STAIRS[-1]:,} queries for each; the peers take them one by one\n\n"
        + table(["victim", "n", "peer", "fooled", "its time", "our queries", "fooled", "our time", "ours / peer"], rows)
    )


def _one_pixel(victim: sp.Victim, x: Tensor, y: Tensor, budget: int) -> float:
    threat = sp.ThreatModel(sp.L0(1, pixels=True), access="scores", queries=budget)
    return float(make_attack("one-pixel")(victim, x, y, threat).succeeded.float().mean())


def _peers_by_pixel() -> dict[str, Callable[[nn.Module, Tensor, Tensor], float]]:
    """The share that each peer fools; the first wrong answer within the budget counts, returned or not."""
    found: dict[str, Callable[[nn.Module, Tensor, Tensor], float]] = {}
    if (torchattacks := peer("torchattacks")) is not None:

        def by_torchattacks(net: nn.Module, x: Tensor, y: Tensor) -> float:
            fooled = 0
            for i in range(len(x)):
                image, label = x[i : i + 1], y[i : i + 1]
                counting = Counting(net, image, label, torch.inf, PIXEL_STAIRS[-1:]).eval()
                with warnings.catch_warnings(), seeded(), contextlib.suppress(SpentError):
                    warnings.simplefilter("ignore")
                    torchattacks.OnePixel(counting, pixels=1, steps=1000, popsize=25)(image, label)
                fooled += int(torch.isfinite(counting.distances()[0]).sum())
            return fooled / len(x)

        found["torchattacks"] = by_torchattacks
    if peer("art") is not None:
        from art.attacks.evasion import PixelAttack

        def by_art(net: nn.Module, x: Tensor, y: Tensor) -> float:
            make = partial(PixelAttack, th=1, es=1, max_iter=100, verbose=False)
            with contextlib.redirect_stdout(None):
                (nearest,) = _art(make, net, x, y, torch.inf, PIXEL_STAIRS[-1:])
            return float(torch.isfinite(nearest).float().mean())

        found["ART"] = by_art
    return found


def _at(attack: str, victim: sp.Victim, x: Tensor, y: Tensor, budget: int) -> float:
    """The median distance that one of ours reaches with so many queries."""
    result = make_attack(attack)(victim, x, y, sp.ThreatModel(sp.L2(), access="labels", queries=budget))
    return float(result.distance.masked_fill(~result.succeeded, torch.inf).median())


def _labels(subjects: tuple[Subject, ...], picture: str, attacks: tuple[str, ...] = LABELS) -> str:
    rows, curves = [], {}
    for subject in subjects:
        net, victim, x, y = subject.attacked()
        lines: dict[str, list[Tensor]] = {}
        times = {}
        for attack in attacks:
            lines[attack] = []
            for budget in subject.budgets:
                began = time.perf_counter()
                threat = sp.ThreatModel(sp.L2(), access="labels", queries=budget)
                result = make_attack(attack)(victim, x, y, threat)
                took = time.perf_counter() - began
                lines[attack].append(result.distance.masked_fill(~result.succeeded, torch.inf))
            times[attack] = f"{took / _floor(net, x, int(result.queries.sum())):.2f}"
            print(subject.name, attack, *(f"{float(d.median()):.3g}" for d in lines[attack]), times[attack], flush=True)
        if (foolbox := peer("foolbox")) is not None:
            theirs = foolbox_by_labels(foolbox)
            for told, attack in (("foolbox HopSkipJump", "hopskipjump"), ("foolbox Boundary", "boundary")):
                lines[told] = _foolbox(foolbox, theirs[attack], net, x, y, subject)
                print(subject.name, told, *(f"{float(d.median()):.3g}" for d in lines[told]), flush=True)
        if peer("art") is not None and subject in TINY:
            for told, ours, make in _art_by_labels():
                lines[f"{told}, {FEW} samples"] = _art(make, net, x[:FEW], y[:FEW], 2.0, subject.budgets)
                lines[f"{ours} on those"] = [d[:FEW] for d in lines[ours]]
        for told, distances in lines.items():
            medians = [f"{float(d.median()):.3g}" for d in distances] + [""] * (len(BUDGETS) - len(distances))
            rows.append([subject.name, f"{len(distances[0])}", told, *medians, times.get(told, "")])
        curves[f"{subject.name}, n = {len(x)}"] = {
            told: [float(d.median()) for d in lines[told]] for told in lines if len(lines[told][0]) == len(x)
        }
    _draw(curves, picture)
    return (
        "Median L2 distance after so many queries, over samples that are right at first; each of our budgets is a run of "
        "its own"
        + (". The network is frozen, for all who ask it" if any(s.frozen for s in subjects) else "")
        + "\n\n"
        + table(["victim", "n", "attack", *(f"{b:,}" for b in BUDGETS), "time / bare forwards"], rows)
        + f"\n\n![Median distance against queries](pictures/{picture}.png)"
    )


def _art_by_labels() -> list[tuple[str, str, Callable[[Any], Any]]]:
    from art.attacks import evasion

    return [
        ("ART GeoDA", "geoda", lambda c: evasion.GeoDA(c, max_iter=5000, verbose=False)),
        ("ART HopSkipJump", "hopskipjump", lambda c: evasion.HopSkipJump(c, max_iter=200, verbose=False)),
    ]


def foolbox_by_labels(foolbox: Any) -> dict[str, Any]:
    """Foolbox's label attacks by the names of ours, with more steps than any budget here pays."""
    return {
        "hopskipjump": foolbox.attacks.HopSkipJumpAttack(steps=200),
        "boundary": foolbox.attacks.BoundaryAttack(steps=25_000),
    }


def _foolbox(foolbox: Any, attack: Any, net: nn.Module, x: Tensor, y: Tensor, subject: Subject) -> list[Tensor]:
    """The nearest wrong answers that an attack of foolbox has met at each budget; photographs go a few at a time."""
    size, found = max(1, AT_ONCE // x[0].numel()), []
    for some, labels in zip(x.split(size), y.split(size), strict=True):
        counting = Counting(net, some, labels, 2.0, subject.budgets).eval()
        model = foolbox_model(foolbox, counting)
        with warnings.catch_warnings(), seeded(), contextlib.suppress(SpentError):
            warnings.simplefilter("ignore")
            attack(model, some, labels, epsilons=None)
        found.append(torch.stack(counting.distances()))
    return list(torch.cat(found, dim=1))


def _draw(curves: dict[str, dict[str, list[float]]], picture: str) -> None:
    """A panel for each victim."""
    figure = Figure(figsize=(4.2 * len(curves), 3.6), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, lines) in zip(panels, curves.items(), strict=True):
        for told, medians in lines.items():
            style = "o--" if "foolbox" in told else "o-"
            axes.plot(BUDGETS[: len(medians)], medians, style, label=told, linewidth=1.4, markersize=4)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(BUDGETS, [f"{budget:,}" for budget in BUDGETS], minor=False)
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("queries")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("median L2 distance")
    panels[-1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(PICTURES / f"{picture}.png", dpi=120)
