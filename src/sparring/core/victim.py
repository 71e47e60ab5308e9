"""What every victim offers, whatever its inputs are; and the victim that can only be asked."""

from __future__ import annotations

import contextlib
import hashlib
import numbers
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparring.core.batch import Batch
from sparring.core.door import admit_tensor, as_pair, coerce_scores, finite_scores
from sparring.core.errors import CapabilityError, InputError, UnknownNameError, VictimError
from sparring.core.nearby import Nearby, Window
from sparring.core.outputs import Prediction
from sparring.core.rng import KeyedRandom
from sparring.core.space import Bounds
from sparring.core.threat import Access


@dataclass(frozen=True)
class Traits:
    """What a victim does beyond a plain forward; attacks and audits choose by these.

    Attributes:
        stochastic: two forwards of one input differ.
        differentiable: autograd reaches the input with a useful gradient.
        optimises: the forward itself runs an optimisation.
        rejects: a detector may refuse an input.
        costly: each query costs time or money, so repeated ones are answered from a cache.
    """

    stochastic: bool = False
    differentiable: bool = True
    optimises: bool = False
    rejects: bool = False
    costly: bool = False


class BaseVictim:
    """What every victim offers, whatever its inputs are: labels by number or name, metered queries, a fingerprint.

    Subclasses set `domain` and `access`, and implement `query`; `admit` is the door at which inputs are checked.
    """

    domain: str = "any"
    access: Access = Access.LABELS
    bounds: Bounds | None = None

    def __init__(
        self, *, labels: Sequence[str] | None = None, name: str | None = None, traits: Traits | None = None
    ) -> None:
        self.labels: tuple[str, ...] | None = None if labels is None else tuple(labels)
        self.classes: int | None = None if self.labels is None else len(self.labels)
        self.name = name or type(self).__name__
        self.traits = traits or Traits()

    def __repr__(self) -> str:
        classes = "" if self.classes is None else f"{self.classes} classes, "
        traits = [name for name, true in vars(self.traits).items() if true and name != "differentiable"]
        return f"<{type(self).__name__} {self.name!r}: {', '.join([f'{classes}attackers see {self.access}', *traits])}>"

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return torch.device("cpu")

    def query(self, x: Batch, noise: KeyedRandom | None = None) -> Prediction:
        """The true answer to each input; `noise` is the keyed source for stochastic stages.

        Raises:
            VictimError: the model failed or answered something that is no class score.
        """
        raise NotImplementedError

    def arranged(self) -> BaseVictim:
        """A victim that answers as this one up to float rounding, and faster; itself where there is none."""
        return self

    def nearby(self, x: Batch) -> Nearby | None:
        """A memory that answers questions about points which differ from known ones in a window; None where it cannot pay."""
        return None

    def query_nearby(self, memory: Nearby, x: Batch, window: Window) -> Prediction:
        """The answer of `query`, from a memory of `nearby` that stands at points which differ from x in the window alone."""
        raise NotImplementedError

    def admit(self, x: Batch, y: Any) -> tuple[Batch, Tensor]:
        """Check inputs and labels and bring them to the victim's device: (x, y int64 (n,)).

        Raises:
            InputError: what came, what was needed, and what to do.
        """
        return x, self._admit_labels(y, len(x))

    def fingerprint(self) -> str:
        """A hash that changes when the victim does; the name alone where nothing else is known."""
        return hashlib.sha256(f"{type(self).__name__}:{self.name}".encode()).hexdigest()

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """The state in which the victim is attacked, undone on leaving."""
        yield

    def require(self, access: Access, what: str) -> None:
        """Refuse `what` when it needs more than this victim offers.

        Raises:
            CapabilityError: the access needed and the access offered.
        """
        if access > self.access:
            raise CapabilityError(
                f"{what} needs {access} of the victim; {self.name!r} offers {self.access}. "
                f"`sparring attacks --access {self.access}` lists the attacks that work here"
            )

    def capability(self, name: str) -> Any:
        """What this victim offers beyond its access, by name: an object whose shape the attacks that ask for it state.

        Raises:
            CapabilityError: it offers nothing of that name; where the victim knows why, the message says so.
        """
        raise CapabilityError(f"{self.name!r}, a {type(self).__name__}, has no {name.replace('_', ' ')} to offer")

    def label_index(self, label: int | str) -> int:
        """The class number of a label given by number or by name (any case; a unique part of a synonym list counts).

        Raises:
            UnknownNameError: no such name; the message lists close matches.
            InputError: a number out of range, or a name where the victim has no names.
        """
        if isinstance(label, str) and label.strip().lstrip("-").isdigit() and label not in (self.labels or ()):
            label = int(label)
        if isinstance(label, numbers.Integral):
            label = int(label)
            if label < 0 or (self.classes is not None and label >= self.classes):
                top = "" if self.classes is None else f"; classes are 0..{self.classes - 1}"
                raise InputError(f"label {label} is out of range{top}")
            return label
        if self.labels is None:
            raise InputError(f"label {label!r} is a name, but {self.name!r} has no label names; give a class number")
        return _find_label(str(label), self.labels)

    def label_name(self, index: int) -> str:
        """The name of a class, or its number as text."""
        if self.labels is not None and 0 <= index < len(self.labels):
            return self.labels[index]
        return str(index)

    def _admit_labels(self, labels: Any, n: int) -> Tensor:
        if n == 0 and len(labels) == 0:
            return torch.zeros(0, dtype=torch.int64, device=self.device)
        if isinstance(labels, Sequence) and not isinstance(labels, str) and any(isinstance(v, str) for v in labels):
            labels = [self.label_index(v) for v in labels]
        y: Tensor = torch.as_tensor(labels, device=self.device)
        if y.shape != (n,):
            hint = "; one-hot labels need y.argmax(1)" if y.ndim == 2 and y.shape[0] == n else ""
            raise InputError(
                f"labels have shape {tuple(y.shape)} for {n} inputs; one label per input is needed, ({n},){hint}"
            )
        if y.is_floating_point() or y.is_complex() or (y.dtype == torch.bool and self.classes not in (None, 2)):
            raise InputError(f"labels have dtype {y.dtype}; class numbers (int64) are needed: y.long()")
        y = y.to(torch.int64)
        if n and (int(y.min()) < 0 or (self.classes is not None and int(y.max()) >= self.classes)):
            top = "" if self.classes is None else f"0..{self.classes - 1}"
            raise InputError(
                f"labels span {int(y.min())}..{int(y.max())}; {self.name!r} has classes {top or '>= 0'}. "
                "Labels that count from 1 need y - 1"
            )
        return y


