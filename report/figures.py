"""Charts as PNG and SVG: figure 3, the ablations, and v1's iterations.

Draws what `Measured` has measured and nothing else; a chart without data is not drawn. Arms are told apart by
marker too; the same data gives the same bytes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from report import curves, style
from report.measured import Measured
from report.tables import header

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure3(measured: Measured) -> "Figure | None":
    """Preference accuracy over on-policyness of each arm's pairs, by mean probability and by NLL; a row a backbone.

    Arms with the same pairs share a marker: one on another would hide it.
    """
    labels = {"mean_probability": "mean probability (more on-policy →)", "nll": "NLL, nats/token (more on-policy →)"}
    backbones = list(measured.experiment.backbones)
    figures = [(backbone, metric) for backbone in backbones for metric in (*labels, "accuracy")]
    same: dict[tuple[float | None, ...], list[str]] = {}
    for arm, about in measured.experiment.arms.items():
        if about.data not in ("none", "triples"):
            found = [measured.estimate(backbone, arm, 0, metric) for backbone, metric in figures]
            same.setdefault(tuple(one.mean if one else None for one in found), []).append(arm)
    size = (10.5, 0.8 + 3.1 * len(backbones))
    figure, axes = style.panels(len(backbones), len(labels), size, sharey=True, sharex="col")
    legend: dict[str, Any] = {}
    for row, backbone in zip(axes, backbones, strict=True):
        row[0].set_ylabel(f"{backbone}: preference accuracy")
        for axis, (metric, label) in zip(row, labels.items(), strict=True):
            for arm, *others in same.values():
                x = measured.estimate(backbone, arm, 0, metric)
                y = measured.estimate(backbone, arm, 0, "accuracy")
                if x and y:
                    errors = {"xerr": style.bars(x), "yerr": style.bars(y), "elinewidth": 0.8}
                    look = style.of_arm(measured, arm)
                    drawn = axis.errorbar([x.mean], [y.mean], **errors, **look, linestyle="", markersize=7)
                    legend.setdefault("\n= ".join(style.name(measured, one) for one in (arm, *others)), drawn)
            axis.set_xlabel(label if backbone == backbones[-1] else "")
            axis.grid(alpha=0.25)
    axes[0][-1].invert_xaxis()
    if not legend:
        return None
    figure.legend(list(legend.values()), list(legend), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _ablation(measured: Measured, arms: Sequence[str]) -> "Figure | None":
    """Win rate of each arm after its last iteration, one panel a backbone, the base model as a line."""
    backbones = list(measured.experiment.backbones)
    base = next((arm for arm in arms if measured.experiment.arms[arm].method == "base"), None)
    rates = {
        b: {a: measured.estimate(b, a, measured.iterations(a)[-1], "alpaca_eval2_wr") for a in arms} for b in backbones
    }
    shown = [arm for arm in arms if any(rates[backbone][arm] for backbone in backbones)]
    if not [arm for arm in shown if arm != base]:
        return None
    size = (2.6 + 3.6 * len(backbones), 1.2 + 0.36 * len(shown))
    figure, (axes,) = style.panels(1, len(backbones), size, sharey=True, sharex=True)
    for axis, backbone in zip(axes, backbones, strict=True):
        for place, arm in enumerate(shown):
            e = rates[backbone][arm]
            if e is not None:
                look = style.of_arm(measured, arm)
                axis.errorbar([e.mean], [place], xerr=style.bars(e), **look, linestyle="", capsize=3)
        start = rates[backbone].get(base) if base else None
        if start:
            axis.axvline(start.mean, color="#999999", linewidth=0.8, linestyle="--", zorder=0)
        axis.set_yticks(range(len(shown)), [style.name(measured, arm) for arm in shown])
        axis.set_title(backbone, fontsize=10)
        axis.set_xlabel("pairwise win rate, %")
        axis.grid(axis="x", alpha=0.25)
    axes[0].invert_yaxis()
    return figure


def ablation(measured: Measured) -> "Figure | None":
    """v2: L+, L-, both, another L-, and every other arm."""
    return _ablation(measured, [a for a, about in measured.experiment.arms.items() if about.version == "v2"])


def ablation_v1(measured: Measured) -> "Figure | None":
    """v1: with and without W and G."""
    arms = measured.experiment.arms
    base = measured.arm("base", "v1")
    own = [arm for arm, about in arms.items() if about.version == "v1" and arm != base]
    return _ablation(measured, [*([base] if base else []), *own]) if len(own) > 1 else None


def iterations(measured: Measured) -> "Figure | None":
    """v1: win rate, grade and mean response length per iteration; iteration 0 is the base model."""
    arms = [arm for arm, about in measured.experiment.arms.items() if about.version == "v1"]
    base = measured.arm("base", "v1")
    panels = {
        "alpaca_eval2_wr": "pairwise win rate, %",
        "mt_bench": "MT-Bench grade",
        "length": "mean response length, characters",
    }
    figure, (axes,) = style.panels(1, len(panels), (13.5, 3.8))
    runs = [(arm, backbone) for arm in arms for backbone in measured.experiment.backbones]
    drawn = False
    for axis, (metric, label) in zip(axes, panels.items(), strict=True):
        last = 0
        for place, (arm, backbone) in enumerate(runs):
            start = measured.estimate(backbone, base, 0, metric) if base else None
            points = {0: start} | {t: measured.estimate(backbone, arm, t, metric) for t in measured.iterations(arm)}
            known = {t: e for t, e in points.items() if e is not None}
            if not any(known):
                continue
            drawn, last, look = True, max(last, *known), style.of_arm(measured, arm)
            errors = [[style.bars(e)[side][0] for e in known.values()] for side in (0, 1)]
            first = backbone == runs[0][1]
            line = {"linestyle": "-" if first else "--", "mfc": look["color"] if first else "white", "capsize": 3}
            # Side by side, since intervals of different runs overlap.
            x = [t + 0.05 * (place - (len(runs) - 1) / 2) for t in known]
            means, name = [e.mean for e in known.values()], f"{style.name(measured, arm)}, {backbone}"
            axis.errorbar(x, means, yerr=errors, elinewidth=0.8, label=name, **look, **line)
        axis.set_xticks(range(last + 1))
        axis.set_xlabel("iteration")
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
    if not drawn:
        return None
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    return figure


class Chart(NamedTuple):
    """A chart of the report; ``draw`` returns None where there is nothing to draw."""

    title: str
    draw: Callable[[Measured], "Figure | None"]


CHARTS = {
    "figure3": Chart("Quality and on-policyness of the pairs (v2, figure 3)", figure3),
    "ablation": Chart("Win rate of every v2 arm, with 95% intervals", ablation),
    "ablation_v1": Chart("Win rate of every v1 arm after its last iteration, with 95% intervals", ablation_v1),
    "v1_iterations": Chart("v1: win rate, grade and response length per iteration", iterations),
    "categories": Chart("Scores by category, with 95% intervals, first seed", curves.categories),
    "training": Chart("Training curves, means of steps in a row, first seed", curves.training),
}


def draw(measured: Measured, folder: Path) -> Sequence[str]:
    """Write each chart that has data as PNG and SVG into ``folder``; returns their names."""
    drawn = []
    folder.mkdir(parents=True, exist_ok=True)
    with style.settings():
        for name, chart in CHARTS.items():
            figure = chart.draw(measured)
            if figure is None:
                continue
            world = measured.experiment.world
            title = chart.title + (f"; world: {world.title}" if world else "")
            figure.suptitle(title, fontsize=10, x=0.01, ha="left")
            # No date: equal data, equal bytes.
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Description": header(measured)})
            figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
            drawn.append(name)
    return drawn
