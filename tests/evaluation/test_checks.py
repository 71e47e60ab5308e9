"""The soundness checks on the embedded digits: each catches its own fault, and a sound audit passes them all."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import faults
import sparring as sp
from sparring.attacks.gradient import APGD
from sparring.attacks.noise import UniformNoise
from sparring.core.registry import ATTACKS
from sparring.core.rng import KeyedRandom
from sparring.core.threat import Knowledge, Targeted, ThreatModel
from sparring.data import load_digits
from sparring.defences.detectors import JointPGD, Mahalanobis
from sparring.defences.inputs import JPEG, BitDepth, ResizePad, Threshold
from sparring.evaluation import AttackSpec, audit
from sparring.evaluation.checks import parts, planted
from sparring.evaluation.data import Data
from sparring.evaluation.findings import Context
from sparring.evaluation.reading import Audit
from sparring.victims.digits import load

EPS = 0.1
SOUND = [APGD(steps=40)]
QUICK = [sp.PGD(steps=20)]
ONE_STEP = [sp.FGSM()]
NUMBERS = (*range(21), 22, 23)  # 21 needs a certifier


@cache
def net() -> nn.Module:
    return load()


@cache
def data(n: int = 48) -> tuple[Tensor, Tensor]:
    x, y = load_digits()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[:n]
    return x[order], y[order]


def victim(front: faults.Map | None = None, back: faults.Map | None = None, **how: Any) -> sp.Victim:
    """The digits network with a fault in front of it or behind it."""
    model = net()
    if front is not None:
        model = faults.Before(front, model)
    if back is not None:
        model = faults.After(model, back)
    return sp.Victim(model, **how)


@pytest.fixture(scope="module")
def sound() -> Context:
    return faults.context(victim(), data(), sp.Linf(EPS), SOUND)


@pytest.fixture(scope="module")
def steep() -> Context:
    return faults.context(victim(back=faults.steep), data(), sp.Linf(0.15), QUICK)


@pytest.fixture(scope="module")
def masked() -> Context:
    return faults.context(victim(faults.quantised(4)), data(), sp.Linf(0.3), QUICK)


@pytest.fixture(scope="module")
def weak() -> Context:
    attack = sp.PGD(steps=10, step_size=1e-5, random_start=False)
    return faults.context(victim(), data(), sp.Linf(0.2), [attack])


# -- what is sound -----------------------------------------------------------------------------------------------------


def test_every_check_of_the_list_is_registered() -> None:
    assert tuple(sorted(check.number for check in faults.registered())) == NUMBERS


@pytest.mark.parametrize(
    "threat",
    [
        pytest.param(sp.Linf(EPS), id="linf"),
        pytest.param(sp.L2(0.5), id="l2"),
        pytest.param(sp.L1(1.0), id="l1"),
        pytest.param(sp.Linf(0.1, lattice=256), id="lattice"),
        pytest.param(ThreatModel(sp.Linf(0.15), goal=Targeted(3)), id="targeted"),
    ],
)
def test_a_sound_audit_passes_every_check(threat: Any) -> None:
    x, y = load_digits(eight_bit=True)
    seen = faults.context(victim(), (x[:48], y[:48]), threat, SOUND)
    assert faults.failures(seen) == {}


def test_an_audit_runs_the_checks_and_keeps_what_they_cost(tmp_path: Path) -> None:
    found = audit(victim(), data(), sp.Linf(EPS), attacks=SOUND, curve=False, run=tmp_path / "run")
    kept = Audit.open(tmp_path / "run")
    assert tuple(f.number for f in kept.findings) == NUMBERS
    assert {f.result for f in kept.findings} <= {"pass", "skipped"}
    assert kept.cost.checks_forwards == sum(f.forwards for f in found.findings) > 0
    assert all(f.threshold and f.measured is not None for f in kept.findings if f.result == "pass")


def test_the_bill_is_what_the_network_saw(sound: Context) -> None:
    class Counter(nn.Module):
        seen = 0

        def forward(self, x: Tensor) -> Tensor:
            Counter.seen += len(x)
            return net()(x)

    counted = dataclasses.replace(sound, victim=sp.Victim(Counter().eval()))
    counted.victim.admit(*data())
    for check in faults.registered():
        Counter.seen = 0
        told = faults.finding(check.number, counted).forwards
        assert abs(told - Counter.seen) <= 0.02 * told + 4, (
            f"check {check.number} told {told} of {Counter.seen} forwards"
        )


def test_a_check_takes_its_share_and_no_more(sound: Context) -> None:
    def spent(passes: int) -> Context:
        columns = sound.evidence.attempts
        rows = np.zeros_like(columns["forwards"])
        rows[0] = passes
        told = {**columns, "forwards": rows, "backwards": np.zeros_like(rows)}
        return dataclasses.replace(sound, evidence=dataclasses.replace(sound.evidence, attempts=told))

    assert parts.afford(spent(0), 100) == parts.LEAST
    assert parts.afford(spent(200_000), 100) == 20
    assert parts.afford(spent(10**9), 100) == parts.MOST


def test_the_samples_do_not_depend_on_their_order(sound: Context) -> None:
    x, y = data()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    other = faults.context(victim(), (x[order], y[order]), sp.Linf(EPS), SOUND)
    for choose in (parts.right, parts.standing):
        one, two = choose(sound, 8), choose(other, 8)
        assert one is not None
        assert two is not None
        assert torch.equal(one.ids, two.ids)


# -- 0, 2: at the door -------------------------------------------------------------------------------------------------


def test_0_labels_in_another_order() -> None:
    x, y = data(96)
    found = faults.finding(0, faults.context(victim(), (x, (y + 1) % 10), sp.Linf(EPS), ONE_STEP))
    assert found.result == "fail"
    assert found.taints == "any"
    assert "order" in found.next_step


def test_0_a_doubled_normalisation_is_named() -> None:
    how = {"mean": (0.9,), "std": (0.3,)}
    found = faults.finding(0, faults.context(victim(**how), data(), sp.Linf(EPS), ONE_STEP))
    assert found.result == "fail"
    assert "leave out mean= and std=" in found.next_step


def test_0_a_missing_normalisation_is_named() -> None:
    blind = victim(lambda z: z * 0.3081 + 0.1307)  # expects what MNIST's statistics give
    found = faults.finding(0, faults.context(blind, data(), sp.Linf(EPS), ONE_STEP))
    assert found.details["readings"]["as given"] < found.details["readings"]["MNIST's normalisation"]
    turned = faults.finding(0, faults.context(victim(), (data()[0].transpose(2, 3), data()[1]), sp.Linf(EPS), ONE_STEP))
    assert turned.result == "fail"
    assert "height and width" in turned.next_step


@pytest.mark.parametrize(
    ("how", "scale", "shift", "eps", "words"),
    [
        pytest.param({}, 1.0, 0.0, 8.0, "8/255", id="255ths"),
        pytest.param(
            {"bounds": (0, 255), "mean": (0.0,), "std": (255.0,)}, 255.0, 0.0, 8 / 255, "8 may be", id="levels"
        ),
        pytest.param({"bounds": (-1, 1), "mean": (-1.0,), "std": (2.0,)}, 2.0, -1.0, 0.1, "negative", id="normalised"),
        pytest.param({"mean": (0.0,), "std": (1 / 255,)}, 1 / 255, 0.0, 0.1, "divided by 255", id="twice"),
    ],
)
def test_2_wrong_units(how: dict[str, Any], scale: float, shift: float, eps: float, words: str) -> None:
    x, y = data()
    found = faults.finding(2, faults.context(victim(**how), (x * scale + shift, y), sp.Linf(eps), ONE_STEP))
    assert found.result == "fail"
    assert words in found.says


# -- 1: what was found -------------------------------------------------------------------------------------------------


def test_1_a_success_outside_its_radius(sound: Context) -> None:
    columns = sound.evidence.attempts
    told = {**columns, "radius": columns["radius"] / 2}
    found = faults.finding(1, dataclasses.replace(sound, evidence=dataclasses.replace(sound.evidence, attempts=told)))
    assert found.result == "fail"
    assert found.measured == pytest.approx(EPS / 2, rel=0.1)


def test_1_bounds_and_not_a_number(sound: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = type(sound.evidence).pair
    for value, measured in ((1.5, 0.5), (float("nan"), float("inf"))):

        def spoilt(self: Any, step: int, sample: int, value: float = value) -> tuple[Tensor, Tensor]:
            original, adversarial = pair(self, step, sample)
            adversarial = adversarial.clone()
            adversarial[0, 0, 0] = value
            return original, adversarial

        monkeypatch.setattr(type(sound.evidence), "pair", spoilt)
        found = faults.finding(1, sound)
        assert found.result == "fail"
        assert found.measured is not None
        assert found.measured >= measured


def test_1_a_success_that_rounding_undoes() -> None:
    x, y = load_digits(eight_bit=True)
    seen = faults.context(victim(), (x[:100], y[:100]), sp.Linf(0.03), [sp.PGD(steps=40, step_size=0.0005)])
    assert faults.finding(1, seen).result == "pass"
    lattice = dataclasses.replace(seen, threat=ThreatModel(sp.Linf(0.03, lattice=12)))
    found = faults.finding(1, lattice)
    assert found.result == "fail"
    assert found.details["lost"] > 0


def test_1_nothing_found_is_no_finding(weak: Context) -> None:
    assert faults.finding(1, weak).result == "skipped"


# -- 3, 4, 17: answers -------------------------------------------------------------------------------------------------


def test_3_a_random_layer() -> None:
    found = faults.finding(3, faults.context(victim(faults.Noise(0.1)), data(), sp.Linf(EPS), ONE_STEP))
    assert found.result == "fail"
    assert found.taints == "any"
    assert "eot" in found.next_step


@pytest.mark.parametrize(("eot", "result"), [(1, "fail"), (4, "pass")])
def test_3_a_random_layer_that_says_so_must_be_attacked_in_expectation(eot: int, result: str) -> None:
    random = victim(faults.Noise(0.1), traits=sp.Traits(stochastic=True))
    seen = faults.context(random, data(16), sp.Linf(EPS), [AttackSpec("fgsm", eot=eot)])
    found = faults.finding(3, seen)
    assert found.result == result
    assert found.taints == "robust"


def test_3_answers_that_depend_on_the_rest_of_the_batch() -> None:
    centred = victim(lambda x: x - x.mean(0, keepdim=True))
    found = faults.finding(3, faults.context(centred, data(), sp.Linf(EPS), ONE_STEP))
    assert found.result == "fail"
    assert found.taints == "any"
    assert "batch size 1" in found.next_step


def test_4_probabilities() -> None:
    soft = victim(back=lambda z: z.softmax(1))
    found = faults.finding(4, faults.context(soft, data(), sp.Linf(EPS), ONE_STEP))
    assert found.result == "fail"
    said = sp.Victim(soft.net, probabilities=True)
    assert faults.finding(4, faults.context(said, data(), sp.Linf(EPS), ONE_STEP)).result == "pass"


def test_17_a_layer_that_optimises() -> None:
    blind = victim(faults.Optimising(net()))
    found = faults.finding(17, faults.context(blind, data(16), sp.Linf(EPS), ONE_STEP))
    assert found.result == "fail"
    assert found.measured == 3


def test_17_with_a_surrogate_it_is_attacked_around() -> None:
    bare, bridged = (victim().defended([stage(net()).eval()]) for stage in (faults.Optimising, faults.Bridged))
    bare.stages[0].surrogate = None  # as stages have it that need none
    assert faults.finding(17, faults.context(bare, data(16), sp.Linf(EPS), ONE_STEP)).result == "fail"
    assert faults.finding(17, faults.context(bridged, data(16), sp.Linf(EPS), ONE_STEP)).result == "pass"


# -- 5, 6: slopes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("front", "back", "words"),
    [
        pytest.param(None, faults.saturated, "zero", id="hard-sigmoid"),
        pytest.param(faults.quantised(4), None, "zero", id="quantised"),
        pytest.param(faults.nan_slope, None, "not finite", id="nan"),
        pytest.param(lambda x: x.detach(), None, "exception", id="detached"),
    ],
)
def test_5_no_gradient(front: Any, back: Any, words: str) -> None:
    seen = faults.context(victim(front, back), data(), sp.Linf(EPS), [UniformNoise()])
    found = faults.finding(5, seen)
    assert found.result == "fail"
    assert words in found.says
    assert found.taints == "robust"


@pytest.mark.parametrize(("loss", "taints"), [("ce", "robust"), ("dlr", "nothing")])
def test_5_a_saturated_loss_spoils_only_audits_that_climb_it(loss: str, taints: str) -> None:
    seen = faults.context(victim(back=faults.steep), data(), sp.Linf(EPS), [sp.PGD(steps=2, loss=loss)])
    found = faults.finding(5, seen)
    assert found.result == "fail"
    assert found.details["margin"] == 0
    assert found.taints == taints


def test_6_a_jagged_loss() -> None:
    found = faults.finding(6, faults.context(victim(faults.jagged(0.5)), data(), sp.Linf(EPS), ONE_STEP))
    assert found.result == "fail"


# -- 7, 8, 13, 14: the search ------------------------------------------------------------------------------------------


def test_7_an_attack_that_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTACKS, "forgetful", faults.Forgetful)
    seen = faults.context(victim(), data(), sp.Linf(0.2), [faults.Forgetful(steps=8)])
    found = faults.finding(7, seen)
    assert found.result == "fail"
    assert found.details["lost"]["forgetful"] > 4


def test_8_13_a_step_size_a_thousand_times_too_small(weak: Context) -> None:
    failed = faults.failures(weak, (8, 13))
    assert set(failed) == {8, 13}
    assert "step size" in failed[13].next_step


def test_8_a_climb_cut_short() -> None:
    seen = faults.context(victim(), data(), sp.Linf(0.05), [sp.PGD(steps=12)])
    found = faults.finding(8, seen)
    assert found.result == "fail"
    assert "steps = 24" in found.next_step


def test_14_a_budget_too_small() -> None:
    found = faults.finding(14, faults.context(victim(), data(), sp.Linf(0.15), [sp.PGD(steps=1)]))
    assert found.result == "fail"
    assert "steps = 2" in found.next_step


# -- 10, 11, 12: known radii -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["steep", "masked", "weak"])
def test_10_11_20_attacks_that_miss_what_must_be_there(which: str, request: pytest.FixtureRequest) -> None:
    assert set(faults.failures(request.getfixturevalue(which), (10, 11, 20))) == {10, 11, 20}


def test_12_an_attack_that_fails_in_wide_balls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTACKS, "shy", faults.Shy)
    found = faults.finding(12, faults.context(victim(), data(), sp.Linf(EPS), [faults.Shy(steps=10, limit=1.01 * EPS)]))
    assert found.result == "fail"
    assert found.details["accuracy"][3] > found.details["accuracy"][2]


# -- 15, 16: outsiders -------------------------------------------------------------------------------------------------


def test_15_16_queries_and_noise_break_a_masked_victim(masked: Context) -> None:
    failed = faults.failures(masked, (15, 16))
    assert set(failed) == {15, 16}
    assert failed[16].details["draws"] >= 0.5 * 1000


def test_15_the_audits_own_queries_are_the_answer() -> None:
    square = AttackSpec.of({"name": "square", "params": {"queries": 60}})
    found = faults.finding(15, faults.context(victim(faults.quantised(4)), data(), sp.Linf(0.3), [*QUICK, square]))
    assert found.result == "fail"
    assert found.forwards == 0


def test_15_transfer_from_a_surrogate_counts() -> None:
    threat = ThreatModel(sp.Linf(0.3), knowledge=Knowledge(surrogates=(victim(),)))
    seen = faults.context(victim(faults.quantised(4)), data(), sp.Linf(0.3), QUICK)
    found = faults.finding(15, dataclasses.replace(seen, threat=threat))
    assert "transfer" in found.says
    assert found.result == "fail"


# -- 20: planting ------------------------------------------------------------------------------------------------------


def test_20_what_is_planted_is_there_and_chance_does_not_find_it(sound: Context) -> None:
    few = parts.right(sound, 16)
    assert few is not None
    heads = planted._plant(sound, few, parts.Bill())
    space = sound.threat.space.bound(few.x, sound.victim.bounds)
    rng = KeyedRandom(sound.seed, few.ids)
    for i, head in enumerate(heads):
        assert head is not None
        assert isinstance(sound.victim, sp.Victim)
        other = planted.Planted(sound.victim, head)
        assert int(other.query(few.x[i : i + 1]).labels) == 0
        far = [planted._surface(space, few.x, rng, k)[i : i + 1] for k in range(planted.OUTER)]
        assert any(int(other.query(x).labels) == 1 for x in far)
        drawn = torch.cat([space.sample(few.x, rng, ("fresh", k))[i : i + 1] for k in range(50)])
        assert int(other.query(drawn).labels.sum()) <= 5


def test_20_the_planted_decision_is_as_sure_as_the_victim(sound: Context) -> None:
    few = parts.right(sound, 8)
    assert few is not None
    assert isinstance(sound.victim, sp.Victim)
    own = parts.margins(sound.victim.query(few.x).scores, few.y)
    for i, head in enumerate(planted._plant(sound, few, parts.Bill())):
        assert head is not None
        scores = planted.Planted(sound.victim, head).query(few.x[i : i + 1]).scores
        assert float(scores[0, 0] - scores[0, 1]) == pytest.approx(float(own[i]), rel=1e-3)


# -- 9, 22, 23: defended victims ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defended", "words"),
    [
        pytest.param(lambda: victim().defended([faults.Absent()]), "128 of 128", id="steps-aside"),
        pytest.param(lambda: faults.Elsewhere(net()), "128 of 128", id="answers-alone"),
        pytest.param(lambda: victim().defended([faults.Unrelated()]), "0 of 128", id="another-surrogate"),
    ],
)
def test_9_the_defence_is_not_in_the_loop(defended: Any, words: str) -> None:
    found = faults.finding(9, faults.context(defended(), data(), sp.Linf(EPS), ONE_STEP))
    assert found.result == "fail"
    assert words in found.says
    assert found.measured is not None
    assert found.measured > 0.5


@pytest.mark.parametrize(
    "stage", [BitDepth(bits=3), JPEG(quality=50), Threshold(), ResizePad()], ids=lambda s: s.card.name
)
def test_9_stages_with_their_own_surrogates_are_in_the_loop(stage: Any) -> None:
    found = faults.finding(9, faults.context(victim().defended([stage]), data(), sp.Linf(EPS), ONE_STEP))
    assert found.result == "pass"
    assert found.measured == 0
    assert found.details["surrogates_alone"] < 0.3


def test_9_a_random_layer_cannot_be_compared() -> None:
    found = faults.finding(9, faults.context(victim(faults.Noise(0.1)), data(), sp.Linf(EPS), ONE_STEP))
    assert found.result == "skipped"
    assert "differently" in found.says


def guarded(detector: Any = None) -> sp.Victim:
    x, y = load_digits("train")
    bare = victim()
    return bare.defended(detector=Mahalanobis().fit(bare, x, y, fpr=0.2) if detector is None else detector)


def test_22_successes_that_the_detector_rejects_were_none() -> None:
    unaware = faults.context(victim(), data(), sp.Linf(0.3), QUICK)
    found = faults.finding(22, dataclasses.replace(unaware, victim=guarded()))
    assert found.result == "fail"
    assert found.taints == "any"
    assert found.details["rejected"] > 4
    aware = faults.finding(22, faults.context(guarded(), data(), sp.Linf(0.3), QUICK))
    assert "rejected" not in aware.details


def test_22_a_detector_that_hides_its_score_cannot_be_minded() -> None:
    hidden = guarded(lambda z: z.flatten(1).mean(1) < 0.36)
    found = faults.finding(22, faults.context(hidden, data(), sp.Linf(EPS), QUICK))
    assert found.result == "fail"
    assert "score(x)" in found.next_step


def test_22_what_the_plan_itself_did_is_the_answer() -> None:
    found = faults.finding(22, faults.context(guarded(), data(24), sp.Linf(EPS), [*ONE_STEP, JointPGD(steps=10)]))
    assert found.result == "pass"
    assert found.says.startswith("joint-pgd")


def test_23_an_attack_too_weak_for_the_bare_model() -> None:
    defended = victim().defended([BitDepth(bits=4)])
    weak = sp.PGD(steps=10, step_size=1e-5, random_start=False)
    found = faults.finding(23, faults.context(defended, data(), sp.Linf(0.2), [weak]))
    assert found.result == "fail"
    assert found.measured == 0
    strong = faults.finding(23, faults.context(defended, data(), sp.Linf(0.2), SOUND))
    assert strong.result == "pass"
    assert strong.measured is not None
    assert strong.measured > 0.5


def test_23_a_model_that_stands_by_itself_is_no_failure_of_the_attacks() -> None:
    defended = victim().defended([BitDepth(bits=5)])
    found = faults.finding(23, faults.context(defended, data(), sp.Linf(1e-3), SOUND))
    assert found.result == "pass"
    assert found.measured == 0
    assert "stands by itself" in found.says


# -- 18, 19: training --------------------------------------------------------------------------------------------------


def test_18_an_overconfident_network_is_masked_for_ten_steps() -> None:
    seen = faults.context(victim(back=faults.steep), data(), sp.Linf(0.15), [APGD(steps=20, loss="dlr")])
    found = faults.finding(18, seen)
    told = found.details
    assert found.result == "fail"
    assert told["left"] > 4
    assert found.measured == pytest.approx(told["left"] / told["met"] * told["broken"])


def test_19_a_gradient_that_leads_one_step_astray() -> None:
    x, y = load_digits(eight_bit=True)
    found = faults.finding(19, faults.context(victim(faults.contrary), (x[:48], y[:48]), sp.Linf(0.2), QUICK))
    assert found.result == "fail"
    assert found.details["fgsm"] == 1
    assert found.measured is not None
    assert found.measured < 0


# -- victims without scores, gradients, tensors ------------------------------------------------------------------------


def test_checks_that_do_not_apply_are_skipped() -> None:
    black = sp.BlackBox(lambda x: net()(x).argmax(1), bounds=(0, 1), classes=10)
    seen = faults.context(black, data(24), sp.Linf(EPS), [UniformNoise(draws=3)])  # type: ignore[arg-type]
    results = {check.number: faults.finding(check.number, seen).result for check in faults.registered()}
    assert {n for n, result in results.items() if result == "skipped"} >= {4, 5, 6, 7, 8, 12, 13, 14, 15, 20}
    assert {results[n] for n in (0, 2, 3, 17)} == {"pass"}


def test_texts_meet_the_checks_that_need_no_tensor(sound: Context) -> None:
    words = Data([f"digit {i}" for i in range(48)], data()[1].tolist())
    black = sp.BlackBox(lambda texts: torch.zeros(len(texts), dtype=torch.int64), classes=10, domain="text")
    texts = dataclasses.replace(sound, victim=black, data=words)
    results = {check.number: faults.finding(check.number, texts).result for check in faults.registered()}
    assert {n for n, result in results.items() if result != "skipped"} <= {0, 1}


def test_everything_broken_leaves_nothing_to_check() -> None:
    seen = faults.context(victim(), data(), sp.Linf(0.5), SOUND)
    for number in (8, 13, 14, 15, 16):
        found = faults.finding(number, seen)
        assert found.result == "skipped"
        assert "standing" in found.says
