"""Intervals of a mean over items and seeds, and tests of two arms on the same items.

Several seeds that share their items: the variance of the mean has two parts, that of the seeds' means, which is
theirs and the residual's, and the items' own, the two-way analysis of variance's component (what items alone would
give, less the residual in it). The quantile is the mean of Satterthwaite's t and Cochran's, of which the first is
too sure and the second too cautious where both parts are alike; `tests/test_eval_statistics.py` holds the mean of both
to its level. Backbones are fixed, not drawn: an item's score is its mean over them, and each has seeds of its own.
Seeds without common items: t over their means, which hold both kinds of noise. One seed: t over its items, and nothing
is said about other seeds. The permutation test and McNemar's look at items: an item's difference is its mean over the
seeds, so they ask whether these trained models differ, not whether newly trained ones would. Deterministic. SciPy is
imported where it is needed only, because that costs more than all intervals of a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Samples = Sequence[np.ndarray | Sequence[float] | Sequence[Sequence[float]]]
"""Scores of items, one array a seed: [items], or [backbones, items]."""

LEAST_ITEMS = 100
"""Below so many (common) items no difference is stated and no verdict given: from here on t intervals of scores of 0
and 1 at rates of .1 to .9 cover .93 to .95, at 10 items .65 to .98 (`tests/test_eval_statistics.py`)."""

LEVEL = 0.95


def mean_and_error(values: Sequence[float | None], scale: float = 1.0) -> dict[str, float | int | None]:
    """Mean with its standard error over items, times ``scale``; None among the values is left out and counted."""
    known = np.array([v for v in values if v is not None], dtype=np.float64) * scale
    error = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None
    out = {"value": float(known.mean()) if len(known) else None, "stderr": error, "n": len(known)}
    return out if len(known) == len(values) else out | {"unreadable": len(values) - len(known)}


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval; bounds and ``p`` are None where one item, or equal ones, tell nothing of the noise.

    ``n``: items of all seeds. ``seed_spread``: sample standard deviation of the seeds' means (None: one seed).
    ``p``: two-sided, of a mean of zero, by the same distribution as the interval.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    seeds: int
    seed_spread: float | None
    p: float | None = None


@dataclass(frozen=True)
class Part:
    """An estimated part of the variance of a mean, and that estimate squared over its degrees of freedom."""

    value: float
    error: float


def _t(part: Part, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(max(1.0, part.value**2 / part.error) if part.error else np.inf, (1 + level) / 2))


def satterthwaite(parts: Sequence[Part], level: float) -> float:
    """The quantile of one t, with the degrees of freedom of the parts' sum."""
    return _t(Part(sum(part.value for part in parts), sum(part.error for part in parts)), level)


def cochran(parts: Sequence[Part], level: float) -> float:
    """The mean of the parts' own t quantiles, weighted by the parts."""
    return sum(part.value * _t(part, level) for part in parts) / sum(part.value for part in parts)


def _quantile(parts: Sequence[Part], level: float) -> float:
    """How many standard errors an interval reaches to each side: the mean of Satterthwaite's and Cochran's t."""
    return (satterthwaite(parts, level) + cochran(parts, level)) / 2


def interval(
    mean: float, parts: Sequence[Part], n: int, seeds: int = 1, spread: float | None = None, level: float = LEVEL
) -> Interval:
    """The interval of a mean whose variance is the sum of ``parts``; none where there are no parts, or none above
    rounding: an interval of no width would be false certainty."""
    parts = [part for part in parts if part.value > (1e-12 * max(1.0, abs(mean))) ** 2]
    if not parts:
        return Interval(mean, None, None, n, seeds, spread)
    error = sum(part.value for part in parts) ** 0.5
    half = _quantile(parts, level) * error
    # The level whose interval just reaches zero.
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _quantile(parts, middle) * error < abs(mean) else (low, middle)
    return Interval(mean, mean - half, mean + half, n, seeds, spread, 1 - low)


