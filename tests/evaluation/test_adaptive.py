"""A defended model from its file: the audit takes its attacks from the traits, and asks its detector."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sparring as sp
from sparring.cli import main
from sparring.core.rng import KeyedRandom
from sparring.core.threat import Knowledge
from sparring.data import load_digits
from sparring.defences import save_defended
from sparring.defences.detectors import FeatureSqueezing, JointPGD, LearnedDetector, Mahalanobis, has_slope
from sparring.defences.detectors.joint import excess_gradient
from sparring.defences.inputs import BitDepth, ResizePad
from sparring.evaluation import AttackSpec, Audit, Plan, ThreatSpec, audit, presets, resume
from sparring.evaluation.data import Data
from sparring.evaluation.presets import EOT

EPS = 0.1


@pytest.fixture(scope="module")
def digits() -> sp.Victim:
    victim = sp.load("digits")
    assert isinstance(victim, sp.Victim)
    return victim


@pytest.fixture(scope="module")
def detector(digits: sp.Victim) -> Mahalanobis:
    x, y = load_digits("train")
    return Mahalanobis().fit(digits, x, y, fpr=0.1)


@pytest.fixture(scope="module")
def file(detector: Mahalanobis, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random resizing, rounding and a detector around the digits, as `sparring defend` saves them."""
    path = tmp_path_factory.mktemp("defended") / "guarded.defended"
    return str(save_defended(path, "digits", [ResizePad(), BitDepth(bits=3)], detector))


def chosen(victim: sp.Victim, preset: str = "standard") -> dict[str, AttackSpec]:
    known = presets.facts(victim, Data(*load_digits()), ThreatSpec("linf", EPS))
    plan = presets.fill(Plan(ThreatSpec("linf", EPS), preset=preset), known)
    return {spec.attack: spec for spec in plan.attacks}


def some(n: int) -> tuple[Tensor, Tensor]:
    x, y = load_digits()
    return x[:n], y[:n]


def test_a_file_is_a_name_like_any_other(file: str) -> None:
    victim = sp.load(file)
    assert isinstance(victim, sp.Victim)
    assert victim.traits == sp.Traits(stochastic=True, differentiable=False, rejects=True)
    assert [type(stage).__name__ for stage in victim.stages] == ["ResizePad", "BitDepth"]
    assert victim.input.size == (8, 8)  # type: ignore[attr-defined]
    assert sp.load(Path(file), size=16).input.size == (16, 16)  # type: ignore[attr-defined]
    with pytest.raises(sp.SparringError, match="no defended victim"):
        sp.load("missing.defended")


def test_traits_choose_the_attacks(file: str, digits: sp.Victim, detector: Mahalanobis) -> None:
    everything = sp.load(file)
    assert isinstance(everything, sp.Victim)
    for preset in presets.PRESETS:
        attacks = chosen(everything, preset)
        climbs = [spec for spec in attacks.values() if spec.card.access is sp.Access.GRADIENTS]
        assert {spec.eot for spec in climbs} == {EOT}
        assert all(spec.bpda for spec in climbs)
        assert "joint-pgd" in attacks
        assert "joint-pgd" not in chosen(digits, preset)
        assert "joint-pgd" in chosen(digits.defended(detector=detector), preset)
        assert {spec.eot for spec in chosen(digits.defended([BitDepth()]), preset).values()} == {1}


def test_a_detector_without_a_slope_leaves_the_joint_attack_out(digits: sp.Victim) -> None:
    class Flat(Mahalanobis):
        def score(self, x: Tensor) -> Tensor:
            return super().score(x).detach()

    x, y = load_digits("train")
    flat = digits.defended(detector=Flat().fit(digits, x, y))
    hidden = digits.defended(detector=lambda z: z.flatten(1).mean(1) < 0.36)
    for victim in (flat, hidden):
        assert not has_slope(victim, x[:2])
        assert "joint-pgd" not in chosen(victim)
    found = audit(hidden, some(12), sp.Linf(EPS), preset="fast", curve=False)
    assert {f.number for f in found.findings if f.result == "fail"} >= {22}


def test_an_audit_of_a_file_is_told_resumed_and_minds_the_detector(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_defended(tmp_path / "quick.defended", "digits", [BitDepth(bits=3)], sp.load(file).detector)  # type: ignore[attr-defined]
    run = tmp_path / "run"
    words = ["--model", str(tmp_path / "quick.defended"), "--data", "digits", "--eps", "0.15", "--preset", "fast"]
    assert main(["audit", *words, "-n", "24", "--run", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "joint-pgd" in [row["label"] for row in told["attacks"]]
    results = {finding["number"]: finding["result"] for finding in told["checks"]}
    assert {results[n] for n in (9, 22, 23)} <= {"pass", "skipped"}
    assert results[9] == "pass"
    kept = Audit.open(run)
    victim = sp.load(str(tmp_path / "quick.defended"))
    for step in {int(s) for s in kept.evidence.attempts["step"]}:
        rows = kept.evidence.attempt(step)
        for sample, outcome in zip(rows["sample"], rows["outcome"], strict=True):
            if outcome == sp.Outcome.SUCCEEDED:
                answer = victim.query(kept.evidence.pair(step, int(sample))[1][None])
                assert int(answer.labels) != kept.evidence.samples["label"][sample]
                assert bool(answer.accepted)
    again = resume(run)
    assert again.robust_accuracy == kept.robust_accuracy == told["robust_accuracy"]


def test_the_joint_attack_breaks_what_the_others_leave(digits: sp.Victim) -> None:
    """A learned detector stops every attack that does not mind it, at a radius where all samples fall."""
    x, y = load_digits("train")
    crafted = sp.PGD(steps=20)(digits, x, y, sp.Linf(0.2), early_stop=False).adversarial
    assert isinstance(crafted, Tensor)
    guarded = digits.defended(detector=LearnedDetector(epochs=20).fit(digits, x, y, adversarial=crafted))
    found = audit(guarded, some(32), sp.Linf(0.2), preset="fast", checks=False, curve=False)
    *others, joint = [row for row in found.attacks if row.role == "main"][1:]
    assert joint.label == "joint-pgd"
    assert sum(row.broke for row in others) <= 2
    assert joint.broke >= 0.75 * joint.met
    assert found.robust_accuracy < 0.25


def test_the_joint_attack_averages_over_draws(digits: sp.Victim) -> None:
    x, y = load_digits("train")
    random = digits.defended([ResizePad(smallest=0.6)], FeatureSqueezing().fit(digits, x, y))
    rng = KeyedRandom(0, torch.arange(3))
    parts = [excess_gradient(random, x[:3], rng.fork(("draw", draw))) for draw in range(4)]
    assert not torch.equal(parts[0], parts[1])
    mean = excess_gradient(random.attack_view(eot=4), x[:3], rng)
    torch.testing.assert_close(mean, sum(parts) / 4)


def test_the_joint_attack_reads_no_detector_that_it_has_no_access_to(
    digits: sp.Victim, detector: Mahalanobis, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = some(8)
    guarded = digits.defended(detector=detector)
    threat = sp.ThreatModel(sp.Linf(0.2), access="nothing", knowledge=Knowledge(surrogates=(digits,)))
    monkeypatch.setattr("sparring.defences.detectors.joint.excess_gradient", lambda *_: pytest.fail("it was read"))
    assert JointPGD(steps=4, restarts=1)(guarded, x, y, threat).attack_success_rate >= 0
    with pytest.raises(pytest.fail.Exception, match="read"):
        JointPGD(steps=40, restarts=1)(guarded, x, y, sp.Linf(0.2))
