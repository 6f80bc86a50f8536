"""How often 95% intervals of a mean over seeds that share their items hold it: ours, two parts of it, and a bootstrap.

    python -m benchmarks.interval_coverage --trials 4000          half a minute

Scores are seed + item + rest, normal, 1,200 items; a row is a choice of their standard deviations. `items apart`: items
drawn anew within each seed (what the tables had before). `Satterthwaite` and `Cochran`: the two quantiles that ours is
the mean of. `t of seeds`: Student's t over the seeds' means. Prints a Markdown table.
"""

import argparse

import numpy as np
from scipy.special import stdtrit

from eval.statistics import LEVEL, cochran, items_part, mean_interval, satterthwaite, seeds_part

SPREADS = [(0.0, 1.0, 0.3), (0.0, 0.1, 1.0), (0.03, 1.0, 1.0), (0.05, 1.0, 0.3), (0.3, 1.0, 1.0)]
METHODS = ("ours", "Satterthwaite", "Cochran", "t of seeds", "items apart")


def covered(scores: np.ndarray) -> list[bool]:
    """Whether each of METHODS' intervals covers zero, for one draw [seeds, items] around zero."""
    seeds, n = scores.shape
    ours, means = mean_interval(list(scores)), scores.mean(1)
    parts = [part for part in (seeds_part(means[:, None]), items_part(scores[:, None])) if part.value > 0]
    error = sum(part.value for part in parts) ** 0.5
    halves = [quantile(parts, LEVEL) * error for quantile in (satterthwaite, cochran)]
    halves.append(stdtrit(seeds - 1, 0.975) * means.std(ddof=1) / seeds**0.5)
    # A bootstrap of seeds, then of items within each: its variance, by the normal quantile.
    apart = (means.var() + scores.var(1).mean() / n) / seeds
    halves.append(1.959964 * apart**0.5)
    return [ours.low <= 0 <= ours.high, *(abs(ours.mean) <= half for half in halves)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    trials = parser.parse_args().trials
    print("| seeds | sd of seeds, items, rest |", " | ".join(METHODS), "|")
    print("|---" * (2 + len(METHODS)) + "|")
    for seeds in (3, 5):
        for seed, item, rest in SPREADS:
            rng = np.random.default_rng(seeds)
            hits = []
            for _ in range(trials):
                items, shift = item * rng.normal(size=1200), seed * rng.normal(size=(seeds, 1))
                hits.append(covered(shift + items + rest * rng.normal(size=(seeds, 1200))))
            rates = " | ".join(f"{rate:.3f}" for rate in np.mean(hits, axis=0))
            print(f"| {seeds} | {seed}, {item}, {rest} | {rates} |", flush=True)


if __name__ == "__main__":
    main()
