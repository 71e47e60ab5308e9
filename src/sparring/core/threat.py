"""The threat model: what the attacker wants, sees, knows, may change and may spend."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sparring.core.batch import Batch
from sparring.core.errors import InputError, ThreatError
from sparring.core.outputs import Prediction

if TYPE_CHECKING:
    from sparring.core.space import Space


class Access(enum.IntEnum):
    """What the attacker sees of the victim; each level includes the ones before it."""

    NOTHING = 0
    LABELS = 1
    SCORES = 2
    GRADIENTS = 3

    @classmethod
    def parse(cls, value: Access | str) -> Access:
        """The level named by a string in any case, or the level itself."""
        if isinstance(value, cls):
            return value
        try:
            return cls[str(value).upper()]
        except KeyError:
            names = ", ".join(a.name.lower() for a in cls)
            raise ThreatError(f"access is {value!r}; it must be one of: {names}") from None

    def __str__(self) -> str:
        return self.name.lower()


@runtime_checkable
class Goal(Protocol):
    """What counts as the attacker's success. `y` are the samples' true references."""

    @property
    def name(self) -> str:
        """What cards and messages call it."""
        ...

    def achieved(self, output: Any, y: Any, slack: float = 0.0) -> Tensor:
        """Bool (n,): which outputs reach the goal, by more than `slack` (relative) where the output can tell by how
        much.
        """
        ...

    def applicable(self, y: Any) -> Tensor:
        """Bool (n,): for which samples the goal makes sense at all."""
        ...

    def take(self, index: Tensor) -> Goal:
        """The goal for the samples at `index`."""
        ...


def rival_margin(scores: Tensor, labels: Tensor) -> Tensor:
    """How far the best other class stands above `labels`: max over j != label of s_j, minus s_label; (n,)."""
    own = scores.gather(1, labels[:, None])
    others = scores.scatter(1, labels[:, None], -torch.inf)
    return others.amax(1) - own.squeeze(1)


def _clears(margin: Tensor, scores: Tensor, slack: float) -> Tensor:
    return margin > slack * scores.detach().abs().amax(1)


@dataclass(frozen=True)
class Untargeted:
    """Any label but the true one. With a detector, the input must be accepted as well."""

    name = "untargeted"

    def achieved(self, output: Prediction, y: Tensor, slack: float = 0.0) -> Tensor:
        """Bool (n,): wrong, and accepted."""
        wrong = output.labels != y
        if slack and output.scores is not None:
            wrong = wrong & _clears(rival_margin(output.scores, y), output.scores, slack)
        return wrong if output.accepted is None else wrong & output.accepted

    def applicable(self, y: Tensor) -> Tensor:
        """Bool (n,): always."""
        return torch.ones_like(y, dtype=torch.bool)

    def take(self, index: Tensor) -> Untargeted:
        """Itself: the goal is the same for every sample."""
        return self


@dataclass(frozen=True, eq=False)
class Targeted:
    """One chosen label: an int for all samples, or one per sample, int64 (n,)."""

    target: int | Tensor
    name = "targeted"

    def __post_init__(self) -> None:
        if isinstance(self.target, (list, tuple)) or hasattr(self.target, "__array__"):  # as labels may come
            object.__setattr__(self, "target", torch.as_tensor(self.target))

    def of(self, y: Tensor) -> Tensor:
        """The targets as int64 (n,), on y's device."""
        if isinstance(self.target, Tensor):
            return self.target.to(device=y.device, dtype=torch.int64)
        return torch.full_like(y, self.target)

    def achieved(self, output: Prediction, y: Tensor, slack: float = 0.0) -> Tensor:
        """Bool (n,): reads as the target, and accepted."""
        target = self.of(y)
        hit = output.labels == target
        if slack and output.scores is not None:
            hit = hit & _clears(-rival_margin(output.scores, target), output.scores, slack)
        return hit if output.accepted is None else hit & output.accepted

    def applicable(self, y: Tensor) -> Tensor:
        """Bool (n,): False where the target is the true label."""
        return self.of(y) != y

    def take(self, index: Tensor) -> Targeted:
        """The targets of the samples at `index`."""
        return Targeted(self.target[index.to(self.target.device)]) if isinstance(self.target, Tensor) else self

    def check(self, n: int, classes: int | None) -> None:
        """Refuse targets that do not fit n samples or the number of classes.

        Raises:
            InputError: a wrong shape, type or range.
        """
        values = torch.as_tensor(self.target)
        if isinstance(self.target, Tensor) and tuple(values.shape) != (n,):
            raise InputError(
                f"{tuple(values.shape)} targets came for {n} samples; give one int, or a tensor of shape ({n},)"
            )
        if values.is_floating_point() or values.dtype == torch.bool:
            raise InputError(f"targets have dtype {values.dtype}; class numbers (int64) are needed")
        if values.numel() and (int(values.min()) < 0 or (classes is not None and int(values.max()) >= classes)):
            top = "the number of classes" if classes is None else str(classes - 1)
            raise InputError(
                f"targets span {int(values.min())}..{int(values.max())}; this victim's classes are 0..{top}"
            )


