"""The exact minimal change of a tree ensemble, against every cell counted out and against a published fixture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)

import sparring.tabular.kantchelian as kantchelian
from sparring.core.errors import InputError
from sparring.tabular.ensemble import Precision, TreeEnsemble
from sparring.tabular.importers import from_sklearn, from_xgboost_json
from sparring.tabular.kantchelian import Minimal, minimal_change

Labels = Callable[[np.ndarray], np.ndarray]


def by_counting(
    ensemble: TreeEnsemble,
    x: np.ndarray,
    wanted: Callable[[np.ndarray], np.ndarray],
    *,
    labels: Labels | None = None,
    weights: Any = 1.0,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> float:
    """Find the minimal distance by trying, in every combination, x and the inputs around every threshold."""
    number = np.dtype(ensemble.inputs).type
    axes = []
    for f in range(ensemble.n_features):
        at = np.unique(ensemble.threshold[ensemble.feature == f]).astype(number)
        near = [at, np.nextafter(at, number(np.inf)), np.nextafter(at, number(-np.inf))]
        values = np.unique(np.concatenate([[x[f]], *[array.astype(np.float64) for array in near]]))
        axes.append(values[(values >= bounds[0]) & (values <= bounds[1])])
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, ensemble.n_features)
    distance = np.max(np.abs(grid - x) * weights, axis=1)
    order = np.argsort(distance)
    for start in range(0, order.size, 5000):  # from near to far, so that most of a large grid need not be classified
        block = order[start : start + 5000]
        found = wanted((labels or ensemble.labels)(grid[block]))
        if found.any():
            return float(distance[block][found].min())
    return np.inf


def check_point(ensemble: TreeEnsemble, x: np.ndarray, result: Minimal, weights: Any = 1.0) -> None:
    """The answer must be consistent in itself: a point at its distance, with its label, proved or not."""
    if result.x_adv is None:
        assert (result.distance, result.status, result.bound) == (np.inf, "infeasible", np.inf)
        return
    assert np.max(weights * np.abs(result.x_adv - x)) == result.distance
    assert ensemble.labels(result.x_adv[None]).item() == result.label
    assert (result.status == "optimal") == (result.bound == result.distance)
    changed = result.x_adv[result.x_adv != x]
    assert np.array_equal(changed, changed.astype(ensemble.inputs))  # no rounding can take it back over a threshold


def two_stumps(rule: str = "<=", inputs: Precision = "float64", **changes: Any) -> TreeEnsemble:
    """F = step at x_0 = 1 (+-2) plus step at x_1 = 3 (+-1) - 0.5; class 1 where F > 0: when x_0 passes 1."""
    entries: dict[str, Any] = {
        "n_features": 2,
        "roots": [0, 3],
        "feature": [0, -1, -1, 1, -1, -1],
        "threshold": [1, 0, 0, 3, 0, 0],
        "left": [1, 0, 0, 4, 0, 0],
        "right": [2, 0, 0, 5, 0, 0],
        "missing_left": [True, False, False, True, False, False],
        "value": [[0], [-2], [2], [0], [-1], [1]],
        "base": [-0.5],
        "link": "logistic",
        "rule": rule,
        "inputs": inputs,
    }
    return TreeEnsemble(**(entries | changes))


class TestByHand:
    @pytest.mark.parametrize(
        ("rule", "inputs", "upwards", "downwards"),
        [
            ("<=", "float64", 1 + 2.0**-52, 1.0),
            ("<", "float64", 1.0, 1 - 2.0**-53),
            ("<=", "float32", 1 + 2.0**-23, 1.0),
            ("<", "float32", 1.0, 1 - 2.0**-24),
        ],
    )
    def test_each_side_of_a_threshold(self, rule: str, inputs: Precision, upwards: float, downwards: float) -> None:
        ensemble = two_stumps(rule, inputs)
        up = minimal_change(ensemble, [0.0, 0.0], 0)
        assert up.x_adv is not None
        assert (up.x_adv.tolist(), up.distance, up.status, up.label) == ([upwards, 0], upwards, "optimal", 1)
        down = minimal_change(ensemble, [2.0, 4.0], 1)
        assert down.x_adv is not None
        assert (down.x_adv.tolist(), down.distance, down.bound) == ([downwards, 4], 2 - downwards, 2 - downwards)

    def test_two_features_move_together(self) -> None:
        ensemble = two_stumps("<", base=[-2.5])  # both steps are needed now
        result = minimal_change(ensemble, [0.0, 0.0], 0)
        assert result.x_adv is not None
        assert (result.x_adv.tolist(), result.distance) == ([1, 3], 3)

    def test_a_tie_is_enough_for_the_lower_class_only(self) -> None:
        leaves = {"value": [[0, 0], [1, 0], [0, 1], [0, 0], [1, 0], [0, 1]], "base": [0, 0], "link": "mean"}
        ensemble = two_stumps("<", **leaves)
        assert minimal_change(ensemble, [0.0, 0.0], 0).distance == 3  # a tie at x_0 = 1 stays with class 0
        assert minimal_change(ensemble, [3.0, 4.0], 1).distance == pytest.approx(1)  # and here it suffices

    @pytest.mark.parametrize("zero_wins", [False, True])
    def test_a_margin_of_zero(self, zero_wins: bool) -> None:
        ensemble = two_stumps("<", base=[-1.0], zero_wins=zero_wins)  # passing x_0 = 1 makes the margin zero
        assert minimal_change(ensemble, [0.0, 0.0], 0).distance == (1 if zero_wins else 3)

    def test_what_is_wrong_already_costs_nothing(self) -> None:
        result = minimal_change(two_stumps(), [0.0, 0.0], 1)
        assert result.x_adv is not None
        assert (result.x_adv.tolist(), result.distance, result.status, result.label) == ([0, 0], 0, "optimal", 0)

    def test_weights_and_forbidden_features(self) -> None:
        ensemble = two_stumps("<", value=[[0], [-2], [2], [0], [-2], [2]], base=[0.5])  # either step alone flips
        assert minimal_change(ensemble, [0.0, 0.0], 0).distance == 1
        heavy = minimal_change(ensemble, [0.0, 0.0], 0, weights=[4, 1])
        assert heavy.x_adv is not None
        assert (heavy.x_adv.tolist(), heavy.distance) == ([0, 3], 3)
        fixed = minimal_change(ensemble, [0.0, 0.0], 0, weights=[np.inf, 0.5])
        assert (fixed.distance, fixed.status) == (1.5, "optimal")
        stuck = minimal_change(ensemble, [0.0, 0.0], 0, weights=np.inf)
        assert (stuck.x_adv, stuck.distance, stuck.status, stuck.label) == (None, np.inf, "infeasible", 0)

    def test_bounds_are_kept(self) -> None:
        ensemble = two_stumps("<", value=[[0], [-2], [2], [0], [-2], [2]], base=[0.5])
        beside = minimal_change(ensemble, [0.0, 0.0], 0, bounds=(0, [0.9, 5]))
        assert beside.x_adv is not None
        assert beside.x_adv.tolist() == [0, 3]
        assert minimal_change(ensemble, [0.0, 0.0], 0, bounds=(0, [1, 5])).distance == 1  # the bound itself is legal
        assert minimal_change(ensemble, [0.0, 0.0], 0, bounds=(0, 0.9)).status == "infeasible"

    def test_missing_values_stay_missing(self) -> None:
        ensemble = two_stumps("<", value=[[0], [-2], [2], [0], [-2], [2]], base=[0.5])
        result = minimal_change(ensemble, [np.nan, 0.0], 0)
        assert result.x_adv is not None
        assert np.isnan(result.x_adv[0])
        assert (result.x_adv[1], result.distance) == (3, 3)
        assert minimal_change(ensemble, [np.nan, np.nan], 0).status == "infeasible"

    def test_one_class_that_nothing_reaches(self) -> None:
        ensemble = two_stumps(base=[-9.0])
        result = minimal_change(ensemble, [0.0, 0.0], 0)
        assert (result.x_adv, result.status, result.bound) == (None, "infeasible", np.inf)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"x": [0.0]}, r"shape \(2,\)"),
            ({"x": [[0.0, 0.0]]}, r"shape \(2,\)"),
            ({"x": ["a", "b"]}, "2 numbers"),
            ({"x": [np.inf, 0.0]}, "finite"),
            ({"y": 2}, "from 0 to 1"),
            ({"y": -1}, "from 0 to 1"),
            ({"target": 2}, "from 0 to 1"),
            ({"target": 0}, "true class itself"),
            ({"weights": [0, 1]}, "positive"),
            ({"weights": [1, 2, 3]}, "2 numbers"),
            ({"bounds": (1, 2)}, "within the bounds"),
            ({"bounds": (0, np.nan)}, "within the bounds"),
            ({"tolerance": 0.0}, "tolerance"),
            ({"time_limit": -1.0}, "time limit"),
        ],
    )
    def test_bad_input(self, arguments: dict[str, Any], message: str) -> None:
        given: dict[str, Any] = {"x": [0.0, 0.0], "y": 0} | arguments
        with pytest.raises(InputError, match=message):
            minimal_change(two_stumps(), given.pop("x"), given.pop("y"), **given)


MODELS: dict[str, Callable[[int], Any]] = {
    "votes": lambda seed: RandomForestClassifier(6, random_state=seed),  # pure leaves: exact ties are common
    "forest": lambda seed: RandomForestClassifier(5, max_depth=3, random_state=seed),
    "extra": lambda seed: ExtraTreesClassifier(5, max_depth=3, random_state=seed),
    "boosting": lambda seed: GradientBoostingClassifier(n_estimators=4, max_depth=2, random_state=seed),
    "histogram": lambda seed: HistGradientBoostingClassifier(max_iter=4, max_depth=3, min_samples_leaf=3),
}


class TestAgainstCounting:
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("name", MODELS)
    def test_sklearn(self, name: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        d, k = 2 + (seed % 2 and name in ("boosting", "extra")), 2 + seed // 2
        X = rng.normal(size=(40, d))
        y = np.concatenate([np.arange(k), rng.integers(0, k, 40 - k)])
        model = MODELS[name](seed).fit(X, y)
        ensemble = from_sklearn(model)
        for x in [X[5], X[6], *rng.normal(size=(2, d))]:
            label = int(model.predict(x[None]).item())
            result = minimal_change(ensemble, x, label)
            check_point(ensemble, x, result)
            assert result.distance == by_counting(ensemble, x, lambda got, y=label: got != y, labels=model.predict)
            by_target = [minimal_change(ensemble, x, label, target=c) for c in range(k) if c != label]
            for c, targeted in zip([c for c in range(k) if c != label], by_target, strict=True):
                check_point(ensemble, x, targeted)
                assert targeted.distance == by_counting(ensemble, x, lambda got, c=c: got == c, labels=model.predict)
            assert min(targeted.distance for targeted in by_target) == result.distance

    @pytest.mark.parametrize("k", [2, 3])
    def test_xgboost(self, k: int) -> None:
        xgboost = pytest.importorskip("xgboost")
        rng = np.random.default_rng(k)
        X = rng.normal(size=(60, 2))
        y = np.concatenate([np.arange(k), rng.integers(0, k, 60 - k)])
        model = xgboost.XGBClassifier(n_estimators=8, max_depth=3, n_jobs=1).fit(X, y)
        ensemble = from_xgboost_json(model.get_booster().save_raw("json"))
        for x in rng.normal(size=(8, 2)):
            label = int(model.predict(x[None]).item())
            result = minimal_change(ensemble, x, label)
            check_point(ensemble, x, result)
            assert result.distance == by_counting(ensemble, x, lambda got, y=label: got != y, labels=model.predict)

    @settings(max_examples=60)
    @given(data=st.data())
    def test_any_small_ensemble(self, data: st.DataObject) -> None:
        ensemble = data.draw(ensembles())
        eighths = st.integers(-20, 20).map(lambda eighth: eighth / 8)
        x = np.array(data.draw(st.lists(eighths, min_size=2, max_size=2)))
        weights = np.array(data.draw(st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=2, max_size=2)))
        low, high = data.draw(st.sampled_from([(-np.inf, np.inf), (-2.5, 2.5)]))
        label = int(ensemble.labels(x[None]).item())
        result = minimal_change(ensemble, x, label, weights=weights, bounds=(low, high))
        check_point(ensemble, x, result, weights)
        expected = by_counting(ensemble, x, lambda got: got != label, weights=weights, bounds=(low, high))
        assert result.distance == expected

    def test_several_hundred_leaves(self) -> None:
        rng = np.random.default_rng(0)
        X = rng.normal(size=(100, 2))
        y = (X[:, 0] * X[:, 1] > 0).astype(int) ^ (rng.random(100) < 0.1)
        model = RandomForestClassifier(20, random_state=0).fit(X, y)
        ensemble = from_sklearn(model)
        for x in rng.normal(size=(2, 2)):
            label = int(model.predict(x[None]).item())
            result = minimal_change(ensemble, x, label)
            assert (result.status, result.bound) == ("optimal", result.distance)
            assert result.distance == by_counting(ensemble, x, lambda got, y=label: got != y)


@st.composite
def ensembles(draw: st.DrawFn) -> TreeEnsemble:
    """Random trees on a coarse grid with small whole leaf values, so that ties and repeated thresholds abound."""
    k = draw(st.integers(2, 3))
    entries: dict[str, list[Any]] = {name: [] for name in ("roots", "feature", "threshold", "left", "right", "value")}

    def grow(depth: int) -> int:
        node = len(entries["feature"])
        leaf = depth == 0 or not draw(st.booleans())
        entries["feature"].append(-1 if leaf else draw(st.integers(0, 1)))
        entries["threshold"].append(0.0 if leaf else draw(st.integers(-8, 8)) / 4)
        entries["value"].append(draw(st.lists(st.integers(-2, 2), min_size=k, max_size=k)))
        entries["left"].append(0)
        entries["right"].append(0)
        if not leaf:
            entries["left"][node] = grow(depth - 1)
            entries["right"][node] = grow(depth - 1)
        return node

    for _ in range(draw(st.integers(1, 4))):
        entries["roots"].append(grow(3))
    return TreeEnsemble(
        n_features=2,
        missing_left=np.zeros(len(entries["feature"]), dtype=bool),
        base=np.zeros(k),
        link=draw(st.sampled_from(["mean", "softmax"])),
        rule=draw(st.sampled_from(["<=", "<"])),
        inputs=draw(st.sampled_from(["float32", "float64"])),
        **entries,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def hard() -> tuple[TreeEnsemble, np.ndarray, int]:
    """A forest that takes nine programmes or so to decide, and the sample that it is surest of."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 8))
    ensemble = from_sklearn(RandomForestClassifier(20, random_state=0).fit(X, X[:, 0] * X[:, 1] + X[:, 2] > 0))
    return ensemble, X[np.argmax(ensemble.scores(X)[:, 1])], 1


