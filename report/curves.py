"""Charts of how it came about: training curves from the jobs' records, and scores by category.

Of the first seed only; values stand in the *.run.json files and in the judged folders.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from report import style
from report.collect import Key
from report.measured import Measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 25
"""A curve's points, each the mean of the steps around it: single steps are noise that hides the curves."""
PANELS = {
    "sft": ("SFT: loss", "loss"),
    "generator": ("generator: loss", "loss"),
    "policy v2": ("v2, policy: loss", "loss"),
    "policy v1": ("v1, policy: loss,\niterations in a row", "loss"),
    "margin": ("policy: margin\nh(y+) - h(y-)", "x:y+>y-/margin"),
}
MAIN = ("base", "ultrafeedback", "pbaa", "sso")
LEVELS = {"mt_bench": "MT-Bench grade, 1-10", "quality": "quality by the oracle, 0-100"}


def _curves(measured: Measured, backbone: str) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Panel -> arm (or "") -> (step, value) points; an arm's iterations one after another."""
    cell = {"backbone": backbone, "seed": str(measured.experiment.seeds[0])}
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for record in measured.collected.records:
        if not cell.items() <= record.get("wildcards", {}).items() or not record.get("metrics"):
            continue
        stage, arm = record["rule"], record["arm"] or ""
        if stage not in ("sft", "generator", "policy") or (arm and arm not in measured.experiment.arms):
            continue
        version = measured.experiment.arms[arm].version if arm else ""
        for panel in (f"policy {version}", "margin") if stage == "policy" else (stage,):
            line = found.setdefault(panel, {}).setdefault(arm, [])
            before = line[-1][0] if line else 0
            key = PANELS[panel][1]
            line += [(before + step, row[key]) for step, row in record["metrics"] if row.get(key) is not None]
    return found


def smooth(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Means of steps in a row, (step, value) each, at most POINTS of them."""
    width = -(-len(points) // POINTS) or 1
    runs = [points[i : i + width] for i in range(0, len(points), width)]
    return [(fmean(step for step, _ in run), fmean(value for _, value in run)) for run in runs]


def training(measured: Measured) -> "Figure | None":
    """Losses and margins by optimizer step, smoothed; a row a panel, a column a backbone."""
    backbones = list(measured.experiment.backbones)
    curves = {backbone: _curves(measured, backbone) for backbone in backbones}
    shown = [panel for panel in PANELS if any(curves[backbone].get(panel) for backbone in backbones)]
    if not shown:
        return None
    size = (2.6 + 4.2 * len(backbones), 0.6 + 2.2 * len(shown))
    figure, axes = style.panels(len(shown), len(backbones), size, sharey="row")
    legend: dict[str, Any] = {}
    for row, panel in zip(axes, shown, strict=True):
        row[0].set_ylabel(PANELS[panel][0])
        for axis, backbone in zip(row, backbones, strict=True):
            for arm, points in curves[backbone].get(panel, {}).items():
                if not points:
                    continue
                look: dict[str, Any] = {"color": style.COLOURS[0]}
                if arm:
                    look = {**style.of_arm(measured, arm), "linestyle": style.line(measured, arm), "markersize": 4}
                places = smooth(points)
                # Markers tell arms apart; a few, or they hide the line. A single point is nothing but its marker.
                every = 0.2 if len(places) > 1 else None
                look = look if every else {"marker": "o", **look}
                (line,) = axis.plot(*zip(*places, strict=True), linewidth=1.2, markevery=every, **look)
                if arm:
                    legend.setdefault(style.name(measured, arm), line)
            axis.grid(alpha=0.25)
            axis.set_title(backbone if panel == shown[0] else "", fontsize=9)
            axis.set_xlabel("optimizer step" if panel == shown[-1] else "")
    if legend:
        figure.legend(list(legend.values()), list(legend), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def categories(measured: Measured) -> "Figure | None":
    """Mean of each category with its 95% interval: the base model and the arms of the main tables, each after its last
    iteration; a panel a backbone."""
    from eval.statistics import mean_interval

    seed, known = measured.experiment.seeds[0], measured.collected.categories
    versions = dict.fromkeys(about.version for about in measured.experiment.arms.values())
    arms = list(dict.fromkeys(filter(None, (measured.arm(name, version) for version in versions for name in MAIN))))
    found: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
    for backbone in measured.experiment.backbones:
        for metric in LEVELS:
            at = {arm: Key(backbone, seed, arm, measured.iterations(arm)[-1], metric) for arm in arms}
            scores = {arm: known[key] for arm, key in at.items() if key in known}
            if scores:
                found[backbone, metric] = scores
    if not found:
        return None
    names = list(dict.fromkeys(name for scores in found.values() for own in scores.values() for name in own))
    figure, (axes,) = style.panels(1, len(found), (2.6 + 3.6 * len(found), 1.2 + 0.7 * len(names)), sharey=True)
    legend: dict[str, Any] = {}
    for axis, ((backbone, metric), scores) in zip(axes, found.items(), strict=True):
        for place, (arm, own) in enumerate(scores.items()):
            # Side by side, since intervals overlap.
            rows = {names.index(name) + 0.11 * (place - (len(scores) - 1) / 2): own[name] for name in own}
            means = [mean_interval([values]) for values in rows.values()]
            half = [0.0 if m.low is None else m.mean - m.low for m in means]
            drawn = axis.errorbar(
                [m.mean for m in means],
                list(rows),
                xerr=half,
                **style.of_arm(measured, arm),
                linestyle="",
                markersize=4,
                elinewidth=0.8,
                mfc="white" if measured.experiment.arms[arm].version == "v1" else None,
            )
            legend.setdefault(style.name(measured, arm, measured.iterations(arm)[-1]), drawn)
        axis.set_yticks(range(len(names)), names)
        axis.set_title(backbone, fontsize=10)
        axis.set_xlabel(LEVELS[metric])
        axis.grid(axis="x", alpha=0.25)
    axes[0].invert_yaxis()
    figure.legend(list(legend.values()), list(legend), loc="outside right upper", fontsize=8, frameon=False)
    return figure
