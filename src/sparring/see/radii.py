"""How large a change is tried when nobody says: the conventions of the field, by norm and by kind of picture."""

from __future__ import annotations

import math

from sparring.core.errors import InputError

_PHOTO, _GREY = 8 / 255, 0.3
_SMALL = 64


def default_eps(norm: str, shape: tuple[int, ...], span: float = 1.0) -> float:
    """The usual radius of a ball around a picture.

    With r = 8/255 for photos and r = .3 for grey pictures of at most 64 x 64 (the convention of handwritten digits),
    and d numbers in a picture: Linf r; L2 r/4 sqrt(d), the length of a change of r/4 everywhere (3.0 at 3 x 224 x 224,
    .43 at 3 x 32 x 32, 2.1 at 28 x 28); L1 r/8 d; L0 1% of the numbers, at least one.

    Args:
        norm: "linf", "l2", "l1" or "l0".
        shape: (c, h, w) of the victim's input.
        span: hi - lo of the victim's bounds; eps is in its raw units.

    Returns:
        eps, in the unit of the norm.

    Raises:
        InputError: another norm.
    """
    d = math.prod(shape)
    grey = len(shape) == 3 and shape[0] == 1 and max(shape[1:]) <= _SMALL
    r = span * (_GREY if grey else _PHOTO)
    radii = {"linf": r, "l2": r / 4 * math.sqrt(d), "l1": r / 8 * d, "l0": float(max(1, d // 100))}
    if norm not in radii:
        raise InputError(f"there is no usual eps for {norm!r}; give eps")
    return radii[norm]


def ball_text(norm: str, eps: float | None) -> str:
    """A ball as people write it: "linf, 8/255" where eps is a whole number of 8-bit steps, otherwise four digits."""
    if eps is None:
        return f"{norm}, smallest change"
    steps = eps * 255
    if norm == "linf" and eps < 0.25 and abs(steps - round(steps)) < 1e-4 and round(steps):
        return f"{norm}, {round(steps)}/255"
    return f"{norm}, {eps:.4g}"
