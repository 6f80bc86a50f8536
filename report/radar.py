"""MT-Bench's categories as a radar chart, one line a model; SVG, PNG or PDF by the file's name."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from report.collect import read_json
from report.style import COLOURS, MARKERS
from sso.errors import InputError


def read_categories(path: Path) -> dict[str, float]:
    """Mean grade by category from a scores.json; InputError where it holds no judged MT-Bench."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give scores.json of a folder that `sso-eval judge` wrote.")
    categories = read_json(path).get("mt_bench", {}).get("categories", {})
    found = {name: value for name, value in categories.items() if value is not None}
    if len(found) < 3:
        raise InputError(f"{path}: holds {len(found)} graded MT-Bench categories; a radar needs three or more.")
    return found


def spokes(
    axis: Any, models: Mapping[str, Mapping[str, float]], styles: Mapping[str, Mapping[str, Any]], top: float
) -> None:
    """``models`` (means by category) on a polar axis that ends at ``top``, each in its style."""
    names = list(next(iter(models.values())))
    angles = [2 * math.pi * i / len(names) for i in range(len(names))]
    axis.set_theta_offset(math.pi / 2)
    axis.set_theta_direction(-1)
    axis.set_xticks(angles, names)
    axis.set_ylim(0, top)
    axis.set_yticks([top * i / 5 for i in range(1, 6)])
    for label, values in models.items():
        means = [values[name] for name in names]
        axis.plot([*angles, angles[0]], [*means, means[0]], label=label, markersize=4, **styles[label])


def draw(models: Mapping[str, Mapping[str, float]], out: Path) -> None:
    """A chart of ``models`` (grades of 1 to 10 by category) at ``out``; all must have the same categories.

    The same data gives the same bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    names = list(next(iter(models.values())))
    for label, values in models.items():
        if set(values) != set(names):
            raise InputError(f"{label}: its categories differ from the first model's; chart them apart.")
    with matplotlib.rc_context({"svg.hashsalt": "radar"}):
        figure = Figure(figsize=(6.4, 6), layout="constrained")
        axis = figure.add_subplot(projection="polar")
        styles = {
            label: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            for i, label in enumerate(models)
        }
        spokes(axis, models, styles, 10)
        axis.set_title("MT-Bench: mean grade by category, both turns")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.tmp{out.suffix}")
        figure.savefig(temporary, metadata={"Date": None} if out.suffix == ".svg" else None)
        temporary.replace(out)
