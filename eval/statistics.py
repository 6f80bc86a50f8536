"""Bootstrap intervals of a mean over items and seeds, and of the paired difference of two arms.

Several seeds: seeds are drawn with replacement, then items within each drawn seed (hierarchical bootstrap), so the
interval holds both kinds of noise; with few seeds it is as coarse as they are. One seed: items only, and the
interval says nothing about other seeds. Percentile intervals. Deterministic for a seed. NumPy alone:
`scipy.stats.bootstrap` has no hierarchy, and importing it costs more than all of this.
"""

from collections.abc import Sequence
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


def paired_difference(a: Samples, b: Samples, seed: int = 0, n: int = 2000, level: float = 0.95) -> Interval:
    """Mean of a - b with its interval; a seed's items must be the same in both, in the same order.

    The interval of the differences, so what makes an item hard for both arms drops out.
    """
    left, right = _arrays(a), _arrays(b)
    if [len(x) for x in left] != [len(x) for x in right]:
        raise ValueError("a and b must hold the same seeds and items")
    return mean_interval([x - y for x, y in zip(left, right, strict=True)], seed, n, level)
