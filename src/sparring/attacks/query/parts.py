"""What the query attacks share: the budget, the scores of an answer, what counts as better, several candidates a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sparring.core.errors import CapabilityError, InputError
from sparring.core.losses import Loss, get_loss
from sparring.core.outputs import Prediction
from sparring.core.runner import Run
from sparring.core.threat import Targeted

# A convolution's rounding changes with the batch: a smaller gain than this share of the largest score is no gain, so
# that a change which the victim does not see at all is refused in every batch alike.
GAIN = 1e-6
# Candidates asked at once hold about so many numbers together: a few megabytes stay in the processor's cache.
NUMBERS = 2**21
# Pairs of candidates asked at once for each sample; a success ends the sample before the next group.
GROUP = 5


def budget(run: Run, own: int) -> int:
    """Queries that each sample may spend: the threat model's number, or else the attack's `own`; the oracle keeps to it.

    Raises:
        CapabilityError: the threat model grants no queries.
        InputError: `own` is no whole number >= 1.
    """
    if run.oracle is None:
        raise CapabilityError(f"this run has access to {run.access}; queries need access to scores")
    if run.oracle.budget is None:
        if isinstance(own, bool) or not isinstance(own, int) or own < 1:
            raise InputError(f"the attack's own number of queries is {own!r}; a whole number >= 1 is needed")
        run.oracle.budget = own
    return run.oracle.budget


def positive(**values: float | None) -> None:
    """Refuse hyper-parameters that are not above zero; None stands for a default.

    Raises:
        InputError: the parameter's name and value.
    """
    for name, value in values.items():
        if value is not None and not value > 0:
            raise InputError(f"{name} is {value!r}; a number above 0 is needed")


def scores_of(answer: Prediction) -> Tensor:
    """The class scores of an answer, (m, k).

    Raises:
        CapabilityError: the answer shows labels only.
    """
    if answer.scores is None:
        raise CapabilityError("this attack climbs class scores, and the victim answers labels only")
    return answer.scores


def loss_for(run: Run, name: str | None) -> Loss:
    """The loss called `name`; None takes the margin for untargeted goals and cross-entropy for targeted ones."""
    return get_loss(name or ("ce" if isinstance(run.goal, Targeted) else "margin"))


def lowest(like: Tensor) -> Tensor:
    """A loss below all others, one per sample, (m,)."""
    return torch.full((len(like),), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)


def bar(loss: Tensor, scores: Tensor) -> Tensor:
    """What another loss must exceed to be a gain over `loss`, (m,), that came from `scores`, (m, k), and not its rounding."""
    return loss + GAIN * scores.abs().amax(1)


def as_pictures(x: Tensor) -> Tensor:
    """A view of inputs as (n, c, h, w): rows (n, d) have one channel and one line, sequences (n, c, d) one line."""
    if x.ndim == 2:
        return x[:, None, None]
    return x.reshape(x.shape[0], x.shape[1], -1, x.shape[-1])


def spread(tiles: Tensor, like: Tensor) -> Tensor:
    """Tiles (j, c, th, tw) over the elements of inputs shaped like `like`, (..., shape): each element from its tile."""
    _, _, h, w = as_pictures(like).shape
    down, across = (
        torch.arange(side, device=tiles.device) * count // side
        for side, count in zip((h, w), tiles.shape[2:], strict=True)
    )
    return tiles.index_select(3, across).index_select(2, down).reshape(-1, *like.shape[1:])


def span(run: Run) -> tuple[Tensor, Tensor]:
    """The least and the greatest value of each element, each of one sample's shape.

    Raises:
        InputError: the victim declares no bounds.
    """
    bounds = run.space.bounds
    if bounds is None:
        raise InputError(
            "this attack measures its steps by the victim's bounds, and this victim declares none; "
            "give it bounds=(lo, hi)"
        )
    return bounds.lo.expand(run.x.shape[1:]), bounds.hi.expand(run.x.shape[1:])


def clamp_(run: Run, x: Tensor) -> Tensor:
    """x, which is changed, inside the victim's bounds, where it has any."""
    bounds = run.space.bounds
    if bounds is None:
        return x
    if bounds.lo.ndim == 0 and bounds.hi.ndim == 0:  # numbers clamp several times as fast as tensors of one
        return x.clamp_(float(bounds.lo), float(bounds.hi))
    return torch.clamp(x, bounds.lo, bounds.hi, out=x)


