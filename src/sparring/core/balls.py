"""The norm balls Linf, L2, L1, L0: distance, projection, uniform samples, steepest directions, and the 8-bit
lattice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from sparring.core.batch import Batch, choose
from sparring.core.errors import InputError
from sparring.core.rng import KeyedRandom
from sparring.core.space import Bounds
from sparring.core.thresholds import caps, soft_threshold

# A float32 sum or difference may leave the ball by its own rounding; the soundness check flags more than this.
TOLERANCE = 1e-6


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (n,) so that it broadcasts against `like`, (n, ...)."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))


@dataclass(frozen=True, eq=False)
class Ball:
    """Changes of norm at most eps that stay inside the victim's bounds, and on its lattice where there is one.

    Args:
        eps: the radius in the victim's raw units: a number, or one per sample, float (n,). None seeks the smallest
            change.
        lattice: the number of levels between the bounds (256 for 8-bit files), or None for real numbers.
    """

    eps: float | Tensor | None = None
    lattice: int | None = None
    bounds: Bounds | None = None

    name: ClassVar[str] = "ball"
    p: ClassVar[float] = math.nan

    def __post_init__(self) -> None:
        if self.lattice is not None and (not isinstance(self.lattice, int) or self.lattice < 2):
            raise InputError(f"lattice is {self.lattice!r}; a whole number of levels >= 2 is needed (256 for 8 bits)")
        if isinstance(self.eps, (int, float)) and not (self.eps >= 0 and math.isfinite(self.eps)):
            raise InputError(f"eps is {self.eps!r}; a finite number >= 0 is needed")

    @property
    def limit(self) -> Tensor | float | None:
        """eps."""
        return self.eps

    def distance(self, delta: Tensor) -> Tensor:
        """The norm of each change, float (n,)."""
        raise NotImplementedError

    def cost(self, x: Batch, x_adv: Batch) -> Tensor:
        """The norm of each sample's change, float (n,)."""
        return self.distance(x_adv - x)  # type: ignore[operator]

    def contains(self, x: Batch, x_adv: Batch) -> Tensor:
        """Bool (n,): inside the ball, the bounds and the lattice, up to float rounding (1e-6 of eps or of the
        range).
        """
        if not (isinstance(x, Tensor) and isinstance(x_adv, Tensor)):
            raise InputError(f"{self.name} measures tensors; {type(x_adv).__name__} came")
        legal = torch.isfinite(x_adv).flatten(1).all(1)
        if self.eps is not None:
            eps = torch.as_tensor(self.eps, dtype=x.dtype, device=x.device)
            # sums over many elements and large coordinates carry more rounding than one difference near zero
            slack = TOLERANCE * torch.maximum(eps, x.abs().flatten(1).amax(1).clamp(min=1.0) if x.numel() else eps)
            legal = legal & (self.cost(x, x_adv) <= eps + slack * self._rounding(x))
        if self.bounds is not None:
            legal = legal & self.bounds.contain(x_adv, TOLERANCE)
            if self.lattice is not None:
                legal = legal & self._on_lattice(x_adv)
        return legal

    def _rounding(self, x: Tensor) -> float:
        """How many float roundings one distance adds up; 1 where no sum is taken."""
        return 1.0

    def take(self, index: Tensor) -> Self:
        """The ball with the radii of the samples at `index`."""
        return replace(self, eps=self.eps[index.to(self.eps.device)]) if isinstance(self.eps, Tensor) else self

    def without_limit(self) -> Self:
        """The same space with no eps: bounds and lattice alone."""
        return replace(self, eps=None)

    def bound(self, x: Batch, bounds: Bounds | None) -> Self:
        """The ball with one radius per sample, on x's device, and the victim's bounds.

        Raises:
            InputError: radii of the wrong number, negative or not finite; a lattice without bounds; x off the lattice.
        """
        if not isinstance(x, Tensor):
            raise InputError(f"{self.name} balls change tensors; the inputs are a {type(x).__name__}")
        n, eps = x.shape[0], self.eps
        if eps is not None:
            radii = torch.as_tensor(eps, dtype=x.dtype, device=x.device)
            if radii.ndim == 0:
                radii = radii.expand(n)
            if radii.shape != (n,):
                raise InputError(
                    f"eps has shape {tuple(radii.shape)} for {n} samples; give a number or a tensor of shape ({n},)"
                )
            if not bool(((radii >= 0) & torch.isfinite(radii)).all()):
                raise InputError("eps has negative or non-finite values; every radius must be a finite number >= 0")
            eps = radii.contiguous()
        ball = replace(self, eps=eps, bounds=None if bounds is None else bounds.like(x))
        if self.lattice is not None:
            if bounds is None:
                raise InputError(
                    f"{self.name} has lattice={self.lattice}, but this victim declares no bounds to divide"
                )
            off = ~ball._on_lattice(x)
            if bool(off.any()):
                raise InputError(
                    f"{int(off.sum())} of {n} inputs are not on the {self.lattice}-level lattice of {bounds}; "
                    "round them first (for pictures: x = (x * 255).round() / 255), or leave lattice=None"
                )
        return ball

    def project(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """A nearest or near point inside the ball and the bounds; the identity for points already there.

        Args:
            x: the centres, (n, ...), inside the bounds.
            x_adv: the points to bring back, (n, ...).
        """
        raise NotImplementedError

    def sample(self, x: Tensor, rng: KeyedRandom, stream: tuple[str | int, ...] | str) -> Tensor:
        """A random point of each ball (uniform where the norm allows it), clamped to the bounds; (n, ...)."""
        raise NotImplementedError

    def steepest(self, gradient: Tensor, at: Tensor | None = None) -> Tensor:
        """The direction of unit norm along which `gradient` rises fastest; zero where the gradient is zero.

        `at`, (n, ...), is where the step starts: a sparse direction leaves out the elements that the bounds hold back.
        """
        raise NotImplementedError

    def snap(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """The nearest lattice point inside the ball, (n, ...); x_adv itself where the space has no lattice.

        Points outside after rounding move towards the centre: eps .3 is 76.5 steps of an 8-bit picture, and 77 leave
            the ball.
        """
        if self.lattice is None or self.bounds is None:
            return x_adv
        lo, step = self._grid()
        centre = ((x - lo) / step).round()
        k = ((x_adv - lo) / step).round().clamp(0, self.lattice - 1)
        k = self._inside(x, centre, k, (x_adv - lo) / step, step)
        # k / 255 to the last bit, as reading the file gives it; and what did not move stays as it came
        value = lo + k * (self.bounds.hi - lo) / (self.lattice - 1)
        return torch.where(k == centre, x, self.bounds.clamp(value))

    def _inside(self, x: Tensor, centre: Tensor, k: Tensor, exact: Tensor, step: Tensor) -> Tensor:
        """Lattice coordinates inside the ball: rounding towards the centre for the samples that rounding pushed out."""
        if self.eps is None:
            return k
        out = ~(self.distance((k - centre) * step) <= self.eps)
        if not bool(out.any()):
            return k
        towards = centre + (exact - centre).trunc()
        return torch.where(per_sample(out, k), towards, k)

    def _grid(self) -> tuple[Tensor, Tensor]:
        if self.bounds is None or self.lattice is None:
            raise InputError("a lattice needs bounds; bind the ball to a victim first")
        return self.bounds.lo, (self.bounds.hi - self.bounds.lo) / (self.lattice - 1)

    def _on_lattice(self, x: Tensor) -> Tensor:
        lo, step = self._grid()
        k = (x - lo) / step
        return ((k - k.round()).abs() <= 1e-3).flatten(1).all(1)

    def _free(self, gradient: Tensor, at: Tensor | None) -> Tensor:
        """The gradient without the elements that already stand at the bound they would move to."""
        if at is None or self.bounds is None:
            return gradient
        # signs, since booleans cost several times as much on CPUs: 1 where there is room, 0 at the bound
        above, below = (room.clamp_(min=0.0).sign_() for room in (self.bounds.hi - at, at - self.bounds.lo))
        return above.mul_(gradient.clamp(min=0.0)).add_(below.mul_(gradient.clamp(max=0.0)))

    def _clamp(self, x: Tensor) -> Tensor:
        return x if self.bounds is None else self.bounds.clamp(x)

    def _eps(self, like: Tensor) -> Tensor | float:
        """eps shaped to broadcast, infinite where there is none."""
        if self.eps is None:
            return math.inf
        return per_sample(self.eps, like) if isinstance(self.eps, Tensor) else self.eps

    def __repr__(self) -> str:
        eps = self.eps
        if isinstance(eps, Tensor):
            one = eps.numel() > 0 and bool((eps == eps.flatten()[0]).all())
            eps = float(eps.flatten()[0]) if one else f"<{eps.numel()} radii>"  # type: ignore[assignment]
        shown = [] if eps is None else [f"{eps:g}" if isinstance(eps, float) else str(eps)]
        shown += [] if self.lattice is None else [f"lattice={self.lattice}"]
        return f"{type(self).__name__}({', '.join(shown)})"


class Linf(Ball):
    """Every element moves by at most eps."""

    name = "linf"
    p = math.inf

    def distance(self, delta: Tensor) -> Tensor:
        """The largest absolute change, (n,)."""
        return delta.flatten(1).abs().amax(1) if delta.numel() else delta.flatten(1).sum(1)

    def project(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """The nearest point: both constraints are boxes."""
        if self.eps is None:
            return self._clamp(x_adv)
        return torch.clamp(x_adv, *self.box(x))

    def box(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the greatest legal value of each element; kept while the centres stay the same tensor.

        A climb projects onto one box dozens of times, and on a small network each pass over the pixels shows in its time.
        """
        known: tuple[Tensor, int, Tensor, Tensor] | None = self.__dict__.get("_last_box")
        if known is None or known[0] is not x or known[1] != x._version:
            eps = self._eps(x)
            known = (x, x._version, self._clamp(x - eps), self._clamp(x + eps))
            object.__setattr__(self, "_last_box", known)
        return known[2], known[3]

    def sample(self, x: Tensor, rng: KeyedRandom, stream: tuple[str | int, ...] | str) -> Tensor:
        """Uniform in the cube, then clamped."""
        noise = rng.uniform(tuple(x.shape[1:]), stream, -1.0, 1.0).to(x.dtype)
        return self.project(x, x + noise * self._eps(x))

    def steepest(self, gradient: Tensor, at: Tensor | None = None) -> Tensor:
        """The sign."""
        return gradient.sign()

    def _inside(self, x: Tensor, centre: Tensor, k: Tensor, exact: Tensor, step: Tensor) -> Tensor:
        if self.eps is None:
            return k
        reach = (self._eps(x) / step + 1e-4).floor()  # 8/255 in float32 may be 7.9999995 steps
        return torch.minimum(torch.maximum(k, centre - reach), centre + reach)


class L2(Ball):
    """The Euclidean length of the change is at most eps."""

    name = "l2"
    p = 2.0

    def distance(self, delta: Tensor) -> Tensor:
        """The Euclidean norm, (n,)."""
        norm: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return norm

    def _rounding(self, x: Tensor) -> float:
        return 4.0

    def project(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Scale into the ball, then clamp; clamping moves each element towards x, so it cannot leave the ball again."""
        norm = per_sample(self.distance(x_adv - x), x)
        share = (self._eps(x) / norm.clamp(min=torch.finfo(x.dtype).tiny)).clamp(max=1.0)
        # a share of 1 gives x_adv to the last bit: points inside pass untouched
        return self._clamp(torch.lerp(x, x_adv, share))

    def sample(self, x: Tensor, rng: KeyedRandom, stream: tuple[str | int, ...] | str) -> Tensor:
        """Uniform in the ball: a normal direction, a radius u^(1/d); then clamped."""
        parts = stream if isinstance(stream, tuple) else (stream,)
        noise = rng.normal(tuple(x.shape[1:]), (*parts, "direction")).to(x.dtype)
        radius = rng.uniform((1,), (*parts, "radius")).to(x.dtype).pow(1.0 / max(1, math.prod(x.shape[1:]))).squeeze(1)
        return self._clamp(x + self.steepest(noise) * per_sample(radius, x) * self._eps(x))

    def steepest(self, gradient: Tensor, at: Tensor | None = None) -> Tensor:
        """The gradient over its norm."""
        flat = gradient.flatten(1)
        norm: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        if flat.device.type != "cpu" or not bool(((norm > 1e-10) & (norm < 1e10)).all()):
            # gradients of 1e-30 are still directions, but their squares vanish; a power of two changes no digit of the others'
            exponent = torch.frexp(flat.abs().amax(1, keepdim=True)).exponent
            flat = torch.ldexp(flat, -exponent)
            norm = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        return (flat / norm.clamp(min=1e-12)).reshape(gradient.shape)


class L1(Ball):
    """The sum of absolute changes is at most eps."""

    name = "l1"
    p = 1.0

    def distance(self, delta: Tensor) -> Tensor:
        """The sum of absolute values, (n,)."""
        return delta.flatten(1).abs().sum(1)

    def _rounding(self, x: Tensor) -> float:
        return 8.0

    def project(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """The exact Euclidean projection on the ball within the bounds (Croce and Hein 2021, arXiv:2103.01208)."""
        if self.eps is None:
            return self._clamp(x_adv)
        flat, centre = x_adv.flatten(1), x.flatten(1)
        delta = flat - centre
        size = delta.abs()
        cap = None
        if self.bounds is not None:
            hi, lo = (b.expand(x.shape).flatten(1) if b.ndim else b for b in (self.bounds.hi, self.bounds.lo))
            cap = caps(delta, centre, lo, hi)
        eps = torch.as_tensor(self.eps, dtype=x.dtype, device=x.device).expand(x.shape[0])
        shrink = soft_threshold(size, cap, eps)
        kept = size.sub_(shrink[:, None]).clamp_(min=0.0)
        kept = kept if cap is None else torch.minimum(kept, cap)
        moved = delta.sign_().mul_(kept).add_(centre)
        return self._clamp(choose(shrink == 0, flat, moved).reshape(x.shape))

    def sample(self, x: Tensor, rng: KeyedRandom, stream: tuple[str | int, ...] | str) -> Tensor:
        """Uniform in the ball: exponential magnitudes, one more for the slack, random signs; then clamped."""
        parts = stream if isinstance(stream, tuple) else (stream,)
        d = math.prod(x.shape[1:])
        magnitudes = -torch.log1p(-rng.uniform((d + 1,), (*parts, "size"))).to(x.dtype)
        share = magnitudes[:, :d] / magnitudes.sum(1, keepdim=True)
        delta = share * rng.signs((d,), (*parts, "sign")).to(x.dtype)
        return self._clamp(x + delta.reshape(x.shape) * self._eps(x))

    def steepest(self, gradient: Tensor, at: Tensor | None = None, sparsity: float = 0.01) -> Tensor:
        """The signs of the largest elements, a share `sparsity` of them, at unit norm (SLIDE, Tramer and Boneh 2019).

        A single element is steepest by the letter; it would fill one pixel a step, so a small share moves together.
        """
        flat = self._free(gradient, at).flatten(1)
        k = max(1, round(sparsity * flat.shape[1]))
        index = flat.abs().topk(k, dim=1).indices
        signs = flat.gather(1, index).sign()
        signs = signs / signs.abs().sum(1, keepdim=True).clamp(min=1.0)
        return torch.zeros_like(flat).scatter_(1, index, signs).reshape(gradient.shape)


@dataclass(frozen=True, eq=False, repr=False)
class L0(Ball):
    """At most eps elements change; with `pixels=True`, at most eps positions of an (n, c, h, w) batch, whatever the
    channels.
    """

    pixels: bool = False

    name: ClassVar[str] = "l0"
    p: ClassVar[float] = 0.0

    def distance(self, delta: Tensor) -> Tensor:
        """The number of changed elements or pixels, as float (n,)."""
        changed = delta != 0
        if self.pixels:
            changed = changed.any(1)
        return changed.flatten(1).sum(1).to(delta.dtype)

    def project(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Keep the largest changes and drop the rest: the exact projection."""
        x_adv = self._clamp(x_adv)
        if self.eps is None:
            return x_adv
        delta = x_adv - x
        size = (delta.square().sum(1) if self.pixels else delta.abs()).flatten(1)
        rank = size.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        eps = torch.as_tensor(self.eps, dtype=x.dtype, device=x.device).expand(x.shape[0])
        keep = (rank < eps.floor()[:, None]) & (size > 0)
        shape = (x.shape[0], 1, *x.shape[2:]) if self.pixels else x.shape
        return torch.where(keep.reshape(shape), x_adv, x)

    def sample(self, x: Tensor, rng: KeyedRandom, stream: tuple[str | int, ...] | str) -> Tensor:
        """Random elements set to random values of the bounds."""
        parts = stream if isinstance(stream, tuple) else (stream,)
        if self.bounds is None:
            raise InputError("a random L0 point needs the victim's bounds, which it does not declare")
        shape = tuple(x.shape[1:])
        lo, hi = self.bounds.lo, self.bounds.hi
        value = lo + rng.uniform(shape, (*parts, "value")).to(x.dtype) * (hi - lo)
        where_shape = (1, *shape[1:]) if self.pixels else shape
        order = rng.permutation(math.prod(where_shape), (*parts, "place")).argsort(dim=1).reshape(-1, *where_shape)
        eps = self._eps(x) if self.eps is not None else float(math.prod(where_shape))
        return torch.where(order < eps, value, x)

    def steepest(self, gradient: Tensor, at: Tensor | None = None) -> Tensor:
        """The sign of the largest element alone."""
        flat = self._free(gradient, at).flatten(1)
        index = flat.abs().argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter_(1, index, flat.gather(1, index).sign()).reshape(gradient.shape)


NORMS: dict[str, type[Ball]] = {ball.name: ball for ball in (Linf, L2, L1, L0)}
