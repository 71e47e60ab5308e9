"""Artifacts: universal perturbations and AdvGAN; fitted once with gradients, they attack without the victim."""

from __future__ import annotations

import functools
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import sparring as sp
import tiny
from sparring.attacks.universal import AdvGAN, Artifact, Universal
from sparring.core.errors import CapabilityError, InputError, LoadError, ThreatError
from sparring.core.result import Outcome
from sparring.core.threat import Knowledge
from sparring.victims.sklearn import SklearnVictim

SMALL = AdvGAN(epochs=20, width=8)


def data() -> tuple[Tensor, Tensor]:
    """What artifacts are fitted on here; `tiny.correct` is held out."""
    return tiny.pictures(200, seed=4)


@functools.cache
def fitted(kind: str, target: int | None = None) -> Artifact:
    """An artifact for the tiny victim at Linf .15 (L2 .8 for "l2"), twice that when it has a target."""
    method = {"sgd": Universal(), "l2": Universal(), "deepfool": Universal(form="deepfool", epochs=2), "advgan": SMALL}[
        kind
    ]
    space = sp.L2 if kind == "l2" else sp.Linf
    eps = (0.8 if kind == "l2" else 0.15) * (1 if target is None else 2)
    part = tuple(t[:60] for t in data()) if kind == "deepfool" else data()
    return method.fit(tiny.trained(), part, space(eps), goal=target)


# -- what is known -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("space", "eps"), [(sp.Linf, 0.1), (sp.L2, 0.3)])
def test_on_a_linear_victim_one_class_has_one_best_direction(space: Any, eps: float) -> None:
    """Two classes, scores w.x and -w.x: every input of class 0 is best moved along -w, in signs or over its length."""
    w = torch.tensor([0.5, -1.0, 2.0, -0.25])
    victim = tiny.linear(torch.stack([w, -w]))
    x = 0.5 + 0.05 * torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(40, dtype=torch.int64)
    change = Universal(batch_size=8).fit(victim, (x, y), space(eps)).tensors["change"][0]
    best = -eps * w.sign() if space is sp.Linf else -eps * w / w.norm()
    torch.testing.assert_close(change, best, atol=1e-3 * eps, rtol=0)
    there = Universal(batch_size=8).fit(victim, (x, y), space(eps), goal=1).tensors["change"][0]
    torch.testing.assert_close(there, change)  # with two classes, away from one is towards the other


def test_deepfool_gathers_the_way_over_a_common_boundary() -> None:
    """Inputs at one distance from a hyperplane: the first step carries all of them over it, and no more are taken."""
    w = torch.tensor([3.0, -4.0]) / 5
    victim = tiny.linear(torch.stack([w, -w]), [-float(w.sum()) / 2 + 0.1, float(w.sum()) / 2 - 0.1])
    along = torch.linspace(-0.2, 0.2, 9)[:, None] * torch.tensor([0.8, 0.6])
    x = 0.5 + along  # all 0.1 inside class 0
    made = Universal(form="deepfool").fit(victim, (x, torch.zeros(9, dtype=torch.int64)), sp.L2(0.3))
    torch.testing.assert_close(made.tensors["change"][0], -0.102 * w, atol=1e-4, rtol=0)
    assert made.fooling_rate(victim, x) == 1.0
    assert made.record.backwards <= 4  # one input was asked, two classes each


@pytest.mark.parametrize("kind", ["sgd", "l2", "deepfool", "advgan"])
def test_it_fools_held_out_inputs_far_more_often_than_noise(kind: str) -> None:
    made, (x, y) = fitted(kind), tiny.correct(100, seed=9)
    rate = made.fooling_rate(tiny.trained(), x)
    noise = sp.attacks.UniformNoise()(tiny.trained(), x, y, made.ball)
    assert rate > {"sgd": 0.4, "l2": 0.4, "deepfool": 0.25, "advgan": 0.6}[kind]
    assert rate > noise.attack_success_rate + 0.2
    result = made.evaluate(tiny.trained(), x, y)
    assert result.attack_success_rate == pytest.approx(rate)  # all are right at first, and untargeted
    assert Outcome.FAILED not in result.outcomes
    assert torch.equal(result.adversarial, made.apply(x))
    assert made.fooling_rate(tiny.trained(seed=1), x) > 0.2  # another network


@pytest.mark.parametrize("kind", ["sgd", "advgan"])
def test_a_target_is_reached_on_held_out_inputs(kind: str) -> None:
    x, y = tiny.correct(40, seed=9)
    result = fitted(kind, 2).evaluate(tiny.trained(), x, y)
    assert result.attack_success_rate > 0.8
    assert (result.final.labels[result.succeeded] == 2).all()
    assert result.outcomes.count(Outcome.NOT_APPLICABLE) == int((y == 2).sum())


