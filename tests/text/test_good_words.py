"""Good-word attacks on naive Bayes, logistic and support-vector filters: counted, bounded, beside the optimum."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.naive_bayes import BernoulliNB, ComplementNB, MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from torch import Tensor

import sparring as sp
from sparring.core.batch import Batch
from sparring.core.errors import CapabilityError, InputError, ThreatError
from sparring.core.outputs import Prediction
from sparring.core.registry import attack_class
from sparring.core.rng import KeyedRandom
from sparring.core.runner import Run
from sparring.data.sms import generate_corpus, load_sms, split_corpus
from sparring.text import AddedWords, GoodWordsActive, GoodWordsList, GoodWordsOptimal, GoodWordsPassive
from sparring.text.corpus import Corpus, Side
from sparring.victims.sklearn import SklearnVictim

HAM, SPAM = 0, 1
FILTERS: dict[str, Callable[[], Any]] = {
    "naive bayes": MultinomialNB,
    "logistic": lambda: LogisticRegression(max_iter=1000),
    "linear svm": lambda: LinearSVC(random_state=0),
}
filters = pytest.mark.parametrize("name", list(FILTERS))


class Spied(SklearnVictim):
    """A victim that counts the texts it is asked about."""

    asked = 0

    def query(self, x: Batch, noise: KeyedRandom | None = None) -> Prediction:
        self.asked += len(x)
        return super().query(x, noise)


class Scene:
    """A filter trained on one half of the messages, an attacker who owns the other, and spam that neither has seen."""

    def __init__(self, train: tuple[list[str], list[int]], test: tuple[list[str], list[int]], spam: int) -> None:
        half = len(train[0]) // 2
        self.seen = train[0][:half], train[1][:half]
        self.knowledge = sp.Knowledge(data=(train[0][half:], torch.tensor(train[1][half:])))
        self.x = [text for text, label in zip(*test, strict=True) if label == SPAM][:spam]
        self.y = torch.full((len(self.x),), SPAM)

    def victim(self, *steps: Any) -> Spied:
        model = make_pipeline(*(steps if len(steps) > 1 else (CountVectorizer(), *steps)))
        return Spied(model.fit(*self.seen), labels=("ham", "spam"))

    def threat(self, space: AddedWords, **how: Any) -> sp.ThreatModel:
        return sp.ThreatModel(space, goal=sp.Targeted(HAM), knowledge=self.knowledge, **how)

    def run(self, attack: sp.Attack, victim: Spied, space: AddedWords, **how: Any) -> sp.AttackResult:
        return attack(victim, self.x, self.y, self.threat(space, **how))


@functools.cache
def made() -> Scene:
    corpus = generate_corpus(2000)
    return Scene(split_corpus(*corpus, "train"), split_corpus(*corpus, "test"), 24)


@functools.cache
def made_filter(name: str) -> Spied:
    return made().victim(FILTERS[name]())


@pytest.fixture(scope="module")
def collected(assets: Path) -> Scene:
    path = assets / "data" / "sms_spam.tsv"
    return Scene(load_sms(path, "train"), load_sms(path, "test"), 36)


def in_order(result: sp.AttackResult) -> Tensor:
    """Distances, infinite where the attack failed; messages that pass already are left out."""
    tried = result.outcome != sp.Outcome.ALREADY_TARGET
    return torch.where(result.succeeded, result.distance, torch.inf)[tried]


class TestHeadline:
    """Half of the blocked spam passes with at most 150 passive or 30 active words (Lowd and Meek 2005)."""

    @filters
    def test_made_messages(self, name: str) -> None:
        self.holds(made(), made_filter(name), GoodWordsActive())

    @filters
    def test_collected_messages(self, collected: Scene, name: str) -> None:
        self.holds(collected, collected.victim(FILTERS[name]()), GoodWordsActive())

    def holds(self, scene: Scene, victim: Spied, active: sp.Attack) -> None:
        passive = scene.run(GoodWordsPassive(), victim, AddedWords(150))
        assert passive.attack_success_rate >= 0.5
        assert int((passive.outcome == sp.Outcome.ALREADY_TARGET).sum()) < len(scene.x) / 2
        asked = scene.run(active, victim, AddedWords(30))
        assert asked.attack_success_rate >= 0.5
        assert bool((asked.distance[asked.succeeded] <= 30).all())
        few, listed, optimal = (
            in_order(scene.run(attack, victim, AddedWords()))
            for attack in (active, GoodWordsList(), GoodWordsOptimal())
        )
        assert bool((optimal <= few).all())
        assert bool((optimal <= listed).all())
        assert float(optimal.median()) < float(few.median()) <= float(listed.median()) < 150

    def test_words_at_random_help_far_less(self) -> None:
        scene, victim = made(), made_filter("naive bayes")
        rates = [
            scene.run(GoodWordsPassive(choose=choose), victim, AddedWords(40)).attack_success_rate
            for choose in ("ratio", "frequent", "dictionary")
        ]
        assert min(rates[:2]) > 0.9
        assert rates[2] < 0.2


@pytest.mark.parametrize(
    "attack", [GoodWordsPassive(), GoodWordsList(), GoodWordsActive(), GoodWordsActive(method="best", candidates=200)]
)
def test_each_card_keeps_its_word(attack: Any) -> None:
    scene, victim = made(), made_filter("logistic")
    card = attack.card
    assert attack_class(card.name) is type(attack)
    result = scene.run(attack, victim, AddedWords(None if card.minimal else 150))
    floor = card.floor["added_words"]
    assert result.median_distance <= floor if card.minimal else result.attack_success_rate >= floor


# -- the optimum ----------------------------------------------------------------------------------------------------

TINY = (
    ["win cash now", "win a prize now", "cash prize win cash", "claim cash now"] * 3
    + ["see you at dinner", "dinner at home now", "home you see", "love you see dinner", "are you home now"] * 3,
    [SPAM] * 12 + [HAM] * 15,
)
ADDITIVE: dict[str, tuple[Any, ...]] = {
    "multinomial": (CountVectorizer(), MultinomialNB()),
    "complement": (CountVectorizer(), ComplementNB()),
    "bernoulli": (CountVectorizer(), BernoulliNB()),
    "binary counts": (CountVectorizer(binary=True), MultinomialNB()),
    "logistic": (CountVectorizer(), LogisticRegression(C=0.3)),
    "linear svm": (CountVectorizer(), LinearSVC(C=0.05, random_state=0)),
    "svm with a linear kernel": (CountVectorizer(), SVC(kernel="linear", C=0.05)),
    "perceptron by descent": (CountVectorizer(), SGDClassifier(alpha=0.1, random_state=0)),
    "idf, vectorizer": (TfidfVectorizer(norm=None), LogisticRegression(C=0.3)),
    "idf, transformer": (CountVectorizer(), TfidfTransformer(norm=None), MultinomialNB()),
}


def fewest(victim: SklearnVictim, text: str, y: int, words: list[str], distinct: bool, most: int = 6) -> float:
    """The fewest words, by trying all combinations."""
    choose = itertools.combinations if distinct else itertools.combinations_with_replacement
    for count in range(1, most + 1):
        texts = [" ".join([text, *added]) for added in choose(words, count)]
        if texts and bool((victim.query(texts).labels != y).any()):
            return count
    return torch.inf


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("name", list(ADDITIVE))
def test_no_combination_of_words_is_shorter(name: str, distinct: bool) -> None:
    victim = SklearnVictim(make_pipeline(*ADDITIVE[name]).fit(*TINY))
    words = ["dinner", "home", "you", "see", "love", "now", "cash"]
    texts = ["win cash now", "win win cash cash prize", "claim a prize", "cash cash cash claim claim win", "win dinner"]
    y = victim.query(texts).labels
    tried = [text for text, label in zip(texts, y.tolist(), strict=True) if label == SPAM]
    result = GoodWordsOptimal()(victim, tried, None, AddedWords(vocabulary=words, distinct=distinct))
    found = torch.where(result.succeeded, result.distance, torch.inf)
    by_trying = [fewest(victim, text, SPAM, words, distinct) for text in tried]
    assert [d if d <= 6 else torch.inf for d in found.tolist()] == by_trying
    assert len(set(by_trying)) > 1
    assert not bool((result.outcome == sp.Outcome.FAILED).any())


def test_of_three_classes_the_one_that_needs_fewest_is_taken() -> None:
    texts = ["win cash", "cash prize", "dinner home", "home love", "rain sun", "sun wind"] * 4
    victim = SklearnVictim(make_pipeline(CountVectorizer(), MultinomialNB()).fit(texts, [0, 0, 1, 1, 2, 2] * 4))
    words = ["dinner", "home", "love", "rain", "sun", "wind"]
    x = ["win cash dinner", "cash prize win sun", "win cash prize"]
    result = GoodWordsOptimal()(victim, x, torch.zeros(3, dtype=torch.int64), AddedWords(vocabulary=words))
    assert result.succeeded.all()
    assert result.distance.tolist() == [fewest(victim, text, 0, words, distinct=False) for text in x]
    with pytest.raises(CapabilityError, match="3 classes"):
        GoodWordsOptimal()(victim, x, torch.zeros(3, dtype=torch.int64), AddedWords(), goal=2)


def test_where_no_word_helps_the_message_survives() -> None:
    victim = SklearnVictim(make_pipeline(CountVectorizer(), MultinomialNB()).fit(*TINY))
    x, y = ["win cash now"] * 3, [SPAM] * 3
    for space in (AddedWords(vocabulary=["cash", "claim"]), AddedWords(vocabulary=["unheard"]), AddedWords(1)):
        result = GoodWordsOptimal()(victim, x, y, space)
        assert result.outcomes == [sp.Outcome.SURVIVED] * 3
    limits = AddedWords(torch.tensor([2, 3, 4]))
    assert GoodWordsOptimal()(victim, x, y, limits).succeeded.tolist() == [False, True, True]


def test_a_vocabulary_word_that_is_many_words_to_the_filter() -> None:
    x, y, space = ["win cash now"], [SPAM], AddedWords(vocabulary=["see-you-dinner"])
    counts = SklearnVictim(make_pipeline(CountVectorizer(), MultinomialNB()).fit(*TINY))
    assert GoodWordsOptimal()(counts, x, y, space).distance.tolist() == [1]
    presence = SklearnVictim(make_pipeline(CountVectorizer(), BernoulliNB()).fit(*TINY))
    with pytest.raises(CapabilityError, match="3 words to this filter"):
        GoodWordsOptimal()(presence, x, y, space)


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ((TfidfVectorizer(), LinearSVC()), "L2-normalised.*no longer the fewest.*norm=None"),
        ((CountVectorizer(), TfidfTransformer(norm="l1"), MultinomialNB()), "L1-normalised"),
        ((TfidfVectorizer(norm=None, sublinear_tf=True), LinearSVC()), "sublinear_tf"),
        ((CountVectorizer(ngram_range=(1, 2)), MultinomialNB()), "ngram_range"),
        ((CountVectorizer(analyzer="char"), MultinomialNB()), "analyzer='char'"),
        ((HashingVectorizer(n_features=64), LogisticRegression()), "CountVectorizer"),
        ((CountVectorizer(), StandardScaler(with_mean=False), LogisticRegression()), "StandardScaler"),
        ((CountVectorizer(), RandomForestClassifier(5)), "no weight per word"),
        ((CountVectorizer(), BernoulliNB(binarize=1.0)), "binarize"),
    ],
)
def test_filters_that_are_no_sum_over_words_are_refused_with_the_reason(steps: tuple[Any, ...], why: str) -> None:
    victim = SklearnVictim(make_pipeline(*steps).fit(*TINY), name="filter")
    with pytest.raises(CapabilityError, match=f"(?s)good-words-optimal needs the word weights.*{why}"):
        GoodWordsOptimal()(victim, ["win cash now"], [SPAM], AddedWords())


def test_the_closed_form_needs_the_white_box_and_a_filter_of_words() -> None:
    victim = SklearnVictim(make_pipeline(CountVectorizer(), MultinomialNB()).fit(*TINY))
    with pytest.raises(ThreatError, match="grants labels"):
        GoodWordsOptimal()(victim, ["win"], [SPAM], sp.ThreatModel(AddedWords(), access="labels"))
    box = sp.BlackBox(lambda texts: torch.ones(len(texts), dtype=torch.int64), classes=2)
    with pytest.raises(CapabilityError, match="'<lambda>', a BlackBox, has no word weights"):
        GoodWordsOptimal()(box, ["win"], [SPAM], AddedWords())
    with pytest.raises(CapabilityError, match="pgd needs gradients"):
        sp.PGD()(victim, ["win"], [SPAM], sp.Linf(0.1))
    with pytest.raises(ThreatError, match="searches added_words"):
        GoodWordsOptimal()(victim, ["win"], [SPAM], sp.Linf(0.1))


def test_a_look_is_for_the_white_box_alone() -> None:
    class Peeping(GoodWordsList):
        def search(self, run: Run) -> None:
            run.look(run.x)

    scene = made()
    with pytest.raises(CapabilityError, match="access to labels"):
        scene.run(Peeping(), made_filter("naive bayes"), AddedWords())


# -- queries and budgets --------------------------------------------------------------------------------------------

ASKING = [GoodWordsList(), GoodWordsActive(), GoodWordsActive(method="best", words=5, candidates=60, at_once=7)]


@pytest.mark.parametrize("attack", ASKING)
def test_every_query_is_counted(attack: sp.Attack) -> None:
    scene, victim = made(), made_filter("linear svm")
    before = victim.asked
    result = scene.run(attack, victim, AddedWords())
    tried = int((result.outcome != sp.Outcome.ALREADY_TARGET).sum())
    assert victim.asked - before == len(scene.x) + int(result.queries.sum()) + tried  # the clean pass, and the re-check
    assert torch.equal(result.queries, result.forwards)
    assert int(result.queries.max()) > 10


def test_the_list_asks_once_for_each_word_it_adds() -> None:
    scene, victim = made(), made_filter("naive bayes")
    result = scene.run(GoodWordsList(), victim, AddedWords())
    assert torch.equal(result.queries, result.distance.long() * result.succeeded)
    short = scene.run(GoodWordsList(most=5), victim, AddedWords())
    assert short.queries[~short.succeeded].max() == 5
    assert torch.equal(short.succeeded, result.succeeded & (result.distance <= 5))


@pytest.mark.parametrize("attack", ASKING)
@pytest.mark.parametrize("budget", [0, 1, 8, 33])
def test_no_message_spends_more_than_its_budget(attack: sp.Attack, budget: int) -> None:
    scene, victim = made(), made_filter("logistic")
    before = victim.asked
    result = scene.run(attack, victim, AddedWords(10), queries=budget)
    tried = int((result.outcome != sp.Outcome.ALREADY_TARGET).sum())
    assert int(result.queries.max()) <= budget
    assert victim.asked - before == len(scene.x) + int(result.queries.sum()) + tried
    dry = result.outcome == sp.Outcome.OUT_OF_BUDGET
    assert bool((result.queries[dry] == budget).all())
    assert bool(dry.any()) or budget == 33


def test_words_found_before_the_budget_ran_out_are_sent() -> None:
    scene, victim = made(), made_filter("naive bayes")
    results = [scene.run(GoodWordsActive(), victim, AddedWords(), queries=q) for q in (30, None)]
    cut = (results[0].queries == 30) & (results[1].queries > 30)
    assert bool((cut & results[0].succeeded).any())


def test_the_passive_attack_never_asks() -> None:
    scene, victim = made(), made_filter("logistic")
    before = victim.asked
    result = scene.run(GoodWordsPassive(), victim, AddedWords(20))
    assert int(result.queries.sum()) == int(result.forwards.sum()) == 0
    tried = result.outcome != sp.Outcome.ALREADY_TARGET
    assert victim.asked - before == len(scene.x) + int(tried.sum())
    assert set(result.distance[tried].tolist()) == {20}
    assert bool((result.outcome == sp.Outcome.SURVIVED).any())  # with so few words it cannot know which


def test_the_limit_is_each_message_own() -> None:
    scene, victim = made(), made_filter("naive bayes")
    limits = torch.arange(len(scene.x))
    for attack in (GoodWordsPassive(), GoodWordsList(), GoodWordsActive(), GoodWordsOptimal()):
        result = scene.run(attack, victim, AddedWords(limits))
        assert bool((result.distance[result.succeeded] <= limits[result.succeeded]).all())
        assert result.limit is not None
        assert 0 < result.robust_accuracy < 1


def test_a_vocabulary_binds_every_attack() -> None:
    scene, victim = made(), made_filter("naive bayes")
    allowed = set(Corpus(*scene.seen).rank(Side(HAM, False), "ratio")[::3])
    for attack in (GoodWordsPassive(), GoodWordsList(), GoodWordsActive(), GoodWordsOptimal()):
        result = scene.run(attack, victim, AddedWords(40, vocabulary=allowed, distinct=True))
        assert bool(result.succeeded.any())
        assert not bool((result.outcome == sp.Outcome.FAILED).any())
        for text, longer, won in zip(result.original, result.adversarial, result.succeeded.tolist(), strict=True):
            words = longer[len(text) :].split()
            assert not won or (set(words) <= allowed and len(set(words)) == len(words))


# -- what every attack owes -----------------------------------------------------------------------------------------

EVERY = [
    (GoodWordsPassive(), AddedWords(12)),
    (GoodWordsPassive(choose="dictionary"), AddedWords(60)),
    (GoodWordsList(), AddedWords()),
    (GoodWordsActive(words=8, candidates=60), AddedWords()),
    (GoodWordsActive(method="best", words=5, candidates=40), AddedWords(25)),
    (GoodWordsOptimal(), AddedWords(distinct=True)),
]


@pytest.mark.parametrize(("attack", "space"), EVERY)
def test_neither_batch_size_nor_order_matters(attack: sp.Attack, space: AddedWords) -> None:
    scene, victim = made(), made_filter("linear svm")
    whole = scene.run(attack, victim, space)
    order = torch.randperm(len(scene.x), generator=torch.Generator().manual_seed(0))
    for size, index in ((1, torch.arange(8)), (7, order)):
        x = [scene.x[i] for i in index.tolist()]
        part = attack(victim, x, scene.y[index], scene.threat(space), batch_size=size)
        assert part.adversarial == [whole.adversarial[i] for i in index.tolist()]
        assert torch.equal(part.outcome, whole.outcome[index])
        assert torch.equal(part.queries, whole.queries[index])


@pytest.mark.parametrize(("attack", "space"), EVERY)
def test_messages_stay_as_they_are_and_results_outlive_the_process(
    attack: sp.Attack, space: AddedWords, tmp_path: Path
) -> None:
    scene, victim = made(), made_filter("naive bayes")
    before, labels = list(scene.x), scene.y.clone()
    result = scene.run(attack, victim, space)
    assert scene.x == before
    assert torch.equal(scene.y, labels)
    assert result.original == before
    for text, longer in zip(result.original, result.adversarial, strict=True):
        assert longer.startswith(text)
    stored = sp.AttackResult.load(result.save(tmp_path / "spam.safetensors"))
    assert stored.adversarial == result.adversarial
    assert stored.original == before
    assert repr(stored) == repr(result)
    assert torch.equal(stored.ids, result.ids)


def test_names_for_labels_and_messages_that_are_no_spam() -> None:
    scene, victim = made(), made_filter("naive bayes")
    x = [*scene.x[:3], "See you at home for dinner, love"]
    result = GoodWordsList()(victim, x, ["spam", "spam", "spam", "ham"], scene.threat(AddedWords()))
    assert result.outcomes[3] is sp.Outcome.NOT_APPLICABLE
    assert result.adversarial[3] == x[3]
    away = GoodWordsOptimal()(victim, x[:3], ["spam"] * 3, AddedWords())
    assert torch.equal(away.distance, GoodWordsOptimal()(victim, x[:3], ["spam"] * 3, AddedWords(), goal=HAM).distance)


@pytest.mark.parametrize("attack", [GoodWordsList(), GoodWordsActive(), GoodWordsOptimal(), GoodWordsPassive()])
def test_no_message_and_one_message(attack: sp.Attack) -> None:
    scene, victim = made(), made_filter("naive bayes")
    threat = scene.threat(AddedWords(100))
    nothing = attack(victim, [], torch.zeros(0, dtype=torch.int64), threat)
    assert len(nothing) == 0
    assert nothing.adversarial == []
    assert len(attack(victim, scene.x[:1], scene.y[:1], threat)) == 1


def test_a_filter_without_a_closed_form_falls_to_questions() -> None:
    scene = made()
    victim = scene.victim(TfidfVectorizer(), LinearSVC(random_state=0))
    assert scene.run(GoodWordsActive(), victim, AddedWords(30)).attack_success_rate > 0.5


def test_best_words_are_fewer_than_first_words() -> None:
    scene, victim = made(), made_filter("linear svm")
    first, best = (
        scene.run(GoodWordsActive(method=method, words=10, candidates=300), victim, AddedWords())
        for method in ("first", "best")
    )
    assert best.median_distance < first.median_distance
    assert int(best.queries.sum()) > int(first.queries.sum())


# -- the corpus -----------------------------------------------------------------------------------------------------


def test_words_are_ranked_by_what_they_tell() -> None:
    corpus = Corpus(["dinner at home", "Home at last", "dinner at six", "win at home"], [HAM, HAM, HAM, SPAM])
    assert corpus.rank(Side(HAM, False), "ratio") == ["dinner", "at", "last", "six", "home"]
    assert corpus.rank(Side(HAM, False), "frequent") == ["at", "dinner", "home", "last", "six"]
    assert corpus.rank(Side(SPAM, True), "frequent") == corpus.rank(Side(HAM, False), "frequent")
    assert corpus.rank(Side(SPAM, False), "ratio")[0] == "win"
    assert corpus.rank(Side(HAM, False), "dictionary") == ["at", "dinner", "home", "last", "six", "win"]
    with pytest.raises(InputError, match="one of ratio"):
        corpus.rank(Side(HAM, False), "best")  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", [GoodWordsPassive(), GoodWordsList(), GoodWordsActive()])
def test_what_the_attacker_must_own_is_said(attack: sp.Attack) -> None:
    scene, victim = made(), made_filter("naive bayes")

    def with_data(data: Any) -> None:
        threat = sp.ThreatModel(AddedWords(9), goal=sp.Targeted(HAM), knowledge=sp.Knowledge(data=data))
        attack(victim, scene.x, scene.y, threat)

    with pytest.raises(ThreatError, match="knowledge=Knowledge"):
        with_data(None)
    with pytest.raises(InputError, match="list of str"):
        with_data((torch.zeros(3, 2), torch.zeros(3)))
    with pytest.raises(InputError, match="each text needs one"):
        with_data((["a", "b"], [0]))
    with pytest.raises(ThreatError, match="no message of class 0"):
        with_data((["win", "cash"], [1, 1]))
    never = sp.Predicate(lambda output, y: y < 0)
    with pytest.raises(ThreatError, match="from label to label"):
        attack(victim, scene.x, scene.y, sp.ThreatModel(AddedWords(9), goal=never, knowledge=scene.knowledge))


def test_slips_in_the_hyper_parameters_are_told() -> None:
    scene, victim = made(), made_filter("naive bayes")
    for attack, told in (
        (GoodWordsList(most=0), "at least one word"),
        (GoodWordsOptimal(most=0), "at least one word"),
        (GoodWordsActive(method="worst"), "'first' or 'best'"),  # type: ignore[arg-type]
        (GoodWordsActive(words=0), "words is 0"),
        (GoodWordsActive(at_once=0), "at_once is 0"),
    ):
        with pytest.raises(InputError, match=told):
            scene.run(attack, victim, AddedWords())  # type: ignore[arg-type]
    with pytest.raises(ThreatError, match="good-words-passive needs a limit"):
        scene.run(GoodWordsPassive(), victim, AddedWords())
