"""The grid of an experiment: every job of the workflow, what it reads, what it makes, and its settings.

Plain Python: knows the config and the path scheme, and is the only one who knows the latter; knows nothing of
Snakemake, models or files' contents. A job's settings hold exactly what its result depends on, because a change
of them is what makes Snakemake run the job again: an arm's beta is in that arm's training and nowhere else.

A *cell* is one backbone with one seed. A *run* is what is evaluated: an arm, or an iteration of it (`sso_v1/it2`).
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from eval import benchmarks
from eval.settings import Evaluation
from sso.chat import check_checkpoint, check_prompts, check_system
from sso.config import HUB_FILE, Arm, Experiment, parse
from sso.errors import InputError
from sso.objective import load_objectives
from sso.records import Query, read
from sso.sampling.settings import Writer
from sso.settings import ROOT, merge, read_yaml
from sso.train.settings import Training
from workflow.costs import Cost, Costs

PATHS = {
    "config": "{root}/config.json",
    "data": "{root}/data",
    "preferences": "{root}/data/{part}.jsonl",
    "principles": "{writer}/principles/{guidelines}.jsonl",
    "sft": "{cell}/sft",
    "sample": "{cell}/triples/{set}/triples.jsonl",
    "reference": "{cell}/triples/{set}/reference.safetensors",
    "generator": "{cell}/generator/{arm}",
    "pairs": "{cell}/pairs/{arm}/pairs.jsonl",
    "pairs_reference": "{cell}/pairs/{arm}/reference.safetensors",
    "data_quality": "{cell}/pairs/{arm}/data_quality.json",
    "policy": "{cell}/policy/{run}",
    "evaluate": "{cell}/eval/{run}/answers",
    "judge": "{cell}/eval/{run}/judged",
    "mixture": "{cell}/reward/{reward}/pairs.jsonl",
    "reward_model": "{cell}/reward/{reward}/model",
    "rewardbench": "{cell}/reward/{reward}/rewardbench.json",
    "report": "{root}/report",
    "mlflow": "{root}/mlflow.done",
}
REFERENCE = ("dtype", "end_cut_responses", "engine", "max_length")
"""Settings of a training that its reference scores depend on."""
TRY_ROWS = 8
"""Rows of GSM8K where `--config gsm8k=FILE` adds it to a config that has no such task."""
BENCHMARKS = ("gsm8k", "math", "ifeval", "mmlu", "mmlu_pro", "gpqa")


@dataclass(frozen=True)
class Job:
    """One command of the workflow: ``params`` are its settings as text or as lists of arguments."""

    rule: str
    wildcards: Mapping[str, str]
    output: str
    inputs: Mapping[str, str | list[str]] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)

    def reads(self, *names: str) -> list[str]:
        """All input paths, or those of ``names``, flat."""
        values = [value for name, value in self.inputs.items() if not names or name in names]
        return [path for value in values for path in ([value] if isinstance(value, str) else value)]


def file_name(name: str) -> str:
    """Of a judged benchmark's file in the data folder (docs/evaluation_judges.md)."""
    return {"reference": "reference.json", "difficulty": "difficulty.csv"}.get(name, f"{name}.jsonl")


def text(settings: BaseModel | Mapping[str, Any], *keys: str, without: Iterable[str] = ()) -> str:
    """Settings as one line of JSON; ``keys`` picks some, ``without`` drops some."""
    values = settings.model_dump() if isinstance(settings, BaseModel) else dict(settings)
    values = {key: value for key, value in values.items() if (not keys or key in keys) and key not in without}
    return json.dumps(values, sort_keys=True, ensure_ascii=False)


def load(files: list[str | Path], given: Mapping[str, Any]) -> Experiment:
    """The experiment of the config files, later ones on top, then of what ``--config`` gave.

    ``model``, ``queries`` and ``gsm8k`` are short for the places that `config/local_model.yaml` leaves open.
    """
    values: dict[str, Any] = {}
    for file in files:
        values = merge(values, read_yaml(file))
    given = dict(_with_nulls(given))
    arms = given.get("arms")
    for name, arm in arms.items() if isinstance(arms, dict) else ():
        if name not in values.get("arms", {}) and "label" not in (arm or {}):
            raise InputError(f"--config arms: unknown arm {name!r}; known: {', '.join(values.get('arms', {}))}.")
    if "model" in given:
        values = merge(values, {"backbones": {"local": {"path": str(given.pop("model"))}}})
    if "queries" in given:
        values = merge(values, {"data": {"queries": str(given.pop("queries"))}})
    if "gsm8k" in given:
        values = merge(values, {"evaluation": {"tasks": _with_gsm8k(values, str(given.pop("gsm8k")))}})
    return parse(merge(values, given), " + ".join(map(str, files)))


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