def seeds_part(means: np.ndarray) -> Part:
    """The seeds' part of the variance of the mean over all, from the spread of the seeds' means [seeds, backbones]."""
    seeds, backbones = means.shape
    own = means.var(0, ddof=1) / (seeds * backbones**2)
    return Part(float(own.sum()), float((own**2).sum() / (seeds - 1)))


def items_part(scores: np.ndarray) -> Part:
    """The items' part of that variance, from scores [seeds, backbones, items]; the residual is in the seeds' part."""
    seeds, backbones, n = scores.shape
    whole = scores.mean((0, 1)).var(ddof=1) / n
    if seeds == 1:
        return Part(float(whole), float(whole**2 / (n - 1)))
    rest = scores - scores.mean(0) - scores.mean(2, keepdims=True) + scores.mean((0, 2))[:, None]
    degrees = (seeds - 1) * (n - 1)
    residual = (rest**2).sum((0, 2)) / degrees / (seeds * n * backbones**2)
    return Part(max(0.0, float(whole - residual.sum())), float(whole**2 / (n - 1) + (residual**2).sum() / degrees))


def _arrays(samples: Samples) -> list[np.ndarray]:
    arrays = [np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in samples]
    if not arrays or any(a.ndim != 2 or a.size == 0 for a in arrays):
        raise ValueError("samples must be one non-empty array of scores a seed, [items] or [backbones, items]")
    return arrays


def mean_interval(samples: Samples, shared: bool = True, level: float = LEVEL) -> Interval:
    """Mean over seeds of the mean over items, with its interval.

    ``shared``: all seeds hold the same items in the same order. Raises ValueError where a seed has no scores, or where
    seeds that share their items differ in number.
    """
    arrays = _arrays(samples)
    seeds, n = len(arrays), sum(a.shape[1] for a in arrays)
    if shared and len({a.shape for a in arrays}) > 1:
        raise ValueError("the items of all seeds must be the same")
    means = np.array([a.mean(1) for a in arrays])
    spread = float(means.mean(1).std(ddof=1)) if seeds > 1 else None
    parts = [seeds_part(means)] if seeds > 1 else []
    if shared:
        parts = [*parts, items_part(np.stack(arrays))] if arrays[0].shape[1] > 1 else []
    return interval(float(means.mean()), parts, n, seeds, spread, level)


def farthest(n: int, level: float = LEVEL) -> float:
    """How far from an end of a scale of width 1 the mean may be where all of ``n`` scores lie on that end: Clopper and
    Pearson's exact bound for rates, and not too narrow for other scores between the ends."""
    return float(1 - ((1 - level) / 2) ** (1 / n))


def _differences(a: Samples, b: Samples) -> list[np.ndarray]:
    left, right = _arrays(a), _arrays(b)
    if [x.shape for x in left] != [x.shape for x in right]:
        raise ValueError("a and b must hold the same seeds and items")
    return [x - y for x, y in zip(left, right, strict=True)]


def paired_difference(a: Samples, b: Samples, level: float = LEVEL) -> Interval:
    """Mean of a - b with its interval; items must be the same in both and in all seeds, in the same order.

    The interval of the differences, so what makes an item hard for both arms drops out.
    """
    return mean_interval(_differences(a, b), level=level)


def permutation_p(a: Samples, b: Samples, seed: int = 0, n: int = 10_000) -> float:
    """Two-sided p of a paired permutation test: the arms' labels are exchangeable on every item.

    Exact where all exchanges of the differing items are at most ``n``. An item's difference is its mean over seeds;
    the items of all seeds must be the same.
    """
    from scipy.stats import permutation_test

    by_seed = _differences(a, b)
    if len({x.shape for x in by_seed}) > 1:
        raise ValueError("the items of all seeds must be the same")
    differences = np.mean(by_seed, axis=0).mean(0)
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