def test_the_fooling_rate_on_a_victim_of_tables_is_counted_on_rows() -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = data()
    model = LogisticRegression(max_iter=300).fit(x.flatten(1).double().numpy(), y.numpy())
    made, held_out = fitted("sgd"), tiny.correct(50, seed=9)[0]
    labels = [model.predict(z.flatten(1).double().numpy()) for z in (held_out, made.apply(held_out))]
    wanted = float((labels[0] != labels[1]).mean())
    assert made.fooling_rate(SklearnVictim(model), held_out) == pytest.approx(wanted)
    assert wanted > 0.1


# -- access and cost ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sgd", "advgan"])
def test_after_the_fit_the_victim_is_asked_for_verdicts_alone(kind: str) -> None:
    victim, spy = tiny.spied(tiny.trained())
    x, y = tiny.correct(12)
    result = fitted(kind).evaluate(victim, x, y)
    assert spy.batches == [12, 12]  # the clean pass and the re-check
    for meter in (result.queries, result.forwards, result.backwards):
        assert meter.tolist() == [0] * 12


@pytest.mark.parametrize(
    ("method", "passes"),
    [(Universal(epochs=3), 3), (AdvGAN(epochs=3, width=4), 3), (Universal(form="deepfool", epochs=1), None)],
)
def test_the_record_says_what_fitting_cost(method: Any, passes: int | None) -> None:
    victim, spy = tiny.spied(tiny.trained())
    x, y = tiny.pictures(20, seed=4)
    record = method.fit(victim, (x, y), sp.Linf(0.1), seed=5).record
    asked = sum(spy.batches) - 1  # and one for the number of classes
    assert record.forwards == asked
    assert passes is None or record.forwards == record.backwards == 20 * passes
    assert (record.fitting, record.applying, record.seed, record.samples) == ("gradients", "nothing", 5, 20)


@pytest.mark.parametrize("method", [Universal(epochs=2), AdvGAN(epochs=2, width=4)])
def test_a_fit_repeats_by_seed_and_changes_nothing_else(method: Any) -> None:
    victim = tiny.trained()
    before, states = victim.fingerprint(), tiny.random_states()
    first, again, other = (method.fit(victim, data(), sp.Linf(0.1), seed=seed).tensors for seed in (0, 0, 1))
    assert tiny.random_states() == states
    assert victim.fingerprint() == before
    assert all(p.grad is None for m in victim.modules for p in m.parameters())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_by_the_call_it_is_fitted_on_what_the_attacker_has() -> None:
    x, y = tiny.correct(12)
    known = Knowledge(surrogates=(tiny.trained(1),), data=data())
    by_call = Universal()(tiny.trained(), x, y, sp.ThreatModel(sp.Linf(0.15), knowledge=known))
    by_hand = Universal().fit(tiny.trained(1), data(), sp.Linf(0.15)).evaluate(tiny.trained(), x, y)
    assert torch.equal(by_call.adversarial, by_hand.adversarial)
    assert by_call.attack == "universal"
    assert by_call.params["epochs"] == 10
    assert "choose" not in by_call.params
    assert all(" at 0x" not in str(value) for value in by_hand.params.values())  # equal in every run
    grey = sp.ThreatModel(sp.Linf(0.15), access="gradients", knowledge=Knowledge(data=data()))
    assert torch.equal(Universal()(tiny.trained(), x, y, grey).adversarial, fitted("sgd").apply(x))


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sgd", "advgan"])
def test_a_saved_artifact_loads_back_equal(kind: str, tmp_path: Path) -> None:
    made, (x, y) = fitted(kind), tiny.correct(12)
    path = made.save(tmp_path / "artifact.safetensors")
    back = Artifact.load(path)
    assert back.record == made.record
    assert type(back) is type(made)
    assert torch.equal(back.apply(x), made.apply(x))
    method: Any = {"sgd": Universal, "advgan": AdvGAN}[kind]
    result = method(file=str(path))(tiny.trained(), x, y, sp.Linf(0.15))
    assert torch.equal(result.adversarial, made.apply(x))
    nearer = method(file=str(path))(tiny.trained(), x, y, sp.Linf(0.05))
    assert (nearer.distance <= 0.05 + 1e-6).all()
    other: Any = {"sgd": AdvGAN, "advgan": Universal}[kind]
    with pytest.raises(ThreatError, match="holds an artifact of"):
        other(file=str(path))(tiny.trained(), x, y, sp.Linf(0.15))


