"""What a person reads when a run is done: its first figures, where its page is, what to type next.

Figures are the report's own words (told.json), never chosen or computed again.
"""

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from sso.config import Experiment


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
        figures = json.loads((page.parent / "told.json").read_text(encoding="utf-8"))["headline"]
    except FileNotFoundError:  # a page of before
        figures = []
    if figures:
        yield f"{scale(experiment)}; 95% intervals:"
        yield from (f"  {figure}" for figure in figures)
    else:
        yield "no headline figure has an interval here; the page says why, claim by claim."
    yield "next:"
    yield from (f"  {command}" for command in commands(experiment, root, path))


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
