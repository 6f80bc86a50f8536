"""Every figure that an experiment has so far, as one long table, and the items behind them.

Walks the jobs and reads what judges and scorers wrote. A file that is not there yet is passed over; one that
is there but broken is an InputError. Knows the result schemas, nothing of tables or figures.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from eval.benchmarks.mt_bench import dialogues
from eval.benchmarks.record import Items
from eval.items import answer_items, read_json
from sso.config import Experiment
from sso.jobs.grid import Jobs
from sso.records import iter_json_lines

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["version", "backbone", "arm", "method", "seed", "iteration", "metric"]
COLUMNS += ["value", "stderr", "n", "measure", "source"]


class Key(NamedTuple):
    """One figure of one run; ``iteration`` is 0 for arms that have none."""

    backbone: str
    seed: int
    arm: str
    iteration: int
    metric: str


@dataclass
class Figure:
    """A figure as its file states it, and the items that it is the mean of, where they were kept."""

    value: float
    stderr: float | None
    n: int | None
    source: str
    items: Items | None = None
    measure: str = ""
    """For a length-controlled win rate: the fit that gave it, or why it is the raw rate instead. Else empty."""


@dataclass
class Collected:
    """All figures of an experiment, and its jobs' records."""

    experiment: Experiment
    figures: dict[Key, Figure] = field(default_factory=dict)
    iterations: dict[str, list[int]] = field(default_factory=dict)
    """Arm -> its iterations, [0] for an arm without."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """The *.run.json files (times, versions, commit), each with its ``path``."""
    categories: dict[Key, dict[str, list[float]]] = field(default_factory=dict)
    """Items' scores by MT-Bench's category or, where it has less than three (micro), by the family of the pairwise
    queries."""
    unread: set[Key] = field(default_factory=set)
    """Figures that are none because not one of the judge's verdicts on them could be read."""
    parameters: dict[str, int] = field(default_factory=dict)
    """Parameter count of each backbone's starting model, where it lies under the results."""

    def version(self, name: str, of: str) -> str:
        """The paper's version of an arm or a reward model."""
        return (self.experiment.arms if of == "arms" else self.experiment.rewards)[name].version

    def frame(self) -> "pd.DataFrame":
        """One row a figure, columns COLUMNS, in the jobs' order."""
        import pandas as pd

        arms, rewards = self.experiment.arms, self.experiment.rewards
        rows = []
        for key, figure in self.figures.items():
            about = rewards[key.arm] if key.metric.startswith("rewardbench") else arms[key.arm]
            rows.append(
                (
                    self.version(key.arm, "rewards" if key.metric.startswith("rewardbench") else "arms"),
                    key.backbone,
                    key.arm,
                    about.method,
                    key.seed,
                    key.iteration or None,
                    key.metric,
                    figure.value,
                    figure.stderr,
                    figure.n,
                    figure.measure,
                    figure.source,
                )
            )
        frame = pd.DataFrame(rows, columns=COLUMNS)
        return frame.astype({"iteration": "Int64", "n": "Int64"})


def collect(jobs: Jobs, results: Path, length_controlled: bool = True) -> Collected:
    """All figures under ``results``, the folder of this experiment; length-controlled ones take seconds to fit."""
    found = Collected(jobs.experiment)

    def place(path: str) -> Path:
        return results / Path(path).relative_to(jobs.root)

    for job in jobs.of("judge", "data_quality", "rewardbench"):
        path, name = place(job.output), str(job.arm or job.reward)
        at = (str(job.backbone), int(job.wildcards["seed"]), name, job.iteration)
        if job.rule == "judge":
            known = found.iterations.setdefault(name, [])
            known += [job.iteration] if job.iteration not in known else []
            figures = _judged(path, place(str(job.inputs["answers"])))
            found.unread |= {Key(*at, metric) for metric in _unread(path / "scores.json")}
            for metric, means in _categories(path, place(jobs.data_files.get("eval", jobs.root))):
                found.categories[Key(*at, metric)] = means
        elif job.rule == "data_quality":
            figures = _data_quality(path, place(str(job.inputs["reference"])), place(str(job.inputs["pairs"])))
            found.unread |= {Key(*at, metric) for metric in _unread(path)}
        else:
            figures = _rewardbench(path)
        for metric, figure in figures:
            figure.source = Path(figure.source).relative_to(results).as_posix()
            found.figures[Key(*at, metric)] = figure
    if length_controlled:
        hard = jobs.data_files.get("difficulty")
        _length_controlled(found, results, place(hard) if hard else None)
    for job in [*jobs.of("sft"), *jobs.of("convert")]:
        if str(job.backbone) not in found.parameters and (count := parameter_count(place(job.output))):
            found.parameters[str(job.backbone)] = count
    records = sorted(path for path in results.rglob("*.run.json") if "mlartifacts" not in path.parts)
    found.records = [{**read_json(path), "path": path.relative_to(results).as_posix()} for path in records]
    return found


