"""Charts of how it came about: training curves from the jobs' records, and scores by category as radars.

Of the first seed only; values stand in the *.run.json files and the scores.json files.
"""

from typing import TYPE_CHECKING, Any

from report import style
from report.measured import Measured
from report.radar import spokes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 150
"""A curve's points at most: more can't be told apart on the page."""
PANELS = {
    "sft": ("SFT: loss", "loss"),
    "generator": ("generator: loss", "loss"),
    "policy v2": ("v2, policy: loss", "loss"),
    "policy v1": ("v1, iterations in a row: loss", "loss"),
    "margin": ("policy: h of y+ over y-", "x:y+>y-/margin"),
}
MAIN = ("base", "ultrafeedback", "pbaa", "sso")
LEVELS = {"mt_bench": (10, "MT-Bench grade"), "quality": (100, "quality")}


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


def training(measured: Measured) -> "Figure | None":
    """Losses and margins by optimizer step, a row a backbone."""
    backbones = list(measured.experiment.backbones)
    curves = {backbone: _curves(measured, backbone) for backbone in backbones}
    shown = [panel for panel in PANELS if any(curves[backbone].get(panel) for backbone in backbones)]
    if not shown:
        return None
    size = (2.2 + 2.5 * len(shown), 0.8 + 2.3 * len(backbones))
    figure, axes = style.panels(len(backbones), len(shown), size, sharex="col")
    legend: dict[str, Any] = {}
    for row, backbone in zip(axes, backbones, strict=True):
        row[0].set_ylabel(backbone)
        for axis, panel in zip(row, shown, strict=True):
            for arm, points in curves[backbone].get(panel, {}).items():
                kept = points[:: -(-len(points) // POINTS) or 1]
                if not kept:
                    continue
                look = (
                    {"color": style.of_arm(measured, arm)["color"], "linestyle": style.line(measured, arm)}
                    if arm
                    else {}
                )
                (line,) = axis.plot(*zip(*kept, strict=True), linewidth=1, **{"color": style.COLOURS[0], **look})
                if arm:
                    legend.setdefault(style.name(measured, arm), line)
            axis.grid(alpha=0.25)
            axis.set_title(PANELS[panel][0] if backbone == backbones[0] else "", fontsize=9)
            axis.set_xlabel("optimizer step" if backbone == backbones[-1] else "")
    if legend:
        figure.legend(list(legend.values()), list(legend), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def categories(measured: Measured) -> "Figure | None":
    """A radar a backbone: the base model and the arms of the main tables, each after its last iteration."""
    seed, known = measured.experiment.seeds[0], measured.collected.categories
    versions = dict.fromkeys(about.version for about in measured.experiment.arms.values())
    arms = list(dict.fromkeys(filter(None, (measured.arm(name, version) for version in versions for name in MAIN))))
    radars: list[tuple[str, str, dict[str, dict[str, float]]]] = []
    for backbone in measured.experiment.backbones:
        for metric in LEVELS:
            at = [(backbone, seed, arm, measured.iterations(arm)[-1], metric) for arm in arms]
            found = {arm: known[key] for arm, key in zip(arms, at, strict=True) if key in known}
            # Arms that were asked other questions have no place on these spokes.
            found = {arm: means for arm, means in found.items() if set(means) == set(next(iter(found.values())))}
            if found:
                radars.append((backbone, metric, found))
    if not radars:
        return None
    size = (2.2 + 4.2 * len(radars), 4.2)
    figure, (axes,) = style.panels(1, len(radars), size, subplot_kw={"projection": "polar"})
    legend: dict[str, Any] = {}
    for axis, (backbone, metric, found) in zip(axes, radars, strict=True):
        top, label = LEVELS[metric]
        styles = {
            arm: {**style.of_arm(measured, arm), "linewidth": 1, "linestyle": style.line(measured, arm)}
            for arm in found
        }
        spokes(axis, found, styles, top)
        for line, arm in zip(axis.get_lines(), found, strict=True):
            legend.setdefault(style.name(measured, arm), line)
        axis.set_title(f"{backbone}: {label}", fontsize=9)
    figure.legend(list(legend.values()), list(legend), loc="outside right upper", fontsize=8, frameon=False)
    return figure
