"""Losses that an attacker raises: each has an untargeted and a targeted form, and larger always means nearer to
success.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.core.errors import ThreatError, UnknownNameError
from sparring.core.threat import Goal, Targeted, Untargeted, rival_margin


@dataclass(frozen=True)
class Loss:
    """A pair of functions of class scores (n, k): `untargeted(scores, y)` and `targeted(scores, y, target)`, each
    (n,).
    """

    name: str
    untargeted: Callable[[Tensor, Tensor], Tensor]
    targeted: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __call__(self, scores: Tensor, y: Tensor, goal: Goal) -> Tensor:
        """The loss under `goal`, (n,). A goal with a `loss(output, y)` of its own is asked instead.

        Raises:
            ThreatError: a goal that is neither targeted nor untargeted and has no loss.
        """
        if isinstance(goal, Targeted):
            return self.targeted(scores, y, goal.of(y))
        if isinstance(goal, Untargeted):
            return self.untargeted(scores, y)
        own: Callable[[Any, Any], Tensor] | None = getattr(goal, "loss", None)
        if own is None:
            raise ThreatError(
                f"the goal {goal.name!r} has no loss(output, y), so a gradient attack cannot climb towards it; "
                "give the goal a loss or use an attack by labels"
            )
        return own(scores, y)


def _cross_entropy(scores: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores, y, reduction="none")


def _log_odds(scores: Tensor, y: Tensor) -> Tensor:
    rivals = scores.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    return rivals - scores.gather(1, y[:, None]).squeeze(1)


def _top(scores: Tensor, k: int) -> Tensor:
    return scores.topk(k, dim=1).values


def _dlr(scores: Tensor, y: Tensor) -> Tensor:
    if scores.shape[1] < 3:  # the ratio needs a third class; with two the margin is all there is
        return rival_margin(scores, y)
    top = _top(scores, 3)
    return rival_margin(scores, y) / (top[:, 0] - top[:, 2] + 1e-12)


def _dlr_targeted(scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
    gap = (scores.gather(1, target[:, None]) - scores.gather(1, y[:, None])).squeeze(1)
    if scores.shape[1] < 4:
        return gap
    top = _top(scores, 4)
    return gap / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)


def _margin_targeted(scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return -rival_margin(scores, target)


def _probability_margin(scores: Tensor, y: Tensor) -> Tensor:
    return rival_margin(scores.softmax(1), y)


def _probability_margin_targeted(scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return -rival_margin(scores.softmax(1), target)


def _squared_error(scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
    goal = F.one_hot(target, scores.shape[1]).to(scores.dtype)
    return -0.5 * (goal - scores).square().sum(1)


def _squared_error_untargeted(scores: Tensor, y: Tensor) -> Tensor:
    return -_squared_error(scores, y, y)


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        # log-softmax of the true class, the training loss of most victims
        Loss("ce", _cross_entropy, lambda s, y, t: -_cross_entropy(s, t)),
        # the log-odds against the true class: it orders points as its probability does, and does not saturate where that is 1
        Loss("log_odds", _log_odds, lambda s, y, t: -_log_odds(s, t)),
        # Carlini and Wagner 2017: the difference of logits, which does not saturate
        Loss("margin", rival_margin, _margin_targeted),
        # Croce and Hein 2020: the margin over the spread of the logits, invariant to shift and scale; the untargeted
        # form falls back to the margin below 3 classes, the targeted one to the pair's difference below 4
        Loss("dlr", _dlr, _dlr_targeted),
        # the margin between probabilities (PMA, Ma et al. 2024)
        Loss("probability_margin", _probability_margin, _probability_margin_targeted),
        # half the squared distance of the outputs to a one-hot answer, the cost of early adversarial-digit reports
        Loss("squared_error", _squared_error_untargeted, _squared_error),
    )
}


def get_loss(loss: str | Loss) -> Loss:
    """The loss called `loss`, or the loss itself.

    Raises:
        UnknownNameError: no such name.
    """
    if isinstance(loss, Loss):
        return loss
    if loss not in LOSSES:
        raise UnknownNameError.among("loss", loss, LOSSES)
    return LOSSES[loss]


def margin_of(scores: Tensor, y: Tensor, goal: Goal) -> Tensor:
    """The margin to the decision boundary under `goal`, (n,); positive once the goal is reached."""
    return LOSSES["margin"](scores, y, goal)
