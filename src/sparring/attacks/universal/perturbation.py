"""Universal perturbations: one change for all inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks.minimum_norm import DeepFool
from sparring.attacks.universal.artifact import Artifact
from sparring.attacks.universal.fitted import Fitted, Lesson
from sparring.core.balls import L2
from sparring.core.errors import InputError, ThreatError
from sparring.core.losses import LOSSES
from sparring.core.registry import Card, attack
from sparring.core.threat import Access, Targeted


class UniversalPerturbation(Artifact):
    """One change, `tensors["change"]` (1, ...), that is added to every input."""

    def change(self, x: Tensor) -> Tensor:
        """The change, (1, ...)."""
        change = self.tensors["change"]
        if tuple(change.shape) != (1, *self.record.shape):
            raise InputError(f"the change has shape {tuple(change.shape)}; (1, *{self.record.shape}) is needed")
        return change.to(x)


@attack(
    Card(
        name="universal",
        title="Universal perturbation: one change for all inputs",
        paper="Moosavi-Dezfooli et al. 2017, Universal Adversarial Perturbations, arXiv:1610.08401; by stochastic "
        "gradients: Shafahi et al. 2020, Universal Adversarial Training, arXiv:1811.11304",
        access=Access.NOTHING,
        spaces=("linf", "l2"),
        cost="fitted once: epochs x samples x (forward + backward), or up to epochs x samples runs of DeepFool; nothing after",
        caveats="Fitted on data and with gradients of its own (knowledge.data, and knowledge.surrogates or access="
        "'gradients'), or read from a file. Its success says little about attacks that see the single input. Measure it "
        "on inputs that it was not fitted on.",
        floor={"linf": 0.5, "l2": 0.6},
        aliases=("uap",),
    )
)
@dataclass(frozen=True, kw_only=True)
class Universal(Fitted):
    """A universal perturbation v, ||v|| <= eps, which changes the label of most inputs.

    form "sgd": v <- P(v + a_t * steepest(sum over a mini-batch of grad min(J(x + v, y), cap))), with a step a_t that
    falls to zero linearly. The cap keeps inputs that are fooled already from drowning the others.

    form "deepfool": for each x that v does not fool yet, v <- P(v + r), where r is DeepFool's way (in L2, as in
    the paper, whatever the ball) from x + v over the nearest boundary; passes over the data end when a share `rate` is
    fooled. Untargeted only.

    Args:
        form: "sgd" or "deepfool".
        epochs: passes over the data (at most).
        batch_size: inputs of a step of "sgd".
        step_size: a_0, in the victim's raw units; None takes eps / 4.
        cap: the largest cross-entropy that an input contributes to "sgd".
        rate: the share of fooled inputs at which "deepfool" ends.
        file: a saved artifact to apply; nothing is fitted then.
    """

    form: str = "sgd"
    epochs: int = 10
    batch_size: int = 64
    step_size: float | None = None
    cap: float = 9.0
    rate: float = 0.8
    file: str | None = None

    artifact = UniversalPerturbation

    def learn(self, lesson: Lesson) -> dict[str, Tensor]:
        """The perturbation, (1, ...)."""
        if self.epochs < 1 or self.batch_size < 1:
            raise InputError(f"epochs is {self.epochs} and batch_size {self.batch_size}; whole numbers >= 1 are needed")
        if self.form not in ("sgd", "deepfool"):
            raise InputError(f"form is {self.form!r}; it must be 'sgd' or 'deepfool'")
        return {"change": self._by_gradients(lesson) if self.form == "sgd" else self._by_deepfool(lesson)}

    def _by_gradients(self, lesson: Lesson) -> Tensor:
        """Mini-batch steepest ascent on the capped cross-entropy."""
        v = torch.zeros_like(lesson.x[:1])
        centre = torch.zeros_like(v)
        step = lesson.eps / 4 if self.step_size is None else self.step_size
        per_epoch = -(-len(lesson.x) // self.batch_size)
        for epoch in range(self.epochs):
            for t, rows in enumerate(lesson.batches(epoch, self.batch_size)):
                left = 1 - (epoch * per_epoch + t) / (self.epochs * per_epoch)
                grad = self._slope(lesson, rows, v, epoch)
                v = lesson.ball.project(centre, v + step * left * lesson.ball.steepest(grad))
        return v

    def _slope(self, lesson: Lesson, rows: Tensor, v: Tensor, epoch: int) -> Tensor:
        """The gradient of the capped losses of a mini-batch to the perturbation, (1, ...)."""
        y, leaf = lesson.y[rows], v.clone().requires_grad_(True)

        def capped(scores: Tensor) -> Tensor:
            return LOSSES["ce"](scores, y, lesson.goal).clamp(max=self.cap)

        with torch.enable_grad():
            losses, _ = lesson.victim.objective(lesson.point(rows, leaf), capped, lesson.noise(rows, ("fit", epoch)))
            total = losses.sum()
        lesson.forwards += len(rows)
        lesson.backwards += len(rows)
        grad: Tensor = torch.autograd.grad(total, leaf)[0]
        return grad

    def _by_deepfool(self, lesson: Lesson) -> Tensor:
        """DeepFool's smallest changes, gathered one input after another."""
        if isinstance(lesson.goal, Targeted):
            raise ThreatError("form 'deepfool' is untargeted only; form 'sgd' takes a target")
        v = torch.zeros_like(lesson.x[:1])
        centre, every = torch.zeros_like(v), torch.arange(len(lesson.x), device=v.device)
        before, nearest = self._labels(lesson, every, centre), DeepFool()
        for epoch in range(self.epochs):
            for row in lesson.batches(epoch, 1):
                if bool(self._labels(lesson, row, v) != before[row]):
                    continue
                x = lesson.point(row, v)
                found = nearest(lesson.victim, x, before[row], L2(), seed=lesson.rng.seed)
                lesson.forwards += int(found.forwards.sum()) + 2  # and the clean pass and the re-check
                lesson.backwards += int(found.backwards.sum())
                if bool(found.succeeded.all()):
                    v = lesson.ball.project(centre, v + (found.adversarial - x))  # type: ignore[operator]
            if float((self._labels(lesson, every, v) != before).double().mean()) >= self.rate:
                break
        return v

    @staticmethod
    def _labels(lesson: Lesson, rows: Tensor, change: Tensor) -> Tensor:
        """The victim's labels of the inputs at `rows` with a change, int64 (m,)."""
        parts = []
        with torch.no_grad():
            for part in rows.split(512):
                parts.append(lesson.victim.query(lesson.point(part, change), lesson.noise(part, ("label",))).labels)
        lesson.forwards += len(rows)
        return torch.cat(parts)
