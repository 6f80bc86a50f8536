"""Which lm-eval tasks a benchmark is, and the rows that it runs on: local JSON Lines mirrors or the hub.

A `real_` benchmark is lm-eval's stock task, or the stock group of subjects, with prompts, filters and metrics as they
are installed; only its data may come from a local file. A `micro_` one is a YAML file of eval/tasks. Everything is
checked before a model is loaded. Knows nothing of models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eval.settings import Evaluation, Mirror, Task
from sso.errors import InputError
from sso.records import iter_json_lines

TASKS = Path(__file__).parent / "tasks"
SUITES = Path(__file__).with_name("suites.yaml")

OPTIONAL = ("type", "cot_content")
"""Columns that are passed on where a mirror has them: MATH's subject, the reasoning of MMLU-Pro's worked examples."""
MATH_SUBJECTS = {
    "Algebra": "algebra",
    "Counting & Probability": "counting_and_prob",
    "Geometry": "geometry",
    "Intermediate Algebra": "intermediate_algebra",
    "Number Theory": "num_theory",
    "Prealgebra": "prealgebra",
    "Precalculus": "precalc",
}


@dataclass(frozen=True)
class Benchmark:
    """One benchmark as lm-eval has it."""

    stock: str
    """Name of the stock task; `{}` stands for the subject where there is one task a subject."""
    folder: str
    """Where lm-eval keeps them, under lm_eval/tasks."""
    columns: tuple[str, ...]
    """What each row of a mirror must have."""
    score: str = "acc"
    filter: str = "none"
    """The metric, and the filter of the reply, whose mean is the benchmark's figure."""
    subject: str | None = None
    """The column that names a row's subject, where the benchmark is a group of stock tasks."""
    mirror: str | None = None
    """The benchmark whose mirror this one reads too."""
    generative: str | None = None
    """For a benchmark of log-likelihoods: the variant for endpoints, which give none."""

    def task(self, row: dict[str, Any]) -> str:
        """The stock task that a mirror's row belongs to. A MATH row without `type` goes to algebra: same prompts."""
        subject = str(row.get(self.subject, "Algebra")) if self.subject else ""
        return self.stock.replace("{}", MATH_SUBJECTS.get(subject, subject.replace(" ", "_")))


_MMLU = ("subject", "question", "choices", "answer")
_GPQA = ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
REAL = {
    "gsm8k": Benchmark("gsm8k", "gsm8k", ("question", "answer"), "exact_match", "strict-match"),
    "math": Benchmark("minerva_math_{}", "minerva_math", ("problem", "solution"), "math_verify", subject="type"),
    "mmlu": Benchmark("mmlu_{}", "mmlu/default", _MMLU, subject="subject", generative="real_mmlu_generative"),
    "mmlu_generative": Benchmark(
        "mmlu_{}_generative", "mmlu/generative", _MMLU, "exact_match", "get_response", "subject", mirror="mmlu"
    ),
    "mmlu_pro": Benchmark(
        "mmlu_pro_{}",
        "mmlu_pro",
        ("question", "options", "answer", "category"),
        "exact_match",
        "custom-extract",
        "category",
    ),
    "gpqa": Benchmark("gpqa_diamond_zeroshot", "gpqa/zeroshot", _GPQA, generative="real_gpqa_cot"),
    "gpqa_cot": Benchmark(
        "gpqa_diamond_cot_zeroshot", "gpqa/cot_zeroshot", _GPQA, "exact_match", "flexible-extract", mirror="gpqa"
    ),
    "ifeval": Benchmark("ifeval", "ifeval", ("key", "prompt", "instruction_id_list", "kwargs"), "ifeval"),
}
"""The real benchmarks; a task's name is `real_` before one of these."""
MICRO = {
    "gsm8k": ("question", "answer"),
    "math": ("problem", "solution"),
    "mmlu": ("subject", "question", "choices", "answer"),
    "mmlu_pro": ("question", "options", "answer_index"),
    "gpqa": ("question", "choices", "answer"),
    "ifeval": ("key", "prompt", "instruction_id_list", "kwargs"),
}
"""What the rows of the micro-world's look-alikes must have; a task's name is `micro_` before one of these."""

