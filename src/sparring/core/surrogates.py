"""Surrogates as one differentiable victim: the mean of their scores, for attacks that never see the true victim."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparring.core.errors import ThreatError
from sparring.core.network import Victim
from sparring.core.rng import KeyedRandom
from sparring.core.victim import BaseVictim


class Ensemble(Victim):
    """Several victims of one input domain, answering with the mean of their logits (Liu et al. 2017,
    arXiv:1611.02770).
    """

    def __init__(self, members: Sequence[Victim]) -> None:
        first = members[0]
        super().__init__(
            torch.nn.ModuleList([m.net for m in members if isinstance(m.net, torch.nn.Module)]), labels=first.labels
        )
        self.members = tuple(members)
        self.bounds = first.bounds
        self.name = "+".join(m.name for m in members)

    @classmethod
    def of(cls, members: Sequence[BaseVictim]) -> Victim:
        """One surrogate as it is, several as an ensemble.

        Raises:
            ThreatError: a surrogate without gradients.
        """
        usable = [m for m in members if isinstance(m, Victim)]
        if len(usable) < len(members):
            names = ", ".join(repr(m.name) for m in members if not isinstance(m, Victim))
            raise ThreatError(f"surrogates must be sparring.Victim with gradients; {names} offer none")
        return usable[0] if len(usable) == 1 else cls(usable)

    def scores(self, x: Tensor, noise: KeyedRandom | None = None) -> Tensor:
        """The mean of the members' scores, (n, k)."""
        return torch.stack([m.scores(x.to(m.device), noise).to(x.device) for m in self.members]).mean(0)
