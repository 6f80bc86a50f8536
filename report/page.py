"""The report as one HTML page that needs nothing else: no network, no server, no other file.

All text is escaped by the template; control characters are made visible, and a content policy lets no script run
but the page's own. Knows what was measured and drawn; computes no figure.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import yaml
from markupsafe import Markup

from report import claims, render, samples
from report.figures import CHARTS
from report.measured import POOLED, Estimate, Measured
from report.svg import inline
from report.tables import Row, Table, header
from sso.errors import without_passwords

HERE = Path(__file__).parent
SIGNS = {
    "holds": ("holds", "✓"),
    "does not hold": ("fails", "✗"),
    "not tested": ("none", "·"),
    "untestable": ("none", "·"),
}
"""Verdict -> class and sign; any other is undecided."""

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


def figure(estimate: Estimate | None, digits: int, sources: Sequence[tuple[str, str]] = (), printed: str = "") -> Cell:
    """A cell of an estimate."""
    if estimate is None:
        return Cell(render.NOTHING, printed=printed)
    low, high = (render.number(end, digits) for end in (estimate.low, estimate.high))
    return Cell(
        text=render.number(estimate.mean, digits) + (render.MARK if estimate.raw else ""),
        value=estimate.mean,
        interval=f"[{low}, {high}]" if low else "",
        spread=f"±{render.number(estimate.spread, digits)}" if estimate.spread is not None else "",
        n=estimate.n,
        test=estimate.test,
        sources=tuple(sources),
        printed=printed,
    )


def sources(measured: Measured, backbone: str, arm: str, iteration: int, metric: str) -> list[tuple[str, str]]:
    """The files that a figure is from, by seed, as addresses from the report's folder."""
    found = measured.figures([backbone], arm, iteration, metric)
    return [(str(seed), "../" + quote(row[0].source)) for seed, row in found.items()]


def _row(measured: Measured, row: Row, metrics: Sequence[str]) -> dict[str, Any]:
    cells = []
    for metric in metrics:
        digits = measured.content["metrics"][metric]["digits"]
        where = sources(measured, row.backbone, row.arm, row.iteration, metric)
        text = render.printed(row, metric, digits) if metric in row.printed else ""
        cells.append(figure(row.cells[metric], digits, where, text))
    return {"label": row.label, "cells": cells}