KNOWN = sorted([f"micro_{name}" for name in MICRO] + [f"real_{name}" for name in REAL])
"""Every task's name."""


def file_name(name: str) -> str:
    """The name in the data folder of a judged benchmark's file (docs/evaluation_judges.md)."""
    return {"reference": "reference.json", "difficulty": "difficulty.csv"}.get(name, f"{name}.jsonl")


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
        """As the task is named in the settings."""
        return self.task.name

    @property
    def real(self) -> Benchmark | None:
        """None for a task of the micro-world."""
        return REAL[self.name.removeprefix("real_")] if self.name.startswith("real_") else None

    @property
    def mirror(self) -> str:
        """The real benchmark's name under `mirrors`."""
        return (self.real and self.real.mirror) or self.name.removeprefix("real_")


def suite(name: str, endpoint: bool = False) -> list[Task]:
    """lm-eval's benchmarks of a paper version; for an endpoint with the variants that need no log-likelihoods."""
    tasks = [Task(**values) for values in yaml.safe_load(SUITES.read_text(encoding="utf-8"))[name]]
    if not endpoint:
        return tasks
    variants = {t.name: REAL[t.name.removeprefix("real_")].generative for t in tasks}
    return [
        t.model_copy(update={"name": variants[t.name], "max_new_tokens": t.max_new_tokens or 1024})
        if variants[t.name]
        else t
        for t in tasks
    ]


def find(settings: Evaluation, data: Path | None, endpoint: bool = False) -> list[Source]:
    """The rows of every task, checked.

    Raises InputError for an unknown task, a missing file, a row without a column that the task reads, or for an
    ``endpoint`` a task that needs log-likelihoods.
    """
    sources = []
    for task in settings.tasks:
        world, _, name = task.name.partition("_")
        if task.name not in KNOWN:
            raise InputError(f"evaluation.tasks: unknown task {task.name!r}; known: {', '.join(KNOWN)}.")
        if endpoint:
            _check_generative(task.name, world, name)
        sources.append(_real(task, name, settings.mirrors) if world == "real" else _micro(task, name, data))
    if len({source.name for source in sources}) < len(sources):
        raise InputError("evaluation.tasks: a task is named twice.")
    return sources


def _check_generative(task: str, world: str, name: str) -> None:
    variant = REAL[name].generative if world == "real" else None
    if variant or (world == "micro" and name in ("mmlu", "mmlu_pro", "gpqa")):
        way = f"take {variant}" if variant else "leave it out"
        raise InputError(f"evaluation.tasks: {task} needs log-likelihoods, which a chat endpoint has not: {way}.")


def _micro(task: Task, name: str, data: Path | None) -> Source:
    if task.num_fewshot:
        raise InputError(f"evaluation.tasks: {task.name} has no worked examples; leave num_fewshot out.")
    if task.file:
        path = Path(task.file)
    elif data is not None:
        path = data / f"{name}.jsonl"
    else:
        raise InputError(f"evaluation.tasks: {task.name} needs `file`, or --data, the folder of {name}.jsonl.")
    return Source(task, path, _rows(path, MICRO[name], task.limit), [])


def _real(task: Task, name: str, mirrors: Mapping[Any, Mirror]) -> Source:
    benchmark, hub = REAL[name], Source(task, None, [], [])
    mirror = Mirror(test=task.file) if task.file else mirrors.get(hub.mirror)
    if mirror is None:
        return hub
    path = Path(mirror.test)
    rows = _rows(path, benchmark.columns, task.limit)
    if task.num_fewshot == 0 or name in ("math", "ifeval"):  # MATH's examples are part of the stock task
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
        raise InputError(f"{path}: holds no row.")
    return rows
