"""Figures of what lies behind an answer: accuracy against eps, attributions, the plane around an input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sparring.core.errors import InputError
from sparring.see.classification import short_name
from sparring.see.figures import _picture

if TYPE_CHECKING:
    from sparring.core.result import AttackResult
    from sparring.see.decision_map import DecisionMap
    from sparring.see.saliency import Saliency

# distinguishable also without full colour vision (Okabe and Ito's palette, the input's own class first)
_COLOURS = ("#cfe8f3", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#f0e442", "#0072b2", "#999999")


def curve_plot(named: Mapping[str, AttackResult]) -> Figure:
    """Accuracy against eps, a line for each result; all in one norm and without a limit."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    curves = {name: r.curve() for name, r in named.items()}
    far = max((float(eps[-1]) for eps, _ in curves.values()), default=0.0) * 1.05 or 1.0
    for name, (eps, accuracy) in curves.items():
        axes.step(
            [*eps.tolist(), far],
            [*accuracy.tolist(), float(accuracy[-1])],
            where="post",
            label=f"{name}",
            linewidth=1.6,
        )
    axes.set_xlim(0, far)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(f"eps ({next(iter(named.values())).space.split('(')[0].lower()}, in the victim's raw units)")
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title=f"n = {', '.join(str(n) for n in sorted({len(r) for r in named.values()}))}")
    return figure


def saliency_figure(seen: Saliency, most: int) -> Figure:
    """Inputs above, attributions below."""
    if seen.x.ndim != 4 or seen.x.shape[1] not in (1, 3):
        raise InputError(
            f"the inputs have shape {tuple(seen.x.shape)}; a figure needs pictures of 1 or 3 channels, (n, c, h, w)"
        )
    n = min(most, len(seen.x))
    if n < 1:
        raise InputError("there is no input to show")
    figure = Figure(figsize=(2.2 * n + 0.6, 4.7), layout="constrained")
    rows = figure.subplots(2, n, squeeze=False)
    lo, hi = seen.x.amin(), seen.x.amax()
    for i in range(n):
        _picture(rows[0][i], (seen.x[i] - lo) / (hi - lo).clamp(min=1e-12))
        rows[0][i].set_title(f"class {int(seen.labels[i])}", fontsize=10)
        heat = seen.values[i].sum(0).cpu()
        # the few largest elements would leave all others white
        top = float(torch.quantile(heat.abs().flatten(), 0.99)) or float(heat.abs().max()) or 1.0
        shown = rows[1][i].imshow(heat.numpy(), cmap="RdBu_r", vmin=-top, vmax=top)
        rows[1][i].set_axis_off()
    bar = figure.colorbar(shown, ax=rows[1].tolist(), ticks=[-top, 0, top], shrink=0.8)
    bar.ax.set_yticklabels(["against", "0", "for"], fontsize=9)
    figure.suptitle(f"{short_name(seen.victim, 40)}: {seen.method}", fontsize=11)
    return figure


def map_figure(seen: DecisionMap) -> Figure:
    """Regions in colours, the boundary of the input's class, and the marks."""
    classes, counts = seen.labels.unique(return_counts=True)
    order = [seen.label, *(c for c in classes[counts.argsort(descending=True)].tolist() if c != seen.label)]
    shown = order[: len(_COLOURS) - 1]
    place = torch.full((int(max(int(classes.max()), seen.label)) + 1,), len(shown), dtype=torch.int64)
    place[torch.tensor(shown)] = torch.arange(len(shown))
    figure = Figure(figsize=(6.6, 4.6), layout="constrained")
    axes = figure.subplots()
    reach = float(seen.reach[-1])
    colours = [*_COLOURS[: len(shown)], _COLOURS[-1]]
    axes.imshow(
        place[seen.labels.cpu()].numpy(),
        origin="lower",
        extent=(-reach, reach, -reach, reach),
        cmap=ListedColormap(colours),
        norm=BoundaryNorm(np.arange(len(colours) + 1) - 0.5, len(colours)),
        interpolation="nearest",
    )
    if seen.margins is not None and bool((seen.margins > 0).any()) and bool((seen.margins < 0).any()):
        at = seen.reach.numpy()
        axes.contour(at, at, seen.margins.cpu().numpy(), levels=[0.0], colors="black", linewidths=1.2)
    axes.plot(0, 0, "o", color="black", markersize=6)
    axes.annotate("input", (0, 0), xytext=(6, 6), textcoords="offset points", fontsize=9)
    for number, (u, v) in enumerate(seen.marks):
        axes.plot(u, v, "x", color="black", markersize=7, markeredgewidth=2)
        name = "adversarial" if number == 0 else "second"
        axes.annotate(name, (u, v), xytext=(6, 6), textcoords="offset points", fontsize=9)
    told = [str(c) if seen.names is None else short_name(seen.names[c]) for c in shown]
    patches = [Patch(color=colour, label=name) for colour, name in zip(colours, told, strict=False)]
    if len(order) > len(shown):
        patches.append(Patch(color=colours[-1], label=f"{len(order) - len(shown)} others"))
    axes.legend(handles=patches, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    axes.set_xlabel("along the adversarial direction (Euclidean length)")
    axes.set_ylabel("along the second one" if len(seen.marks) > 1 else "along a random direction")
    return figure
