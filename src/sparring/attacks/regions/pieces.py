"""A piecewise-linear network around one point: which units are on there, and the network as affine forms of the input.

Where each ReLU stays on its side, the network is affine. A neighbourhood of that region is had by letting a few units
choose their side: the output of each becomes a variable of its own, and all that follows stays affine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sparring.core.door import as_pair
from sparring.core.errors import CapabilityError
from sparring.core.network import Normalise

# Modules that are affine in eval mode, by exact type: a subclass may do anything in its forward.
AFFINE: tuple[type[nn.Module], ...] = (
    Normalise,
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
)
# A form of every unit in every element of the input: beyond so many numbers the network is not small.
MOST_ENTRIES = 10**8


@dataclass(frozen=True, eq=False)
class Forms:
    """Affine forms c + J v of the variables v: `constant` (r,) and `slopes` (r, number of variables)."""

    constant: Tensor
    slopes: Tensor

    def rows(self, index: Tensor) -> Forms:
        """The forms at `index`."""
        return Forms(self.constant[index], self.slopes[index])

    def range(self, least: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest value of each form over the box least <= v <= most; (r,) each."""
        up, down = self.slopes.clamp(min=0), self.slopes.clamp(max=0)
        return self.constant + up @ least + down @ most, self.constant + up @ most + down @ least


@dataclass(frozen=True, eq=False)
class Choice:
    """Units of one layer that may choose their side.

    Attributes:
        inputs: their pre-activations, of the variables before them.
        least, most: bounds of those, (r,): least < 0 < most.
    """

    inputs: Forms
    least: Tensor
    most: Tensor


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """The network on one linear region and those around it, in variables v.

    v holds the shifts of the elements that may move, then the output of each unit that may choose its side, layer by
    layer. Forms of an early layer have only the first of the variables.

    Attributes:
        least, most: bounds of v.
        kept: forms that must stay >= 0: units that keep their side.
        choices: the units that choose.
        scores: the class scores.
        here: their values at the point itself, (k,).
    """

    least: Tensor
    most: Tensor
    kept: list[Forms]
    choices: list[Choice]
    scores: Forms
    here: Tensor


@dataclass(frozen=True, eq=False)
class Chain:
    """A piecewise-linear network: modules in order, from raw inputs to class scores."""

    layers: tuple[nn.Module, ...]

    @classmethod
    def of(cls, layers: Sequence[nn.Module]) -> Chain:
        """The chain of `layers`.

        Raises:
            CapabilityError: a layer that is neither affine nor a ReLU, or affine only batch by batch.
        """
        for depth, layer in enumerate(layers):
            if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and layer.running_mean is None:
                raise CapabilityError(f"layer {depth}, {layer}, has no running statistics: its scores mix the samples")
            if type(layer) not in (nn.ReLU, *AFFINE):
                raise CapabilityError(
                    f"layer {depth} is a {type(layer).__name__}, which this attack cannot read; it reads ReLU and "
                    + ", ".join(known.__name__ for known in AFFINE)
                )
        return cls(tuple(layers))

    def scores(self, x: Tensor) -> Tensor:
        """The class scores (n, k), differentiable in x."""
        for layer in self.layers:
            x = layer(x)
        return as_pair(x)

    def units(self, x: Tensor) -> Tensor:
        """The pre-activations of all ReLUs at x, layer after layer: (n, number of units)."""
        found = [x.new_zeros(len(x), 0)]
        with torch.no_grad():
            for layer in self.layers:
                if isinstance(layer, nn.ReLU):
                    found.append(x.flatten(1))
                x = layer(x)
        return torch.cat(found, 1)

    @torch.no_grad()
    def around(self, x: Tensor, least: Tensor, most: Tensor, movable: Tensor, free: Tensor) -> Neighbourhood:
        """The region of x, and those that differ from it in the units where `free`.

        Args:
            x: one point, without a batch dimension.
            least, most: how far each movable element may move, (d,): least <= 0 <= most.
            movable: positions of these elements in the flattened point, int64 (d,).
            free: bool, one per unit in the order of `units`. Those that cannot change side keep their own.

        Raises:
            CapabilityError: the network is too large for forms of every unit.
        """
        basis = torch.zeros(len(movable), x.numel(), dtype=x.dtype, device=x.device)
        basis[torch.arange(len(movable)), movable] = 1.0
        h = torch.cat([x[None], basis.reshape(-1, *x.shape)])  # the constant part, then one slope per variable
        hood = Neighbourhood(least, most, [], [], Forms(least, least), self.scores(x[None])[0])
        seen = 0
        for layer in self.layers:
            if isinstance(layer, nn.ReLU):
                count = h[0].numel()
                h, hood = _through_relu(h, hood, free[seen : seen + count])
                seen += count
            else:
                out = layer(h)
                h = torch.cat([out[:1], out[1:] - layer(torch.zeros_like(h[:1]))])
                if h.numel() > MOST_ENTRIES:
                    raise CapabilityError(
                        f"layer {layer} has {h[0].numel()} outputs of {len(h) - 1} variables; programmes over linear "
                        f"regions are for small networks, up to {MOST_ENTRIES:.0e} slopes in a layer"
                    )
        return replace(hood, scores=_forms(as_pair(h)))


def _forms(h: Tensor) -> Forms:
    flat = h.flatten(1)
    return Forms(flat[0], flat[1:].T)


def _through_relu(h: Tensor, hood: Neighbourhood, free: Tensor) -> tuple[Tensor, Neighbourhood]:
    """Units that stay off vanish, units that stay on pass, and those free to choose become variables."""
    forms = _forms(h)
    least, most = forms.range(hood.least, hood.most)
    on = forms.constant > 0
    undecided = (least < 0) & (most > 0)
    choosing = (undecided & free).nonzero().squeeze(1)
    keeping = (undecided & ~free).nonzero().squeeze(1)
    side = torch.where(on[keeping], 1.0, -1.0).to(h.dtype)
    kept = Forms(side * forms.constant[keeping], side[:, None] * forms.slopes[keeping])
    passing = (on & ~(undecided & free)).reshape(h.shape[1:])
    fresh = torch.zeros(len(choosing), passing.numel(), dtype=h.dtype, device=h.device)
    fresh[torch.arange(len(choosing)), choosing] = 1.0
    h = torch.cat([h * passing, fresh.reshape(-1, *h.shape[1:])])
    return h, replace(
        hood,
        least=torch.cat([hood.least, torch.zeros_like(most[choosing])]),
        most=torch.cat([hood.most, most[choosing]]),
        kept=[*hood.kept, kept],
        choices=[*hood.choices, Choice(forms.rows(choosing), least[choosing], most[choosing])],
    )
