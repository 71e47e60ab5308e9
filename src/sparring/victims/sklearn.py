"""Any fitted scikit-learn classifier as a victim: texts through a pipeline, or rows of a table."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparring.core.batch import Batch
from sparring.core.door import admit_tensor, finite_scores
from sparring.core.errors import CapabilityError, InputError, VictimError
from sparring.core.outputs import Prediction
from sparring.core.rng import KeyedRandom
from sparring.core.space import Bounds
from sparring.core.threat import Access
from sparring.core.victim import BaseVictim
from sparring.victims.additive import word_weights
from sparring.victims.digest import digest

# What stands for log(0) where a model is certain: far below any probability that a float64 sum can tell from 0.
_LEAST_LOG = -100.0


class SklearnVictim(BaseVictim):
    """A fitted scikit-learn classifier. Class numbers are positions in the model's `classes_`, whatever these are.

    Labels are the model's own `predict`. Scores are its `decision_function` where that has one column per class (or one
    in all, for two classes), else its log-probabilities, with log(0) as -100; a model with neither answers labels only.
    A few models (support vector machines of three and more classes, nearest centroids) label by another rule than their
    scores, so that the largest score is not always the label.

    A model that begins with a text vectorizer takes lists of str; any other takes rows, float (n, d).

    Args:
        model: a fitted classifier or a pipeline that ends in one.
        labels: class names in the order of `classes_`; None takes those.
        bounds: (lo, hi) of rows, if they have any: numbers, or per column, (d,).
        scores: whether the model shows its scores; False leaves the labels alone.
        name: what messages and reports call it.

    Raises:
        InputError: not a classifier, not fitted, one with several outputs, or names that do not fit its classes.

    Example:
        >>> from sklearn.linear_model import LogisticRegression
        >>> victim = SklearnVictim(LogisticRegression().fit([[0.0], [1.0]], ["no", "yes"]))
        >>> victim.query(torch.tensor([[1.0]])).labels, victim.labels
        (tensor([1]), ('no', 'yes'))
    """

    def __init__(
        self,
        model: Any,
        *,
        labels: Sequence[str] | None = None,
        bounds: tuple[float | Tensor, float | Tensor] | None = None,
        scores: bool = True,
        name: str | None = None,
    ) -> None:
        self.values = _classes_of(model)
        super().__init__(labels=_names(self.values, labels), name=name or _model_name(model))
        self.model = model
        self.domain = "text" if _reads_text(model) else "table"
        self.bounds = None if bounds is None else Bounds.of(bounds)
        if self.domain == "text" and bounds is not None:
            raise InputError(f"bounds came for {self.name!r}, which reads texts; only rows have bounds")
        self._body, self._head = _split(model)
        self._scored_by = _score_method(self._head) if scores else None
        self.access = Access.LABELS if self._scored_by is None else Access.SCORES

    def query(self, x: Batch, noise: KeyedRandom | None = None) -> Prediction:
        """The model's own labels, and its scores in float64 where it shows them.

        Raises:
            VictimError: the model failed, or answered NaN.
        """
        n = len(x)
        if not n:
            scores = None if self._scored_by is None else torch.zeros(0, len(self.values), dtype=torch.float64)
            return Prediction(torch.zeros(0, dtype=torch.int64), scores)
        rows: Any = _rows(x)
        try:
            with _quiet():
                features = rows if self._body is None else self._body.transform(rows)
                answers = np.asarray(self._head.predict(features))
                raw = None if self._scored_by is None else np.asarray(getattr(self._head, self._scored_by)(features))
        except Exception as cause:
            raise VictimError(f"{self.name!r} raised {type(cause).__name__} on {n} inputs: {cause}") from cause
        labels = np.minimum(np.searchsorted(self.values, answers), len(self.values) - 1)
        if answers.shape != (n,) or bool((self.values[labels] != answers).any()):
            raise VictimError(
                f"{self.name!r} predicted shape {answers.shape} for {n} inputs, or labels outside its classes_"
            )
        return Prediction(torch.as_tensor(labels, dtype=torch.int64), None if raw is None else self._scores(raw, n))

    def _scores(self, raw: np.ndarray[Any, Any], n: int) -> Tensor:
        """Scores (n, k) from whatever the model's method gave."""
        scores = torch.as_tensor(np.asarray(raw, dtype=np.float64))
        if self._scored_by == "predict_proba":
            scores = scores.log()
        if self._scored_by != "decision_function":
            scores = scores.clamp(min=_LEAST_LOG)
        if scores.ndim == 1 and len(self.values) == 2:
            scores = torch.stack([-0.5 * scores, 0.5 * scores], dim=1)
        if scores.shape != (n, len(self.values)) or bool(torch.isnan(scores).any()):
            raise VictimError(
                f"{self.name!r} answered scores of shape {tuple(scores.shape)} for {n} inputs of {len(self.values)} "
                "classes, or NaN among them; give SklearnVictim(..., scores=False) to use its labels alone"
            )
        return finite_scores(scores)

    def admit(self, x: Batch, y: Any) -> tuple[Batch, Tensor]:
        """Texts as a list of str, or rows (n, d) that are finite and inside the bounds; labels by number or name.

        Raises:
            InputError: the other kind of input, a wrong number of columns, NaN, or labels that the model does not know.
        """
        if self.domain == "text":
            x = _admit_texts(x, self.name)
        else:
            x = _admit_rows(x, self.bounds, getattr(self.model, "n_features_in_", None), self.name)
        return x, self._admit_labels(self._admit_values(y), len(x))

    def _admit_values(self, y: Any) -> Any:
        """Class numbers pass; labels of the model's own that are others meet an error that says how to translate."""
        given = [y] if isinstance(y, (str, int)) else y
        numbers = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
        if numbers.dtype.kind in "iu" and numbers.size and bool(np.isin(numbers, self.values).all()):
            inside = bool(((numbers >= 0) & (numbers < len(self.values))).all())
            if not inside:
                raise InputError(
                    f"labels span {numbers.min()}..{numbers.max()}, which are {self.name!r}'s own classes_; class "
                    f"numbers 0..{len(self.values) - 1} are needed: y = victim.numbers(y)"
                )
        return y

    def numbers(self, y: Any) -> Tensor:
        """Class numbers, int64 (n,), of labels as the model itself knows them (the values in its `classes_`).

        Raises:
            InputError: a label that is none of them.
        """
        given = np.asarray(y.cpu() if isinstance(y, Tensor) else y)
        known = {value: number for number, value in enumerate(self.values.tolist())}
        unknown = sorted({repr(v) for v in given.ravel().tolist() if v not in known})
        if unknown or given.ndim != 1:
            found = (
                f"{', '.join(unknown[:3])}, which {self.name!r} does not know" if unknown else f"shape {given.shape}"
            )
            raise InputError(f"labels hold {found}; one of {self.values.tolist()[:10]} per input is needed, (n,)")
        return torch.tensor([known[v] for v in given.tolist()], dtype=torch.int64)

    def refit(self, x: Batch, y: Any) -> SklearnVictim:
        """A victim whose model, a fresh clone of this one, was fitted on other data.

        Args:
            x: texts, or rows (n, d).
            y: class numbers or names, as for an attack.

        Raises:
            InputError: inputs or labels that do not fit, or a class without a sample, which would renumber the others.
            VictimError: the fit failed.
        """
        from sklearn.base import clone

        x, numbers = self.admit(x, y)
        absent = [name for i, name in enumerate(self.labels or ()) if not bool((numbers == i).any())]
        if absent:
            raise InputError(f"a refit needs every class; no sample is labelled {', '.join(absent)}")
        rows: Any = _rows(x)
        try:
            with _quiet():
                model = clone(self.model).fit(rows, self.values[numbers.numpy()])
        except Exception as cause:
            raise VictimError(f"fitting {self.name!r} again raised {type(cause).__name__}: {cause}") from cause
        bounds = None if self.bounds is None else (self.bounds.lo, self.bounds.hi)
        return SklearnVictim(
            model, labels=self.labels, bounds=bounds, scores=self.access is Access.SCORES, name=self.name
        )

    def capability(self, name: str) -> Any:
        """`"refit"`: `refit`. `"word_weights"`: the `WordWeights` of a pipeline whose scores are sums over words.

        Raises:
            CapabilityError: anything else, or a pipeline that is not additive; the message says which step and why.
        """
        if name == "refit":
            return self.refit
        if name == "trees":
            raise CapabilityError(
                f"{self.name!r} does not open its trees; give sparring.tabular.TreeVictim(model) instead"
            )
        if name != "word_weights":
            return super().capability(name)
        try:
            return word_weights(self.model)
        except CapabilityError as why:
            raise CapabilityError(f"{self.name!r} offers none: {why}") from why

    def fingerprint(self) -> str:
        """SHA-256 over the model's parameters and fitted arrays, its class names and its bounds."""
        bounds = None if self.bounds is None else (self.bounds.lo.numpy(), self.bounds.hi.numpy())
        told = digest([self.model, self.labels, bounds, self._scored_by])
        return hashlib.sha256(f"SklearnVictim:{told}".encode()).hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what a model says about the shape of its answer, not about its truth: column names, and log(0)."""
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        warnings.filterwarnings("ignore", message="divide by zero encountered in log")
        yield


def _rows(x: Batch) -> Any:
    """What scikit-learn is handed: float64 of its own, for some scalers work in place, or a list."""
    return x.detach().cpu().to(torch.float64, copy=True).numpy() if isinstance(x, Tensor) else list(x)


def _classes_of(model: Any) -> np.ndarray[Any, Any]:
    """The model's `classes_`, once it is plain that it is a fitted classifier of one output."""
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    if isinstance(model, type) or not (hasattr(model, "predict") and hasattr(model, "get_params")):
        raise InputError(f"the model is {model!r}; a fitted scikit-learn classifier or pipeline is needed")
    try:
        check_is_fitted(model)
        classes = model.classes_
    except NotFittedError as cause:
        raise InputError(f"this {type(model).__name__} is not fitted; call model.fit(X, y) first") from cause
    except (AttributeError, TypeError) as cause:
        raise InputError(
            f"this {type(model).__name__} has no classes_; a fitted classifier is needed, no regressor"
        ) from cause
    if isinstance(classes, list) or np.ndim(classes) != 1:
        raise InputError(f"this {type(model).__name__} has several outputs; give one model per output")
    classes = np.asarray(classes)
    if len(classes) < 2:
        raise InputError(f"this {type(model).__name__} knows {len(classes)} class; two are needed for one to be wrong")
    return classes


