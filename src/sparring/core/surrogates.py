"""Surrogates as one differentiable victim, for attacks that never see the true victim."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparring.core.errors import ThreatError, UnknownNameError
from sparring.core.network import Victim
from sparring.core.rng import KeyedRandom
from sparring.core.victim import BaseVictim

ENSEMBLES = ("logits", "probabilities", "losses")


class Ensemble(Victim):
    """Several victims of one input domain as one, averaged in their logits, their probabilities or their losses.

    With the members' logits l_i and a loss J, the attacker raises J(mean l_i), J(log mean softmax l_i) or
    mean J(l_i). The answers are the mean logits, or the log of the mean probabilities where these are averaged.

    Args:
        members: the victims.
        over: "logits", "probabilities" or "losses".

    Papers:
        Liu et al. 2017, Delving into Transferable Adversarial Examples and Black-box Attacks, arXiv:1611.02770
        (probabilities); Dong et al. 2018, Boosting Adversarial Attacks with Momentum, arXiv:1710.06081 (all three).
    """

    def __init__(self, members: Sequence[Victim], over: str = "logits") -> None:
        if over not in ENSEMBLES:
            raise UnknownNameError.among("ensemble", over, ENSEMBLES)
        first = members[0]
        super().__init__(
            torch.nn.ModuleList([m.net for m in members if isinstance(m.net, torch.nn.Module)]), labels=first.labels
        )
        self.members, self.over = tuple(members), over
        self.bounds = first.bounds
        self.name = "+".join(m.name for m in members)

    @classmethod
    def of(cls, members: Sequence[BaseVictim], over: str = "logits") -> Victim:
        """One surrogate as it is, several as an ensemble.

        Raises:
            ThreatError: a surrogate without gradients.
        """
        usable = [m for m in members if isinstance(m, Victim)]
        if len(usable) < len(members):
            names = ", ".join(repr(m.name) for m in members if not isinstance(m, Victim))
            raise ThreatError(
                f"surrogates must be sparring.Victim with gradients; {names} offer none. "
                "sparring.attacks.train_substitute(victim, seeds) imitates such a victim by a network"
            )
        return usable[0] if len(usable) == 1 else cls(usable, over)

    def scores(self, x: Tensor, noise: KeyedRandom | None = None) -> Tensor:
        """The mean of the members' logits, or the log of the mean of their probabilities, (n, k)."""
        return self._mean(self._each(x, noise))

    def head(self, x: Tensor) -> Tensor:
        """The same: what a query of the ensemble answers."""
        return self.scores(x)

    def objective(
        self, x: Tensor, loss: Callable[[Tensor], Tensor], noise: KeyedRandom | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of the mean, or the mean of the losses, (n,), and the ensemble's scores (n, k)."""
        each = self._each(x, noise)
        scores = self._mean(each)
        if self.over != "losses":
            return loss(scores), scores
        return torch.stack([loss(logits) for logits in each]).mean(0), scores

    def arranged(self) -> Ensemble:
        """The same, of members over rearranged layers."""
        view = copy.copy(self)
        view.members = tuple(m.arranged() for m in self.members)
        return view

    def _each(self, x: Tensor, noise: KeyedRandom | None) -> list[Tensor]:
        return [m.scores(x.to(m.device), noise).to(x.device) for m in self.members]

    def _mean(self, each: list[Tensor]) -> Tensor:
        if self.over == "probabilities":
            return torch.stack([s.log_softmax(1) for s in each]).logsumexp(0) - math.log(len(each))
        return torch.stack(each).mean(0)
