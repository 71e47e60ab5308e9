"""The door through which scikit-learn's and XGBoost's trees enter the neutral form; no file is executed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparring.core.errors import InputError, LoadError
from sparring.tabular.ensemble import Bools, Floats, Ints, TreeEnsemble

MAX_BYTES = 1 << 28  # 256 MB of JSON: far beyond published models, and still within memory once parsed
_BINARY = ("binary:logistic", "reg:logistic")
_MULTI = ("multi:softprob", "multi:softmax")


class _Tree(NamedTuple):
    """One tree before it joins the others; node 0 is its root and its leaves have feature -1."""

    feature: Ints
    threshold: Floats
    left: Ints
    right: Ints
    missing_left: Bools
    value: Floats


def _assemble(trees: Sequence[_Tree], **settings: Any) -> TreeEnsemble:
    """Lay the trees one after the other, children shifted to their place."""
    if not trees:
        raise LoadError("the model has no trees; train it first.")
    roots = np.cumsum([0] + [tree.feature.size for tree in trees[:-1]])
    shifted = [t._replace(left=t.left + root, right=t.right + root) for t, root in zip(trees, roots, strict=True)]
    arrays: dict[str, Any] = {name: np.concatenate([getattr(tree, name) for tree in shifted]) for name in _Tree._fields}
    return TreeEnsemble(roots=roots, **arrays, **settings)


def _one_column(value: Floats, output: int, n_outputs: int) -> Floats:
    """Spread one number per leaf to the row of an ensemble whose trees serve one output each."""
    spread = np.zeros((value.size, n_outputs))
    spread[:, output] = value
    return spread


def from_sklearn(model: Any) -> TreeEnsemble:
    """Read a fitted scikit-learn tree classifier.

    Decision trees, forests, extra trees and gradient boosting round their inputs to float32 before they compare;
    histogram gradient boosting does not. The neutral form does the same, and sums in the same order.

    Args:
        model: a fitted DecisionTreeClassifier, ExtraTreeClassifier, RandomForestClassifier, ExtraTreesClassifier,
            GradientBoostingClassifier or HistGradientBoostingClassifier with one output.

    Returns:
        The ensemble; its labels index `model.classes_`. Scores are the probabilities for trees and forests and the
        logits for boosting (a `loss="exponential"` margin is doubled, so that its logistic function is the
        probability).

    Raises:
        InputError: another kind of model, one that is not fitted or has several outputs, a gradient boosting whose
            `init` is an estimator of its own, or a histogram gradient boosting with categorical features.
    """
    from sklearn.ensemble import (
        ExtraTreesClassifier,
        GradientBoostingClassifier,
        HistGradientBoostingClassifier,
        RandomForestClassifier,
    )
    from sklearn.tree import DecisionTreeClassifier

    averaged = (DecisionTreeClassifier, RandomForestClassifier, ExtraTreesClassifier)
    if not isinstance(model, (*averaged, GradientBoostingClassifier, HistGradientBoostingClassifier)):
        raise InputError(
            f"no trees can be read from {type(model).__name__}; needed a scikit-learn tree, forest, extra-trees or "
            "(histogram) gradient-boosting classifier. For XGBoost, save it as JSON and use from_xgboost_json."
        )
    if not hasattr(model, "classes_"):
        raise InputError(f"this {type(model).__name__} is not fitted; call fit first.")
    if getattr(model, "n_outputs_", 1) != 1:
        raise InputError(f"this {type(model).__name__} has {model.n_outputs_} outputs; fit one model per output.")
    if len(model.classes_) < 2:
        raise InputError(f"this {type(model).__name__} saw one class only; it has no boundary to attack.")
    if isinstance(model, GradientBoostingClassifier):
        return _from_boosting(model)
    if isinstance(model, HistGradientBoostingClassifier):
        return _from_histogram_boosting(model)
    return _from_forest(model)


def _names(model: Any) -> tuple[str, ...]:
    return tuple(str(name) for name in model.classes_)


def _sklearn_tree(tree: Any, value: Floats) -> _Tree:
    missing = getattr(tree, "missing_go_to_left", np.zeros(tree.node_count, dtype=bool))
    feature = np.where(tree.children_left < 0, -1, tree.feature)
    return _Tree(
        feature, tree.threshold, tree.children_left, tree.children_right, np.asarray(missing, dtype=bool), value
    )


def _from_forest(model: Any) -> TreeEnsemble:
    trees = []
    for member in getattr(model, "estimators_", [model]):
        counts = member.tree_.value[:, 0, :]
        total = counts.sum(axis=1, keepdims=True)
        # scikit-learn 1.3 and later store fractions, earlier ones weighted counts
        trees.append(_sklearn_tree(member.tree_, counts if np.allclose(total, 1) else counts / total))
    base = np.zeros(len(model.classes_))
    return _assemble(trees, n_features=int(model.n_features_in_), base=base, link="mean", names=_names(model))


def _from_boosting(model: Any) -> TreeEnsemble:
    from sklearn.dummy import DummyClassifier

    if not (isinstance(model.init_, DummyClassifier) or model.init_ == "zero"):
        raise InputError(
            f"this gradient boosting starts from a {type(model.init_).__name__}, whose scores vary with the input and "
            "are not trees; fit it with init=None or init='zero'."
        )
    outputs = model.estimators_.shape[1]
    base = model._raw_predict_init(np.zeros((1, model.n_features_in_), dtype=np.float32))[0]
    # the exponential loss reads its margin F as log-odds of 2 F; doubling is exact in binary numbers
    factor = 2.0 if model.loss == "exponential" else 1.0
    trees = []
    for stage in model.estimators_:
        for output, member in enumerate(stage):
            value = factor * (model.learning_rate * member.tree_.value[:, 0, 0])
            trees.append(_sklearn_tree(member.tree_, _one_column(value, output, outputs)))
    link = "logistic" if outputs == 1 else "softmax"
    return _assemble(
        trees,
        n_features=int(model.n_features_in_),
        base=factor * base,
        link=link,
        zero_wins=outputs == 1,
        names=_names(model),
    )


def _from_histogram_boosting(model: Any) -> TreeEnsemble:
    if model.is_categorical_ is not None and np.any(model.is_categorical_):
        raise InputError(
            "this histogram gradient boosting splits categorical features by sets, which thresholds cannot express; "
            "encode the categories as numbers or one-hot columns and fit again."
        )
    base = np.asarray(model._baseline_prediction, dtype=np.float64).reshape(-1)
    trees = []
    for stage in model._predictors:
        for output, member in enumerate(stage):
            node = member.nodes
            leaf = node["is_leaf"].astype(bool)
            feature = np.where(leaf, -1, node["feature_idx"])
            missing = node["missing_go_to_left"].astype(bool)
            value = _one_column(np.where(leaf, node["value"], 0.0), output, base.size)
            children = node["left"].astype(np.int64), node["right"].astype(np.int64)
            trees.append(_Tree(feature, node["num_threshold"], *children, missing, value))
    link = "logistic" if base.size == 1 else "softmax"
    features = int(model.n_features_in_)
    return _assemble(trees, n_features=features, base=base, link=link, inputs="float64", names=_names(model))


def from_xgboost_json(
    source: str | Path | bytes | bytearray | Mapping[str, Any] | Sequence[Any],
    *,
    n_features: int | None = None,
    n_classes: int = 2,
    base_score: float | Sequence[float] | None = None,
    feature_names: Sequence[str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> TreeEnsemble:
    r"""Read an XGBoost classifier from JSON, without XGBoost.

    Both of its formats are understood: the model that `save_model("model.json")` writes, and the list of trees of
    `dump_model(..., dump_format="json")`. XGBoost holds inputs, thresholds and leaf values in float32, goes left when
    :math:`x_f < \theta`, and sums in float32 tree by tree; the ensemble does the same, so its labels are XGBoost's own.

    A model that was trained with early stopping is cut after its best round, as `XGBClassifier.predict` does.

    Args:
        source: a path, the text as bytes (as `Booster.save_raw("json")` gives it) or the parsed JSON.
        n_features: number of features; a dump does not say it, so its largest tested feature + 1 is taken when None.
        n_classes: of a dump only: 2 means one margin; more mean that the trees take turns over the classes, one tree
            each (`num_parallel_tree` of 1).
        base_score: of a dump only: what the margin starts from, in margin units (log-odds), one number or one per
            class; None means 0, which is a `base_score` of 0.5. Since XGBoost 2.0 the default is estimated from the
            labels, so a dump alone does not tell it.
        feature_names: of a dump only: the names in column order, where they are not numbers or f0, f1, ...
        max_bytes: largest file that is read.

    Returns:
        The ensemble; its labels index XGBoost's classes.

    Raises:
        LoadError: the file is absent, larger than `max_bytes`, no JSON or no XGBoost classifier made of numerical
            trees with one output per leaf, or an index in it is out of range.
    """
    content = source if isinstance(source, (Mapping, list, tuple)) else _parse(source, max_bytes)
    if isinstance(content, (list, tuple)):
        return _from_dump(content, n_features, n_classes, base_score, feature_names)
    if not isinstance(content, Mapping) or "learner" not in content:
        raise LoadError(
            "this JSON is no XGBoost model: needed a 'learner' (save_model) or a list of trees (dump_model)."
        )
    if base_score is not None or feature_names is not None or n_classes != 2:
        raise LoadError(
            "a saved XGBoost model states its own classes, base_score and features; these options are for dumps."
        )
    try:
        return _from_model(content["learner"], n_features)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError) as error:
        if isinstance(error, LoadError):
            raise
        raise LoadError(f"this XGBoost model is damaged: {type(error).__name__}: {error}.") from error


def _parse(source: Any, max_bytes: int) -> Any:
    if isinstance(source, (bytes, bytearray)):
        text, origin = bytes(source), "the given JSON"
    else:
        origin = str(source)
        try:
            with Path(source).open("rb") as file:  # one bounded read: a size asked for first could have grown since
                text = file.read(max_bytes + 1)
        except OSError as error:
            raise LoadError(f"{origin} cannot be read: {error.strerror or error}.") from error
    if len(text) > max_bytes:
        raise LoadError(f"{origin} is larger than {max_bytes} bytes; raise max_bytes if you trust it.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = " Binary (.ubj) models must be saved again as .json." if b"\0" in text[:4096] else ""
        raise LoadError(f"{origin} is no readable JSON: {str(error) or type(error).__name__}.{hint}") from error


def _rounded(numbers: Any) -> Floats:
    """Round to XGBoost's float32, held in float64."""
    with np.errstate(over="ignore"):
        return np.asarray(numbers, dtype=np.float64).astype(np.float32).astype(np.float64)