def _names(values: np.ndarray[Any, Any], labels: Sequence[str] | None) -> tuple[str, ...]:
    own = tuple(str(value) for value in values.tolist())
    if labels is None:
        return own
    given = tuple(labels)
    if isinstance(labels, str) or len(given) != len(own):
        raise InputError(f"labels are {labels!r}; {len(own)} names are needed, for the classes {', '.join(own)}")
    if given != own and set(given) == set(own):
        raise InputError(
            f"labels are in another order than the model's classes_, which are {', '.join(own)}; use that order"
        )
    return given


def _model_name(model: Any) -> str:
    steps = getattr(model, "steps", None)
    return "-".join(type(step).__name__ for _, step in steps) if steps else type(model).__name__


def _reads_text(model: Any) -> bool:
    """Whether the first thing that meets an input is a text vectorizer."""
    for name in ("best_estimator_", "estimator"):
        model = getattr(model, name, model)
    if hasattr(model, "steps"):
        return any(_reads_text(step) for _, step in model.steps[:1])
    if hasattr(model, "transformer_list"):
        return any(_reads_text(step) for _, step in model.transformer_list)
    return hasattr(model, "build_analyzer")


def _split(model: Any) -> tuple[Any, Any]:
    """A pipeline as (all but the last step, the last step), so that labels and scores share one transformation."""
    from sklearn.pipeline import Pipeline

    if type(model) is Pipeline and len(model.steps) > 1:
        return model[:-1], model[-1]
    return None, model


