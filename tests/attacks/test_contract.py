"""The contract: every registered attack, in every space and for every goal on its card, on one tiny trained victim.

A card's floor is what the attack reaches here, on `tiny.correct(12)`: the least success rate at `EPS` (twice that when
targeted), or for a minimal attack the largest median distance (twice that when targeted). To see an attack's numbers:

    PYTHONPATH=src:tests python -c "from attacks.test_contract import measure; measure('pgd')"
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
import tiny
from attacks.manifest import MANIFEST, PENDING, PROMISED
from sparring.core import arrangement, convolutions, nearby
from sparring.core.balls import NORMS, Ball, per_sample
from sparring.core.errors import InputError
from sparring.core.registry import Card, attack_cards, attack_class
from sparring.core.result import Outcome
from sparring.core.rng import KeyedRandom
from sparring.core.threat import Knowledge

EPS = {"linf": 0.15, "l2": 0.8, "l1": 4.0, "l0": 6.0}
QUERIES = 2000

# Hyper-parameters for this victim where the defaults are made for photographs; the contract holds for any.
SETTINGS: dict[str, dict[str, Any]] = {"advgan": {"epochs": 8, "width": 8}}
# What the quick runs take instead, for attacks whose loops have other names than `steps`.
QUICK: dict[str, dict[str, Any]] = {
    "advgan": {"epochs": 1, "width": 4},
    "universal": {"epochs": 2},
    "vmi-fgsm": {"neighbours": 3},
    "vni-fgsm": {"neighbours": 3},
}
# Attacks that are noise themselves, and need not beat it.
NOISE = {"uniform-noise", "gaussian-noise"}


@dataclass(frozen=True, eq=False)
class Case:
    """One attack in one space for one goal."""

    card: Card
    space: str
    goal: str

    def __str__(self) -> str:
        return f"{self.card.name}-{self.space}-{self.goal}"

    def attack(self, quick: bool = False) -> sp.Attack:
        """The attack with the suite's hyper-parameters.

        Gradient attacks take at most 100 steps, or 6 where only the protocol is tested; queries bound the others.
        """
        cls = attack_class(self.card.name)
        params = SETTINGS.get(self.card.name, {}) | (QUICK.get(self.card.name, {}) if quick else {})
        for f in dataclasses.fields(cls):
            if f.name == "steps" and isinstance(f.default, int) and not self.asks:
                params = {"steps": f.default, **params}
                params["steps"] = min(params["steps"], 6 if quick else 100)
        return cls(**params)

    @property
    def asks(self) -> bool:
        """Whether it learns by queries."""
        return self.card.access in (sp.Access.LABELS, sp.Access.SCORES)

    @property
    def eps(self) -> float:
        return EPS[self.space] * (2 if self.goal == "targeted" else 1)

    def ball(self, eps: Any = None, **how: Any) -> Ball:
        return NORMS[self.space](eps, **how)

    def threat(self, space: Ball, y: Tensor, queries: int = QUERIES) -> sp.ThreatModel:
        blind = self.card.access is sp.Access.NOTHING
        return sp.ThreatModel(
            space,
            goal=sp.Targeted(self.target(y)) if self.goal == "targeted" else sp.Untargeted(),
            access=self.card.access,
            queries=queries if self.asks else None,
            # what is fitted first has data of its own, and the network of another seed
            knowledge=Knowledge((tiny.trained(seed=1),), tiny.pictures(200, seed=4)) if blind else Knowledge(),
        )

    @staticmethod
    def target(y: Tensor) -> Tensor:
        return (y + 1) % tiny.CLASSES


def cases() -> list[Case]:
    """Every space and goal of the cards for tensors; of those for pictures, the spaces that are norms with a floor."""
    found = []
    for card in attack_cards():
        if card.needs or not {"tensor", "image"} & set(card.domains):
            continue
        for space in card.spaces:
            if "tensor" in card.domains or (space in NORMS and space in card.floor):
                found += [Case(card, space, goal) for goal in card.goals]
    return found


CASES = cases()
every_case = pytest.mark.parametrize("case", CASES, ids=str)
SPACES = list({(c.card.name, c.space): c for c in sorted(CASES, key=lambda c: c.goal, reverse=True)}.values())
every_space = pytest.mark.parametrize("case", SPACES, ids=str)  # once per space, for one goal
every_attack = pytest.mark.parametrize("case", list({c.card.name: c for c in CASES}.values()), ids=str)


def within(case: Case) -> float | None:
    """The eps of an ordinary run: none where the smallest change is sought."""
    return None if case.card.minimal else case.eps


@functools.cache
def full_run(case: Case) -> sp.AttackResult:
    """Twelve samples at the suite's budget, watched: nothing that belongs to the caller or the victim may change."""
    victim = tiny.trained()
    assert isinstance(victim.net, nn.Module)
    x, y = tiny.correct(12)
    given = [x.clone(), y.clone()]
    weights = [(p.detach().clone(), p.requires_grad) for p in victim.net.parameters()]
    modes = [m.training for m in victim.net.modules()]
    threat = case.threat(case.ball(within(case)), y)
    states = tiny.random_states()
    result = case.attack()(victim, x, y, threat)
    assert torch.equal(x, given[0]), "the inputs were changed in place"
    assert torch.equal(y, given[1]), "the labels were changed in place"
    for p, (value, wanted) in zip(victim.net.parameters(), weights, strict=True):
        assert torch.equal(p, value), "a parameter was changed"
        assert p.grad is None, "a gradient was left in a parameter"
        assert p.requires_grad == wanted, "requires_grad was changed"
    assert [m.training for m in victim.net.modules()] == modes, "train/eval mode was changed"
    assert tiny.random_states() == states, "a global random state moved"
    return result


