"""Differences between arms, and the paper's claims as signs of them.

What is compared and claimed is data (tables.yaml); whether a claim holds is the side of zero that the 95%
interval of its difference lies on.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from report.measured import Estimate, Measured, asked, owner
from report.render import NOTHING, cell, heading, markdown_rows, raw_note, to_csv
from report.tables import header, judge_title
from report.trail import unreadable

VERDICTS = (
    "Holds: the 95% interval of the difference lies on the claimed side of zero, and the difference is at least "
    "the smallest effect of interest that stands beside it. Does not hold: the interval excludes that effect on "
    "the claimed side. Negligible: it excludes it on both. Not distinguishable: none of these. A claim of `at "
    "least` holds where the interval excludes being worse by that effect, and does not hold where it lies on the "
    "worse side of zero and the difference is that large. Not tested: for the reason beside it. No "
    "correction for the number of claims. With one seed the interval tells of the questions only, not of another "
    "training run."
)


NO_ARM, NOT_ASKED = "no such arm", "not asked for"
"""Why a claim could not be tested, where no more results would change that."""
START = "start_wr"
"""The win rate against the starting model's own answers, for prompts that have no others."""
Side = tuple[str, int]
"""An arm and its iteration."""
COLUMNS = ("claim", "of", "backbone", "verdict", "difference", "test")
"""What claims.csv holds of a claim."""
ORDER = ["holds", "does not hold", "negligible", "not distinguishable"]


@dataclass(frozen=True)
class ClaimRow:
    """What comes of one claim on one backbone, or on all; None: on none, since nothing could be tested."""

    claim: str
    backbone: str | None
    verdict: str
    difference: str
    """The measured difference with its interval, in words."""
    test: str
    """How the interval was made."""
    spec: dict[str, Any]
    """The claim's entry in tables.yaml."""
    metric: str
    sides: tuple[Side, Side] | None = None
    effect: Estimate | None = None
    """The measured difference of the sides."""

    @property
    def of(self) -> str:
        """Whose claim it is: `paper`, or `ours`, which the paper never made."""
        return "ours" if self.spec.get("ours") else "paper"


@dataclass(frozen=True)
class ArmDifference:
    """a - b of one metric on one backbone (or all)."""

    backbone: str
    a: str
    b: str
    metric: str
    difference: Estimate


def _sides(measured: Measured, spec: dict[str, Any]) -> Iterator[tuple[Side, Side]]:
    """The (arm, iteration) pairs that a comparison or claim names and that this experiment has."""
    version = spec.get("version", "v2")

    def side(which: str) -> list[Side]:
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


def comparisons(measured: Measured) -> list[ArmDifference]:
    """Paired differences, per backbone and, where there are several, over all."""
    found = []
    for spec in measured.content["comparisons"]:
        for a, b in _sides(measured, spec):
            for metric in dict.fromkeys(m for own in spec["metrics"] for m in (own, measured.measure(own))):
                for scope in measured.scopes:
                    difference = measured.difference(scope, a, b, metric)
                    if difference:
                        found.append(ArmDifference(scope, measured.label(*a), measured.label(*b), metric, difference))
    return found


def grouped(found: Sequence[ArmDifference]) -> dict[tuple[str, str, str], dict[str, Estimate]]:
    """Differences by (a, b, metric), then by backbone: a row each."""
    rows: dict[tuple[str, str, str], dict[str, Estimate]] = {}
    for row in found:
        rows.setdefault((row.a, row.b, row.metric), {})[row.backbone] = row.difference
    return rows


