"""How large a change is tried when nobody says: the conventions of the field, by norm and by kind of picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from sparring.core.errors import InputError, ThreatError

if TYPE_CHECKING:
    from sparring.images.rendering import Drawn

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


def usual_change(
    name: str, eps: float | None, lattice: int | None, sides: tuple[int, int], *, smallest: bool = False
) -> tuple[Drawn, float | None]:
    """The space of a change that is no norm ball, and the number that says its size.

    Args:
        name: what the attack's card calls it: "rotations" (30 degrees, and shifts by a tenth of the shorter side), "flow"
            (half a pixel), "colour_map" (.06), "hue_saturation" (any turn), "corruptions" (severity 5).
        eps: its size in its own unit, in the place of the usual one.
        lattice: levels of a pixel, or None.
        sides: height and width of the pictures.
        smallest: leave out the usual size, for attacks that seek the smallest change.

    Raises:
        ThreatError: no such change is made to pictures.
    """
    from sparring.images import ColourMap, Corruptions, Flow, HueSaturation, Rotations

    usual = {"rotations": 30.0, "flow": 0.5, "colour_map": 0.06, "hue_saturation": 0.5, "corruptions": 5.0}
    if name not in usual:
        raise ThreatError(
            f"{name!r} is no change of a picture's pixels; `sparring attacks` lists what attacks pictures"
        )
    without = smallest and name in ("flow", "colour_map", "corruptions")
    size = eps if eps is not None or without else usual[name]
    shift = float(max(1, round(min(sides) / 10)))
    made: dict[str, Callable[[], Drawn]] = {
        "rotations": lambda: Rotations(size or 0.0, shift, lattice=lattice),
        "flow": lambda: Flow(size, lattice=lattice),
        "colour_map": lambda: ColourMap(size, lattice=lattice),
        "hue_saturation": lambda: HueSaturation(size or 0.0, lattice=lattice),
        "corruptions": lambda: Corruptions(size, lattice=lattice),
    }
    return made[name](), size


def ball_text(norm: str, eps: float | None) -> str:
    """A ball as people write it: "linf, 8/255" where eps is a whole number of 8-bit steps, otherwise four digits."""
    if eps is None:
        return f"{norm}, smallest change"
    steps = eps * 255
    if norm == "linf" and eps < 0.25 and abs(steps - round(steps)) < 1e-4 and round(steps):
        return f"{norm}, {round(steps)}/255"
    return f"{norm}, {eps:.4g}"
