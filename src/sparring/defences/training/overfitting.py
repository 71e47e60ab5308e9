"""The alarm for catastrophic overfitting: gradients that turn inside the ball, and FGSM far weaker than PGD."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.attacks.gradient.pgd import FGSM, PGD
from sparring.core.attack import Attack
from sparring.core.network import Victim
from sparring.core.rng import KeyedRandom, content_ids
from sparring.core.threat import ThreatModel

# Soundness check 19.
LEAST_COSINE, LARGEST_GAP = 0.3, 0.2


@dataclass(frozen=True)
class Probe:
    """What a short look at a network in training saw, on n held-out samples.

    Attributes:
        clean: accuracy on clean inputs.
        fgsm, pgd: accuracy on inputs crafted by FGSM and by PGD-10.
        cosine: mean cosine between the loss gradients at x and at a random point of the ball around x.
    """

    clean: float
    fgsm: float
    pgd: float
    cosine: float

    @property
    def overfitted(self) -> bool:
        """Whether the numbers are those of catastrophic overfitting: cosine below .3, or FGSM over 20 points above."""
        return self.cosine < LEAST_COSINE or self.fgsm - self.pgd > LARGEST_GAP


def probe(victim: Victim, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int = 0, batch_size: int = 500) -> Probe:
    """Look at a network in training (Wong et al. 2020; Andriushchenko and Flammarion 2020, arXiv:2007.02617).

    Args:
        victim: the network as it is now.
        x, y: held-out inputs in raw units, (n, ...), and labels, (n,).
        threat: the space that it is trained for.
        seed: of the random starts.
        batch_size: samples at once.
    """
    sums = torch.zeros(4, dtype=torch.float64)
    fast, slow = FGSM(), PGD(steps=10)
    for rows in torch.arange(len(x)).split(batch_size):
        part, labels = x[rows].to(victim.device), y[rows].to(victim.device)
        sums[0] += _right(victim, part, labels)
        for place, attack in ((1, fast), (2, slow)):
            sums[place] += _right(victim, _crafted(attack, victim, part, labels, threat, seed), labels)
        space = threat.space.bound(part, victim.bounds)
        rng = KeyedRandom(seed, content_ids(part))
        near = space.sample(part, rng, "cosine") if hasattr(space, "sample") else part
        slopes = [_slope(victim, at, labels).flatten(1) for at in (part, near)]
        sums[3] += float(F.cosine_similarity(slopes[0], slopes[1]).sum())
    clean, fgsm, pgd, cosine = (sums / max(1, len(x))).tolist()
    return Probe(clean, fgsm, pgd, cosine)


def _crafted(attack: Attack, victim: Victim, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> Tensor:
    if threat.space.name not in attack.card.spaces:  # a space that PGD does not search is probed by clean inputs alone
        return x
    return attack.craft(victim.attack_view() if victim.stages else victim, x, y, threat, seed=seed)


def _right(victim: Victim, x: Tensor, y: Tensor) -> float:
    with victim.at_rest():
        return float((victim.query(x).labels == y).sum())


def _slope(victim: Victim, x: Tensor, y: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_(True)
    with victim.at_rest(), torch.enable_grad():
        # the sum and not the mean: a gradient of 1e-30 has a direction still, one of 0 has none
        loss = F.cross_entropy(victim.scores(leaf).double(), y, reduction="sum")
    (grad,) = torch.autograd.grad(loss, leaf)
    return grad.double()