def noise_rate(case: Case, result: sp.AttackResult, draws: int = 20) -> float:
    """How often noise of the attack's own norm, sample by sample, does what the attack did."""
    x, y = result.original, result.y
    assert isinstance(x, Tensor)
    goal = sp.Targeted(case.target(y)) if case.goal == "targeted" else sp.Untargeted()
    rng, hits = KeyedRandom(99, result.ids), 0.0
    space = case.ball(result.distance).bound(x, tiny.trained().bounds)
    for k in range(draws):
        if case.space == "l0":
            point = space.sample(x, rng, ("noise", k))
        else:
            noise = rng.signs(tuple(x.shape[1:]), k) if case.space == "linf" else rng.normal(tuple(x.shape[1:]), k)
            point = (x + noise * per_sample(result.distance / space.distance(noise), x)).clamp(0, 1)
        hits += float(goal.achieved(tiny.trained().query(point), y).double().mean())
    return hits / draws


# -- it works ----------------------------------------------------------------------------------------------------------


@every_case
def test_it_reaches_the_floor_on_its_card(case: Case) -> None:
    assert case.space in NORMS, (
        f"this suite cannot build the space {case.space!r}; give the card its own domain and tests"
    )
    assert case.space in case.card.floor, f"{case.card.name}'s card states no floor for {case.space}"
    floor, result = case.card.floor[case.space], full_run(case)
    if case.card.minimal:
        assert floor > 0
        allowed = floor * (2 if case.goal == "targeted" else 1)
        assert result.median_distance <= allowed, f"median {result.median_distance:.4g}, allowed {allowed:.4g}"
    else:
        assert result.attack_success_rate >= floor, f"success {result.attack_success_rate:.3f}, floor {floor}"


@pytest.mark.parametrize("case", [c for c in CASES if c.card.minimal and c.goal == c.card.goals[0]], ids=str)
def test_the_floor_of_a_smallest_change_is_near_what_is_reached(case: Case) -> None:
    """A floor that anything could reach guards nothing."""
    reached = full_run(case).median_distance / (2 if case.goal == "targeted" else 1)
    assert case.card.floor.get(case.space, math.inf) <= 3 * reached, f"median {reached:.4g}: state a floor near it"


@pytest.mark.parametrize("case", [c for c in CASES if c.card.name not in NOISE], ids=str)
def test_it_beats_noise_of_equal_norm(case: Case) -> None:
    result = full_run(case)
    assert result.attack_success_rate > noise_rate(case, result) + 0.1


# -- what comes back is legal and true ---------------------------------------------------------------------------------


@every_case
def test_what_comes_back_is_legal_and_true(case: Case) -> None:
    x, y = tiny.correct(12)
    result, victim = full_run(case), tiny.trained()
    adversarial = result.adversarial
    assert isinstance(adversarial, Tensor)
    assert adversarial.dtype == x.dtype
    assert adversarial.device == x.device
    assert adversarial.shape == x.shape
    assert not adversarial.requires_grad
    assert (adversarial >= 0).all()
    assert (adversarial <= 1).all()
    assert case.ball(within(case)).bound(x, victim.bounds).contains(x, adversarial).all()
    torch.testing.assert_close(result.distance, NORMS[case.space]().cost(x, adversarial))
    labels = victim.query(adversarial).labels
    reached = labels == case.target(y) if case.goal == "targeted" else labels != y
    assert torch.equal(reached, result.succeeded)
    assert torch.equal(result.final.labels, labels)
    assert Outcome.FAILED not in result.outcomes
    assert Outcome.CLEAN_ERROR not in result.outcomes
    if case.asks:
        assert (result.queries > 0).all()
        assert (result.queries <= QUERIES).all()
        assert (result.backwards == 0).all()
    else:
        assert (result.queries == 0).all()


