"""Charts as PNG and SVG: figure 3, the ablation, and v1's iterations.

Draws what `tables.Measured` has measured and nothing else; a chart without data is not drawn. Colours are
Okabe and Ito's, told apart by marker too; the same data gives the same bytes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sso.report.measured import Estimate, Measured
from sso.report.tables import header

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#8B4513", "#4B0082")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*")


def _bars(estimate: Estimate) -> list[list[float]]:
    """Distances to both ends of the interval, zero where there is none."""
    if estimate.low is None:
        return [[0.0], [0.0]]
    return [[max(estimate.mean - estimate.low, 0.0)], [max(estimate.high - estimate.mean, 0.0)]]


def _panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple["Figure", Any]:
    """A figure of ``size`` inches and its axes, [rows, columns]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _style(measured: Measured, arm: str) -> dict[str, Any]:
    """Colour and marker of an arm, the same in every chart; a method of both versions keeps its own."""
    arms = measured.experiment.arms
    place = list(dict.fromkeys(about.method or name for name, about in arms.items())).index(arms[arm].method or arm)
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


def figure3(measured: Measured) -> "Figure | None":
    """Preference accuracy over on-policyness of each arm's pairs, by mean probability and by NLL; a row a backbone."""
    arms = [arm for arm, about in measured.experiment.arms.items() if about.data not in ("none", "triples")]
    labels = {"mean_probability": "mean probability (more on-policy →)", "nll": "NLL, nats/token (more on-policy →)"}
    backbones = list(measured.experiment.backbones)
    size = (10.5, 0.8 + 3.1 * len(backbones))
    figure, axes = _panels(len(backbones), len(labels), size, sharey=True, sharex="col")
    legend: dict[str, Any] = {}
    for row, backbone in zip(axes, backbones, strict=True):
        row[0].set_ylabel(f"{backbone}: preference accuracy")
        for axis, (metric, label) in zip(row, labels.items(), strict=True):
            for arm in arms:
                x = measured.estimate(backbone, arm, 0, metric)
                y = measured.estimate(backbone, arm, 0, "accuracy")
                if x and y:
                    bars = {"xerr": _bars(x), "yerr": _bars(y), "elinewidth": 0.8}
                    drawn = axis.errorbar(
                        [x.mean], [y.mean], **bars, **_style(measured, arm), linestyle="", markersize=7
                    )
                    legend.setdefault(measured.label(arm), drawn)
            axis.set_xlabel(label if backbone == backbones[-1] else "")
            axis.grid(alpha=0.25)
    axes[0][-1].invert_xaxis()
    if not legend:
        return None
    figure.legend(list(legend.values()), list(legend), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def ablation(measured: Measured) -> "Figure | None":
    """Win rate of each v2 arm with its interval, one panel a backbone, the SFT model as a line."""
    arms = [arm for arm, about in measured.experiment.arms.items() if about.version == "v2"]
    backbones = list(measured.experiment.backbones)
    rates = {b: {a: measured.estimate(b, a, 0, "alpaca_eval2_wr") for a in arms} for b in backbones}
    shown = [arm for arm in arms if any(rates[backbone][arm] for backbone in backbones)]
    if not shown:
        return None
    size = (2.6 + 3.6 * len(backbones), 1.2 + 0.36 * len(shown))
    figure, (axes,) = _panels(1, len(backbones), size, sharey=True, sharex=True)
    base = measured.arm("base", "v2")
    for axis, backbone in zip(axes, backbones, strict=True):
        for place, arm in enumerate(shown):
            e = rates[backbone][arm]
            if e is not None:
                axis.errorbar([e.mean], [place], xerr=_bars(e), **_style(measured, arm), linestyle="", capsize=3)
        start = rates[backbone].get(base) if base else None
        if start:
            axis.axvline(start.mean, color="#999999", linewidth=0.8, linestyle="--", zorder=0)
        axis.set_yticks(range(len(shown)), [measured.label(arm) for arm in shown])
        axis.set_title(backbone, fontsize=10)
        axis.set_xlabel("pairwise win rate, %")
        axis.grid(axis="x", alpha=0.25)
    axes[0].invert_yaxis()
    return figure


def iterations(measured: Measured) -> "Figure | None":
    """v1: win rate and mean response length per iteration; iteration 0 is the SFT model."""
    arms = [arm for arm, about in measured.experiment.arms.items() if about.version == "v1"]
    base = measured.arm("base", "v1")
    panels = {"alpaca_eval2_wr": "pairwise win rate, %", "length": "mean response length, characters"}
    figure, (axes,) = _panels(1, len(panels), (10.5, 3.8))
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
            drawn, last, style = True, max(last, *known), _style(measured, arm)
            bars = [[_bars(e)[side][0] for e in known.values()] for side in (0, 1)]
            first = backbone == runs[0][1]
            line = {"linestyle": "-" if first else "--", "mfc": style["color"] if first else "white", "capsize": 3}
            # Side by side, since intervals of different runs overlap.
            x = [t + 0.05 * (place - (len(runs) - 1) / 2) for t in known]
            means, name = [e.mean for e in known.values()], f"{measured.label(arm)}, {backbone}"
            axis.errorbar(x, means, yerr=bars, elinewidth=0.8, label=name, **style, **line)
        axis.set_xticks(range(last + 1))
        axis.set_xlabel("iteration")
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
    if not drawn:
        return None
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    return figure


CHARTS: dict[str, tuple[str, Callable[[Measured], "Figure | None"]]] = {
    "figure3": ("Quality and on-policyness of the pairs (v2, figure 3)", figure3),
    "ablation": ("Win rate of every v2 arm, with 95% intervals", ablation),
    "v1_iterations": ("v1: win rate and response length per iteration", iterations),
}


def draw(measured: Measured, folder: Path) -> Sequence[str]:
    """Write each chart that has data as PNG and SVG into ``folder``; returns their names."""
    import matplotlib

    # Fixed ids and no date: equal data, equal bytes.
    options = {"svg.hashsalt": "sso", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}
    drawn = []
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({**options, "axes.spines.right": False}):
        for name, (title, chart) in CHARTS.items():
            figure = chart(measured)
            if figure is None:
                continue
            world = measured.experiment.world
            figure.suptitle(f"{title}{f'; micro-world {world.name}' if world else ''}", fontsize=10, x=0.01, ha="left")
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Description": header(measured)})
            figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
            drawn.append(name)
    return drawn
