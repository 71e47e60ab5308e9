"""The voting folded Gaussian attack: random changes of the most telling feature, one more feature a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import clamp, starts
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.errors import InputError
from sparring.core.losses import Loss
from sparring.core.nearby import Window
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access


def _probability(scores: Tensor, label: Tensor) -> Tensor:
    return scores.log_softmax(1).gather(1, label[:, None]).squeeze(1)


# Log-probabilities order candidates and features as probabilities do, and keep a gradient where those are 1 to the last bit.
PROBABILITY = Loss("log_probability", lambda s, y: -_probability(s, y), lambda s, y, t: _probability(s, t))


@dataclass
class Picture:
    """The current point and, within a step, the slope there, the number of the best candidate (-1: none) and its loss."""

    x: Tensor
    slope: Tensor
    choice: Tensor
    value: Tensor


@attack(
    Card(
        name="vfga",
        title="Voting folded Gaussian attack",
        paper="Hajri et al. 2020, Stochastic Sparse Adversarial Attacks, arXiv:2011.12423",
        access=Access.GRADIENTS,
        spaces=("l0",),
        minimal=True,
        cost="(1 + 2 draws) forwards and one backward for every feature that it changes",
        caveats="Greedy: one more feature a step, never taken back. It has found what it will find at its first success.",
        floor={"l0": 2.0},
    )
)
@dataclass(frozen=True, kw_only=True)
class VFGA(Attack):
    """Voting folded Gaussian: take the features i+ and i- whose way up and down promises most, draw changes, keep the best.

    With g the slope of the attacker's log-probability, i+ has the largest (hi - x_i) g_i and i- the largest -(x_i - lo) g_i among
    the features not changed yet. Candidates move x_i+ by |N(0, (hi - x_i+)^2)| or x_i- by -|N(0, (x_i- - lo)^2)|, cut at the
    bounds; the one that the victim favours most is the next point. A pixel of `L0(pixels=True)` is changed in all its
    channels, each its own best way for i+ as for i-.

    Args:
        draws: candidates per direction and step.
        features: at most so many features are changed; None ends when none is left, or past eps.

    Example:
        >>> import torch, sparring as sp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> x = torch.rand(2, 1, 2, 2)
        >>> result = sp.attacks.VFGA()(sp.Victim(net), x, None, sp.L0())
        >>> bool((result.distance <= 4).all())
        True
    """

    draws: int = 10
    features: int | None = None

    def search(self, run: Run) -> None:
        """Change feature after feature."""
        bounds = run.space.bounds
        if bounds is None:
            raise InputError("VFGA draws changes up to the victim's bounds, and this victim declares none")
        x = starts(run)
        loss = torch.full_like(x.flatten(1)[:, 0], -torch.inf)
        s = run.begin(Picture(x, torch.zeros_like(x), torch.full_like(run.rows, -1), loss))
        total = x[0].numel() // (x.shape[1] if run.space.pixels else 1)
        for t in run.steps(total if self.features is None else min(total, self.features)):
            s.slope = run.gradient(s.x, PROBABILITY).grad
            run.give_up(run.found() | self._spent(run, s.x))
            run.shrink()
            if not len(run.rows):
                return
            rooms = (bounds.hi - s.x, bounds.lo - s.x)
            moves, places = zip(*(self._move(run, s.x, room, s.slope) for room in rooms), strict=True)
            windows = [_pixel(run, place) for place in places]
            sizes = run.rng.normal((self.draws, len(moves)), ("sizes", run.restart, t)).to(s.x).abs()
            s.value, s.choice = torch.full_like(s.value, -torch.inf), torch.full_like(s.choice, -1)
            run.stand(s.x, (1, 1))
            for k in range(self.draws):
                for way, (move, window) in enumerate(zip(moves, windows, strict=True)):
                    point = clamp(run, per_sample(sizes[:, k, way], move).mul(move).add_(s.x))
                    value = PROBABILITY(run.evaluate(point, window=window), run.y, run.goal)
                    run.settle(torch.zeros_like(s.choice, dtype=torch.bool))
                    s.choice.masked_fill_(value > s.value, k * len(moves) + way)
                    s.value = torch.fmax(s.value, value)
            run.forget()
            size = sizes.flatten(1).gather(1, s.choice.clamp(min=0)[:, None]).squeeze(1)
            for way, move in enumerate(moves):
                taken = (s.choice >= 0) & (s.choice % len(moves) == way)
                s.x = clamp(run, per_sample(torch.where(taken, size, 0.0), move).mul(move).add_(s.x))
        run.shrink()
        if len(run.rows):
            run.evaluate(s.x)

    @staticmethod
    def _spent(run: Run, x: Tensor) -> Tensor:
        """Bool (m,): which points have no feature left to change, by their eps or at all."""
        changed: Tensor = run.space.distance(x - run.x)
        every = x[0].numel() // (x.shape[1] if run.space.pixels else 1)
        spent = changed >= every
        return spent if run.space.eps is None else spent | (changed + 1 > run.space.eps)

    @staticmethod
    def _move(run: Run, x: Tensor, room: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """The whole way that the most promising untouched feature can go in one direction, zero elsewhere, and which it is.

        (m, ...), and its number in a flattened input, or in a channel of one where pixels count, int64 (m,).
        """
        promise = room * slope
        if run.space.pixels:
            promise = promise.clamp(min=0.0)
        gain = promise.sum(1, keepdim=True) if run.space.pixels else promise
        touched = (x != run.x).any(1, keepdim=True) if run.space.pixels else x != run.x
        gain = gain.masked_fill(touched, -torch.inf).flatten(1)
        most = gain.argmax(1)
        place = torch.zeros_like(gain).scatter_(1, most[:, None], 1.0).reshape(touched.shape)
        return torch.where((place > 0) & (promise > 0) if run.space.pixels else place > 0, room, 0.0), most


def _pixel(run: Run, place: Tensor) -> Window | None:
    """The pixel of a picture that an element, or a pixel, of that number is, int64 (m,)."""
    return Window(place % run.x[0, 0].numel(), (1, 1)) if run.x.ndim == 4 else None
