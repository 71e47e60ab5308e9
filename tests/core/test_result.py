"""The result: outcomes, rates with named denominators, the curve, and a file that gives everything back."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import sparring as sp
import tiny
from sparring.core.errors import InputError, LoadError, ThreatError
from sparring.core.outputs import Prediction
from sparring.core.result import Outcome

O = Outcome
EVERY = [
    O.SUCCEEDED,
    O.SURVIVED,
    O.CLEAN_ERROR,
    O.ALREADY_TARGET,
    O.OUT_OF_BUDGET,
    O.FAILED,
    O.NOT_APPLICABLE,
    O.SUCCEEDED,
]


def result(outcomes: list[Outcome], distance: list[float] | None = None, **how: Any) -> sp.AttackResult:
    n = len(outcomes)
    y = torch.zeros(n, dtype=torch.int64)
    wrong = torch.tensor([o in (O.CLEAN_ERROR, O.ALREADY_TARGET) for o in outcomes], dtype=torch.bool)
    fallen = torch.tensor([o is O.SUCCEEDED for o in outcomes], dtype=torch.bool)
    clean = torch.nn.functional.one_hot(wrong.long(), 2).float()
    final = torch.nn.functional.one_hot((wrong | fallen).long(), 2).float()
    values: dict[str, Any] = {
        "attack": "probe",
        "space": "Linf(0.3)",
        "original": torch.rand(n, 3, generator=torch.Generator().manual_seed(0)),
        "adversarial": torch.rand(n, 3, generator=torch.Generator().manual_seed(1)),
        "y": y,
        "target": torch.ones(n, dtype=torch.int64),
        "outcome": torch.tensor([int(o) for o in outcomes], dtype=torch.int64),
        "distance": torch.tensor(distance or [0.1] * n),
        "limit": torch.full((n,), 0.3),
        "queries": torch.arange(n),
        "forwards": torch.arange(n) + 1,
        "backwards": torch.arange(n) + 2,
        "clean": Prediction.of(clean),
        "final": Prediction.of(final, accepted=torch.ones(n, dtype=torch.bool)),
        "ids": torch.arange(n) - 2**62,
        "seconds": 1.5,
        "params": {"steps": 3, "loss": "ce", "step_size": None, "seed": 0},
    }
    return sp.AttackResult(**{**values, **how})


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Prediction):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return bool(a == b)


# -- rates -------------------------------------------------------------------------------------------------------------


def test_every_rate_names_its_denominator() -> None:
    r = result(EVERY)
    assert len(r) == 8
    assert r.outcomes == EVERY
    assert r.succeeded.tolist() == [o is O.SUCCEEDED for o in EVERY]
    assert r.clean_accuracy == 6 / 8
    assert r.robust_accuracy == 4 / 8  # right at first and not broken, of all
    assert r.attack_success_rate == 2 / 5  # of those attacked


def test_peer_bug_10_clean_errors_counted_as_the_attacks_success() -> None:
    r = result([O.CLEAN_ERROR] * 3 + [O.SURVIVED])
    assert r.attack_success_rate == 0.0
    assert r.clean_accuracy == r.robust_accuracy == 0.25


def test_a_detector_must_accept_a_clean_input_for_it_to_count_as_right() -> None:
    scores = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    r = result([O.SURVIVED] * 4, clean=Prediction.of(scores, accepted=torch.tensor([True, False, True, True])))
    assert r.clean_accuracy == r.robust_accuracy == 0.75


def test_without_eps_robust_accuracy_is_refused_and_the_curve_is_named() -> None:
    with pytest.raises(ThreatError, match=r"curve\(\)"):
        _ = result(EVERY, limit=None).robust_accuracy


def test_the_curve_falls_at_every_distance_that_broke_a_sample() -> None:
    r = result([O.SUCCEEDED, O.SUCCEEDED, O.SURVIVED, O.CLEAN_ERROR], [0.2, 0.1, 9.0, 0.0], limit=None)
    eps, accuracy = r.curve()
    assert eps.tolist() == pytest.approx([0.0, 0.1, 0.2])
    assert accuracy.tolist() == [0.75, 0.5, 0.25]
    eps, accuracy = r.curve([0.15, 0.05, 1.0])
    assert eps.tolist() == [0.05, 0.15, 1.0]
    assert accuracy.tolist() == [0.75, 0.5, 0.25]
    assert r.curve(0.15)[1].tolist() == [0.5]


@pytest.mark.parametrize(
    ("outcomes", "distance", "median"),
    [
        ([O.SUCCEEDED] * 3, [3.0, 1.0, 2.0], 2.0),
        ([O.SUCCEEDED] * 4, [3.0, 1.0, 2.0, 4.0], 2.5),
        ([O.SUCCEEDED, O.SURVIVED, O.CLEAN_ERROR], [1.0, 0.5, 0.5], 1.0),
        ([O.SUCCEEDED, O.SURVIVED, O.SURVIVED], [1.0, 0.5, 0.5], math.inf),
        ([O.CLEAN_ERROR], [0.0], math.nan),
    ],
)
def test_the_median_counts_a_failure_as_infinitely_far(
    outcomes: list[Outcome], distance: list[float], median: float
) -> None:
    assert result(outcomes, distance).median_distance == pytest.approx(median, nan_ok=True)


def test_no_samples_have_no_rates() -> None:
    r = result([])
    assert math.isnan(r.clean_accuracy)
    assert math.isnan(r.robust_accuracy)
    assert r.attack_success_rate == 0.0
    assert math.isnan(r.median_distance)
    assert r.curve()[0].tolist() == [0.0]
    assert "no samples" in repr(r)


def test_the_text_form_tells_outcomes_and_rates() -> None:
    text = repr(result(EVERY))
    for part in ("probe", "Linf(0.3)", "succeeded 2", "clean_error 1", "clean 75.0%", "robust 50.0%"):
        assert part in text
    assert "median distance 0.1" in repr(result([O.SUCCEEDED], limit=None))


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"target": None, "limit": None},
        {"original": ["a text", "b", "c", "d", "e", "f", "g", "h"], "adversarial": list("abcdefgh")},
        {"original": [[1, 2], []] * 4, "adversarial": [{"age": 3.5}] * 8},
        {"clean": Prediction(torch.zeros(8, dtype=torch.int64)), "final": Prediction(torch.ones(8, dtype=torch.int64))},
        {"original": torch.rand(8, 3).double(), "adversarial": torch.rand(3, 8).half().T},
        {"params": {"pi": 3.25, "many": 10**12, "nothing": None}, "seconds": 0.0},
    ],
    ids=["plain", "minimal", "texts", "rows", "labels only", "dtypes", "params"],
)
def test_a_saved_result_comes_back_whole(tmp_path: Path, how: dict[str, Any]) -> None:
    r = result(EVERY, **how)
    path = r.save(tmp_path / "r.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["r.safetensors"]
    back = sp.AttackResult.load(path)
    for f in dataclasses.fields(r):
        assert same(getattr(r, f.name), getattr(back, f.name)), f.name
    assert back.outcomes == r.outcomes


def test_an_empty_result_comes_back(tmp_path: Path) -> None:
    back = sp.AttackResult.load(result([]).save(tmp_path / "r.safetensors"))
    assert len(back) == 0
    assert back.original.shape == (0, 3)


def test_saving_again_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    result(EVERY).save(path)
    result([O.SURVIVED]).save(str(path))
    assert len(sp.AttackResult.load(str(path))) == 1


def test_what_json_cannot_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="JSON"):
        result([O.SURVIVED], original=[object()], adversarial=["x"]).save(tmp_path / "r.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_result_are_refused(tmp_path: Path) -> None:
    whole = result(EVERY).save(tmp_path / "whole").read_bytes()
    (tmp_path / "short").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text").write_text("hello")
    save_file({"w": torch.zeros(2)}, tmp_path / "weights")
    save_file(
        {"w": torch.zeros(2)}, tmp_path / "other", metadata={"sparring": json.dumps({"format": "x", "version": 1})}
    )
    for name in ("short", "text", "weights", "other", "absent"):
        with pytest.raises(LoadError, match=name):
            sp.AttackResult.load(tmp_path / name)


def test_a_result_that_lost_its_tensors_is_refused(tmp_path: Path) -> None:
    told = {"format": "sparring.AttackResult", "version": 1, "attack": "probe"}
    save_file({"w": torch.zeros(2)}, tmp_path / "hollow", metadata={"sparring": json.dumps(told)})
    with pytest.raises(LoadError, match="hollow"):
        sp.AttackResult.load(tmp_path / "hollow")


def test_consecutive_batches_join() -> None:
    first, second = result(EVERY[:3]), result(EVERY[3:], original=torch.rand(5, 3))
    joined = sp.AttackResult.concat([first, second])
    assert joined.outcomes == EVERY
    assert joined.seconds == 3.0
    assert len(joined.original) == len(joined.final) == 8
    assert sp.AttackResult.concat([first]) is first
    texts = [result(EVERY[:1], original=["a"], adversarial=["b"]), result(EVERY[:1], original=["c"], adversarial=["d"])]
    assert sp.AttackResult.concat(texts).original == ["a", "c"]


def test_moving_to_a_device_keeps_everything() -> None:
    r = result(EVERY)
    moved = r.to("cpu")
    assert all(same(getattr(r, f.name), getattr(moved, f.name)) for f in dataclasses.fields(r))


def test_a_curve_ends_where_the_search_did() -> None:
    x, y = tiny.correct(6)
    result = sp.PGD(steps=3)(tiny.trained(), x, y, sp.Linf(0.1))
    assert len(result.curve([0.05, 0.1])[0]) == 2
    with pytest.raises(InputError, match="wider"):
        result.curve([0.05, 0.2])