def _from_model(learner: Mapping[str, Any], n_features: int | None) -> TreeEnsemble:
    objective, booster = learner["objective"]["name"], learner["gradient_booster"]["name"]
    if booster != "gbtree" or objective not in _BINARY + _MULTI:
        raise LoadError(
            f"this XGBoost model is a {booster!r} with objective {objective!r}; needed 'gbtree' with one of "
            f"{_BINARY + _MULTI}."
        )
    parameters, model = learner["learner_model_param"], learner["gradient_booster"]["model"]
    features = int(parameters["num_feature"])
    if n_features not in (None, features):
        raise LoadError(f"the XGBoost model has {features} features, not {n_features}.")
    outputs = 1 if objective in _BINARY else max(int(parameters["num_class"]), 2)
    trees, columns = model["trees"], [int(column) for column in model["tree_info"]]
    if len(trees) != len(columns):
        raise LoadError(f"the XGBoost model has {len(trees)} trees, but says of {len(columns)} which class they serve.")
    kept = _best_trees(learner, model, len(trees), outputs)
    if any(not 0 <= column < outputs for column in columns):
        raise LoadError(f"a tree of the XGBoost model serves a class outside 0 to {outputs - 1}.")
    read = [_model_tree(tree, column, outputs) for tree, column in zip(trees[:kept], columns[:kept], strict=True)]
    base = _base_margin(parameters["base_score"], objective, outputs)
    return _assemble(read, n_features=features, base=base, **_xgboost_settings(outputs))


