"""How a training loss gets its adversarial inputs: any attack, or several over their own spaces, keyed by the step."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sparring.core.attack import Attack
from sparring.core.errors import InputError, ThreatError, UnknownNameError
from sparring.core.losses import Loss, get_loss
from sparring.core.network import Victim
from sparring.core.registry import make_attack
from sparring.core.space import Space
from sparring.core.threat import ThreatModel

PICKS = ("turns", "worst")


@dataclass(frozen=True)
class Mixture:
    """Several attacks to train against (Tramer and Boneh 2019, arXiv:1904.13000).

    Args:
        duels: pairs (attack or its name, threat model or space).
        pick: "turns" takes one of them each step, in turn; "worst" crafts with all and keeps for each sample the one
            with the highest cross-entropy, at the price of all of them.
    """

    duels: Sequence[tuple[Attack | str, ThreatModel | Space]]
    pick: Literal["turns", "worst"] = "turns"

    def __post_init__(self) -> None:
        if not self.duels:
            raise InputError("a mixture of no attacks; give pairs such as (sparring.PGD(), sparring.Linf(0.3))")
        if self.pick not in PICKS:
            raise UnknownNameError.among("way to pick from a mixture", self.pick, PICKS)


class Crafter:
    """Crafts on the network in training: `crafter(x, y)` are adversarial inputs, (n, ...), for the current step.

    Attributes:
        victim: whose network is trained.
        threat: the first threat model.
        step: the number of the optimiser step; all randomness is keyed by it.
        carried: a perturbation that a method keeps from batch to batch, stored in checkpoints, or None.
        pooled: from means over the inputs of this process to those over the whole batch, for methods that look at gradients
            of the weights.
    """

    def __init__(self, victim: Victim, mixture: Mixture | None, seed: int) -> None:
        self.victim = victim
        duels = () if mixture is None else mixture.duels
        self.duels = [(make_attack(attack), ThreatModel.resolve(threat, None)) for attack, threat in duels]
        self.pick, self.seed, self.step = "turns" if mixture is None else mixture.pick, seed, 0
        self.carried: Tensor | None = None
        self.pooled: Callable[[Sequence[Tensor]], Sequence[Tensor]] = lambda parts: parts
        # gradients through what has none are no help; answers are the victim's own either way
        self._view = victim.attack_view() if victim.stages else victim

    @property
    def threat(self) -> ThreatModel:
        """The first of the threat models.

        Raises:
            ThreatError: there is none.
        """
        if not self.duels:
            raise ThreatError("this training crafts nothing: it has no threat model and no attack")
        return self.duels[0][1]

    def __call__(self, x: Tensor, y: Tensor, loss: Loss | None = None) -> Tensor:
        """Adversarial inputs, (n, ...), detached.

        Args:
            x: inputs in raw units, (n, ...).
            y: labels, int64 (n,).
            loss: what to climb in place of the attack's own loss.

        Raises:
            InputError: a loss for an attack that climbs none.
            ThreatError: there is nothing to craft with.
        """
        goal = self.threat.goal
        if self.pick == "turns" or len(self.duels) == 1:
            return self._craft(*self.duels[self.step % len(self.duels)], x, y, loss)
        rivals = [self._craft(attack, threat, x, y, loss) for attack, threat in self.duels]
        climbed = get_loss("ce") if loss is None else loss
        worth = torch.stack([climbed(self.scores(rival), y, goal) for rival in rivals])
        return torch.stack(rivals)[worth.argmax(0), torch.arange(len(x), device=x.device)]

    def scores(self, x: Tensor) -> Tensor:
        """The scores (n, k) that an attacker sees: eval mode, no gradient."""
        with exactly(x.device), self.victim.at_rest(), torch.no_grad():
            return self.victim.scores(x)

    def _craft(self, attack: Attack, threat: ThreatModel, x: Tensor, y: Tensor, loss: Loss | None) -> Tensor:
        if loss is not None:
            attack = climbing(attack, loss)
        with exactly(x.device):
            return attack.craft(self._view, x, y, threat, seed=self.seed * 1_000_003 + self.step)


@contextlib.contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """The network's own precision, inside a loss that is computed under autocast."""
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield
    # a weight that was cast without gradients must not serve the loss
    torch.clear_autocast_cache()


def climbing(attack: Attack, loss: Loss) -> Attack:
    """The attack with another loss.

    Raises:
        InputError: an attack that climbs none.
    """
    if "loss" not in {f.name for f in dataclasses.fields(attack)}:  # type: ignore[arg-type]
        raise InputError(
            f"this method crafts by climbing {loss.name!r}; {attack.card.name} climbs no loss of its caller's. Use PGD, "
            "APGD or another gradient attack"
        )
    changed: Any = dataclasses.replace(attack, loss=loss)  # type: ignore[type-var]
    return changed  # type: ignore[no-any-return]
