"""The first look at a network: traits that would spoil results, measured on a few inputs."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from torch import Tensor, nn

from sparring.core.errors import VictimError, VictimWarning

if TYPE_CHECKING:
    from sparring.core.network import Victim

# How far an answer may move, over the largest score, by what else is in the batch: half precision rounds by a hundredth.
BESIDE = 0.02
# The logarithm of a probability of 1, as rounding in half precision leaves it.
ABOVE_ONE = 0.01


def inspect(victim: Victim, x: Tensor, training: list[nn.Module]) -> None:
    """Measure a victim's traits on a few of the inputs x: its classes, which are noted, its mode, whether it answers probabilities,
    at random, or by what else is in the batch.

    Args:
        victim: seen for the first time.
        x: inputs that were admitted, (n, ...).
        training: the submodules that are in train mode.

    Raises:
        VictimError: it answers another number of scores than it has names, or more than 1 where it is said to answer
            probabilities.
    """
    if any(_minds_mode(m) for m in training):
        warnings.warn(
            f"{victim.name!r} is in train mode; it is attacked in eval mode and put back afterwards. Call net.eval() "
            "to say that you mean it",
            VictimWarning,
            stacklevel=4,
        )
    few = x[: min(4, len(x))]
    with victim.at_rest():
        first = victim.query(few).scores
        again = victim.query(few).scores
        part = victim.query(few[: max(1, len(few) // 2)]).scores
    if first is None or again is None or part is None:
        return
    if victim.classes is not None and victim.classes != first.shape[1]:
        raise VictimError(
            f"{victim.name!r} has {victim.classes} label names but answers {first.shape[1]} scores per input; give one "
            "name for each score, in their order"
        )
    victim.classes = first.shape[1]
    if victim.probabilities and float(first.amax()) > ABOVE_ONE:  # the logarithm of what it answered
        raise VictimError(
            f"{victim.name!r} answers {float(first.amax().exp()):.3g}, which is no probability, and the logarithm of its answers "
            "would hide most of its gradient. It gives logits: leave out probabilities=True"
        )
    sums = first.sum(1)
    if not victim.probabilities and bool((first >= 0).all() & ((sums - 1).abs() < 1e-5).all()):
        warnings.warn(
            f"{victim.name!r} answers what looks like probabilities: their gradients vanish. Remove the softmax, or "
            "say sparring.Victim(net, probabilities=True)",
            VictimWarning,
            stacklevel=4,
        )
    scale = float(first.abs().amax().clamp(min=1.0))
    if not victim.traits.stochastic and float((first - again).abs().amax()) > 1e-4 * scale:
        warnings.warn(
            f"{victim.name!r} answers one input differently each time. Say traits=Traits(stochastic=True), "
            "and attack the expectation: victim.attack_view(eot=30)",
            VictimWarning,
            stacklevel=4,
        )
    elif not victim.traits.stochastic and float((first[: len(part)] - part).abs().amax()) > BESIDE * scale:
        warnings.warn(
            f"{victim.name!r} answers an input differently beside other inputs: it takes statistics over the batch (as a "
            "BatchNorm without running ones does), so that no outcome is an input's own. Give it fixed statistics, or "
            "attack and use it with batch_size=1",
            VictimWarning,
            stacklevel=4,
        )


def _minds_mode(module: nn.Module) -> bool:
    """Whether a module may behave differently in train mode: torch's own that do, and any whose code we do not know."""
    dependent = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.RReLU, nn.RNNBase)
    return isinstance(module, dependent) or not type(module).__module__.startswith("torch.nn.")