def _table(measured: Measured, table: Table) -> dict[str, Any]:
    """A table of the paper for the template: one part a backbone, ours and the paper's figure in one cell."""
    parts = []
    for backbone, rows in table.rows.items():
        metrics = list(dict.fromkeys(metric for metric, _ in render.columns(table, backbone)))
        parts.append(
            {
                "backbone": backbone,
                "paper": table.paper_backbone[backbone] if any(row.printed for row in rows) else None,
                "head": [render.heading(measured, metric, (row.cells[metric] for row in rows)) for metric in metrics],
                "rows": [_row(measured, row, metrics) for row in rows],
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
        spec = {**spec, "metric": measured.measure(spec["metric"])}
        metric = measured.content["metrics"][spec["metric"]]
        at = [(arm, measured.iterations(arm)[-1]) for arm in arms]
        rows, shown = [], []
        for scope in measured.scopes:
            cells = []
            for arm, iteration in at:
                is_backbone = scope in measured.experiment.backbones
                where = sources(measured, scope, arm, iteration, spec["metric"]) if is_backbone else []
                cells.append(figure(measured.estimate(scope, arm, iteration, spec["metric"]), metric["digits"], where))
            difference = measured.difference(scope, at[-1], at[-2], spec["metric"])
            if difference is None:
                continue
            paper, printed = _printed_difference(measured, spec, scope)
            cells.append(figure(difference, metric["digits"], printed=printed))
            shown.append(difference)
            rows.append({"label": scope + (f" (paper: {paper})" if paper else ""), "cells": cells})
        if rows:
            names = [measured.label(arm, iteration) for arm, iteration in at]
            about = {"heading": render.heading(measured, spec["metric"], shown), "notes": render.raw_note(shown)}
            head = [*names, f"({names[-1]}) - ({names[-2]})"]
            found.append({"title": spec["title"], **about, "head": head, "rows": rows})
    return found


def _printed_difference(measured: Measured, spec: dict[str, Any], backbone: str) -> tuple[str | None, str]:
    """The paper's backbone beside one of ours, and the last two arms' printed difference on it."""
    about = measured.experiment.backbones.get(backbone)
    paper = about.paper.get(spec["version"]) if about else None
    keys: list[tuple[Any, ...]]
    for table in spec["paper_tables"]:
        keys = [(spec["version"], table, paper, name, spec["paper_iteration"], spec["metric"]) for name in spec["arms"]]
        if keys[-1] in measured.printed and keys[-2] in measured.printed:
            value = measured.printed[keys[-1]] - measured.printed[keys[-2]]
            text = render.number(value, measured.content["metrics"][spec["metric"]]["digits"])
            return paper, text + (render.DOUBT if {*keys[-2:]} & measured.doubts.keys() else "")
    return None, ""


def _claims(rows: Sequence[claims.ClaimRow]) -> list[dict[str, Any]]:
    """Each claim with its verdict over all backbones, and those on each."""
    by_claim: dict[str, list[claims.ClaimRow]] = {}
    for row in rows:
        by_claim.setdefault(row.claim, []).append(row)
    found = []
    for claim, own in by_claim.items():
        last = own[-1]
        each = [
            {"backbone": row.backbone, "said": row.verdict, "sign": _sign(row.verdict)}
            for row in own
            if row.backbone not in (None, POOLED)
        ]
        about = {"claim": claim, "said": last.verdict, "sign": _sign(last.verdict)}
        about |= {"text": last.difference, "test": last.test}
        found.append({**about, "each": each, "pooled": last.backbone == POOLED, "backbone": last.backbone or ""})
    return found


def _sign(said: str) -> tuple[str, str]:
    return next((sign for start, sign in SIGNS.items() if said.startswith(start)), ("open", "≈"))


def _comparisons(measured: Measured, found: Sequence[claims.ArmDifference]) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str, str], dict[str, Cell]] = {}
    for row in found:
        digits = measured.content["metrics"][row.metric]["digits"] + 1
        rows.setdefault((row.a, row.b, row.metric), {})[row.backbone] = figure(row.difference, digits)
    nothing = Cell(render.NOTHING)
    return [
        {
            "label": f"({a}) - ({b})",
            "heading": render.heading(measured, metric, (row.difference for row in found if row.metric == metric)),
            "cells": [cells.get(scope, nothing) for scope in measured.scopes],
            "test": next(iter(cells.values())).test,
        }
        for (a, b, metric), cells in rows.items()
    ]


def html(
    measured: Measured,
    made: dict[str, Table],
    claimed: Sequence[claims.ClaimRow],
    compared: Sequence[claims.ArmDifference],
    figures: dict[str, str],
    read: samples.Samples,
    provenance: dict[str, Any],
) -> str:
    """The page; ``figures`` are SVG texts by the names of CHARTS."""
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
    settings = yaml.safe_dump(experiment.model_dump(exclude_defaults=True), sort_keys=False, allow_unicode=True)
    cut = samples.cut(read)
    return environment.get_template("report.html.jinja").render(
        title=experiment.title or experiment.experiment,
        tiny=all(backbone.architecture for backbone in experiment.backbones.values()),
        experiment=experiment,
        header=header(measured),
        scopes=measured.scopes,
        claims=_claims(claimed),
        verdicts=claims.VERDICTS,
        headline=_headline(measured),
        charts=[(name, CHARTS[name].title, inline(svg, name, CHARTS[name].title)) for name, svg in figures.items()],
        tables=[_table(measured, table) for table in made.values() if table.applies],
        left_out=[table.spec["title"] for table in made.values() if not table.applies],
        comparisons=_comparisons(measured, compared),
        legend=render.LEGEND,
        read=read,
        cut=cut,
        provenance=provenance,
        settings=without_passwords(settings),
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        digest=digest,
    )
