"""Tables, comparisons and claims from collected figures, in the paper's layout, as Markdown and CSV.

What stands in them is data (tables.yaml). A cell is the mean over seeds with a 95% bootstrap interval over
items (and seeds) and the spread between seeds; the paper's figure has a column of its own. What was not
measured is left out and named, never filled in.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from sso.config import ROOT, Experiment
from sso.report.collect import Collected, Figure, Key

SPECS = Path(__file__).with_name("tables.yaml")
PRINTED = ROOT / "results" / "paper" / "results.csv"
NOTHING = "-"
"""An empty cell."""
POOLED = "all"
"""The backbone name of a figure over all backbones."""


def specs() -> dict[str, Any]:
    """tables.yaml."""
    return yaml.safe_load(SPECS.read_text(encoding="utf-8"))


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


@dataclass(frozen=True)
class Comparison:
    """a - b of one metric on one backbone (or all)."""

    backbone: str
    a: str
    b: str
    metric: str
    difference: Estimate


class Measured:
    """Looks figures up by arm and combines them over seeds; the arithmetic of every table and chart."""

    def __init__(self, collected: Collected, content: dict[str, Any] | None = None):
        self.collected = collected
        self.experiment: Experiment = collected.experiment
        self.content = content or specs()
        self._known: dict[tuple[Any, ...], Estimate | None] = {}

    @property
    def scopes(self) -> list[str]:
        """The backbones, and all of them pooled where there are several."""
        names = list(self.experiment.backbones)
        return [*names, POOLED] if len(names) > 1 else names

    @cached_property
    def printed(self) -> dict[tuple[str, ...], float]:
        """The paper's figures by (version, table, backbone, method, iteration, metric)."""
        with PRINTED.open(encoding="utf-8", newline="") as file:
            keys = ("version", "table", "backbone", "method", "iteration", "metric")
            return {tuple(row[key] for key in keys): float(row["value"]) for row in csv.DictReader(file)}

    def arm(self, name: str, version: str, of: str = "arms") -> str | None:
        """The arm (or reward model) that a row names: by the paper's method, else by its own name."""
        table = getattr(self.experiment, of)
        for key, row in table.items():
            if row.method == name and (of == "rewards" or row.version == version or row.method == "base"):
                return key
        return name if name in table and (of == "rewards" or table[name].version == version) else None

    def others(self, version: str, of: str = "arms") -> list[str]:
        """Arms of a version that the paper has no name for."""
        table = getattr(self.experiment, of)
        return [key for key, row in table.items() if row.method is None and getattr(row, "version", version) == version]

    def label(self, arm: str, iteration: int = 0, of: str = "arms") -> str:
        """An arm as the tables call it."""
        label = getattr(self.experiment, of)[arm].label
        return f"{label}, iteration {iteration}" if iteration else label

    def iterations(self, arm: str) -> list[int]:
        """The iterations of an arm, [0] for an arm without."""
        return self.collected.iterations.get(arm, [0])

    def figures(self, backbone: str, arm: str, iteration: int, metric: str) -> dict[int, list[Figure]]:
        """seed -> its figure, or its figures on every backbone where they are pooled; only seeds that have all."""
        names = list(self.experiment.backbones) if backbone == POOLED else [backbone]
        found = {}
        for seed in self.experiment.seeds:
            row = [self.collected.figures.get(Key(name, seed, arm, iteration, metric)) for name in names]
            if all(row):
                found[seed] = row
        return found

    def estimate(self, backbone: str, arm: str, iteration: int, metric: str) -> Estimate | None:
        """The mean over seeds; None where nothing was measured."""
        key = (backbone, arm, iteration, metric)
        if key not in self._known:
            figures = self.figures(*key)
            self._known[key] = _combine([[(figure, None) for figure in row] for row in figures.values()])
        return self._known[key]

    def difference(self, backbone: str, a: tuple[str, int], b: tuple[str, int], metric: str) -> Estimate | None:
        """a - b over the seeds that have both; paired by item where items were kept."""
        key = (backbone, a, b, metric)
        if key not in self._known:
            left, right = (self.figures(backbone, *side, metric) for side in (a, b))
            self._known[key] = _combine([list(zip(left[s], right[s], strict=True)) for s in left if s in right])
        return self._known[key]


