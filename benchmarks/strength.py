"""White-box attacks beside the peers' at equal steps: robust accuracy in a ball, median distance to the boundary, time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import sparring as sp
from benchmarks.harness import Timed, foolbox_model, interleave, peer, seeded, spread, table
from benchmarks.zoo import network_and_data, read_right
from sparring import attacks

BALLS: tuple[tuple[str, int, tuple[sp.Linf | sp.L2 | sp.L1, ...]], ...] = (
    ("mnist_adv", 100, (sp.Linf(0.3), sp.L2(1.5), sp.L1(10.0))),
    ("mnist_certified_0.1", 100, (sp.Linf(0.1),)),
    ("cifar10_adv_2px", 100, (sp.Linf(2 / 255), sp.L2(0.5), sp.L1(6.0))),
    ("cifar10_resnet20", 30, (sp.Linf(0.5 / 255),)),
    ("imagenet_mobilenet_v1_025", 50, (sp.Linf(0.1 / 255),)),
)
DISTANCES = (("mnist_adv", 205), ("mnist_certified_0.1", 205), ("cifar10_adv_2px", 300))
LARGE, PHOTOGRAPHS = (("cifar10_resnet20", 48),), (("imagenet_mobilenet_v1_025", 84),)
# On photos each row takes longer than a table on digits; the peers' DeepFools differentiate a thousand classes there.
PHOTOS = ("DDN", "FMN")
# Shares of the steps with which we try to be as near as the best peer.
SHARES = (0.1, 0.2, 0.3, 0.5, 0.7)
# Victims on which three seeds take minutes.
SMALL = {name for name, _ in DISTANCES}
AA_NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def balls(rounds: int) -> str:
    """Robust accuracy in a ball, at equal steps: PGD-40, auto-PGD-100, auto-PGD-100 towards the nearest classes."""
    rows = []
    for name, n, spaces in BALLS:
        net, x, y = network_and_data(name, n)
        victim = sp.Victim(net, name=name)
        victim.admit(x, y)  # the look at a new victim's traits belongs to none of the attacks
        for space in spaces:
            for kind, ours, peers in _pairs(space)[: 2 if name.startswith("imagenet") else 3]:
                contenders = {"sparring": _ours(ours, victim, x, y, space)}
                contenders |= {who: make(net, x, y) for who, make in peers.items()}
                timed = interleave(contenders, rounds=3 if name in SMALL else 1, warmup=0)
                for who, t in timed.items():
                    ratio = "" if who == "sparring" else spread(timed["sparring"].ratio(t))
                    each = ", ".join(f"{share:.1%}" for share in t.value)
                    rows.append([name, f"{n}", repr(space), kind, who, each, ratio])
    return "Robust accuracy in a ball at equal steps, by seed\n\n" + table(
        ["victim", "n", "ball", "attack", "library", "robust", "sparring / this"], rows
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


def _by_seed(once: Callable[[int], float]) -> Callable[[], list[float]]:
    """A contender that takes the next seed at each call, and returns what all of them left so far."""
    left: list[float] = []

    def run() -> list[float]:
        left.append(once(len(left)))
        return left

    return run


def _ours(attack: Any, victim: sp.Victim, x: Tensor, y: Tensor, space: Any) -> Callable[[], list[float]]:
    return _by_seed(lambda seed: float(attack(victim, x, y, space, seed=seed, batch_size=len(x)).robust_accuracy))


def _foolbox_ball(
    foolbox: Any, attack: Any, net: nn.Module, x: Tensor, y: Tensor, eps: float
) -> Callable[[], list[float]]:
    model = foolbox_model(foolbox, net)

    def once(seed: int) -> float:
        with seeded(seed):
            _, _, hit = attack(model, x, y, epsilons=eps)
        return 1 - float(hit.float().mean())

    return _by_seed(once)


def _autoattack(
    package: Any, which: str, net: nn.Module, x: Tensor, y: Tensor, space: Any
) -> Callable[[], list[float]]:
    def once(seed: int) -> float:
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            attack = package.AutoAttack(
                net, attacks=[which], version="custom", norm=AA_NAMES[space.name], eps=float(space.eps), seed=seed
            )
            attack.apgd.n_restarts = 1  # as in its standard version; a custom one takes five
            if space.name == "l1":
                attack.apgd.use_largereps = attack.apgd_targeted.use_largereps = True
                attack.apgd.n_restarts, attack.apgd_targeted.n_target_classes = 5, 5
            adversarial, *_ = attack.run_standard_evaluation(x, y, batch_size=len(x))
        with torch.no_grad():
            return float((net(adversarial).argmax(1) == y).float().mean())

    return _by_seed(once)


def distances(rounds: int) -> str:
    """Median distance of the smallest change on small networks, beside the best peer; over the samples right at first."""
    return _distances(DISTANCES, rounds)


def distances_large(rounds: int) -> str:
    """The same on a ResNet-20."""
    return _distances(LARGE, rounds)


def distances_photos(rounds: int) -> str:
    """The same on photos, for the quick methods."""
    return _distances(PHOTOGRAPHS, rounds)


def _distances(victims: tuple[tuple[str, int], ...], rounds: int) -> str:
    rows = []
    for name, n in victims:
        net, x, y = network_and_data(name, n)
        x, y = read_right(net, x, y)
        victim = sp.Victim(net, name=name)
        for told, space, ours, peers in _minimal():
            if name.startswith("imagenet") and not told.startswith(PHOTOS):
                continue
            contenders: dict[str, Callable[[], Any]] = {"sparring": _nearest(ours, victim, x, y, space)}
            contenders |= {who: make(net, x, y, space) for who, make in peers.items()}
            timed = interleave(contenders, min(rounds, 3), warmup=0)
            mine = timed.pop("sparring")
            row = [name, f"{len(x)}", space.name, told, f"{_median(mine):.4g}", f"{mine.median:.2f} s"]
            rows.append(row + (_beside(mine, timed, ours, victim, x, y, space) if timed else [""] * 5))
    return (
        "Median distance of the smallest change found, infinite where none was; `paired` is on how many samples we are nearer "
        "and on how many farther, by more than a hundredth, and the median of our distance over the peer's\n\n"
        + table(
            [
                *("victim", "n", "norm", "attack", "sparring", "time", "best peer", "its", "paired"),
                *("sparring / peer", "as near as it"),
            ],
            rows,
        )
    )


def _median(timed: Timed) -> float:
    return float(timed.value.median())


def _paired(mine: Tensor, theirs: Tensor) -> str:
    """On how many samples we are nearer and farther, and the median ratio of the distances."""
    ratio = torch.where(mine.isinf() & theirs.isinf(), 1.0, mine / theirs).nan_to_num(nan=1.0)
    return f"{int((ratio < 0.99).sum())} / {int((ratio > 1.01).sum())}, {float(ratio.median()):.3f}"


def _beside(
    mine: Timed, peers: dict[str, Timed], attack: Any, victim: sp.Victim, x: Tensor, y: Tensor, space: Any
) -> list[str]:
    """The nearest peer (of those within a hundredth the fastest), the ratio of times, and with how few steps we are as near."""
    least = min(_median(t) for t in peers.values())
    best = min((t for t in peers.values() if _median(t) <= 1.01 * least), key=lambda t: t.median)
    row = [best.name, f"{_median(best):.4g}", _paired(mine.value, best.value), spread(mine.ratio(best))]
    for share in SHARES if attack.steps >= 100 else ():
        fewer = replace(attack, steps=round(share * attack.steps))
        timed = interleave({"fewer": _nearest(fewer, victim, x, y, space)}, 1, warmup=0)["fewer"]
        if _median(timed) <= _median(best):
            return [*row, f"{fewer.steps} steps, {timed.median / best.median:.2f}"]
    return [*row, f"{mine.median / best.median:.2f}" if _median(mine) <= _median(best) else "-"]


def _minimal() -> list[tuple[str, Any, Any, dict[str, Callable[..., Callable[[], Tensor]]]]]:
    """(name, space, our attack, the peers' makers from the network, the inputs, the labels and the space)."""
    foolbox, adv = peer("foolbox"), peer("adv_lib.attacks")

    def of(name: str = "", lib: str = "", params: dict[str, Any] | None = None, **theirs: Any) -> dict[str, Any]:
        makers: dict[str, Any] = {}
        if foolbox is not None and name:
            makers["foolbox"] = lambda *case: _foolbox_nearest(foolbox, getattr(foolbox.attacks, name)(**theirs), *case)
        if adv is not None and lib:
            makers["adv-lib"] = lambda *case: _adv_lib_nearest(getattr(adv, lib), params or {}, *case)
        return makers

    def fmn(name: str, p: float) -> dict[str, Any]:
        return of(name, "fmn", {"norm": p, "steps": 100}, steps=100)

    many = {"steps": 100, "binary_search_steps": 5}
    hundred = {"num_steps": 100, "α": 0.5}  # alpha as the paper has it for so few steps
    pdpgd = attacks.PDPGD(steps=100)
    return [
        ("DDN, 100 steps", sp.L2(), attacks.DDN(steps=100), of("DDNAttack", "ddn", {"steps": 100}, steps=100)),
        ("FMN, 100 steps", sp.L2(), attacks.FMN(steps=100), fmn("L2FMNAttack", 2)),
        ("FMN, 100 steps", sp.Linf(), attacks.FMN(steps=100), fmn("LInfFMNAttack", float("inf"))),
        ("FMN, 100 steps", sp.L1(), attacks.FMN(steps=100), fmn("L1FMNAttack", 1)),
        ("FMN, 100 steps", sp.L0(), attacks.FMN(steps=100), fmn("L0FMNAttack", 0)),
        ("DeepFool", sp.L2(), attacks.DeepFool(), of("L2DeepFoolAttack", "df", {"norm": 2}, candidates=10)),
        (
            *("DeepFool", sp.Linf(), attacks.DeepFool()),
            of("LinfDeepFoolAttack", "df", {"norm": float("inf")}, candidates=10),
        ),
        ("SuperDeepFool", sp.L2(), attacks.SuperDeepFool(), of(lib="sdf")),
        (
            *("C&W, 5 x 100", sp.L2(), attacks.CW(steps=100, rounds=5)),
            of("L2CarliniWagnerAttack", "carlini_wagner_l2", {"max_iterations": 100, "binary_search_steps": 5}, **many),
        ),
        ("EAD, 5 x 100", sp.L1(), attacks.EAD(steps=100, rounds=5), of("EADAttack", **many)),
        ("NewtonFool", sp.L2(), attacks.NewtonFool(), of("NewtonFoolAttack")),
        ("ALMA, 100 steps", sp.L2(), attacks.ALMA(steps=100), of(lib="alma", params=hundred | {"distance": "l2"})),
        ("ALMA, 100 steps", sp.L1(), attacks.ALMA(steps=100), of(lib="alma", params=hundred | {"distance": "l1"})),
        ("PDPGD, 100 steps", sp.L2(), pdpgd, of(lib="pdpgd", params={"norm": 2, "num_steps": 100})),
        ("FAB, 20 steps", sp.L2(), attacks.FAB(steps=20), of(lib="fab", params={"norm": 2, "n_iter": 20})),
        (
            *("FAB, 20 steps", sp.Linf(), attacks.FAB(steps=20)),
            of(lib="fab", params={"norm": float("inf"), "n_iter": 20}),
        ),
        ("L-BFGS", sp.L2(), attacks.LBFGS(), {}),
        (
            "sigma-zero, 100 steps",
            sp.L0(),
            attacks.SigmaZero(steps=100),
            of(lib="sigma_zero", params={"num_steps": 100}),
        ),
        ("Brendel-Bethge, 100 steps", sp.L2(), attacks.BrendelBethge(steps=100), {}),
    ]


def _nearest(attack: Any, victim: sp.Victim, x: Tensor, y: Tensor, space: Any) -> Callable[[], Tensor]:
    def run() -> float:
        found = attack(victim, x, y, space, batch_size=len(x))
        return _found(found.distance, found.succeeded)

    return run


def _found(distance: Tensor, hit: Tensor) -> Tensor:
    """Each sample's distance; infinite where nothing was found, and where a peer's point is no number."""
    return distance.masked_fill(~hit | distance.isnan(), torch.inf)


def _foolbox_nearest(
    foolbox: Any, attack: Any, net: nn.Module, x: Tensor, y: Tensor, space: Any
) -> Callable[[], Tensor]:
    model = foolbox_model(foolbox, net)

    def run() -> float:
        with warnings.catch_warnings(), seeded():
            warnings.simplefilter("ignore")
            _, found, hit = attack(model, x, y, epsilons=None)
        return _found(space.distance(found - x), hit)

    return run


def _adv_lib_nearest(
    attack: Any, params: dict[str, Any], net: nn.Module, x: Tensor, y: Tensor, space: Any
) -> Callable[[], Tensor]:
    def run() -> float:
        with warnings.catch_warnings(), seeded():
            warnings.simplefilter("ignore")
            found = attack(net, x.clone(), y, **params)
        with torch.no_grad():
            hit = net(found).argmax(1) != y
        return _found(space.distance(found - x), hit)

    return run


def saliency(rounds: int) -> str:
    """JSMA towards the next class, beside the peers' at the same theta and gamma; and what it costs to reach as many as they."""
    rows = []
    theta, gamma = 1.0, 0.1
    for name, n in (("mnist_adv", 40), ("cifar10_adv_2px", 40), ("cifar10_resnet20", 20)):
        net, x, y = network_and_data(name, n)
        x, y = read_right(net, x, y)
        aim = (y + 1) % 10
        victim = sp.Victim(net, name=name)
        victim.admit(x, y)
        ours = partial(_our_saliency, victim, x, y, aim, theta)
        contenders: dict[str, Callable[[], Tensor]] = {
            "sparring": ours(gamma),
            "sparring, up": ours(gamma, direction="up"),
            "sparring, of logits": ours(gamma, outputs="logits"),
        }
        if (art := peer("art.attacks.evasion")) is not None:
            contenders["ART, up"] = _art_saliency(art, net, x, aim, theta, gamma)
        # it compares all pairs of features: minutes on colour pictures
        if (torchattacks := peer("torchattacks")) is not None and name.startswith("mnist"):
            contenders["torchattacks, up"] = _torchattacks_saliency(torchattacks, net, x, aim, theta, gamma)
        timed = interleave(contenders, min(rounds, 2), warmup=0)
        for who, t in timed.items():
            reached, pixels = _reached(net, x, t.value, aim)
            told = [f"{reached:.0%}", f"{pixels:g}", f"{t.median:.2f} s", "", ""]
            if not who.startswith("sparring"):
                told[3] = spread(timed["sparring"].ratio(t))
                for share in (0.01, 0.02, 0.03, 0.05, 0.07, gamma):
                    if _reached(net, x, ours(share)(), aim)[0] >= reached:
                        both = interleave({"ours": ours(share), "theirs": contenders[who]}, min(rounds, 2), warmup=0)
                        told[4] = f"gamma {share:g}: {spread(both['ours'].ratio(both['theirs']))}"
                        break
            rows.append([name, f"{len(x)}", who, *told])
    return f"JSMA towards the next class, theta {theta:g}, gamma {gamma:g}, on samples that are read right\n\n" + table(
        ["victim", "n", "library", "reached", "median pixels", "time", "sparring / this", "as many as this"], rows
    )


def _reached(net: nn.Module, x: Tensor, adversarial: Tensor, aim: Tensor) -> tuple[float, float]:
    """The share that is read as the target, and the median number of changed pixels, infinite where it is not."""
    with torch.no_grad():
        hit = net(adversarial).argmax(1) == aim
    pixels = (adversarial != x).any(1).flatten(1).sum(1).float()
    return float(hit.float().mean()), float(pixels.masked_fill(~hit, torch.inf).median())


def _our_saliency(
    victim: sp.Victim, x: Tensor, y: Tensor, aim: Tensor, theta: float, gamma: float, **params: Any
) -> Callable[[], Tensor]:
    attack = attacks.JSMA(theta=theta, gamma=gamma, **params)
    return lambda: attack(victim, x, y, sp.L0(), goal=sp.Targeted(aim), batch_size=len(x)).adversarial


def _art_saliency(art: Any, net: nn.Module, x: Tensor, aim: Tensor, theta: float, gamma: float) -> Callable[[], Tensor]:
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        net,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = art.SaliencyMapMethod(classifier, theta=theta, gamma=gamma, batch_size=len(x), verbose=False)
    return lambda: torch.from_numpy(attack.generate(x.numpy(), y=nn.functional.one_hot(aim, 10).numpy()))


def _torchattacks_saliency(
    package: Any, net: nn.Module, x: Tensor, aim: Tensor, theta: float, gamma: float
) -> Callable[[], Tensor]:
    attack = package.JSMA(net, theta=theta, gamma=gamma)
    attack.set_mode_targeted_by_label(quiet=True)
    return lambda: attack(x, aim)
