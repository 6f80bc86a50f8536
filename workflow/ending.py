"""What a person reads when a run is done: its first figures, where its page is, what to type next.

Figures are the report's own words (told.json), never chosen or computed again.
"""

import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sso.config import Experiment
from sso.errors import without_passwords


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
    try:
        said = json.loads((page.parent / "told.json").read_text(encoding="utf-8"))
    except FileNotFoundError:  # a page of before
        said = {}
    if mute := said.get("judge"):
        yield f"warning: {mute}."
    if figures := said.get("headline"):
        yield f"{scale(experiment)}; 95% intervals:"
        yield from (f"  {figure}" for figure in figures)
    else:
        yield "no headline figure has an interval here; the page says why, claim by claim."
    yield from (f"{counted}." for counted in said.get("counts", []))
    yield "next:"
    yield from (f"  {command}" for command in commands(experiment, root, path, said.get("tables")))


def scale(experiment: Experiment) -> str:
    """What kind of evidence the figures are."""
    judge = experiment.evaluation.judge
    if experiment.world is None:
        return f"judged by {judge.title}"
    tiny = ", tiny models" if all(backbone.architecture for backbone in experiment.backbones.values()) else ""
    by = "its oracle" if judge.kind == "oracle" else judge.title
    what = f"a simulated world{tiny}" if experiment.world.KIND == "micro" else "real prompts with checkable constraints"
    return f"{what}, judged by {by}: about the algorithm, never about 7B models"


def commands(experiment: Experiment, root: Path, path: str, tables: Sequence[str] | None = None) -> Iterator[str]:
    """A table, the first of the ``tables`` that have figures (None: not known), and MLflow's pages, as commands of the
    environment that this process runs in."""

    def program(name: str) -> str:
        here = Path(sys.executable).parent / name
        found = shutil.which(name, path=path)
        return name if found and Path(found).parent == here.parent else str(here)

    if tables is None:
        tables = ["v2_table1" if any(arm.version == "v2" for arm in experiment.arms.values()) else "v1_table1"]
    given = ["--experiment", experiment.experiment]
    if root != Path("results", experiment.experiment):
        given += ["--results", str(root)]
    for name in tables[:1]:
        version, _, table = name.partition("_")
        table = table.removeprefix("table")
        yield shlex.join([program("sso"), "table", *given, "--version", version, "--table", table])
    store = experiment.tracking_uri or f"sqlite:///{root / 'mlflow.db'}"
    store = without_passwords(store)  # to be filled in: what is printed ends in a log
    yield shlex.join([program("mlflow"), "ui", "--backend-store-uri", store, "--host", "127.0.0.1"])