Cell = tuple[Figure, Figure | None]
"""A figure, and the one to subtract from it."""


def _combine(seeds: Sequence[Sequence[Cell]]) -> Estimate | None:
    """The mean over seeds of the mean over backbones, with its interval.

    Backbones are fixed, not drawn: where several are pooled, an item's score is its mean over them.
    """
    if not seeds:
        return None
    values = [_mean([x.value - (y.value if y else 0.0) for x, y in row]) for row in seeds]
    spread, paired = _spread(values), seeds[0][0][1] is not None
    samples = [_items(row) for row in seeds]
    if all(samples):
        from eval.statistics import mean_interval

        found = mean_interval([list(items.values()) for items in samples])
        test = ("paired " if paired else "") + "bootstrap over " + ("seeds and items" if len(seeds) > 1 else "items")
        return Estimate(found.mean, found.low, found.high, len(seeds), len(samples[0]), spread, test)
    mean, n = _mean(values), seeds[0][0][0].n
    if len(values) > 2:
        from scipy.stats import t

        half = float(t.ppf(0.975, len(values) - 1)) * spread / len(values) ** 0.5
        return Estimate(mean, mean - half, mean + half, len(seeds), n, spread, "t over seeds")
    errors = [figure.stderr for row in seeds for cell in row for figure in cell if figure]
    if any(error is None for error in errors):
        return Estimate(mean, None, None, len(seeds), n, spread, "no interval")
    half = 1.959964 * sum(error**2 for error in errors) ** 0.5 / (len(seeds) * len(seeds[0]))
    test = ("unpaired, " if paired else "") + "normal"
    return Estimate(mean, mean - half, mean + half, len(seeds), n, spread, test)


def _items(row: Sequence[Cell]) -> dict[str, float]:
    """Item -> score (or difference), averaged over a seed's cells; empty where a figure is not its items' mean."""
    tables = []
    for x, y in row:
        if not _describes(x) or (y is not None and not _describes(y)):
            return {}
        tables.append({k: v - y.items[k] for k, v in x.items.items() if k in y.items} if y else x.items)
    common = sorted(set(tables[0]).intersection(*tables[1:]))
    return {name: _mean([table[name] for table in tables]) for name in common}


