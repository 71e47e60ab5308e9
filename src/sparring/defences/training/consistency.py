"""Training that ties the answers on adversarial inputs to those on clean ones: TRADES and MART."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring.core.losses import Loss
from sparring.core.registry import Card, defence
from sparring.core.threat import Access
from sparring.defences.inputs.base import above
from sparring.defences.training.crafting import Crafter
from sparring.defences.training.method import Method, cross_entropy


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(softmax(p) || softmax(q)) of class scores (n, k), per sample (n,)."""
    return F.kl_div(q.log_softmax(1), p.log_softmax(1), reduction="none", log_target=True).sum(1)


@defence(
    Card(
        name="trades",
        title="TRADES: clean loss plus the divergence of adversarial from clean answers",
        paper="Zhang et al. 2019, Theoretically Principled Trade-off between Robustness and Accuracy, arXiv:1901.08573",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        cost="the attack's steps + 1 forward + 2 forwards + backwards",
        caveats="Some runs end masked: PGD-10 far above a full audit (check 18).",
    )
)
@dataclass(frozen=True, kw_only=True)
class TRADES(Method):
    """min E [CE(f(x), y) + beta * max KL(f(x) || f(x'))], where the attack climbs the divergence.

    Args:
        beta: weight of the divergence, 1 to 10 in the paper.
    """

    beta: float = 6.0

    def __post_init__(self) -> None:
        above(self.beta, "beta", 0.0)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Crafter) -> Tensor:
        """Clean cross-entropy and beta times the mean divergence."""
        reference = attack.scores(x)
        climb = Loss("kl", lambda s, y: divergence(reference, s), lambda s, y, target: -F.cross_entropy(s, target))
        x_adv = attack(x, y, climb)
        clean = model(x)
        return cross_entropy(clean, y) + self.beta * divergence(clean, model(x_adv)).mean()


@defence(
    Card(
        name="mart",
        title="MART: boosted cross-entropy, and a divergence that minds the misclassified",
        paper="Wang et al. 2020, Improving Adversarial Robustness Requires Revisiting Misclassified Examples, ICLR 2020",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        cost="the attack's steps + 2 forwards + backwards",
        caveats="Some runs end masked: PGD-10 far above a full audit (check 18).",
    )
)
@dataclass(frozen=True, kw_only=True)
class MART(Method):
    """min E [BCE(p(x'), y) + beta * KL(p(x) || p(x')) * (1 - p_y(x))], crafted by cross-entropy.

    BCE(p, y) = -log p_y - log(1 - max over k != y of p_k).

    Args:
        beta: weight of the divergence, 5 or 6 in the paper.
    """

    beta: float = 5.0

    def __post_init__(self) -> None:
        above(self.beta, "beta", 0.0)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Crafter) -> Tensor:
        """The boosted cross-entropy and the weighted divergence."""
        x_adv = attack(x, y)
        clean, scores = model(x), model(x_adv)
        p = scores.softmax(1)
        rival = p.scatter(1, y[:, None], 0.0).amax(1)
        boosted = cross_entropy(scores, y) - torch.log1p(-rival.clamp(max=1 - 1e-6)).mean()
        doubt = 1 - clean.softmax(1).gather(1, y[:, None]).squeeze(1)
        loss: Tensor = boosted + self.beta * (divergence(clean, scores) * doubt).mean()
        return loss