# -- batches, order, seeds ---------------------------------------------------------------------------------------------


@every_case
def test_batches_and_order_do_not_matter_and_seeds_repeat(case: Case) -> None:
    x, y = tiny.correct(6, seed=3)
    y = y.clone()
    y[2] = (y[2] + 2) % tiny.CLASSES  # a clean error among them
    limit = torch.full((6,), case.eps) * torch.tensor([1.0, 0.5, 1.0, 0.6, 1.0, 0.7])

    def run(order: Tensor, size: int | None, seed: int = 7) -> sp.AttackResult:
        space = case.ball(None if case.card.minimal else limit[order])
        threat = case.threat(space, y[order], queries=60)
        return case.attack(quick=True)(tiny.trained(), x[order], y[order], threat, batch_size=size, seed=seed)

    straight = torch.arange(6)
    whole = run(straight, None)
    again = run(straight, None)
    assert torch.equal(whole.adversarial, again.adversarial), "the same seed gave another result"
    shuffled = torch.tensor([4, 1, 5, 0, 3, 2])
    for order, size in ((straight, 1), (shuffled, 5), (shuffled, None)):
        other = run(order, size)
        for name in ("outcome", "queries"):
            assert torch.equal(getattr(other, name), getattr(whole, name)[order]), f"{name} at batch size {size}"
        torch.testing.assert_close(other.distance, whole.distance[order], atol=1e-4, rtol=1e-4)


@every_space
def test_one_radius_per_sample_equals_the_loop_and_eps_0_is_never_broken(case: Case) -> None:
    x, y = tiny.correct(3, seed=5)
    eps = case.eps * torch.tensor([0.0, 0.5, 1.0])
    if case.space == "l0":
        eps = eps.floor()
    attack = case.attack(quick=True)
    result = attack(tiny.trained(), x, y, case.threat(case.ball(eps), y, queries=60))
    assert result.outcomes[0] is not Outcome.SUCCEEDED
    assert result.limit is not None
    assert torch.equal(result.limit, eps)
    slack = 1e-5 * case.eps
    assert (result.distance[result.succeeded] <= eps[result.succeeded] + slack).all()
    if not case.card.minimal:
        assert (result.distance <= eps + slack).all()
        assert result.distance[0] <= slack
    for i in range(3):
        row = slice(i, i + 1)
        alone = attack(tiny.trained(), x[row], y[row], case.threat(case.ball(float(eps[i])), y[row], queries=60))
        assert alone.outcomes[0] is result.outcomes[i]
        torch.testing.assert_close(alone.distance, result.distance[row], atol=1e-4, rtol=1e-4)


# -- the lattice -------------------------------------------------------------------------------------------------------


@every_space
def test_on_the_lattice_it_stays_on_the_lattice(case: Case) -> None:
    x, y = tiny.correct(5)
    space = case.ball(within(case), lattice=256)
    result = case.attack(quick=True)(tiny.trained(), x, y, case.threat(space, y, queries=200))
    adversarial = result.adversarial
    assert isinstance(adversarial, Tensor)
    chosen = adversarial[result.succeeded] if case.card.minimal else adversarial
    assert ((chosen * 255 - (chosen * 255).round()).abs() < 1e-3).all()
    assert space.bound(x, tiny.trained().bounds).contains(x, adversarial)[result.succeeded].all()
    saved = (adversarial * 255).round().to(torch.uint8).float() / 255
    labels = tiny.trained().query(saved).labels
    reached = labels == case.target(y) if case.goal == "targeted" else labels != y
    assert torch.equal(reached, result.succeeded), "what succeeded does not survive 8 bits"


# -- edges -------------------------------------------------------------------------------------------------------------


@every_attack
def test_empty_batches_and_single_samples(case: Case) -> None:
    x, y = tiny.correct(1)
    attack, space = case.attack(quick=True), case.ball(within(case))
    none = attack(tiny.trained(), x[:0], y[:0], case.threat(space, y[:0], queries=30))
    assert len(none) == 0
    assert none.adversarial.shape == (0, *x.shape[1:])
    one = attack(tiny.trained(), x, y, case.threat(space, y, queries=30))
    assert len(one) == 1
    assert one.adversarial.shape == x.shape