def _describes(figure: Figure) -> bool:
    """Whether a figure is the mean of its items: else they are of another kind and its own error counts."""
    if not figure.items:
        return False
    return abs(_mean(list(figure.items.values())) - figure.value) <= 1e-4 * max(1.0, abs(figure.value))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _spread(values: Sequence[float]) -> float | None:
    """Standard deviation between seeds."""
    if len(values) < 2:
        return None
    mean = _mean(values)
    return (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5


@dataclass(frozen=True)
class Row:
    """One line of a table on one backbone."""

    arm: str
    label: str
    method: str | None
    iteration: int
    cells: dict[str, Estimate | None]
    printed: dict[str, float]


@dataclass
class Table:
    """A table of the paper with our figures: rows by backbone, and the names of rows that have none."""

    name: str
    spec: dict[str, Any]
    rows: dict[str, list[Row]]
    paper_backbone: dict[str, str | None]
    absent: list[str]
    pending: dict[str, list[str]]


def table(measured: Measured, name: str) -> Table:
    """One table of tables.yaml."""
    spec = measured.content["tables"][name]
    of, version = spec.get("of", "arms"), spec["version"]
    config = getattr(measured.experiment, of)
    arms: list[str] = []
    absent: list[str] = []
    for wanted in spec["rows"]:
        found = measured.others(version, of) if wanted == "*" else [measured.arm(wanted, version, of)]
        arms += [arm for arm in found if arm is not None]
        absent += [wanted for arm in found if arm is None]
    rows: dict[str, list[Row]] = {}
    pending: dict[str, list[str]] = {}
    papers: dict[str, str | None] = {}
    for backbone, about in measured.experiment.backbones.items():
        paper = spec.get("paper_backbone") or about.paper.get(version)
        papers[backbone] = paper if spec.get("paper_table") else None
        rows[backbone], pending[backbone] = [], []
        for arm in arms:
            method = config[arm].method
            if of == "arms" and config[arm].backbones is not None and backbone not in config[arm].backbones:
                continue
            for t in measured.iterations(arm) if of == "arms" else [0]:
                cells = {metric: measured.estimate(backbone, arm, t, metric) for metric in spec["columns"]}
                if not any(cells.values()):
                    if not _produces_nothing(config[arm], spec):
                        pending[backbone].append(measured.label(arm, t, of))
                    continue
                printed = {
                    metric: measured.printed[key]
                    for metric in spec["columns"]
                    if (key := (version, spec.get("paper_table"), paper, method, str(t or ""), metric))
                    in measured.printed
                }
                rows[backbone].append(Row(arm, measured.label(arm, t, of), method, t, cells, printed))
    return Table(name, spec, rows, papers, absent, pending)


def _produces_nothing(arm: Any, spec: dict[str, Any]) -> bool:
    """Arms without pairs of their own have no place in a table about pairs."""
    return "accuracy" in spec["columns"] and getattr(arm, "data", "") in ("none", "triples")


def header(measured: Measured) -> str:
    """What every table starts with: experiment, world, judge, scale, seeds."""
    experiment = measured.experiment
    world = experiment.world
    parts = [f"Experiment `{experiment.experiment}`" + (f" ({experiment.title})" if experiment.title else "")]
    parts.append(f"world: micro, {world.name}, seed {world.seed}" if world else "data: " + str(experiment.data.queries))
    judge = experiment.evaluation.judge
    parts.append("judge: oracle" if judge.kind == "oracle" else f"judge: {judge.model}")
    scales = {name: scale(measured, name) for name in experiment.backbones}
    parts.append("models: " + "; ".join(f"{name}: {text}" for name, text in scales.items()))
    parts.append("seeds: " + ", ".join(map(str, experiment.seeds)))
    return ". ".join(parts) + "."


def scale(measured: Measured, backbone: str) -> str:
    """How large a backbone is, in words that keep a toy from being taken for the real thing."""
    about = measured.experiment.backbones[backbone]
    if about.path:
        return f"checkpoint {Path(about.path).name}"
    count = measured.collected.parameters.get(backbone)
    size = (
        f"{count / 1e6:.2f}M-parameter model" if count else f"model of width {about.hidden_size}, {about.layers} layers"
    )
    return f"micro: {size} trained from scratch"


def number(value: float | None, digits: int) -> str:
    """A figure as text, without a minus before zero."""
    if value is None:
        return ""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def cell(estimate: Estimate | None, digits: int, seeds: int) -> str:
    """`mean [low, high] ±spread`, with the number of seeds where some are missing."""
    if estimate is None:
        return NOTHING
    text = number(estimate.mean, digits)
    if estimate.low is not None:
        text += f" [{number(estimate.low, digits)}, {number(estimate.high, digits)}]"
    if estimate.spread is not None:
        text += f" ±{number(estimate.spread, digits)}"
    return text if estimate.seeds == seeds else f"{text} ({estimate.seeds} of {seeds} seeds)"


LEGEND = (
    "A cell: mean over seeds [95% interval] ±standard deviation between seeds (with more than one). Intervals: "
    "percentile bootstrap over items, and over seeds where there are several; where no items are kept, Student's t "
    "over three or more seeds, else the normal approximation. -: not measured."
)


def markdown_rows(rows: Sequence[Sequence[str]]) -> str:
    """Lines of cells as a Markdown table; the first is the head."""
    escaped = [[text.replace("|", "\\|") for text in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def markdown(measured: Measured, made: Table) -> str:
    """A table with its header, one part a backbone."""
    metrics, seeds = measured.content["metrics"], len(measured.experiment.seeds)
    parts = [f"## {made.spec['title']}\n", header(measured) + "\n"]
    for backbone, rows in made.rows.items():
        parts.append(f"### {backbone}\n")
        if not rows:
            parts.append("No results of this table yet.\n")
            continue
        ours = [m for m in made.spec["columns"] if any(row.cells[m] for row in rows)]
        papers = [m for m in made.spec["columns"] if any(m in row.printed for row in rows)]
        columns = [
            (m, kind) for m in made.spec["columns"] for kind, has in (("ours", ours), ("paper", papers)) if m in has
        ]
        head = [""]
        for metric, kind in columns:
            name = f"{metrics[metric]['label']} ({metrics[metric]['unit']})"
            head.append(
                name if kind == "ours" else f"*{metrics[metric]['label']}: paper, {made.paper_backbone[backbone]}*"
            )
        lines = [head]
        for row in rows:
            line = [row.label]
            for metric, kind in columns:
                digits = metrics[metric]["digits"]
                if kind == "ours":
                    line.append(cell(row.cells[metric], digits, seeds))
                else:
                    line.append(number(row.printed.get(metric), digits) or NOTHING)
            lines.append(line)
        parts.append(markdown_rows(lines))
        counts = {metrics[m]["label"]: row.cells[m].n for m in ours for row in rows if row.cells[m] and row.cells[m].n}
        if counts:
            parts.append("Items a seed: " + ", ".join(f"{label} {n}" for label, n in counts.items()) + ".\n")
        missing = [metrics[m]["label"] for m in made.spec["columns"] if m not in ours]
        if missing:
            parts.append(f"Not measured here: {', '.join(missing)}.\n")
        if made.spec.get("paper_table") and not papers:
            parts.append("The paper prints no figures of this table for a backbone that stands beside this one.\n")
        if made.pending[backbone]:
            parts.append(f"Left out, no results yet: {', '.join(made.pending[backbone])}.\n")
    if made.absent:
        parts.append(f"Left out, no such arm in this experiment: {', '.join(made.absent)}.\n")
    notes = [made.spec.get("note"), made.spec.get("micro_note") if measured.experiment.world else None]
    parts.append(" ".join(filter(None, [*notes, LEGEND])) + "\n")
    return "\n".join(parts)


def table_csv(measured: Measured, made: Table) -> str:
    """The same table, a row per backbone and arm; each metric with interval, spread, seeds, items and the paper's."""
    kinds = ("", "_low", "_high", "_seed_sd", "_seeds", "_n", "_paper")
    head = ["experiment", "backbone", "paper_backbone", "arm", "label", "method", "iteration"]
    lines = [[*head, *(metric + kind for metric in made.spec["columns"] for kind in kinds)]]
    for backbone, rows in made.rows.items():
        for row in rows:
            name = measured.experiment.experiment
            line = [name, backbone, made.paper_backbone[backbone], row.arm, row.label, row.method, row.iteration or ""]
            for metric in made.spec["columns"]:
                e = row.cells[metric]
                own = [e.mean, e.low, e.high, e.spread, e.seeds, e.n] if e else [None] * 6
                line += [*own, row.printed.get(metric)]
            lines.append(line)
    return to_csv(lines)


def to_csv(lines: Sequence[Sequence[Any]]) -> str:
    """CSV text; floats with ten significant digits, None as an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for line in lines:
        writer.writerow(["" if v is None else f"{v:.10g}" if isinstance(v, float) else v for v in line])
    return buffer.getvalue()


def _sides(measured: Measured, spec: dict[str, Any]) -> Iterator[tuple[tuple[str, int], tuple[str, int]]]:
    """The (arm, iteration) pairs that a comparison or claim names and that this experiment has."""
    version = spec.get("version", "v2")

    def side(which: str) -> list[tuple[str, int]]:
        name = spec[which]
        arms = measured.others(version) if name == "*" else [measured.arm(name, version)]
        picked = []
        for arm in filter(None, arms):
            known = measured.iterations(arm)
            wanted = spec.get(f"{which}_iteration")
            picked.append((arm, known[-1] if wanted == "last" else known[0] if wanted == "first" else 0))
        return picked

    for a in side("a"):
        for b in side("b"):
            if a != b:
                yield a, b


def comparisons(measured: Measured) -> list[Comparison]:
    """Paired differences, per backbone and, where there are several, over all."""
    found = []
    for spec in measured.content["comparisons"]:
        for a, b in _sides(measured, spec):
            for metric in spec["metrics"]:
                for scope in measured.scopes:
                    difference = measured.difference(scope, a, b, metric)
                    if difference:
                        found.append(Comparison(scope, measured.label(*a), measured.label(*b), metric, difference))
    return found


def comparisons_markdown(measured: Measured, found: Sequence[Comparison]) -> str:
    """All differences as one table, a column a backbone."""
    metrics, seeds = measured.content["metrics"], len(measured.experiment.seeds)
    rows: dict[tuple[str, str, str], dict[str, Estimate]] = {}
    for row in found:
        rows.setdefault((row.a, row.b, row.metric), {})[row.backbone] = row.difference
    lines = [["a - b", "metric", *measured.scopes, "n", "interval"]]
    for (a, b, metric), by in rows.items():
        name, digits = f"{metrics[metric]['label']} ({metrics[metric]['unit']})", metrics[metric]["digits"] + 1
        one = next(iter(by.values()))
        cells = [cell(by.get(scope), digits, seeds) for scope in measured.scopes]
        lines.append([f"({a}) - ({b})", name, *cells, str(one.n or ""), one.test])
    parts = ["## Comparisons\n", header(measured) + "\n"]
    parts.append(markdown_rows(lines) if found else "No two arms to compare yet.\n")
    parts.append(
        "Positive: a has the larger figure. Paired: the same items in both arms, drawn together. `all`: the mean over "
        "the backbones. n: items of one seed. ±: standard deviation of the difference between seeds.\n"
    )
    return "\n".join(parts)


def comparisons_csv(found: Sequence[Comparison]) -> str:
    """All differences, a row each."""
    head = ["a", "b", "metric", "backbone", "difference", "low", "high", "seed_sd", "cells", "n", "test"]
    rows = [
        [c.a, c.b, c.metric, c.backbone, d.mean, d.low, d.high, d.spread, d.seeds, d.n, d.test]
        for c in found
        for d in [c.difference]
    ]
    return to_csv([head, *rows])


def verdict(difference: Estimate, larger: str, or_equal: bool = False) -> str:
    """Whether the interval of a - b is on the claimed side of zero, on the other, or on both."""
    if difference.low is None:
        return "not tested (no interval)"
    low, high = (difference.low, difference.high) if larger == "a" else (-difference.high, -difference.low)
    if low > 0:
        return "holds"
    if high < 0:
        return "does not hold"
    return "not distinguishable from equal" if or_equal else "not distinguishable"


def claims(measured: Measured) -> list[list[str]]:
    """[claim, backbone, verdict, difference, test] rows: each claim on each backbone and on all."""
    rows = []
    for spec in measured.content["claims"]:
        sides = next(_sides(measured, spec), None)
        metric = measured.content["metrics"][spec["metric"]]
        tested = False
        for scope in measured.scopes if sides else []:
            difference = measured.difference(scope, *sides, spec["metric"])
            if difference:
                tested = True
                names = " - ".join(f"({measured.label(*side)})" for side in sides)
                text = f"{metric['label']}, {names}: {cell(difference, metric['digits'] + 1, difference.seeds)}"
                said = verdict(difference, spec["larger"], spec.get("or_equal", False))
                rows.append([spec["claim"], scope, said, text, difference.test])
        if not tested:
            rows.append([spec["claim"], "", "not tested", "the experiment lacks one of the arms, or its results", ""])
    return rows


def claims_markdown(measured: Measured, rows: Sequence[Sequence[str]]) -> str:
    """The claims as a table, a column a backbone; the difference is that of the last column."""
    by: dict[str, dict[str, Sequence[str]]] = {}
    for row in rows:
        by.setdefault(row[0], {})[row[1]] = row
    lines = [["claim of the paper", *measured.scopes, f"difference ({measured.scopes[-1]})", "test"]]
    for claim, scopes in by.items():
        last = list(scopes.values())[-1]
        said = [
            scopes[scope][2] if scope in scopes else last[2] if "" in scopes else NOTHING for scope in measured.scopes
        ]
        lines.append([claim, *said, last[3], last[4]])
    return "\n".join(
        [
            "## What holds here\n",
            header(measured) + "\n",
            markdown_rows(lines),
            "Holds: the 95% interval of the difference lies on the claimed side of zero. Does not hold: on the other "
            "side. Not distinguishable: it includes zero. No correction for the number of claims. With one seed the "
            "interval tells of the queries only, not of another training run.\n",
        ]
    )
