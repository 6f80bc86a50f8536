"""The benchmarks, a module each, found by name: to add one, write a module with `BENCHMARKS`, and name it in a
config."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from eval.benchmarks.record import Column, Judged, LmEval


@cache
def records() -> dict[str, LmEval | Judged]:
    """Every benchmark by name."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    return {record.name: record for module in modules for record in getattr(module, "BENCHMARKS", ())}


@cache
def of_lm_eval() -> dict[str, LmEval]:
    """lm-eval's, by name."""
    return {name: record for name, record in records().items() if isinstance(record, LmEval)}


@cache
def of_judges() -> dict[str, Judged]:
    """Those whose answers are judged, by name."""
    return {name: record for name, record in records().items() if isinstance(record, Judged)}


@cache
def micro() -> dict[str, LmEval]:
    """Those of which a world has a look-alike."""
    return {name: record for name, record in of_lm_eval().items() if record.micro is not None}


@cache
def tasks() -> list[str]:
    """Every name that a config's task of `kind: benchmark` can have."""
    return sorted(
        [f"micro_{name}" for name in micro()]
        + [f"real_{name}" for name, record in of_lm_eval().items() if not record.only_world]
    )


@cache
def files() -> dict[str, str]:
    """What `evaluation.files` may give, and what each is called in the data folder."""
    return {key: name for record in of_judges().values() for key, name in record.files.items()}


@cache
def columns() -> dict[str, Column]:
    """How each metric is shown."""
    found: dict[str, Column] = {}
    for record in records().values():
        found |= {record.name: record.column} if isinstance(record, LmEval) else record.columns
    return found


def metric(task: str) -> str:
    """The metric of an lm-eval task: its name without the world that it is asked in."""
    return task.removeprefix("micro_").removeprefix("real_")