@every_space
def test_networks_in_double_precision_are_attacked_there(case: Case) -> None:
    x, y = (part.to(torch.float64) if part.is_floating_point() else part for part in tiny.correct(3))
    net = copy.deepcopy(tiny.trained().net).double()  # type: ignore[union-attr]
    result = case.attack(quick=True)(sp.Victim(net), x, y, case.threat(case.ball(within(case)), y, queries=60))
    assert isinstance(result.adversarial, Tensor)
    assert result.adversarial.dtype == torch.float64


@every_space
def test_the_default_type_of_new_tensors_does_not_matter(case: Case) -> None:
    x, y = tiny.correct(3)
    threat = case.threat(case.ball(within(case)), y, queries=60)
    victim = tiny.trained()
    plain = case.attack(quick=True)(victim, x, y, threat)
    torch.set_default_dtype(torch.float64)
    try:
        other = case.attack(quick=True)(victim, x, y, threat)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(plain.outcome, other.outcome)
    assert torch.equal(plain.queries, other.queries)
    torch.testing.assert_close(other.adversarial, plain.adversarial)


class Writes(nn.Module):
    """The same network, which writes into its input, as an in-place normalisation does."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        doubled = x.mul_(2.0)
        scores: Tensor = self.net(doubled * 0.5)
        return scores


@every_attack
def test_a_network_that_writes_into_its_input_falls_like_one_that_does_not(case: Case) -> None:
    x, y = tiny.correct(3)
    net = tiny.trained().net
    assert isinstance(net, nn.Module)
    threat = case.threat(case.ball(within(case)), y, queries=100)
    plain, writing = (
        case.attack(quick=True)(sp.Victim(n, name="n"), x.clone(), y, threat) for n in (net, Writes(net).eval())
    )
    assert torch.equal(plain.outcome, writing.outcome)
    assert torch.equal(plain.queries, writing.queries)
    torch.testing.assert_close(writing.adversarial, plain.adversarial, atol=1e-4, rtol=1e-4)


def _strided() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 4, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 2, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, tiny.CLASSES)),
    )


def _normed() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6)),
        *(nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, tiny.CLASSES)),
    )


@functools.cache
def layered(build: Callable[[], nn.Sequential]) -> nn.Module:
    """A small network of layers for which `sparring.core` has ways of its own."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        net = build()
    return tiny.taught(net).eval().requires_grad_(False)


@pytest.mark.parametrize("build", [_strided, _normed])
@every_attack
def test_the_quick_ways_through_a_layered_network_change_nothing(
    case: Case, build: Callable[[], nn.Sequential], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memories of windows, gradients by hand and layers rearranged, picture after picture, against all at once, as they are."""
    monkeypatch.setattr(nearby, "WORTH_IT", 0)
    monkeypatch.setattr(nearby, "SMALL", 1.0)
    monkeypatch.setattr(convolutions, "WORTH_IT", 0)
    monkeypatch.setattr(arrangement, "WORTH_IT", 0)
    x, _ = tiny.correct(3)
    net = layered(build)
    y = net(x).argmax(1)
    threat = case.threat(case.ball(within(case)), y, queries=60)
    plain = case.attack(quick=True)(sp.Victim(net, name="n", quick=False), x, y, threat)
    quick = case.attack(quick=True)(sp.Victim(net, name="n"), x, y, threat, batch_size=1)
    assert torch.equal(plain.outcome, quick.outcome)
    assert torch.equal(plain.queries, quick.queries)
    torch.testing.assert_close(quick.adversarial, plain.adversarial, atol=1e-3, rtol=1e-3)


class Rules(nn.Module):
    """The same network with one class more, which it rules out."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        scores = self.net(x)
        return torch.cat([scores, torch.full_like(scores[:, :1], -torch.inf)], dim=1)


@every_space
def test_a_class_that_the_network_rules_out_shelters_nobody(case: Case) -> None:
    x, y = tiny.correct(3)
    net = tiny.trained().net
    assert isinstance(net, nn.Module)
    threat = case.threat(case.ball(within(case)), y, queries=60)
    plain, ruling = (case.attack(quick=True)(sp.Victim(n, name="n"), x, y, threat) for n in (net, Rules(net).eval()))
    assert torch.equal(plain.outcome, ruling.outcome)
    assert torch.equal(plain.queries, ruling.queries)


class Wider(nn.Module):
    """The same network for inputs that are so many times as large."""

    def __init__(self, net: nn.Module, times: float) -> None:
        super().__init__()
        self.net, self.times = net, times

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x / self.times)
        return scores


