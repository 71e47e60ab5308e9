"""The neutral form of a tree ensemble, and the door through which scikit-learn's and XGBoost's trees enter it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from sparring.core.errors import InputError, LoadError
from sparring.tabular.ensemble import TreeEnsemble
from sparring.tabular.importers import from_sklearn, from_xgboost_json


def stump_pair(**changes: Any) -> TreeEnsemble:
    """Two stumps on two features: +-1 at x_0 = 0.5, and +-2 at x_1 = -1; missing goes left in the first only."""
    entries: dict[str, Any] = {
        "n_features": 2,
        "roots": [0, 3],
        "feature": [0, -1, -1, 1, -1, -1],
        "threshold": [0.5, 0, 0, -1, 0, 0],
        "left": [1, 0, 0, 4, 0, 0],
        "right": [2, 0, 0, 5, 0, 0],
        "missing_left": [True, False, False, False, False, False],
        "value": [[0], [-1], [1], [0], [-2], [2]],
        "base": [0.25],
        "link": "logistic",
    }
    return TreeEnsemble(**(entries | changes))


def awkward_samples(thresholds: np.ndarray, features: np.ndarray, d: int, rng: np.random.Generator) -> np.ndarray:
    """Random samples, most of them on a threshold or right beside it in either precision."""
    X = rng.normal(size=(400, d))
    inner = np.flatnonzero(features >= 0)
    for row in X[:320]:
        node = rng.choice(inner)
        t = thresholds[node]
        near = [
            t,
            np.nextafter(t, np.inf),
            np.nextafter(t, -np.inf),
            np.float32(t),
            np.nextafter(np.float32(t), np.inf),
        ]
        row[features[node]] = near[rng.integers(5)]
    return X


class TestForm:
    def test_scores_of_a_single_margin_are_two_logits(self) -> None:
        ensemble = stump_pair()
        X = [[0.0, 0.0], [1.0, -2.0]]
        assert ensemble.raw(X).tolist() == [[1.25], [-0.75]]
        assert ensemble.scores(X).tolist() == [[0, 1.25], [0, -0.75]]
        assert ensemble.labels(X).tolist() == [1, 0]
        assert ensemble.probabilities(X)[:, 1] == pytest.approx([1 / (1 + np.exp(-1.25)), 1 / (1 + np.exp(0.75))])

    @pytest.mark.parametrize(("rule", "margin"), [("<=", -1 - 2 + 0.25), ("<", 1 + 2 + 0.25)])
    def test_the_rule_decides_at_the_threshold(self, rule: str, margin: float) -> None:
        assert stump_pair(rule=rule).raw([[0.5, -1.0]]).item() == margin

    @pytest.mark.parametrize(("inputs", "margin"), [("float32", -1 + 2 + 0.25), ("float64", 1 + 2 + 0.25)])
    def test_inputs_are_rounded_to_the_ensembles_precision(self, inputs: str, margin: float) -> None:
        assert stump_pair(inputs=inputs).raw([[0.5 + 1e-12, 0.0]]).item() == margin

    def test_missing_values_take_the_default_direction(self) -> None:
        assert stump_pair().raw([[np.nan, np.nan]]).item() == -1 + 2 + 0.25

    def test_mean_and_softmax_links(self) -> None:
        leaves = {"value": [[0, 0], [1, 0], [0, 1], [0, 0], [1, 0], [0, 1]], "base": [0, 0]}
        X = [[0.0, -2.0], [0.0, 0.0]]
        assert stump_pair(link="mean", **leaves).scores(X).tolist() == [[1, 0], [0.5, 0.5]]
        assert stump_pair(link="softmax", **leaves).scores(X).tolist() == [[2, 0], [1, 1]]
        assert stump_pair(link="softmax", **leaves).labels(X).tolist() == [0, 0]

    @pytest.mark.parametrize("zero_wins", [False, True])
    def test_a_margin_of_zero(self, zero_wins: bool) -> None:
        ensemble = stump_pair(base=[-1.0], zero_wins=zero_wins)
        assert ensemble.raw([[0.0, 0.0]]).item() == 0
        assert ensemble.labels([[0.0, 0.0]]).tolist() == [int(zero_wins)]

    def test_chunks_do_not_show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        X = np.random.default_rng(0).normal(size=(50, 2))
        whole = stump_pair().scores(X)
        monkeypatch.setattr("sparring.tabular.ensemble._CHUNK", 6)
        assert np.array_equal(stump_pair().scores(X), whole)
        assert stump_pair().scores(np.empty((0, 2))).shape == (0, 2)

    def test_it_is_frozen_and_keeps_a_copy(self) -> None:
        thresholds = np.array([0.5, 0, 0, -1, 0, 0])
        ensemble = stump_pair(threshold=thresholds)
        thresholds[:] = 9
        assert ensemble.threshold[0] == 0.5
        with pytest.raises(ValueError, match="read-only"):
            ensemble.threshold[0] = 9

    def test_json_round_trip(self) -> None:
        ensemble = stump_pair(threshold=[0.1, 0, 0, np.inf, 0, 0], names=("ham", "spam"))
        back = TreeEnsemble.from_dict(json.loads(json.dumps(ensemble.to_dict(), allow_nan=False)))
        X = np.random.default_rng(0).normal(size=(50, 2))
        assert np.array_equal(back.scores(X), ensemble.scores(X))
        assert back.to_dict() == ensemble.to_dict()
        assert back.names == ("ham", "spam")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"right": [0, 0, 0, 5, 0, 0]}, "two ways"),  # the root is its own child
            ({"right": [4, 0, 0, 5, 0, 0]}, "two ways"),  # a leaf of the other tree
            ({"right": [1, 0, 0, 5, 0, 0]}, "two ways"),  # both children the same
            ({"roots": [0, 0]}, "two ways"),
            ({"roots": []}, "without trees"),
            ({"roots": [0, 6]}, "outside the 6 nodes"),
            ({"left": [-1, 0, 0, 4, 0, 0]}, "outside the 6 nodes"),
            ({"feature": [2, -1, -1, 1, -1, -1]}, "features are 0 to 1"),
            ({"feature": [-2, -1, -1, 1, -1, -1]}, "features are 0 to 1"),
            ({"feature": [0.5, -1, -1, 1, -1, -1]}, "feature needs int64"),
            ({"feature": ["a"] * 6}, "feature is not an array|feature needs"),
            ({"threshold": [np.nan, 0, 0, -1, 0, 0]}, "NaN or infinite"),
            ({"threshold": [0.5]}, "one entry per node"),
            ({"value": [[0], [np.inf], [1], [0], [-2], [2]]}, "NaN or infinite"),
            ({"value": [0, -1, 1, 0, -2, 2]}, r"shape \(nodes, outputs\)"),
            ({"base": [0.0, 0.0], "value": np.zeros((6, 2))}, "only 'logistic'"),
            ({"link": "probit"}, "link is one of"),
            ({"rule": ">"}, "rule is one of"),
            ({"n_features": 0}, "1 or more"),
            ({"names": ("one",)}, "1 class names for 2"),
        ],
    )
    def test_what_is_no_tree_is_refused(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(LoadError, match=message):
            stump_pair(**changes)

    def test_damaged_descriptions_are_refused(self) -> None:
        whole = stump_pair().to_dict()
        for broken, message in [
            ({}, "no tree ensemble"),
            (whole | {"version": 2}, "version 2"),
            (whole | {"extra": 1}, r"unknown \['extra'\]"),
            ({k: v for k, v in whole.items() if k != "left"}, r"absent \['left'\]"),
            (whole | {"zero_wins": "no"}, "zero_wins must be"),
            (whole | {"feature": [10**30] * 6}, "feature"),
        ]:
            with pytest.raises(LoadError, match=message):
                TreeEnsemble.from_dict(broken)

    @pytest.mark.parametrize("X", [[[0.0]], [0.0, 1.0], [["a", "b"]], [[None, {}]]])
    def test_samples_of_another_kind_are_refused(self, X: Any) -> None:
        with pytest.raises(InputError, match="samples"):
            stump_pair().scores(X)


SKLEARN: dict[str, Callable[[], Any]] = {
    "tree": lambda: DecisionTreeClassifier(random_state=0),
    "forest": lambda: RandomForestClassifier(20, random_state=0),
    "extra": lambda: ExtraTreesClassifier(20, random_state=0),
    "boosting": lambda: GradientBoostingClassifier(n_estimators=15, random_state=0),
    "boosting-zero": lambda: GradientBoostingClassifier(n_estimators=15, init="zero", random_state=0),
    "histogram": lambda: HistGradientBoostingClassifier(max_iter=15, random_state=0),
}


def toy(k: int, rng: np.random.Generator, d: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Samples with a class that is a quantile of a product, as strings that sort like numbers."""
    X = rng.normal(size=(300, d))
    target = X[:, 0] * X[:, 1] + X[:, 2]
    return X, np.char.add("c", np.digitize(target, np.quantile(target, np.arange(1, k) / k)).astype(str))