def _score_method(head: Any) -> str | None:
    ovo = getattr(head, "decision_function_shape", None) == "ovo" and len(head.classes_) > 2
    names = [] if ovo else ["decision_function"]
    found: Callable[..., Any] | None
    for name in (*names, "predict_log_proba", "predict_proba"):
        found = getattr(head, name, None)
        if callable(found):
            return name
    return None


def _admit_texts(x: Batch, name: str) -> list[str]:
    if isinstance(x, (str, Tensor)) or not all(isinstance(text, str) for text in x):
        hint = ". For one text: [text]" if isinstance(x, str) else ""
        raise InputError(f"{name!r} reads texts: a list of str is needed, and a {type(x).__name__} came{hint}")
    return list(x)


def _admit_rows(x: Batch, bounds: Bounds | None, columns: int | None, name: str) -> Tensor:
    if not isinstance(x, Tensor):
        raise InputError(
            f"{name!r} takes rows as a float tensor (n, d); a {type(x).__name__} came. Try torch.as_tensor(x)"
        )
    x = admit_tensor(x, bounds, name).detach().cpu()
    if x.ndim != 2 or (columns is not None and x.shape[1] != columns):
        wanted = "d" if columns is None else columns
        raise InputError(
            f"rows have shape {tuple(x.shape)}; {name!r} was fitted on {wanted} columns, so (n, {wanted}) is needed"
        )
    return x