def _xgboost_settings(outputs: int) -> dict[str, Any]:
    link = "logistic" if outputs == 1 else "softmax"
    return {"link": link, "rule": "<", "inputs": "float32", "sums": "float32"}


def _best_trees(learner: Mapping[str, Any], model: Mapping[str, Any], n_trees: int, outputs: int) -> int:
    """Count the trees up to the best round of early stopping; all of them without it."""
    best = learner.get("attributes", {}).get("best_iteration")
    if best is None:
        return n_trees
    starts = model.get("iteration_indptr")
    if starts is None:
        return min(n_trees, (int(best) + 1) * outputs * int(model["gbtree_model_param"].get("num_parallel_tree") or 1))
    return min(n_trees, int(starts[min(int(best) + 1, len(starts) - 1)]))


def _base_margin(stored: Any, objective: str, outputs: int) -> Floats:
    """Turn the stored base_score, a string of one number or of a list, into margins."""
    numbers = json.loads(stored) if isinstance(stored, str) else stored
    score = np.asarray(numbers, dtype=np.float32).reshape(-1)
    if score.size not in (1, outputs) or not np.isfinite(score).all():
        raise LoadError(f"the XGBoost model's base_score {stored!r} does not fit {outputs} output(s).")
    if objective in _BINARY:
        if not 0 < score[0] < 1:
            raise LoadError(f"the XGBoost model's base_score {stored!r} is no probability between 0 and 1.")
        # the quotient in float32, as XGBoost has it, and a correctly rounded logarithm, as the C library gives it
        score = -np.log((np.float32(1) / score - np.float32(1)).astype(np.float64)).astype(np.float32)
    return np.broadcast_to(score, (outputs,)).astype(np.float64)


