"""Which elements of an input a victim's answer rests on: attributions, their picture, and starting points made of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparring.core.balls import Ball, per_sample
from sparring.core.errors import CapabilityError, InputError, UnknownNameError
from sparring.core.network import Victim
from sparring.core.space import Space

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("integrated-gradients", "gradient", "gradient-input")


@dataclass(frozen=True, eq=False)
class Saliency:
    """Attributions of a batch.

    Attributes:
        x: the inputs, float (n, ...), in the victim's raw units.
        labels: the classes that were explained, int64 (n,).
        values: how much each element speaks for its class, (n, ...).
        method: how they were had.
        victim: the victim's name.
    """

    x: Tensor
    labels: Tensor
    values: Tensor
    method: str
    victim: str

    def starts(self, space: Space, victim: Victim, share: float = 1.0) -> Tensor:
        """Starting points for `Knowledge(starts=...)`, (n, ...): as far against the attributions as the space allows.

        Args:
            space: a ball with an eps, such as `sparring.Linf(8 / 255)`.
            victim: whose bounds hold.
            share: only this share of the elements moves, those of the largest attributions.

        Raises:
            InputError: another space, or one without an eps; a share outside (0, 1].
        """
        if not isinstance(space, Ball) or space.eps is None:
            raise InputError(
                f"the space is {space!r}; starting points are made in a ball with an eps, as in sparring.Linf(8 / 255)"
            )
        if not 0 < share <= 1:
            raise InputError(f"share is {share}; a number in (0, 1] is needed")
        ball: Ball = space.bound(self.x, victim.bounds)
        against = -self.values.flatten(1)
        kept = max(1, round(share * against.shape[1]))
        least = against.abs().topk(kept, dim=1).values[:, -1:]
        against = torch.where(against.abs() >= least, against, 0.0).reshape(self.x.shape)
        step = per_sample(torch.as_tensor(ball.eps), self.x) * ball.steepest(against, self.x)
        return ball.project(self.x, self.x + step)

    def figure(self, path: str | os.PathLike[str] | None = None, most: int = 6) -> Figure:
        """The inputs and, beneath them, what speaks for the class (red) and against it (blue).

        Args:
            path: where to write it (.png, .svg, .pdf, ...); None only returns it.
            most: show at most so many inputs.

        Raises:
            InputError: inputs that are no pictures.
        """
        from sparring.see.figures import write_figure
        from sparring.see.plots import saliency_figure

        return write_figure(saliency_figure(self, most), path)


def saliency(
    victim: Victim,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    method: str = "integrated-gradients",
    baseline: float | Tensor | None = None,
    steps: int = 50,
) -> Saliency:
    """How much each element of x speaks for a class.

    Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365) by captum: (x - b) times the mean gradient on the line
    from the baseline b to x; the values of a sample add up to s(x) - s(b). "gradient" is the plain gradient of the score
    (Simonyan et al. 2014, arXiv:1312.6034), "gradient-input" that times x. Defence stages are differentiated through their
    surrogates where they have one.

    Args:
        victim: a victim with gradients.
        x: float (n, ...), in raw units, inside the bounds.
        labels: the classes to explain, int64 (n,); None takes the victim's own answers.
        method: one of `METHODS`.
        baseline: b, a number or a tensor like x[0]; None takes the lower bound (black).
        steps: points on the line.

    Raises:
        CapabilityError: a victim without gradients, or captum is not installed.
        UnknownNameError: another method.
    """
    if method not in METHODS:
        raise UnknownNameError.among("saliency method", method, METHODS)
    if not isinstance(victim, Victim):
        raise CapabilityError(f"{victim!r} offers no gradients; saliency needs a sparring.Victim around a network")
    admitted, y = victim.admit(x, torch.zeros(len(x), dtype=torch.int64) if labels is None else labels)
    x = torch.as_tensor(admitted)
    view = victim.attack_view()
    with victim.at_rest():
        y = victim.query(x).labels if labels is None else y
        if method == "integrated-gradients":
            start = victim.bounds.lo if baseline is None else torch.as_tensor(baseline)
            values = _integrated(view.scores, x, y, start.to(x).expand_as(x), steps)
        else:
            leaf = x.clone().requires_grad_(True)
            with torch.enable_grad():
                own = view.scores(leaf).gather(1, y[:, None]).sum()
            (values,) = torch.autograd.grad(own, leaf)
            values = values * x if method == "gradient-input" else values
    return Saliency(x, y, values.detach(), method, victim.name)


def _integrated(scores: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, start: Tensor, steps: int) -> Tensor:
    try:
        from captum.attr import IntegratedGradients
    except ImportError as cause:
        raise CapabilityError(
            'integrated gradients come from captum: pip install "sparring[attributions]"; method="gradient" needs nothing'
        ) from cause
    found: Any = IntegratedGradients(scores).attribute(
        x, start, target=y, n_steps=steps, internal_batch_size=max(64, len(x))
    )
    return found.to(x.dtype)  # type: ignore[no-any-return]
