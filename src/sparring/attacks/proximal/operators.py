"""Proximal operators of the norms: argmin_z t |z| + |z - v|^2 / 2, one weight t per sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparring.attacks.minimum_norm.parts import TINY, norm
from sparring.core.balls import per_sample
from sparring.core.thresholds import soft_threshold


def proximal(v: Tensor, t: Tensor, p: float, guess: Tensor | None = None) -> Tensor:
    """The proximal operator of t |.|_p at v, for p in 1, 2, inf.

    L1 shrinks every element by t; L2 shrinks the length by t; Linf cuts the largest elements at one common level, so that what
    is cut off has the sum t: v minus its projection on the L1 ball of radius t (Moreau).

    Args:
        v: the points, (m, ...).
        t: weights, (m,).
        p: 1, 2 or inf.
        guess: where the common level of Linf may be, (m,), such as the last one's.
    """
    weight = per_sample(t, v)
    if p == 1:
        return v.sign() * (v.abs() - weight).clamp(min=0.0)
    if p == 2:
        return v * (1.0 - weight / per_sample(norm(v, 2.0).clamp(min=TINY), v)).clamp(min=0.0)
    if not math.isinf(p):
        raise ValueError(f"p is {p}; the proximal operators are those of 1, 2 and inf")
    size = v.abs().flatten(1)
    level = soft_threshold(size, None, t, guess, 1e-4)
    return v.sign() * torch.minimum(v.abs(), per_sample(level, v))
