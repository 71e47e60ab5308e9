"""The threshold that shrinks magnitudes to a sum, within caps: the projection on the L1 ball inside a box, and its kin.

It is one equation in one unknown per sample, monotone and piecewise linear, so that a few passes over the batch solve it;
sorting every sample's elements would cost as much as the victim's own forward and backward on small networks. Comparisons that
end in booleans are several times slower than arithmetic on CPUs: signs do their work here.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# Of the sum, relative to the one wanted: float32 tells little more apart.
EXACT = 3e-7
ROUNDS = 100
# The part of a sample's values, as 1 / MANY, beyond which all are sorted to find the largest.
MANY = 16


def caps(delta: Tensor, x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """How far each element of x can move in the direction of `delta` before it leaves lo <= x <= hi, (m, d)."""
    if float(lo.min()) == -math.inf:  # a third of the time of isinf(lo).any()
        return torch.full_like(x, torch.inf)
    # hi - x where delta > 0 and x - lo where delta < 0, without a selection (several times slower than arithmetic)
    return (delta.sign() * ((hi + lo) / 2 - x)).add_((hi - lo) / 2).clamp_(min=0.0)


def least_of_largest(values: Tensor, count: Tensor) -> Tensor:
    """The smallest of each sample's `count` largest values, (m, 1), of values (m, d) and counts from 1 to d, (m,)."""
    d, most = values.shape[1], int(count.max()) if len(count) else 1
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64) and most > d // MANY:
        # measured at 784 and 3,072 values: numpy sorts all of them faster than torch selects and sorts so many
        ordered = torch.from_numpy(np.sort(values.detach().numpy(), axis=1))
        return ordered.gather(1, d - count[:, None])
    return values.topk(most, dim=1).values.gather(1, count[:, None] - 1)


def soft_threshold(
    size: Tensor, cap: Tensor | None, eps: Tensor, guess: Tensor | None = None, tolerance: float = EXACT
) -> Tensor:
    """The t >= 0 with sum(min(max(size - t, 0), cap)) = eps, (m,); 0 where the sum is at most eps without shrinking.

    Newton's steps, halving where they leave the bracket, find the right piece and end on its root. Each sample stops by its own
    tolerance, so that the others of its batch do not matter.

    Args:
        size: magnitudes, (m, d).
        cap: the most that each element may keep, (m, d); it may be infinite. None for no caps.
        eps: the sums wanted, (m,); 0 takes the largest size.
        guess: where to look first, such as the last step's t, (m,); 0 where None.
        tolerance: of the sum, relative to eps.
    """
    most = high = size.amax(1) if size.shape[1] else torch.zeros_like(eps)
    # without caps the largest element alone keeps eps at most - eps
    low = most - eps if cap is None else torch.full_like(eps, -torch.inf)
    t = torch.zeros_like(eps) if guess is None else torch.where(guess < high, guess, 0.0)
    t = torch.maximum(t, low).clamp_(min=0.0)
    done = eps <= 0
    for _ in range(ROUNDS):
        kept = (size - t[:, None]).clamp_(min=0.0)
        kept = kept if cap is None else torch.minimum(kept, cap)
        excess = kept.sum(1) - eps
        over = excess > 0
        low, high = torch.where(over, t, low), torch.where(over, high, t)
        done = done | (excess.abs() <= tolerance * eps) | (~over & (t == 0))
        if bool(done.all()):
            break
        # how many are neither gone nor capped
        falling = (kept.sign_() if cap is None else (cap - kept).sign_().mul_(kept.sign_())).sum(1)
        newton = t + excess / falling
        # nearer than floats tell apart: a bracket that is wide still would be halved for nothing
        done = done | (newton == t)
        # on a flat piece the quotient is no number or infinite, and not inside
        further = torch.where((newton > low) & (newton < high), newton, (low + high) / 2).clamp_(min=0.0)
        # a sum too small for t to tell apart is met as nearly as it can be
        done = done | (further <= low) | (further >= high)
        t = torch.where(done, t, further)
    return torch.where(eps > 0, t, most)
