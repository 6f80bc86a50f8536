"""Which lm-eval tasks a config asks for, and the rows that they run on: local JSON Lines mirrors or the hub.

A `real_` benchmark is lm-eval's stock task, or the stock group of subjects, with prompts, filters and metrics as they
are installed; only its data may come from a local file. A `micro_` one is a YAML file of eval/tasks. Any other task of
lm-eval's is asked by its name, on its own data. Everything is checked before a model is loaded.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from eval import benchmarks
from eval.benchmarks import LmEval
from eval.settings import Evaluation, Mirror, Task
from sso.errors import InputError
from sso.records import iter_json_lines
from sso.settings import hint, nearest

SUITES = Path(__file__).with_name("suites.yaml")
OPTIONAL = ("type", "cot_content")
"""Columns that are passed on where a mirror has them: MATH's subject, the reasoning of MMLU-Pro's worked examples."""


@dataclass(frozen=True)
class Source:
    """A task with what it runs on."""

    task: Task
    path: Path | None
    """The mirror; None: the hub."""
    rows: list[dict[str, Any]]
    shots: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The task's name in the settings."""
        return self.task.name

    @property
    def benchmark(self) -> LmEval | None:
        """The benchmark that is asked; None for a task that lm-eval alone knows."""
        return benchmarks.of_lm_eval()[benchmarks.metric(self.name)] if self.task.kind == "benchmark" else None

    @property
    def real(self) -> LmEval | None:
        """The benchmark, where it is asked as lm-eval has it."""
        return self.benchmark if self.name.startswith("real_") else None

    @property
    def mirror(self) -> str:
        """The real benchmark's name under `mirrors`."""
        return (self.real and self.real.mirror) or benchmarks.metric(self.name)


def suite(name: str, endpoint: bool = False) -> list[Task]:
    """lm-eval's benchmarks of a paper version; for an endpoint with the variants that need no log-likelihoods."""
    tasks = [Task(**values) for values in yaml.safe_load(SUITES.read_text(encoding="utf-8"))[name]]
    return [_for_endpoint(task) for task in tasks] if endpoint else tasks


def _for_endpoint(task: Task) -> Task:
    """The variant of a task that needs no log-likelihoods, where it has one."""
    variant = benchmarks.of_lm_eval()[benchmarks.metric(task.name)].generative
    return task.model_copy(update={"name": variant, "max_new_tokens": task.max_new_tokens or 1024}) if variant else task


def check(settings: Evaluation, world: Collection[str] | None = None) -> None:
    """Raise InputError for a task that is unknown, named twice, or without data.

    ``world``: the benchmarks that a world's data folder has rows of; None: not known yet.
    """
    for number, task in enumerate(settings.tasks):
        same = [o.name for o in settings.tasks[:number] if benchmarks.metric(o.name) == benchmarks.metric(task.name)]
        if same:
            what = "is named twice" if task.name in same else f"and {same[0]} would give the same figure"
            raise InputError(f"evaluation.tasks: {task.name} {what}; leave one out.")
        if task.kind == "lm_eval":
            _check_own(task)
        elif task.name not in benchmarks.tasks():
            own = "for lm-eval's own say `kind: lm_eval`; " if task.name in lm_eval_names() else ""
            if not nearest(task.name, benchmarks.tasks()) and (near := nearest(task.name, lm_eval_names())):
                own = own or f"lm-eval's own are asked with `kind: lm_eval`, {near} "
            raise InputError(
                f"evaluation.tasks: unknown task {task.name!r}; {own}{hint(task.name, benchmarks.tasks())}"
            )
        elif (
            task.file is None
            and task.name.startswith("micro_")
            and world is not None
            and benchmarks.metric(task.name) not in world
        ):
            raise InputError(f"evaluation.tasks: {task.name} needs a `file`, a JSON Lines copy of the benchmark.")
        elif task.file is not None and not Path(task.file).is_file():
            raise InputError(f"evaluation.tasks: {task.name}: {task.file}: no such file; give a JSON Lines file.")
    for name, mirror in settings.mirrors.items():
        for file in filter(None, [mirror.test, mirror.shots]):
            if not Path(file).is_file():
                raise InputError(f"evaluation.mirrors.{name}: {file}: no such file; give a JSON Lines file.")


