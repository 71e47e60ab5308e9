"""Attacks that fit an artifact once, on data and with gradients of their own, and then apply it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparring.attacks.universal.artifact import Artifact, Record
from sparring.core.attack import Attack
from sparring.core.balls import NORMS, Ball
from sparring.core.batch import Batch
from sparring.core.errors import CapabilityError, InputError, ThreatError
from sparring.core.network import Victim
from sparring.core.registry import attack_class
from sparring.core.result import AttackResult
from sparring.core.rng import KeyedRandom
from sparring.core.runner import Run
from sparring.core.space import Space
from sparring.core.surrogates import Ensemble
from sparring.core.threat import Access, Goal, Targeted, ThreatModel, Untargeted
from sparring.core.victim import BaseVictim, query_in_batches


@dataclass
class Lesson:
    """What a fit works on, and its meter.

    Attributes:
        victim: whose gradients are used.
        x, y: the data, on the victim's device.
        ball: the space, with one radius.
        goal: untargeted, or one label for all.
        rng: one keyed source, for the whole fit.
        forwards, backwards: passes of single inputs so far.
    """

    victim: Victim
    x: Tensor
    y: Tensor
    ball: Ball
    goal: Goal
    rng: KeyedRandom
    forwards: int = 0
    backwards: int = 0

    @property
    def eps(self) -> float:
        """The one radius."""
        return float(self.ball.eps)  # type: ignore[arg-type]

    def batches(self, epoch: int, size: int) -> tuple[Tensor, ...]:
        """The positions of one pass over the data, in a keyed order, `size` at a time."""
        order = self.rng.permutation(len(self.x), ("order", epoch))[0].to(self.x.device)
        return tuple(order.split(size))

    def point(self, rows: Tensor, change: Tensor) -> Tensor:
        """The inputs at `rows` with a change, inside the bounds; differentiable in the change."""
        return self.victim.bounds.like(self.x).clamp(self.x[rows] + change)

    def noise(self, rows: Tensor, stream: tuple[str | int, ...]) -> KeyedRandom | None:
        """Keyed noise for a forward of a stochastic victim."""
        return KeyedRandom(self.rng.seed, rows).fork(stream) if self.victim.traits.stochastic else None


class Fitted(Attack):
    """Base of the attacks that fit an artifact once, with gradients, and attack with it, without access.

    `fit` makes the artifact. The call fits on what the threat model says that the attacker has, `knowledge.data`, with
    the gradients of `knowledge.surrogates` (or of the victim itself under `access="gradients"`), once for each radius
    and target that the batch holds, and applies it: the outcome of an input depends on no other input that is attacked.
    """

    artifact: ClassVar[type[Artifact]]
    file: str | None

    def fit(
        self,
        victim: BaseVictim,
        data: tuple[Tensor, Any],
        threat: ThreatModel | Space,
        *,
        goal: Goal | int | None = None,
        seed: int = 0,
    ) -> Artifact:
        """Fit an artifact on data of one's own; what it succeeds in is measured on other data.

        Args:
            victim: whose gradients are used.
            data: inputs (n, ...) in raw units and labels (n,); labels None takes the victim's own answers.
            threat: a norm ball with one eps, bare or in a threat model.
            goal: beside a bare ball: one label for all inputs, or None for untargeted.
            seed: of all randomness.

        Raises:
            InputError, ThreatError, CapabilityError: what came, what was needed, what to do.
        """
        lesson = self._lesson(victim, data, threat, goal, seed)
        devices = [lesson.victim.device] if lesson.victim.device.type == "cuda" else []
        with lesson.victim.at_rest(), torch.random.fork_rng(devices=devices):
            tensors = self.learn(lesson)
        with torch.no_grad():
            few = query_in_batches(lesson.victim, lesson.x[:1], 1).scores
        target = lesson.goal.target if isinstance(lesson.goal, Targeted) else None
        record = Record(
            method=self.card.name,
            params={f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "file"},  # type: ignore[arg-type]
            space=lesson.ball.name,
            eps=lesson.eps,
            target=None if target is None else int(target),
            shape=tuple(lesson.x.shape[1:]),
            classes=0 if few is None else few.shape[1],
            samples=len(lesson.x),
            forwards=lesson.forwards,
            backwards=lesson.backwards,
            victim=lesson.victim.name,
            fingerprint=lesson.victim.fingerprint(),
            seed=seed,
        )
        return self.artifact(record, {name: t.detach().cpu() for name, t in tensors.items()}, lesson.victim.bounds)

    def learn(self, lesson: Lesson) -> dict[str, Tensor]:
        """The artifact's tensors; the victim is at rest and the global random state is forked."""
        raise NotImplementedError

    def __call__(
        self,
        victim: BaseVictim,
        x: Batch,
        y: Any,
        threat: ThreatModel | Space,
        *,
        goal: Goal | int | Tensor | None = None,
        seed: int = 0,
        ids: Tensor | None = None,
        batch_size: int | None = None,
        early_stop: bool = True,
    ) -> AttackResult:
        threat = ThreatModel.resolve(threat, goal)
        self._agree(victim, threat)
        how: dict[str, Any] = {"ids": ids, "batch_size": batch_size, "early_stop": early_stop}
        result = self._applied(victim, threat, seed)(victim, x, y, threat, seed=seed, **how)
        applied = {name: value for name, value in result.params.items() if name not in ("choose", "method")}
        return replace(result, params={**applied, **asdict(self)})  # type: ignore[call-overload]

    def search(self, run: Run) -> None:
        """Fit, and apply."""
        self._applied(run.victim, run.threat, run.rng.seed).search(run)

    def _applied(self, victim: BaseVictim, threat: ThreatModel, seed: int) -> Applied:
        """The attack with the artifacts of this call, each made when it is first needed."""
        name = self.card.name
        if self.file is not None:
            stored = Artifact.load(self.file)
            if stored.record.method != name:
                raise ThreatError(f"{self.file} holds an artifact of {stored.record.method}; {name} was asked for")
            return Applied(choose=lambda eps, target: stored, method=name)
        known = threat.knowledge
        if known.data is None or not (known.surrogates or threat.access is Access.GRADIENTS):
            raise ThreatError(
                f"{name} is fitted on data before it attacks. Fit it with sparring.attacks.{type(self).__name__}().fit("
                "victim, (x, y), sparring.Linf(8 / 255)), save that, and give file=; or say what the attacker has: "
                "knowledge=Knowledge(data=(x, y), surrogates=(...)), or access='gradients' to fit on the victim itself"
            )
        teacher = Ensemble.of(known.surrogates, known.ensemble) if known.surrogates else victim
        data, ball = known.data, NORMS[threat.space.name]

        @functools.cache
        def choose(eps: float, target: int | None) -> Artifact:
            return self.fit(teacher, data, ball(eps), goal=target, seed=seed)  # type: ignore[arg-type]

        return Applied(choose=choose, method=name)

    def _lesson(
        self,
        victim: BaseVictim,
        data: tuple[Tensor, Any],
        threat: ThreatModel | Space,
        goal: Goal | int | None,
        seed: int,
    ) -> Lesson:
        threat = ThreatModel.resolve(threat, goal)
        name, ball = self.card.name, threat.space
        if not isinstance(victim, Victim):
            raise CapabilityError(
                f"{name} is fitted with gradients, which {victim.name!r} does not offer; fit it on a substitute: "
                "sparring.attacks.train_substitute(victim, seeds)"
            )
        if not isinstance(ball, Ball) or ball.name not in self.card.spaces:
            raise ThreatError(f"{name} searches {', '.join(self.card.spaces)}; the threat is {ball!r}")
        if not isinstance(ball.eps, (int, float)) or ball.eps <= 0:
            raise ThreatError(f"{name} is fitted in one ball of eps > 0; the threat is {ball!r}")
        aim = threat.goal
        if not isinstance(aim, Untargeted) and not (isinstance(aim, Targeted) and isinstance(aim.target, int)):
            raise ThreatError(f"{name} is fitted for one goal, untargeted or one label for all; {aim!r} came")
        x, y = data
        if not isinstance(x, Tensor) or not len(x):
            raise InputError(f"{name} is fitted on inputs (n, ...) and labels (n,), at least one of each")
        own = y is None
        x, y = victim.admit(x, torch.zeros(len(x), dtype=torch.int64) if own else y)  # type: ignore[assignment]
        if isinstance(aim, Targeted):
            aim.check(len(x), victim.classes)
        if own:
            with victim.at_rest():
                y = query_in_batches(victim, x, 512).labels
        rng = KeyedRandom(seed, torch.zeros(1, dtype=torch.int64))
        eps = float(torch.tensor(ball.eps, dtype=torch.float32))  # as a radius per sample holds it: the same fit then
        return Lesson(victim, x, y, NORMS[ball.name](eps), aim, rng)


