"""Figures of classifications and attacks, drawn with matplotlib's objects alone: no global state, no display needed."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from sparring.core.errors import InputError, PictureError
from sparring.see.classification import percent, short_name
from sparring.see.radii import ball_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from torch import Tensor

    from sparring.see.classification import Classification
    from sparring.see.shown import Shown

_FACTORS = (1, 2, 3, 4, 5, 8, 10, 15, 20, 30, 50, 100)
_SMALL = 64  # pixels: below this every pixel is drawn as a square
_FOOLED, _HELD = "#b3261e", "#1b6e3c"


def attack_figure(shown: Shown) -> Figure:
    """Original, amplified difference and adversarial picture, with the victim's answers in the titles."""
    figure = Figure(figsize=(10.2, 4.15), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _picture(left, shown.original)
    _titled(left, "original", shown.before)
    delta = (shown.adversarial - shown.original).cpu()
    factor = amplification(float(delta.abs().max()))
    _picture(middle, (0.5 + factor * delta).clamp(0, 1))
    size = f"linf {shown.distances['linf']:.3g}, l2 {shown.distances['l2']:.3g}"
    middle.set_title(f"difference × {factor:g} (grey: no change)\n{size}", fontsize=10)
    _picture(right, shown.adversarial)
    _titled(right, "adversarial", shown.after, _FOOLED if shown.succeeded else _HELD)
    goal = "" if shown.target is None else f" towards {short_name(shown.target)!r}"
    verdict = "fooled" if shown.succeeded else shown.outcome.name.lower().replace("_", " ")
    ball = ball_text(shown.norm, shown.eps)
    figure.suptitle(f"{short_name(shown.victim, 40)}: {shown.attack}{goal} ({ball}): {verdict}", fontsize=11)
    return figure


def classification_figure(seen: Classification) -> Figure:
    """The picture beside bars of its most likely labels."""
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    _picture(left, seen.pixels)
    _titled(left, short_name(seen.victim, 40), seen)
    names = [short_name(label) for label in reversed(seen.labels)]
    bars = right.barh(range(len(names)), [c or 0.0 for c in reversed(seen.confidences)], color="#4a6fa5")
    right.bar_label(bars, [percent(c) for c in reversed(seen.confidences)], padding=3, fontsize=9)
    right.set_yticks(range(len(names)), names, fontsize=9)
    right.set_xlim(0, 1.15)
    right.set_xticks([0, 0.5, 1], ["0", "50%", "100%"], fontsize=9)
    right.spines[["top", "right"]].set_visible(False)
    return figure


def amplification(largest: float) -> float:
    """The round factor that makes the largest change in [0, 1] visible without clipping it at black or white."""
    if largest <= 0:
        return 1.0
    room = 0.5 / largest + 1e-6
    fitting = [f for f in _FACTORS if f <= room]
    return float(fitting[-1]) if fitting else 0.5


def write_figure(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    """The figure, written to `path` where one is given.

    Raises:
        InputError: a suffix that matplotlib cannot write.
        PictureError: the folder is missing or the file cannot be written.
    """
    if path is None:
        return figure
    target = Path(os.path.expanduser(path))
    if not target.parent.is_dir():
        raise PictureError(
            f"cannot write {str(target)!r}: the folder {str(target.parent)!r} does not exist; create it first"
        )
    try:
        figure.savefig(target, dpi=150)
    except ValueError as cause:
        raise InputError(f"cannot write a figure as {target.name!r}: {cause}. Use .png, .svg or .pdf") from cause
    except OSError as cause:
        raise PictureError(f"cannot write {str(target)!r}: {cause.strerror or cause}") from cause
    return figure


def _picture(axes: Axes, pixels: Tensor) -> None:
    image: NDArray[Any] = np.ascontiguousarray(pixels.detach().cpu().float().clamp(0, 1).permute(1, 2, 0).numpy())
    small = max(image.shape[:2]) <= _SMALL
    grey = image.shape[2] == 1
    axes.imshow(
        image[:, :, 0] if grey else image,
        cmap="gray" if grey else None,
        vmin=0,
        vmax=1,
        interpolation="nearest" if small else "antialiased",
    )
    axes.set_axis_off()


def _titled(axes: Axes, what: str, seen: Classification, colour: str = "black") -> None:
    answer = short_name(seen.label) + (f" ({percent(seen.confidence)})" if seen.confidence is not None else "")
    axes.set_title(f"{what}\n" + "\n".join(textwrap.wrap(answer, 34)), fontsize=10, color=colour)
