"""What stands first on the page: the three figures of the method, the claims as a table, scale and seeds in a line; and
what those say of the report who have no room for it (told.json).

Takes everything from the claims that were tested; computes no figure. A raw win rate is never shown in the place of a
length-controlled one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report import printed, render
from report.claims import NO_ARM, NOT_ASKED, ClaimRow, counts, over_all
from report.measured import POOLED, Measured
from report.tables import Table, judge_title
from report.trail import unreadable

PAPER = "https://arxiv.org/abs/2410.17131"
GLOSSARY = {
    "PBAA": "the baseline: pairs of an answer under a good and one under a bad principle, drawn by the model as it is",
    "y+": "the answer under the good principle, which a pair chooses",
    "y-": "the answer under the bad principle, which a pair rejects",
    "yo": "the answer under no principle: what the model says by itself",
    "L+": "v2's first term: under the good principle y+ over y-, which keeps the two apart",
    "L-": "v2's second term: under the bad principle yo over y+, which keeps y- close to what the model would say",
    "W": "v1's weight of a sample, by how on-policy its answers are",
    "G": "v1's added terms, which learn y+ over y- under the good and yo over y+ under the bad principle",
    "on-policy": "likely under the starting model: a high mean probability of its tokens, a low NLL in nats per token",
    "NLL": "negative log-likelihood per token under the starting model without a principle",
    "pair accuracy": "share of pairs whose chosen answer the judge prefers, ties half",
    "win rate": "share of answers that the judge prefers to a reference answer; length-controlled: at equal lengths",
}
SIGNS = {
    "holds": ("holds", "✓"),
    "does not hold": ("fails", "✗"),
    "not tested": ("none", "·"),
    "untestable": ("none", "·"),
}
"""Verdict -> class and sign; any other is undecided."""
UNDECIDED = "open", "≈"
FIGURES = 3


def sign(said: str) -> tuple[str, str]:
    """A verdict's class and sign."""
    return next((own for start, own in SIGNS.items() if said.startswith(start)), UNDECIDED)


def _printed(measured: Measured, row: ClaimRow) -> list[printed.Printed]:
    """The paper's differences beside a claim of its own, one a backbone."""
    if row.of == "ours":
        return []
    backbones = measured.experiment.backbones if row.backbone == POOLED else [row.backbone]
    found = (printed.difference(measured, row.spec, row.metric, backbone) for backbone in backbones if backbone)
    return list(filter(None, found))


def paper_says(measured: Measured, row: ClaimRow) -> list[str]:
    """The paper's difference, one text a backbone; where it prints none, why."""
    metrics, found = measured.content["metrics"], []
    for own in _printed(measured, row):
        label = "" if own.metric == row.metric else f"{metrics[own.metric]['label']}, "
        found.append(f"{render.signed(own.text)} ({label}{own.backbone})")
    drawn = row.of == "paper" and row.metric in measured.content["tables"]["v2_figure3"]["columns"]
    return list(dict.fromkeys(found)) or (["a picture only"] if drawn else [])


def effect(measured: Measured, row: ClaimRow) -> dict[str, Any]:
    """A claim's difference for the page: text, unit, interval, levels of both sides, verdict, the paper's."""
    assert row.effect is not None and row.sides is not None
    metric = measured.content["metrics"][row.metric]
    digits = metric["digits"] + 1
    unit = row.spec["smallest"]["unit"].replace("% of b", metric["unit"])
    low, high = (render.signed(render.number(end, digits)) for end in (row.effect.low, row.effect.high))
    scope = row.backbone or ""
    names = [measured.label(*side) for side in row.sides]
    # Of the items that the difference is of, so that they add up to it.
    levels = measured.levels(scope, *row.sides, row.metric) or ()
    return {
        "text": render.signed(render.number(row.effect.mean, digits)) + (render.MARK if row.effect.raw else ""),
        "unit": unit,
        "interval": f"[{low}, {high}]" if low else "",
        "names": " - ".join(names),
        "levels": [(name, render.number(level, digits)) for name, level in zip(names, levels, strict=False)],
        "metric": metric["label"],
        "said": row.verdict,
        "sign": sign(row.verdict),
        "n": row.effect.n,
        "test": row.effect.test,
        "raw": "; ".join(row.effect.raw),
        "paper": paper_says(measured, row),
        "scope": "" if len(measured.scopes) == 1 else "mean over backbones" if scope == POOLED else scope,
    }