def check(experiment: Experiment) -> None:
    """Raise InputError, one sentence, for what would fail only after work has started."""
    for kind in ("arms", "backbones", "rewards"):
        for name in getattr(experiment, kind):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
                raise InputError(f"{kind}: {name!r} names a folder, so letters, digits and `_.-` only.")
    for name, arm in experiment.arms.items():
        for stage, training in (("generator", arm.generator), ("policy", arm.policy)):
            if training and len(training.learning_rates) > 1 and experiment.world is None:
                raise InputError(
                    f"arms.{name}.{stage}.learning_rates: give one; only the micro-world's oracle can choose."
                )
    arms = experiment.arms.values()
    annotated = [
        a.policy for a in arms if a.policy and a.data == "annotated" and not experiment.world and not chained(a)
    ]
    for who, trainings in (("generators", [a.generator for a in arms if a.generator]), ("policies", annotated)):
        if len({(t.numerics, t.max_length, t.end_cut_responses) for t in trainings}) > 1:
            raise InputError(
                f"arms: {who} share their reference scores, so `max_length`, `end_cut_responses`, `dtype` and "
                "what `engine` makes of it (float32 weights with ddp, else bfloat16 ones) must be the same."
            )
    for name, reward in experiment.rewards.items():
        for source in reward.parts:
            if source.arm and experiment.arms[source.arm].policy is None:
                raise InputError(f"rewards.{name}.arm: arm {source.arm!r} makes no pairs; choose one that does.")
            if source.path and not Path(source.path).exists() and not is_hub_name(source.path):
                raise InputError(f"rewards.{name}.sources: {source.path}: no such file; give one or a hub name.")
    bench = experiment.evaluation.rewardbench
    if experiment.rewards and experiment.world is None and not Path(bench).exists() and not is_hub_name(bench):
        raise InputError(f"evaluation.rewardbench: {bench}: no such file; give one, or its name on the hub.")
    queries = []
    if experiment.data.queries is not None and Path(experiment.data.queries).is_file():
        queries = read(experiment.data.queries, Query)[: experiment.data.limit]
    elif experiment.data.queries is not None and not is_hub_name(experiment.data.queries):
        raise InputError(f"{experiment.data.queries}: no such file; give a file or a data set's name on the hub.")
    if experiment.data.tune is not None:
        read(experiment.data.tune, Query)
    check_tasks(experiment)
    hard = experiment.evaluation.difficulty
    if hard is not None and not hard.startswith("hf://") and not Path(hard).is_file():
        raise InputError(f"evaluation.difficulty: {hard}: no such file; give a CSV, `hub`, or leave it out.")
    checkpoints = [backbone.path for backbone in experiment.backbones.values() if backbone.path]
    writers = [writer.path for writer in experiment.all_writers if writer.path]
    for path in [*checkpoints, *writers]:
        if not Path(path).is_dir() and not is_hub_name(path):
            raise InputError(f"{path}: no such folder; give a checkpoint's folder or its name on the hub.")
        base = any(backbone.sft and backbone.path == path for backbone in experiment.backbones.values())
        check_checkpoint(path, template=not base)
        check_prompts(path, queries, experiment.sampling.max_new_tokens)
    for start, guide in guided(experiment):
        if (Path(start) / "tokenizer.json").is_file():
            check_system(start, f"arms.{guide}")