def test_foreign_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    for content in (b"", b"no safetensors", None):
        if content is None:
            save_file({"change": torch.zeros(1, 3)}, str(path))
        else:
            path.write_bytes(content)
        with pytest.raises(LoadError, match="no artifact"):
            Artifact.load(path)
    with pytest.raises(LoadError):
        Artifact.load(tmp_path / "absent.safetensors")
    spoilt = fitted("advgan")
    cut = type(spoilt)(spoilt.record, {k: v for k, v in spoilt.tensors.items() if "up" not in k}, spoilt.bounds)
    with pytest.raises(RuntimeError):
        cut.apply(tiny.correct(2)[0])
    with pytest.raises(LoadError, match="no artifact"):
        Artifact.load(cut.save(path))


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_several_surrogates_are_fitted_on_together() -> None:
    x, y = tiny.correct(40, seed=9)
    pair = (tiny.trained(1), tiny.trained(2))
    for over in ("logits", "losses"):
        known = Knowledge(surrogates=pair, data=(data()[0], None), ensemble=over)
        result = Universal(epochs=4)(tiny.trained(), x, y, sp.ThreatModel(sp.Linf(0.2), knowledge=known))
        assert result.attack_success_rate > 0.4


def test_without_data_or_gradients_the_error_says_how_to_fit() -> None:
    x, y = tiny.correct(2)
    for knowledge in (Knowledge(), Knowledge(data=data()), Knowledge(surrogates=(tiny.trained(1),))):
        with pytest.raises(ThreatError, match=r"Universal\(\)\.fit"):
            Universal()(tiny.trained(), x, y, sp.ThreatModel(sp.Linf(0.1), knowledge=knowledge))


@pytest.mark.parametrize(
    ("method", "change", "error", "says"),
    [
        (Universal(), {"victim": sp.BlackBox(lambda x: x, classes=2)}, CapabilityError, "train_substitute"),
        (Universal(), {"threat": sp.L1(1.0)}, ThreatError, "linf, l2"),
        (AdvGAN(), {"threat": sp.L2(1.0)}, ThreatError, "searches linf"),
        (Universal(), {"threat": sp.Linf()}, ThreatError, "eps > 0"),
        (Universal(), {"threat": sp.Linf(torch.tensor([0.1, 0.2]))}, ThreatError, "one ball"),
        (Universal(), {"goal": torch.tensor([0, 1])}, ThreatError, "one goal"),
        (Universal(), {"goal": 9}, InputError, "targets"),
        (Universal(form="deepfool"), {"goal": 1}, ThreatError, "untargeted only"),
        (Universal(form="adam"), {}, InputError, "'sgd' or 'deepfool'"),
        (Universal(epochs=0), {}, InputError, "epochs is 0"),
        (AdvGAN(width=0), {}, InputError, "width 0"),
        (Universal(), {"data": (torch.zeros(0, 1, 6, 6), None)}, InputError, "at least one"),
        (Universal(), {"data": (torch.full((2, 1, 6, 6), 2.0), None)}, InputError, "bounds"),
    ],
)
def test_a_fit_refuses_what_cannot_be_right(
    method: Any, change: dict[str, Any], error: type[Exception], says: str
) -> None:
    given: dict[str, Any] = {"victim": tiny.trained(), "data": tiny.pictures(4, 0), "threat": sp.Linf(0.1)} | change
    with pytest.raises(error, match=says):
        method.fit(**given)


def test_inputs_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(1, 6, 6\)"):
        fitted("sgd").apply(torch.zeros(2, 1, 8, 8))
    rows = tiny.linear(torch.eye(4))
    with pytest.raises(InputError, match="pictures"):
        AdvGAN().fit(rows, (torch.rand(3, 4), None), sp.Linf(0.1))


def test_a_plain_network_falls_to_one_change_for_all(zoo: ModuleType) -> None:
    """CIFAR-10 at 8/255, fitted on 200 pictures: most others fall, and few of an adversarially trained network's."""
    plain, robust = (sp.Victim(zoo.load(name), name=name) for name in ("cifar10_resnet20", "cifar10_adv_2px"))
    x, y = zoo.data("cifar10", 250)
    made = Universal(epochs=6, batch_size=25).fit(plain, (x[:200], y[:200]), sp.Linf(8 / 255))
    assert made.fooling_rate(plain, x[200:]) > 0.5
    assert made.fooling_rate(robust, x[200:]) < 0.15