def _length_controlled(found: Collected, results: Path, difficulty: Path | None) -> None:
    """Length-controlled win rates of all models, in one go: its package is slow to import, so no judge job does it.

    Of the rows that judges left, by the experiment's difficulties, whatever a scores.json says.
    """
    wanted = {key: figure for key, figure in found.figures.items() if key.metric == "alpaca_eval2_wr"}
    rows = {key: results / Path(figure.source).with_name("pairwise.jsonl") for key, figure in wanted.items()}
    annotations = {key: [row for _, row in iter_json_lines(path)] for key, path in rows.items() if path.is_file()}
    if not annotations:
        return
    from eval.length_controlled import length_controlled, read_table

    hard = found.experiment.evaluation.difficulty and difficulty
    for key, judged in annotations.items():
        table = read_table(hard, [row["reference_length"] for row in judged]) if hard else None
        rate = length_controlled(judged, table)
        items = {judged[i]["id"]: score for i, score in rate.items.items()}
        figure = _figure(rate.as_dict(), rows[key].relative_to(results), items)
        if figure:
            found.figures[key._replace(metric="alpaca_eval2_lc")] = figure


def _figure(entry: Any, source: Path, items: Items | None = None) -> Figure | None:
    """A schema entry {"value", "stderr", "n"} or a bare number; None where it is null, NaN or no figure."""
    entry = entry if isinstance(entry, Mapping) else {"value": entry}
    value, stderr = entry.get("value"), entry.get("stderr")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    n = len(items) if items else entry.get("n")
    known = isinstance(stderr, int | float) and math.isfinite(stderr)
    measure = ": ".join(filter(None, (entry.get("model", ""), entry.get("reason", ""))))
    return Figure(float(value), float(stderr) if known else None, n, str(source), items, measure)


def _unread(path: Path) -> list[str]:
    """The metrics of a file of scores that have no value, since no verdict on them could be read."""
    entries = read_json(path).items() if path.is_file() else ()
    known = ((metric, entry) for metric, entry in entries if isinstance(entry, Mapping))
    return [metric for metric, entry in known if entry.get("unreadable") and entry.get("value", 0) is None]


def _judged(folder: Path, answers: Path) -> Iterator[tuple[str, Figure]]:
    """scores.json of a judged folder, with items from pairwise.jsonl, mt_bench.jsonl and lm_eval.json."""
    path = folder / "scores.json"
    if not path.is_file():
        return
    items = answer_items(folder, answers)
    for metric, entry in read_json(path).items():
        figure = _figure(entry, path, items.get(metric))
        if figure:
            yield metric, figure


def _categories(folder: Path, queries: Path) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """The metric that is split by category, and its items' scores; nothing where there are less than three."""
    scores, graded, compared = (folder / name for name in ("scores.json", "mt_bench.jsonl", "pairwise.jsonl"))
    if not scores.is_file():
        return
    graded_by: dict[str, list[dict[str, Any]]] = {}
    known = "mt_bench" in read_json(scores) and graded.is_file()  # a reward model's grades have another scale
    for _, row in iter_json_lines(graded) if known else ():
        if row.get("family"):
            graded_by.setdefault(row["family"], []).append(row)
    means = {name: [x for x in dialogues(rows).values() if x is not None] for name, rows in graded_by.items()}
    means = {name: own for name, own in means.items() if own}
    if len(means) > 2:
        yield "mt_bench", means
    elif queries.is_file() and compared.is_file():
        family = {str(row.get("id")): row.get("family", "") for _, row in iter_json_lines(queries)}
        scored: dict[str, list[float]] = {}
        for _, row in iter_json_lines(compared):
            if row.get("score") is not None and family.get(row["id"]):
                scored.setdefault(family[row["id"]], []).append(100 * row["score"])
        if len(scored) > 2:
            yield "quality", dict(sorted(scored.items()))


