"""White-box attacks beside the peers' at equal steps: robust accuracy in a ball, median distance to the boundary, time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import sparring as sp
from benchmarks.harness import foolbox_model, interleave, peer, seeded, spread, table
from benchmarks.zoo import load_zoo
from sparring import attacks

BALLS: tuple[tuple[str, int, tuple[sp.Linf | sp.L2 | sp.L1, ...]], ...] = (
    ("mnist_adv", 100, (sp.Linf(0.3), sp.L2(1.5), sp.L1(10.0))),
    ("mnist_certified_0.1", 100, (sp.Linf(0.1),)),
    ("cifar10_adv_2px", 100, (sp.Linf(2 / 255), sp.L2(0.5), sp.L1(6.0))),
    ("cifar10_resnet20", 30, (sp.Linf(0.5 / 255),)),
)
DISTANCES = (("mnist_adv", 40), ("cifar10_adv_2px", 40), ("cifar10_resnet20", 16))
AA_NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def balls(rounds: int) -> str:
    """Robust accuracy in a ball, at equal steps: PGD-40, auto-PGD-100, auto-PGD-100 towards the nearest classes."""
    zoo, rows = load_zoo(), []
    for name, n, spaces in BALLS:
        net = zoo.load(name)
        x, y = zoo.data(name.split("_")[0], n)
        victim = sp.Victim(net, name=name)
        for space in spaces:
            for kind, ours, peers in _pairs(space):
                contenders = {"sparring": _ours(ours, victim, x, y, space)}
                contenders |= {who: make(net, x, y) for who, make in peers.items()}
                timed = interleave(contenders, rounds=1, warmup=0)
                for who, t in timed.items():
                    ratio = f"{t.seconds[0] / timed['sparring'].seconds[0]:.2f}"
                    rows.append([name, f"{n}", repr(space), kind, who, f"{t.value:.1%}", ratio])
    return "Robust accuracy in a ball at equal steps; one round\n\n" + table(
        ["victim", "n", "ball", "attack", "library", "robust", "time / ours"], rows
    )


def _pairs(space: Any) -> list[tuple[str, Any, dict[str, Callable[..., Any]]]]:
    """(name, our attack, the peers' makers) for one ball."""
    foolbox, aa = peer("foolbox"), peer("pyautoattack")
    step = 2.5 * float(space.eps) / 40
    pgd: dict[str, Callable[..., Any]] = {}
    if foolbox is not None and space.name != "l1":
        cls = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[space.name]
        pgd["foolbox"] = lambda net, x, y: _foolbox_ball(
            foolbox, cls(steps=40, abs_stepsize=step), net, x, y, space.eps
        )
    one: dict[str, Callable[..., Any]] = {}
    many: dict[str, Callable[..., Any]] = {}
    if aa is not None:
        one["pyautoattack"] = lambda net, x, y: _autoattack(aa, "apgd-ce", net, x, y, space)
        many["pyautoattack"] = lambda net, x, y: _autoattack(aa, "apgd-t", net, x, y, space)
    # AutoAttack restarts five times and aims at five classes in L1
    sparse = space.name == "l1"
    return [
        ("PGD-40", sp.PGD(steps=40, step_size=step), pgd),
        ("APGD-CE", attacks.APGD(steps=100, restarts=5 if sparse else 1), one),
        ("APGD-T", attacks.APGDT(steps=100, classes=5 if sparse else 9), many),
    ]


def _ours(attack: Any, victim: sp.Victim, x: Tensor, y: Tensor, space: Any) -> Callable[[], float]:
    return lambda: float(attack(victim, x, y, space, batch_size=len(x)).robust_accuracy)


def _foolbox_ball(foolbox: Any, attack: Any, net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Callable[[], float]:
    model = foolbox_model(foolbox, net)

    def run() -> float:
        with seeded():
            _, _, hit = attack(model, x, y, epsilons=eps)
        return 1 - float(hit.float().mean())

    return run


def _autoattack(package: Any, which: str, net: nn.Module, x: Tensor, y: Tensor, space: Any) -> Callable[[], float]:
    def run() -> float:
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            attack = package.AutoAttack(
                net, attacks=[which], version="custom", norm=AA_NAMES[space.name], eps=float(space.eps), seed=0
            )
            if space.name == "l1":
                attack.apgd.use_largereps = attack.apgd_targeted.use_largereps = True
                attack.apgd.n_restarts, attack.apgd_targeted.n_target_classes = 5, 5
            adversarial, *_ = attack.run_standard_evaluation(x, y, batch_size=len(x))
        with torch.no_grad():
            return float((net(adversarial).argmax(1) == y).float().mean())

    return run


def distances(rounds: int) -> str:
    """Median distance of the smallest change, beside foolbox at its nearest settings; over the samples right at first."""
    zoo, rows = load_zoo(), []
    foolbox = peer("foolbox")
    for name, n in DISTANCES:
        net = zoo.load(name)
        x, y = zoo.data(name.split("_")[0], n)
        with torch.no_grad():
            right = net(x).argmax(1) == y
        x, y = x[right], y[right]
        victim = sp.Victim(net, name=name)
        for told, space, ours, make in _minimal(foolbox):
            contenders: dict[str, Callable[[], Any]] = {"sparring": _nearest(ours, victim, x, y, space)}
            if foolbox is not None and make is not None:
                contenders["foolbox"] = _foolbox_nearest(foolbox, make(), net, x, y, space)
            timed = interleave(contenders, min(rounds, 3), warmup=0)
            theirs = timed.get("foolbox")
            rows.append(
                [
                    *(name, f"{len(x)}", space.name, told, f"{timed['sparring'].value:.4g}"),
                    "" if theirs is None else f"{theirs.value:.4g}",
                    f"{timed['sparring'].median:.2f} s",
                    "" if theirs is None else spread(timed["sparring"].ratio(theirs)),
                ]
            )
    return "Median distance of the smallest change found; infinite where none was\n\n" + table(
        ["victim", "n", "norm", "attack", "sparring", "foolbox", "our time", "sparring / foolbox"], rows
    )


def _minimal(foolbox: Any) -> list[tuple[str, Any, Any, Callable[[], Any] | None]]:
    """(name, space, our attack, foolbox's maker)."""
    theirs = None if foolbox is None else foolbox.attacks

    def of(name: str, **params: Any) -> Callable[[], Any] | None:
        return None if theirs is None else lambda: getattr(theirs, name)(**params)

    return [
        ("DDN, 100 steps", sp.L2(), attacks.DDN(steps=100), of("DDNAttack", steps=100)),
        ("FMN, 100 steps", sp.L2(), attacks.FMN(steps=100), of("L2FMNAttack", steps=100)),
        ("FMN, 100 steps", sp.Linf(), attacks.FMN(steps=100), of("LInfFMNAttack", steps=100)),
        ("FMN, 100 steps", sp.L1(), attacks.FMN(steps=100), of("L1FMNAttack", steps=100)),
        ("FMN, 100 steps", sp.L0(), attacks.FMN(steps=100), of("L0FMNAttack", steps=100)),
        (
            "C&W, 5 x 100",
            sp.L2(),
            attacks.CW(steps=100, rounds=5),
            of("L2CarliniWagnerAttack", steps=100, binary_search_steps=5),
        ),
        ("DeepFool", sp.L2(), sp.DeepFool(), of("L2DeepFoolAttack", candidates=10)),
        ("DeepFool", sp.Linf(), sp.DeepFool(), of("LinfDeepFoolAttack", candidates=10)),
        ("EAD, 5 x 100", sp.L1(), attacks.EAD(steps=100, rounds=5), of("EADAttack", steps=100, binary_search_steps=5)),
        ("NewtonFool", sp.L2(), attacks.NewtonFool(), of("NewtonFoolAttack")),
        ("SuperDeepFool", sp.L2(), attacks.SuperDeepFool(), None),
        ("FAB, 20 steps", sp.L2(), attacks.FAB(steps=20), None),
        ("FAB, 20 steps", sp.Linf(), attacks.FAB(steps=20), None),
        ("L-BFGS", sp.L2(), attacks.LBFGS(), None),
        ("sigma-zero, 100 steps", sp.L0(), attacks.SigmaZero(steps=100), None),
        ("Brendel-Bethge, 100 steps", sp.L2(), attacks.BrendelBethge(steps=100), None),
    ]


def _nearest(attack: Any, victim: sp.Victim, x: Tensor, y: Tensor, space: Any) -> Callable[[], float]:
    def run() -> float:
        found = attack(victim, x, y, space, batch_size=len(x))
        return float(found.distance.masked_fill(~found.succeeded, torch.inf).median())

    return run


def _foolbox_nearest(
    foolbox: Any, attack: Any, net: nn.Module, x: Tensor, y: Tensor, space: Any
) -> Callable[[], float]:
    model = foolbox_model(foolbox, net)

    def run() -> float:
        with warnings.catch_warnings(), seeded():
            warnings.simplefilter("ignore")
            _, found, hit = attack(model, x, y, epsilons=None)
        size = space.distance(found - x)
        return float(size.masked_fill(~hit, torch.inf).median())

    return run
