"""What every attack is: a frozen dataclass of hyper-parameters with one call, which checks at the door and re-checks
at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import numbers
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparring.core.batch import Batch, own, put, take
from sparring.core.errors import CapabilityError, InputError, ThreatError, VanishedGradientWarning
from sparring.core.network import Victim
from sparring.core.outputs import Prediction
from sparring.core.registry import Card
from sparring.core.result import AttackResult, Outcome
from sparring.core.rng import KeyedRandom, content_ids
from sparring.core.runner import Run, Terms, progress_to
from sparring.core.space import Bounds, Space
from sparring.core.threat import Access, Goal, Targeted, ThreatModel
from sparring.core.victim import BaseVictim, query_in_batches

# A random victim is broken when most of so many fresh draws of its noise are (none of them seen by the search).
VOTES = 10
# A smallest change that rounding has undone is looked at again, longer by these shares.
FARTHER = (1e-4, 1e-3)
# What makes a victim of a model, in words.
_VICTIMS = (
    "sparring.Victim(net) takes PyTorch networks, sparring.victims.SklearnVictim(model) scikit-learn's models, "
    "sparring.BlackBox(function) whatever can only be asked"
)


class Attack:
    """Base of all attacks: subclasses are frozen dataclasses that implement `search(run)`.

    A subclass keeps no model, mode or state; hyper-parameters are its fields, and everything else comes with the call.
    """

    card: ClassVar[Card]

    def search(self, run: Run) -> None:
        """Look for adversarial inputs; the run records what is found (see `sparring.core.runner`)."""
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
        """Attack a batch.

        Args:
            victim: the model under test.
            x: inputs in the victim's raw units, (n, ...), or a list where the victim takes texts or documents.
            y: true labels, int64 (n,); None takes the victim's own answers to x.
            threat: a `ThreatModel`, or a bare space such as `sparring.Linf(8 / 255)`.
            goal: beside a bare space: `Targeted(label)`, a label or labels (n,), or None for untargeted.
            seed: of all randomness, which is keyed by (seed, sample id).
            ids: int64 (n,); None hashes each input's content, so that order and batching do not matter.
            batch_size: samples attacked at once; None chooses by the input's size. Outcomes do not depend on it.
            early_stop: stop a sample at its first success, and do not attack what is wrong already. False attacks every
                sample to the end, for adversarial training and for crafting transferable inputs.

        Returns:
            An `AttackResult` on x's device.

        Raises:
            InputError, ThreatError, CapabilityError: what came, what was needed, what to do.
        """
        started = time.perf_counter()
        threat = ThreatModel.resolve(threat, goal)
        access = self._agree(victim, threat)
        self._check_numbers()
        home = x.device if isinstance(x, Tensor) else torch.device("cpu")
        size = batch_for(x) if batch_size is None else batch_size
        if size < 1:
            raise InputError(f"batch_size is {batch_size}; a whole number >= 1 is needed, or None")
        own_labels = y is None
        x, y = victim.admit(x, torch.zeros(len(x), dtype=torch.int64) if own_labels else y)
        with contextlib.ExitStack() as rest:
            # whoever evaluates in inference mode wants adversarial inputs all the same
            rest.enter_context(torch.inference_mode(False))
            x = x.clone() if isinstance(x, Tensor) and x.is_inference() else x
            for model in (victim, *threat.knowledge.surrogates):
                rest.enter_context(model.at_rest())
            if own_labels and len(x):
                y = query_in_batches(victim, x, size).labels
            space = threat.space.bound(x, victim.bounds)
            if isinstance(threat.goal, Targeted):
                threat.goal.check(len(y), victim.classes)
            threat = replace(threat, space=space)
            ids = content_ids(x) if ids is None else _check_ids(ids, len(y))
            rng = KeyedRandom(seed, ids.to(y.device))
            terms = Terms(access, self.card.minimal, early_stop, size, len(y), space)
            parts = []
            for start in range(0, max(1, len(y)), size):
                index = torch.arange(start, min(len(y), start + size), device=y.device)
                part = _threat_for(threat, index)
                tell = progress_to(self.card.name, len(y), start)
                parts.append(self._batch(victim, take(x, index), y[index], part, rng.take(index), terms, tell))
        result = AttackResult.concat(parts)
        params = {**dataclasses.asdict(self), "seed": seed, "goal": threat.goal.name, "access": str(access)}  # type: ignore[call-overload]
        params = {k: v if isinstance(v, (int, float, str, bool, type(None))) else repr(v) for k, v in params.items()}
        return replace(result, seconds=time.perf_counter() - started, params=params).to(home)

    def craft(
        self,
        victim: BaseVictim,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel | Space,
        *,
        goal: Goal | int | Tensor | None = None,
        seed: int = 0,
    ) -> Tensor:
        """The last point of a search from every sample, (n, ...), for adversarial training: every step counts there.

        One batch in eval mode, no sample ends early, and neither a clean pass nor a re-check is spent: nothing says
        what succeeded. Samples whose true label is the target come back as they are. Inputs must be inside the bounds.
        """
        threat = ThreatModel.resolve(threat, goal)
        access = self._agree(victim, threat)
        self._check_numbers()
        index = threat.goal.applicable(y).nonzero().squeeze(1).to(y.device)
        crafted = own(x)
        with contextlib.ExitStack() as rest:
            for model in (victim, *threat.knowledge.surrogates):
                rest.enter_context(model.at_rest())
            part = _threat_for(replace(threat, space=threat.space.bound(x, victim.bounds)), index)
            # no samples named: a network in training is crafted against in its own precision unless the attack insists
            terms = Terms(access, self.card.minimal, early_stop=False, batch_size=max(1, len(index)))
            view = self._view(victim, part, access)
            tried = x[index]
            run = Run(victim, view, tried, y[index], part, KeyedRandom(seed, content_ids(tried)), terms)
            self._search(run)
        put(crafted, index, run.last)
        return crafted

    def _check_numbers(self) -> None:
        """Refuse hyper-parameters under which nothing would be searched: what then stands says nothing."""
        for name in ("steps", "restarts", "rounds", "classes"):
            value = getattr(self, name, None)
            if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1):
                raise InputError(f"{name} of {self.card.name} is {value!r}; a whole number is needed, {name} >= 1")
        length = getattr(self, "step_size", None)
        if isinstance(length, (int, float)) and not (length > 0 and math.isfinite(length)):
            raise InputError(f"step_size of {self.card.name} is {length!r}; a finite number above 0 is needed")

    def _agree(self, victim: BaseVictim, threat: ThreatModel) -> Access:
        """The access of this run, after holding the card, the threat model and the victim against each other."""
        if not isinstance(victim, BaseVictim):
            cure = f"sparring.load({victim!r})" if isinstance(victim, str) else _VICTIMS
            raise InputError(f"the victim is a {type(victim).__name__}; a victim is needed: {cure}")
        card = self.card
        access = card.access if threat.access is None else Access.parse(threat.access)
        transfer = access is Access.NOTHING and bool(threat.knowledge.surrogates)
        if access < card.access and not transfer:
            raise ThreatError(
                f"{card.name} needs access to {card.access}; the threat model grants {access}"
                + ("; with knowledge.surrogates it can attack those and transfer" if access is Access.NOTHING else "")
            )
        access = access if transfer or card.access is Access.GRADIENTS else card.access
        if not transfer and (not card.needs or card.access < Access.GRADIENTS):
            victim.require(card.access, card.name)
        for need in card.needs:
            try:
                victim.capability(need)
            except CapabilityError as why:
                raise CapabilityError(f"{card.name} needs the {need.replace('_', ' ')} of the victim; {why}") from why
        if threat.space.name not in card.spaces:
            raise ThreatError(f"{card.name} searches {', '.join(card.spaces)}; the threat is {threat.space!r}")
        if threat.goal.name in ("untargeted", "targeted") and threat.goal.name not in card.goals:
            raise ThreatError(f"{card.name} is {' and '.join(card.goals)} only; the goal is {threat.goal.name}")
        if threat.space.limit is None and not card.minimal:
            raise ThreatError(
                f"{card.name} needs a limit and {threat.space!r} has none: give its space one, as in sparring.Linf(8 / 255). "
                "Attacks that seek the smallest change: `sparring attacks --minimal`"
            )
        return access

    def _batch(
        self,
        victim: BaseVictim,
        x: Batch,
        y: Tensor,
        threat: ThreatModel,
        rng: KeyedRandom,
        terms: Terms,
        tell: Callable[[int, int, int], None] | None,
    ) -> AttackResult:
        n = len(y)
        if (
            victim.traits.stochastic
        ):  # a foreign random victim draws from the global source, which is forked and seeded here
            torch.manual_seed(rng.number("victim"))  # noqa: TID251
        clean = victim.query(x, rng.fork("clean") if victim.traits.stochastic else None) if n else _no_answers(y.device)
        outcome = _first_outcomes(clean, y, threat.goal)
        tried = outcome == Outcome.SURVIVED
        if not terms.early_stop:  # training wants a perturbation of every input that has a goal at all
            tried = threat.goal.applicable(y).to(tried.device)
        index = tried.nonzero().squeeze(1)
        adversarial, final = own(x), clean
        meters = torch.zeros(3, n, dtype=torch.int64, device=y.device)
        if len(index):
            part = _threat_for(threat, index)
            run = Run(
                victim, self._view(victim, part, terms.access), take(x, index), y[index], part, rng.take(index), terms
            )
            run.on_step = tell
            self._search(run)
            self._mind_vanished(run)
            found, answers, result = recheck(run)
            put(adversarial, index, found)
            final = _merge(clean, answers, index)
            keep = outcome[index] == Outcome.SURVIVED
            outcome[index[keep]] = result[keep]
            ledger = run.ledger
            spent = run.oracle.spent if run.oracle is not None else torch.zeros_like(ledger.forwards)
            meters[:, index] = torch.stack([spent, ledger.forwards, ledger.backwards])
            if run.oracle is not None and threat.queries is not None:
                outcome[(outcome == Outcome.SURVIVED) & (meters[0] >= threat.queries)] = Outcome.OUT_OF_BUDGET
        limit = threat.space.limit
        return AttackResult(
            attack=self.card.name,
            space=repr(threat.space),
            original=x,
            adversarial=adversarial,
            y=y,
            target=threat.goal.of(y) if isinstance(threat.goal, Targeted) else None,
            outcome=outcome,
            distance=threat.space.cost(x, adversarial),
            limit=None if limit is None else torch.as_tensor(limit, device=y.device).expand(n).clone(),
            queries=meters[0],
            forwards=meters[1],
            backwards=meters[2],
            clean=clean,
            final=final,
            ids=rng.ids,
        )

    def _search(self, run: Run) -> None:
        """Every restart; later ones meet only what is still unbroken."""
        restarts = int(getattr(self, "restarts", 1))
        for restart in range(restarts):
            with run.searching(restart, more=restart + 1 < restarts):
                if len(run.rows) and (run.oracle is None or run.oracle.budget != 0):
                    self.search(run)

    def _mind_vanished(self, run: Run) -> None:
        """Warn where most samples stand because no gradient led anywhere: their survival is no evidence."""
        if run.access is Access.GRADIENTS and 2 * int((run.vanished & ~run.ledger.found).sum()) > len(run.vanished):
            warnings.warn(
                f"the gradient of {run.victim.name!r} is zero or no number at most inputs, so that {self.card.name} could not "
                "move them: that they stand says nothing. Give the logits where the network ends in probabilities or "
                "their logarithms, climb a margin (loss='margin') where cross-entropy has saturated, put a differentiable "
                "surrogate before what rounds (attack_view(bpda=True)), or search without gradients: square",
                VanishedGradientWarning,
                stacklevel=4,
            )

    def _view(self, victim: BaseVictim, threat: ThreatModel, access: Access) -> Victim | None:
        """Whose gradients the search sees: the victim's own, the surrogates', or nobody's."""
        if access is Access.NOTHING and threat.knowledge.surrogates:
            from sparring.core.surrogates import Ensemble

            return Ensemble.of(threat.knowledge.surrogates, threat.knowledge.ensemble)
        return victim if access is Access.GRADIENTS and isinstance(victim, Victim) else None


