"""The report as one HTML page that needs nothing else: no network, no server, no other file.

All text is escaped by the template; control characters are made visible, and a content policy lets no script run
but the page's own. Knows what was measured and drawn; computes no figure.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import yaml
from markupsafe import Markup

from report import claims, first, printed, render, samples, trail
from report.figures import CHARTS
from report.measured import Estimate, Measured
from report.svg import inline
from report.tables import Row, Table, header, mute
from sso.errors import without_passwords

HERE = Path(__file__).parent
SECTIONS = {
    "claims": "What holds",
    "health": "Health",
    "headline": "Headline",
    "charts": "Charts",
    "tables": "Tables",
    "comparisons": "Comparisons",
    "read": "Samples",
    "arms": "Logs and records",
    "assumed": "Assumed",
    "provenance": "Provenance",
}
"""By id; those without anything in them are left out."""

CONTROLS = {c: 0x2400 + c for c in range(32) if chr(c) not in "\n\t"} | {0x7F: 0x2421}
CONTROLS |= dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)


def visible(value: Any) -> Any:
    """Text with control characters, ANSI's escape and direction marks among them, made visible."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return value.translate(CONTROLS).encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True)
class Cell:
    """A figure on the page: its text, what it is sorted by, and where it comes from."""

    text: str
    value: float | None = None
    interval: str = ""
    spread: str = ""
    n: int | None = None
    test: str = ""
    sources: tuple[tuple[str, str], ...] = ()
    """(seed, address) pairs."""
    printed: str = ""
    """The paper's figure."""
    best: bool = False
    """Whether it is the best of its column."""


def figure(estimate: Estimate | None, digits: int, sources: Sequence[tuple[str, str]] = (), paper: str = "") -> Cell:
    """A cell of an estimate, beside what the ``paper`` prints."""
    if estimate is None:
        return Cell(render.NOTHING, printed=paper)
    low, high = (render.number(end, digits) for end in (estimate.low, estimate.high))
    return Cell(
        text=render.number(estimate.mean, digits) + (render.MARK if estimate.raw else ""),
        value=estimate.mean,
        interval=f"[{low}, {high}]" if low else "",
        spread=f"±{render.number(estimate.spread, digits)}" if estimate.spread is not None else "",
        n=estimate.n,
        test=estimate.test,
        sources=tuple(sources),
        printed=paper,
    )


def items(cells: Iterable[Cell]) -> str:
    """How many items a seed the figures of a column are of: `n 200`, or `n 716 to 765`."""
    known = sorted({cell.n for cell in cells if cell.n})
    return f"n {known[0]:,}" + (f" to {known[-1]:,}" if len(known) > 1 else "") if known else ""


def sources(measured: Measured, backbone: str, arm: str, iteration: int, metric: str) -> list[tuple[str, str]]:
    """The files that a figure is from, by seed, as addresses from the report's folder."""
    found = measured.figures([backbone], arm, iteration, metric)
    return [(str(seed), "../" + quote(row[0].source)) for seed, row in found.items()]


def _best(cells: Sequence[Cell], better: str) -> list[Cell]:
    """The cells of a column, the best one marked where there are several figures, not all equal; ``better``: larger,
    smaller or none."""
    values = [cell.value for cell in cells if cell.value is not None]
    if better == "none" or len(set(values)) < 2:
        return list(cells)
    top = min(values) if better == "smaller" else max(values)
    return [replace(cell, best=cell.value == top) for cell in cells]


def _column(measured: Measured, rows: Sequence[Row], metric: str) -> list[Cell]:
    digits = measured.content["metrics"][metric]["digits"]
    cells = []
    for row in rows:
        where = sources(measured, row.backbone, row.arm, row.iteration, metric)
        text = render.printed(row, metric, digits) if metric in row.printed else ""
        cell = figure(row.cells[metric], digits, where, text)
        pairs = row.cells.get("nll_chosen") if metric == "equal_pairs" else None
        if pairs and pairs.n and cell.value is not None:
            cell = replace(cell, test="", interval=f"{100 * cell.value / (pairs.n + cell.value):.1f}% of pairs")
        cells.append(cell)
    return _best(cells, measured.content["better"].get(metric, "larger"))