def chunks(run: Run, count: int) -> Iterator[tuple[int, int]]:
    """Split `count` candidates per sample into runs [lo, hi) to ask at once; the split changes nothing but memory."""
    size = max(1, NUMBERS // max(1, run.x.numel()))
    for lo in range(0, count, size):
        yield lo, min(count, lo + size)


class Answers(NamedTuple):
    """What j candidates of each sample were answered: losses (m, j), NaN where not granted, and scores (m, j, k)."""

    value: Tensor
    scores: Tensor


def ask_several(run: Run, candidates: Tensor, loss: Loss) -> Answers:
    """Ask about j candidates for each active sample, (m, j, ...)."""
    m, j = candidates.shape[:2]
    if j == 1:
        scores = scores_of(run.ask(candidates.squeeze(1))[0])
        return Answers(loss(scores, run.y, run.goal)[:, None], scores[:, None])
    rows = torch.arange(m, device=candidates.device).repeat_interleave(j)
    answer, granted = run.ask(candidates.flatten(0, 1), rows)
    if answer.scores is None and not bool(granted.any()):  # every sample's queries ended between two groups
        nothing = torch.full((m, j), torch.nan, dtype=run.x.dtype, device=candidates.device)
        return Answers(nothing, nothing[..., None])
    scores = scores_of(answer)
    value = loss(scores, run.y[rows], run.goal.take(rows))
    return Answers(value.reshape(m, j), scores.reshape(m, j, scores.shape[1]))


def project_several(run: Run, candidates: Tensor) -> Tensor:
    """j candidates for each active sample, (m, j, ...), which may be changed, projected into its space."""
    m, j = candidates.shape[:2]
    if run.space.name == "linf":
        low, high = run.space.box(run.x)
        return torch.clamp(candidates, low[:, None], high[:, None], out=candidates)
    if j == 1:
        return run.space.project(run.x, candidates.squeeze(1))[:, None]  # type: ignore[no-any-return]
    rows = torch.arange(m, device=candidates.device).repeat_interleave(j)
    flat = run.space.take(rows).project(run.x[rows], candidates.flatten(0, 1))
    return flat.reshape(candidates.shape)  # type: ignore[no-any-return]


class Estimated(Protocol):
    """A state that gradients are estimated at: the point and the estimate, (m, ...), and the mean loss nearby, (m,)."""

    x: Tensor
    grad: Tensor
    near: Tensor


def estimate(
    run: Run, s: Estimated, loss: Loss, pairs: int, radius: Tensor | float, draw: Callable[[int, int], Tensor]
) -> bool:
    """Fill s.grad with the gradient of the loss at s.x by central differences along random directions u.

    The estimate is the mean of u * (L(x + r u) - L(x - r u)) / (2 r); candidates are projected into the space first,
    since a victim is not asked outside its bounds and a success must be legal.

    Args:
        run: the samples in play; those that succeed or run out of queries are dropped between groups of directions.
        s: the state given to `run.begin`.
        loss: what to differentiate.
        pairs: directions, two queries each.
        radius: r, in the victim's raw units: a number, or one for each element of an input.
        draw: `draw(j, g)` gives the j directions of group g, (m, j, ...).

    Returns:
        Whether samples are left.
    """
    s.grad, s.near = torch.zeros_like(s.x), torch.zeros(len(s.x), dtype=s.x.dtype, device=s.x.device)
    for group, lo in enumerate(range(0, pairs, GROUP)):
        if group:
            run.shrink()
        if not len(run.rows):
            return False
        j = min(GROUP, pairs - lo)
        u = draw(j, group).to(s.x.dtype)
        here, step = s.x[:, None], radius * u
        both = here.new_empty(len(u), 2 * j, *u.shape[2:])
        torch.add(here, step, out=both[:, :j])
        torch.sub(here, step, out=both[:, j:])
        both = project_several(run, both)
        value = ask_several(run, both, loss).value.nan_to_num(nan=0.0)  # a sample's last ones may not be granted
        slope = (value[:, :j] - value[:, j:]) / (2 * pairs)
        s.grad = s.grad + torch.bmm(slope[:, None], u.flatten(2)).reshape(s.x.shape)
        s.near = s.near + value.sum(1) / (2 * pairs)
    s.grad = s.grad / radius
    return True