def _data_quality(path: Path, reference: Path, pairs: Path) -> Iterator[tuple[str, Figure]]:
    if not path.is_file():
        return
    values = read_json(path)
    items = _pair_items(reference) | _lengths(pairs)
    judged = path.with_name(f"{path.stem}_pairs.jsonl")
    if judged.is_file():
        hits = {row["id"]: row["hit"] for _, row in iter_json_lines(judged)}
        items["accuracy"] = {name: hit for name, hit in hits.items() if hit is not None}
        items["ties"] = {name: float(hit == 0.5) for name, hit in items["accuracy"].items()}
    if (accuracy := values.get("accuracy")) and accuracy["n"]:
        values["ties"] = accuracy["ties"] / accuracy["n"]
    chosen, rejected = (_figure(values.get(key), path) for key in ("nll_chosen", "nll_rejected"))
    if chosen and rejected:
        values["nll"] = {"value": (chosen.value + rejected.value) / 2}
    for metric, entry in values.items():
        figure = _figure(entry, path, items.get(metric))
        if figure:
            yield metric, figure


def _pair_items(reference: Path) -> dict[str, Items]:
    """Per pair: mean probability and NLL, from the starting model's scores of the pairs."""
    if not reference.is_file():
        return {}
    import numpy as np
    from safetensors import safe_open

    with safe_open(reference, framework="numpy") as file:
        about = file.metadata()
        average = file.get_tensor("logp").astype(np.float64) / np.maximum(file.get_tensor("tokens"), 1)
    ids, nodes = json.loads(about["ids"]), [tuple(node) for node in json.loads(about["nodes"])]
    try:
        chosen, rejected = (average[:, nodes.index(("x", y))] for y in ("y+", "y-"))
    except ValueError:
        return {}
    columns = {
        "mean_probability": (np.exp(chosen) + np.exp(rejected)) / 2,
        "nll": -(chosen + rejected) / 2,
        "nll_chosen": -chosen,
        "nll_rejected": -rejected,
    }
    return {metric: dict(zip(ids, map(float, values), strict=True)) for metric, values in columns.items()}


def _lengths(pairs: Path) -> dict[str, Items]:
    """Per pair: the length of both sides in characters, of those that training takes."""
    found: dict[str, Items] = {"length_chosen": {}, "length_rejected": {}}
    for number, row in iter_json_lines(pairs) if pairs.is_file() else ():
        chosen, rejected = (row[side][-1]["content"] for side in ("chosen", "rejected"))
        if chosen.strip() and rejected.strip() and chosen != rejected:
            name = str(row.get("id", number - 1))
            found["length_chosen"][name], found["length_rejected"][name] = float(len(chosen)), float(len(rejected))
    return found


def _rewardbench(path: Path) -> Iterator[tuple[str, Figure]]:
    """Sections and average; the standard error is binomial, from each subset's accuracy and size."""
    if not path.is_file():
        return
    from rewardbench.score import SECTIONS, weights_for

    result = read_json(path)
    subsets = result["subsets"]
    weights = weights_for(subsets)
    variances: list[float] = []
    for section, metric in SECTIONS.items():
        rows = [(weights[name][1], row) for name, row in subsets.items() if weights[name][0] == section]
        total = sum(weight for weight, _ in rows)
        shares = [(weight / total, row["accuracy"] / 100, row["n"]) for weight, row in rows]
        variances.append(sum(share**2 * p * (1 - p) / n for share, p, n in shares))
        entry = {
            "value": result["sections"][metric],
            "stderr": 100 * math.sqrt(variances[-1]),
            "n": sum(row["n"] for _, row in rows),
        }
        figure = _figure(entry, path)
        if figure:
            yield metric, figure
    entry = {
        "value": result["rewardbench_avg"],
        "stderr": 100 * math.sqrt(sum(variances)) / len(SECTIONS),
        "n": sum(row["n"] for row in subsets.values()),
    }
    figure = _figure(entry, path)
    if figure:
        yield "rewardbench_avg", figure


def parameter_count(folder: Path) -> int | None:
    """Parameters of a safetensors checkpoint, read from its headers; None where there is none."""
    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        count += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return count or None
