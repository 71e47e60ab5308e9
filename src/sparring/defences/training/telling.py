"""What a training tells: its epochs, the events on the way, and what came out, with curves as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparring.core import events
from sparring.core.errors import InputError
from sparring.core.network import Victim


@dataclass(frozen=True)
class Epoch:
    """One epoch as it went: the mean training loss, the probe's numbers (None where nothing was held out), seconds.

    Attributes:
        epoch: from 1.
        loss: mean over the epoch's steps.
        clean, fgsm, pgd, cosine: see `sparring.defences.training.overfitting.Probe`.
        overfitted: the alarm of catastrophic overfitting.
        seconds: wall clock, without what was lost by an interruption.
    """

    epoch: int
    loss: float
    seconds: float
    clean: float | None = None
    fgsm: float | None = None
    pgd: float | None = None
    cosine: float | None = None
    overfitted: bool = False


@dataclass(frozen=True)
class TrainingProgress(events.Event):
    """Where a training is: `step` of `steps` optimiser steps done, the loss of the last one, its learning rate."""

    method: str
    step: int
    steps: int
    loss: float
    lr: float


@dataclass(frozen=True)
class EpochFinished(events.Event):
    """An epoch is over; `row.overfitted` is the alarm."""

    method: str
    row: Epoch
    epochs: int


@dataclass(frozen=True)
class Training:
    """What came out of `fit`.

    Attributes:
        victim: the trained victim, in eval mode, with the weights of epoch `chosen`.
        history: the epochs in order.
        chosen: the epoch whose weights were kept: the best PGD accuracy where the method crafts, else the last.
        method: the method's name.
    """

    victim: Victim
    history: tuple[Epoch, ...]
    chosen: int
    method: str = ""

    @property
    def overfitted(self) -> tuple[int, ...]:
        """The epochs at which the alarm of catastrophic overfitting rang."""
        return tuple(row.epoch for row in self.history if row.overfitted)

    def save_curves(self, path: str | Path) -> None:
        """Draw accuracies and loss by epoch, the alarms marked, into a picture file (PNG, SVG, PDF)."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        if not self.history:
            raise InputError("no epoch was trained, so there is no curve to draw")
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        epochs = [row.epoch for row in self.history]
        # lines that coincide show through each other
        for name, label, style in (("clean", "clean", "-"), ("fgsm", "FGSM", "--"), ("pgd", "PGD-10", ":")):
            values = [getattr(row, name) for row in self.history]
            if values[0] is not None:
                left.plot(epochs, values, style, marker="o", label=label)
        for epoch in self.overfitted:
            left.axvline(epoch, color="#b3261e", alpha=0.5, linestyle="--")
        left.set(xlabel="epoch", ylabel="accuracy on held-out samples", ylim=(0, 1), title=self.method)
        if left.get_lines():
            left.legend()
        right.plot(epochs, [row.loss for row in self.history], marker="o", color="#444444")
        right.set(xlabel="epoch", ylabel="training loss")
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.savefig(Path(path))