@every_space
def test_the_units_of_the_inputs_do_not_matter(case: Case) -> None:
    """In [0, 256] all goes as in [0, 1]: a power of two changes no digit, so that any difference is a length in raw units."""
    (x, y), times = tiny.correct(3), 256.0
    eps = within(case)

    def wide(victim: sp.Victim) -> sp.Victim:
        assert isinstance(victim.net, nn.Module)
        return sp.Victim(Wider(victim.net, times).eval(), bounds=(0, times), name="n")

    threat = case.threat(case.ball(eps), y, queries=60)
    known = threat.knowledge
    if known.data is not None:
        known = Knowledge(tuple(wide(s) for s in known.surrogates), (times * known.data[0], known.data[1]))  # type: ignore[arg-type, operator]
    radius = eps if eps is None or case.space == "l0" else times * eps
    larger = dataclasses.replace(threat, space=case.ball(radius), knowledge=known)
    ids = torch.arange(3)
    plain = case.attack(quick=True)(tiny.trained(), x, y, threat, ids=ids)
    scaled = case.attack(quick=True)(wide(tiny.trained()), times * x, y, larger, ids=ids)
    assert torch.equal(plain.outcome, scaled.outcome)
    assert torch.equal(plain.queries, scaled.queries)
    torch.testing.assert_close(scaled.adversarial / times, plain.adversarial, atol=1e-4, rtol=1e-4)


@every_attack
def test_nan_and_inputs_out_of_bounds_are_refused(case: Case) -> None:
    x, y = tiny.correct(2)
    for spoilt in (torch.where(x == x.max(), torch.nan, x), x * 255, x - 1):
        with pytest.raises(InputError):
            case.attack(quick=True)(tiny.trained(), spoilt, y, case.threat(case.ball(within(case)), y))


@pytest.mark.parametrize("case", [c for c in SPACES if c.goal == "targeted"], ids=str)
def test_a_target_that_is_the_label_is_not_applicable_and_one_already_read_is_no_success(case: Case) -> None:
    x, y = tiny.correct(3)
    target = case.target(y)
    target[0] = y[0]
    y = y.clone()
    y[1] = (target[1] + 1) % tiny.CLASSES  # the victim reads the target already, and wrongly so
    target[1] = tiny.trained().query(x).labels[1]
    threat = dataclasses.replace(case.threat(case.ball(within(case)), y, queries=60), goal=sp.Targeted(target))
    result = case.attack(quick=True)(tiny.trained(), x, y, threat)
    assert result.outcomes[:2] == [Outcome.NOT_APPLICABLE, Outcome.ALREADY_TARGET]
    assert torch.equal(result.adversarial[:2], x[:2])
    assert result.queries[:2].tolist() == result.forwards[:2].tolist() == [0, 0]


def test_returning_the_input_would_fail_this_suite() -> None:
    """The suite's own check: an attack that does nothing has no success, and so misses any floor above 0."""
    x, y = tiny.correct(12)
    assert torch.equal(tiny.trained().query(x).labels, y)
    for case in CASES:
        if case.card.name not in NOISE and not case.card.minimal:
            assert case.card.floor.get(case.space, 1.0) > 0, str(case)


# -- the manifest ------------------------------------------------------------------------------------------------------


def known() -> dict[str, Card]:
    cards = attack_cards()
    return {alias: card for card in cards for alias in card.aliases} | {card.name: card for card in cards}


@pytest.mark.parametrize(("name", "norm", "goal"), [m for m in MANIFEST if m[0] not in PENDING])
def test_what_was_promised_is_on_a_card(name: str, norm: str | None, goal: str) -> None:
    card = known()[name]
    assert norm is None or norm in card.spaces
    assert goal in card.goals


def test_what_is_pending_is_exactly_what_is_missing() -> None:
    missing = set(PROMISED) - set(known())
    assert not missing - PENDING, "promised, and neither registered nor pending"
    assert not PENDING - missing, "registered by now: take these out of PENDING"


# -- for the writers of cards ------------------------------------------------------------------------------------------


def measure(name: str) -> None:
    """Print what the attack called `name` reaches on each of its cases, beside its floor and noise of equal norm."""
    for case in CASES:
        if case.card.name == name:
            result = full_run(case)
            reached = result.median_distance if case.card.minimal else result.attack_success_rate
            floor = case.card.floor.get(case.space, math.nan)
            print(
                f"{case}: {'median' if case.card.minimal else 'success'} {reached:.4g}, floor {floor:.4g}, "
                f"noise {noise_rate(case, result):.3f}, {result.seconds:.2f} s"
            )
