"""Accuracy against eps, drawn."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparring.core.errors import InputError
from sparring.core.result import AttackResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curve_figure(
    results: AttackResult | Mapping[str, AttackResult], path: str | os.PathLike[str] | None = None
) -> Figure:
    """Accuracy against eps of attacks that seek the smallest change, a line each: what `result.curve()` holds, drawn.

    Args:
        results: one result, or several by name, all in one norm.
        path: where to write it (.png, .svg, .pdf, ...); None only returns it.

    Raises:
        InputError: no result, results of a fixed eps, or of different norms.
    """
    named = {results.attack: results} if isinstance(results, AttackResult) else dict(results)
    if not named:
        raise InputError("no result came; at least one is needed for a curve")
    norms = {r.space.split("(")[0] for r in named.values()}
    if len(norms) > 1:
        raise InputError(f"the results are in {', '.join(sorted(norms))}; one axis needs one norm")
    for name, r in named.items():
        if r.limit is not None:
            raise InputError(
                f"{name!r} was searched in {r.space}: it says nothing beyond its eps. Attack without one, as in sparring.L2()"
            )
    from sparring.see.figures import write_figure
    from sparring.see.plots import curve_plot

    return write_figure(curve_plot(named), path)
