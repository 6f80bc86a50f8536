"""The intervals hold what they promise, against SciPy and by simulation."""

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.statistics import bootstrap_p, holm, mcnemar_p, mean_interval, paired_difference, permutation_p

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


def test_permutation_is_the_brute_force_over_all_exchanges():
    rng = np.random.default_rng(0)
    for size in (2, 5, 9):
        a, b = rng.normal(size=size).round(1), rng.normal(size=size).round(1)
        d = a - b
        sums = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in product((1, -1), repeat=size)]
        expected = np.mean([s >= abs(d.sum()) - 1e-12 for s in sums])
        assert permutation_p([a], [b]) == pytest.approx(expected)


def test_permutation_of_seeds_is_that_of_their_mean():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(3, 8)), rng.normal(size=(3, 8))
    assert permutation_p(list(a), list(b)) == permutation_p([a.mean(0)], [b.mean(0)])
    with pytest.raises(ValueError, match="all seeds"):
        permutation_p([[1, 0, 1], [1, 0]], [[0, 0, 0], [0, 0]])


def test_mcnemar_is_the_sign_test_of_the_items_that_differ():
    a = [1] * 9 + [0] * 2 + [1] * 20 + [0] * 20
    b = [0] * 9 + [1] * 2 + [1] * 20 + [0] * 20
    assert mcnemar_p(a, b) == mcnemar_p(b, a) == pytest.approx(2 * sum(comb(11, k) for k in range(3)) / 2**11)
    assert mcnemar_p([1, 0], [1, 0]) == 1.0
    # On right and wrong answers an exchange of labels is the same thing.
    assert permutation_p([a], [b]) == pytest.approx(mcnemar_p(a, b))
    with pytest.raises(ValueError, match="0 and 1"):
        mcnemar_p([0.5], [1])


def test_many_items_agree_with_the_t_test():
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(2)
    b = rng.normal(size=400)
    for shift in (0.05, 0.1, 0.15):
        a = b + rng.normal(shift, 1, size=400)
        expected = ttest_rel(a, b).pvalue
        assert permutation_p([a], [b]) == pytest.approx(expected, abs=0.02)
        assert bootstrap_p([a], [b]) == pytest.approx(expected, abs=0.02)


def test_without_a_difference_a_test_calls_one_as_often_as_it_says():
    rng = np.random.default_rng(6)
    calls = {permutation_p: 0, bootstrap_p: 0}
    for trial in range(300):
        a, b = rng.binomial(1, 0.4, size=(2, 150)).astype(float)
        for test in calls:
            calls[test] += test([a], [b], seed=trial, n=400) < 0.05
    assert all(0.02 < called / 300 < 0.08 for called in calls.values()), calls


def test_seeds_that_disagree_make_the_bootstrap_doubt_what_items_alone_would_not():
    rng = np.random.default_rng(7)
    b = [rng.normal(size=400) for _ in range(4)]
    a = [x + shift + rng.normal(0, 0.1, size=400) for x, shift in zip(b, (1, -0.5, 0.9, -0.6), strict=True)]
    assert permutation_p(a, b) < 0.001 and bootstrap_p(a, b) > 0.2


@settings(max_examples=60, deadline=None)
@given(p=st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p):
    adjusted = holm(p)
    assert list(adjusted) == list(p) and all(p[k] <= adjusted[k] <= 1 for k in p)
    ordered = sorted(p, key=lambda k: p[k])
    for level in (0.01, 0.05, 0.2):
        rejected = []
        for i, name in enumerate(ordered):
            if (len(p) - i) * p[name] >= level:
                break
            rejected.append(name)
        assert {k for k in p if adjusted[k] < level} == set(rejected)