@dataclass(frozen=True)
class Predicate:
    """Success by a rule of one's own: `rule(output, y) -> bool (n,)`, for victims that do not classify."""

    rule: Callable[[Any, Any], Tensor]
    name: str = "predicate"

    def achieved(self, output: Any, y: Any, slack: float = 0.0) -> Tensor:
        """Bool (n,): what the rule says."""
        return self.rule(output, y)

    def applicable(self, y: Any) -> Tensor:
        """Bool (n,): always."""
        return torch.ones(len(y), dtype=torch.bool)

    def take(self, index: Tensor) -> Predicate:
        """Itself: the rule is the same for every sample."""
        return self


@dataclass(frozen=True)
class Knowledge:
    """What the attacker has beside the victim.

    Attributes:
        surrogates: victims that may be attacked with full access, in the victim's place where the access is NOTHING (transfer).
        ensemble: what several surrogates are averaged in: "logits", "probabilities" or "losses".
        data: inputs and labels that the attacker owns.
        starts: one starting point per sample, shaped like the inputs.
    """

    surrogates: tuple[Any, ...] = ()
    data: tuple[Batch, Tensor] | None = None
    starts: Batch | None = None
    ensemble: str = "logits"

    def __post_init__(self) -> None:
        if not isinstance(self.surrogates, tuple):
            several = tuple(self.surrogates) if isinstance(self.surrogates, list) else (self.surrogates,)
            object.__setattr__(self, "surrogates", several)
        for model in self.surrogates:
            if not hasattr(model, "at_rest"):
                raise ThreatError(
                    f"a surrogate is a {type(model).__name__}; victims are needed, as sparring.Victim(net) makes them"
                )


@dataclass(frozen=True)
class ThreatModel:
    """Goal, access, knowledge, space and budget in one value.

    Args:
        space: what may change (see `sparring.Linf` and its kin).
        goal: `Untargeted()`, `Targeted(label)` or any `Goal`.
        access: an `Access` or its name; None grants what the attack's card asks for.
        queries: at most so many queries per sample through the oracle; None for no limit.
        steps: at most so many backward passes per sample over all restarts, up to those that one step takes together; None for
            the attack's own number.
        knowledge: surrogates, data, starting points.
    """

    space: Space
    goal: Goal = field(default_factory=Untargeted)
    access: Access | str | None = None
    queries: int | None = None
    steps: int | None = None
    knowledge: Knowledge = field(default_factory=Knowledge)

    def __post_init__(self) -> None:
        if self.access is not None:
            object.__setattr__(self, "access", Access.parse(self.access))
        for name in ("queries", "steps"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ThreatError(f"{name} is {value!r}; it must be a whole number >= 0, or None for no limit")
        if not isinstance(self.goal, Goal):
            raise ThreatError(
                f"goal is {self.goal!r}; use Untargeted(), Targeted(label) or an object with Goal's methods"
            )

    @classmethod
    def resolve(cls, threat: ThreatModel | Space, goal: Goal | int | Tensor | None) -> ThreatModel:
        """A full threat model from a full one, or from a bare space and an optional goal.

        Raises:
            ThreatError: a goal beside a full threat model, or something that is neither.
        """
        if isinstance(threat, ThreatModel):
            if goal is not None:
                raise ThreatError(
                    "goal= came beside a full ThreatModel, which has its own goal; put it inside the ThreatModel"
                )
            return threat
        if isinstance(threat, (int, float)):
            raise ThreatError(
                f"the threat is the number {threat}; wrap it in a space, for example sparring.Linf({threat})"
            )
        if not (hasattr(threat, "contains") and hasattr(threat, "cost")):
            raise ThreatError(
                f"the threat is {threat!r}; a ThreatModel or a space such as sparring.Linf(8 / 255) is needed"
            )
        if goal is None:
            return cls(threat)
        return cls(threat, goal=Targeted(goal) if isinstance(goal, (int, Tensor)) else goal)

    def with_space(self, space: Space) -> ThreatModel:
        """The same threat over another space."""
        return replace(self, space=space)
