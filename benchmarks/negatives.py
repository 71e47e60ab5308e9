"""Negative images: accuracy on them and on clean ones against how many were trained on (Hosseini et al. 2017)."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import sparring as sp
from benchmarks.defences import training_set
from benchmarks.harness import seeded, table
from benchmarks.zoo import load_zoo
from sparring.core.victim import query_in_batches
from sparring.defences.training import Negatives, Settings, fit

IMAGES = 60_000
COUNTS = (0, 10, 100, 1_000, 10_000, IMAGES)
PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "negatives.png"
START = Settings(epochs=2, batch_size=128, lr=2e-3, held_out=0)
TUNE = Settings(epochs=1, batch_size=128, lr=1e-3, held_out=0)


def negatives(rounds: int) -> str:
    """The table, and the picture in the documentation."""
    with seeded():
        fresh = sp.Victim(load_zoo().small_cnn(1, 7).eval(), name="two convolutions")
    data, test = training_set("mnist", IMAGES), load_zoo().data("mnist")
    start = fit(fresh, data, "standard", settings=START).victim
    found: dict[str, list[tuple[float, float]]] = {"fine-tuned": [], "from scratch": []}
    for count in COUNTS:
        for way, (victim, settings) in {"fine-tuned": (start, TUNE), "from scratch": (fresh, START)}.items():
            trained = fit(victim, data, Negatives(count=count), settings=settings).victim
            found[way].append(accuracies(trained, *test))
            print(count, way, found[way][-1], flush=True)
    alone = accuracies(fit(fresh, data, Negatives(only=True), settings=START).victim, *test)
    draw(found)
    before = accuracies(start, *test)
    rows = [["none (the start)", *_percent(before), "", ""]]
    rows += [
        [f"{count:,}", *_percent(tuned), *_percent(scratch)]
        for count, tuned, scratch in zip(COUNTS, found["fine-tuned"], found["from scratch"], strict=True)
    ]
    rows.append([f"{IMAGES:,}, and no clean image", "", "", *_percent(alone)])
    return (
        f"MNIST, {IMAGES:,} clean training images and the negatives 1 - x of the first of them, accuracy on {len(test[0]):,} "
        f"test images and on their negatives; the two-convolution network, {START.epochs} epochs from scratch, "
        f"{TUNE.epochs} of fine-tuning\n\n![accuracy against negatives](pictures/negatives.png)\n\n"
        + table(["negatives", "fine-tuned: clean", "negative", "from scratch: clean", "negative"], rows)
    )


def accuracies(victim: sp.Victim, x: Tensor, y: Tensor) -> tuple[float, float]:
    """On the images and on their negatives."""
    return tuple(float((query_in_batches(victim, z, 500).labels == y).float().mean()) for z in (x, 1 - x))  # type: ignore[return-value]


def draw(found: dict[str, list[tuple[float, float]]]) -> None:
    """Both accuracies against the number of negatives."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    places = torch.arange(len(COUNTS)).tolist()
    panes = figure.subplots(1, 2, sharey=True)
    for pane, (way, rates) in zip(panes, found.items(), strict=True):
        for place, (label, colour) in enumerate((("clean", "#444444"), ("negative", "#b3261e"))):
            pane.plot(places, [100 * rate[place] for rate in rates], marker="o", color=colour, label=label)
        pane.set(title=way, xlabel="negatives in training", ylim=(0, 102))
        pane.set_xticks(places, [f"{count:,}" for count in COUNTS])
        pane.grid(alpha=0.25)
    panes[0].set_ylabel("accuracy on test images (%)")
    panes[0].legend(loc="lower right")
    figure.savefig(PICTURE, dpi=110)


def _percent(rates: tuple[float, float]) -> tuple[str, str]:
    return f"{rates[0]:.1%}", f"{rates[1]:.1%}"