def comparisons_markdown(measured: Measured, found: Sequence[ArmDifference]) -> str:
    """All differences as one table, a column a backbone."""
    metrics, seeds = measured.content["metrics"], len(measured.experiment.seeds)
    lines = [["a - b", "metric", *measured.scopes, "n", "interval"]]
    for (a, b, metric), by in grouped(found).items():
        name, digits = heading(measured, metric, by.values()), metrics[metric]["digits"] + 1
        one = next(iter(by.values()))
        cells = [cell(by.get(scope), digits, seeds) for scope in measured.scopes]
        lines.append([f"({a}) - ({b})", name, *cells, str(one.n or ""), one.test])
    parts = ["## Comparisons\n", header(measured) + "\n"]
    parts.append(markdown_rows(lines) if found else "No two arms to compare yet.\n")
    parts += [note + "\n" for note in raw_note(row.difference for row in found)]
    parts.append(
        "Positive: a has the larger figure. Paired: the same items in both arms, drawn together. `all`: the mean over "
        "the backbones. n: items of one seed. ±: standard deviation of the difference between seeds.\n"
    )
    return "\n".join(parts)


def comparisons_csv(found: Sequence[ArmDifference]) -> str:
    """All differences, a row each."""
    head = ["a", "b", "metric", "backbone", "difference", "low", "high", "seed_sd", "cells", "n", "test", "fit"]
    rows = [
        [c.a, c.b, c.metric, c.backbone, d.mean, d.low, d.high, d.spread, d.seeds, d.n, d.test, "; ".join(d.fits)]
        for c in found
        for d in [c.difference]
    ]
    return to_csv([head, *rows])


def verdict(difference: Estimate, larger: str, smallest: float, or_equal: bool = False) -> str:
    """Where the interval of a - b lies, to zero and to the smallest effect of interest on both sides of it.

    ``or_equal``: the claim is that a side is not worse, so it holds where anything worse is less than ``smallest``.
    """
    from eval.statistics import LEAST_ITEMS

    if difference.n is not None and difference.n < LEAST_ITEMS:
        return f"not tested (too few items: {difference.n})"
    if difference.low is None or difference.high is None:
        return "not tested (no interval)"
    mean, low, high = difference.mean, difference.low, difference.high
    if larger == "b":
        mean, low, high = -mean, -high, -low
    if or_equal:
        worse = high < 0 and mean <= -smallest
        return "holds" if low > -smallest else "does not hold" if worse else "not distinguishable"
    if high < smallest:
        return "negligible" if low > -smallest else "does not hold"
    return "holds" if low > 0 and mean >= smallest else "not distinguishable"


def smallest_effect(measured: Measured, spec: dict[str, Any], scope: str, b: tuple[str, int], metric: str) -> float:
    """A claim's smallest effect of interest, in the metric's unit."""
    value, unit = spec["smallest"]["value"], spec["smallest"]["unit"]
    if unit != "% of b":
        return float(value)
    level = measured.estimate(scope, *b, metric)
    return value / 100 * abs(level.mean) if level else float("inf")


def untested(measured: Measured, spec: dict[str, Any], sides: tuple[Side, Side] | None, metric: str) -> tuple[str, str]:
    """Why a claim has no figure: in a word or two, and in full."""
    experiment, label = measured.experiment, measured.content["metrics"][metric]["label"]
    version, judge = spec.get("version", "v2"), experiment.evaluation.judge
    if not sides:
        lacking = dict.fromkeys(spec[side] for side in "ab" if not measured.arm(spec[side], version))
        names = " and no ".join(lacking)
        return NO_ARM, f"this experiment has no {version} arm {names}" if lacking else "a single iteration"
    about_pairs = metric == "accuracy"
    if judge_title(experiment) == "none" and (about_pairs or not asked(experiment, metric)):
        return "no judge", "no judge"
    if not asked(experiment, metric):
        measures = {key.metric for key in measured.collected.figures}
        other = START in measures and metric.startswith("alpaca_eval2")
        where = f"; the {measured.content['metrics'][START]['label']} stands in a table of its own" if other else ""
        return NOT_ASKED, f"the config does not ask for {label}{where}"
    if about_pairs and experiment.world is None and not judge.pairs:
        return NOT_ASKED, "the judge was asked about no pairs: the config has no `evaluation.judge.pairs`"
    arms = [arm for arm, _ in sides]
    if any(key.arm in arms and owner(key.metric) == owner(metric) for key in measured.collected.unread):
        return "no readable verdict", unreadable(measured.collected.records, arms) or "no verdict could be read"
    lacking = dict.fromkeys(
        measured.label(*side) for side in sides if not any(measured.estimate(s, *side, metric) for s in measured.scopes)
    )
    return "no results yet", f"no {label} yet" + (f" of {', '.join(lacking)}" if lacking else " of a common seed")