class TestSklearn:
    @pytest.mark.parametrize("k", [2, 4])
    @pytest.mark.parametrize("name", SKLEARN)
    def test_predictions_are_the_librarys(self, name: str, k: int) -> None:
        rng = np.random.default_rng(k)
        X, y = toy(k, rng)
        model = SKLEARN[name]().fit(X, y)
        ensemble = from_sklearn(model)
        samples = awkward_samples(ensemble.threshold, ensemble.feature, 5, rng)
        assert ensemble.probabilities(samples) == pytest.approx(model.predict_proba(samples), abs=1e-10)
        assert np.array_equal(np.array(ensemble.names)[ensemble.labels(samples)], model.predict(samples))
        if hasattr(model, "decision_function"):
            margins = ensemble.raw(samples)[:, 0] if k == 2 else ensemble.raw(samples)
            assert margins == pytest.approx(model.decision_function(samples), abs=1e-10)

    @pytest.mark.parametrize("name", ["tree", "forest", "extra", "histogram"])
    def test_missing_values(self, name: str) -> None:
        rng = np.random.default_rng(7)
        X, y = toy(3, rng)
        X[rng.random(X.shape) < 0.2] = np.nan
        model = SKLEARN[name]().fit(X, y)
        samples = rng.normal(size=(300, 5))
        samples[rng.random(samples.shape) < 0.3] = np.nan
        assert from_sklearn(model).probabilities(samples) == pytest.approx(model.predict_proba(samples), abs=1e-10)

    def test_the_exponential_loss_is_read_as_log_odds(self) -> None:
        rng = np.random.default_rng(3)
        X, y = toy(2, rng)
        X, y = X[60:], np.sort(y)[60:]  # unequal classes, so that the prior is no zero
        model = GradientBoostingClassifier(n_estimators=15, loss="exponential", random_state=0).fit(X, y)
        assert from_sklearn(model).base[0] != 0
        ensemble, samples = from_sklearn(model), rng.normal(size=(200, 5))
        assert ensemble.probabilities(samples) == pytest.approx(model.predict_proba(samples), abs=1e-10)
        assert ensemble.raw(samples)[:, 0] == pytest.approx(2 * model.decision_function(samples), abs=1e-10)

    def test_a_margin_of_zero_falls_as_in_the_library(self) -> None:
        # the tree cannot split a constant feature, and init="zero" leaves a margin of exactly zero on balanced classes
        X, y = np.zeros((4, 1)), [0, 1, 0, 1]
        model = GradientBoostingClassifier(n_estimators=1, init="zero").fit(X, y)
        assert model.decision_function(X).tolist() == [0, 0, 0, 0]
        assert from_sklearn(model).labels(X).tolist() == model.predict(X).tolist()

    def test_what_cannot_be_read_says_why(self) -> None:
        rng = np.random.default_rng(1)
        X, y = toy(2, rng)
        numbers = (y == "c1").astype(int)
        categorical = HistGradientBoostingClassifier(max_iter=2, categorical_features=[0])
        refused = [
            (RandomForestRegressor(2).fit(X, numbers), "no trees can be read from RandomForestRegressor"),
            (RandomForestClassifier(2), "not fitted"),
            (RandomForestClassifier(2).fit(X, np.stack([numbers, numbers], axis=1)), "2 outputs"),
            (DecisionTreeClassifier().fit(X, np.zeros(300)), "one class only"),
            (GradientBoostingClassifier(n_estimators=2, init=LogisticRegression()).fit(X, y), "init='zero'"),
            (categorical.fit(np.column_stack([rng.integers(0, 5, 300), X]), y), "categorical"),
        ]
        for model, message in refused:
            with pytest.raises(InputError, match=message):
                from_sklearn(model)


