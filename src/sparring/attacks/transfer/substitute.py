"""A substitute: a network that imitates a victim from its labels alone, to be attacked in the victim's place."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring.attacks.transfer.networks import small_classifier
from sparring.core.errors import InputError, VictimError
from sparring.core.network import Victim
from sparring.core.oracle import Oracle
from sparring.core.rng import KeyedRandom
from sparring.core.space import Bounds
from sparring.core.threat import Access
from sparring.core.victim import BaseVictim, query_in_batches

BATCH = 64
LEARNING_RATE = 1e-3


class Substitute(Victim):
    """A network trained on a victim's labels; a victim itself, so that it can stand in `Knowledge(surrogates=(...))`.

    Attributes:
        queries: how many inputs the imitated victim labelled, in all.
        rounds: how many of these each round asked, the seeds first.
    """

    queries: int = 0
    rounds: tuple[int, ...] = ()

    def agreement(self, victim: BaseVictim, x: Tensor) -> float:
        """The share of x, (n, ...), that this substitute and `victim` label alike; the victim is asked n times."""
        with self.at_rest(), victim.at_rest():
            mine, theirs = (query_in_batches(v, seen_by(v, x), 512).labels.cpu() for v in (self, victim))
        return float((mine == theirs).double().mean())


def seen_by(victim: BaseVictim, x: Tensor) -> Tensor:
    """The inputs as this victim takes them: pictures become rows (n, d) for a victim of tables."""
    return x.flatten(1) if victim.domain == "table" else x


def train_substitute(
    victim: BaseVictim,
    seeds: Tensor,
    *,
    rounds: int = 6,
    queries: int | None = None,
    network: nn.Module | None = None,
    epochs: int = 10,
    step: float = 0.1,
    reservoir: int = 400,
    seed: int = 0,
) -> Substitute:
    """Train a network to label as the victim does, from labels alone, on inputs that it invents from a few seeds.

    Each round labels the new inputs through a metered oracle, trains on all inputs labelled so far, and moves some of
    them along the sign of the substitute's Jacobian for the label o that the victim gave,

        x' = x + (-1)^floor(r / 3) * a * sign(d s_o / d x),

    clamped to the bounds (Jacobian-based augmentation with a periodical step). Every input is moved while their number
    is at most `reservoir`; after that, a reservoir sample of that many.

    Args:
        victim: who is imitated; only its labels are seen.
        seeds: the first inputs, (n, ...), in the victim's raw units; some of every class, and no labels are needed.
            Pictures are flattened for a victim of tables, and its substitute takes pictures.
        rounds: rounds of augmentation after the first training; 0 trains on the seeds alone.
        queries: at most so many inputs are labelled in all; None sets no limit.
        network: the substitute before training, from raw inputs to logits (n, k); it stays as it is. None takes a small
            convolutional network for pictures, else one of two hidden layers.
        epochs: passes over all labelled inputs in each round.
        step: a, as a share of the width of each feature's bounds (of the seeds' range where the victim has none).
        reservoir: at most so many new inputs in each round.
        seed: of weights, order and reservoir.

    Returns:
        The substitute; its `queries` is exact.

    Raises:
        InputError: seeds or numbers that cannot be right, fewer queries than seeds, or a victim of unknown classes.
        VictimError: a network that does not answer one score for each of the victim's classes.

    Papers:
        Papernot et al. 2017, Practical Black-Box Attacks against Machine Learning, arXiv:1602.02697; periodical step and
        reservoir: Papernot, McDaniel and Goodfellow 2016, Transferability in Machine Learning, arXiv:1605.07277.
    """
    _check(seeds, rounds=rounds, epochs=epochs, reservoir=reservoir, queries=queries)
    victim.admit(seen_by(victim, seeds), torch.zeros(len(seeds), dtype=torch.int64))
    x = seeds.detach().to(victim.device)
    bounds = _bounds(victim, x)
    width = ((bounds.hi - bounds.lo) * step).to(x)
    oracle = Oracle(victim, Access.LABELS, 1, budget=queries)  # one attacker, one account
    rng = KeyedRandom(seed, torch.zeros(1, dtype=torch.int64))
    asked: list[int] = []
    classes = victim.classes
    if classes is None:
        raise InputError(f"{victim.name!r} does not say how many classes it has; give it labels or classes=")
    devices = [victim.device] if victim.device.type == "cuda" else []
    with victim.at_rest(), torch.random.fork_rng(devices=devices):
        y = _label(oracle, x, rng, asked)
        net = small_classifier(tuple(x.shape[1:]), classes, bounds, seed) if network is None else network
        net = copy.deepcopy(net).to(victim.device)
        _train(net, x, y, classes, epochs, rng.fork(("train", 0)))
        for r in range(rounds):
            chosen = _reservoir(len(x), reservoir, rng, r).to(x.device)
            sign = -1 if (r // 3) % 2 else 1
            new = bounds.like(x).clamp(x[chosen] + sign * width * _slope(net, x[chosen], y[chosen]).sign())
            labels = _label(oracle, new, rng, asked)
            x, y = torch.cat([x, new[: len(labels)]]), torch.cat([y, labels])
            _train(net, x, y, classes, epochs, rng.fork(("train", r + 1)))
            if len(labels) < len(new):
                break
    made = Substitute(
        net.eval(), bounds=(bounds.lo, bounds.hi), labels=victim.labels, name=f"substitute of {victim.name}"
    )
    made.classes = classes
    made.queries, made.rounds = int(oracle.spent.sum()), tuple(asked)
    return made


def _check(seeds: Any, *, rounds: int, epochs: int, reservoir: int, queries: int | None) -> None:
    if not isinstance(seeds, Tensor) or not len(seeds) or not seeds.is_floating_point():
        found = f"{seeds.dtype} of shape {tuple(seeds.shape)}" if isinstance(seeds, Tensor) else type(seeds).__name__
        raise InputError(f"the seeds are {found}; a float tensor of some inputs, (n, ...), is needed")
    for name, value, least in (("rounds", rounds, 0), ("epochs", epochs, 1), ("reservoir", reservoir, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} is {value!r}; a whole number >= {least} is needed")
    if queries is not None and queries < len(seeds):
        raise InputError(f"{queries} queries do not label {len(seeds)} seeds; give fewer seeds or more queries")


def _bounds(victim: BaseVictim, x: Tensor) -> Bounds:
    """The victim's bounds, or the range of each feature among the seeds."""
    if victim.bounds is not None:
        lo, hi = (
            b.reshape(x.shape[1:]) if b.ndim and victim.domain == "table" else b
            for b in (victim.bounds.lo, victim.bounds.hi)
        )
        return Bounds(lo, hi)
    lo, hi = x.amin(0), x.amax(0)
    return Bounds.of((lo, torch.where(hi > lo, hi, lo + 1)))