@dataclass
class Changed:
    """The changed inputs, (m, ...)."""

    x: Tensor


@dataclass(frozen=True, kw_only=True)
class Applied(Attack):
    """An attack that applies artifacts and sees nothing of the victim.

    Args:
        choose: the artifact for a radius and a target (None for untargeted).
        method: the name of the attack that fitted them.
    """

    choose: Callable[[float, int | None], Artifact]
    method: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "card", attack_class(self.method).card)  # type: ignore[attr-defined]

    def search(self, run: Run) -> None:
        """Change every input, all of one radius and target together."""
        s = run.begin(Changed(run.x.clone()))
        radii = torch.as_tensor(run.space.eps, dtype=torch.float64).expand(len(run.x)).tolist()
        targets = run.goal.of(run.y).tolist() if isinstance(run.goal, Targeted) else [None] * len(radii)
        keys = list(zip(radii, targets, strict=True))
        for eps, target in dict.fromkeys(keys):
            index = torch.tensor([i for i, key in enumerate(keys) if key == (eps, target)], device=run.x.device)
            if eps > 0:
                rows = run.x[index]
                artifact = self.choose(eps, target)
                artifact.admit(rows)
                with torch.no_grad():
                    s.x[index] = run.space.take(index).project(rows, rows + artifact.change(rows))
