"""How a run's gradients are taken: of which view of the victim, by which way back, in which precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sparring.core.convolutions import has_strided_convolutions, quick_input_gradients
from sparring.core.errors import CapabilityError
from sparring.core.network import Victim
from sparring.core.precision import scout, too_fine
from sparring.core.rng import KeyedRandom
from sparring.core.slopes import leaky_gradients
from sparring.core.space import Space


class Differentiator:
    """A victim's view, and the cheapest ways to its gradients; answers that count come from the view itself.

    Attributes:
        view: the view.
        quick: the same, which answers faster and differs by float rounding.
        draws: how many draws of its randomness a gradient averages over.
    """

    def __init__(self, view: Victim) -> None:
        self.view = view
        self.draws = int(getattr(view, "eot", 1))
        self._straight = view.straight()
        self._shortcut = view.quick and self._straight is None and has_strided_convolutions(view.net)
        self.quick = view.arranged()
        self._scout: Victim | None = None
        self._slope = 0.0
        self._retains = True  # whether one graph serves several ways back

    @property
    def sure(self) -> bool:
        """Whether `objective` computes the scores that count."""
        return self._scout is None

    def explore(self, x: Tensor, space: Space, precision: str, samples: int) -> None:
        """Let `objective` compute in bfloat16 where that pays for so many samples like x, (n, ...); see `core.precision`."""
        if precision == "auto" and too_fine(space, x):
            precision = "float32"
        by_hand = self._straight is not None
        self._scout = scout(self.view, x, precision, samples, quick=self.quick, by_hand=by_hand)

    def soften(self, slope: float) -> None:
        """Let the gradients of `objective` pass through ReLUs that are off, by this slope; see `core.slopes`."""
        self._slope = slope

    def objective(
        self, leaf: Tensor, loss: Callable[[Tensor], Tensor], noise: KeyedRandom | None
    ) -> tuple[Tensor, Tensor]:
        """What an attacker raises, (n,), and the scores (n, k), both differentiable in the leaf, (n, ...)."""
        by_hand = None if self._slope else self._straight  # which knows nothing of ReLUs that leak
        view = self._scout or by_hand or self.quick
        with self._graph(view is not by_hand), leaky_gradients(self._slope):
            return view.objective(leaf, loss, noise)

    def scores(self, leaf: Tensor, noise: KeyedRandom | None) -> Tensor:
        """The scores that count, (n, k), differentiable in the leaf, (n, ...)."""
        with self._graph(self._straight is None):
            return (self._straight or self.quick).scores(leaf, noise)

    def gradient(self, value: Tensor, leaf: Tensor, *, retain_graph: bool = False) -> Tensor:
        """The gradient of a scalar at the leaf alone.

        Raises:
            CapabilityError: the victim cuts the path between its input and its scores.
        """
        grad: Tensor | None = None
        if value.requires_grad:
            (grad,) = torch.autograd.grad(value, leaf, retain_graph=retain_graph, allow_unused=True)
        if grad is None:
            raise CapabilityError(
                f"no gradient reaches the input of {self.view.name!r}: something in it detaches, rounds "
                "into integers or leaves torch. Give the stage a surrogate (attack_view(bpda=True)), or attack by "
                "scores or labels"
            )
        return grad

    def gradients(self, values: Tensor, leaf: Tensor, again: Callable[[], Tensor]) -> Iterator[Tensor]:
        """The gradient of each column of values, (m, j), one after another.

        A network that torch.compile has compiled may free its graph on the first way back: `again` makes the values anew.
        """
        count = values.shape[1]
        for j in range(count):
            with torch.enable_grad():
                whole = (values if self._retains or not j else again())[:, j].sum()
            try:
                grad = self.gradient(whole, leaf, retain_graph=self._retains and j + 1 < count)
            except RuntimeError as cause:
                if not self._retains or "donated buffers" not in str(cause):
                    raise
                self._retains = False
                grad = self.gradient(whole, leaf)
            yield grad

    @contextlib.contextmanager
    def _graph(self, shorten: bool) -> Iterator[None]:
        with torch.enable_grad(), quick_input_gradients(shorten and self._shortcut):
            yield
