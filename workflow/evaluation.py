"""The jobs that say how good a cell's models and pairs are: answers, their judgement, pairs' quality, reward models."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval import benchmarks
from sso.jobs.job import Job
from workflow.shared import Model, text
from workflow.stages import Stages


def answer(make: Stages, name: str, model: Model, run: str, iteration: int = 0) -> Job:
    """All benchmarks of one model."""
    settings = make.experiment.evaluation_of(make.name, name)
    judged = [benchmarks.of_judges()[name] for name in settings.judged]
    asked = [next((name for name in own.prompts if name in make.data), "") for own in judged]
    asked += [benchmarks.metric(task.name) for task in settings.tasks if task.file is None]
    folders = [Path(task.include_path) for task in settings.tasks if task.include_path]
    own = [str(path) for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    mirrors = [file for mirror in settings.mirrors.values() for file in (mirror.test, mirror.shots) if file]
    return make.add(
        "answer",
        {
            **model.input(),
            "data": [make.data[name] for name in asked if name in make.data],
            "mirrors": [*[task.file for task in settings.tasks if task.file], *mirrors, *own],
        },
        at={"run": run},
        params={
            "model": model.path,
            "folder": make.draft.data_folder,
            "settings": text(settings, without=("judge", "judges", "files", "rewardbench", "difficulty")),
        },
        settings=settings,
        arm=name,
        iteration=iteration,
    )


def _base(make: Stages) -> str | None:
    """The first arm whose model is the starting one."""
    return next((key for key, arm in make.arms.items() if arm.policy is None), None)


def start(make: Stages, name: str) -> str | None:
    """The folder of the starting model's answers that an arm's are compared with.

    Where the oracle judges and both draw one sample a query there is nothing to compare: they would share their random
    numbers.
    """
    base = _base(make)
    if base in (None, name):
        return None
    if make.world is None:
        asked = make.experiment.evaluation_of(make.name, name).needs_start
        return make.draft.paths.path("answer", **make.at, run=base) if asked else None
    ours, theirs = (make.experiment.evaluation_of(make.name, key) for key in (name, base))
    own = [set(settings.judged) for settings in (ours, theirs)]
    oracle = any(ours.judge_of(benchmark).kind == "oracle" for benchmark in ours.judged)
    several = max(ours.samples, theirs.samples) > 1
    return make.draft.paths.path("answer", **make.at, run=base) if oracle and several and own[0] <= own[1] else None


def judge(make: Stages, answers: Job) -> Job:
    """The judgement of a model's open answers."""
    settings = make.experiment.evaluation_of(make.name, str(answers.arm))
    if answers.arm == _base(make):
        others = [name for name in settings.judged if name not in settings.needs_start]
        settings = settings.model_copy(update={"judged": others})
    against = start(make, str(answers.arm))
    fixed = [file for name in settings.judged for file in benchmarks.of_judges()[name].reads]
    return make.add(
        "judge",
        {
            "answers": answers.output,
            "against": against,
            "data": [make.data[name] for name in fixed if name in make.data],
        },
        at={"run": answers.wildcards["run"]},
        params={
            "folder": make.draft.data_folder,
            "settings": text(settings, "judge", "judges", "judged"),
            "options": [*make.oracle, *(["--against", against] if against else [])],
        },
        settings=settings,
        arm=answers.arm,
        iteration=answers.iteration,
    )


def data_quality(make: Stages, name: str, pairs: Job) -> Job:
    """How good an arm's pairs are, by the judge and by the starting model's scores."""
    judge = make.experiment.evaluation_of(make.name, name).judge
    # Who is not asked for a sample of the pairs is not asked for money for all of them.
    unjudged = [] if make.world or judge.pairs else ["--unjudged"]
    return make.add(
        "data_quality",
        dict(zip(("pairs", "reference"), pairs.outputs, strict=True)),
        at={"arm": name},
        params={"settings": text(judge), "options": [*make.oracle, *unjudged]},
        settings=judge,
        arm=name,
    )


def reward(make: Stages, name: str, trained_on: Mapping[str, list[str]]) -> Job:
    """The pairs of a reward model, itself, and its scores; ``trained_on``: arm -> the pairs of its policies."""
    reward, at = make.experiment.rewards[name], {"reward": name}
    bench = make.data["rewardbench"] if make.world else make.experiment.evaluation.rewardbench
    sources: list[dict[str, Any]] = []
    for source in reward.parts:
        paths = trained_on[source.arm] if source.arm else [source.path or make.data["annotated"]]
        limit = source.limit and math.ceil(source.limit / len(paths))
        weight = source.weight and source.weight / len(paths)
        own = {**source.model_dump(), "arm": None, "world": False, "limit": limit, "weight": weight}
        sources += [{**own, "path": path} for path in paths]
    files = [source["path"] for source in sources]
    made = {path for job in make.draft.jobs.values() for path in job.outputs}
    local = [path for path in (bench, *files) if path in made or Path(path).is_file()]
    mixture = {"sources": sources, "dedupe": reward.dedupe, "ngram": reward.ngram}
    pairs = make.add("mix", {"data": local}, at=at, params={"settings": text(mixture), "bench": bench})
    about = ("label", "version", "method", "arm", "sources", "dedupe", "ngram", "base", "backbones")
    start = Model(reward.base, made=False) if reward.base else make.start
    model = make.add(
        "reward_model",
        {**start.input(), "pairs": pairs.output},
        at=at,
        params={"model": start.path, "settings": text(reward, without=about)},
        settings=reward,
    )
    return make.add(
        "rewardbench",
        {"model": model.output, "data": [path for path in local if path == bench]},
        at=at,
        params={"bench": bench, "dtype": reward.dtype},
        settings=reward,
    )