def _find_label(label: str, labels: tuple[str, ...]) -> int:
    wanted = label.casefold().strip().replace("_", " ")
    folded = [name.casefold().replace("_", " ") for name in labels]
    exact = [i for i, name in enumerate(folded) if name == wanted]
    parts = [i for i, name in enumerate(folded) if wanted in (part.strip() for part in name.split(","))]
    for found in (exact, parts):
        if len(found) == 1:
            return found[0]
        if found:  # ImageNet has two cranes and two maillots
            raise UnknownNameError(
                f"{label!r} names {len(found)} classes: {', '.join(map(str, found))}; give the number"
            )
    raise UnknownNameError.among("label", label, labels, "A class number works as well.")


class BlackBox(BaseVictim):
    """A victim that can only be asked: any function from a batch to labels or to class scores.

    Args:
        function: takes a batch (as the caller gives it: a tensor, or a list of texts) and returns labels (n,) of an
            integer type, or scores (n, k).
        scores: whether the function returns scores.
        bounds: (lo, hi) of a tensor input, if it has any.
        labels: class names.
        classes: the number of classes, where no names are given.
        domain: what an input is: "image", "text", "table", ...
        name: what messages and reports call it.
        traits: see `Traits`.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        scores: bool = False,
        bounds: tuple[float | Tensor, float | Tensor] | None = None,
        labels: Sequence[str] | None = None,
        classes: int | None = None,
        domain: str = "any",
        name: str | None = None,
        traits: Traits | None = None,
    ) -> None:
        super().__init__(labels=labels, name=name or getattr(function, "__name__", None), traits=traits)
        self.function = function
        self.access = Access.SCORES if scores else Access.LABELS
        self.bounds = None if bounds is None else Bounds.of(bounds)
        self.classes = self.classes if classes is None else classes
        self.domain = domain

    def query(self, x: Batch, noise: KeyedRandom | None = None) -> Prediction:
        """Ask the function once for the whole batch.

        Raises:
            VictimError: an answer of the wrong shape, type or length, or NaN.
        """
        n = len(x)
        try:
            told = self.function(x)
        except Exception as cause:
            raise VictimError(
                f"{self.name!r} raised {type(cause).__name__} when asked about {n} inputs: {cause}"
            ) from cause
        try:
            answer = torch.as_tensor(told)
        except (TypeError, ValueError, RuntimeError) as cause:
            raise VictimError(
                f"{self.name!r} answered a {type(told).__name__} that holds no numbers; whole-number labels ({n},) are "
                f"needed, or scores ({n}, k) with scores=True"
            ) from cause
        if bool(torch.isnan(answer).any()):
            raise VictimError(f"{self.name!r} answered NaN to some of {n} inputs; labels or finite scores are needed")
        if self.access is Access.SCORES:
            return Prediction.of(as_pair(finite_scores(coerce_scores(answer, n, self.name).float())))
        if answer.shape != (n,) or answer.is_floating_point():
            raise VictimError(
                f"{self.name!r} answered {answer.dtype} of shape {tuple(answer.shape)} to {n} inputs; "
                f"whole-number labels of shape ({n},) are needed, or scores=True for class scores"
            )
        return Prediction(answer.to(torch.int64, copy=True))  # the function may answer in the same memory each time

    def admit(self, x: Batch, y: Any) -> tuple[Batch, Tensor]:
        """Check labels, and bounds where the inputs are tensors and the victim has bounds."""
        if isinstance(x, Tensor) and self.bounds is not None:
            x = admit_tensor(x, self.bounds, self.name)
        return x, self._admit_labels(y, len(x))


def query_in_batches(victim: BaseVictim, x: Batch, size: int, noise: KeyedRandom | None = None) -> Prediction:
    """The true answers to a batch of any length, `size` inputs at a time."""
    n = len(x)
    if n <= size:
        return victim.query(x, noise)
    parts = []
    for start in range(0, n, size):
        index = torch.arange(start, min(n, start + size))
        rows = x[start : start + size]
        parts.append(victim.query(rows, None if noise is None else noise.take(index.to(noise.ids.device))))
    return Prediction.concat(parts)
