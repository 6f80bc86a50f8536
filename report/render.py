"""Tables as Markdown, CSV, LaTeX and on the terminal."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from eval.length_controlled import RAW
from report.measured import Estimate, Measured
from report.tables import Row, Table, header, mute
from report.trail import unreadable

if TYPE_CHECKING:
    from rich.console import RenderableType

NOTHING = "-"
"""An empty cell."""
MARK = "†"
"""Marks a raw rate that stands in a length-controlled one's place."""
DOUBT = "?"
"""Marks a figure of the paper that may be misprinted."""
Column = tuple[str, str]
"""A metric, and whether the column is `ours` or the `paper`'s."""


def number(value: float | None, digits: int) -> str:
    """A figure as text, without a minus before zero."""
    if value is None:
        return ""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def signed(text: str) -> str:
    """A difference's text with its sign, a plus before what is above zero."""
    return text if not text or text.startswith("-") or not any(c in "123456789" for c in text) else f"+{text}"


def cell(estimate: Estimate | None, digits: int, seeds: int) -> str:
    """`mean [low, high] ±spread`, with the number of seeds where some are missing."""
    if estimate is None:
        return NOTHING
    text = number(estimate.mean, digits) + (MARK if estimate.raw else "")
    if estimate.low is not None:
        text += f" [{number(estimate.low, digits)}, {number(estimate.high, digits)}]"
    if estimate.spread is not None:
        text += f" ±{number(estimate.spread, digits)}"
    return text if estimate.seeds == seeds else f"{text} ({estimate.seeds} of {seeds} seeds)"


LEGEND = (
    "A cell: mean over seeds [95% interval] ±standard deviation between seeds (with more than one). Intervals: "
    "Student's t over items, with several seeds by two-way variance components of seeds and items; where no items are "
    "kept, t over three or more seeds, else the normal approximation. -: not measured."
)