class TestLimits:
    def test_no_time_leaves_a_bound(self, hard: tuple[TreeEnsemble, np.ndarray, int]) -> None:
        ensemble, x, y = hard
        result = minimal_change(ensemble, x, y, time_limit=0)
        assert (result.x_adv, result.distance, result.status, result.label) == (None, np.inf, "limit", 1)
        assert 0 < result.bound < minimal_change(ensemble, x, y, time_limit=30).distance

    def test_running_out_of_time_keeps_what_was_found(
        self, hard: tuple[TreeEnsemble, np.ndarray, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ensemble, x, y = hard
        clock = iter(np.r_[np.zeros(6), np.full(1000, 1e6)])  # five programmes are solved before the time is over
        monkeypatch.setattr(kantchelian.time, "monotonic", lambda: float(next(clock)))
        result = minimal_change(ensemble, x, y, time_limit=100)
        assert result.status == "limit"
        assert 0 < result.bound < result.distance < np.inf
        check_point(ensemble, x, result)


@pytest.fixture(scope="module")
def published(assets: Path) -> tuple[TreeEnsemble, np.ndarray, np.ndarray]:
    """The treeVerification fixture: a robust XGBoost model of breast cancer (a dump) and 100 points (libsvm).

    The dump's feature numbers are the libsvm file's own, which start at 1: column 0 is never used. Labels are 0 and 1,
    and the margin starts from 0 (base_score 0.5).
    """
    folder = assets / "data" / "trees"
    ensemble = from_xgboost_json(folder / "breast_cancer_robust.0008.json")
    rows = [line.split() for line in (folder / "example_breast_cancer0.libsvm").read_text().splitlines()]
    X = np.zeros((len(rows), ensemble.n_features))
    for sample, (_, *entries) in zip(X, rows, strict=True):
        for entry in entries:
            column, value = entry.split(":")
            sample[int(column)] = float(value)
    return ensemble, X, np.array([int(row[0]) for row in rows])


class TestPublishedFixture:
    def test_the_model_is_the_published_one(self, published: tuple[TreeEnsemble, np.ndarray, np.ndarray]) -> None:
        ensemble, X, y = published
        assert (ensemble.n_trees, ensemble.n_features, X.shape) == (8, 11, (100, 11))
        assert (ensemble.labels(X) == y).all()  # all are right, so the mean has no zeros of points wrong already

    def test_mean_distance_and_robust_error(self, published: tuple[TreeEnsemble, np.ndarray, np.ndarray]) -> None:
        ensemble, X, y = published
        results = [minimal_change(ensemble, x, int(label)) for x, label in zip(X, y, strict=True)]
        distance = np.array([result.distance for result in results])
        for x, result in zip(X, results, strict=True):
            check_point(ensemble, x, result)
        assert {result.status for result in results} == {"optimal"}
        assert np.mean(distance) == pytest.approx(0.396, abs=5e-4)
        assert np.mean(distance <= 0.3) == 0.13