def _label(oracle: Oracle, x: Tensor, rng: KeyedRandom, asked: list[int]) -> Tensor:
    """The victim's labels of as many of x as the budget still grants, in order; int64 (m,)."""
    noise = None
    if oracle.victim.traits.stochastic:
        noise = KeyedRandom(rng.seed, torch.arange(len(x))).fork(("label", len(asked)))
    answer, granted = oracle(
        seen_by(oracle.victim, x), torch.zeros(len(x), dtype=torch.int64, device=oracle.spent.device), noise
    )
    asked.append(int(granted.sum()))
    return answer.labels[granted].to(x.device)


def _reservoir(n: int, size: int, rng: KeyedRandom, r: int) -> Tensor:
    """A uniform sample of `size` of n positions, in order; all of them where n is at most `size`."""
    if n <= size:
        return torch.arange(n)
    return rng.permutation(n, ("reservoir", r))[0, :size].sort().values


def _slope(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the score of each sample's label to its input, (n, ...)."""
    parts = []
    net.eval()
    for rows, labels in zip(x.split(512), y.split(512), strict=True):
        leaf = rows.detach().requires_grad_(True)
        with torch.enable_grad():
            own = net(leaf).gather(1, labels[:, None]).sum()
        parts.append(torch.autograd.grad(own, leaf)[0])
    return torch.cat(parts)


def _train(net: nn.Module, x: Tensor, y: Tensor, classes: int, epochs: int, rng: KeyedRandom) -> None:
    """Adam on cross-entropy over all inputs; the order is keyed, and what the network draws itself is seeded."""
    net.train()
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    torch.random.set_rng_state(torch.Generator().manual_seed(rng.number("dropout")).get_state())  # forked by the caller
    for epoch in range(epochs):
        for rows in rng.permutation(len(x), ("order", epoch))[0].to(x.device).split(BATCH):
            with torch.enable_grad():
                scores = net(x[rows])
                if scores.shape != (len(rows), classes):
                    raise VictimError(
                        f"the substitute network answers {tuple(scores.shape)} to {len(rows)} inputs; logits of shape "
                        f"({len(rows)}, {classes}) are needed, one for each of the victim's classes"
                    )
                loss = F.cross_entropy(scores, y[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    optimiser.zero_grad(set_to_none=True)