def guided(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """The checkpoint whose chat template each backbone uses, and an arm for which it is sampled under principles."""
    for name, backbone in experiment.backbones.items():
        given = (backbone.chat_template or experiment.sft.chat_template) if backbone.sft and experiment.sft else None
        for key, arm in experiment.arms.items():
            on = arm.backbones is None or name in arm.backbones
            if backbone.path and on and arm.data in ("triples", "good_bad", "good_original"):
                yield given or backbone.path, key
                break


def evaluations(experiment: Experiment) -> list[Evaluation]:
    """The different evaluations of an experiment's arms and backbones, its own first."""
    found = [experiment.evaluation]
    found += [experiment.evaluation_of(b, arm) for b in experiment.backbones for arm in experiment.arms]
    return list({one.model_dump_json(): one for one in found}.values())


def check_tasks(experiment: Experiment) -> None:
    """Raise InputError for a benchmark (of an arm or backbone, too) that is unknown, named twice, or without data."""
    for evaluation in evaluations(experiment):
        _check_tasks(evaluation, experiment.world is not None)


def _check_tasks(evaluation: Evaluation, micro_world: bool) -> None:
    for number, task in enumerate(evaluation.tasks):
        if task.name not in benchmarks.KNOWN:
            raise InputError(f"evaluation.tasks: unknown task {task.name!r}; known: {', '.join(benchmarks.KNOWN)}.")
        if task.name in [other.name for other in evaluation.tasks[:number]]:
            raise InputError(f"evaluation.tasks: {task.name} is named twice; leave one out.")
        if task.file is None and task.name.startswith("micro_") and not micro_world:
            raise InputError(f"evaluation.tasks: {task.name} needs a `file`, a JSON Lines copy of the benchmark.")
        if task.file is not None and not Path(task.file).is_file():
            raise InputError(f"evaluation.tasks: {task.name}: {task.file}: no such file.")
    for name, mirror in evaluation.mirrors.items():
        for file in filter(None, [mirror.test, mirror.shots]):
            if not Path(file).is_file():
                raise InputError(f"evaluation.mirrors.{name}: {file}: no such file.")


def is_hub_name(name: str) -> bool:
    """Whether a text that is no path here can be OWNER/NAME or OWNER/NAME@REVISION on the hub."""
    known = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", name)
    return known is not None and not Path(name).exists()


def hub_names(experiment: Experiment) -> dict[str, str]:
    """What the experiment takes from the hub: name -> `model`, `dataset` or `file`; nothing where all is local."""
    data, sft, evaluation = experiment.data, experiment.sft, experiment.evaluation
    models = [backbone.checkpoint for backbone in experiment.backbones.values()]
    models += [writer.path for writer in experiment.all_writers]
    sets = [data.queries, data.preferences and data.preferences.place]
    tuned = [backbone for backbone in experiment.backbones.values() if backbone.sft]
    if sft and tuned:
        models, sets = [*models, *(b.chat_template or sft.chat_template for b in tuned)], [*sets, sft.data]
    for reward in experiment.rewards.values():
        models.append(reward.base)
        sets += [source.place for source in reward.sources]
        sets.append(evaluation.rewardbench if experiment.world is None else None)
    found = {name: "model" for name in models if name and is_hub_name(name)}
    found |= {name: "dataset" for name in sets if name and is_hub_name(name)}
    files = [*evaluation.files.values(), *([evaluation.difficulty] if evaluation.difficulty else [])]
    found |= {name: "file" for name in files if name.startswith("hf://")}
    for task in evaluation.tasks:
        name = task.name.removeprefix("real_")
        if task.name.startswith("real_") and not task.file and name not in evaluation.mirrors:
            found[task.name] = "benchmark"
    return found


def repositories(names: Mapping[str, str]) -> dict[str, tuple[str, str | None]]:
    """The hub's repositories behind `hub_names`: name -> (`model`, `dataset` or `space`, revision or None)."""
    found: dict[str, tuple[str, str | None]] = {}
    for name, kind in names.items():
        if kind == "file" and (file := HUB_FILE.fullmatch(name)):
            of = {"hf://datasets/": "dataset", "hf://spaces/": "space"}.get(file[1], "model")
            found[file[2]] = (of, file[3])
        elif kind in ("model", "dataset"):
            repository, _, revision = name.partition("@")
            found[repository] = (kind, revision or None)
    return found


def unpinned(experiment: Experiment) -> dict[str, str]:
    """Repositories that the experiment takes from the hub at no commit, but at a branch or a tag: name -> kind."""
    found = repositories(hub_names(experiment))
    return {name: kind for name, (kind, at) in found.items() if not re.fullmatch("[0-9a-f]{7,40}", at or "")}


def chained(arm: Arm) -> bool:
    """Whether the policy trains on whole triples that it draws itself, once an iteration (v1)."""
    return arm.policy is not None and (arm.data == "triples" or arm.iterations > 1 or arm.offline)


class Grid:
    """All jobs of an experiment under ``<results>/<experiment>``."""

    def __init__(self, experiment: Experiment, results: str = "results"):
        self.experiment = experiment
        self.root = f"{results}/{experiment.experiment}"
        self.cell = self.root + "/{backbone}/s{seed}"
        # Principles that a policy writes itself are its cell's; all others are shared.
        self.writer = self.cell if experiment.principles.kind == "policy" else self.root
        self.jobs: dict[str, Job] = {}
        self._build()
        self._by_wildcards = {(j.rule, frozenset(j.wildcards.items())): j for j in self.jobs.values()}

    # What the rules ask for.

    def pattern(self, name: str) -> str:
        """The path of an output with Snakemake's wildcards in it."""
        fixed = {"root": self.root, "cell": self.cell, "writer": self.writer}
        pattern = PATHS[name]
        for key, value in fixed.items():
            pattern = pattern.replace("{" + key + "}", value)
        return pattern

    def log(self, name: str) -> str:
        """Where a rule's messages go."""
        return f"{self.root}/logs/{self.pattern(name).removeprefix(self.root + '/')}.log"

    def log_of(self, job: Job) -> str:
        """Where a job's messages go; both rules that make pairs write to one place."""
        name = "pairs" if job.rule == "generated_pairs" else job.rule
        return self.log(name).format(**job.wildcards)

    def benchmark(self, name: str) -> str:
        """Where Snakemake writes a job's wall time and peak memory."""
        return f"{self.root}/benchmarks/{self.pattern(name).removeprefix(self.root + '/')}.tsv"

    def job(self, rule: str, wildcards: Mapping[str, Any]) -> Job:
        """The job of a rule; raises InputError for a path that is not in the grid."""
        found = self._by_wildcards.get((rule, frozenset((k, str(v)) for k, v in wildcards.items())))
        if found is None:
            raise InputError(f"{rule}: the config has no such job: {dict(wildcards)}.")
        return found

    def inputs(self, rule: str) -> Callable[[Any], Mapping[str, str | list[str]]]:
        """Input function of a rule."""
        return lambda wildcards: self.job(rule, wildcards).inputs

    def param(self, rule: str, name: str) -> Callable[[Any], Any]:
        """Params function of a rule."""
        return lambda wildcards: self.job(rule, wildcards).params[name]

    def priority(self, rule: str) -> Callable[[Any], int]:
        """Priority function of a rule: the longest chain of jobs that waits for this one."""
        return lambda wildcards: self._depth[self.job(rule, wildcards).output]

    def resource(self, rule: str, name: str) -> Callable[..., int | str]:
        """Resource function of a rule, by the cost model on the experiment's hardware.

        `gpu` (of all machines), `nodes`, `mem_mb`, `runtime` (minutes, twice the model's; a retry gets as much again).
        For SLURM: `tasks` (one a machine, where there are several), `cpus_per_task`, and `mpi` (a job on several
        machines starts its own steps).
        """

        def ask(wildcards: Any, attempt: int = 1) -> int | str:
            if self.experiment.hardware is None:
                cost, minutes = Cost(), 120.0
            else:
                cost = self.cost(self.job(rule, wildcards))
                minutes = attempt * (30 + 2 * 60 * cost.wall_hours)
            several = cost.nodes > 1
            threads = max(1, 4 * cost.gpus)
            own: dict[str, float | str] = {
                "gpu": cost.gpus,
                "mem_mb": 1000 * cost.host_gb,
                "runtime": minutes,
                "nodes": cost.nodes,
                "threads": threads,
                "tasks": cost.nodes if several else 0,
                "cpus_per_task": threads // cost.nodes,
                "mpi": "srun" if several else "",
            }
            value = own[name]
            return value if isinstance(value, str) else math.ceil(value)

        return ask

    def threads(self, rule: str) -> Callable[..., int | str]:
        """Threads function of a rule: four a GPU, which feed it; a job without is one process."""
        return self.resource(rule, "threads")

    @cached_property
    def costs(self) -> Costs:
        """The cost model on the experiment's hardware."""
        return Costs(self.experiment)

    def cost(self, job: Job) -> Cost:
        """What a job costs by the model."""
        return self.costs.of(job.rule, job.wildcards, job.params)

    def environment(self, wildcards: Any) -> str | None:
        """The conda environment file of a job: None, the one that Snakemake runs in, which holds this project."""
        return None

    def engine_environment(self, rule: str) -> Callable[[Any], str | None]:
        """Environment function of a rule that draws text: vLLM's pins exclude those of this project."""

        def ask(wildcards: Any) -> str | None:
            engine = json.loads(self.job(rule, wildcards).params["settings"])["engine"]
            return str(ROOT / "workflow" / "envs" / "vllm.yaml") if engine == "vllm" else None

        return ask

    def command(self, rule: str, module: str) -> Callable[[Any], str]:
        """Command function of a rule that draws text: in vLLM's environment the project is not installed, but found."""
        script = {"sso.cli": "sso", "eval": "sso-eval"}[module]
        environment = self.engine_environment(rule)
        return lambda wildcards: f"python -m {module}" if environment(wildcards) else script

    def names(self, rule: str, wildcard: str) -> str:
        """A regular expression that matches just the values of a wildcard which a rule's jobs have."""
        values = sorted({job.wildcards[wildcard] for job in self.jobs.values() if job.rule == rule})
        return "|".join(map(re.escape, values)) or "(?!)"

    @property
    def targets(self) -> list[str]:
        """What `rule all` asks for: the last jobs."""
        return [self.pattern("report"), self.pattern("mlflow")]

    @cached_property
    def data_files(self) -> dict[str, str]:
        """Files of the data folder by name without suffix."""
        queries = [f"queries{t}" for t in range(1, self.iterations + 1)]
        if self.experiment.world is None:
            names = [*queries, "queries_all", *(["tune"] if self.experiment.data.tune else [])]
            files = {name: f"{self.data_folder}/{name}.jsonl" for name in names}
            return files | {name: f"{self.data_folder}/{file_name(name)}" for name in self.benchmark_files}
        names = ["sft", *queries, "tune", "tune_reference", "eval", "reference", "mt_bench", *BENCHMARKS]
        files = {name: f"{self.data_folder}/{name}.jsonl" for name in (*names, "rewardbench", "annotated")}
        return {**files, "world": f"{self.data_folder}/world.json"}

    @property
    def benchmark_files(self) -> dict[str, str]:
        """The judged benchmarks' own files by name, and AlpacaEval's difficulties: what the data job fetches."""
        evaluation = self.experiment.evaluation
        files = {str(name): source for name, source in evaluation.files.items()}
        return files | ({"difficulty": evaluation.difficulty} if evaluation.difficulty else {})

    @property
    def data_folder(self) -> str:
        """Folder of the queries and the micro benchmarks."""
        return self.pattern("data")

    @cached_property
    def iterations(self) -> int:
        """Iterations of the longest arm; each has queries of its own."""
        return max(arm.iterations for arm in self.experiment.arms.values())

    # Building blocks.

    def _path(self, name: str, **wildcards: Any) -> str:
        return self.pattern(name).format(**wildcards)

    def _add(self, rule: str, output: str = "", inputs: Mapping[str, Any] | None = None, /, **rest: Any) -> str:
        """Add a job; ``rest`` holds its wildcards and, under ``params``, its settings. Returns its output."""
        params = rest.pop("params", {})
        path = self._path(output or rule, **rest)
        wildcards = {key: str(value) for key, value in rest.items()}
        self.jobs[path] = Job(rule, wildcards, path, {k: v for k, v in (inputs or {}).items() if v}, params)
        return path

    @cached_property
    def _depth(self) -> dict[str, int]:
        makers = {path: job for job in self.jobs.values() for path in self.makes(job)}
        depth: dict[str, int] = {}
        for job in reversed(self._in_order(makers)):
            depth.setdefault(job.output, 0)
            for path in job.reads():
                if path in makers:
                    before = makers[path].output
                    depth[before] = max(depth.get(before, 0), depth[job.output] + 1)
        return depth

    def makes(self, job: Job) -> list[str]:
        """All declared outputs of a job."""
        if job.rule == "data":
            return list(self.data_files.values())
        if job.rule in ("pairs", "generated_pairs"):
            return [job.output, self._path("pairs_reference", **job.wildcards)]
        return [job.output]

    def _in_order(self, makers: Mapping[str, Job]) -> list[Job]:
        """Jobs, each after those that it needs."""
        ordered: dict[str, Job] = {}

        def visit(job: Job) -> None:
            if job.output not in ordered:
                for path in job.reads():
                    if path in makers:
                        visit(makers[path])
                ordered[job.output] = job

        for job in self.jobs.values():
            visit(job)
        return list(ordered.values())

    # The grid.

    def _build(self) -> None:
        experiment = self.experiment
        config = self._add("config", params={"experiment": text(experiment)})
        world, data = experiment.world, experiment.data
        files = self.benchmark_files
        own = {"data": data.model_dump(exclude={"generator_queries", "preferences"})}
        own |= {"files": {file_name(name): source for name, source in files.items()}} if files else {}
        self._add(
            "data",
            "",
            {"queries": [f for f in (data.queries, data.tune, *files.values()) if f and Path(f).is_file()]},
            params={"settings": text({"world": world and world.model_dump(), **own, "iterations": self.iterations})},
        )
        results: list[str] = []
        for seed in experiment.seeds:
            for backbone in experiment.backbones:
                results += _Cell(self, backbone, seed).build()
        sources = [str(path) for path in sorted((ROOT / "report").glob("*.*"))]
        printed = [str(path) for path in sorted((ROOT / "results" / "paper").glob("*.csv"))]
        report = self._add(
            "report",
            "",
            {
                "config": config,
                "results": results,
                "sources": sources,
                "printed": printed,
                "difficulty": self.data_files.get("difficulty", ""),
            },
            params={"results": self.root},
        )
        uri = experiment.tracking_uri
        options = ["--tracking-uri", uri] if uri else []
        self._add("mlflow", "", {"report": report}, params={"results": self.root, "options": options})


class _Cell:
    """The jobs of one backbone with one seed."""

    def __init__(self, grid: Grid, backbone: str, seed: int):
        self.grid, self.experiment = grid, grid.experiment
        self.name, self.seed = backbone, seed
        self.backbone = self.experiment.backbones[backbone]
        self.at = {"backbone": backbone, "seed": seed}
        self.arms = {n: a for n, a in self.experiment.arms.items() if a.backbones is None or backbone in a.backbones}
        self.data = grid.data_files
        self.world = self.experiment.world
        # What the oracle reads: sizes of the data sets are not part of it.
        oracle = text(self.world, "name", "seed", "entities") if self.world else ""
        self.oracle = ["--world", oracle] if oracle else []
        ready = None if self.backbone.sft else self.backbone.checkpoint
        self.start = ready or grid._path("sft", **self.at)
        """The model that everything starts from."""
        self.made = {} if ready else {"model": self.start}
        """Its path as an input, where a job of ours makes it."""

    def add(self, rule: str, output: str = "", inputs: Mapping[str, Any] | None = None, /, **rest: Any) -> str:
        return self.grid._add(rule, output, inputs, **self.at, **rest)

    def build(self) -> list[str]:
        """Add the jobs of this cell; returns the files that the report reads."""
        sft = self.experiment.sft
        if self.made:
            assert sft is not None, "Experiment checks it"
            shape = () if self.backbone.path else ("architecture", "hidden_size", "layers", "heads", "kv_heads")
            settings = text(self.backbone, "path", "revision", "sft", "max_length", *shape)
            source = (self.backbone.path and sft.data) or self.data["sft"]
            sft = sft.model_copy(update={"chat_template": self.backbone.chat_template or sft.chat_template})
            self.add(
                "sft",
                "",
                {"data": source} if Path(source).is_file() or not self.backbone.path else {},
                params={"backbone": settings, "settings": text(sft), "data": source},
            )
        results: list[str] = []
        for name, arm in self.arms.items():
            if arm.policy is None:
                results.append(self.evaluate(name, self.start, self.made))
            elif chained(arm):
                results += self.chain(name, arm, arm.policy)
            elif arm.data == "annotated" and not self.world:
                results += self.annotated_arm(name, arm.policy)
            else:
                results += self.pair_arm(name, arm, arm.policy)
        for name, reward in self.experiment.rewards.items():
            here = reward.backbones is None or self.name in reward.backbones
            if here and all(source.arm is None or source.arm in self.arms for source in reward.parts):
                results.append(self.reward(name))
        return results

    def writer(self, arm: Arm) -> Writer:
        """Who writes an arm's principles."""
        return self.experiment.writers[arm.writer] if arm.writer else self.experiment.principles

    def principles(self, arm: Arm, t: int | str, policy: tuple[str, str, Mapping[str, str]] | None = None) -> str:
        """Guidelines for the queries of iteration ``t`` or of `all`.

        A policy that writes its own is the starting model, or that of iteration t - 1: ``policy``, the guidelines'
        place, the model and it as an input.
        """
        writer, version, name = self.writer(arm), arm.version, arm.writer
        own = writer.kind == "policy"
        shared = "_".join(filter(None, [version, name, str(t)]))
        place, current, made = policy if policy and own else (shared, self.start, self.made)
        model = {"policy": current, "checkpoint": writer.path}.get(writer.kind)
        options = [*(self.oracle if writer.kind == "procedural" else []), *(["--model", model] if model else [])]
        where = {**(self.at if own else {}), "guidelines": place}
        return self.grid._add(
            "principles",
            "",
            {"queries": self.data["queries_all" if t == "all" else f"queries{t}"], **(made if own else {})},
            **where,
            params={
                "version": version,
                "settings": text(writer),
                "options": options,
                # One text for all seeds, unless each policy writes its own.
                "seed": self.seed if own else (self.world.seed if self.world else 0),
            },
        )

    def sample(self, name: str, t: int | str, model: str, inputs: Mapping[str, str]) -> str:
        """Triples of one model; the first iteration's are shared by all arms of a version and a writer."""
        arm = self.arms[name]
        folder = self.folder(arm, t) if t in (1, "all") else f"{name}/it{t}"
        # A second unprompted response is only for the pairs that the oracle labels.
        labelled = self.world and any(a.data == "annotated" and a.version == arm.version for a in self.arms.values())
        count = self.experiment.data.generator_queries if arm.version == "v2" else None
        options = [*(["--limit", str(count)] if count else []), *(["--distinct"] if arm.version == "v1" else [])]
        policy = None if t in (1, "all") else (folder, model, inputs)
        return self.add(
            "sample",
            "",
            {**inputs, "principles": self.principles(arm, t, policy)},
            set=folder,
            params={
                **self.sampling(arm),
                "model": model,
                "responses": "y+,y-,yo,second" if labelled and t == 1 else "y+,y-,yo",
                "options": options,
            },
        )

    def folder(self, arm: Arm, t: int | str = 1) -> str:
        """Of the triples that arms share: `v2`, `v2_weak` for another writer, `v1_all` for an offline arm."""
        return "_".join([arm.version, *([arm.writer] if arm.writer else []), *([t] if t == "all" else [])])

    def sampling(self, arm: Arm) -> dict[str, str]:
        wrapper = self.writer(arm).wrapper
        own = "paper_v1" if wrapper == "paper" and arm.version == "v1" else wrapper
        return {"settings": text(self.experiment.sampling), "wrapper": own}

    def shared_reference(self, arm: Arm, triples: str) -> str:
        """Reference scores of every node that a generator on these triples asks for, once for all of them."""
        folder = self.folder(arm)
        generators = [a.generator for a in self.arms.values() if a.generator and self.folder(a) == folder]
        wanted = {g.objective for g in generators}
        return self.add(
            "reference",
            "",
            {**self.made, "data": triples},
            set=folder,
            params={
                "model": self.start,
                "objectives": ",".join(name for name in load_objectives() if name in wanted),
                "settings": text(generators[0], *REFERENCE, "devices"),
            },
        )

    def preferences(self, part: int, parts: int) -> str:
        """Annotated pairs, whole or one of so many parts; every backbone and seed reads the same."""
        name = "preferences" if parts == 1 else f"preferences{part}of{parts}"
        source = self.experiment.data.preferences
        assert source is not None, "Experiment checks it"
        return self.grid._add(
            "preferences",
            "",
            {"source": source.path if Path(source.path).is_file() else ""},
            part=name,
            params={"settings": text(source), "part": f"{part}/{parts}"},
        )

    def annotated_arm(self, name: str, training: Training) -> list[str]:
        """A policy on annotated pairs that others made, and its evaluation; nothing is sampled."""
        pairs = self.preferences(1, 1)
        reference = self.add(
            "reference",
            "",
            {**self.made, "data": pairs},
            set="preferences",
            params={
                "model": self.start,
                "objectives": "pairs",
                "settings": text(training, *REFERENCE, "devices"),
            },
        )
        policy = self.train("policy", training, pairs, self.start, self.made, reference, run=name)
        return [self.evaluate(name, policy, {"model": policy})]

    def pair_arm(self, name: str, arm: Arm, training: Training) -> list[str]:
        """Generator, pairs, policy and evaluation of an arm that trains on pairs."""
        grid, all_sampled = self.grid, not self.experiment.data.generator_queries
        scoring = text(training, *REFERENCE)
        if arm.generator or all_sampled:
            triples = self.sample(name, 1, self.start, self.made)
        if arm.generator or not all_sampled:
            source, made = self.start, self.made
            if arm.generator:
                reference = self.shared_reference(arm, triples)
                source = self.train("generator", arm.generator, triples, self.start, self.made, reference, arm=name)
                made = {**self.made, "generator": source}
            pairs = self.add(
                "generated_pairs",
                "pairs",
                {**made, "principles": self.principles(arm, 1)},
                arm=name,
                params={**self.sampling(arm), "generator": source, "model": self.start, "scoring": scoring},
            )
        else:
            options = self.oracle if arm.data == "annotated" else []
            pairs = self.add(
                "pairs",
                "",
                {**self.made, "triples": triples},
                arm=name,
                params={"kind": arm.data, "options": options, "model": self.start, "scoring": scoring},
            )
        reference = grid._path("pairs_reference", **self.at, arm=name)
        policy = self.train("policy", training, pairs, self.start, self.made, reference, run=name)
        results = [self.evaluate(name, policy, {"model": policy})]
        judge = self.experiment.evaluation_of(self.name, name).judge
        # Who is not asked for a sample of the pairs is not asked for money for all of them.
        if not self.world and not judge.pairs:
            return results
        quality = self.add(
            "data_quality",
            "",
            {"pairs": pairs, "reference": reference},
            arm=name,
            params={"settings": text(judge), "options": self.oracle},
        )
        return [*results, quality]

    def chain(self, name: str, arm: Arm, training: Training) -> list[str]:
        """Iterations: the current policy draws triples, then trains on them, itself the reference."""
        results, model, inputs, first = [], self.start, self.made, None
        for t in range(1, arm.iterations + 1):
            if arm.data == "annotated":
                triples = self.preferences(t, arm.iterations)
            else:
                triples = self.sample(name, "all" if arm.offline else t, model, inputs)
            run = name if arm.offline else f"{name}/it{t}"
            model = self.train("policy", training, triples, model, inputs, None, rate_from=first, run=run)
            inputs = {"model": model}
            first = first or self.grid._path("policy", **self.first, run=run)
            results.append(self.evaluate(run, model, inputs))
        return results

    @property
    def first(self) -> dict[str, Any]:
        """This backbone's cell of the first seed, where learning rates are chosen."""
        return {**self.at, "seed": self.experiment.seeds[0]}

    def train(
        self,
        rule: str,
        training: Training,
        data: str,
        model: str,
        inputs: Mapping[str, str],
        reference: str | None,
        *,
        rate_from: str | None = None,
        **wildcards: str,
    ) -> str:
        """Train on pairs or triples. Several learning rates are tried once, with the first seed and iteration."""
        needs: dict[str, Any] = {**inputs, "data": data}
        options: list[str] = []
        if reference:
            needs["reference"] = reference
            options += ["--reference", reference]
        if len(training.learning_rates) > 1:
            if rate_from is None and self.at != self.first:
                rate_from = self.grid._path(rule, **self.first, **wildcards)
            if rate_from:
                needs["rate_from"] = rate_from
                options += ["--rate-from", f"{rate_from}/tuning.json"]
            else:
                needs["tune"] = [self.data["tune"], self.data["tune_reference"]]
                options += ["--tune", self.data["tune"], *self.oracle, "--sampling", text(self.experiment.sampling)]
        return self.add(
            rule,
            "",
            needs,
            **wildcards,
            params={"model": model, "settings": text(training, without=("use",)), "options": options},
        )

    def evaluate(self, run: str, model: str, inputs: Mapping[str, str]) -> str:
        """All benchmarks of one model, then the judge; returns the folder of scores."""
        settings = self.experiment.evaluation_of(self.name, run.partition("/")[0])
        asked = ["eval" if self.world else "reference"] if settings.pairwise else []
        asked += [name for name in ("mt_bench", "arena_hard") if getattr(settings, name)]
        micro = [task.name.removeprefix("micro_") for task in settings.tasks if task.file is None]
        asked += [name for name in micro if name in self.data]
        answers = self.add(
            "evaluate",
            "",
            {
                **inputs,
                "data": [self.data[name] for name in asked if name in self.data],
                "mirrors": [
                    *[task.file for task in settings.tasks if task.file],
                    *[file for mirror in settings.mirrors.values() for file in (mirror.test, mirror.shots) if file],
                ],
            },
            run=run,
            params={
                "model": model,
                "folder": self.grid.data_folder,
                "settings": text(settings, without=("judge", "judges", "files", "rewardbench", "difficulty")),
            },
        )
        fixed = ["eval", "reference"] if settings.pairwise else []
        fixed += ["mt_bench", "mt_bench_reference"] if settings.mt_bench else []
        fixed += ["arena_hard", "arena_hard_baseline"] if settings.arena_hard else []
        return self.add(
            "judge",
            "",
            {"answers": answers, "data": [self.data[name] for name in fixed if name in self.data]},
            run=run,
            params={
                "folder": self.grid.data_folder,
                "settings": text(settings, "judge", "judges", "pairwise", "mt_bench", "arena_hard"),
                "options": self.oracle,
            },
        )

    def trained_on(self, name: str) -> list[str]:
        """What an arm's policy is trained on: its pairs, or the triples of each iteration, which hold pairs too."""
        arm = self.arms[name]
        iterations = range(1, arm.iterations + 1) if chained(arm) and not arm.offline else [None]
        runs = [f"{name}/it{t}" if t else name for t in iterations]
        jobs = [self.grid.jobs[self.grid._path("policy", **self.at, run=run)] for run in runs]
        return [path for job in jobs for path in job.reads("data")]

    def reward(self, name: str) -> str:
        """The pairs of a reward model, itself, and its scores."""
        reward = self.experiment.rewards[name]
        bench = self.data["rewardbench"] if self.world else self.experiment.evaluation.rewardbench
        sources: list[dict[str, Any]] = []
        for source in reward.parts:
            paths = self.trained_on(source.arm) if source.arm else [source.path or self.data["annotated"]]
            limit = source.limit and math.ceil(source.limit / len(paths))
            weight = source.weight and source.weight / len(paths)
            own = {**source.model_dump(), "arm": None, "world": False, "limit": limit, "weight": weight}
            sources += [{**own, "path": path} for path in paths]
        files = [source["path"] for source in sources]
        made = {bench, *files} & {path for job in self.grid.jobs.values() for path in self.grid.makes(job)}
        local = [path for path in (bench, *files) if path in made or Path(path).is_file()]
        pairs = self.add(
            "mixture",
            "",
            {"data": local},
            reward=name,
            params={
                "settings": text({"sources": sources, "dedupe": reward.dedupe, "ngram": reward.ngram}),
                "bench": bench,
            },
        )
        about = {"label", "version", "method", "arm", "sources", "dedupe", "ngram", "base", "backbones"}
        start = reward.base or self.start
        model = self.add(
            "reward_model",
            "",
            {**({} if reward.base else self.made), "pairs": pairs},
            reward=name,
            params={"model": start, "settings": text(reward, without=about)},
        )
        return self.add(
            "rewardbench",
            "",
            {"model": model, "data": [path for path in local if path == bench]},
            reward=name,
            params={"bench": bench, "dtype": reward.dtype},
        )
