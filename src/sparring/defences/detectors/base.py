"""What every detector shares: a score, a threshold set by the rate of false alarms on clean data, and the ROC."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sparring.core.errors import InputError, VictimError
from sparring.core.network import Victim
from sparring.core.registry import Card

_BATCH = 256


class Detector(nn.Module):
    """Accepts an input where its score is at most a threshold; subclasses are dataclasses of their hyper-parameters.

    `detector.fit(victim, x, y)` learns and sets the threshold; `victim.defended(detector=detector)` then rejects by it.
    A success of an attack is from then on wrong *and* accepted.

    Attributes:
        threshold: the highest score that is accepted; NaN before `fit`.
        victim: whose answers or features it reads, as it was at `fit`: without stages, since the detector stands
            behind them.
    """

    card: ClassVar[Card]
    threshold: Tensor

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """A module that is ready to take submodules: the dataclass's own __init__ assigns the fields."""
        made = super().__new__(cls)
        nn.Module.__init__(made)
        return made

    def __post_init__(self) -> None:
        self.register_buffer("threshold", torch.tensor(math.nan))
        self.victim: Victim | None = None
        self.check()
        self.eval()

    def check(self) -> None:
        """Refuse hyper-parameters that cannot be right."""

    def learn(self, x: Tensor, y: Tensor, adversarial: Tensor | None) -> None:
        """Learn what the score needs; nothing where it needs nothing."""

    def score(self, x: Tensor) -> Tensor:
        """How suspicious each input is, (n,); differentiable, if need be through surrogates (see `through`)."""
        raise NotImplementedError

    def softened(self, x: Tensor) -> Tensor:
        """What a joint attack lowers in the score's place, (n,): one that still slopes where the score is flat."""
        return self.score(x)

    def forward(self, x: Tensor) -> Tensor:
        """Bool (n,): which inputs are accepted.

        Raises:
            VictimError: the detector has no threshold yet.
        """
        if bool(torch.isnan(self.threshold)):
            raise VictimError(f"{type(self).__name__} has no threshold yet; call detector.fit(victim, x, y) first")
        return self.score(x) <= self.threshold

    def fit(
        self, victim: Victim, x: Tensor, y: Tensor, *, adversarial: Tensor | None = None, fpr: float = 0.05
    ) -> Self:
        """Learn on the first four fifths of clean data, and set the threshold on the rest.

        Args:
            victim: the model that is protected.
            x: clean inputs in raw units, (n, ...), at least 10.
            y: their labels, int64 (n,).
            adversarial: adversarial inputs, for detectors that learn from them.
            fpr: the share of clean inputs that may be rejected, 0 to 1.

        Raises:
            InputError: too few inputs, or a rate outside 0 to 1.
        """
        if len(x) < 10:
            raise InputError(f"{len(x)} clean inputs came; a detector needs at least 10, and hundreds for a small fpr")
        self.victim = victim
        learnt = len(x) * 4 // 5
        with victim.at_rest():
            self.learn(x[:learnt], y[:learnt], adversarial)
        self.calibrate(x[learnt:], fpr)
        return self

    def calibrate(self, x: Tensor, fpr: float) -> float:
        """Set the threshold so that at most a share `fpr` of the clean inputs x is rejected; returns it.

        Raises:
            InputError: a rate outside 0 to 1.
        """
        if not 0 <= fpr <= 1:
            raise InputError(f"fpr is {fpr!r}; a share from 0 to 1 is needed")
        scores = self.scores(x).sort().values
        allowed = math.floor(fpr * len(scores))
        cut = float(scores[-1 - allowed]) if allowed < len(scores) else -math.inf
        self.threshold.fill_(cut)
        return float(self.threshold)

    def scores(self, x: Tensor) -> Tensor:
        """The scores of many inputs, (n,), in eval mode, a few hundred at a time."""
        victim = self._reader()
        with victim.at_rest(), torch.no_grad():
            return torch.cat([self.score(part.to(victim.device)) for part in x.split(_BATCH)])

    def _reader(self) -> Victim:
        """The victim without stages.

        Raises:
            VictimError: there is none yet.
        """
        if self.victim is None:
            raise VictimError(f"{type(self).__name__} has no victim yet; call detector.fit(victim, x, y) first")
        return self.victim


def through(stage: nn.Module, x: Tensor) -> Tensor:
    """A stage's true output, with the gradient of its surrogate where it has one."""
    surrogate = getattr(stage, "surrogate", None)
    if surrogate is None or not x.requires_grad:
        return stage(x)  # type: ignore[no-any-return]
    with torch.no_grad():
        true = stage(x)
    smooth = surrogate(x)
    return true + (smooth - smooth.detach())  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ROC:
    """A detector's choices: for each threshold the share of clean and of adversarial inputs that it rejects.

    Attributes:
        fpr, tpr: rejected shares of clean and of adversarial inputs, both rising from 0 to 1.
        thresholds: the highest accepted score at each point.
    """

    fpr: Tensor
    tpr: Tensor
    thresholds: Tensor

    @classmethod
    def of(cls, clean: Tensor, adversarial: Tensor) -> ROC:
        """The curve of two sets of scores, (n,) and (m,).

        Raises:
            InputError: no scores in one of them.
        """
        if not len(clean) or not len(adversarial):
            raise InputError(f"a ROC needs clean and adversarial scores; {len(clean)} and {len(adversarial)} came")
        cuts = torch.cat([clean, adversarial]).unique().flip(0)
        cuts = torch.cat([cuts, cuts.new_tensor([-torch.inf])])
        fpr, tpr = ((scores[None, :] > cuts[:, None]).double().mean(1) for scores in (clean, adversarial))
        return cls(fpr, tpr, cuts)

    @property
    def auc(self) -> float:
        """The area under the curve: how often an adversarial input scores higher than a clean one, ties counted half."""
        return float(torch.trapezoid(self.tpr, self.fpr))
