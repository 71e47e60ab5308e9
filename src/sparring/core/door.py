"""The door: raw inputs checked before any attack sees them, and class scores found in whatever a network returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparring.core.errors import InputError, VictimError
from sparring.core.space import Bounds

# How far float rounding may carry an honest input over its bounds; more than this is a mistake of units.
_EDGE = 1e-4
# How far from the finite scores an infinite one is put: e^-100 is below any probability that float32 knows.
_RULED_OUT = 100.0


def admit_tensor(x: Tensor, bounds: Bounds | None, name: str) -> Tensor:
    """Inputs that are finite, floating and inside the bounds; float rounding at the edge is clamped away.

    Raises:
        InputError: integers, NaN, or values outside, with the likely cause.
    """
    if not x.is_floating_point():
        raise InputError(
            f"inputs have dtype {x.dtype}; floats{'' if bounds is None else f' in {bounds}'} are needed: x.float(), "
            "and for 8-bit pictures x.float() / 255"
        )
    if x.ndim < 2:
        raise InputError(f"inputs have shape {tuple(x.shape)}; a batch (n, ...) is needed. For one sample: x[None]")
    if not x.numel():
        return x
    if not bool(torch.isfinite(x).all()):
        bad = (~torch.isfinite(x)).flatten(1).any(1)
        raise InputError(f"{int(bad.sum())} of {len(x)} inputs hold NaN or infinity; remove or repair them first")
    if bounds is None:
        return x
    box = bounds.like(x)
    span = box.hi - box.lo
    if bool(((x < box.lo - _EDGE * span) | (x > box.hi + _EDGE * span)).any()):
        lo, hi = float(x.min()), float(x.max())
        if lo >= 0 and hi > 2 and float(box.hi.max()) <= 1:
            cause = "they look like 0..255: divide by 255, or give the victim bounds=(0, 255)"
        elif lo < 0:
            cause = (
                "they look normalised: pass raw inputs and give the normalisation to the victim, "
                "sparring.Victim(net, mean=..., std=...), so that eps keeps its meaning"
            )
        else:
            cause = "rescale the inputs, or declare the true domain with sparring.Victim(net, bounds=(lo, hi))"
        raise InputError(f"inputs span [{lo:.4g}, {hi:.4g}], but {name!r} takes {bounds}; {cause}")
    return box.clamp(x)


def coerce_scores(output: Any, n: int, name: str) -> Tensor:
    """Class scores (n, k) from whatever a network returned: a tensor, a ModelOutput, a dict or a tuple; (n, 1) from
    (n,).

    Without a gradient they are a copy: some networks answer in the same memory each time, or in that of their input.

    Raises:
        VictimError: nothing in it is a class score per input.
    """
    found = output
    if not isinstance(found, Tensor):
        if hasattr(output, "logits"):
            found = output.logits
        elif isinstance(output, Mapping):
            keys = [k for k in ("logits", "scores", "out", "output") if k in output]
            tensors = [k for k, v in output.items() if isinstance(v, Tensor) and v.ndim == 2 and len(v) == n]
            chosen = keys or (tensors if len(tensors) == 1 else [])
            if not chosen:
                raise VictimError(
                    f"{name!r} returned a dict with keys {sorted(map(str, output))}, none of which is plainly "
                    "the class scores; say which with sparring.Victim(net, output='key')"
                )
            found = output[chosen[0]]
        elif isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
            found = output[0]
    if not isinstance(found, Tensor):
        raise VictimError(
            f"{name!r} returned {type(output).__name__}; class scores (n, k) are needed. "
            "Say where they are with sparring.Victim(net, output=lambda out: ...)"
        )
    if found.ndim == 1 and found.shape[0] == n:
        found = found[:, None]
    if found.ndim != 2 or found.shape[0] != n:
        raise VictimError(
            f"{name!r} returned shape {tuple(found.shape)} for {n} inputs; class scores ({n}, k) are needed. "
            "Wrap the network so that it returns one row of scores per input"
        )
    return found if found.requires_grad else found.clone()


def finite_scores(scores: Tensor) -> Tensor:
    """The same scores, with a number far below all finite ones of its row for minus infinity, and far above them for plus.

    Networks that rule classes out answer minus infinity. Labels and probabilities stay what they are; margins and losses
    would be infinite or NaN, searches would find no way, and the network would pass for robust.
    """
    endless = scores.isinf()
    if scores.device.type == "cpu" and not bool(endless.any()):  # elsewhere the look would cost more than the repair
        return scores
    known = scores.detach()
    least = known.masked_fill(endless, torch.inf).amin(1, keepdim=True)
    most = known.masked_fill(endless, -torch.inf).amax(1, keepdim=True)
    none = least.isinf()
    low, high = least.masked_fill(none, 0.0) - _RULED_OUT, most.masked_fill(none, 0.0) + _RULED_OUT
    return torch.where(endless, torch.where(known > 0, high, low), scores)


def as_pair(scores: Tensor) -> Tensor:
    """A single logit z, (n, 1), as the pair (-z/2, z/2): the same decision and the same probabilities; others as
    they are.
    """
    return torch.cat([-0.5 * scores, 0.5 * scores], dim=1) if scores.shape[1] == 1 else scores