def _model_tree(tree: Mapping[str, Any], column: int, outputs: int) -> _Tree:
    if int(tree["tree_param"].get("size_leaf_vector") or 1) > 1:
        raise LoadError(
            "this XGBoost model has vector leaves (multi_strategy='multi_output_tree'); train one tree per output."
        )
    if any(tree.get("split_type") or ()):
        raise LoadError(
            "this XGBoost model splits categorical features by sets; encode them as numbers and train again."
        )
    left, right = (np.asarray(tree[side], dtype=np.int64) for side in ("left_children", "right_children"))
    leaf, numbers = left == -1, _rounded(tree["split_conditions"])
    missing = np.asarray([bool(int(entry)) for entry in tree["default_left"]])
    feature = np.asarray(tree["split_indices"], dtype=np.int64)
    sizes = {left.shape, right.shape, numbers.shape, missing.shape, feature.shape}
    if len(sizes) != 1 or left.ndim != 1 or left.size == 0:
        raise LoadError(f"a tree of the XGBoost model has arrays of unequal lengths: {sorted(sizes)}.")
    _check_children(np.concatenate([left[~leaf], right[~leaf]]), left.size)
    value = _one_column(np.where(leaf, numbers, 0.0), column, outputs)
    return _Tree(np.where(leaf, -1, feature), np.where(leaf, 0.0, numbers), left, right, missing, value)


def _check_children(children: Ints, size: int) -> None:
    """Refuse a child outside its own tree, which after concatenation would be a node of a neighbour."""
    if np.any((children < 0) | (children >= size)):
        raise LoadError(f"a tree with {size} nodes names a child outside of them.")


def _from_dump(
    dump: Sequence[Any],
    n_features: int | None,
    n_classes: int,
    base_score: float | Sequence[float] | None,
    feature_names: Sequence[str] | None,
) -> TreeEnsemble:
    if n_classes < 2:
        raise LoadError(f"a classifier has at least 2 classes, not {n_classes}.")
    outputs = 1 if n_classes == 2 else n_classes
    if len(dump) % outputs:
        raise LoadError(f"{len(dump)} trees cannot take equal turns over {outputs} classes; check n_classes.")
    columns = {name: index for index, name in enumerate(feature_names or ())}
    trees = []
    for index, tree in enumerate(dump):
        try:
            parsed = json.loads(tree) if isinstance(tree, str) else tree
            trees.append(_dump_tree(parsed, columns, index % outputs, outputs))
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError) as error:
            if isinstance(error, LoadError):
                raise
            raise LoadError(f"tree {index} of the XGBoost dump is damaged: {type(error).__name__}: {error}.") from error
    tested = max((int(tree.feature.max()) for tree in trees), default=0) + 1
    features = n_features or max(tested, len(columns), 1)
    base = _rounded(
        np.broadcast_to(np.asarray(0.0 if base_score is None else base_score, dtype=np.float64), (outputs,))
    )
    return _assemble(trees, n_features=features, base=base, **_xgboost_settings(outputs))


def _dump_tree(root: Mapping[str, Any], columns: Mapping[str, int], column: int, outputs: int) -> _Tree:
    """Flatten the nested nodes with a stack of our own: a deep tree must not meet Python's recursion limit."""
    nodes: list[tuple[int, float, bool, float]] = []  # feature, threshold, whether missing goes left, leaf value
    children: list[list[int]] = []  # left and right; a leaf's are never read
    waiting: list[tuple[Mapping[str, Any], list[int], int]] = [(root, [0], 0)]
    while waiting:
        node, links, side = waiting.pop()
        links[side] = len(nodes)
        children.append([0, 0])
        if "leaf" in node:
            nodes.append((-1, 0.0, True, float(node["leaf"])))
            continue
        below = {int(child["nodeid"]): child for child in node["children"]}
        yes, no, default = int(node["yes"]), int(node["no"]), int(node.get("missing", node["yes"]))
        if set(below) != {yes, no} or yes == no or default not in below:
            raise LoadError(f"node {node['nodeid']} of the XGBoost dump names children that it does not have.")
        nodes.append((_column(node["split"], columns), float(node["split_condition"]), default == yes, 0.0))
        waiting += [(below[no], children[-1], 1), (below[yes], children[-1], 0)]
    feature, threshold, missing, value = (np.asarray(entries) for entries in zip(*nodes, strict=True))
    links_array = np.asarray(children, dtype=np.int64)
    spread = _one_column(_rounded(value), column, outputs)
    return _Tree(feature.astype(np.int64), _rounded(threshold), links_array[:, 0], links_array[:, 1], missing, spread)


def _column(split: Any, columns: Mapping[str, int]) -> int:
    """Find the column of a dump's split: a given name, a number, or f and a number."""
    if isinstance(split, str) and split in columns:
        return columns[split]
    digits = str(split).removeprefix("f")
    if isinstance(split, bool) or not (digits.isascii() and digits.isdigit()):
        raise LoadError(
            f"the XGBoost dump splits on {split!r}; pass feature_names, in column order, to say which column it is."
        )
    return int(digits)
