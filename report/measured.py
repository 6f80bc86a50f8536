"""The arithmetic of every table and chart: an arm's figures over seeds and backbones, with their intervals.

Knows which arm a name of tables.yaml means and how figures are combined; nothing of layout.
"""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from eval.benchmarks import columns, of_judges
from eval.benchmarks.record import Column, Items
from eval.items import at_end, within
from eval.length_controlled import RAW
from report.collect import Collected, Figure, Key
from sso.config import Experiment
from sso.errors import InputError
from sso.settings import ROOT, from_yaml, hint

SPECS = Path(__file__).with_name("tables.yaml")
PRINTED = ROOT / "results" / "paper" / "results.csv"
POOLED = "all"
"""The backbone name of a figure over all backbones."""


@cache
def specs() -> dict[str, Any]:
    """tables.yaml, with the columns of all benchmarks; read once, so not to be changed."""
    content = from_yaml(SPECS.read_text(encoding="utf-8"), SPECS)
    return {**content, "metrics": {name: asdict(own) for name, own in columns().items()} | content["metrics"]}


def check_metrics(content: dict[str, Any]) -> None:
    """Raise InputError for a metric that the tables, comparisons, claims or headlines name and nobody knows."""
    named = [
        (f"tables.{name}.columns", metric) for name, spec in content["tables"].items() for metric in spec["columns"]
    ]
    named += [("comparisons", metric) for row in content["comparisons"] for metric in row["metrics"]]
    named += [(part, row["metric"]) for part in ("claims", "headline") for row in content[part]]
    for where, metric in named:
        if metric not in content["metrics"]:
            raise InputError(f"{SPECS}: {where}: unknown metric {metric!r}; {hint(metric, content['metrics'])}")


