"""The paper's own differences beside ours: a - b of one of its tables, on the backbone beside one of ours."""

from typing import Any, NamedTuple

from report import render
from report.measured import Measured
from report.tables import beside


class Printed(NamedTuple):
    """A difference of two figures that the paper prints."""

    backbone: str
    """The paper's."""
    metric: str
    text: str
    doubt: str | None
    """Why it may be misprinted."""


def difference(measured: Measured, spec: dict[str, Any], metric: str, backbone: str) -> Printed | None:
    """What the paper prints of a claim's or headline's a - b: ``metric``, else the measure that the paper goes by.

    ``spec`` names a and b by method, and in v1 by iteration, as in tables.yaml. None where no table of the version with
    its own loss has both.
    """
    version, papers = spec.get("version", "v2"), measured.experiment.backbones[backbone].paper
    tables = [own for own in measured.content["tables"].values() if own["version"] == version and "loss" not in own]
    for name in dict.fromkeys((metric, measured.content["at_scale"].get(metric, metric))):
        for table in (own for own in tables if own.get("paper_table")):
            paper, _ = beside(measured, table, papers)
            found = [_key(measured, (version, table["paper_table"], paper), spec, side, name) for side in "ab"]
            a, b = found
            if paper and a and b and a != b:
                value = measured.printed[a] - measured.printed[b]
                doubt = next((measured.doubts[key] for key in (a, b) if key in measured.doubts), None)
                text = render.number(value, measured.content["metrics"][name]["digits"])
                return Printed(paper, name, text + (render.DOUBT if doubt else ""), doubt)
    return None


def _key(
    measured: Measured, at: tuple[Any, ...], spec: dict[str, Any], side: str, metric: str
) -> tuple[Any, ...] | None:
    """The printed figure of a side; a method's first or last iteration where it has some."""
    known = [key for key in measured.printed if key[:3] == at and key[3] == spec[side] and key[5] == metric]
    known.sort(key=lambda key: key[4])
    return known[0 if spec.get(f"{side}_iteration") == "first" else -1] if known else None