def saved_model(**changes: Any) -> dict[str, Any]:
    """A model as save_model writes it: x_0 < 0.1f ? -1 : (x_1 < 2 ? 0.5 : 1), and a deleted node at the end."""
    tree = {
        "tree_param": {"num_nodes": "6", "size_leaf_vector": "1"},
        "split_indices": [0, 0, 1, 0, 0, 0],
        "split_conditions": [0.1, -1.0, 2.0, 0.5, 1.0, 0.0],
        "left_children": [1, -1, 3, -1, -1, -1],
        "right_children": [2, -1, 4, -1, -1, -1],
        "default_left": [0, 0, 1, 0, 0, 0],
        "split_type": [0, 0, 0, 0, 0, 0],
    }
    model = {
        "trees": [tree | changes.pop("tree", {})],
        "tree_info": [0],
        "gbtree_model_param": {"num_parallel_tree": "1"},
    }
    learner = {
        "attributes": {},
        "objective": {"name": "binary:logistic"},
        "learner_model_param": {"base_score": "5E-1", "num_class": "0", "num_feature": "2"},
        "gradient_booster": {"name": "gbtree", "model": model | changes.pop("model", {})},
    }
    return {"learner": learner | changes, "version": [1, 7, 6]}


def dumped_tree(**changes: Any) -> dict[str, Any]:
    """The same first split as XGBoost's dump_model writes it."""
    leaves = [{"nodeid": 1, "leaf": -1.0}, {"nodeid": 2, "leaf": 0.5}]
    node = {"nodeid": 0, "split": "f0", "split_condition": 0.100000001, "yes": 1, "no": 2, "missing": 2}
    return node | {"children": leaves} | changes