def _apart(measured: Measured, rows: Sequence[Row], metrics: Sequence[str]) -> dict[str, Any] | None:
    """The row of SSO's differences to PBAA, each after its last iteration in the table."""
    last = {str(row.method).partition("/")[0]: row for row in rows}
    a, b = last.get("sso"), last.get("pbaa")
    if a is None or b is None or a.backbone != b.backbone:
        return None
    sides = (a.arm, a.iteration), (b.arm, b.iteration)
    found = {metric: measured.difference(a.backbone, *sides, metric) for metric in metrics}
    cells = [figure(e, measured.content["metrics"][metric]["digits"]) for metric, e in found.items()]
    return {"label": f"({a.label}) - ({b.label})", "cells": [replace(c, text=render.signed(c.text)) for c in cells]}


def _table(measured: Measured, table: Table) -> dict[str, Any]:
    """A table of the paper for the template: one part a backbone, ours and the paper's figure in one cell.

    The column that decides, the win rate, stands first: a narrow screen shows it without scrolling.
    """
    parts = []
    for backbone, rows in table.rows.items():
        metrics = list(dict.fromkeys(metric for metric, _ in render.columns(table, backbone)))
        metrics.sort(key=lambda metric: metric != measured.measure("alpaca_eval2_wr"))
        columns = [_column(measured, rows, metric) for metric in metrics]
        names = [render.heading(measured, metric, (row.cells[metric] for row in rows)) for metric in metrics]
        parts.append(
            {
                "backbone": backbone,
                "paper": table.paper_backbone[backbone] if any(row.printed for row in rows) else None,
                "head": [(name, items(column)) for name, column in zip(names, columns, strict=True)],
                "rows": [
                    {"label": row.label, "cells": cells}
                    for row, cells in zip(rows, zip(*columns, strict=True), strict=True)
                ]
                if columns
                else [],
                "tests": sorted({cell.test for column in columns for cell in column if cell.interval and cell.test}),
                "apart": _apart(measured, rows, metrics),
                "notes": render.notes(measured, table, backbone, counts=False),
            }
        )
    return {
        "name": table.name,
        "title": table.spec["title"],
        "parts": parts,
        "closing": render.closing(measured, table),
    }


def _headline(measured: Measured) -> list[dict[str, Any]]:
    """Base, PBAA and SSO on each backbone, their difference, and the paper's difference."""
    found = []
    for spec in measured.content["headline"]:
        arms = [arm for name in spec["arms"] if (arm := measured.arm(name, spec["version"]))]
        if len(arms) < len(spec["arms"]):
            continue
        name = measured.measure(spec["metric"])
        digits = measured.content["metrics"][name]["digits"]
        at = [(arm, measured.iterations(arm)[-1]) for arm in arms]
        rows: list[dict[str, Any]] = []
        shown = []
        for scope in measured.scopes:
            is_backbone = scope in measured.experiment.backbones
            difference = measured.difference(scope, at[-1], at[-2], name)
            if difference is None:
                continue
            where = [sources(measured, scope, *side, name) if is_backbone else [] for side in at]
            cells = [
                figure(measured.estimate(scope, *side, name), digits, own) for side, own in zip(at, where, strict=True)
            ]
            sides = {"version": spec["version"], "a": spec["arms"][-1], "b": spec["arms"][-2]}
            paper = printed.difference(measured, sides, name, scope) if is_backbone else None
            same = paper if paper and paper.metric == name else None
            cells.append(figure(difference, digits, paper=same.text if same else ""))
            shown.append((difference, same))
            rows.append({"label": scope + (f" (paper: {same.backbone})" if same else ""), "cells": cells})
        if rows:
            names = [measured.label(*side) for side in at]
            estimates = [difference for difference, _ in shown]
            notes = render.raw_note(estimates)
            notes += render.doubt_note(paper.doubt for _, paper in shown if paper and paper.doubt)
            about = {"heading": render.heading(measured, name, estimates), "notes": notes}
            columns = [items(row["cells"][place] for row in rows) for place in range(len(at) + 1)]
            head = list(zip([*names, f"({names[-1]}) - ({names[-2]})"], columns, strict=True))
            found.append({"title": spec["title"], **about, "head": head, "rows": rows})
    return found


