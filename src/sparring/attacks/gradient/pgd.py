"""Projected gradient descent and its two ancestors: the basic iterative method, and the fast gradient sign method."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.gradient.parts import climb, start_at, step_length
from sparring.core.attack import Attack
from sparring.core.errors import InputError
from sparring.core.losses import get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access


@attack(
    Card(
        name="pgd",
        title="Projected gradient descent",
        paper="Madry et al. 2018, Towards Deep Learning Models Resistant to Adversarial Attacks, arXiv:1706.06083; "
        "L1 steps after Tramer and Boneh 2019, arXiv:1904.13000",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        cost="steps x (forward + backward) per restart, less what early stopping saves",
        caveats="Cross-entropy saturates on victims with large logits: try loss='dlr' or 'margin'. A fixed step size "
        "leaves robust victims overrated by a point or more: confirm with APGD.",
        floor={"linf": 0.9, "l2": 0.9, "l1": 0.9},
        aliases=("i-fgsm", "ifgsm"),
    )
)
@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected gradient descent: x <- P(x + a * steepest(grad L)), from a random point of the ball.

    Args:
        steps: gradient steps per restart.
        step_size: a, in the victim's raw units; None takes 2.5 * eps / steps, which can cross the ball twice.
        restarts: independent starts; later ones meet only the samples still unbroken.
        random_start: start at a random point of the ball instead of the input.
        loss: what to climb: "ce", "log_odds" (which leads where cross-entropy does, and does not saturate), "margin", "dlr",
            "probability_margin", "squared_error".
        precision: what the gradients are computed in: "auto" takes bfloat16 where the victim and the hardware make it pay,
            "float32" never does. Successes are decided in float32 either way.
        region: the share of a picture's area in which anything changes, a rectangle in a place of its own for each sample and
            restart; None changes all of it.

    Example:
        >>> import torch, sparring as sp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> x = torch.rand(2, 1, 2, 2)
        >>> result = sp.PGD(steps=5)(sp.Victim(net), x, None, sp.Linf(8 / 255))
        >>> bool(((result.adversarial - x).abs() <= 8 / 255 + 1e-6).all())
        True
    """

    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    loss: str = "ce"
    precision: str = "auto"
    region: float | None = None

    def search(self, run: Run) -> None:
        """Climb from the start, once per restart."""
        run.explore(self.precision)
        start = start_at(run, self.random_start)
        inside = None if self.region is None else _rectangle(run, self.region)
        climb(
            run,
            steps=self.steps,
            loss=get_loss(self.loss),
            start=start if inside is None else torch.where(inside, start, run.x),
            step=lambda r, t: step_length(r, self.step_size, 2.5 / max(1, self.steps)),
            direction=_within,
            memory=inside,
        )


def _within(grad: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The gradient in the region that is remembered, zero elsewhere; all of it where there is none."""
    return grad if memory is None else grad * memory, memory


def _rectangle(run: Run, share: float) -> Tensor:
    """Bool (m, 1, h, w): a rectangle of this share of each picture, as wide for its height as the picture."""
    if not 0 < share <= 1:
        raise InputError(f"region is {share}; a share of the picture's area, above 0 and at most 1, is needed")
    if run.x.ndim != 4:
        raise InputError(f"region needs pictures (n, c, h, w); the inputs have shape {tuple(run.x.shape)}")
    words = run.rng.integers((2,), ("region", run.restart), 2**30)
    sides = []
    for size, word in zip(run.x.shape[2:], words.unbind(1), strict=True):
        length = max(1, round(size * math.sqrt(share)))
        first = (word % (size - length + 1))[:, None]
        place = torch.arange(size, device=first.device)
        sides.append((place >= first) & (place < first + length))
    inside: Tensor = (sides[0][:, None, :, None] & sides[1][:, None, None, :]).to(run.x.device)
    return inside


@attack(
    Card(
        name="bim",
        title="Basic iterative method: PGD from the input itself",
        paper="Kurakin, Goodfellow and Bengio 2017, Adversarial Examples in the Physical World, arXiv:1607.02533",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        cost="steps x (forward + backward)",
        caveats="Without a random start it can sit at a flat spot of the input forever; PGD is the safer default.",
        floor={"linf": 0.85, "l2": 0.85, "l1": 0.85},
    )
)
@dataclass(frozen=True, kw_only=True)
class BIM(Attack):
    """The basic iterative method: PGD without a random start.

    Args:
        steps: gradient steps.
        step_size: in the victim's raw units; None takes 2.5 * eps / steps.
        loss: what to climb (see `PGD`).
    """

    steps: int = 10
    step_size: float | None = None
    loss: str = "ce"

    def search(self, run: Run) -> None:
        """Climb from the input."""
        climb(
            run,
            steps=self.steps,
            loss=get_loss(self.loss),
            start=start_at(run, random=False),
            step=lambda r, t: step_length(r, self.step_size, 2.5 / max(1, self.steps)),
        )


@attack(
    Card(
        name="fgsm",
        title="Fast gradient sign method: one step to the ball's surface",
        paper="Goodfellow, Shlens and Szegedy 2015, Explaining and Harnessing Adversarial Examples, arXiv:1412.6572",
        access=Access.GRADIENTS,
        spaces=("linf", "l2", "l1"),
        cost="1 forward + 1 backward",
        caveats="One step: a victim that resists it may have learnt to hide its gradient. Never a measure of "
        "robustness.",
        floor={"linf": 0.6, "l2": 0.6, "l1": 0.5},
        aliases=("fgm",),
    )
)
@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """The fast gradient method: x + eps * steepest(grad L); in Linf the sign method. Targeted, it descends.

    Args:
        loss: what to climb (see `PGD`).
    """

    loss: str = "ce"

    def search(self, run: Run) -> None:
        """One full step."""
        climb(
            run,
            steps=1,
            loss=get_loss(self.loss),
            start=start_at(run, random=False),
            step=lambda r, t: step_length(r, None, 1.0),
        )