class TestXGBoostJson:
    def test_a_saved_model(self, tmp_path: Path) -> None:
        path = tmp_path / "model.json"
        path.write_text(json.dumps(saved_model()))
        ensemble = from_xgboost_json(path)
        below = np.nextafter(np.float32(0.1), np.float32(0))
        X = [[0.1, 1.0], [below, 1.0], [1.0, 2.0], [np.nan, np.nan]]
        assert ensemble.raw(X)[:, 0].tolist() == [0.5, -1, 1, 0.5]
        # 0.1 in double precision is below float32's 0.1, and only the rounding of the input makes them equal
        assert np.float64(np.float32(0.1)) > 0.1
        assert (ensemble.n_features, ensemble.n_classes, ensemble.rule) == (2, 2, "<")
        for same in (str(path), path.read_bytes(), bytearray(path.read_bytes()), saved_model()):
            assert np.array_equal(from_xgboost_json(same).raw(X), ensemble.raw(X))

    @pytest.mark.parametrize("stored", ["2.5E-1", "[2.5E-1]", 0.25])
    def test_the_base_score_becomes_log_odds(self, stored: Any) -> None:
        parameters = saved_model()["learner"]["learner_model_param"] | {"base_score": stored}
        ensemble = from_xgboost_json(saved_model(learner_model_param=parameters))
        assert ensemble.base == pytest.approx([np.log(0.25 / 0.75)], rel=1e-7)

    def test_a_dump(self) -> None:
        ensemble = from_xgboost_json([dumped_tree(), json.dumps(dumped_tree(split=3))])
        assert ensemble.n_features == 4
        X = np.zeros((4, 4))
        X[1, 0] = X[2, 3] = 0.1
        X[3, 0] = X[3, 3] = np.nan
        assert ensemble.raw(X)[:, 0].tolist() == [-2, -0.5, -0.5, 1]
        shifted = from_xgboost_json([dumped_tree()], base_score=0.75, n_features=7)
        assert (shifted.raw(np.zeros((1, 7))).item(), shifted.n_features) == (-0.25, 7)

    def test_a_dump_of_more_classes_and_other_names(self) -> None:
        names = ["age", "size"]
        trees = [dumped_tree(split="size"), dumped_tree(split="age"), {"nodeid": 0, "leaf": 0.25}]
        ensemble = from_xgboost_json(trees, n_classes=3, feature_names=names, base_score=[0, 0, 1])
        assert ensemble.raw([[1.0, 0.0]]).tolist() == [[-1, 0.5, 1.25]]
        with pytest.raises(LoadError, match="splits on 'size'; pass feature_names"):
            from_xgboost_json(trees, n_classes=3)

    def test_a_deep_dump_needs_no_recursion(self) -> None:
        tree: dict[str, Any] = {"nodeid": 0, "leaf": 1.0}
        for depth in range(1, 5001):
            children = [{"nodeid": 2 * depth, "leaf": 0.0}, tree]
            tree = {"nodeid": 2 * depth + 1, "split": 0, "split_condition": depth, "children": children}
            tree |= {"yes": children[1]["nodeid"], "no": 2 * depth}
        assert from_xgboost_json([tree]).raw([[0.0], [5000.0]])[:, 0].tolist() == [1, 0]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"trees": []}, "no XGBoost model"),
            ({"learner": []}, "damaged"),
            ({"learner": {}}, "damaged: KeyError"),
            ([], "no trees"),
            ([dumped_tree(children=[])], "children that it does not have"),
            ([dumped_tree(no=1)], "children that it does not have"),
            ([dumped_tree(split=-1)], "splits on -1"),
            ([dumped_tree(split="f" + "9" * 30)], "damaged"),
            ([dumped_tree(split_condition=[1, 2])], "tree 0 .* damaged"),
            ([dumped_tree(split_condition="nan")], "NaN"),
            ([{"nodeid": 0}], "tree 0 .* damaged"),
            (["{"], "tree 0 .* damaged"),
            (saved_model(tree={"left_children": [1, -1, 9, -1, -1, -1]}), "outside of them"),
            (saved_model(tree={"left_children": [1, -1, -7, -1, -1, -1]}), "outside of them"),
            (saved_model(tree={"left_children": [1, -1, 0, -1, -1, -1]}), "two ways"),
            (saved_model(tree={"split_indices": [0, 0, 2, 0, 0, 0]}), "features are 0 to 1"),
            (saved_model(tree={"split_conditions": [0.1]}), "unequal lengths"),
            (saved_model(tree={"split_type": [0, 0, 1, 0, 0, 0]}), "categorical"),
            (saved_model(tree={"tree_param": {"size_leaf_vector": "3"}}), "vector leaves"),
            (saved_model(model={"tree_info": [1]}), "class outside 0 to 0"),
            (saved_model(model={"tree_info": []}), "0 which class"),
            (saved_model(objective={"name": "reg:squarederror"}), "objective 'reg:squarederror'"),
            (saved_model(gradient_booster={"name": "gblinear"}), "'gblinear'"),
            (saved_model(learner_model_param={"base_score": "2", "num_class": "0", "num_feature": "2"}), "probability"),
            (saved_model(learner_model_param={"base_score": "x", "num_class": "0", "num_feature": "2"}), "damaged"),
        ],
    )
    def test_damaged_models_are_refused(self, content: Any, message: str) -> None:
        with pytest.raises(LoadError, match=message):
            from_xgboost_json(content)

    def test_files_that_are_no_models(self, tmp_path: Path) -> None:
        path = tmp_path / "model.json"
        with pytest.raises(LoadError, match="cannot be read"):
            from_xgboost_json(path)
        for text, message in [
            (b"{L\0\0\0", "no readable JSON.*ubj"),
            (b"[" * 10**5, "no readable JSON"),
            (b"", "JSON"),
        ]:
            path.write_bytes(text)
            with pytest.raises(LoadError, match=message):
                from_xgboost_json(path)
        path.write_text(json.dumps(saved_model()))
        with pytest.raises(LoadError, match="larger than 100 bytes"):
            from_xgboost_json(path, max_bytes=100)

    def test_options_that_do_not_fit(self) -> None:
        with pytest.raises(LoadError, match="for dumps"):
            from_xgboost_json(saved_model(), base_score=0.5)
        with pytest.raises(LoadError, match="2 features, not 3"):
            from_xgboost_json(saved_model(), n_features=3)
        with pytest.raises(LoadError, match="equal turns over 3"):
            from_xgboost_json([dumped_tree()], n_classes=3)
        with pytest.raises(LoadError, match="at least 2 classes"):
            from_xgboost_json([dumped_tree()], n_classes=1)
        with pytest.raises(LoadError, match="features are 0 to 0"):
            from_xgboost_json([dumped_tree(split=1)], n_features=1)


