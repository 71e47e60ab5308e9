"""The boundary attack: a random walk on the adversarial side, along the sphere and then towards the original."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.labels.frequencies import Frequencies
from sparring.attacks.labels.parts import crosses, first_points, to_boundary
from sparring.attacks.query.noise import Noise
from sparring.attacks.query.parts import clamp_
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.errors import InputError
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access

# Every so many proposals the sideways step is asked about on its own: what it alone does decides its size.
APART = 5


@dataclass
class Walker:
    """The current adversarial point, two relative step sizes, running rates of success of each kind, and directions."""

    x: Tensor
    sideways: Tensor
    towards: Tensor
    kept: Tensor
    gained: Tensor
    noise: Noise


@attack(
    Card(
        name="boundary",
        title="Boundary attack: random walk along the decision boundary",
        paper="Brendel, Rauber and Bethge 2018, Decision-Based Adversarial Attacks, arXiv:1712.04248",
        access=Access.LABELS,
        spaces=("l2",),
        minimal=True,
        cost="1.2 queries a step",
        caveats="SurFree comes as near with fewer queries; HopSkipJump and Sign-OPT come nearer from a few thousand on. "
        "Targeted, it needs a start of the target's class. Its first steps are longer than the paper's, and adapt; its "
        "directions are smoother (Brunner et al. 2019, Guessing Smart, arXiv:1812.09803), smooth=0 gives the paper's.",
        floor={"l2": 0.45},
    )
)
@dataclass(frozen=True, kw_only=True)
class Boundary(Attack):
    """The boundary attack; each sample adapts its own two step sizes.

    What fools a classifier of pictures is smoother than noise: most of a direction's energy goes into its lowest frequencies,
    and some is left for the rest, which a network without a defence minds the most.

    Args:
        steps: proposals.
        sideways: the first orthogonal step, relative to the distance.
        towards: the first step towards the original, relative to the distance.
        adaptation: the factor by which step sizes change.
        smooth: the share of a direction's energy in the lowest frequencies; rows have none, and take white noise.
        frequencies: the share of each side's frequencies that are the lowest.
        tries: random points asked for a first adversarial one.
    """

    steps: int = 5000
    sideways: float = 0.3
    towards: float = 0.1
    adaptation: float = 1.02
    smooth: float = 0.7
    frequencies: float = 0.25
    tries: int = 100

    def search(self, run: Run) -> None:
        """Find a start, walk."""
        if not 0 <= self.smooth <= 1:
            raise InputError(f"smooth is {self.smooth}, a share of the energy; it must be in [0, 1]")
        waves = Frequencies.of(run.x, self.frequencies)
        start, found = first_points(run, self.tries)
        run.give_up(~found)
        start = to_boundary(run, start, start.new_full((len(start),), 1e-3), found)
        level = start.new_ones(len(start))
        first = Walker(start, self.sideways * level, self.towards * level, 0.5 * level, 0.25 * level, Noise.of(run))
        s = run.begin(first)
        for t in run.steps(self.steps):
            side = self._sideways(run, s, self._direction(s, waves))
            if t % APART == 0:
                stays, granted = crosses(run, side)
                s.kept = torch.where(granted, 0.8 * s.kept + 0.2 * stays.to(s.kept.dtype), s.kept)
                s.sideways = self._adapted(s.sideways, s.kept, 0.5, self.adaptation**APART)
            near = torch.lerp(side, run.x, per_sample(s.towards, side))
            gains, granted = crosses(run, near)
            rows = gains.nonzero().squeeze(1)
            s.x.index_copy_(0, rows, near[rows])
            s.gained = torch.where(granted, 0.97 * s.gained + 0.03 * gains.to(s.gained.dtype), s.gained)
            s.towards = self._adapted(s.towards, s.gained, 0.25, self.adaptation)

    def _direction(self, s: Walker, waves: Frequencies) -> Tensor:
        """Random directions with their share of low frequencies, of any length, (m, d)."""
        share = self.smooth if waves.down is not None else 0.0
        if not share:
            return s.noise.normal(s.x).flatten(1)
        low = waves.vectors(s.noise.normal(s.x.new_empty(len(s.x), waves.size))).flatten(1)
        if share == 1:
            return low
        weight = math.sqrt((1 - share) / share * waves.size / low.shape[1])  # energies add up in numbers of coordinates
        return low.add_(s.noise.normal(s.x).flatten(1), alpha=weight)

    @staticmethod
    def _sideways(run: Run, s: Walker, u: Tensor) -> Tensor:
        """The step along u, (m, d), orthogonal to the way home and back on the sphere around the original."""
        away = (s.x - run.x).flatten(1)
        # the part of u across `away`, of length sideways * distance, needs two lengths and one product alone
        distance = torch.linalg.vector_norm(away, dim=1).clamp(min=1e-12)
        along = (u * away).sum(1) / distance
        across = (torch.linalg.vector_norm(u, dim=1).square() - along.square()).clamp(min=1e-24).sqrt()
        turn = s.sideways * distance / across
        back = (1 + s.sideways.square()).rsqrt()
        side = torch.addcmul(run.x.flatten(1), away, (back * (1 - turn * along / distance))[:, None])
        return clamp_(run, side.addcmul_(u, (back * turn)[:, None]).reshape(s.x.shape))

    @staticmethod
    def _adapted(size: Tensor, rate: Tensor, aim: float, factor: float) -> Tensor:
        """Longer steps where they succeed oftener than the aim, shorter where more rarely."""
        size = torch.where(rate > aim * 1.2, size * factor, torch.where(rate < aim * 0.8, size / factor, size))
        return size.clamp(1e-6, 0.5)
