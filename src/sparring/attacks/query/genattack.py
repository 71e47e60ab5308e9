"""GenAttack: a genetic algorithm over changes inside a Linf ball."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.attacks.query.noise import Noise
from sparring.attacks.query.parts import as_pictures, ask_several, budget, chunks, clamp_, positive
from sparring.core.attack import Attack
from sparring.core.balls import per_sample
from sparring.core.errors import InputError
from sparring.core.losses import Loss, get_loss
from sparring.core.registry import Card, attack
from sparring.core.runner import Run
from sparring.core.threat import Access

# Generations without a better elite that count as a plateau.
PATIENCE = 100


@dataclass
class Herd:
    """The population of each sample.

    Attributes:
        x: the elite as an input, (m, ...).
        members: changes as shares of eps, (m, population, ...).
        before: the generation before them, which makes room for the next: fresh memory costs more than the breeding.
        fitness: (m, population).
        elite: the number of the fittest, int64 (m,).
        best: the elite's fitness when it last rose, (m,).
        idle: generations since then, int64 (m,).
        plateaus: how often that reached the patience, int64 (m,).
        noise: where parents, crossings and mutations come from.
    """

    x: Tensor
    members: Tensor
    before: Tensor
    fitness: Tensor
    elite: Tensor
    best: Tensor
    idle: Tensor
    plateaus: Tensor
    noise: Noise


@attack(
    Card(
        name="genattack",
        title="GenAttack: a genetic algorithm in the Linf ball",
        paper="Alzantot, Sharma, Chakraborty, Zhang, Hsieh and Srivastava 2019, GenAttack: Practical Black-box Attacks "
        "with Gradient-Free Optimization, arXiv:1805.11090",
        access=Access.SCORES,
        spaces=("linf",),
        cost="`population` queries, then population - 1 a generation",
        caveats="Thousands of queries; on large pictures it needs `side`. Square does the same with a tenth of them.",
        floor={"linf": 0.9},
    )
)
@dataclass(frozen=True, kw_only=True)
class GenAttack(Attack):
    """GenAttack: the elite stays; children cross two parents, drawn by fitness, element by element, and mutate.

    An element mutates with probability rho by a uniform draw of at most alpha eps. Both fall with the number of plateaus
    p as the paper's parameter-free variant has it: rho = max(.1, .5 * .9^p), alpha = max(.15, .4 * .9^p).

    Args:
        queries: queries per sample where the threat model names no number.
        population: members.
        mutation: rho; None lets it fall with the plateaus.
        reach: alpha; None lets it fall with the plateaus.
        side: evolve a picture of this side, spread bilinearly over the input; None evolves every element.
        loss: the fitness; the margin compares the target with its best rival.
    """

    queries: int = 10_000
    population: int = 6
    mutation: float | None = None
    reach: float | None = None
    side: int | None = None
    loss: str = "margin"

    def search(self, run: Run) -> None:
        """Ask about one generation after another."""
        positive(mutation=self.mutation, reach=self.reach)
        if self.population < 2:
            raise InputError(f"population is {self.population}; an elite and at least one child are needed")
        count, loss = budget(run, self.queries), get_loss(self.loss)
        m, size = len(run.x), self.population
        noise = Noise.of(run)
        first = noise.uniform(run.x.new_empty(m, *self._shape(run)), size).mul_(2.0).sub_(1.0)
        worst, none = run.x.new_full((m, size), torch.finfo(run.x.dtype).min), run.x.new_zeros(m).long()
        s = run.begin(Herd(run.x.clone(), first, torch.empty_like(first), worst, none, worst[:, 0], none, none, noise))
        for t in run.steps(1 + -(-max(0, count - size) // (size - 1))):
            row = torch.arange(len(s.x), device=s.x.device)
            if t == 0:
                s.fitness = self._asked(run, loss, size, lambda lo, hi: s.members[:, lo:hi])
            else:  # the elite's own fitness is known: it costs no query
                s.before[:, 0] = s.members[row, s.elite]
                value = self._asked(run, loss, size - 1, self._breeder(s))
                s.members, s.before = s.before, s.members
                s.fitness = torch.cat([s.fitness.gather(1, s.elite[:, None]), value], dim=1)
            s.elite = s.fitness.argmax(1)
            self._judge(s)
            s.x = self._render(run, s.members[row, s.elite][:, None])[:, 0]

    def _asked(self, run: Run, loss: Loss, count: int, members: Callable[[int, int], Tensor]) -> Tensor:
        """The fitness of so many members of each sample, (m, count); `members(lo, hi)` gives some, (m, hi - lo, ...)."""
        value = [ask_several(run, self._render(run, members(lo, hi)), loss).value for lo, hi in chunks(run, count)]
        return torch.cat(value, dim=1).nan_to_num(nan=torch.finfo(run.x.dtype).min)

    @staticmethod
    def _judge(s: Herd) -> None:
        """Count the generations without a better elite."""
        fittest = s.fitness.amax(1)
        rose = fittest > s.best
        s.best = torch.where(rose, fittest, s.best)
        s.idle = torch.where(rose, 0, s.idle + 1)
        over = s.idle >= PATIENCE
        s.plateaus, s.idle = s.plateaus + over.long(), torch.where(over, 0, s.idle)

    def _breeder(self, s: Herd) -> Callable[[int, int], Tensor]:
        """What breeds some children of the next generation, (m, hi - lo, ...), in the place of the one before."""
        size = s.members.shape[1]
        odds = s.fitness.softmax(1)
        drawn = s.noise.uniform(odds.new_empty(len(odds), 2 * size - 2))
        parents = torch.searchsorted(odds.cumsum(1), drawn).clamp(max=size - 1)
        chance = odds.gather(1, parents)
        mothers, fathers = parents[:, : size - 1], parents[:, size - 1 :]
        shares = chance[:, : size - 1] / (chance[:, : size - 1] + chance[:, size - 1 :]).clamp(min=1e-30)
        row = torch.arange(len(parents), device=parents.device)[:, None] * size
        everyone, one = s.members.flatten(0, 1), s.members[:, 0]
        rho, alpha = self._falling(s, self.mutation, 0.5, 0.1), self._falling(s, self.reach, 0.4, 0.15)
        crossings, mutations = s.noise.copy(), s.noise.copy()
        mutations.skip(size - 1)
        s.noise.skip(2 * (size - 1))

        def some(numbers: Tensor) -> Tensor:
            return everyone.index_select(0, (row + numbers).flatten()).reshape(*numbers.shape, *everyone.shape[1:])

        def breed(lo: int, hi: int) -> Tensor:
            draws = crossings.uniform(one, hi - lo)
            share = shares[:, lo:hi].reshape(*draws.shape[:2], *(1,) * (draws.ndim - 2))
            child = s.before[:, 1 + lo : 1 + hi]
            torch.lerp(some(fathers[:, lo:hi]), some(mothers[:, lo:hi]), draws.lt_(share), out=child)
            # below rho a uniform draw is uniform there too: what is above -1 here mutates, and the others stay
            mutation = mutations.uniform(one, hi - lo).mul_(-2 / per_sample(rho, child)).add_(1.0)
            mutation = F.threshold(mutation, -1.0, 0.0, inplace=True).mul_(per_sample(alpha, child))
            return child.add_(mutation).clamp_(-1.0, 1.0)

        return breed

    @staticmethod
    def _falling(s: Herd, fixed: float | None, first: float, least: float) -> Tensor:
        """A rate per sample, (m,): fixed, or falling with its plateaus."""
        if fixed is not None:
            return torch.full_like(s.best, fixed)
        return (first * 0.9 ** s.plateaus.to(s.best.dtype)).clamp(min=least)

    def _shape(self, run: Run) -> tuple[int, ...]:
        """The shape of a change."""
        c, h, w = as_pictures(run.x).shape[1:]
        return tuple(run.x.shape[1:]) if self.side is None else (c, min(h, self.side), min(w, self.side))

    def _render(self, run: Run, members: Tensor) -> Tensor:
        """The inputs with the changes (m, j, ...), as shares of eps: (m, j, ...)."""
        flat = members.flatten(0, 1)
        if self.side is not None:
            flat = F.interpolate(flat, size=as_pictures(run.x).shape[2:], mode="bilinear", align_corners=False)
        change = flat.reshape(*members.shape[:2], *run.x.shape[1:])
        return clamp_(run, (change * per_sample(run.space.eps, change)).add_(run.x[:, None]))
