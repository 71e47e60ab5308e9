"""EvadeHC on filters whose optimum is known, on collected messages, on lists and rows; the tester has the last word."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from torch import Tensor

import sparring as sp
from sparring.attacks import EvadeHC, Morphs
from sparring.attacks.labels.evadehc import _fewer
from sparring.attacks.labels.morphs import edits
from sparring.core.errors import InputError, ThreatError
from sparring.core.registry import attack_class
from sparring.data.sms import generate_corpus, load_sms, split_corpus
from sparring.text import MorphWords, has_contact
from sparring.text.corpus import Corpus, Side
from sparring.victims.sklearn import SklearnVictim

HAM, SPAM = 0, 1
GOOD, BAD = ("dinner", "love", "home"), ("win", "cash", "prize", "claim")


class Filter:
    """A linear filter: spam where unwanted words outnumber wanted ones; it keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        return torch.tensor([int(self.score(text) > 0) for text in texts])

    @staticmethod
    def score(text: str) -> int:
        return sum((word in BAD) - (word in GOOD) for word in text.split())


def known() -> tuple[Filter, sp.BlackBox, list[str], Tensor]:
    """A filter, messages of 1 to 4 unwanted words and a number, and the fewest edits: a replaced word counts twice."""
    texts = [" ".join([*BAD[:k], "call 55555 now"]) for k in (1, 2, 3, 4)]
    filter_ = Filter()
    victim = sp.BlackBox(filter_, labels=("ham", "spam"), domain="text")
    return filter_, victim, texts, torch.tensor([1.0, 1.0, 2.0, 2.0])


MORPHER = MorphWords([*GOOD, "tree", "lamp"])


class TestALinearFilter:
    def test_evades_and_keeps_the_property(self) -> None:
        filter_, victim, texts, fewest = known()
        result = EvadeHC()(victim, texts, [SPAM] * 4, Morphs(MORPHER, has_contact))
        assert result.succeeded.all()
        assert all(has_contact(text) and Filter.score(text) <= 0 for text in result.adversarial)
        assert (result.distance >= fewest).all()
        assert (result.distance <= 6 * fewest).all()
        assert len(filter_.asked) == int(result.queries.sum()) + 2 * len(texts)  # the clean pass and the re-check

    def test_shortening_finds_the_moves_that_are_needed(self) -> None:
        needed, moves = {(0, 3), (0, 11), (0, 12)}, [(0, number) for number in range(20)]
        search = _fewer(moves)
        tried, asked = next(search), 0
        with contextlib.suppress(StopIteration):
            while True:
                evades, asked = needed <= set(tried), asked + 1
                moves = tried if evades else moves
                tried = search.send(evades)
        assert set(moves) == needed
        assert asked <= 40

    def test_shorter_evasions_are_nearer(self) -> None:
        _, victim, texts, fewest = known()
        space = Morphs(MorphWords([*GOOD, *["oak", "elm", "fir", "ash", "yew", "bay", "box", "fig"]]), has_contact)
        runs = [[EvadeHC(shorten=s)(victim, texts, [SPAM] * 4, space, seed=k) for k in range(5)] for s in (True, False)]
        short, long = (torch.stack([result.distance for result in part]) for part in runs)
        assert (short <= long).all()
        assert float(short.mean()) < 0.8 * float(long.mean())
        assert (short.amin(0) <= fewest).all()

    @pytest.mark.parametrize("queries", [1, 9, 40])
    def test_budgets_are_exact(self, queries: int) -> None:
        filter_, victim, texts, _ = known()
        threat = sp.ThreatModel(Morphs(MORPHER, has_contact), queries=queries)
        result = EvadeHC()(victim, texts, [SPAM] * 4, threat)
        assert (result.queries <= queries).all()
        assert len(filter_.asked) == int(result.queries.sum()) + 2 * len(texts)
        assert all(map(has_contact, result.adversarial))

    def test_batches_and_order_do_not_matter_and_seeds_do(self) -> None:
        _, victim, texts, _ = known()
        space = Morphs(MORPHER, has_contact)
        whole = EvadeHC()(victim, texts, [SPAM] * 4, space, seed=3)
        order = [2, 0, 3, 1]
        other = EvadeHC()(victim, [texts[i] for i in order], [SPAM] * 4, space, seed=3, batch_size=3)
        assert list(other.adversarial) == [whole.adversarial[i] for i in order]
        assert torch.equal(other.queries, whole.queries[order])
        assert list(EvadeHC()(victim, texts, [SPAM] * 4, space, seed=4).adversarial) != list(whole.adversarial)

    def test_a_limit_is_kept_to(self) -> None:
        _, victim, texts, fewest = known()
        limit = torch.tensor([0.0, 2.0, 8.0, 1.0])
        result = EvadeHC(steps=30)(victim, texts, [SPAM] * 4, Morphs(MORPHER, has_contact, limit=limit))
        assert result.succeeded.tolist()[2]
        assert not bool(result.succeeded[limit < fewest].any())
        assert (result.distance[result.succeeded] <= limit[result.succeeded]).all()
        assert not bool((result.outcome == sp.Outcome.FAILED).any())