def recheck(run: Run) -> tuple[Batch, Prediction, Tensor]:
    """The last pass: every candidate through the true victim, the bounds and the space.

    Returns:
        The candidates kept, the victim's answers to them, and the outcome of each sample, int64 (n,).
    """
    ledger = run.ledger
    x, y, threat, rng = run.whole
    first = own(run.last)
    if not run.keeps_last:
        rows = ledger.found.nonzero().squeeze(1)
        put(first, rows, take(ledger.best, rows))
    good, answers, illegal = _judge(run, x, first, y, threat, rng)
    for again, other in _instead(run):
        again = again[~good[again]]
        if not len(again):
            continue
        points = other(again)
        better, newer, _ = _judge(run, take(x, again), points, y[again], _threat_for(threat, again), rng.take(again))
        kept, chosen = better.nonzero().squeeze(1), again[better]
        put(first, chosen, take(points, kept))
        answers = _merge(answers, newer.take(kept), chosen)
        good[chosen] = True
    outcome = torch.full_like(y, int(Outcome.SURVIVED))
    outcome[illegal & ~good] = int(Outcome.FAILED)
    outcome[good] = int(Outcome.SUCCEEDED)
    return first, answers, outcome


def _instead(run: Run) -> Iterator[tuple[Tensor, Callable[[Tensor], Batch]]]:
    """What to look at where the first candidate does not stand: whose, int64, and from some of these to their points."""
    ledger, (x, _, threat, _) = run.ledger, run.whole
    found = ledger.found.nonzero().squeeze(1)
    if run.keeps_last:  # an earlier point succeeded
        yield found, functools.partial(take, ledger.best)
    # labels did not tell how sure the nearest success is
    if ledger.spare is not None:
        limit = torch.inf if threat.space.limit is None else threat.space.limit
        spared = torch.isfinite(ledger.spare_cost) & (ledger.spare_cost <= limit)
        yield spared.nonzero().squeeze(1), functools.partial(take, ledger.spare)
    # neither do scores that vanish on the boundary, as a binary victim's do
    seen = run.smallest and run.access is Access.GRADIENTS and not run.victim.traits.stochastic
    if seen and isinstance(x, Tensor) and isinstance(ledger.best, Tensor):
        for farther in FARTHER:
            yield found, functools.partial(_past, x, ledger.best, 1.0 + farther, getattr(threat.space, "bounds", None))


