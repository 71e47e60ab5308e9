"""Text classifiers whose scores are sums over words: the sums, read out of a fitted scikit-learn pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparring.core.errors import CapabilityError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class WordWeights:
    r"""A classifier whose class scores are linear in the words of a text.

    .. math:: s_c(x) = b_c + \sum_w n_w(x) \, W_{wc}

    where n_w(x) is how often w stands in x, or 1 if it does at all when `presence` is true.

    Args:
        words: the v words that the classifier knows.
        weights: W, shape (v, k); columns in the order of the victim's class numbers.
        bias: b, shape (k,).
        presence: whether a repeated word counts once.
        analyze: the classifier's own way from a text to its words.
        numbers: the row of W for each word.
    """

    words: tuple[str, ...]
    weights: Floats
    bias: Floats
    presence: bool
    analyze: Callable[[str], list[str]]
    numbers: dict[str, int]

    def tokens(self, text: str) -> list[int]:
        """The numbers of the known words in a text, each as often as it counts."""
        found = [self.numbers[word] for word in self.analyze(text) if word in self.numbers]
        return sorted(set(found)) if self.presence else found

    def scores(self, text: str) -> Floats:
        """The class scores of one text, shape (k,)."""
        total: Floats = self.bias + self.weights[self.tokens(text)].sum(axis=0)
        return total


def word_weights(model: Any) -> WordWeights:
    """Read the weights of a fitted pipeline of word counts and an additive classifier.

    The first step is a `CountVectorizer` (or `TfidfVectorizer` without normalisation) of single words, then perhaps a
    `TfidfTransformer(norm=None)`; the classifier is naive Bayes (multinomial, complement, Bernoulli) or linear with a
    `coef_` (logistic regression, linear support vector machine, ridge, perceptron).

    Raises:
        CapabilityError: which step is not additive, and why that matters.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.pipeline import Pipeline

    model = getattr(model, "best_estimator_", model)
    steps = (
        [step for _, step in model.steps if step not in (None, "passthrough")] if isinstance(model, Pipeline) else []
    )
    if len(steps) < 2 or not isinstance(steps[0], CountVectorizer):
        raise CapabilityError(
            f"{_name(model)} does not begin with a CountVectorizer, so its scores are no sum over the words of a text"
        )
    vectorizer, *between, classifier = steps
    if vectorizer.analyzer != "word" or tuple(vectorizer.ngram_range) != (1, 1):
        raise CapabilityError(
            f"{_name(vectorizer)} has analyzer={vectorizer.analyzer!r} and ngram_range={vectorizer.ngram_range}: an "
            "added word changes other features than its own; single words (analyzer='word', ngram_range=(1, 1)) are "
            "needed"
        )
    vocabulary = {str(word): int(column) for word, column in vectorizer.vocabulary_.items()}
    scale = np.ones(len(vocabulary))
    for step in (getattr(vectorizer, "_tfidf", None), *between):
        if step is not None:
            scale = scale * _idf(step, len(vocabulary))
    weights, bias, binarizes = _classifier(classifier)
    if binarizes:
        scale = np.ones_like(scale)
    words = tuple(sorted(vocabulary, key=vocabulary.__getitem__))
    return WordWeights(
        words=words,
        weights=weights * scale[:, None],
        bias=bias,
        presence=bool(vectorizer.binary) or binarizes,
        analyze=vectorizer.build_analyzer(),
        numbers=vocabulary,
    )


def _idf(step: Any, v: int) -> Floats:
    """The factor per word of a tf-idf step that keeps scores additive."""
    from sklearn.feature_extraction.text import TfidfTransformer

    if not isinstance(step, TfidfTransformer):
        raise CapabilityError(
            f"the step {_name(step)} between the counts and the classifier may mix words; take it out"
        )
    if step.norm is not None:
        raise CapabilityError(
            f"its TF-IDF is {step.norm.upper()}-normalised: every count is divided by the length of the whole text's "
            "vector, so what one added word does depends on all the others, and the words of largest weight are no "
            "longer the fewest that suffice; fit with norm=None, or use good-words-active, which needs no such form"
        )
    if step.sublinear_tf:
        raise CapabilityError(
            "its TF-IDF takes the logarithm of counts (sublinear_tf=True), which is not additive in words"
        )
    return np.asarray(step.idf_, dtype=np.float64) if step.use_idf else np.ones(v)


def _classifier(model: Any) -> tuple[Floats, Floats, bool]:
    """Weights (v, k), bias (k,) and whether the classifier sees presence alone."""
    from sklearn.naive_bayes import BernoulliNB, ComplementNB, MultinomialNB

    if isinstance(model, (MultinomialNB, ComplementNB)):
        log_p = np.asarray(model.feature_log_prob_, dtype=np.float64)
        prior = model.class_log_prior_ if isinstance(model, MultinomialNB) else np.zeros(len(log_p))
        return log_p.T, np.asarray(prior, dtype=np.float64), False
    if isinstance(model, BernoulliNB):
        if model.binarize not in (None, 0, 0.0):
            raise CapabilityError(
                f"its BernoulliNB counts a word from more than {model.binarize} on; binarize=0 is needed"
            )
        log_p = np.asarray(model.feature_log_prob_, dtype=np.float64)
        absent = np.log1p(-np.exp(log_p))
        return (log_p - absent).T, model.class_log_prior_ + absent.sum(axis=1), model.binarize is not None
    coef, k = getattr(model, "coef_", None), len(model.classes_)
    if coef is None or getattr(model, "intercept_", None) is None:
        raise CapabilityError(f"{_name(model)} has no weight per word; naive Bayes or a linear classifier is needed")
    coef = np.atleast_2d(np.asarray(coef.toarray() if hasattr(coef, "toarray") else coef, dtype=np.float64))
    bias = np.broadcast_to(np.asarray(model.intercept_, dtype=np.float64).reshape(-1), (len(coef),))
    if k == 2 and len(coef) == 1:
        return np.concatenate([-0.5 * coef, 0.5 * coef]).T, np.concatenate([-0.5 * bias, 0.5 * bias]), False
    if len(coef) != k:
        raise CapabilityError(
            f"{_name(model)} has {len(coef)} rows of weights for {k} classes; one score per class is needed"
        )
    return coef.T, bias, False


def _name(step: Any) -> str:
    return f"the {type(step).__name__}"
