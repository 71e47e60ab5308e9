"""Attacks on tree ensembles by the public call: the proved minimum, a published fixture, and labels alone."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_wine
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import sparring as sp
from sparring.core import events
from sparring.core.batch import Batch
from sparring.core.errors import CapabilityError, InputError, ThreatError
from sparring.core.outputs import Prediction
from sparring.core.registry import attack_class
from sparring.core.rng import KeyedRandom
from sparring.tabular import CoordinateSearch, TreeEnsemble, TreeMILP, TreeVictim, from_xgboost_json, minimal_change
from sparring.victims.sklearn import SklearnVictim

MODELS: dict[str, Any] = {
    "forest": RandomForestClassifier(12, max_depth=5, random_state=0),
    "extra trees": ExtraTreesClassifier(8, max_depth=5, random_state=0),
    "boosting": GradientBoostingClassifier(n_estimators=8, random_state=0),
    "histogram boosting": HistGradientBoostingClassifier(max_iter=8, min_samples_leaf=5, random_state=0),
}
models = pytest.mark.parametrize("name", list(MODELS))


@functools.cache
def wine() -> tuple[np.ndarray, np.ndarray]:
    """Wines of three growers, 13 columns in [0, 1]."""
    X, y = load_wine(return_X_y=True)
    return (X - X.min(0)) / (X.max(0) - X.min(0)), y


@functools.cache
def grown(name: str) -> Any:
    X, y = wine()
    return MODELS[name].fit(X[::2], y[::2])


def unseen(n: int = 16, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    X, y = wine()
    index = np.arange(1, len(X), 2)[:: len(X) // 2 // n][:n]
    return torch.tensor(X[index]).to(dtype), torch.tensor(y[index])


def owned() -> sp.Knowledge:
    X, y = wine()
    return sp.Knowledge(data=(torch.tensor(X[::2], dtype=torch.float32), torch.tensor(y[::2])))


class TestVictim:
    @models
    def test_it_answers_as_the_library_does(self, name: str) -> None:
        model = grown(name)
        victim = TreeVictim(model)
        rows = torch.tensor(wine()[0], dtype=torch.float32)
        answer = victim.query(rows)
        assert torch.equal(answer.labels, torch.tensor(model.predict(rows.double().numpy())))
        assert answer.scores is not None
        proba = torch.tensor(model.predict_proba(rows.double().numpy()))
        assert torch.allclose(answer.scores.softmax(1), proba, atol=1e-12)
        assert bool(torch.isfinite(answer.scores).all())
        assert victim.labels == ("0", "1", "2")
        labels = TreeVictim(model, scores=False).query(rows)
        assert labels.scores is None
        assert torch.equal(labels.labels, answer.labels)
        assert len(victim.query(rows[:0])) == 0

    def test_what_it_takes_and_what_it_is(self) -> None:
        victim = TreeVictim(grown("forest"), labels=("Barolo", "Grignolino", "Barbera"), bounds=(0, 1), name="wines")
        x, y = victim.admit(unseen()[0], ["Barolo"] * 16)
        assert y.tolist() == [0] * 16
        for wrong, told in (
            (x[:, :5], "13 columns"),
            (x.half(), "too coarse"),
            (x.numpy(), "float tensor"),
            (x + torch.nan, "NaN"),
            (x + 5, r"\[0, 1\]"),
            (x.long(), "floats"),
        ):
            with pytest.raises(InputError, match=told):
                victim.admit(wrong, y)
        with pytest.raises(InputError, match="3 class names"):
            TreeVictim(grown("forest"), labels=("a", "b"))
        with pytest.raises(InputError, match="no trees can be read"):
            TreeVictim(LogisticRegression())
        with pytest.raises(InputError, match="float tensor"):
            victim.query(["row"])

    def test_the_fingerprint_follows_the_trees(self) -> None:
        victim = TreeVictim(grown("forest"))
        assert victim.fingerprint() == TreeVictim(victim.ensemble, name="another name").fingerprint()
        assert victim.fingerprint() != TreeVictim(grown("boosting")).fingerprint()
        assert victim.fingerprint() != TreeVictim(victim.ensemble, bounds=(0, 1)).fingerprint()
        threshold = victim.ensemble.threshold.copy()
        threshold[0] += 1e-9
        assert victim.fingerprint() != TreeVictim(replace(victim.ensemble, threshold=threshold)).fingerprint()


class TestMILP:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @models
    def test_the_public_call_finds_the_proved_minimum(self, name: str, dtype: torch.dtype) -> None:
        victim = TreeVictim(grown(name))
        x, y = unseen(8, dtype)
        before = x.clone()
        result = TreeMILP()(victim, x, y, sp.Linf())
        assert torch.equal(x, before)
        assert result.adversarial.dtype is dtype  # type: ignore[union-attr]
        assert not bool((result.outcome == sp.Outcome.FAILED).any())
        assert torch.equal(result.succeeded, result.clean_correct)  # without bounds every row can be flipped
        for row, label, d in zip(
            x[result.succeeded], y[result.succeeded], result.distance[result.succeeded], strict=True
        ):
            proved = minimal_change(victim.ensemble, row.double().numpy(), int(label))
            assert float(d) == pytest.approx(proved.distance, abs=2e-7)
        assert result.queries.sum() == 0
        assert result.median_distance < attack_class("tree-milp").card.floor["linf"]  # type: ignore[attr-defined]

    def test_float32_rows_meet_float64_cuts(self) -> None:
        """A cut that no float32 number hits: the point just past it in float64 would round back to the near side."""
        stump: dict[str, Any] = {
            "n_features": 1,
            "roots": [0],
            "feature": [0, -1, -1],
            "threshold": [0.1, 0, 0],
            "left": [1, 0, 0],
            "right": [2, 0, 0],
            "missing_left": [True, False, False],
            "value": [[0], [-1], [1]],
            "base": [0.0],
            "link": "logistic",
            "inputs": "float64",
        }
        victim = TreeVictim(TreeEnsemble(**stump))
        for start in (0.0, 0.2):
            for dtype in (torch.float32, torch.float64):
                result = TreeMILP()(victim, torch.tensor([[start]], dtype=dtype), None, sp.Linf())
                assert result.succeeded.all()
                cut = torch.tensor(0.1, dtype=dtype)
                assert abs(float(result.adversarial[0, 0] - cut)) <= float(torch.finfo(dtype).eps)  # type: ignore[call-overload]

    def test_an_eps_and_bounds_are_held(self) -> None:
        x, y = unseen()
        free = TreeMILP()(TreeVictim(grown("boosting")), x, y, sp.Linf())
        middle = free.median_distance
        held = TreeMILP()(TreeVictim(grown("boosting")), x, y, sp.Linf(middle))
        assert torch.equal(held.succeeded, free.succeeded & (free.distance <= middle))
        assert held.robust_accuracy == float(free.curve(middle)[1])
        assert sp.Outcome.FAILED not in held.outcomes
        tight = TreeVictim(grown("boosting"), bounds=(x.amin(0), x.amax(0)))
        result = TreeMILP()(tight, x, y, sp.Linf())
        assert bool((result.distance >= free.distance - 1e-7)[result.succeeded].all())
        assert bool(((result.adversarial >= x.amin(0)) & (result.adversarial <= x.amax(0))).all())  # type: ignore[operator]

    def test_a_target_costs_no_less(self) -> None:
        victim, (x, y) = TreeVictim(grown("forest")), unseen()
        free = TreeMILP()(victim, x, y, sp.Linf())
        aimed = TreeMILP()(victim, x, y, sp.Linf(), goal=2)
        both = free.succeeded & aimed.succeeded
        assert bool((aimed.distance >= free.distance - 1e-7)[both].all())
        assert bool((aimed.final.labels == 2)[aimed.succeeded].all())
        assert bool((aimed.outcome == sp.Outcome.NOT_APPLICABLE)[y == 2].all())
        each = TreeMILP()(victim, x, y, sp.Linf(), goal=(y + 1) % 3)
        assert torch.equal(each.final.labels[each.succeeded], ((y + 1) % 3)[each.succeeded])

    def test_neither_batch_size_nor_order_matters_and_progress_is_told(self) -> None:
        victim, (x, y) = TreeVictim(grown("forest")), unseen(9)
        heard: list[events.Event] = []
        with events.listening(heard.append):
            whole = TreeMILP()(victim, x, y, sp.Linf())
        assert len(heard) == int(whole.clean_correct.sum())
        order = torch.tensor([4, 8, 0, 3, 7, 1, 5, 2, 6])
        for size in (1, 4):
            part = TreeMILP()(victim, x[order], y[order], sp.Linf(), batch_size=size)
            assert torch.equal(part.adversarial, whole.adversarial[order])  # type: ignore[call-overload,arg-type]
            assert torch.equal(part.outcome, whole.outcome[order])

    def test_what_it_cannot_do_is_said(self) -> None:
        x, y = unseen(2)
        victim = TreeVictim(grown("forest"), bounds=(0, 1))
        with pytest.raises(CapabilityError, match=r"tree-milp needs the trees of the victim.*TreeVictim\(model\)"):
            TreeMILP()(SklearnVictim(grown("forest")), x, y, sp.Linf())
        with pytest.raises(CapabilityError, match="no trees to offer"):
            TreeMILP()(sp.Victim(torch.nn.Linear(13, 3)), x, y, sp.Linf())
        with pytest.raises(ThreatError, match="grants labels"):
            TreeMILP()(victim, x, y, sp.ThreatModel(sp.Linf(), access="labels"))
        with pytest.raises(ThreatError, match="searches linf"):
            TreeMILP()(victim, x, y, sp.L2())
        with pytest.raises(ThreatError, match="lattice"):
            TreeMILP()(victim, (x * 255).round() / 255, y, sp.Linf(lattice=256))
        with pytest.raises(ThreatError, match="from label to label"):
            TreeMILP()(victim, x, y, sp.ThreatModel(sp.Linf(), goal=sp.Predicate(lambda output, y: y < 0)))
        with pytest.raises(CapabilityError, match="pgd needs gradients"):
            sp.PGD()(victim, x, y, sp.Linf(0.1))


@pytest.fixture(scope="module")
def published(assets: Path) -> tuple[TreeVictim, Tensor, Tensor]:
    """The treeVerification fixture: a robust XGBoost model (a dump, columns from 1) and 100 points (libsvm)."""
    folder = assets / "data" / "trees"
    ensemble = from_xgboost_json(folder / "breast_cancer_robust.0008.json")
    rows = [line.split() for line in (folder / "example_breast_cancer0.libsvm").read_text().splitlines()]
    x = torch.zeros(len(rows), ensemble.n_features)
    for row, (_, *entries) in zip(x, rows, strict=True):
        for column, value in (entry.split(":") for entry in entries):
            row[int(column)] = float(value)
    return TreeVictim(ensemble, labels=("benign", "malignant")), x, torch.tensor([int(row[0]) for row in rows])


def test_the_published_fixture(published: tuple[TreeVictim, Tensor, Tensor], tmp_path: Path) -> None:
    """Mean minimal Linf .396, and an error of .13 at .3, over 100 points (Chen et al. 2019, treeVerification)."""
    victim, x, y = published
    result = TreeMILP()(victim, x, y, sp.Linf())
    assert result.succeeded.all()
    assert float(result.distance.mean()) == pytest.approx(0.396, abs=5e-4)
    radii, accuracy = result.curve(0.3)
    assert radii.tolist() == [0.3]
    assert 1 - float(accuracy) == pytest.approx(0.13)
    inside = TreeMILP()(victim, x, y, sp.Linf(0.3))
    assert 1 - inside.robust_accuracy == pytest.approx(0.13)
    stored = sp.AttackResult.load(result.save(tmp_path / "trees.safetensors"))
    assert torch.equal(victim.query(stored.adversarial).labels, result.final.labels)


def test_labels_alone_on_the_published_fixture(published: tuple[TreeVictim, Tensor, Tensor]) -> None:
    victim, x, y = published
    x, y = x[:30], y[:30]
    least = TreeMILP()(victim, x, y, sp.Linf()).distance
    found = CoordinateSearch(rounds=60)(TreeVictim(victim.ensemble, scores=False), x, y, sp.Linf())
    assert found.succeeded.all()
    assert bool((found.distance >= least * (1 - 1e-6)).all())
    assert float((found.distance / least).median()) < 1.1


class Spied(SklearnVictim):
    """A victim that counts the rows it is asked about."""

    asked = 0

    def query(self, x: Batch, noise: KeyedRandom | None = None) -> Prediction:
        self.asked += len(x)
        return super().query(x, noise)


class TestLabelsAlone:
    @pytest.mark.parametrize("knows", [True, False])
    @models
    def test_never_below_the_optimum_and_near_it(self, name: str, knows: bool) -> None:
        x, y = unseen()
        least = TreeMILP()(TreeVictim(grown(name)), x, y, sp.Linf())
        threat = sp.ThreatModel(sp.Linf(), knowledge=owned() if knows else sp.Knowledge(), queries=1200)
        found = CoordinateSearch()(SklearnVictim(grown(name), scores=False), x, y, threat)
        assert torch.equal(found.succeeded, least.succeeded)
        ratio = (found.distance / least.distance)[least.succeeded]
        assert float(ratio.min()) >= 1 - 1e-6
        assert float(ratio.median()) < 1.05
        assert float(ratio.max()) < 2.5  # one optimum of the extra trees is a sliver
        assert int(found.queries.max()) == 1200
        assert found.median_distance < attack_class("coordinate-search").card.floor["linf"]  # type: ignore[attr-defined]

    @pytest.mark.parametrize("budget", [0, 1, 19, 20, 21, 333])
    def test_every_query_is_counted_and_no_row_spends_more(self, budget: int) -> None:
        x, y = unseen()
        victim = Spied(grown("forest"), scores=False)
        threat = sp.ThreatModel(sp.Linf(), knowledge=owned(), queries=budget)
        result = CoordinateSearch()(victim, x, y, threat)
        tried = int(result.clean_correct.sum())
        assert victim.asked == len(x) + int(result.queries.sum()) + tried
        assert set(result.queries[result.clean_correct].tolist()) == {budget}
        assert bool(((result.outcome == sp.Outcome.OUT_OF_BUDGET) == (result.clean_correct & ~result.succeeded)).all())

    def test_a_success_inside_an_eps_ends_the_search(self) -> None:
        x, y = unseen()
        victim, data = SklearnVictim(grown("forest"), scores=False), owned()
        free = CoordinateSearch(rounds=40)(victim, x, y, sp.ThreatModel(sp.Linf(), knowledge=data))
        held = CoordinateSearch(rounds=40)(victim, x, y, sp.ThreatModel(sp.Linf(0.2), knowledge=data))
        assert torch.equal(held.succeeded, free.succeeded & (free.distance <= 0.2))
        assert bool((held.queries < free.queries)[held.succeeded].all())
        assert bool((held.distance <= 0.2 + 1e-6)[held.succeeded].all())

    def test_targets_bounds_and_starts(self) -> None:
        x, y = unseen()
        start = x[y == 2][:1].expand_as(x).contiguous()
        victim = SklearnVictim(grown("forest"), scores=False, bounds=(0, 1))
        for knowledge in (owned(), sp.Knowledge(starts=start)):
            threat = sp.ThreatModel(sp.Linf(), goal=sp.Targeted(2), knowledge=knowledge)
            result = CoordinateSearch(rounds=30)(victim, x, y, threat)
            assert bool(result.succeeded[(y != 2) & result.clean_correct].all())
            assert bool((result.final.labels == 2)[result.succeeded].all())
            assert bool(((result.adversarial >= 0) & (result.adversarial <= 1)).all())  # type: ignore[operator]

    def test_neither_batch_size_nor_order_matters(self) -> None:
        x, y = unseen(8)
        victim, threat = TreeVictim(grown("boosting"), scores=False), sp.ThreatModel(sp.Linf(), knowledge=owned())
        whole = CoordinateSearch(rounds=9)(victim, x, y, threat)
        order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
        for size in (1, 3):
            part = CoordinateSearch(rounds=9)(victim, x[order], y[order], threat, batch_size=size)
            assert torch.equal(part.adversarial, whole.adversarial[order])  # type: ignore[call-overload,arg-type]
            assert torch.equal(part.queries, whole.queries[order])
        assert not torch.equal(CoordinateSearch(rounds=9)(victim, x, y, threat, seed=1).adversarial, whole.adversarial)  # type: ignore[arg-type]

    def test_a_victim_that_never_changes_its_mind(self) -> None:
        x = torch.rand(3, 4)
        box = sp.BlackBox(lambda rows: torch.ones(len(rows), dtype=torch.int64), classes=2)
        result = CoordinateSearch()(box, x, None, sp.Linf())
        assert result.outcomes == [sp.Outcome.SURVIVED] * 3
        assert torch.equal(result.adversarial, x)  # type: ignore[arg-type]
        assert int(result.queries.max()) == 34 * 20  # it gives up once the cubes are ten million units wide

    def test_slips_are_told(self) -> None:
        x, y = unseen(2)
        victim = SklearnVictim(grown("forest"), scores=False)
        for attack in (CoordinateSearch(rounds=0), CoordinateSearch(at_once=0), CoordinateSearch(precision=0.0)):
            with pytest.raises(InputError, match="rounds >= 1"):
                attack(victim, x, y, sp.Linf())
        wrong = sp.Knowledge(data=(torch.zeros(5, 3), torch.zeros(5)))
        with pytest.raises(InputError, match=r"\(n, 13\) is needed"):
            CoordinateSearch()(victim, x, y, sp.ThreatModel(sp.Linf(), knowledge=wrong))
        with pytest.raises(ThreatError, match="searches linf"):
            CoordinateSearch()(victim, x, y, sp.L2())
