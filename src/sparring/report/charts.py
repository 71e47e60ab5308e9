"""Curves as SVG: accuracy that falls in steps, with its interval as a band, drawn by arithmetic alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparring.evaluation.curves import Curve
from sparring.report.words import figure

# The drawing in its own units; the page scales it.
WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 66, 36, 18, 62


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where it lies in the drawing, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """One curve, ready to be drawn.

    Attributes:
        key: names its parts in the page, unique there.
        title: what it shows.
        says: the same for those who do not see it.
        x_label: what runs along x.
        line, band: path data.
        x_ticks, y_ticks: marks.
        marker: where the audit's own radius lies, and what it is called; None where it has none here.
        dot: where the headline number lies.
    """

    key: str
    title: str
    says: str
    x_label: str
    line: str
    band: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marker: Tick | None = None
    dot: tuple[float, float] | None = None

    @property
    def left_of_marker(self) -> bool:
        """Whether the marker's text must stand left of it to stay inside the drawing."""
        return self.marker is not None and self.marker.at > LEFT + (WIDTH - LEFT - RIGHT) * 0.6


def chart(
    curve: Curve, key: str, title: str, x_label: str, *, mark: tuple[float, str] | None = None, log: bool = False
) -> Chart:
    """Lay out one curve.

    Args:
        curve: accuracy at ascending points; it keeps each value up to the next point.
        key: names its parts in the page.
        title: what it shows.
        x_label: what runs along x.
        mark: a point on x with its name, where a line and a dot are drawn.
        log: count x in decades from 1; what lies below 1 is drawn at the left edge.
    """
    x, y = curve.x, curve.accuracy
    last = float(x[-1]) if len(x) and x[-1] > 0 else 1.0
    dead = np.flatnonzero(y <= 0)
    if len(dead) and x[dead[0]] > 0:
        last = float(x[dead[0]])
    if mark is not None:
        last = max(last, mark[0])
    ticks = _decades(last) if log else _round_steps(last)
    end = max(last, ticks[-1]) if log else last * 1.04

    def across(value: float) -> float:
        share = math.log10(max(value, 1)) / math.log10(max(end, 10)) if log else value / end
        return LEFT + min(share, 1.0) * (WIDTH - LEFT - RIGHT)

    keep = x <= end
    places = [across(v) for v in x[keep].tolist()]
    line = _steps(places, y[keep], end=across(end))
    upper = _steps(places, curve.hi[keep], end=across(end))
    lower = _steps_back(places, curve.lo[keep], end=across(end))
    marker = dot = None
    if mark is not None:
        at = int(np.searchsorted(x, mark[0] * (1 + 1e-9), side="right")) - 1
        marker = Tick(across(mark[0]), mark[1])
        dot = (across(mark[0]), _up(float(y[max(at, 0)])))
    return Chart(
        key=key,
        title=title,
        says=_says(curve, x_label),
        x_label=x_label,
        line=line,
        band=f"{upper} {lower} Z",
        x_ticks=tuple(Tick(across(v), figure(v)) for v in ticks if v <= end * (1 + 1e-9)),
        y_ticks=tuple(Tick(_up(v), f"{v:.0%}") for v in (0.0, 0.25, 0.5, 0.75, 1.0)),
        marker=marker,
        dot=dot,
    )


def _says(curve: Curve, x_label: str) -> str:
    if not len(curve.x):
        return "No points."
    ends = [(float(curve.x[i]), float(curve.accuracy[i])) for i in (0, -1)]
    return (
        f"Accuracy falls from {ends[0][1]:.1%} at {figure(ends[0][0])} to {ends[1][1]:.1%} at {figure(ends[1][0])} "
        f"({x_label}). The numbers are in the table below."
    )


def _up(share: float) -> float:
    return round(TOP + (1 - share) * (HEIGHT - TOP - BOTTOM), 2)


def _steps(places: Sequence[float], values: NDArray[np.float64], end: float) -> str:
    """A path that keeps each value until the next place."""
    if not places:
        return f"M{LEFT} {_up(1)}"
    parts = [f"M{places[0]:.2f} {_up(float(values[0]))}"]
    for place, value in zip(places[1:], values[1:].tolist(), strict=True):
        parts.append(f"H{place:.2f}V{_up(value)}")
    return "".join(parts) + f"H{end:.2f}"


def _steps_back(places: Sequence[float], values: NDArray[np.float64], end: float) -> str:
    """The same path from right to left, to close a band."""
    if not places:
        return f"L{LEFT} {_up(0)}"
    parts = [f"L{end:.2f} {_up(float(values[-1]))}"]
    for place, value in zip(reversed(places[1:]), reversed(values[:-1].tolist()), strict=True):
        parts.append(f"H{place:.2f}V{_up(value)}")
    return "".join(parts) + f"H{places[0]:.2f}"


def _round_steps(last: float) -> list[float]:
    """About five round numbers from 0 to last."""
    raw = last / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    return [round(i * step, 12) for i in range(int(last * 1.04 / step + 1e-9) + 1)]


def _decades(last: float) -> list[float]:
    return [10.0**i for i in range(max(1, math.ceil(math.log10(max(last, 1)))) + 1)]


def table_points(curve: Curve, asked: Sequence[float], most: int = 12) -> list[float]:
    """Points for a table: those asked for, and round ones up to where the curve ends.

    Args:
        curve: the whole curve.
        asked: points that must be there.
        most: about how many points altogether.
    """
    last = float(curve.x[-1]) if len(curve.x) else 0.0
    dead = np.flatnonzero(curve.accuracy <= 0)
    if len(dead):
        last = float(curve.x[dead[0]])
    wanted = {0.0, *(float(v) for v in asked if v <= max(last, min(asked, default=0.0)))}
    if last > 0:
        count = max(2, most - len(wanted))
        wanted |= {float(f"{last * i / count:.2g}") for i in range(1, count)} | {last}
    return sorted(wanted)
