"""Changes of anything at all: what a morpher makes of an input, as long as a tester says it still does its work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sparring.core.batch import Batch
from sparring.core.errors import InputError
from sparring.core.space import Bounds

Morpher = Callable[[Any, np.random.Generator], Any]
Tester = Callable[[Any], bool]


@dataclass(frozen=True, eq=False)
class Morphs:
    """Inputs of any kind that keep a property: the tester says which change is legal, and the morpher proposes changes.

    Args:
        morpher: `morpher(x, rng)` returns another input, a random small change of x, and leaves x itself as it is.
        tester: `tester(x)` says whether x still has the property that the attacker needs (the message its link, the
            file its behaviour). It must answer the same each time.
        measure: `measure(x, x')`, what a change costs; None counts edits (see `edits`).
        limit: the largest legal cost, a number or one per input, (n,); None for any cost.

    Raises:
        InputError: a morpher, tester or measure that cannot be called, or a limit below 0.

    Example:
        >>> space = Morphs(lambda text, rng: text + " hello", lambda text: "call 555" in text)
        >>> space.cost(["call 555", "call 555"], ["call 555 hello", "hello"]).tolist()
        [1.0, inf]
    """

    morpher: Morpher
    tester: Tester
    measure: Callable[[Any, Any], float] | None = None
    limit: float | Tensor | None = None

    name: ClassVar[str] = "morphs"

    def __post_init__(self) -> None:
        for name in ("morpher", "tester", "measure"):
            value = getattr(self, name)
            if not (callable(value) or (value is None and name == "measure")):
                raise InputError(f"the {name} is {value!r}; a function is needed")
        if self.limit is not None and not bool((torch.as_tensor(self.limit) >= 0).all()):
            raise InputError(f"the limit is {self.limit!r}; a cost >= 0 is needed, or None for any cost")

    def cost(self, x: Batch, x_adv: Batch) -> Tensor:
        """What each change costs, float (n,); infinite where the tester rejects it, and 0 for no change."""
        return torch.tensor([self._cost(one, other) for one, other in zip(x, x_adv, strict=True)], dtype=torch.float32)

    def _cost(self, x: Any, x_adv: Any) -> float:
        if _same(x, x_adv):
            return 0.0
        if not self.tester(x_adv):
            return torch.inf
        return float(edits(x, x_adv) if self.measure is None else self.measure(x, x_adv))

    def contains(self, x: Batch, x_adv: Batch) -> Tensor:
        """Bool (n,): the tester accepts the change, and it costs no more than the limit."""
        cost = self.cost(x, x_adv)
        return torch.isfinite(cost) if self.limit is None else torch.isfinite(cost) & (cost <= self.limit)

    def take(self, index: Tensor) -> Morphs:
        """The space with the limits of the inputs at `index`."""
        return replace(self, limit=self.limit[index.cpu()]) if isinstance(self.limit, Tensor) else self

    def without_limit(self) -> Morphs:
        """The same changes, whatever they cost."""
        return replace(self, limit=None)

    def bound(self, x: Batch, bounds: Bounds | None) -> Morphs:
        """The space with one limit per input.

        Raises:
            InputError: the tester rejects an input as it came, or there are not as many limits as inputs.
        """
        lost = [i for i, one in enumerate(x) if not self.tester(one)]
        if lost:
            raise InputError(
                f"the tester rejects {len(lost)} of {len(x)} inputs as they came, the first at {lost[0]}: what has lost "
                "the property already cannot keep it. Leave these out, or mend the tester"
            )
        if self.limit is None:
            return self
        limit = torch.as_tensor(self.limit, dtype=torch.float32).cpu()
        limit = limit.expand(len(x)) if limit.ndim == 0 else limit
        if limit.shape != (len(x),):
            raise InputError(f"the limits have shape {tuple(limit.shape)} for {len(x)} inputs; one for each is needed")
        return replace(self, limit=limit.contiguous())

    def __repr__(self) -> str:
        shown = [_called(self.morpher), _called(self.tester)]
        shown += [] if self.measure is None else [f"measure={_called(self.measure)}"]
        if self.limit is not None:
            one = torch.as_tensor(self.limit).unique()
            shown.append(
                f"limit={float(one):g}" if len(one) == 1 else f"limit=<{len(torch.as_tensor(self.limit))} limits>"
            )
        return f"Morphs({', '.join(shown)})"


def edits(x: Any, x_adv: Any) -> int:
    """How many parts were put in, taken out or replaced: words of texts, elements of tensors and arrays, items of lists.

    The parts that both share come from Python's `difflib`, which finds a short way to edit one into the other and not
    always the shortest.

    Raises:
        InputError: inputs without parts to compare.
    """
    if isinstance(x, (Tensor, np.ndarray)) and x.shape == x_adv.shape:
        return int((x != x_adv).sum())
    one, other = (part.split() if isinstance(part, str) else part for part in (x, x_adv))
    if not (isinstance(one, Sequence) and isinstance(other, Sequence)):
        raise InputError(
            f"the edits between a {type(x).__name__} and a {type(x_adv).__name__} cannot be counted; give "
            "Morphs(..., measure=...) to say what a change costs"
        )
    codes = SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    return sum(max(b - a, d - c) for kind, a, b, c, d in codes if kind != "equal")


def _same(x: Any, x_adv: Any) -> bool:
    if isinstance(x, (Tensor, np.ndarray)):
        return x.shape == x_adv.shape and bool((x == x_adv).all())
    return bool(x == x_adv)


def _called(function: Any) -> str:
    return getattr(function, "__name__", None) or repr(function)
