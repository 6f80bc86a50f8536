"""What a person reads when a run is done: its first figures, where its page is, what to type next.

Figures are the report's own words (tables/claims.csv), never computed again.
"""

import csv
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from report.measured import specs
from sso.config import Experiment

FIGURES = 3


def told(experiment: Experiment, root: Path, path: str, brief: bool = False) -> Iterator[str]:
    """The lines; none where the run has made no report.

    Args:
        root: the experiment's folder, as the user's shell finds it.
        path: the PATH that the user's shell has.
        brief: the page alone.
    """
    page = root / "report" / "report.html"
    if not page.is_file():
        return
    yield f"done: {page}"
    if brief:
        return
    figures = list(headline(root / "report" / "tables" / "claims.csv"))
    if figures:
        yield f"{scale(experiment)}; 95% intervals:"
        yield from (f"  {figure}" for figure in figures)
    else:
        yield "no headline figure has an interval here; the page says why, claim by claim."
    yield "next:"
    yield from (f"  {command}" for command in commands(experiment, root, path))


def headline(claims: Path) -> Iterator[str]:
    """Figures with intervals and their claims' verdicts: those that tables.yaml has on top, over all backbones."""
    if not claims.is_file():
        return
    with claims.open(encoding="utf-8", newline="") as file:
        rows = {row["claim"]: row for row in csv.DictReader(file)}  # the last row of a claim is that of all backbones
    tested = {claim: row for claim, row in rows.items() if not row["verdict"].startswith(("not tested", "untestable"))}
    first: dict[str, dict[str, str]] = {}
    for spec in specs()["claims"]:
        if "figure" in spec and spec["claim"] in tested:
            first.setdefault(spec["figure"], tested[spec["claim"]])
    marked = list(first.values())
    for row in [*marked, *(row for row in tested.values() if row not in marked)][:FIGURES]:
        figure, *notes = row["difference"].split("; ")
        said = "; ".join([figure, *(note for note in notes if not note.startswith("smallest effect"))])
        where = "all backbones" if row["backbone"] == "all" else row["backbone"]
        yield f'{said} ({where}): "{row["claim"]}" {row["verdict"]}'


def scale(experiment: Experiment) -> str:
    """What kind of evidence the figures are."""
    judge = experiment.evaluation.judge
    if experiment.world is None:
        return f"judged by {judge.title}"
    tiny = ", tiny models" if all(backbone.architecture for backbone in experiment.backbones.values()) else ""
    by = "its oracle" if judge.kind == "oracle" else judge.title
    what = f"a simulated world{tiny}" if experiment.world.KIND == "micro" else "real prompts with checkable constraints"
    return f"{what}, judged by {by}: about the algorithm, never about 7B models"


def commands(experiment: Experiment, root: Path, path: str) -> Iterator[str]:
    """A table, and MLflow's pages, as commands of the environment that this process runs in."""

    def program(name: str) -> str:
        here = Path(sys.executable).parent / name
        found = shutil.which(name, path=path)
        return name if found and Path(found).parent == here.parent else str(here)

    version = "v2" if any(arm.version == "v2" for arm in experiment.arms.values()) else "v1"
    given = ["--experiment", experiment.experiment]
    if root != Path("results", experiment.experiment):
        given += ["--results", str(root)]
    yield shlex.join([program("sso"), "table", *given, "--version", version, "--table", "1"])
    store = experiment.tracking_uri or f"sqlite:///{root / 'mlflow.db'}"
    yield shlex.join([program("mlflow"), "ui", "--backend-store-uri", store, "--host", "127.0.0.1"])
