"""One table of a run on the terminal, or as Markdown, LaTeX or CSV: what `sso table` prints."""

import sys
from collections.abc import Collection
from pathlib import Path

from report import render, tables
from report.collect import collect
from report.measured import Measured, specs, with_own_tasks
from sso.config import Experiment, load
from sso.errors import InputError
from sso.jobs.grid import Jobs

FORMATS = {"markdown": render.markdown, "latex": render.latex, "csv": render.table_csv}


def find(experiment: str | None, config: Path | None, results: Path | None) -> tuple[Experiment, Path]:
    """An experiment and the folder of its results, from its name (in results/) or its config file.

    Raises InputError where there is no such folder, or neither is given.
    """
    if (experiment is None) == (config is None):
        raise InputError("sso table: give one of --experiment (a folder in results/) and --config (a file).")
    path = config or (results or Path("results", experiment or "")) / "config.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; run the experiment first, or give --results or --config.")
    made = load(path)
    folder = results or Path("results", experiment or made.experiment)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; run the experiment first, or give --results.")
    return made, folder


def name_of(version: str, table: str, known: Collection[str]) -> str:
    """The name in tables.yaml, of those that are ``known``, of `3` or `figure3` of a version, or of any by its name;
    InputError lists what there is."""
    for name in (f"{version}_table{table}", f"{version}_{table}", table):
        if name in known:
            return name
    own = [name.removeprefix(f"{version}_").removeprefix("table") for name in known if name.startswith(f"{version}_")]
    there = [*own, *(name for name in known if not name.startswith(("v1_", "v2_")))]
    raise InputError(f"sso table: {version} has no table {table!r}; there are {', '.join(there)}.")


def show(jobs: Jobs, results: Path, version: str, table: str, form: str = "terminal") -> None:
    """Print one table of what lies under ``results``."""
    known = with_own_tasks(specs(), jobs.experiment)["tables"]
    name = name_of(version, table, known)
    fitted = "alpaca_eval2_lc" in known[name]["columns"]
    measured = Measured(collect(jobs, results, fitted))
    made = tables.table(measured, name)
    if not tables.asked(measured, made.spec):
        raise InputError(
            f"sso table: {jobs.experiment.experiment} has no benchmark that {name} is about; take another table, or "
            "name it in `evaluation.judged` of its config."
        )
    if not made.applies:
        lacks = ", ".join(made.absent) or "them"
        raise InputError(
            f"sso table: {jobs.experiment.experiment} has none of the arms that {name} is about ({lacks}); "
            "take another table, or add the arms to its config."
        )
    if form != "terminal":
        sys.stdout.write(FORMATS[form](measured, made))
        return
    from rich.console import Console

    # Piped, rich would cut the table to 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    for part in render.terminal(measured, made):
        console.print(part)
