"""Short messages: the reader with its bad files, the split, and the made corpus with real filters on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

from sparring.core.errors import InputError, LoadError, UnknownNameError
from sparring.data import sms
from sparring.data.sms import generate_corpus, load_sms, split_corpus


def write(folder: Path, content: bytes) -> Path:
    path = folder / "messages.tsv"
    path.write_bytes(content)
    return path


def test_lines_become_texts_and_labels(tmp_path: Path) -> None:
    path = write(tmp_path, "ham\tCaffè at 5? \nspam\tWIN £900\tnow\x85!\nham\tok\n".encode())
    texts, labels = load_sms(path)
    assert texts == ["Caffè at 5? ", "WIN £900\tnow\x85!", "ok"]
    assert labels == [0, 1, 0]


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbfham\tone\r\nspam\ttwo")
    assert load_sms(path) == (["one", "two"], [0, 1])


BAD = {
    "latin-1": (b"ham\tok\nspam\tWIN \xa3900\n", r"not UTF-8.*line 2"),
    "empty": (b"", "line 1"),
    "an empty line": (b"ham\tone\n\nspam\ttwo\n", "line 2"),
    "another label": (b"ham\tone\neggs\ttwo\n", "line 2: 'eggs"),
    "no tab": (b"ham one\n", "line 1: 'ham one'"),
    "no text": (b"ham\t  \n", "line 1"),
    "a header": (b"label\ttext\nham\tone\n", "line 1: 'label"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, name: str) -> None:
    content, words = BAD[name]
    path = write(tmp_path, content)
    with pytest.raises(LoadError, match=words) as caught:
        load_sms(path)
    assert str(path) in str(caught.value)


def test_a_long_bad_line_is_not_quoted_whole(tmp_path: Path) -> None:
    with pytest.raises(LoadError) as caught:
        load_sms(write(tmp_path, b"x" * 100_000))
    assert len(str(caught.value)) < 1000


def test_missing_and_too_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoadError, match="cannot be read"):
        load_sms(tmp_path / "gone.tsv")
    with pytest.raises(LoadError, match="cannot be read"):
        load_sms(tmp_path)
    monkeypatch.setattr(sms, "LARGEST", 10)
    with pytest.raises(LoadError, match="11 bytes; at most 10"):
        load_sms(write(tmp_path, b"ham\thello!!"))


def test_an_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="trian"):
        load_sms(write(tmp_path, b"ham\tone"), "trian")  # type: ignore[arg-type]


def test_the_split_depends_on_the_text_alone() -> None:
    texts, labels = generate_corpus(1000, seed=3)
    train, test = split_corpus(texts, labels, "train"), split_corpus(texts, labels, "test")
    assert split_corpus(texts, labels, "all") == (texts, labels)
    assert not set(train[0]) & set(test[0])
    both = [*zip(*train, strict=True), *zip(*test, strict=True)]
    assert sorted(both) == sorted(zip(texts, labels, strict=True))
    assert 0.25 < len(test[0]) / 1000 < 0.35
    backwards = split_corpus(texts[::-1], labels[::-1], "test")
    assert backwards == (test[0][::-1], test[1][::-1])
    assert split_corpus(texts[:100], labels[:100], "test")[0] == [t for t in texts[:100] if t in set(test[0])]


def test_copies_that_differ_in_case_and_spaces_stay_together() -> None:
    copies = [f"Message number {i}" for i in range(50)]
    shouted = [f" MESSAGE  number {i} " for i in range(50)]
    held_out = split_corpus(copies + shouted, [0] * 100, "test")[0]
    assert 0 < len(held_out) < 100
    assert {t.split()[-1] for t in held_out if t in copies} == {t.split()[-1] for t in held_out if t in shouted}


def test_the_split_never_changes() -> None:
    assert split_corpus([str(i) for i in range(20)], [0] * 20, "test")[0] == ["1", "2", "3", "4", "5", "7", "9"]


def test_labels_and_texts_must_pair_up() -> None:
    with pytest.raises(InputError, match="2 texts came with 1 labels"):
        split_corpus(["a", "b"], [0], "all")


def test_the_made_corpus_is_keyed_by_seed_and_place() -> None:
    texts, labels = generate_corpus(300, seed=1)
    assert generate_corpus(300, seed=1) == (texts, labels)
    assert generate_corpus(100, seed=1) == (texts[:100], labels[:100])
    assert generate_corpus(300, seed=2)[0] != texts


def test_the_made_corpus_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    generate_corpus(20)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_the_made_messages_are_whole(tmp_path: Path) -> None:
    """No slot is left open, nearly all differ, and the corpus passes through the reader's file format."""
    texts, labels = generate_corpus()
    assert len(texts) == len(labels) == 2000
    assert not any(set("{}\t\n") & set(text) for text in texts)
    assert len(set(texts)) > 1900
    assert 0.17 < np.mean(labels) < 0.23
    lines = "".join(f"{('ham', 'spam')[label]}\t{text}\n" for text, label in zip(texts, labels, strict=True))
    assert load_sms(write(tmp_path, lines.encode())) == (texts, labels)


@pytest.mark.parametrize(("n", "seed"), [(0, 0), (-1, 0), (5, -1)])
def test_no_corpus_of_no_messages(n: int, seed: int) -> None:
    with pytest.raises(InputError, match="generate_corpus got"):
        generate_corpus(n, seed)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("model", [MultinomialNB(), LogisticRegression(max_iter=1000)], ids=["bayes", "logistic"])
def test_filters_learn_the_made_corpus_and_good_words_fool_them(
    model: MultinomialNB | LogisticRegression, seed: int
) -> None:
    """As on real messages: 97 to 99% right, and a handful of ham-like words, found in the weights, lets spam pass."""
    corpus = generate_corpus(seed=seed)
    texts, labels = split_corpus(*corpus, "train")
    pipeline = make_pipeline(CountVectorizer(), model).fit(texts, labels)
    texts, labels = split_corpus(*corpus, "test")
    right = np.mean(pipeline.predict(texts) == labels)
    assert 0.965 <= right <= 0.995

    caught = [t for t, label in zip(texts, labels, strict=True) if label == 1 and pipeline.predict([t])[0] == 1]
    logs = getattr(model, "feature_log_prob_", None)
    weights = model.coef_[0] if logs is None else logs[1] - logs[0]
    words = pipeline[0].get_feature_names_out()[np.argsort(weights)]
    passing = {n: np.mean(pipeline.predict([f"{t} {' '.join(words[:n])}" for t in caught]) == 0) for n in (1, 25)}
    assert passing[1] < 0.3
    assert passing[25] > 0.9


def test_the_real_collection(assets: Path) -> None:
    path = assets / "data" / "sms_spam.tsv"
    texts, labels = load_sms(path)
    assert len(texts) == 5574
    assert sum(labels) == 747
    train, test = load_sms(path, "train"), load_sms(path, "test")
    assert len(train[0]) + len(test[0]) == 5574
    assert not set(train[0]) & set(test[0])  # though the file holds several hundred copies
    assert np.mean(test[1]) == pytest.approx(747 / 5574, abs=0.02)


def test_no_made_message_is_a_real_one(assets: Path) -> None:
    real = {" ".join(t.casefold().split()) for t in load_sms(assets / "data" / "sms_spam.tsv")[0]}
    assert not real & {" ".join(t.casefold().split()) for t in generate_corpus(5000, seed=9)[0]}
