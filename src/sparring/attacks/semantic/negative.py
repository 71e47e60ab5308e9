"""The negative image: a person reads it as easily, a network trained on positives often does not."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.errors import InputError
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access


@dataclass
class Picture:
    """The negative, (m, ...)."""

    x: Tensor


@attack(
    Card(
        name="negative",
        title="Negative image",
        paper="Hosseini, Xiao, Jaiswal and Poovendran 2017, On the Limitation of Convolutional Neural Networks in "
        "Recognizing Negative Images, arXiv:1703.06857",
        access=Access.LABELS,
        spaces=("linf", "l2", "l1", "l0"),
        minimal=True,
        cost="1 forward",
        domains=("image",),
        caveats="One fixed change, far outside any small ball: it says what the victim was never shown, not how near "
        "its boundary lies. An eps is a condition on the negative here, nothing is searched.",
        floor={},
        aliases=("semantic",),
    )
)
@dataclass(frozen=True, kw_only=True)
class Negative(Attack):
    """x -> lo + hi - x (centred), or x -> lo + max(x) - x (max-value).

    Args:
        form: "centred" mirrors about the middle of the victim's bounds; "max" subtracts from each input's own maximum.
    """

    form: str = "centred"

    def search(self, run: Run) -> None:
        """Ask about the one negative."""
        if run.space.bounds is None:
            raise InputError(f"a negative needs the victim's bounds; {run.victim.name!r} declares none")
        lo, hi = run.space.bounds.lo, run.space.bounds.hi
        if self.form == "centred":
            x = lo + hi - run.x
        elif self.form == "max":
            x = lo + per_sample(run.x.flatten(1).amax(1), run.x) - run.x
        else:
            raise InputError(f"form is {self.form!r}; it must be 'centred' or 'max'")
        s = run.begin(Picture(run.space.bounds.clamp(x)))
        run.ask(s.x)
