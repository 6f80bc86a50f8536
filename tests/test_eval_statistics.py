"""The intervals hold what they promise, against SciPy and by simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.statistics import mean_interval, paired_difference

scores = st.lists(st.floats(-10, 10), min_size=2, max_size=40)


def test_one_seed_agrees_with_scipy():
    from scipy.stats import bootstrap

    values = np.random.default_rng(1).normal(size=300)
    ours = mean_interval([values], n=20_000)
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=2).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)
    assert ours.mean == pytest.approx(values.mean()) and ours.seed_spread is None and ours.n == 300


def test_seeds_widen_the_interval():
    rng = np.random.default_rng(0)
    alike = [rng.normal(size=400) for _ in range(5)]
    apart = [values + shift for values, shift in zip(alike, (-1, -0.5, 0, 0.5, 1), strict=True)]
    narrow, wide = mean_interval(alike), mean_interval(apart)
    assert wide.mean == pytest.approx(narrow.mean)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    assert wide.seed_spread == pytest.approx(np.std([v.mean() for v in apart], ddof=1))


def test_coverage_over_items_is_near_the_level():
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(300):
        interval = mean_interval([rng.binomial(1, 0.3, size=200)], seed=trial, n=500)
        hits += interval.low <= 0.3 <= interval.high
    assert 0.90 < hits / 300 < 0.99


def test_hierarchical_variance_is_the_sum_of_both_levels():
    rng = np.random.default_rng(4)
    samples = [rng.normal(loc=mu, size=50) for mu in rng.normal(size=8)]
    from eval.statistics import _resample

    draws = _resample(samples, 100_000, np.random.default_rng(0))
    means = np.array([s.mean() for s in samples])
    expected = means.var() / 8 + np.mean([s.var() / 50 for s in samples]) / 8
    assert draws.var() == pytest.approx(expected, rel=0.03)


@settings(max_examples=50, deadline=None)
@given(a=st.lists(scores, min_size=1, max_size=3), seed=st.integers(0, 2**32 - 1))
def test_deterministic_and_ordered(a, seed):
    first = mean_interval(a, seed=seed, n=200)
    assert first == mean_interval(a, seed=seed, n=200)
    assert min(map(min, a)) - 1e-9 <= first.low <= first.high <= max(map(max, a)) + 1e-9


@settings(max_examples=50, deadline=None)
@given(values=scores, shift=st.floats(-1, 1))
def test_a_pairs_common_noise_drops_out(values, shift):
    a = np.array(values)
    interval = paired_difference([a + shift], [a], n=200)
    assert (interval.low, interval.mean, interval.high) == pytest.approx((shift, shift, shift), abs=1e-9)


def test_bad_samples_are_refused():
    with pytest.raises(ValueError):
        mean_interval([])
    with pytest.raises(ValueError):
        mean_interval([[1.0], []])
    with pytest.raises(ValueError):
        paired_difference([[1.0, 2.0]], [[1.0]])