def _check_own(task: Task) -> None:
    if task.include_path is not None and not Path(task.include_path).is_dir():
        raise InputError(
            f"evaluation.tasks: {task.name}: include_path: {task.include_path}: no such folder; give another."
        )
    own = names_in(Path(task.include_path)) if task.include_path else {}
    if task.name not in own and task.name not in lm_eval_names():
        where = f"; {task.include_path} has {', '.join(own) or 'none'}" if task.include_path else ""
        near = nearest(task.name, [*own, *lm_eval_names()]) or "`lm-eval ls tasks` lists its own (tags are not taken)."
        raise InputError(f"evaluation.tasks: lm-eval has no task or group {task.name!r}{where}; {near}")
    if benchmarks.metric(task.name) in benchmarks.columns():
        raise InputError(
            f"evaluation.tasks: {task.name}: with `kind: lm_eval` it would stand in the column of our own benchmark; "
            f"take real_{benchmarks.metric(task.name)}."
        )


@cache
def names_in(folder: Path) -> dict[str, Path]:
    """Tasks and groups that the YAML files below a folder define -> their file.

    By text: lm-eval's own index of all that it has takes many seconds.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.y*ml")):
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        for name in re.findall(r"(?m)^(?:task|group) *: *['\"]?([\w.:-]+)['\"]? *(?:#.*)?$", text):
            found[name] = path
    return found


def lm_eval_names() -> dict[str, Path]:
    """Tasks and groups that lm-eval brings -> their file."""
    from importlib.util import find_spec

    spec = find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    return names_in(Path(spec.origin).with_name("tasks"))


def find(settings: Evaluation, data: Path | None, endpoint: bool = False) -> list[Source]:
    """The rows of every task, checked.

    Raises InputError for an unknown task, a missing file, a row without a column that the task reads, or for an
    ``endpoint`` a task that needs log-likelihoods.
    """
    check(settings)
    sources = []
    for task in settings.tasks:
        world, name = task.name.partition("_")[0], benchmarks.metric(task.name)
        if task.kind == "lm_eval":
            sources.append(Source(task, None, [], []))
            continue
        if endpoint:
            _check_generative(task.name, world, name)
        sources.append(_real(task, name, settings.mirrors) if world == "real" else _micro(task, name, data))
    return sources


def _check_generative(task: str, world: str, name: str) -> None:
    benchmark = benchmarks.of_lm_eval()[name]
    variant = benchmark.generative if world == "real" else None
    if variant or (world == "micro" and benchmark.micro_likelihoods):
        way = f"take {variant}" if variant else "leave it out"
        raise InputError(f"evaluation.tasks: {task} needs log-likelihoods, which a chat endpoint does not give: {way}.")


def _micro(task: Task, name: str, data: Path | None) -> Source:
    if task.num_fewshot:
        raise InputError(f"evaluation.tasks: {task.name} has no worked examples; leave num_fewshot out.")
    if task.file:
        path = Path(task.file)
    elif data is not None:
        path = data / f"{name}.jsonl"
    else:
        raise InputError(f"evaluation.tasks: {task.name} needs `file`, or --data, the folder of {name}.jsonl.")
    return Source(task, path, _rows(path, benchmarks.micro()[name].micro or (), task.limit), [])


def _real(task: Task, name: str, mirrors: Mapping[Any, Mirror]) -> Source:
    benchmark, hub = benchmarks.of_lm_eval()[name], Source(task, None, [], [])
    mirror = Mirror(test=task.file) if task.file else mirrors.get(hub.mirror)
    if mirror is None:
        return hub
    path = Path(mirror.test)
    rows = _rows(path, benchmark.columns, task.limit)
    if task.num_fewshot == 0 or benchmark.own_examples:
        return Source(task, path, rows, [])
    beside = [path.with_name(f"{split}.jsonl") for split in ("train", "dev", "validation")]
    shots = Path(mirror.shots) if mirror.shots else next((p for p in beside if p.is_file() and p != path), None)
    return Source(task, path, rows, _rows(shots, benchmark.columns, None) if shots else [])


def _rows(path: Path, columns: tuple[str, ...], limit: int | None) -> list[dict[str, Any]]:
    rows = []
    for number, row in iter_json_lines(path):
        if missing := [column for column in columns if column not in row]:
            raise InputError(f"{path}:{number}: lacks `{missing[0]}`, which the rows of this benchmark must have.")
        rows.append({column: row[column] for column in (*columns, *OPTIONAL) if column in row})
        if len(rows) == limit:
            break
    if not rows:
        raise InputError(f"{path}: holds no row; give at least one.")
    return rows