class TestXGBoostItself:
    """Bit for bit against the library, where it is installed."""

    @pytest.mark.parametrize(
        ("k", "options"),
        [
            (2, {}),
            (2, {"base_score": 0.3}),
            (2, {"num_parallel_tree": 3}),
            (2, {"early_stopping_rounds": 2}),
            (3, {}),
            (3, {"num_parallel_tree": 3}),
            (3, {"early_stopping_rounds": 2}),
            (3, {"objective": "multi:softmax"}),
        ],
    )
    def test_margins_and_labels(self, k: int, options: dict[str, Any]) -> None:
        xgboost = pytest.importorskip("xgboost")
        rng = np.random.default_rng(k)
        X, names = toy(k, rng)
        y = np.char.lstrip(names, "c").astype(int)
        X[rng.random(X.shape) < 0.1] = np.nan
        model = xgboost.XGBClassifier(n_estimators=20, max_depth=4, n_jobs=1, **options)
        model.fit(X, y, eval_set=[(X, rng.integers(0, k, 300))], verbose=False)
        ensemble = from_xgboost_json(model.get_booster().save_raw("json"))
        samples = awkward_samples(ensemble.threshold, ensemble.feature, 5, rng)
        samples[rng.random(samples.shape) < 0.1] = np.nan
        margins = np.reshape(model.predict(samples, output_margin=True), (400, -1))
        assert np.array_equal(ensemble.raw(samples), margins)
        assert np.array_equal(ensemble.labels(samples), model.predict(samples))
        assert ensemble.probabilities(samples) == pytest.approx(model.predict_proba(samples), abs=1e-6)

    def test_the_dump_agrees_with_the_saved_model(self, tmp_path: Path) -> None:
        xgboost = pytest.importorskip("xgboost")
        X, names = toy(3, np.random.default_rng(0))
        y = np.char.lstrip(names, "c").astype(int)
        booster = xgboost.XGBClassifier(n_estimators=10, n_jobs=1).fit(X, y).get_booster()
        saved, dumped = tmp_path / "saved.json", tmp_path / "dumped.json"
        booster.save_model(saved)
        booster.dump_model(dumped, dump_format="json")
        whole = from_xgboost_json(saved)
        again = from_xgboost_json(dumped, n_features=5, n_classes=3, base_score=whole.base.tolist())
        assert np.array_equal(again.raw(X), whole.raw(X))