def markdown_rows(rows: Sequence[Sequence[str]]) -> str:
    """Lines of cells as a Markdown table; the first is the head."""
    escaped = [[text.replace("|", "\\|") for text in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def columns(made: Table, backbone: str) -> list[Column]:
    """The columns of one backbone that hold a figure: ours, and the paper's after it."""
    rows = made.rows[backbone]
    found = []
    for metric in made.spec["columns"]:
        found += [(metric, "ours")] if any(row.cells[metric] for row in rows) else []
        found += [(metric, "paper")] if any(metric in row.printed for row in rows) else []
    return found


def heading(measured: Measured, metric: str, estimates: Iterable[Estimate | None]) -> str:
    """A metric's label and unit; of a length-controlled win rate also the fit that its figures are of."""
    about = measured.content["metrics"][metric]
    fits = sorted({fit for e in estimates if e for fit in e.fits if fit not in e.raw})
    return ", ".join([about["label"], *fits]) + f" ({about['unit']})"


def raw_note(estimates: Iterable[Estimate | None]) -> list[str]:
    """What the mark means, where one stands."""
    why = sorted({fit.removeprefix(RAW).strip(": ") for e in estimates if e for fit in e.raw})
    return [f"{MARK} The raw win rate, which is not length-controlled ({'; '.join(why)})."] if why else []


def doubt_note(doubts: Iterable[str]) -> list[str]:
    """What is doubtful in the paper's figures, where something is."""
    said = list(dict.fromkeys(doubts))
    return [f"{DOUBT} Doubtful as the paper prints it: {'; '.join(said)}."] if said else []


def column_name(measured: Measured, made: Table, backbone: str, column: Column) -> str:
    """A column's head: metric and unit, or whose printed figure it is."""
    metric = measured.content["metrics"][column[0]]
    if column[1] == "ours":
        return heading(measured, column[0], (row.cells[column[0]] for row in made.rows[backbone]))
    return f"{metric['label']}: paper, {made.paper_backbone[backbone]}"


def printed(row: Row, metric: str, digits: int) -> str:
    """The paper's figure, with its interval where the paper prints one."""
    if metric not in row.printed:
        return NOTHING
    value, low, high = row.printed[metric], row.printed.get(f"{metric}_ci_low"), row.printed.get(f"{metric}_ci_high")
    text = number(value, digits) + (DOUBT if metric in row.doubts else "")
    if low is None or high is None:
        return text
    return f"{text} [{number(value + low, digits)}, {number(value + high, digits)}]"


def lines(measured: Measured, made: Table, backbone: str) -> list[list[str]]:
    """A table of one backbone as rows of text, without its head."""
    metrics, seeds = measured.content["metrics"], len(measured.experiment.seeds)
    found = []
    for row in made.rows[backbone]:
        line = [row.label]
        for metric, kind in columns(made, backbone):
            digits = metrics[metric]["digits"]
            line.append(cell(row.cells[metric], digits, seeds) if kind == "ours" else printed(row, metric, digits))
        found.append(line)
    return found


def notes(measured: Measured, made: Table, backbone: str, counts: bool = True) -> list[str]:
    """What a reader of one backbone's rows has to know: the ``counts`` of items, and what is not there."""
    metrics, rows = measured.content["metrics"], made.rows[backbone]
    if not rows:
        lost = mute(measured, made.spec) and unreadable(measured.collected.records)
        return [f"The judge gave no readable verdict: {lost}." if lost else "No results of this table yet."]
    shown = columns(made, backbone)
    found = []
    ours = [metric for metric, kind in shown if kind == "ours"]
    items = {metrics[m]["label"]: e.n for m in ours for row in rows if (e := row.cells[m]) and e.n}
    if items and counts:
        found.append("Items a seed: " + ", ".join(f"{label} {n}" for label, n in items.items()) + ".")
    found += raw_note(row.cells[m] for m in ours for row in rows)
    found += doubt_note(doubt for row in rows for doubt in row.doubts.values())
    missing = [metrics[m]["label"] for m in made.spec["columns"] if m not in ours]
    if missing:
        found.append(f"Not measured here: {', '.join(missing)}.")
    if made.spec.get("paper_table") and len(ours) == len(shown):
        found.append("The paper prints no figures of this table for a backbone that stands beside this one.")
    if made.pending[backbone]:
        found.append(f"Left out, no results yet: {', '.join(made.pending[backbone])}.")
    return found


def closing(measured: Measured, made: Table) -> list[str]:
    """What holds for all of a table."""
    absent = f"Left out, no such arm in this experiment: {', '.join(made.absent)}." if made.absent else None
    if not made.applies:
        return [
            "This experiment has no arm, backbone or benchmark that this table is about.",
            *([absent] if absent else []),
        ]
    world = measured.experiment.world
    own = made.spec.get(f"{world.KIND}_note") if world else None
    return list(filter(None, [absent, made.spec.get("note"), own]))


def markdown(measured: Measured, made: Table) -> str:
    """A table with its header, one part a backbone."""
    parts = [f"## {made.spec['title']}\n", header(measured) + "\n"]
    for backbone, rows in made.rows.items():
        parts.append(f"### {backbone}\n")
        if rows:
            names = [(column_name(measured, made, backbone, c), c[1]) for c in columns(made, backbone)]
            head = ["", *(name if kind == "ours" else f"*{name}*" for name, kind in names)]
            parts.append(markdown_rows([head, *lines(measured, made, backbone)]))
        parts += [note + "\n" for note in notes(measured, made, backbone)]
    parts.append(" ".join([*closing(measured, made), *([LEGEND] if made.applies else [])]) + "\n")
    return "\n".join(parts)


TEX = str.maketrans(
    {
        **{c: "\\" + c for c in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
)


def latex(measured: Measured, made: Table) -> str:
    """The same table for LaTeX with booktabs, one `tabular` a backbone; comments hold the text around it."""
    around = [header(measured), *closing(measured, made), *([LEGEND] if made.applies else [])]
    parts = [f"% {' '.join(line.split())}" for line in [made.spec["title"], *around]]
    for backbone, rows in made.rows.items():
        parts += [f"% {' '.join(line.split())}" for line in [backbone, *notes(measured, made, backbone)]]
        if not rows:
            continue
        shown = columns(made, backbone)
        names = ["", *(column_name(measured, made, backbone, column) for column in shown)]
        parts += [rf"\begin{{tabular}}{{l{'r' * len(shown)}}}", r"\toprule", _tex_row(names), r"\midrule"]
        parts += [*map(_tex_row, lines(measured, made, backbone)), r"\bottomrule", r"\end{tabular}"]
    return "\n".join(parts) + "\n"


def _tex_row(cells: Sequence[str]) -> str:
    """Cells of one line, escaped; a signed figure gets a real minus, the spread its sign."""
    texts = [text.translate(TEX).replace("±", r"$\pm$") for text in cells]
    return " & ".join([texts[0], *(_minus(text) for text in texts[1:])]) + r" \\"


def _minus(text: str) -> str:
    return re.sub(r"(?<![\w$-])-(?=\d)", "$-$", text)


def terminal(measured: Measured, made: Table) -> "list[RenderableType]":
    """The same table for rich's console."""
    from rich.markup import escape
    from rich.table import Table as Grid

    parts: list[RenderableType] = [escape(f"{made.spec['title']}. {header(measured)}")]
    for backbone, rows in made.rows.items():
        if rows:
            paper = made.paper_backbone[backbone]
            grid = Grid(title=escape(backbone + (f"; paper: {paper}" if paper else "")), title_justify="left")
            shown = list(dict.fromkeys(metric for metric, _ in columns(made, backbone)))
            grid.add_column("")
            for metric in shown:
                grid.add_column(escape(column_name(measured, made, backbone, (metric, "ours"))), justify="right")
            for row in rows:
                grid.add_row(escape(row.label), *(escape(_stacked(measured, row, metric)) for metric in shown))
            parts.append(grid)
        parts += [escape(f"{backbone}: {note}" if not rows else note) for note in notes(measured, made, backbone)]
    return [*parts, escape(" ".join([*closing(measured, made), *([LEGEND] if made.applies else [])]))]


def _stacked(measured: Measured, row: Row, metric: str) -> str:
    """Ours over the paper's figure, which keeps a table narrow."""
    digits = measured.content["metrics"][metric]["digits"]
    ours = cell(row.cells[metric], digits, len(measured.experiment.seeds)).replace(" [", "\n[")
    return ours + (f"\npaper {printed(row, metric, digits)}" if metric in row.printed else "")


def table_csv(measured: Measured, made: Table) -> str:
    """The same table, a row per backbone and arm; each metric with interval, spread, seeds, items and the paper's."""
    kinds = ("", "_low", "_high", "_seed_sd", "_seeds", "_n", "_paper")
    head = ["experiment", "backbone", "paper_backbone", "arm", "label", "method", "iteration"]
    fits = [metric for metric in made.spec["columns"] if measured.content["metrics"][metric].get("fits")]
    figures = [metric + kind for metric in made.spec["columns"] for kind in kinds]
    lines = [[*head, *figures, *(f"{metric}_fit" for metric in fits), "paper_doubt"]]
    for backbone, rows in made.rows.items():
        for row in rows:
            name = measured.experiment.experiment
            line = [name, backbone, made.paper_backbone[backbone], row.arm, row.label, row.method, row.iteration or ""]
            cells: list[Any] = []
            for metric in made.spec["columns"]:
                e = row.cells[metric]
                own = [e.mean, e.low, e.high, e.spread, e.seeds, e.n] if e else [None] * 6
                cells += [*own, row.printed.get(metric)]
            cells += ["; ".join(e.fits) if (e := row.cells[metric]) else None for metric in fits]
            doubts = "; ".join(f"{metric}: {doubt}" for metric, doubt in row.doubts.items())
            lines.append([*line, *cells, doubts])
    return to_csv(lines)


def to_csv(lines: Sequence[Sequence[Any]]) -> str:
    """CSV text; floats with ten significant digits, None as an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for line in lines:
        writer.writerow(["" if v is None else f"{v:.10g}" if isinstance(v, float) else v for v in line])
    return buffer.getvalue()
