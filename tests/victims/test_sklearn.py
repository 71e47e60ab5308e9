"""Scikit-learn victims: labels and scores as the model gives them, whatever its classes are, and errors at the door."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_iris
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import BernoulliNB, ComplementNB, GaussianNB, MultinomialNB
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

import sparring as sp
from sparring.core.errors import CapabilityError, InputError, UnknownNameError, VictimError
from sparring.victims.additive import WordWeights
from sparring.victims.sklearn import SklearnVictim

X, Y = load_iris(return_X_y=True)
ROWS = torch.tensor(X, dtype=torch.float32)
TWO = Y < 2
MODELS: dict[str, Any] = {
    "logistic": LogisticRegression(max_iter=500),
    "linear svm": LinearSVC(random_state=0),
    "ridge": RidgeClassifier(),
    "hinge by descent": SGDClassifier(random_state=0),
    "log loss by descent": SGDClassifier(loss="log_loss", random_state=0),
    "svm": SVC(),
    "svm, one against one": SVC(decision_function_shape="ovo"),
    "gaussian": GaussianNB(),
    "neighbours": KNeighborsClassifier(3),
    "centroid": NearestCentroid(),
    "tree": DecisionTreeClassifier(max_depth=2, random_state=0),
    "forest": RandomForestClassifier(8, random_state=0),
    "boosting": GradientBoostingClassifier(n_estimators=5, random_state=0),
    "histogram boosting": HistGradientBoostingClassifier(max_iter=5, random_state=0),
    "network": MLPClassifier((8,), max_iter=400, random_state=0),
    "pipeline": make_pipeline(StandardScaler(), LogisticRegression()),
    "search": GridSearchCV(LogisticRegression(max_iter=500), {"C": [0.1, 1.0]}, cv=2),
}
SILENT = {"svm, one against one"}  # three rows of duels are no class scores
TEXTS = ["win cash now", "cash prize", "win a prize", "see you at home", "dinner at home", "love you"] * 2
SIDES = ["spam", "spam", "spam", "ham", "ham", "ham"] * 2


def fitted(name: str, X: np.ndarray, y: np.ndarray) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clone(MODELS[name]).fit(X, y)


@pytest.mark.parametrize("classes", [[0, 1, 2], [3, -7, 12], ["c", "a", "b"]])
@pytest.mark.parametrize("name", list(MODELS))
def test_answers_are_the_model_s_own(name: str, classes: list[Any]) -> None:
    own = np.array(classes)[Y]
    model = fitted(name, X, own)
    victim = SklearnVictim(model)
    answer = victim.query(ROWS)
    assert [model.classes_[i] for i in answer.labels.tolist()] == model.predict(ROWS.double().numpy()).tolist()
    assert victim.labels == tuple(str(c) for c in sorted(classes))
    assert victim.classes == 3
    if name in SILENT and not hasattr(model, "predict_proba"):
        assert victim.access is sp.Access.LABELS
        assert answer.scores is None
        return
    assert victim.access is sp.Access.SCORES
    assert answer.scores is not None
    assert answer.scores.shape == (len(ROWS), 3)
    assert bool(torch.isfinite(answer.scores).all())
    if name not in ("svm", "centroid"):  # which label by another rule than they score
        assert torch.equal(answer.scores.argmax(1), answer.labels)
    if hasattr(model, "predict_proba") and name != "log loss by descent":
        proba = torch.tensor(model.predict_proba(ROWS.double().numpy()))
        assert torch.allclose(answer.scores.softmax(1), proba, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in MODELS if n != "centroid"])
def test_two_classes_have_two_scores(name: str) -> None:
    model = fitted(name, X[TWO], Y[TWO] + 5)
    victim = SklearnVictim(model)
    answer = victim.query(ROWS[TWO])
    assert answer.scores is not None
    assert answer.scores.shape == (100, 2)
    assert torch.equal(answer.scores.argmax(1), answer.labels)
    assert torch.equal(answer.labels, torch.tensor(Y[TWO]))
    if name == "logistic":
        gap = answer.scores[:, 1] - answer.scores[:, 0]
        assert torch.allclose(gap, torch.tensor(model.decision_function(ROWS[TWO].double().numpy())))


def test_scores_can_be_withheld() -> None:
    victim = SklearnVictim(fitted("forest", X, Y), scores=False)
    assert victim.access is sp.Access.LABELS
    assert victim.query(ROWS).scores is None
    assert len(victim.query(ROWS[:0])) == 0
    assert SklearnVictim(victim.model).query(ROWS[:0]).scores is not None


def test_certainty_is_a_large_finite_score() -> None:
    victim = SklearnVictim(fitted("tree", X, Y))
    answer = victim.query(ROWS[:1])
    assert answer.scores is not None
    assert answer.scores[0].tolist() == [0.0, -100.0, -100.0]


@pytest.mark.parametrize(
    "first",
    [
        CountVectorizer(),
        TfidfVectorizer(),
        FeatureUnion([("words", CountVectorizer()), ("letters", CountVectorizer(analyzer="char"))]),
        make_pipeline(CountVectorizer(), FunctionTransformer()),
    ],
)
def test_texts_go_through_the_pipeline(first: Any) -> None:
    model = make_pipeline(first, MultinomialNB()).fit(TEXTS, SIDES)
    victim = SklearnVictim(model)
    assert victim.domain == "text"
    assert victim.labels == ("ham", "spam")
    answer = victim.query(TEXTS)
    assert [victim.label_name(i) for i in answer.labels.tolist()] == model.predict(TEXTS).tolist()
    x, y = victim.admit(tuple(TEXTS[:2]), ["spam", "ham"])
    assert x == TEXTS[:2]
    assert y.tolist() == [1, 0]


def test_names_are_in_the_order_of_the_classes() -> None:
    model = make_pipeline(CountVectorizer(), MultinomialNB()).fit(TEXTS, [int(s == "spam") for s in SIDES])
    assert SklearnVictim(model, labels=("wanted", "unwanted")).label_index("unwanted") == 1
    named = make_pipeline(CountVectorizer(), MultinomialNB()).fit(TEXTS, SIDES)
    with pytest.raises(InputError, match=r"another order.*ham, spam"):
        SklearnVictim(named, labels=("spam", "ham"))
    with pytest.raises(InputError, match="2 names are needed"):
        SklearnVictim(named, labels=("ham", "spam", "eggs"))
    with pytest.raises(UnknownNameError, match="spam"):
        SklearnVictim(named).admit(["x"], ["spm"])


def test_labels_of_the_model_s_own_are_translated_when_asked() -> None:
    victim = SklearnVictim(fitted("forest", X, np.array([1, 5, 9])[Y]))
    own = np.array([1, 5, 9])[Y]
    with pytest.raises(InputError, match=r"victim\.numbers\(y\)"):
        victim.admit(ROWS, own)
    assert torch.equal(victim.admit(ROWS, victim.numbers(own))[1], torch.tensor(Y))
    assert victim.numbers(torch.tensor([9, 1])).tolist() == [2, 0]
    with pytest.raises(InputError, match="7, which"):
        victim.numbers([1, 7])
    with pytest.raises(InputError, match="labels span"):
        victim.admit(ROWS, torch.tensor(Y) + 3)


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (ROWS[:, :3], "fitted on 4 columns"),
        (ROWS[0], "a batch"),
        (ROWS[:, None], "fitted on 4 columns"),
        (ROWS.long(), "floats are needed"),
        (torch.where(ROWS > 7, torch.nan, ROWS), "NaN or infinity"),
        (X, "float tensor"),
        (TEXTS, "float tensor"),
    ],
)
def test_wrong_rows_are_refused_at_the_door(x: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        SklearnVictim(fitted("gaussian", X, Y)).admit(x, [0] * len(x))


def test_bounds_are_held() -> None:
    victim = SklearnVictim(fitted("gaussian", X, Y), bounds=(X.min(0), X.max(0)))
    x, _ = victim.admit(ROWS, Y)
    assert torch.equal(x, ROWS)
    with pytest.raises(InputError, match="span"):
        victim.admit(ROWS + 3, Y)


@pytest.mark.parametrize(
    ("x", "told"),
    [("one text", r"\[text\]"), (ROWS, "list of str"), ([1, 2], "list of str")],
)
def test_wrong_texts_are_refused_at_the_door(x: Any, told: str) -> None:
    model = make_pipeline(CountVectorizer(), MultinomialNB()).fit(TEXTS, SIDES)
    with pytest.raises(InputError, match=told):
        SklearnVictim(model).admit(x, [0] * len(x))


class Moody(ClassifierMixin, BaseEstimator):
    """A classifier that answers as it is told to."""

    def __init__(self, mood: str = "fine") -> None:
        self.mood = mood

    def fit(self, X: Any, y: Any) -> Moody:
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: Any) -> Any:
        if self.mood == "raises":
            raise RuntimeError("no answer today")
        return np.full(len(X) + (self.mood == "long"), 9 if self.mood == "strange" else self.classes_[0])

    def decision_function(self, X: Any) -> Any:
        return np.full((len(X), len(self.classes_)), np.nan if self.mood == "nan" else 0.0)


@pytest.mark.parametrize(
    ("mood", "told"),
    [
        ("raises", "RuntimeError on 5 inputs: no answer today"),
        ("long", "predicted shape"),
        ("strange", "outside its classes_"),
        ("nan", "scores=False"),
    ],
)
def test_a_model_that_misbehaves_is_named(mood: str, told: str) -> None:
    victim = SklearnVictim(Moody(mood).fit(X, Y), name="moody")
    with pytest.raises(VictimError, match=f"'moody'.*{told}"):
        victim.query(ROWS[:5])
    assert SklearnVictim(Moody().fit(X, Y)).query(ROWS[:5]).labels.tolist() == [0] * 5


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (LogisticRegression(), "not fitted"),
        (make_pipeline(CountVectorizer(), MultinomialNB()), "not fitted"),
        (LinearRegression().fit(X, Y), "no regressor"),
        (LogisticRegression, "fitted scikit-learn classifier"),
        ("model.pkl", "fitted scikit-learn classifier"),
        (DecisionTreeClassifier().fit(X, np.c_[Y, Y]), "several outputs"),
        (DecisionTreeClassifier().fit(X, Y * 0), "knows 1 class"),
    ],
)
def test_what_is_no_fitted_classifier_is_refused(model: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        SklearnVictim(model)


def test_bounds_are_for_rows() -> None:
    with pytest.raises(InputError, match="only rows have bounds"):
        SklearnVictim(make_pipeline(CountVectorizer(), MultinomialNB()).fit(TEXTS, SIDES), bounds=(0, 1))


@pytest.mark.parametrize("name", list(MODELS))
def test_the_fingerprint_follows_the_parameters_and_the_fit(name: str) -> None:
    model = fitted(name, X, Y)
    print_ = SklearnVictim(model).fingerprint()
    SklearnVictim(model).query(ROWS)
    assert SklearnVictim(model).fingerprint() == print_  # asking changes nothing
    assert SklearnVictim(fitted(name, X, Y)).fingerprint() == print_  # nor does where it lies in memory
    assert SklearnVictim(fitted(name, X[::2], Y[::2])).fingerprint() != print_
    assert SklearnVictim(fitted(name, X + 0.5, Y)).fingerprint() != print_
    assert SklearnVictim(model, bounds=(0, 9)).fingerprint() != print_
    assert SklearnVictim(model, labels=("a", "b", "c")).fingerprint() != print_


def test_the_fingerprint_sees_code_and_survives_a_cycle() -> None:
    def half(x: Any) -> Any:
        return x * 0.5

    def third(x: Any) -> Any:
        return x * 0.3

    prints = {
        SklearnVictim(make_pipeline(FunctionTransformer(f), GaussianNB()).fit(X, Y)).fingerprint()
        for f in (half, third, half)
    }
    assert len(prints) == 2
    model = fitted("gaussian", X, Y)
    model.itself = model
    assert SklearnVictim(model).fingerprint() == SklearnVictim(model).fingerprint()


def test_refit_is_a_fresh_model_on_other_data() -> None:
    model = make_pipeline(CountVectorizer(), LogisticRegression()).fit(TEXTS, SIDES)
    victim = SklearnVictim(model, name="filter", scores=False)
    before = victim.fingerprint()
    poisoned = victim.refit(["win cash", "dinner"], ["ham", "spam"])
    assert poisoned.name == "filter"
    assert poisoned.access is sp.Access.LABELS
    assert poisoned.query(["dinner", "cash"]).labels.tolist() == [1, 0]
    assert victim.query(["dinner", "cash"]).labels.tolist() == [0, 1]
    assert victim.fingerprint() == before
    assert victim.capability("refit")(TEXTS, torch.tensor([1, 1, 1, 0, 0, 0] * 2)).fingerprint() == before
    with pytest.raises(InputError, match="no sample is labelled spam"):
        victim.refit(["dinner", "home"], ["ham", "ham"])
    rows = SklearnVictim(fitted("gaussian", X, Y), bounds=(0, 9))
    assert rows.refit(ROWS[::2], Y[::2]).bounds is not None


def test_a_fit_that_fails_is_told() -> None:
    model = make_pipeline(CountVectorizer(), MultinomialNB()).fit(TEXTS, SIDES)
    with pytest.raises(VictimError, match=r"fitting .* again raised ValueError"):
        SklearnVictim(model).refit(["", ""], ["ham", "spam"])


ADDITIVE = [
    make_pipeline(CountVectorizer(), MultinomialNB()),
    make_pipeline(CountVectorizer(), ComplementNB()),
    make_pipeline(CountVectorizer(), BernoulliNB()),
    make_pipeline(CountVectorizer(binary=True), "passthrough", LogisticRegression()),
    make_pipeline(TfidfVectorizer(norm=None), LinearSVC()),
    make_pipeline(TfidfVectorizer(norm=None, binary=True, use_idf=False), RidgeClassifier()),
    make_pipeline(TfidfVectorizer(norm=None), BernoulliNB()),
    GridSearchCV(make_pipeline(CountVectorizer(), LogisticRegression()), {"logisticregression__C": [1, 2]}, cv=2),
]


@pytest.mark.parametrize("sides", [SIDES, ["spam", "spam", "spam", "ham", "meal", "ham"] * 2])
@pytest.mark.parametrize("model", ADDITIVE)
def test_word_weights_add_up_to_the_scores(model: Any, sides: list[str]) -> None:
    victim = SklearnVictim(clone(model).fit(TEXTS, sides))
    weights = victim.capability("word_weights")
    assert isinstance(weights, WordWeights)
    texts = ["win win win cash", "Home home dinner unheard", "", "you see a prize at home"]
    scores = victim.query(texts).scores
    assert scores is not None
    summed = torch.tensor(np.stack([weights.scores(text) for text in texts]))
    assert torch.allclose(summed - summed.mean(1, keepdim=True), scores - scores.mean(1, keepdim=True), atol=1e-9)
    assert weights.tokens("unheard") == []
    assert weights.tokens("dinner") == [weights.words.index("dinner")]


def test_what_it_does_not_offer_is_said() -> None:
    victim = SklearnVictim(fitted("forest", X, Y), name="forest")
    with pytest.raises(CapabilityError, match=r"TreeVictim\(model\)"):
        victim.capability("trees")
    with pytest.raises(CapabilityError, match=r"'forest' offers none.*CountVectorizer"):
        victim.capability("word_weights")
    with pytest.raises(CapabilityError, match="no magic to offer"):
        victim.capability("magic")
    with pytest.raises(CapabilityError, match="pgd needs gradients"):
        sp.PGD()(victim, ROWS, Y, sp.Linf(0.1))
