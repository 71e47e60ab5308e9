"""Adversarial weight perturbation: the loss at the worst weights nearby, around any other method."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparring.core.attack import Attack
from sparring.core.losses import Loss
from sparring.core.registry import Card, defence
from sparring.core.threat import Access, ThreatModel
from sparring.defences.inputs.base import above
from sparring.defences.training.adversarial import PGDTraining
from sparring.defences.training.crafting import Crafter
from sparring.defences.training.method import Method


@defence(
    Card(
        name="awp",
        title="Adversarial weight perturbation",
        paper="Wu, Xia and Wang 2020, Adversarial Weight Perturbation Helps Robust Generalization, arXiv:2004.05884",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        cost="its base method + 1 forward + backward",
        caveats="Against the robust overfitting of long runs; in short ones it mostly costs time.",
    )
)
@dataclass(frozen=True, kw_only=True)
class AWP(Method):
    """min max over ||v_l|| <= gamma * ||w_l|| of the base method's loss at w + v, with v by one step per layer l.

    Args:
        gamma: size of the perturbation over that of the weights, layer by layer; 0.01, or 0.005 around TRADES.
        base: the method whose loss it is.
    """

    gamma: float = 0.01
    base: Method = field(default_factory=PGDTraining)

    def __post_init__(self) -> None:
        above(self.gamma, "gamma", 0.0)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Crafter) -> Tensor:
        """The base loss at the perturbed weights; its gradient is that of the weights themselves."""
        once = _Once(attack)
        layers = {name: w for name, w in model.named_parameters() if w.requires_grad and w.ndim > 1}
        buffers = {name: b.clone() for name, b in model.named_buffers()}  # statistics move in the second pass only
        here = self.base(_At(model, buffers), x, y, once)
        slopes = attack.pooled(torch.autograd.grad(here, list(layers.values())))
        moved = {
            name: w + (self.gamma * w.norm() / (g.norm() + 1e-12) * g).detach()
            for (name, w), g in zip(layers.items(), slopes, strict=True)
        }
        return self.base(_At(model, moved), x, y, once)

    def default_attack(self, threat: ThreatModel) -> Attack:
        """The base method's."""
        return self.base.default_attack(threat)


class _At(nn.Module):
    """A network with some of its tensors replaced."""

    def __init__(self, model: nn.Module, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self.tensors = model, tensors

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.model, self.tensors, (x,))  # type: ignore[no-any-return]


class _Once(Crafter):
    """A crafter that crafts once: the second pass of a method meets the same inputs."""

    def __init__(self, attack: Crafter) -> None:
        self.__dict__.update(attack.__dict__)
        self._attack = attack
        self._crafted: Tensor | None = None

    def __call__(self, x: Tensor, y: Tensor, loss: Loss | None = None) -> Tensor:
        if self._crafted is None:
            self._crafted = self._attack(x, y, loss)
        return self._crafted
