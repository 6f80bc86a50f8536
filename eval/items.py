"""Scores of single items by metric, of a folder of answers and its judgements: what intervals are made of."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval import benchmarks
from eval.benchmarks import Column
from eval.benchmarks.record import Items
from eval.statistics import Interval, farthest
from sso.errors import InputError
from sso.records import iter_json_lines

SCALES = {"%": (0.0, 100.0), "0-1": (0.0, 1.0), "0-100": (0.0, 100.0), "1-10": (1.0, 10.0)}
SCALES |= dict.fromkeys(("nats/token", "characters", "pairs"), (0.0, math.inf))
"""Units whose figures have ends, which no interval passes."""


def read_json(path: Path) -> Any:
    """A JSON file; InputError where it is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); remove it and run its job again.") from error


def answer_items(folder: Path, answers: Path) -> dict[str, Items]:
    """Scores of items by metric (percent where it is a rate), of a judged folder and its answers."""
    items: dict[str, Items] = {}
    for benchmark in benchmarks.of_judges().values():
        path = folder / f"{benchmark.judged}.jsonl"
        if benchmark.items and path.is_file():
            items |= benchmark.items([row for _, row in iter_json_lines(path)])
    if (answers / "lm_eval.json").is_file():
        for task, entry in read_json(answers / "lm_eval.json")["tasks"].items():
            samples = entry.get("samples") or {}
            items[benchmarks.metric(task)] = {name: 100 * score for name, score in samples.items()}
    return {metric: scores for metric, scores in items.items() if scores}


def column(metric: str) -> Column:
    """How a benchmark's metric is shown; one that no record knows is a task of lm-eval's, a rate in percent."""
    return benchmarks.columns().get(metric, Column(metric))


def at_end(unit: str, mean: float, n: int, difference: bool = False) -> tuple[float | None, float | None]:
    """The exact 95% interval of the mean of ``n`` equal scores that lie on an end of their unit's scale, or of a
    ``difference`` where none differs; (None, None) elsewhere, since equal scores tell nothing of their noise."""
    low, high = SCALES.get(unit, (-math.inf, math.inf))
    if high == math.inf:
        return None, None
    reach = (high - low) * farthest(n)
    if difference:
        return (-reach, reach) if mean == 0 else (None, None)
    return (low, low + reach) if mean == low else (high - reach, high) if mean == high else (None, None)


def bounded(unit: str, found: Interval, difference: bool = False) -> Interval:
    """An interval by its unit's scale: within its ends, and the exact one where all items are equal and lie on one."""
    low, high = found.low, found.high
    if not difference:
        low, high = within(unit, low, high)
    if low is None and found.n > found.seeds:
        low, high = at_end(unit, found.mean, found.n // found.seeds, difference)
    return replace(found, low=low, high=high)


def within(unit: str, low: float | None, high: float | None) -> tuple[float | None, float | None]:
    """An interval without what lies beyond the ends of its unit's scale."""
    ends = SCALES.get(unit)
    if ends is None or low is None or high is None:
        return low, high
    return max(low, ends[0]), min(high, ends[1])
