"""The one door to an experiment: its config files, merged and checked, and the jobs that it takes.

Plain Python: knows nothing of Snakemake, models or files' contents.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sso.config import Experiment, parse
from sso.errors import InputError
from sso.jobs.grid import Jobs
from sso.settings import config_file, hint, lay, merge, read_yaml
from workflow.cell import Cell
from workflow.shared import Draft

SHORT = ("model", "queries", "gsm8k", "judge")
"""Keys of `--config` that are short for the places which `config/local_model.yaml` leaves open."""
TRY_ROWS = 8
"""Rows of GSM8K where `--config gsm8k=FILE` adds it to a config that has no such task."""


_LONG = {
    "model": "`backbones={NAME: {path: ...}}`",
    "queries": "`data={queries: ...}`",
    "gsm8k": "`evaluation={tasks: [{name: real_gsm8k, file: ...}]}`",
    "judge": "`evaluation={judge: {kind: reward, path: ...}}`",
}


class Grid(Jobs):
    """All jobs of an experiment under ``<results>/<experiment>``."""

    def __init__(self, experiment: Experiment, results: str = "results"):
        draft = Draft(experiment, results)
        config = draft.config()
        draft.data()
        ends: list[str] = []
        for seed in experiment.seeds:
            for backbone in experiment.backbones:
                ends += Cell(draft, backbone, seed).build()
        last = draft.report(config, ends)
        self.targets = [last.output, draft.mlflow(last).output, *draft.data_files.values()]
        """What `rule all` asks for: the last jobs, and all data, as Snakemake runs no job again, whatever has changed,
        while an output is missing that nobody reads."""
        self.paths = draft.paths
        super().__init__(experiment, draft.paths.root, [*draft.jobs.values()], draft.data_folder, draft.data_files)


def load(files: list[str | Path], given: Mapping[str, Any]) -> Experiment:
    """The experiment of the config files, later ones on top, then of what ``--config`` gave.

    ``model``, ``queries``, ``gsm8k`` and ``judge`` (a reward model's folder or name, or a judge's settings) are short
    for places of a config with a backbone `local` that has a `path`, as `config/local_model.yaml`.

    Raises:
        InputError: one of these is given to another config, or a key, name or value is wrong.
    """
    values: dict[str, Any] = {}
    for file in files:
        values = lay(values, read_yaml(config_file(file) or file), file)
    given = dict(_with_nulls(given))
    local = (values.get("backbones") or {}).get("local")
    made_for = isinstance(local, dict) and "path" in local
    for key in given:
        if key in SHORT and not made_for:
            raise InputError(
                f"--config {key}=...: only for configs with a backbone `local` that has a `path`, as "
                f"config/local_model.yaml; here give {_LONG[key]}."
            )
        if key not in SHORT and key not in Experiment.model_fields:
            known = [*Experiment.model_fields, *(SHORT if made_for else ())]
            raise InputError(f"--config: unknown key `{key}`; {hint(str(key), known, 'known keys')}")
    arms = given.get("arms")
    for name, arm in arms.items() if isinstance(arms, dict) else ():
        if name not in values.get("arms", {}) and "label" not in (arm or {}):
            raise InputError(f"--config arms: unknown arm {name!r}; {hint(str(name), values.get('arms', {}))}")
    if "model" in given:
        values = merge(values, {"backbones": {"local": {"path": str(given.pop("model"))}}})
    if "queries" in given:
        values = merge(values, {"data": {"queries": str(given.pop("queries"))}})
    if "gsm8k" in given:
        values = merge(values, {"evaluation": {"tasks": _with_gsm8k(values, str(given.pop("gsm8k")))}})
    if "judge" in given:
        judge = given.pop("judge")
        judge = {"kind": "reward", "path": judge} if isinstance(judge, str) else judge
        values = merge(values, {"evaluation": {"judge": judge}})
    return parse(lay(values, given, "--config"), " + ".join(map(str, files)))


def _with_gsm8k(values: Mapping[str, Any], file: str) -> list[dict[str, Any]]:
    """A config's tasks with real GSM8K on ``file``: the one that is among them, else its first rows."""
    tasks = (values.get("evaluation") or {}).get("tasks") or []
    if any(task.get("name") == "real_gsm8k" for task in tasks):
        return [{**task, "file": file} if task.get("name") == "real_gsm8k" else task for task in tasks]
    return [*tasks, {"name": "real_gsm8k", "file": file, "limit": TRY_ROWS}]


def _with_nulls(value: Any) -> Any:
    """Snakemake reads the scalars inside ``--config a='{b: null}'`` as text; numbers are the schema's to convert."""
    if isinstance(value, Mapping):
        return {key: _with_nulls(item) for key, item in value.items()}
    return None if value == "null" else value
