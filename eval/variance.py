"""How much a judge differs from itself: the same items judged several times.

At temperature 0 an endpoint need not repeat itself (batching, hardware, sampling of experts); the oracle and reward
models do. What is measured is the judge alone: the answers stay as they are.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item")


def subset(items: Sequence[Item], count: int, seed: int = 0) -> list[Item]:
    """``count`` items, all where there are fewer, in their order; the same for every run of a seed."""
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), min(count, len(items))))]


def repeat(judged: Callable[[int], list[float]], repeats: int) -> dict[str, Any]:
    """Spread of ``judged(draw)`` [items] over draws 0 to repeats - 1, NaN where a verdict was unreadable.

    sd_item: mean over items of the standard deviation over draws; sd_mean: that of the subset's mean, which is what
    a table cell shows; changed: share of items with more than one verdict. Only items that every draw could read.
    """
    values = np.array([judged(draw) for draw in range(repeats)], dtype=np.float64)
    known = values[:, np.isfinite(values).all(0)]
    out = {"repeats": repeats, "n": known.shape[1], "unreadable": values.shape[1] - known.shape[1]}
    if not known.shape[1] or repeats < 2:
        return out | {"means": [], "sd_item": None, "sd_mean": None, "changed": None}
    means = known.mean(1)
    return out | {
        "means": [round(float(mean), 6) for mean in means],
        "sd_item": float(known.std(0, ddof=1).mean()),
        "sd_mean": float(means.std(ddof=1)),
        "changed": float((known != known[0]).any(0).mean()),
    }