def claims(measured: Measured) -> list[ClaimRow]:
    """Each claim on each backbone and on all."""
    rows: list[ClaimRow] = []
    for spec in measured.content["claims"]:
        sides, name = next(_sides(measured, spec), None), measured.measure(spec["metric"])
        metric = measured.content["metrics"][name]
        if sides and not measured.testable(name):
            why = "untestable here: needs the oracle"
            rows.append(ClaimRow(spec["claim"], None, why, metric["label"], "", spec, name))
            continue
        tested = False
        for scope in measured.scopes:
            difference = sides and measured.difference(scope, *sides, name)
            if sides and difference:
                tested = True
                names = " - ".join(f"({measured.label(*side)})" for side in sides)
                smallest = smallest_effect(measured, spec, scope, sides[1], name)
                unit = spec["smallest"]["unit"]
                said = verdict(difference, spec["larger"], smallest, spec.get("or_equal", False))
                text = f"{heading(measured, name, [difference])}, {names}: "
                text += cell(difference, metric["digits"] + 1, difference.seeds)
                text += f"; smallest effect of interest {spec['smallest']['value']} {unit}"
                text = "; ".join([text, *(note.rstrip(".") for note in raw_note([difference]))])
                rows.append(ClaimRow(spec["claim"], scope, said, text, difference.test, spec, name, sides, difference))
        if not tested:
            said, why = untested(measured, spec, sides, name)
            rows.append(ClaimRow(spec["claim"], None, f"not tested ({said})", why, "", spec, name))
    return rows


def over_all(rows: Sequence[ClaimRow]) -> list[ClaimRow]:
    """A row a claim: that over all backbones where there are several."""
    return list({row.claim: row for row in rows}.values())


def counts(rows: Sequence[ClaimRow]) -> list[str]:
    """How many claims got which verdict, a sentence for the paper's and one for ours; what was not tested by reason."""
    found = []
    for of, name in (("paper", "claims of the paper"), ("ours", "more of our own, which the paper does not make")):
        own = [row.verdict for row in over_all(rows) if row.of == of]
        # `not tested (too few items: 64)` counts as too few items.
        said = Counter(verdict.partition(":")[0] + ")" * (": " in verdict and "(" in verdict) for verdict in own)
        order = sorted(said.items(), key=lambda item: ORDER.index(item[0]) if item[0] in ORDER else len(ORDER))
        found += [f"{len(own)} {name}: " + ", ".join(f"{verdict} {count}" for verdict, count in order)] if own else []
    return found


def claims_csv(rows: Sequence[ClaimRow]) -> str:
    """The claims, a row for each backbone."""
    return to_csv([COLUMNS, *([getattr(row, column) for column in COLUMNS] for row in rows)])


def claims_markdown(measured: Measured, rows: Sequence[ClaimRow]) -> str:
    """The claims as a table, a column a backbone; the difference is that of the last column."""
    by_claim: dict[str, dict[str | None, ClaimRow]] = {}
    for row in rows:
        by_claim.setdefault(row.claim, {})[row.backbone] = row
    head = [*measured.scopes, f"difference ({measured.scopes[-1]})", "test"]
    tables = {"paper": [["claim of the paper", *head]], "ours": [["claim of our own", *head]]}
    for claim, found in by_claim.items():
        last = list(found.values())[-1]
        elsewhere = last.verdict if None in found else NOTHING
        said = [found[scope].verdict if scope in found else elsewhere for scope in measured.scopes]
        tables[last.of].append([claim, *said, last.difference, last.test])
    parts = ["## What holds here\n", header(measured) + "\n", ". ".join(counts(rows)) + ".\n"]
    parts += [markdown_rows(lines) for lines in tables.values() if len(lines) > 1]
    return "\n".join([*parts, VERDICTS + "\n"])
