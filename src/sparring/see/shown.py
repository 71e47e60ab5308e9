"""One attacked picture: before, after, the distances between, the figure, and the file that still fools the victim."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparring.core.result import AttackResult, Outcome
from sparring.core.threat import Targeted, Untargeted
from sparring.images import write_png
from sparring.see.classification import Classification, percent, short_name
from sparring.see.radii import ball_text
from sparring.see.viewer import Viewer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Saved:
    """What became of an adversarial picture as a file, read back through the ordinary door.

    Attributes:
        path: the file.
        still_fools: whether the victim, given the file, still answers what the attack wanted.
        label: what it answers.
        confidence: how surely; None where it answers labels alone.
    """

    path: Path
    still_fools: bool
    label: str
    confidence: float | None


@dataclass(eq=False)
class Shown:
    """One attacked picture. Printing it tells what happened.

    Attributes:
        original: what the victim saw, float (c, h, w) in [0, 1]: after resize and crop, where its input begins.
        adversarial: the changed picture, of the same size; on the grid k/255 where the attack searched there.
        before, after: the victim's answers to the two.
        label: the label that the attack was to leave: the one given, or the victim's own answer.
        target: the label that it was to reach, or None.
        succeeded: whether the final re-check saw the goal reached.
        outcome: how it ended, where it did not succeed as well.
        distances: linf, l2, l1 and l0 of the change, in the victim's raw units; l0 counts the changed numbers.
        norm, eps: the ball of the search; eps is None where the smallest change was sought.
        attack: the attack's name.
        victim: the victim's name.
        seconds: of the whole call.
        result: the evidence, with `save` and `load` for its tensors.
        viewer: the victim with its preprocessing.
        saved: what the last `save` found, or None.
    """

    original: Tensor
    adversarial: Tensor
    before: Classification
    after: Classification
    label: str
    target: str | None
    distances: dict[str, float]
    norm: str
    eps: float | None
    seconds: float
    result: AttackResult
    viewer: Viewer
    saved: Saved | None = field(default=None)

    @property
    def succeeded(self) -> bool:
        """Whether the goal was reached, by the final re-check."""
        return bool(self.result.succeeded[0])

    @property
    def outcome(self) -> Outcome:
        """How it ended."""
        return self.result.outcomes[0]

    @property
    def attack(self) -> str:
        """The attack's name."""
        return self.result.attack

    @property
    def victim(self) -> str:
        """The victim's name."""
        return self.viewer.victim.name

    def told(self) -> str:
        """What happened, in one sentence."""
        now, label = repr(self.after.label), repr(self.before.label)
        if self.after.confidence is not None:
            now += f" ({percent(self.after.confidence)})"
        ball = f"{self.attack} ({ball_text(self.norm, self.eps)})"
        sentences = {
            Outcome.SUCCEEDED: f"{self.victim} took {label} for {now} after {ball}",
            Outcome.SURVIVED: f"{self.victim} withstood {ball}: it still answers {now}"
            + (f", not {self.target!r}" if self.target is not None else ""),
            Outcome.CLEAN_ERROR: f"nothing to attack: unchanged, {self.victim} takes it for {label}, which is wrong",
            Outcome.ALREADY_TARGET: f"nothing to attack: unchanged, {self.victim} takes it for {label}, the target",
            Outcome.NOT_APPLICABLE: f"nothing to attack: the target {self.target!r} is the label that the picture has",
            Outcome.OUT_OF_BUDGET: f"{self.victim} withstood {ball} for as many queries as were granted",
            Outcome.FAILED: f"{self.attack} claimed a success outside the legal changes; it does not count",
        }
        told = sentences[self.outcome]
        if self.outcome in (Outcome.SURVIVED, Outcome.OUT_OF_BUDGET) and self.eps is None and not self.distances["l0"]:
            told += "; the search never reached a wrong answer to come nearer from"
        return told

    def __repr__(self) -> str:
        size = ", ".join(
            f"{name} {value:{',.0f' if name == 'l0' else '.4g'}}" for name, value in self.distances.items()
        )
        counts = {kind: int(getattr(self.result, kind)[0]) for kind in ("forwards", "backwards", "queries")}
        rows = [
            self.told() + ".",
            f"before: {short_name(self.before.label)} {percent(self.before.confidence)}",
            f"after:  {short_name(self.after.label)} {percent(self.after.confidence)}",
            f"change: {size}",
            f"cost:   {self.seconds:.2f} s, " + ", ".join(f"{count} {kind}" for kind, count in counts.items() if count),
        ]
        return "\n".join(row.rstrip() for row in rows)

    def save(self, path: str | os.PathLike[str]) -> Saved:
        """Write the adversarial picture in 8 bits, read the file back as any other, and ask the victim again.

        Args:
            path: ends in .png, or in another lossless suffix.

        Returns:
            A `Saved`, which is kept as `saved` too. Its `still_fools` is measured on the file, never assumed.

        Raises:
            InputError: a lossy suffix.
            PictureError: the file cannot be written.
        """
        written = write_png(path, self.adversarial)
        pixels = self.viewer.pixels(written)
        answer = self.viewer.ask(self.viewer.raw(pixels))
        read = Classification.of(answer, self.viewer.victim, pixels, 1)
        y = self.result.y[:1].to(answer.labels.device)
        goal = Untargeted() if self.result.target is None else Targeted(int(self.result.target[0]))
        fools = bool(goal.achieved(answer, y)[0]) and self.outcome in (
            Outcome.SUCCEEDED,
            Outcome.SURVIVED,
            Outcome.OUT_OF_BUDGET,
        )
        self.saved = Saved(written, fools, read.label, read.confidence)
        return self.saved

    def figure(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """The original, the amplified difference and the adversarial picture side by side, with the victim's answers.

        Args:
            path: where to write it (.png, .svg, .pdf, ...); None only returns it.
        """
        from sparring.see.figures import attack_figure, write_figure

        return write_figure(attack_figure(self), path)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        saved = None if self.saved is None else {**asdict(self.saved), "path": str(self.saved.path)}
        return {
            "model": self.victim,
            "attack": self.attack,
            "norm": self.norm,
            "eps": self.eps,
            "label": self.label,
            "target": self.target,
            "succeeded": self.succeeded,
            "outcome": self.outcome.name.lower(),
            "told": self.told(),
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "distances": self.distances,
            "queries": int(self.result.queries[0]),
            "forwards": int(self.result.forwards[0]),
            "backwards": int(self.result.backwards[0]),
            "seconds": self.seconds,
            "params": self.result.params,
            "saved": saved,
        }


def distances_of(delta: Tensor) -> dict[str, float]:
    """linf, l2, l1 and l0 of one change, (1, ...); l0 counts the changed numbers."""
    flat = delta.detach().double().flatten()
    return {
        "linf": float(flat.abs().max()) if flat.numel() else 0.0,
        "l2": float(flat.norm()),
        "l1": float(flat.abs().sum()),
        "l0": float(torch.count_nonzero(flat)),
    }