class TestTheTester:
    def test_where_nothing_else_satisfies_it_the_input_survives_and_nothing_is_asked(self) -> None:
        _, victim, texts, _ = known()
        result = EvadeHC()(victim, texts, [SPAM] * 4, Morphs(lambda text, rng: text + " tree", texts.__contains__))
        assert result.outcomes == [sp.Outcome.SURVIVED] * 4
        assert list(result.adversarial) == texts
        assert result.queries.tolist() == [0] * 4

    def test_one_that_rejects_the_inputs_themselves_is_refused(self) -> None:
        _, victim, texts, _ = known()
        with pytest.raises(InputError, match="rejects 4 of 4 inputs"):
            EvadeHC()(victim, texts, [SPAM] * 4, Morphs(MORPHER, lambda text: False))

    def test_one_that_changes_its_mind_along_a_path_never_lets_an_illegal_input_out(self) -> None:
        _, victim, texts, _ = known()

        def even(text: str) -> bool:  # lost and won again all the time: no bisection is right about it
            return len(text.split()) % 2 == 0 or text in texts

        result = EvadeHC(steps=20)(victim, texts, [SPAM] * 4, Morphs(MORPHER, even))
        assert all(map(even, result.adversarial))
        assert result.succeeded.any()

    def test_evading_only_without_the_property_is_no_success(self) -> None:
        """The filter looks for the very number that the tester asks for."""
        victim = sp.BlackBox(lambda texts: torch.tensor([int(has_contact(t)) for t in texts]), labels=("ham", "spam"))
        result = EvadeHC(steps=5)(victim, ["call 55555"] * 2, [SPAM] * 2, Morphs(MORPHER, has_contact))
        assert result.outcomes == [sp.Outcome.SURVIVED] * 2
        assert all(map(has_contact, result.adversarial))


class TestOtherInputs:
    def test_lists_that_no_single_path_can_turn_are_climbed(self) -> None:
        """Twelve steps are needed, a path has eight, and one element must stay what it is."""

        def more(x: list[int], rng: np.random.Generator) -> list[int]:
            at = int(rng.integers(5))
            return [value + (i == at) for i, value in enumerate(x)]

        victim = sp.BlackBox(lambda rows: torch.tensor([int(sum(row) < 12) for row in rows]), classes=2)
        space = Morphs(more, lambda x: x[0] <= 1, measure=lambda x, other: sum(other) - sum(x))
        result = EvadeHC(steps=40, length=8)(victim, [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], [1, 1], space)
        assert result.succeeded.all()
        assert result.distance.tolist() == [12.0, 11.0]  # a bisection ends at the first of the path's points that turns
        assert all(row[0] <= 1 for row in result.adversarial)
        single = EvadeHC(steps=1, length=8)(victim, [[0, 0, 0, 0, 0]], [1], space)
        assert not single.succeeded.any()

    def test_rows_of_a_tensor(self) -> None:
        x = torch.tensor([[0.9, 0.8, 0.5], [0.7, 0.9, 0.1]])

        def nudge(row: Tensor, rng: np.random.Generator) -> Tensor:
            row = row.clone()
            at = int(rng.integers(3))
            row[at] = (row[at] + float(rng.normal()) * 0.2).clamp(0, 1)
            return row

        victim = sp.BlackBox(lambda rows: (rows.sum(1) > 1.2).long(), classes=2, bounds=(0.0, 1.0))
        result = EvadeHC()(victim, x, [1, 1], Morphs(nudge, lambda row: bool(row[0] >= 0.5)))
        assert result.succeeded.all()
        assert isinstance(result.adversarial, Tensor)
        assert (result.adversarial[:, 0] >= 0.5).all()
        assert torch.equal(result.distance, (result.adversarial != x).sum(1).float())


