"""Adversarial training on MNIST at eps .3: what three recipes reach in minutes, judged by `standard`, and whether it holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sparring as sp
from benchmarks.defences import training_set
from benchmarks.harness import seeded, table
from benchmarks.zoo import load_zoo
from sparring.attacks import APGD, APGDT, Square
from sparring.core.attack import Attack
from sparring.defences.training import TRADES, Fast, Method, PGDTraining, Settings, fit

EPS = 0.3
JUDGED, DOUBTED = 1_000, 200


class SoftThreshold(nn.Module):
    """sigmoid(12 * (x - 1/2)) of every pixel.

    Robust networks on MNIST learn to threshold in their first layer (Madry et al. 2018, arXiv:1706.06083); this one is
    given the step. A clamp has no gradient where it is flat, and a slope that is learnt along grows: both hide from
    gradients what Square then breaks.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (n, 1, 28, 28), nearer to black and white."""
        return torch.sigmoid(12 * (x - 0.5))


def two_convolutions() -> nn.Module:
    """The network of Wong et al.: convolutions of 16 and 32 filters, 100 hidden units."""
    return load_zoo().small_cnn(1, 7)  # type: ignore[no-any-return]


def behind_threshold() -> nn.Module:
    """The same behind a soft threshold."""
    return nn.Sequential(SoftThreshold(), *two_convolutions().children())


NETWORKS = {two_convolutions: "two convolutions", behind_threshold: "soft threshold, two convolutions"}


@dataclass(frozen=True)
class Recipe:
    """A way to train: in words, the method, what crafts (None: its own), the settings, the radius, and the network."""

    told: str
    method: Method
    attack: Attack | None
    settings: Settings
    eps: float = EPS
    build: Callable[[], nn.Module] = two_convolutions


FAST = Recipe("Fast adversarial training, step 1.25 eps", Fast(), None, Settings(epochs=10, batch_size=100, lr=5e-3))
SLOW = Recipe(
    "TRADES with beta 3, five steps of PGD",
    TRADES(beta=3.0),
    sp.PGD(steps=5),
    Settings(epochs=10, batch_size=100, lr=3e-3),
    eps=0.33,
)
SOFT = Recipe(
    "PGD training, five steps",
    PGDTraining(),
    sp.PGD(steps=5),
    Settings(epochs=6, batch_size=100, lr=5e-3),
    build=behind_threshold,
)


def fast(rounds: int) -> str:
    """Fast adversarial training as its authors do it: ten epochs."""
    return measured(FAST)


def trades(rounds: int) -> str:
    """TRADES with five steps: its clean loss leaves at once the plateau on which PGD training stays for epochs."""
    return measured(SLOW)


def pgd(rounds: int) -> str:
    """PGD training behind a soft threshold, where gradient attacks see what there is to see."""
    return measured(SOFT)


def measured(recipe: Recipe) -> str:
    """Train on the 60,000 images, audit on the first test images of the zoo's order, and look for masked gradients."""
    with seeded():
        net = recipe.build()
    data, settings = training_set("mnist", 60_000), recipe.settings
    began = time.perf_counter()
    done = fit(sp.Victim(net), data, recipe.method, sp.Linf(recipe.eps), attack=recipe.attack, settings=settings)
    seconds = time.perf_counter() - began
    x, y = load_zoo().data("mnist", JUDGED)
    found = sp.audit(done.victim, (x, y), sp.Linf(EPS), preset="standard", curve=False)
    apart = next(f for f in found.findings if f.name == "ten-steps")
    row = [
        *(recipe.method.card.name, NETWORKS[recipe.build], f"{settings.epochs}", f"{seconds:.0f} s"),
        *(f"{torch.get_num_threads()}", f"{found.clean_accuracy:.1%}", f"{found.robust_accuracy:.1%} {found.interval}"),
        *(f"{found.n:,}", "skipped" if apart.measured is None else f"{apart.measured:.1%}"),
    ]
    header = ["method", "network", "epochs", "training", "threads", "clean", "robust [95%]", "n", "check 18"]
    standing = ", ".join(f"{a.label} {a.robust_accuracy:.1%}" for a in found.attacks)
    failed = ", ".join(f"{f.number} ({f.name})" for f in found.findings if f.result == "fail") or "none"
    return "\n\n".join(
        [
            f"{recipe.told}; {settings.optimiser}, {settings.schedule} rate up to {settings.lr:g}, batches of "
            f"{settings.batch_size}, 60,000 digits, Linf {recipe.eps:g} in training. Judged within Linf {EPS:g} by `standard` "
            "with its checks; check 18 is PGD-10 less the whole audit.",
            table(header, [row]),
            f"Left after each attack: {standing}. Verdict: {found.verdict.result}; checks failed: {failed}. "
            f"Epoch {done.chosen} of {len(done.history)} was kept.",
            f"Each attack alone, {DOUBTED} images",
            table(["attack", "eps", "robust"], doubts(done.victim, x[:DOUBTED], y[:DOUBTED])),
        ]
    )


def doubts(victim: sp.Victim, x: Tensor, y: Tensor) -> list[list[str]]:
    """Signs of masked gradients: Square or transfer below the gradient attacks, more starts or a wider ball no help."""
    alone: list[tuple[str, Attack, float]] = [
        ("PGD-10", sp.PGD(steps=10), EPS),
        ("APGD, 1 start", APGD(), EPS),
        ("APGD, 10 starts", APGD(restarts=10), EPS),
        ("APGD-T", APGDT(), EPS),
        ("Square, 5,000 queries", Square(), EPS),
        *(("APGD-T, a wider ball", APGDT(), eps) for eps in (0.35, 0.4, 0.5)),
    ]
    rows = [
        [name, f"{eps:g}", f"{attack(victim, x, y, sp.Linf(eps)).robust_accuracy:.1%}"] for name, attack, eps in alone
    ]
    other = sp.Victim(load_zoo().load("mnist_adv"))
    moved = APGD(loss="margin")(other, x, y, sp.Linf(EPS), early_stop=False).adversarial
    with torch.no_grad():
        left = float((victim.query(moved).labels == y).float().mean())
    return [*rows, ["APGD transferred from mnist_adv", f"{EPS:g}", f"{left:.1%}"]]