def unit(metric: str, content: dict[str, Any] | None = None) -> str:
    """A metric's unit; one that nobody knows is a rate in percent."""
    return (content or specs())["metrics"].get(metric, {"unit": "%"})["unit"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval (None where nothing tells how sure it is) and where they come from."""

    mean: float
    low: float | None
    high: float | None
    seeds: int
    n: int | None
    """Items of one seed."""
    spread: float | None
    """Standard deviation between seeds; None with one seed."""
    test: str
    """How the interval was made."""
    fits: tuple[str, ...] = ()
    """For length-controlled win rates: the fits that gave the figures, or why they are raw rates instead."""

    @property
    def raw(self) -> tuple[str, ...]:
        """Why some of its figures are raw rates in a length-controlled one's place; empty where none is."""
        return tuple(fit for fit in self.fits if fit.startswith(RAW))


def owner(metric: str) -> str | None:
    """The judged benchmark that a metric is of."""
    return next((name for name, record in of_judges().items() if metric in record.columns), None)


def asked(experiment: Experiment, metric: str) -> bool:
    """Whether an experiment's config asks for the judged benchmark that a metric is of; True for a metric of none."""
    return owner(metric) is None or any(owner(metric) in own.judged for own in experiment.evaluations)


def _of_this(content: dict[str, Any], experiment: Experiment) -> dict[str, Any]:
    """tables.yaml without what only another kind of world has, and without claims of ours that nobody asked for; where
    no model is fine-tuned here, claims speak of the starting model."""
    kinds = (None, *((True, experiment.world.KIND) if experiment.world else ()))
    lists = {key: [row for row in content[key] if row.get("world") in kinds] for key in ("comparisons", "claims")}
    lists["claims"] = [row for row in lists["claims"] if not row.get("ours") or asked(experiment, row["metric"])]
    if not any(about.sft or about.architecture for about in experiment.backbones.values()):
        named = [
            {**row, "claim": row["claim"].replace("the SFT model", "the starting model")} for row in lists["claims"]
        ]
        lists["claims"] = named
    return {**content, **lists, "tables": {k: t for k, t in content["tables"].items() if t.get("world") in kinds}}


def with_own_tasks(content: dict[str, Any], experiment: Experiment) -> dict[str, Any]:
    """tables.yaml as it is for an experiment, with a table a version of the tasks that lm-eval alone knows."""
    content = _of_this(content, experiment)
    asked = [task for settings in experiment.evaluations for task in settings.tasks]
    own = list(dict.fromkeys(task.name for task in asked if task.kind == "lm_eval"))
    if not own:
        return content
    rows = content["tables"]["v2_table1"]["rows"]
    tables = {
        f"{version}_own_tasks": {"title": f"{version}, own tasks", "version": version, "rows": rows, "columns": own}
        for version in dict.fromkeys(arm.version for arm in experiment.arms.values())
    }
    metrics = {name: asdict(Column(name)) for name in own} | content["metrics"]
    return {**content, "metrics": metrics, "tables": {**content["tables"], **tables}}


class Measured:
    """Looks figures up by arm and combines them over seeds; the arithmetic of every table and chart."""

    def __init__(self, collected: Collected, content: dict[str, Any] | None = None):
        self.collected = collected
        self.experiment: Experiment = collected.experiment
        self.content = with_own_tasks(content or specs(), self.experiment)
        check_metrics(self.content)
        self._known: dict[tuple[Any, ...], Estimate | None] = {}

    @property
    def scopes(self) -> list[str]:
        """The backbones, and all of them pooled where there are several."""
        names = list(self.experiment.backbones)
        return [*names, POOLED] if len(names) > 1 else names

    @cached_property
    def _rows(self) -> dict[tuple[str, ...], dict[str, str]]:
        """The rows of results.csv by (version, table, backbone, method, iteration, metric)."""
        with PRINTED.open(encoding="utf-8", newline="") as file:
            keys = ("version", "table", "backbone", "method", "iteration", "metric")
            return {tuple(row[key] for key in keys): row for row in csv.DictReader(file)}

    @cached_property
    def printed(self) -> dict[tuple[str, ...], float]:
        """The paper's figures by (version, table, backbone, method, iteration, metric)."""
        return {key: float(row["value"]) for key, row in self._rows.items()}

    @cached_property
    def doubts(self) -> dict[tuple[str, ...], str]:
        """Why a figure of `printed` may be wrong, of those that look so."""
        return {key: row["doubt"] for key, row in self._rows.items() if row["doubt"]}

    def printed_backbones(self, version: str, table: str | None) -> list[str]:
        """The backbones that a table of the paper has."""
        return list(dict.fromkeys(key[2] for key in self.printed if key[:2] == (version, table)))

    def measure(self, metric: str) -> str:
        """The metric that a claim or headline goes by here: the paper's own outside the micro-world."""
        return metric if self.experiment.world else self.content["at_scale"].get(metric, metric)

    def testable(self, metric: str) -> bool:
        """Whether this experiment has what a metric needs."""
        world, judge = self.experiment.world, self.experiment.evaluation.judge
        oracle = world is not None and judge.kind == "oracle"
        return oracle or self.content["metrics"][metric].get("needs") != "oracle"

    def arm(self, name: str, version: str, of: str = "arms", loss: str | None = None) -> str | None:
        """The arm (or reward model) that a row names: by the paper's method, else by its own name.

        Of several with a method, that of its name goes first, and an arm with the version's main base loss before
        one with another; with ``loss`` only an arm with just that one will do. The base model has no loss.
        """
        table = getattr(self.experiment, of)
        alike = [
            key
            for key, row in table.items()
            if row.method == name and (self.collected.version(key, of) == version or (of == "arms" and name == "base"))
        ]
        alike.sort(key=lambda key: key != name)
        if not alike and name in table and self.collected.version(name, of) == version:
            alike = [name]
        if of == "rewards":
            return next(iter(alike), None)
        matching = [key for key in alike if self._loss(key) in (None, loss or self.content["main_loss"][version])]
        return next(iter(matching if loss else matching or alike), None)

    def _loss(self, arm: str) -> str | None:
        """The base loss of an arm's policy; None for the base model."""
        policy = self.experiment.arms[arm].policy
        return policy.base_loss if policy else None

    def other_loss(self, arm: str, version: str, of: str = "arms") -> str:
        """What a row says of an arm whose loss is not the version's main one, and whose label does not say it."""
        loss = self._loss(arm) if of == "arms" else None
        if loss is None or loss in self.label(arm).lower() or loss == self.content["main_loss"][version]:
            return ""
        return f" ({loss.upper()})"

    def others(self, version: str, of: str = "arms") -> list[str]:
        """Arms of a version that the paper has no name for."""
        table = getattr(self.experiment, of)
        return [key for key, row in table.items() if row.method is None and self.collected.version(key, of) == version]

    def label(self, arm: str, iteration: int = 0, of: str = "arms") -> str:
        """An arm as the tables call it."""
        label = getattr(self.experiment, of)[arm].label
        return f"{label}, iteration {iteration}" if iteration else label

    def iterations(self, arm: str) -> list[int]:
        """The iterations of an arm, [0] for an arm without."""
        return self.collected.iterations.get(arm, [0])

    def backbones(self, scope: str, *arms: str) -> list[str]:
        """The backbones of a scope; of the pooled one, those that all ``arms`` (or reward models) run on."""
        if scope != POOLED:
            return [scope]
        about = [self.experiment.arms.get(arm) or self.experiment.rewards[arm] for arm in arms]
        return [
            name for name in self.experiment.backbones if all(a.backbones is None or name in a.backbones for a in about)
        ]

    def figures(self, names: Sequence[str], arm: str, iteration: int, metric: str) -> dict[int, list[Figure]]:
        """seed -> its figures on the backbones ``names``; only seeds that have all."""
        found = {}
        for seed in self.experiment.seeds:
            keys = (Key(name, seed, arm, iteration, metric) for name in names)
            row = [self.collected.figures[key] for key in keys if key in self.collected.figures]
            if row and len(row) == len(names):
                found[seed] = row
        return found

    def estimate(self, backbone: str, arm: str, iteration: int, metric: str) -> Estimate | None:
        """The mean over seeds; None where nothing was measured."""
        key = (backbone, arm, iteration, metric)
        if key not in self._known:
            figures = self.figures(self.backbones(backbone, arm), arm, iteration, metric)
            found = _combine([[(figure, None) for figure in row] for row in figures.values()])
            if found:
                low, high = within(unit(metric, self.content), found.low, found.high)
                found = _exact(replace(found, low=low, high=high), unit(metric, self.content), paired=False)
            self._known[key] = found
        return self._known[key]

    def difference(self, backbone: str, a: tuple[str, int], b: tuple[str, int], metric: str) -> Estimate | None:
        """a - b over the seeds that have both; paired by item where items were kept."""
        key = (backbone, a, b, metric)
        if key not in self._known:
            found = _combine(self._both(backbone, a, b, metric))
            self._known[key] = found and _exact(found, unit(metric, self.content), paired=True)
        return self._known[key]

    def levels(self, backbone: str, a: tuple[str, int], b: tuple[str, int], metric: str) -> tuple[float, float] | None:
        """The figures of a and b whose difference is that of `difference`: of the seeds and items that both have."""
        difference = self.difference(backbone, a, b, metric)
        if difference is None:
            return None
        seeds = self._both(backbone, a, b, metric)
        samples = [_items(row) for row in seeds]
        if not all(samples):
            level = _mean([_mean([figure.value for _, figure in row]) for row in seeds])
        else:
            kept, _ = _kept(samples)
            own = ([figure.items or {} for _, figure in row] for row in seeds)
            level = _mean(
                [_mean([t[name] for t in tables for name in ids]) for tables, ids in zip(own, kept, strict=True)]
            )
        return level + difference.mean, level

    def _both(
        self, backbone: str, a: tuple[str, int], b: tuple[str, int], metric: str
    ) -> list[list[tuple[Figure, Figure]]]:
        """The figures of a and b by backbone, a row for each seed that both have."""
        left, right = (self.figures(self.backbones(backbone, a[0], b[0]), *side, metric) for side in (a, b))
        return [list(zip(left[s], right[s], strict=True)) for s in left if s in right]


EQUAL = "no interval: all items are equal"
Cell = tuple[Figure, Figure | None]
"""A figure, and the one to subtract from it."""


def _combine(seeds: Sequence[Sequence[Cell]]) -> Estimate | None:
    """The mean over seeds of the mean over backbones, with its interval.

    Backbones are fixed, not drawn: where several are pooled, an item's score is its mean over them.
    """
    if not seeds:
        return None
    fits = {figure.measure for row in seeds for cell in row for figure in cell if figure and figure.measure}
    return replace(_estimate(seeds), fits=tuple(sorted(fits)))


def _estimate(seeds: Sequence[Sequence[Cell]]) -> Estimate:
    from eval.statistics import LEAST_ITEMS

    values = [_mean([x.value - (y.value if y else 0.0) for x, y in row]) for row in seeds]
    spread, paired = _spread(values), seeds[0][0][1] is not None
    samples = [_items(row) for row in seeds]
    if all(samples):
        return _of_items(samples, spread, paired)
    figures = [figure for row in seeds for cell in row for figure in cell if figure]
    mean, n = _mean(values), min((figure.n for figure in figures if figure.n), default=None)
    if paired and n is not None and n < LEAST_ITEMS:
        return Estimate(mean, None, None, len(seeds), n, spread, f"no interval: {n} items, {LEAST_ITEMS} are needed")
    if spread is not None and len(values) > 2:
        from scipy.stats import t

        half = float(t.ppf(0.975, len(values) - 1)) * spread / len(values) ** 0.5
        return Estimate(mean, mean - half, mean + half, len(seeds), n, spread, "t over seeds")
    errors = [figure.stderr for figure in figures if figure.stderr is not None]
    if len(errors) < len(figures):
        return Estimate(mean, None, None, len(seeds), n, spread, "no interval")
    half = 1.959964 * sum(error**2 for error in errors) ** 0.5 / (len(seeds) * len(seeds[0]))
    test = ("unpaired, " if paired else "") + "normal"
    return Estimate(mean, mean - half, mean + half, len(seeds), n, spread, test)


def _exact(estimate: Estimate, unit: str, paired: bool) -> Estimate:
    """An estimate of equal items with the exact interval where they lie on an end of the scale, or none differs."""
    if estimate.test != EQUAL or not estimate.n:
        return estimate
    low, high = at_end(unit, estimate.mean, estimate.n, paired)
    return estimate if low is None else replace(estimate, low=low, high=high, test="exact bound, all items equal")


def _kept(samples: list[list[Items]]) -> tuple[list[list[str]], bool]:
    """Each seed's items that count: those that all seeds share, else all that its backbones share; and whether seeds
    share any."""
    own = [sorted(set(tables[0]).intersection(*tables[1:])) for tables in samples]
    common = sorted(set(own[0]).intersection(*own[1:]))
    return [common or ids for ids in own], len(common) > 0


def _of_items(samples: list[list[Items]], spread: float | None, paired: bool) -> Estimate:
    """An estimate from each seed's items by backbone: over the items that all seeds share, or over the seeds' means
    where they share none."""
    from eval.statistics import LEAST_ITEMS, mean_interval

    names, shared = _kept(samples)
    arrays = [
        [[table[name] for name in ids] for table in tables] for tables, ids in zip(samples, names, strict=True) if ids
    ]
    found = mean_interval(arrays, shared=shared)
    if paired and len(names[0]) < LEAST_ITEMS:
        test = f"no interval: {len(names[0])} common items, {LEAST_ITEMS} are needed"
        return Estimate(found.mean, None, None, len(samples), len(names[0]), spread, test)
    if found.low is None and len(names[0]) > 1:
        return Estimate(found.mean, None, None, len(samples), len(names[0]), spread, EQUAL)
    over = "items of one seed" if len(samples) == 1 else "seeds and common items" if shared else "seeds"
    test = ("paired " if paired else "") + ("two-way t over " if len(samples) > 1 and shared else "t over ") + over
    return Estimate(found.mean, found.low, found.high, len(samples), len(names[0]), spread, test)


def _items(row: Sequence[Cell]) -> list[Items]:
    """Item -> score (or difference) of each of a seed's cells; empty where a figure is not its items' mean."""
    tables = []
    for x, y in row:
        ours, theirs = _own_items(x), _own_items(y) if y else None
        if not ours or theirs == {}:
            return []
        tables.append({k: v - theirs[k] for k, v in ours.items() if k in theirs} if theirs else ours)
    return tables if set(tables[0]).intersection(*tables[1:]) else []


def _own_items(figure: Figure) -> Items:
    """The items that a figure is the mean of; none where they are of another kind, so that its own error counts."""
    if not figure.items:
        return {}
    alike = abs(_mean(list(figure.items.values())) - figure.value) <= 1e-4 * max(1.0, abs(figure.value))
    return figure.items if alike else {}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _spread(values: Sequence[float]) -> float | None:
    """Standard deviation between seeds."""
    if len(values) < 2:
        return None
    mean = _mean(values)
    return (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