def _past(x: Tensor, best: Tensor, share: float, bounds: Bounds | None, rows: Tensor) -> Tensor:
    """The best successes of some samples moved away from their inputs, within the bounds."""
    points: Tensor = x[rows] + share * (best[rows] - x[rows])
    return points if bounds is None else bounds.clamp(points)


def _judge(
    run: Run, x: Batch, x_adv: Batch, y: Tensor, threat: ThreatModel, rng: KeyedRandom
) -> tuple[Tensor, Prediction, Tensor]:
    """Which candidates truly succeed, the answers to them, and which reach the goal by leaving the space."""
    victim = run.victim
    if victim.traits.stochastic:
        tally = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        for vote in range(VOTES):
            answers = victim.query(x_adv, rng.fork(("recheck", vote)))
            tally += threat.goal.achieved(answers, y).long()
        reached = tally * 2 > VOTES
    else:
        answers = victim.query(x_adv)
        reached = threat.goal.achieved(answers, y)
    legal = threat.space.contains(x, x_adv).to(reached.device)
    within = legal
    limit = threat.space.limit
    if run.smallest and limit is not None and not bool(legal.all()):
        # a smallest-change search that ends outside eps has not failed: it has survived
        unlimited = getattr(threat.space, "without_limit", None)
        within = unlimited().contains(x, x_adv).to(reached.device) if unlimited is not None else legal
    return reached & legal, answers, reached & ~within


