"""The intervals hold what they promise, against SciPy and by simulation."""

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.statistics import LEAST_ITEMS, holm, mcnemar_p, mean_interval, paired_difference, permutation_p

scores = st.lists(st.floats(-10, 10), min_size=2, max_size=40)


def test_one_seed_is_the_t_interval_of_scipy():
    from scipy.stats import ttest_1samp

    values = np.random.default_rng(1).normal(0.1, size=300)
    ours, theirs = mean_interval([values]), ttest_1samp(values, 0)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert ours.p == pytest.approx(theirs.pvalue, abs=1e-6)
    assert ours.mean == pytest.approx(values.mean()) and ours.seed_spread is None and ours.n == 300
    one = mean_interval([[3.0]])
    assert (one.mean, one.low, one.high, one.p) == (3.0, None, None, None)


def test_seeds_without_common_items_are_the_t_interval_of_their_means():
    from scipy.stats import ttest_1samp

    samples = [np.random.default_rng(s).normal(0.3, size=40 + s) for s in range(4)]
    theirs = ttest_1samp([x.mean() for x in samples], 0)
    ours = mean_interval(samples, shared=False)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert ours.p == pytest.approx(theirs.pvalue, abs=1e-6)


@pytest.mark.parametrize("backbones", [1, 2])
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    "seed, item, rest",
    [(0.0, 1.0, 0.3), (0.0, 0.1, 1.0), (0.03, 1.0, 1.0), (0.05, 1.0, 0.3), (0.3, 1.0, 1.0)],
    ids=["items", "residual", "little of seeds", "mixed", "seeds"],
)
def test_seeds_and_shared_items_are_covered(backbones, seeds, seed, item, rest):
    """1,200 items that all seeds share; standard deviations of seeds, items and the rest."""
    rng, trials, hits = np.random.default_rng(seeds), 1500, 0
    for _ in range(trials):
        own = seed * rng.normal(size=(seeds, backbones, 1)) + item * rng.normal(size=1200)
        found = mean_interval(list(own + rest * rng.normal(size=(seeds, backbones, 1200))))
        hits += found.low <= 0 <= found.high
    # Two standard errors of the simulation are .011.
    assert 0.93 - 0.011 < hits / trials < 0.97 + 0.011


def test_p_and_interval_agree_and_one_seeds_noise_is_not_anothers():
    rng = np.random.default_rng(7)
    for shift in (0.0, 0.05, 0.2, 1.0):
        found = mean_interval(list(shift + 0.05 * rng.normal(size=(3, 1)) + rng.normal(size=(3, 300))))
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
    alike = list(rng.normal(size=(5, 400)))
    apart = [values + shift for values, shift in zip(alike, (-1, -0.5, 0, 0.5, 1), strict=True)]
    narrow, wide = mean_interval(alike), mean_interval(apart)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    assert wide.seed_spread == pytest.approx(np.std([v.mean() for v in apart], ddof=1))


def test_the_least_number_of_items_is_where_t_intervals_of_rates_hold():
    from scipy.special import stdtrit
    from scipy.stats import binom

    def coverage(n: int, rate: float) -> float:
        k = np.arange(n + 1)
        half = stdtrit(n - 1, 0.975) * np.sqrt(k / n * (1 - k / n) / (n - 1))
        return binom.pmf(k, n, rate)[abs(k / n - rate) <= half].sum()

    rates = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
    assert all(0.93 < coverage(LEAST_ITEMS, rate) < 0.955 for rate in rates)
    assert min(coverage(10, rate) for rate in rates) < 0.7


@settings(max_examples=50, deadline=None)
@given(values=scores, shift=st.floats(-1, 1))
def test_a_pairs_common_noise_drops_out(values, shift):
    a = np.array(values)
    interval = paired_difference([a + shift], [a])
    assert interval.mean == pytest.approx(shift, abs=1e-9)
    # Rounding is all that is left: then no interval, since one of no width would be false certainty.
    assert interval.low is None or interval.high - interval.low < 1e-9


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
        assert paired_difference([a], [b]).p == pytest.approx(expected, abs=1e-6)


def test_without_a_difference_a_test_calls_one_as_often_as_it_says():
    rng, called = np.random.default_rng(6), 0
    for trial in range(300):
        a, b = rng.binomial(1, 0.4, size=(2, 150)).astype(float)
        called += permutation_p([a], [b], seed=trial, n=400) < 0.05
    assert 0.02 < called / 300 < 0.08


def test_seeds_that_disagree_make_the_interval_doubt_what_items_alone_would_not():
    rng = np.random.default_rng(7)
    b = [rng.normal(size=400) for _ in range(4)]
    a = [x + shift + rng.normal(0, 0.1, size=400) for x, shift in zip(b, (1, -0.5, 0.9, -0.6), strict=True)]
    assert permutation_p(a, b) < 0.001 and paired_difference(a, b).p > 0.2


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