def _comparisons(measured: Measured, found: Sequence[claims.ArmDifference]) -> dict[str, Any]:
    """Differences for the template, a row for two arms and a metric; empty where there is none."""
    rows = []
    for (a, b, metric), by in claims.grouped(found).items():
        digits = measured.content["metrics"][metric]["digits"] + 1
        cells = [figure(by.get(scope), digits) for scope in measured.scopes]
        rows.append(
            {
                "label": f"({a}) - ({b})",
                "heading": render.heading(measured, metric, by.values()),
                "cells": [replace(cell, text=render.signed(cell.text)) for cell in cells],
                "n": items(cells),
            }
        )
    if not rows:
        return {}
    tests = list(dict.fromkeys(row.difference.test for row in found))
    return {"rows": rows, "notes": render.raw_note(row.difference for row in found), "tests": tests}


def html(
    measured: Measured,
    made: dict[str, Table],
    claimed: Sequence[claims.ClaimRow],
    compared: Sequence[claims.ArmDifference],
    figures: dict[str, str],
    read: samples.Samples,
    provenance: dict[str, Any],
    trails: Sequence[dict[str, Any]],
) -> str:
    """The page; ``figures`` are SVG texts by the names of CHARTS, ``trails`` what `trail.trail` found."""
    script = (HERE / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=visible,
    )
    experiment = measured.experiment
    uri = without_passwords(experiment.tracking_uri or f"sqlite:///results/{experiment.experiment}/mlflow.db")
    settings = yaml.safe_dump(experiment.model_dump(exclude_defaults=True), sort_keys=False, allow_unicode=True)
    cut = samples.cut(read)
    empty = [table for table in made.values() if table.applies and not any(table.rows.values())]
    about: dict[str, Any] = {
        "health": trail.health(measured.collected.records),
        "headline": _headline(measured),
        "charts": [
            (name, CHARTS[name].title, inline(svg, f"c{i}", CHARTS[name].title))
            for i, (name, svg) in enumerate(figures.items())
        ],
        "comparisons": _comparisons(measured, compared),
        "read": read.answers or read.pairs or read.triples,
        "arms": trails,
        "assumed": experiment.assumed,
    }
    return environment.get_template("report.html.jinja").render(
        title=experiment.title or experiment.experiment,
        tiny=all(backbone.architecture for backbone in experiment.backbones.values()),
        experiment=experiment,
        header=header(measured),
        scopes=measured.scopes,
        paper=first.PAPER,
        badges=first.badges(measured),
        strip=first.strip(measured, claimed),
        claims=first.claims(measured, claimed),
        sections=[(name, title) for name, title in SECTIONS.items() if about.get(name, True)],
        glossary=first.GLOSSARY,
        trails=trails,
        uri=uri,
        verdicts=claims.VERDICTS,
        tables=[_table(measured, table) for table in made.values() if any(table.rows.values())],
        left_out={
            "no arms, backbones or benchmarks for them here": [t.spec["title"] for t in made.values() if not t.applies],
            "no results yet": [t.spec["title"] for t in empty if not mute(measured, t.spec)],
            "no verdict of the judge could be read": [t.spec["title"] for t in empty if mute(measured, t.spec)],
        },
        **{name: value for name, value in about.items() if name not in ("read", "arms", "assumed")},
        legend=render.LEGEND,
        read=read,
        cut=cut,
        provenance=provenance,
        settings=without_passwords(settings),
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        digest=digest,
    )