class TestMessages:
    def scene(
        self, train: tuple[list[str], list[int]], test: tuple[list[str], list[int]], head: Any
    ) -> sp.AttackResult:
        half = len(train[0]) // 2
        victim = SklearnVictim(
            make_pipeline(CountVectorizer(), head).fit(train[0][:half], train[1][:half]), labels=("ham", "spam")
        )
        words = Corpus(train[0][half:], train[1][half:]).rank(Side(HAM, False), "frequent")[:500]
        x = [text for text, label in zip(*test, strict=True) if label == SPAM and has_contact(text)][:20]
        return EvadeHC()(victim, x, [SPAM] * len(x), Morphs(MorphWords(words), has_contact))

    @pytest.mark.parametrize("head", [MultinomialNB(), LogisticRegression(max_iter=1000)])
    def test_made_messages(self, head: Any) -> None:
        corpus = generate_corpus(2000)
        self.holds(self.scene(split_corpus(*corpus, "train"), split_corpus(*corpus, "test"), head))

    @pytest.mark.parametrize("head", [MultinomialNB(), LogisticRegression(max_iter=1000)])
    def test_collected_messages(self, assets: Path, head: Any) -> None:
        path = assets / "data" / "sms_spam.tsv"
        self.holds(self.scene(load_sms(path, "train"), load_sms(path, "test"), head))

    def holds(self, result: sp.AttackResult) -> None:
        card = attack_class("evadehc").card  # type: ignore[attr-defined]
        assert result.attack_success_rate >= 0.9
        assert result.median_distance <= card.floor["morphs"]
        assert float(result.queries.float().median()) <= 60
        assert all(map(has_contact, result.adversarial))


def test_edits_count_words_items_and_elements() -> None:
    assert edits("win cash now", "win love now") == 1
    assert edits("win cash now", "hi win now") == 2
    assert edits([1, 2, 3], [1, 2, 3, 4, 5]) == 2
    assert edits(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])) == 1
    with pytest.raises(InputError, match="measure"):
        edits({"a": 1}, {"a": 2})


def test_words_are_morphed_one_at_a_time() -> None:
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(60):
        other = MorphWords(["lamp"])("win cash prize", rng)
        assert edits("win cash prize", other) <= 1
        kinds.add((len(other.split()), "lamp" in other))
    assert kinds == {(4, True), (3, True), (3, False)}  # added, replaced, misspelt
    assert MorphWords(["lamp"])("", rng) == "lamp"
    assert MorphWords(["lamp"])("a", rng).split()[-1] in ("a", "lamp")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("call 0800 123 456 now", True),
        ("text WIN to 87121", True),
        ("see www.win.example", True),
        ("visit cashquick.com today", True),
        ("see you at 18:15 or on the 5th", False),
        ("clal 123 45", True),
        ("dinner at 7?", False),
    ],
)
def test_a_contact_is_a_link_or_a_long_number(text: str, wanted: bool) -> None:
    assert has_contact(text) is wanted


def test_bad_input() -> None:
    _, victim, texts, _ = known()
    space = Morphs(MORPHER, has_contact)
    for attack in (EvadeHC(paths=0), EvadeHC(length=0)):
        with pytest.raises(InputError):
            attack(victim, texts, [SPAM] * 4, space)
    with pytest.raises(ThreatError, match="morphs"):
        EvadeHC()(victim, texts, [SPAM] * 4, sp.L2())
    wrong: Any = "no function"
    for build in (
        lambda: Morphs(wrong, has_contact),
        lambda: Morphs(MORPHER, wrong),
        lambda: Morphs(MORPHER, has_contact, limit=-1.0),
        lambda: MorphWords([]),
        lambda: MorphWords(wrong),
    ):
        with pytest.raises(InputError):
            build()
    with pytest.raises(InputError, match="limits"):
        EvadeHC()(victim, texts, [SPAM] * 4, Morphs(MORPHER, has_contact, limit=torch.ones(3)))
    assert repr(Morphs(MORPHER, has_contact, limit=2)).endswith("has_contact, limit=2)")
