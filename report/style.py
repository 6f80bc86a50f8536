"""What all charts share: colours (Okabe and Ito's), markers, intervals as bars, panels, settings for equal bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from report.measured import Estimate, Measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#767676", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#A08B00", "#B5651D", "#9467BD")
"""Each can be seen on white and on the page's dark background."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*")
LONGEST = 44
"""Characters of a label in a chart."""
METHODS = ("base", "pbaa", "sso", "ultrafeedback", "l_plus", "l_minus", "sso_l_minus_naive")
"""They come first, in every experiment in the same colour."""


@contextmanager
def settings() -> Iterator[None]:
    """Matplotlib's: fixed ids, text as text (a label's $ is no formula), no frame on two sides, no background."""
    import matplotlib

    with matplotlib.rc_context(
        {
            "svg.hashsalt": "sso",
            "svg.fonttype": "none",
            "text.parse_math": False,
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "xtick.major.size": 0,
            "ytick.major.size": 0,
        }
    ):
        yield


def bars(estimate: Estimate) -> list[list[float]]:
    """Distances to both ends of the interval, zero where there is none."""
    if estimate.low is None or estimate.high is None:
        return [[0.0], [0.0]]
    return [[max(estimate.mean - estimate.low, 0.0)], [max(estimate.high - estimate.mean, 0.0)]]


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple["Figure", Any]:
    """A figure of ``size`` inches and its axes, [rows, columns]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def of_arm(measured: Measured, arm: str) -> dict[str, Any]:
    """Colour and marker of an arm, the same in every chart; a method of both versions keeps its own."""
    arms = measured.experiment.arms
    others = dict.fromkeys(about.method or name for name, about in arms.items())
    place = [*METHODS, *(name for name in others if name not in METHODS)].index(arms[arm].method or arm)
    again = place // len(COLOURS)  # Another marker in the same colour.
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[(place + 3 * again) % len(MARKERS)]}


def name(measured: Measured, arm: str, iteration: int = 0) -> str:
    """An arm's label, short enough for a legend."""
    label = measured.label(arm, iteration)
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


def line(measured: Measured, arm: str) -> str:
    """The line style of an arm's version."""
    return "--" if measured.experiment.arms[arm].version == "v1" else "-"
