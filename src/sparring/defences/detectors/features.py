"""A network's inner features by layer name, differentiable, for detectors that look inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparring.core.errors import InputError, VictimError
from sparring.core.network import Victim

PENULTIMATE = "penultimate"


def features(victim: Victim, x: Tensor, layers: tuple[str, ...]) -> list[Tensor]:
    """What the named layers give for inputs that have passed the stages, each flattened to (n, d).

    Args:
        victim: the model.
        x: inputs, (n, ...).
        layers: names of modules in `victim.net`, whose outputs are taken; "penultimate" is the input of the last linear
            layer. Maps with more than one position per channel are averaged over positions.

    Raises:
        InputError: no such layer.
        VictimError: a layer that did not run, or gave no tensor.
    """
    net = victim.net
    if not isinstance(net, nn.Module):
        raise VictimError(f"{victim.name!r} is a {type(net).__name__} and no module; it has no layers to look at")
    caught: dict[str, Any] = {}
    hooks = []
    try:
        for name in layers:
            hooks.append(_hook(net, name, caught))
        victim.head(x)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for name in layers:
        value = caught.get(name)
        if not isinstance(value, Tensor):
            raise VictimError(
                f"the layer {name!r} of {victim.name!r} gave a {type(value).__name__}; a tensor is needed"
            )
        found.append(value.flatten(2).mean(2) if value.ndim > 2 else value)
    return found


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (n, m) of the rows of a and b, by differences: a product of matrices would change the last
    digits of each with the size of the batch.
    """
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _hook(net: nn.Module, name: str, caught: dict[str, Any]) -> Any:
    """Catch a layer's output, or the last linear layer's input."""
    if name == PENULTIMATE:
        linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
        if not linear:
            raise InputError("the network has no linear layer; name the layers whose features are to be read")

        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            caught[name] = args[0]

        return linear[-1].register_forward_pre_hook(before)
    known = dict(net.named_modules())
    if name not in known or not name:
        raise InputError(f"no layer is called {name!r}; the network has: {', '.join(k for k in known if k)[:300]}")

    def after(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        caught[name] = out

    return known[name].register_forward_hook(after)
