"""Intervals of a mean over items and seeds, and tests of two arms on the same items.

Several seeds: seeds are drawn with replacement, then items within each drawn seed (hierarchical bootstrap), so the
interval holds both kinds of noise; with few seeds it is as coarse as they are. One seed: items only, and nothing is
said about other seeds. Percentile intervals. The tests are SciPy's and look at items: an item's difference is its mean
over the seeds, so they ask whether these trained models differ, not whether newly trained ones would. Deterministic
for a seed. The intervals need NumPy alone: `scipy.stats.bootstrap` has no hierarchy, and SciPy is imported by the tests
only, because that costs more than all intervals of a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

Samples = Sequence[np.ndarray | Sequence[float]]
"""Scores of items, one array a seed."""


@dataclass(frozen=True)
class Interval:
    """Mean with percentile bounds. ``seed_spread``: sample standard deviation of the seeds' means (None: one seed)."""

    mean: float
    low: float
    high: float
    n: int
    seeds: int
    seed_spread: float | None

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain values, for JSON and tables."""
        return asdict(self)


def _item_means(values: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Means of ``draws`` resamples of ``values`` [n], as [draws]; chunked to keep memory at some MB."""
    chunk = max(1, 2_000_000 // len(values))
    parts = [
        values[rng.integers(len(values), size=(min(chunk, draws - start), len(values)))].mean(1)
        for start in range(0, draws, chunk)
    ]
    return np.concatenate(parts)


def _resample(samples: list[np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap means [n]: the mean over drawn seeds of the mean over their drawn items."""
    k = len(samples)
    if k == 1:
        return _item_means(samples[0], n, rng)
    chosen = rng.integers(k, size=(n, k))
    means = np.empty((n, k))
    for seed, values in enumerate(samples):
        where = chosen == seed
        means[where] = _item_means(values, int(where.sum()), rng) if where.any() else 0
    return means.mean(1)


def _arrays(samples: Samples) -> list[np.ndarray]:
    arrays = [np.asarray(values, dtype=np.float64) for values in samples]
    if not arrays or any(a.ndim != 1 or a.size == 0 for a in arrays):
        raise ValueError("samples must be one non-empty, one-dimensional array of scores a seed")
    return arrays


def mean_interval(samples: Samples, seed: int = 0, n: int = 2000, level: float = 0.95) -> Interval:
    """Mean over seeds of the mean over items, with its bootstrap interval from ``n`` resamples.

    Seeds weigh the same whatever their number of items. Raises ValueError where a seed has no scores.
    """
    arrays = _arrays(samples)
    means = np.array([a.mean() for a in arrays])
    draws = _resample(arrays, n, np.random.default_rng(seed))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    spread = float(means.std(ddof=1)) if len(arrays) > 1 else None
    return Interval(float(means.mean()), float(low), float(high), sum(map(len, arrays)), len(arrays), spread)


def _differences(a: Samples, b: Samples) -> list[np.ndarray]:
    left, right = _arrays(a), _arrays(b)
    if [len(x) for x in left] != [len(x) for x in right]:
        raise ValueError("a and b must hold the same seeds and items")
    return [x - y for x, y in zip(left, right, strict=True)]


def paired_difference(a: Samples, b: Samples, seed: int = 0, n: int = 2000, level: float = 0.95) -> Interval:
    """Mean of a - b with its interval; a seed's items must be the same in both, in the same order.

    The interval of the differences, so what makes an item hard for both arms drops out.
    """
    return mean_interval(_differences(a, b), seed, n, level)


def bootstrap_p(a: Samples, b: Samples, seed: int = 0, n: int = 10_000) -> float:
    """Two-sided p of no difference: how far into the tails of the resampled differences 0 lies, never below 2 / n.

    Holds the noise of items and, with several seeds, of seeds.
    """
    draws = _resample(_differences(a, b), n, np.random.default_rng(seed))
    tail = min((draws <= 0).mean(), (draws >= 0).mean())
    return float(min(1.0, 2 * max(tail, 1 / n)))


def permutation_p(a: Samples, b: Samples, seed: int = 0, n: int = 10_000) -> float:
    """Two-sided p of a paired permutation test: the arms' labels are exchangeable on every item.

    Exact where all exchanges of the differing items are at most ``n``. An item's difference is its mean over seeds;
    the items of all seeds must be the same.
    """
    from scipy.stats import permutation_test

    by_seed = _differences(a, b)
    if len({len(x) for x in by_seed}) > 1:
        raise ValueError("the items of all seeds must be the same")
    differences = np.mean(by_seed, axis=0)
    differences = differences[differences != 0]  # their exchange changes nothing
    if differences.size < 2:
        return 1.0  # one item can fall either way
    return float(
        permutation_test(
            (differences,),
            lambda x, axis: x.mean(axis),
            permutation_type="samples",
            n_resamples=n,
            vectorized=True,
            rng=np.random.default_rng(seed),
            batch=max(1, 2_000_000 // differences.size),
        ).pvalue
    )


def mcnemar_p(a: Sequence[float], b: Sequence[float]) -> float:
    """Exact two-sided McNemar test of two arms' right (1) and wrong (0) answers to the same items.

    Raises ValueError for scores other than 0 and 1.
    """
    from scipy.stats import binomtest

    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape or not np.isin([left, right], (0.0, 1.0)).all():
        raise ValueError("McNemar's test compares scores of 0 and 1 on the same items")
    won, lost = int((left > right).sum()), int((left < right).sum())
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for their number (Holm 1979): below a level, the chance of any false call is below it."""
    adjusted, running = {}, 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        running = max(running, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = running
    return {name: adjusted[name] for name in p}
