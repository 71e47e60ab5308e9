"""Momentum in gradient attacks: MI-FGSM, NI-FGSM, and their usual companions by input transforms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparring.attacks.gradient.parts import Climber, Direction, Look, Slope, climb, start_at, step_length
from sparring.attacks.gradient.transforms import seen_through
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.losses import Loss, get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Gradient, Run
from sparring.core.threat import Access

if TYPE_CHECKING:
    from sparring.attacks.gradient.variance import VMIFGSM


def momentum(decay: float, p: float) -> Direction:
    """The direction g <- decay * g + grad / size(grad): gradients of unit size, the older the fainter.

    Args:
        decay: the papers' mu.
        p: the norm of the space. The size is the p-norm, so that g is measured in steps; in Linf the mean absolute
            value, which the papers' programs use where the papers write the L1 norm.
    """

    def turn(grad: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        flat = grad.flatten(1)
        size = flat.abs().mean(1) if math.isinf(p) else flat.norm(p=p, dim=1)
        unit = grad / per_sample(size.clamp(min=torch.finfo(grad.dtype).tiny), grad)
        g = unit if memory is None else memory * decay + unit
        return g, g

    return turn


def ahead(slope: Slope, step: Callable[[Run, int], Tensor | float], decay: float) -> Look:
    """Nesterov's look: the gradient where the momentum is about to lead, x + a * decay * g.

    That point is brought back into the space first, as the next iterate will be, so that its answer may count.
    """

    def gradient(run: Run, s: Climber, loss: Loss, t: int) -> Gradient:
        x = s.x if s.memory is None else run.space.project(run.x, s.x + step(run, t) * decay * s.memory)
        return slope(run, x, loss, t)

    return gradient


def here(slope: Slope) -> Look:
    """The gradient at the climb's own point."""
    return lambda run, s, loss, t: slope(run, s.x, loss, t)


def climb_with_momentum(run: Run, attack: MIFGSM | VMIFGSM, tune: Callable[[Look], Look] | None = None) -> None:
    """Climb from the input with the attack's momentum and transforms; `tune` may correct the gradients before that."""

    def step(run: Run, t: int) -> Tensor | float:
        return step_length(run, attack.step_size, 1.0 / max(1, attack.steps))

    slope = seen_through(attack.transform)
    look = ahead(slope, step, attack.decay) if attack.nesterov else here(slope)
    climb(
        run,
        steps=attack.steps,
        loss=get_loss(attack.loss),
        start=start_at(run, random=False),
        step=step,
        direction=momentum(attack.decay, float(getattr(run.space, "p", math.inf))),
        gradient=look if tune is None else tune(look),
    )


@attack(
    Card(
        name="mi-fgsm",
        title="Momentum iterative fast gradient sign method",
        paper="Dong et al. 2018, Boosting Adversarial Attacks with Momentum, arXiv:1710.06081",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        cost="steps x (forward + backward), times the copies where si is among the transforms",
        caveats="Made to transfer. On the victim itself PGD with restarts, or APGD, breaks more.",
        floor={"linf": 0.95, "l2": 0.95, "l1": 0.95},
        aliases=("mifgsm", "mim"),
    )
)
@dataclass(frozen=True, kw_only=True)
class MIFGSM(Attack):
    """Momentum iterative FGSM: g <- mu g + grad / ||grad||_1, x <- P(x + a * steepest(g)), from the input itself.

    Args:
        steps: gradient steps.
        step_size: a, in the victim's raw units; None takes eps / steps.
        decay: mu.
        nesterov: take the gradient one momentum step ahead, at P(x + a mu g) (NI-FGSM).
        transform: input transforms, such as "di", "ti+si" or "di=0.7+ti=7" (see `transforms.parse`); "" for none.
        loss: what to climb (see `PGD`).
    """

    steps: int = 10
    step_size: float | None = None
    decay: float = 1.0
    nesterov: bool = False
    transform: str = ""
    loss: str = "ce"

    def search(self, run: Run) -> None:
        """Climb with momentum from the input."""
        climb_with_momentum(run, self)


@attack(
    Card(
        name="ni-fgsm",
        title="Nesterov iterative fast gradient sign method",
        paper="Lin et al. 2020, Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks, "
        "arXiv:1908.06281",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        cost="steps x (forward + backward), times the copies where si is among the transforms",
        caveats="Made to transfer. On the victim itself PGD with restarts, or APGD, breaks more.",
        floor={"linf": 0.95, "l2": 0.95, "l1": 0.95},
        aliases=("nifgsm",),
    )
)
@dataclass(frozen=True, kw_only=True)
class NIFGSM(MIFGSM):
    """MI-FGSM with the gradient taken one momentum step ahead, at P(x + a mu g)."""

    nesterov: bool = True


@attack(
    Card(
        name="di-fgsm",
        title="Diverse inputs with momentum (M-DI2-FGSM)",
        paper="Xie et al. 2019, Improving Transferability of Adversarial Examples with Input Diversity, arXiv:1803.06978",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        cost="steps x (forward + backward)",
        domains=("image",),
        caveats="Made to transfer: a step whose picture was transformed shows nothing about the picture itself.",
        floor={"linf": 0.95, "l2": 0.95, "l1": 0.95},
        aliases=("difgsm", "di2-fgsm", "dim"),
    )
)
@dataclass(frozen=True, kw_only=True)
class DIFGSM(MIFGSM):
    """MI-FGSM through random resizing and padding."""

    transform: str = "di"


@attack(
    Card(
        name="ti-fgsm",
        title="Translation-invariant gradient with momentum",
        paper="Dong et al. 2019, Evading Defenses to Transferable Adversarial Examples by Translation-Invariant Attacks, "
        "arXiv:1904.02884",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        cost="steps x (forward + backward)",
        domains=("image",),
        caveats="Made to transfer between victims that look at different regions. The kernel of 15 pixels suits photos; "
        "on small pictures ti=3 or ti=5 does.",
        floor={"linf": 0.95, "l2": 0.95, "l1": 0.95},
        aliases=("tifgsm", "tim"),
    )
)
@dataclass(frozen=True, kw_only=True)
class TIFGSM(MIFGSM):
    """MI-FGSM along a smoothed gradient."""

    transform: str = "ti"


@attack(
    Card(
        name="si-fgsm",
        title="Scale-invariant gradient with momentum (SI-MI-FGSM)",
        paper="Lin et al. 2020, Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks, "
        "arXiv:1908.06281",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        cost="steps x 5 x (forward + backward)",
        caveats="Made to transfer.",
        floor={"linf": 0.95, "l2": 0.95, "l1": 0.95},
        aliases=("sifgsm", "sim"),
    )
)
@dataclass(frozen=True, kw_only=True)
class SIFGSM(MIFGSM):
    """MI-FGSM along the mean gradient over x, x/2, ..., x/16."""

    transform: str = "si"


@attack(
    Card(
        name="si-ni-fgsm",
        title="Scale-invariant gradient with Nesterov momentum",
        paper="Lin et al. 2020, Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks, "
        "arXiv:1908.06281",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        cost="steps x 5 x (forward + backward)",
        caveats="Made to transfer.",
        floor={"linf": 0.95, "l2": 0.95, "l1": 0.95},
        aliases=("sinifgsm",),
    )
)
@dataclass(frozen=True, kw_only=True)
class SINIFGSM(MIFGSM):
    """NI-FGSM along the mean gradient over x, x/2, ..., x/16."""

    nesterov: bool = True
    transform: str = "si"