def claims(measured: Measured, rows: Sequence[ClaimRow]) -> dict[str, Any]:
    """The claims that were tested, main ones first and ours last, with their verdicts by backbone; the others by reason
    and name."""
    by_claim: dict[str, list[ClaimRow]] = {}
    for row in rows:
        by_claim.setdefault(row.claim, []).append(row)
    tested: list[dict[str, Any]] = []
    untested: dict[str, list[tuple[str, str]]] = {}
    for claim, own in sorted(by_claim.items(), key=lambda item: (item[1][-1].of == "ours", _minor(item[1][-1]))):
        last = own[-1]
        if last.effect is None:
            untested.setdefault(last.verdict, []).append((claim, last.difference))
            continue
        each = [(row.backbone, row.verdict, sign(row.verdict)) for row in own if row.backbone != POOLED]
        tested.append({"claim": claim, "main": not _minor(last), "of": last.of, "each": each, **effect(measured, last)})
    notes = render.raw_note(row.effect for row in rows)
    doubts = [own.doubt for row in rows if row.effect for own in _printed(measured, row) if own.doubt]
    notes += render.doubt_note(doubts)
    several = len(measured.experiment.backbones) > 1
    return {"tested": tested, "untested": untested, "counts": counts(rows), "several": several, "notes": notes}


def _minor(row: ClaimRow) -> bool:
    return not row.spec.get("main")


def headline(rows: Sequence[ClaimRow]) -> dict[str, ClaimRow]:
    """The row that each of the three figures is of, by the figure's name: of the claims that tables.yaml has for it the
    first with an effect, one without a raw rate before others; else the first that the experiment was to test."""

    def rank(row: ClaimRow) -> int:
        if row.effect is None:
            return 3 if row.verdict in (f"not tested ({NO_ARM})", f"not tested ({NOT_ASKED})") else 2
        return bool(row.effect.raw)

    found: dict[str, ClaimRow] = {}
    for row in sorted(over_all(rows), key=rank):
        if name := row.spec.get("figure"):
            found.setdefault(name, row)
    return {name: found[name] for name in dict.fromkeys(row.spec.get("figure") for row in rows) if name}


def strip(measured: Measured, rows: Sequence[ClaimRow]) -> list[dict[str, Any]]:
    """The three figures; where one can't be shown, why not."""
    found: list[dict[str, Any]] = []
    for figure, row in headline(rows).items():
        # A measure of ours has its own name, never that of the paper's.
        name = measured.content["metrics"][row.metric]["label"] if row.of == "ours" else figure
        if row.effect is None:
            found.append({"name": name, "text": "", "why": row.difference})
        elif row.effect.raw:
            found.append({"name": name, "text": "", "why": "; ".join(row.effect.raw)})
        else:
            found.append({"name": name, "why": "", **effect(measured, row)})
    return found


def told(measured: Measured, rows: Sequence[ClaimRow], made: Mapping[str, Table]) -> dict[str, Any]:
    """What others say of the report, as sentences: `headline` at a run's end, the three figures that have an interval,
    or other claims' in their place, with the `counts` of verdicts and what a `judge` said that nobody could read;
    `claims`, the paper's, and `ours` in MLflow, each with its verdict, as Markdown. `tables`: those with figures."""
    last = over_all(rows)
    tested = [row for row in last if not row.verdict.startswith(("not tested", "untestable"))]
    marked = [row for row in headline(rows).values() if row in tested]
    said = []
    for row in [*marked, *(row for row in tested if row not in marked)][:FIGURES]:
        figure, *notes = row.difference.split("; ")
        text = "; ".join([figure, *(note for note in notes if not note.startswith("smallest effect"))])
        where = "all backbones" if row.backbone == POOLED else row.backbone
        said.append(f'{text} ({where}): "{row.claim}" {row.verdict}')
    unread = measured.collected.unread and unreadable(measured.collected.records)
    mute = f"the judge ({judge_title(measured.experiment)}) gave no readable verdict: {unread}" if unread else ""
    verdicts = {
        of: [f"{r.claim} **{r.verdict}** ({r.difference})" for r in last if r.of == of] for of in ("paper", "ours")
    }
    return {
        "headline": said,
        "counts": counts(rows),
        "judge": mute,
        "claims": verdicts["paper"],
        "ours": verdicts["ours"],
        "tables": [name for name, table in made.items() if any(table.rows.values())],
    }


def badges(measured: Measured) -> list[tuple[str, str]]:
    """Scale and seeds: (what, how much)."""
    experiment, counts = measured.experiment, measured.collected.parameters
    sizes = []
    for name, about in experiment.backbones.items():
        if about.path:
            sizes.append(f"{name}: {Path(about.path).name}")
        elif about.wheel:
            sizes.append(f"{name}: {about.wheel.name} {about.wheel.version}")
        else:
            sizes.append(f"{name}: " + (f"{counts[name] / 1e6:.2f}M" if name in counts else "not trained yet"))
    world = experiment.world
    versions = ", ".join(dict.fromkeys(arm.version for arm in experiment.arms.values()))
    rewards = f", {len(experiment.rewards)} reward models" if experiment.rewards else ""
    return [
        ("reproduced", f"{versions}: {len(experiment.arms)} arms{rewards}"),
        ("world" if world else "data", world.title if world else str(experiment.data.queries)),
        ("parameters" if world else "models", ", ".join(sizes)),
        ("seeds", str(len(experiment.seeds))),
        ("judge", judge_title(experiment)),
    ]
