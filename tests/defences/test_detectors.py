"""Detectors: scores by hand, thresholds that keep their rate of false alarms, and the joint attack that passes each."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
import tiny
from sparring.core.errors import CapabilityError, InputError, VanishedGradientWarning, VictimError
from sparring.data import load_digits
from sparring.defences.detectors import (
    LID,
    ROC,
    AnswerDivergence,
    Detector,
    FeatureSqueezing,
    JointPGD,
    LearnedDetector,
    Mahalanobis,
    ReconstructionError,
    Union,
    features,
)
from sparring.defences.inputs import BitDepth, Median

EPS = 0.2
N = 100


@pytest.fixture(scope="module")
def crafted(digits: sp.Victim) -> Tensor:
    x, y = load_digits("train")
    return sp.PGD(steps=20, loss="margin").craft(digits, x, y, sp.Linf(EPS))


def made(name: str) -> Detector:
    kinds: dict[str, Any] = {
        "squeezing": lambda: FeatureSqueezing(squeezers=(BitDepth(bits=1),)),
        "mahalanobis": Mahalanobis,
        "lid": LID,
        "lid-layers": lambda: LID(layers=("conv2", "linear1")),
        "error": ReconstructionError,
        "divergence": lambda: AnswerDivergence(epochs=10),
        "learned": lambda: LearnedDetector(epochs=10),
    }
    return kinds[name]()  # type: ignore[no-any-return]


ALL = ["squeezing", "mahalanobis", "lid", "lid-layers", "error", "divergence", "learned"]


@pytest.mark.parametrize("name", ALL)
def test_a_detector_keeps_its_rate_of_false_alarms_and_changes_nothing_else(
    name: str, digits: sp.Victim, crafted: Tensor
) -> None:
    x, y = load_digits("train")
    states = tiny.random_states()
    detector = made(name).fit(digits, x, y, adversarial=crafted, fpr=0.05)
    assert tiny.random_states() == states
    held = x[len(x) * 4 // 5 :]
    assert float((~detector(held)).double().mean()) <= 0.05
    fresh, _labels = load_digits("test")
    assert float((~detector(fresh)).float().mean()) < 0.13
    scores = detector.score(fresh[:20])
    assert scores.shape == (20,)
    torch.testing.assert_close(torch.cat([detector.score(fresh[i : i + 1]) for i in range(20)]), scores)
    guarded = digits.defended(detector=detector)
    answers = guarded.query(fresh[:50])
    assert torch.equal(answers.accepted, detector(fresh[:50]))
    torch.testing.assert_close(answers.scores, digits.query(fresh[:50]).scores)
    assert guarded.fingerprint() != digits.fingerprint()
    assert guarded.traits.rejects


def test_the_threshold_is_the_quantile_of_clean_scores(digits: sp.Victim) -> None:
    x, y = load_digits("test")
    detector = FeatureSqueezing().fit(digits, x, y, fpr=0.0)
    held = x[len(x) * 4 // 5 :]
    assert bool(detector(held).all())
    assert float(detector.threshold) == float(detector.scores(held).max())
    for fpr in (0.01, 0.1, 0.5, 1.0):
        detector.calibrate(held, fpr)
        rejected = float((~detector(held)).double().mean())
        assert fpr - 1 / len(held) < rejected <= fpr
    with pytest.raises(InputError, match="share"):
        detector.calibrate(held, 5)
    with pytest.raises(InputError, match="at least 10"):
        detector.fit(digits, x[:5], y[:5])


def test_before_fit_a_detector_says_so() -> None:
    for name in ALL:
        with pytest.raises(VictimError, match="fit"):
            made(name)(torch.zeros(1, 1, 8, 8))
        with pytest.raises(VictimError, match="fit"):
            made(name).scores(torch.zeros(1, 1, 8, 8))
    with pytest.raises(InputError, match="both kinds"):
        LearnedDetector().fit(tiny.trained(), *tiny.pictures(40, 0))


def test_roc_by_hand() -> None:
    roc = ROC.of(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.35, 0.5, 0.6, 0.7]))
    assert roc.auc == pytest.approx(15 / 16)
    assert roc.fpr[0] == roc.tpr[0] == 0
    assert roc.fpr[-1] == roc.tpr[-1] == 1
    assert float(roc.tpr[roc.fpr == 0].max()) == 0.75
    assert ROC.of(torch.ones(3), torch.ones(5)).auc == pytest.approx(0.5)
    assert ROC.of(torch.tensor([1.0, 2.0]), torch.tensor([0.0])).auc == 0
    with pytest.raises(InputError, match="ROC"):
        ROC.of(torch.ones(0), torch.ones(3))


def test_squeezing_is_the_largest_distance_of_the_answers(digits: sp.Victim) -> None:
    x, y = (t[:30] for t in load_digits("test"))
    squeezers = (BitDepth(bits=1), Median(size=2))
    detector = FeatureSqueezing(squeezers=squeezers).fit(digits, x, y)
    p = digits.query(x).scores.softmax(1)  # type: ignore[union-attr]
    far = [(p - digits.query(q(x)).scores.softmax(1)).abs().sum(1) for q in squeezers]  # type: ignore[union-attr]
    torch.testing.assert_close(detector.score(x), torch.maximum(*far))


def test_mahalanobis_is_the_distance_in_the_shared_covariance() -> None:
    g = torch.Generator().manual_seed(0)
    mix = torch.tensor([[2.0, 0.0], [1.0, 0.5]])
    y = torch.arange(4000) % 2
    x = torch.randn(4000, 2, generator=g) @ mix.T + torch.tensor([[0.0, 0.0], [9.0, 3.0]])[y]
    victim = sp.Victim(nn.Sequential(nn.Identity(), nn.Linear(2, 2)), bounds=(-50.0, 50.0))
    detector = Mahalanobis(ridge=1e-6).fit(victim, x, y)
    point = torch.tensor([[1.0, -1.0], [8.0, 5.0]])
    inverse = torch.linalg.inv(mix @ mix.T)
    means = torch.tensor([[0.0, 0.0], [9.0, 3.0]])
    gap = point[:, None] - means
    wanted = torch.einsum("nci,ij,ncj->nc", gap, inverse, gap).amin(1)
    torch.testing.assert_close(detector.score(point).detach(), wanted, rtol=0.1, atol=0.2)


def test_lid_finds_the_dimension_of_a_plane() -> None:
    g = torch.Generator().manual_seed(0)
    for dimension in (2, 5):
        flat = torch.zeros(1500, 8)
        flat[:, :dimension] = torch.rand(1500, dimension, generator=g)
        victim = sp.Victim(nn.Sequential(nn.Identity(), nn.Linear(8, 2)))
        detector = LID(reference=1000, neighbours=30).fit(victim, flat, torch.arange(1500) % 2)
        inside = flat[1200:][(flat[1200:, :dimension] - 0.5).abs().amax(1) < 0.3]
        assert float(detector.score(inside).mean()) == pytest.approx(dimension, rel=0.2)


def test_features_are_the_layers_and_no_hook_is_left(digits: sp.Victim) -> None:
    x = load_digits("test")[0][:3]
    net = digits.net
    assert isinstance(net, nn.Module)
    inner, last = features(digits, x, ("linear1", "penultimate"))
    torch.testing.assert_close(inner.relu(), last)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    with pytest.raises(InputError, match="conv1"):
        features(digits, x, ("conv9",))
    assert not any(m._forward_hooks for m in net.modules())


def test_a_union_accepts_what_all_accept(digits: sp.Victim) -> None:
    x, y = load_digits("test")
    parts = [Mahalanobis().fit(digits, x, y, fpr=0.1), FeatureSqueezing().fit(digits, x, y, fpr=0.1)]
    both = Union(*parts)
    assert torch.equal(both(x), parts[0](x) & parts[1](x))
    assert torch.equal(both(x), both.score(x) <= 0)
    with pytest.raises(InputError, match="no detectors"):
        Union()


# -- each with its break -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "oblivious", "left"),
    [("squeezing", 0.55, 0.1), ("learned", 0.85, 0.35), ("lid", 0.15, 0.08), ("error", 0.15, 0.1)],
)
def test_a_detector_stops_who_does_not_know_of_it_and_not_the_joint_attack(
    name: str, oblivious: float, left: float, digits: sp.Victim, crafted: Tensor
) -> None:
    train, labels = load_digits("train")
    x, y = (t[:N] for t in load_digits("test"))
    guarded = digits.defended(detector=made(name).fit(digits, train, labels, adversarial=crafted))
    unaware = guarded.query(sp.PGD(steps=40)(digits, x, y, sp.Linf(EPS), early_stop=False).adversarial)
    stopped = float((~((unaware.labels != y) & unaware.accepted)).float().mean())
    joint = JointPGD(steps=60)(guarded, x, y, sp.Linf(EPS))
    assert stopped > oblivious
    assert joint.robust_accuracy < left
    answers = guarded.query(joint.adversarial[joint.succeeded])
    assert bool(answers.accepted.all())
    assert bool((answers.labels != y[joint.succeeded]).all())


def test_the_joint_attack_goes_through_stages_and_without_a_detector() -> None:
    x, y = (t[:60] for t in load_digits("test"))
    train, labels = load_digits("train")
    bare = sp.load("digits")
    assert isinstance(bare, sp.Victim)
    squeezed = bare.defended(pre=[BitDepth(bits=3)])
    detector = Mahalanobis().fit(bare, train, labels)
    both = squeezed.defended(detector=detector)
    with pytest.warns(VanishedGradientWarning):
        naive = sp.PGD(steps=40)(both, x, y, sp.Linf(EPS)).robust_accuracy
    joint = JointPGD(steps=40)(both.attack_view(), x, y, sp.Linf(EPS)).robust_accuracy
    assert naive > 0.85
    assert joint < 0.3
    plain = JointPGD(steps=20, restarts=1)(bare, x, y, sp.Linf(EPS)).robust_accuracy
    assert plain < 0.1


def test_the_joint_attack_does_not_mind_the_batch(digits: sp.Victim) -> None:
    x, y = (t[:12] for t in load_digits("test"))
    train, labels = load_digits("train")
    guarded = digits.defended(detector=Mahalanobis().fit(digits, train, labels))
    attack = JointPGD(steps=10, restarts=2)
    whole, parts = (attack(guarded, x, y, sp.Linf(EPS), batch_size=size) for size in (12, 5))
    assert torch.equal(whole.outcome, parts.outcome)


def test_a_detector_without_a_score_is_refused(digits: sp.Victim) -> None:
    x, y = (t[:4] for t in load_digits("test"))
    guarded = digits.defended(detector=lambda z: z.flatten(1).mean(1) < math.inf)
    with pytest.raises(CapabilityError, match="score"):
        JointPGD(steps=2)(guarded, x, y, sp.Linf(EPS))
