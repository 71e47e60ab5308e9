"""The high-level guided denoiser: a U-Net takes away what changes the classifier's scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from sparring.attacks import PGD
from sparring.core.attack import Attack
from sparring.core.balls import Linf
from sparring.core.errors import InputError
from sparring.core.network import Victim
from sparring.core.registry import Card, defence, make_attack
from sparring.core.space import Space
from sparring.core.threat import Access, ThreatModel
from sparring.defences.inputs.base import Learned, above, nothing, pictures, seeded, whole
from sparring.defences.inputs.networks import UNet


def train_hgd(
    victim: Victim,
    x: Tensor,
    y: Tensor | None,
    threat: ThreatModel | Space,
    *,
    attack: Attack | str | None = None,
    width: int = 16,
    epochs: int = 10,
    seed: int = 0,
) -> UNet:
    """A denoiser D that brings a classifier's scores back: min E |f(D(x')) - f(x)|_1 + E |f(D(x)) - f(x)|_1.

    With the denoiser's output d, D(x) = clip(x - d(x)); f are the scores. The adversarial inputs x' are crafted once, on the
    victim as it is.

    Args:
        victim: f, with its own stages if it has any; it stays as it is.
        x: clean pictures in raw units, (n, c, h, w).
        y: their labels, int64 (n,); None takes the victim's own answers.
        threat: within which x' are crafted.
        attack: that crafts them, or its name; None takes ten steps of PGD.
        width: channels of the U-Net at full resolution.
        epochs: passes over x, in batches of 64, by Adam at 2e-3 falling to nothing along a cosine.
        seed: of weights, order and crafting; the global random state stays as it is.

    Raises:
        InputError: no pictures, or settings that cannot be right.

    Paper:
        Liao et al. 2018, Defense against Adversarial Attacks Using High-Level Representation Guided Denoiser,
        arXiv:1712.02976 (the variant guided by logits).
    """
    pictures(x, "a guided denoiser")
    whole(epochs, "epochs", 1)
    whole(width, "width", 1)
    if not len(x):
        raise InputError("no picture came; a denoiser learns from clean ones")
    x = x.to(victim.device)
    crafter = PGD(steps=10) if attack is None else make_attack(attack)
    moved = crafter(victim, x, y, threat, early_stop=False, seed=seed).adversarial
    source = torch.Generator().manual_seed(seed)
    net = seeded(lambda: UNet(x.shape[1], width), source).to(victim.device)
    parameters = list(net.parameters())
    optimiser = torch.optim.Adam(parameters, lr=2e-3)
    batches = [rows for _ in range(epochs) for rows in torch.randperm(len(x), generator=source).split(64)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, len(batches))
    bounds = victim.bounds.like(x)
    with victim.at_rest():
        with torch.no_grad():
            wanted = torch.cat([victim.scores(part) for part in x.split(256)])
        for rows in batches:
            seen = torch.cat([moved[rows], x[rows]])
            scores = victim.scores((seen - net(seen)).clamp(bounds.lo, bounds.hi))
            loss = (scores - wanted[rows].repeat(2, 1)).abs().mean()
            # not backward(): the victim's parameters keep the gradients that they have
            for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = grad
            optimiser.step()
            schedule.step()
    optimiser.zero_grad(set_to_none=True)
    return net.eval().requires_grad_(False)


@defence(
    Card(
        name="hgd",
        title="High-level guided denoiser",
        paper="Liao et al. 2018, Defense against Adversarial Attacks Using High-Level Representation Guided Denoiser, "
        "arXiv:1712.02976",
        access=Access.GRADIENTS,
        spaces=("linf", "l2"),
        cost="one pass of a small U-Net; its training crafts once and takes minutes",
        domains=("image",),
        caveats="Learns what the attacks on the bare network look like, and mends those. It is a differentiable layer more: "
        "PGD through it needs no surrogate and took the accuracy on photos to nothing (Athalye and Carlini 2018, "
        "arXiv:1804.03286). Where pixels are black or white, as on MNIST, it learns to threshold and keeps a part; APGD finds "
        "more there than PGD.",
        aliases=("guided-denoiser",),
    )
)
@dataclass(kw_only=True, eq=False)
class HGD(Learned):
    """x -> clip(x - d(x)), with d a denoiser such as `train_hgd` makes.

    Args:
        net: d, a module from inputs to inputs; None until `fit` has trained one.
        lo, hi: the ends of the input's range.
        eps: the Linf radius of the adversarial inputs that `fit` learns from.
        width: channels of the U-Net that `fit` trains.
        epochs: of its training.
        seed: of its training.
    """

    net: nn.Module | None = field(default_factory=nothing, repr=False)
    lo: float = 0.0
    hi: float = 1.0
    eps: float = 8 / 255
    width: int = 16
    epochs: int = 10
    seed: int = 0

    def check(self) -> None:
        """lo < hi, positive numbers."""
        above(self.hi - self.lo, "hi - lo", 0.0)
        above(self.eps, "eps", 0.0)
        whole(self.width, "width", 1)
        whole(self.epochs, "epochs", 1)

    def fit(self, victim: Victim, x: Tensor, y: Tensor) -> Self:
        """Train the denoiser on PGD within Linf(eps), unless there is one already."""
        if self.net is None:
            self.net = train_hgd(victim, x, y, Linf(self.eps), width=self.width, epochs=self.epochs, seed=self.seed)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """The denoised pictures, (n, c, h, w)."""
        pictures(x, "HGD")
        mended: Tensor = x - self.ready(self.net)(x)
        return mended.clamp(self.lo, self.hi)
