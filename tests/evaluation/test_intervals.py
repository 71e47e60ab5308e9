"""The statistics against other roads to the same numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from sparring.core.errors import InputError
from sparring.evaluation.intervals import clopper_pearson, mcnemar, power_law, samples_needed


@given(
    st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
def test_clopper_pearson_is_scipys_exact_interval(case: tuple[int, int], confidence: float) -> None:
    k, n = case
    found = clopper_pearson(k, n, confidence)
    exact = binomtest(k, n).proportion_ci(confidence_level=confidence, method="exact")
    assert math.isclose(found.lo, exact.low, abs_tol=1e-9)
    assert math.isclose(found.hi, exact.high, abs_tol=1e-9)


def test_clopper_pearson_covers() -> None:
    n, p = 40, 0.3
    covered = sum(binom.pmf(k, n, p) for k in range(n + 1) if clopper_pearson(k, n).lo <= p <= clopper_pearson(k, n).hi)
    assert covered >= 0.95


def test_no_samples_say_nothing_and_impossible_counts_are_refused() -> None:
    assert (clopper_pearson(0, 0).lo, clopper_pearson(0, 0).hi) == (0.0, 1.0)
    with pytest.raises(InputError, match="from 0 to 3"):
        clopper_pearson(4, 3)


def test_mcnemar_counts_the_pairs_that_differ() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 * 0.5**5)
    assert mcnemar(3, 12) == mcnemar(12, 3) == pytest.approx(2 * binom.cdf(3, 15, 0.5))


@pytest.mark.parametrize(("rate", "claim"), [(0.75, 0.7), (0.0, 0.05), (0.4, 0.5), (1.0, 0.99)])
def test_so_many_samples_would_settle_it_and_half_of_them_would_not(rate: float, claim: float) -> None:
    n = samples_needed(rate, claim)
    assert n is not None

    def apart(m: int) -> bool:
        found = clopper_pearson(round(rate * m), m)
        return claim < found.lo or claim > found.hi

    assert apart(n)
    assert not apart(n // 2)


def test_no_number_of_samples_tells_equals_apart() -> None:
    assert samples_needed(0.5, 0.5) is None


def test_a_power_law_is_recovered() -> None:
    eps = np.geomspace(0.001, 0.1, 9)
    law = power_law(eps, 3 * eps**1.25)
    assert law is not None
    assert law.slope == pytest.approx(1.25)
    assert math.exp(law.intercept) == pytest.approx(3)
    assert law.r2 == pytest.approx(1)
    assert power_law(eps[:2], eps[:2]) is None
    assert power_law(eps, np.zeros(9)) is None
