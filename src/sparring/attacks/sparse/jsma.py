"""The Jacobian saliency map attack: change the pair of features that raises the target most and the other classes least."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import clamp, starts
from sparring.attacks.sparse.pairs import best_pair, top_pair
from sparring.core.attack import Attack
from sparring.core.errors import InputError
from sparring.core.losses import Loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access

DIRECTIONS = ("up", "down", "both")
OUTPUTS = ("probabilities", "logits")


def _own(scores: Tensor, label: Tensor) -> Tensor:
    return scores.gather(1, label[:, None]).squeeze(1)


def _others(scores: Tensor, label: Tensor) -> Tensor:
    return scores.sum(1) - _own(scores, label)


def _odds(scores: Tensor, label: Tensor) -> Tensor:
    return _own(scores, label) - scores.scatter(1, label[:, None], -torch.inf).logsumexp(1)


# What must rise: the target's score, and the fall of all others; untargeted, the fall of the true class and the others' rise.
OWN = Loss("own_score", lambda s, y: -_own(s, y), lambda s, y, t: _own(s, t))
OTHERS = Loss("other_scores", _others, lambda s, y, t: -_others(s, t))
# The logarithm of p / (1 - p): its gradient points where that of the probability p does, and does not vanish as p nears 0 or 1.
ODDS = Loss("log_odds", lambda s, y: -_odds(s, y), lambda s, y, t: _odds(s, t))


@dataclass
class Picture:
    """The current point, and the slope of the class of interest there."""

    x: Tensor
    slope: Tensor


@attack(
    Card(
        name="jsma",
        title="Jacobian saliency map",
        paper="Papernot et al. 2016, The Limitations of Deep Learning in Adversarial Settings, arXiv:1511.07528; untargeted by "
        "Wiyatno and Xu 2018, Maximal Jacobian-based Saliency Map Attack, arXiv:1808.07945",
        access=Access.GRADIENTS,
        spaces=("l0",),
        minimal=True,
        cost="1 forward + backward for every pair of features, 2 where outputs='logits'; memory grows with the features, not "
        "with their pairs",
        caveats="Greedy: it never takes a change back, and needs several times the features that sigma-zero does. Made for "
        "pictures whose features sit at a bound, such as white strokes on black.",
        floor={"l0": 4.0},
        aliases=("saliency-map",),
    )
)
@dataclass(frozen=True, kw_only=True)
class JSMA(Attack):
    """Jacobian saliency map: take the pair (p, q) with the largest (u_p + u_q)(v_p + v_q), both sums positive, and move it.

    Towards a target t, u = ds_t/dx and v = -d(sum of s_j, j != t)/dx; untargeted, u = -ds_y/dx and v = d(sum of s_j, j != y)/dx,
    each times the direction in which the feature would move. Where s are probabilities, which sum to 1, v is u, and one gradient
    serves both. A feature leaves the search when it meets a bound. The pair is the exact best one (see `best_pair`). A pixel of
    `L0(pixels=True)` is one feature: its channels move together.

    Args:
        theta: how far a feature moves in one step, in units of the bounds' width; the paper's 1 goes to the bound.
        gamma: the largest share of the features to change, where the space has no eps; .145 in the paper.
        direction: "up" (the paper's), "down", or "both": every feature both ways, whichever serves.
        outputs: what s are: "probabilities", or "logits", which costs twice and on real networks nearly always changes more.

    Example:
        >>> import torch, sparring as sp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> x = torch.rand(2, 1, 2, 2)
        >>> result = sp.attacks.JSMA()(sp.Victim(net), x, None, sp.L0())
        >>> bool((result.distance <= 4).all())
        True
    """

    theta: float = 1.0
    gamma: float = 1.0
    direction: str = "both"
    outputs: str = "probabilities"

    def search(self, run: Run) -> None:
        """Move pair after pair."""
        if self.direction not in DIRECTIONS:
            raise InputError(f"direction is {self.direction!r}; it must be one of {', '.join(DIRECTIONS)}")
        if not 0 < self.theta <= 1:
            raise InputError(f"theta is {self.theta}; a share of the bounds' width is needed, 0 < theta <= 1")
        if run.space.bounds is None:
            raise InputError("JSMA moves features to the victim's bounds, and this victim declares none")
        if self.outputs not in OUTPUTS:
            raise InputError(f"outputs is {self.outputs!r}; it must be one of {', '.join(OUTPUTS)}")
        x = starts(run)
        features = run.x[0].numel() // (run.x.shape[1] if run.space.pixels else 1)
        s = run.begin(Picture(x, torch.zeros_like(x)))
        for _ in run.steps(int(features / self.theta) + 1):
            s.slope = run.gradient(s.x, OWN if self.outputs == "logits" else ODDS).grad
            run.give_up(run.found())  # from its first success on, more pairs could only cost more
            run.shrink()
            if not len(run.rows):
                return
            limit = self.gamma * features if run.space.eps is None else run.space.eps
            moved, useful = self._move(run, s, run.gradient(s.x, OTHERS).grad if self.outputs == "logits" else None)
            useful = useful & (run.space.distance(moved - run.x) <= limit)
            s.x = moved
            run.give_up(~useful)
        run.shrink()
        if len(run.rows):
            run.evaluate(s.x)

    def _move(self, run: Run, s: Picture, other: Tensor | None) -> tuple[Tensor, Tensor]:
        """The points with their best pair moved, and which have one: bool (m,); `other` is the second slope, if it is another."""
        ways = self._ways(run, s.x, s.slope if other is None else s.slope + other)
        pixels, m = run.space.pixels, len(s.x)

        def along(slope: Tensor) -> Tensor:
            parts = [(w * slope).sum(1, keepdim=True) if pixels else w * slope for w in ways]
            return torch.cat([p.flatten(1) for p in parts], 1)

        barred = torch.cat([(w == 0).all(1).flatten(1) if pixels else (w == 0).flatten(1) for w in ways], 1)
        u = along(s.slope)
        if other is None:
            pair, value = top_pair(u.masked_fill(barred, -torch.inf))
        else:
            pair, value = best_pair(u, along(other).masked_fill(barred, -torch.inf))
        taken = torch.zeros_like(u).scatter_(1, pair, 1.0)
        step = torch.zeros_like(s.x)
        for w, part in zip(ways, taken.chunk(len(ways), 1), strict=True):
            step += w * part.reshape(m, *([1, *s.x.shape[2:]] if pixels else s.x.shape[1:]))
        step *= (value > 0).to(step).reshape(-1, *[1] * (step.ndim - 1))
        return clamp(run, s.x + self.theta * run.width * step), value > 0

    def _ways(self, run: Run, x: Tensor, slope: Tensor) -> list[Tensor]:
        """The directions in which features may still move: tensors of -1, 0 and 1, shaped like x; no feature turns back."""
        up = ((x < run.space.bounds.hi) & (x >= run.x)).to(x)
        down = -((x > run.space.bounds.lo) & (x <= run.x)).to(x)
        if self.direction != "both":
            return [up if self.direction == "up" else down]
        # the channels of one pixel each go their own best way
        return [torch.where(slope > 0, up, down)] if run.space.pixels else [up, down]
