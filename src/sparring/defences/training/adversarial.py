"""Training on adversarial inputs: the mix with clean ones, PGD training, and the two cheap forms, fast and free."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparring.attacks.gradient.pgd import FGSM
from sparring.core.attack import Attack
from sparring.core.balls import Ball, per_sample
from sparring.core.errors import InputError
from sparring.core.registry import Card, defence
from sparring.core.threat import Access, ThreatModel
from sparring.defences.inputs.base import above, whole
from sparring.defences.training.crafting import Crafter
from sparring.defences.training.method import Method, Standard, cross_entropy
from sparring.defences.training.one_step import OneStep


@defence(
    Card(
        name="standard",
        title="Ordinary training: no defence, the yardstick",
        paper="Goodfellow, Bengio and Courville 2016, Deep Learning, section 6.2",
        access=Access.GRADIENTS,
        spaces=(),
        cost="1 forward + backward per step",
        caveats="Learns nothing about adversarial inputs.",
    )
)
@dataclass(frozen=True, kw_only=True)
class StandardTraining(Standard):
    """min E CE(f(x), y)."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Crafter) -> Tensor:
        """Cross-entropy on clean inputs."""
        return cross_entropy(model(x), y)


@defence(
    Card(
        name="mix",
        title="Adversarial training on clean and adversarial inputs together",
        paper="Goodfellow, Shlens and Szegedy 2015, Explaining and Harnessing Adversarial Examples, arXiv:1412.6572",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        cost="1 step of FGSM + 1 forward + backward on both halves",
        caveats="With one-step attacks the network can learn to make them weak (label leaking, gradient masking): "
        "measure with PGD. It also takes multi-step attacks.",
        aliases=("goodfellow",),
    )
)
@dataclass(frozen=True, kw_only=True)
class Mix(Method):
    """min E [clean * CE(f(x), y) + (1 - clean) * CE(f(x'), y)].

    Args:
        clean: the weight of the clean inputs, 0 to 1.
    """

    clean: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.clean <= 1:
            raise InputError(f"clean is {self.clean!r}; a weight from 0 to 1 is needed")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Crafter) -> Tensor:
        """The weighted loss of both halves, which share one forward."""
        scores = model(torch.cat([x, attack(x, y)]))
        return self.clean * cross_entropy(scores[: len(x)], y) + (1 - self.clean) * cross_entropy(scores[len(x) :], y)

    def default_attack(self, threat: ThreatModel) -> Attack:
        """The fast gradient sign method, as in the paper."""
        return FGSM()


@defence(
    Card(
        name="pgd-training",
        title="Adversarial training with PGD",
        paper="Madry et al. 2018, Towards Deep Learning Models Resistant to Adversarial Attacks, arXiv:1706.06083",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        cost="the attack's steps + 1 forward + backward: 11 times ordinary training with PGD-10",
        caveats="Not broken; holds for the space it was trained in and costs clean accuracy.",
        aliases=("madry", "adversarial-training"),
    )
)
@dataclass(frozen=True, kw_only=True)
class PGDTraining(Method):
    """min E max CE(f(x'), y): every batch is replaced by adversarial inputs."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Crafter) -> Tensor:
        """Cross-entropy on adversarial inputs alone."""
        return cross_entropy(model(attack(x, y)), y)


@defence(
    Card(
        name="fast",
        title="Fast adversarial training: one step from a random start",
        paper="Wong, Rice and Kolter 2020, Fast Is Better Than Free: Revisiting Adversarial Training, arXiv:2001.03994",
        access=Access.GRADIENTS,
        spaces=("linf", "l2"),
        cost="2 forwards + backwards: twice ordinary training",
        caveats="Catastrophic overfitting: PGD accuracy can fall to 0 within an epoch while FGSM accuracy rises. The loop "
        "watches for it (gradients that turn within the ball, a gap between FGSM and PGD) and keeps the best epoch.",
        aliases=("fast-at",),
    )
)
@dataclass(frozen=True, kw_only=True)
class Fast(PGDTraining):
    """min E CE(f(x'), y), x' one step of length `step` * eps from a uniform start, projected into the ball.

    Args:
        step: step over eps; 1.25 in the paper, more overfits sooner.
    """

    step: float = 1.25

    def __post_init__(self) -> None:
        above(self.step, "step", 0.0)

    def default_attack(self, threat: ThreatModel) -> Attack:
        """One step from a start that may leave the bounds (see `OneStep`)."""
        return OneStep(step=self.step)


@defence(
    Card(
        name="free",
        title="Free adversarial training: one backward for the weights and the perturbation",
        paper="Shafahi et al. 2019, Adversarial Training for Free!, arXiv:1904.12843",
        access=Access.GRADIENTS,
        spaces=("linf",),
        cost="1 forward + backward per step, `replays` steps on each batch; divide the epochs by `replays`",
        caveats="The perturbation carries over to the next batch, so a batch size that varies resets it.",
        aliases=("free-at",),
    )
)
@dataclass(frozen=True, kw_only=True)
class Free(Method):
    """Each batch `replays` times: the gradient of one backward updates the weights and d <- P(d + eps * sign(grad)).

    Args:
        replays_per_batch: m in the paper.
    """

    replays_per_batch: int = 4

    def __post_init__(self) -> None:
        whole(self.replays_per_batch, "replays_per_batch", 1)

    @property
    def replays(self) -> int:
        """m."""
        return self.replays_per_batch

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Crafter) -> Tensor:
        """Cross-entropy at x + d; the backward pass of the weights moves d."""
        space = attack.threat.space.bound(x, attack.victim.bounds)
        if not isinstance(space, Ball) or space.name != "linf":
            raise InputError(f"free adversarial training moves inside a linf ball; the space is {space!r}")
        carried = attack.carried
        start = x if carried is None or carried.shape != x.shape else space.project(x, x + carried)
        leaf = start.detach().requires_grad_(True)

        def move(grad: Tensor) -> None:
            moved = space.project(x, leaf.detach() + per_sample(space.eps, x) * grad.sign())  # type: ignore[arg-type]
            attack.carried = moved - x

        leaf.register_hook(move)
        return cross_entropy(model(leaf), y)