def batch_for(x: Batch) -> int:
    """A batch size that keeps a batch of inputs near four million numbers, between 1 and 512."""
    if not isinstance(x, Tensor) or not len(x):
        return 512
    return max(1, min(512, 2**22 // max(1, x[0].numel())))


def _first_outcomes(clean: Prediction, y: Tensor, goal: Goal) -> Tensor:
    """Outcomes before any change: SURVIVED stands for "to be attacked"."""
    outcome = torch.full_like(y, int(Outcome.SURVIVED))
    wrong = clean.labels != y
    if clean.accepted is not None:
        wrong = wrong | ~clean.accepted
    outcome[wrong] = int(Outcome.CLEAN_ERROR)
    if isinstance(goal, Targeted):
        outcome[goal.achieved(clean, y)] = int(Outcome.ALREADY_TARGET)
    outcome[~goal.applicable(y).to(outcome.device)] = int(Outcome.NOT_APPLICABLE)
    return outcome


def _threat_for(threat: ThreatModel, index: Tensor) -> ThreatModel:
    """The threat model of the samples at `index`."""
    knowledge = threat.knowledge
    if knowledge.starts is not None:
        knowledge = replace(knowledge, starts=take(knowledge.starts, index))
    return replace(threat, goal=threat.goal.take(index), space=threat.space.take(index), knowledge=knowledge)


def _merge(base: Prediction, new: Prediction, index: Tensor) -> Prediction:
    """`base` with the answers at `index` replaced."""
    parts = []
    for old, fresh in ((base.labels, new.labels), (base.scores, new.scores), (base.accepted, new.accepted)):
        if old is not None and fresh is not None:
            old = old.clone()
            old[index] = fresh.to(old.dtype)
        parts.append(old)
    return Prediction(*parts)  # type: ignore[arg-type]


def _no_answers(device: torch.device) -> Prediction:
    return Prediction(torch.zeros(0, dtype=torch.int64, device=device))


def _check_ids(ids: Tensor, n: int) -> Tensor:
    ids = torch.as_tensor(ids)
    if ids.shape != (n,) or ids.is_floating_point():
        raise InputError(
            f"ids have shape {tuple(ids.shape)} and dtype {ids.dtype}; one whole number per sample is needed, ({n},)"
        )
    return ids.to(torch.int64)
