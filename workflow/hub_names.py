"""What an experiment takes from the Hugging Face hub, by name."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from eval.benchmarks import metric, of_lm_eval
from eval.settings import Evaluation, Judge, Task
from eval.stock import data_sets
from sso.config import HUB_FILE, Experiment


def is_hub_name(name: str) -> bool:
    """Whether a text that is no path here can be OWNER/NAME or OWNER/NAME@REVISION on the hub."""
    known = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", name)
    return known is not None and not Path(name).exists()


def evaluations(experiment: Experiment) -> list[Evaluation]:
    """The different evaluations of an experiment's arms and backbones, its own first."""
    found = [experiment.evaluation, *experiment.evaluations]
    return list({one.model_dump_json(): one for one in found}.values())


def judges(experiment: Experiment) -> list[Judge]:
    """Everyone who judges, each once."""
    found = [judge for one in evaluations(experiment) for judge in (one.judge, *map(one.judge_of, one.judged))]
    return list({judge.model_dump_json(): judge for judge in found}.values())


def hub_names(experiment: Experiment) -> dict[str, str]:
    """What the experiment takes from the hub: name -> `model`, `dataset` or `file`; nothing where all is local."""
    data, sft, evaluation = experiment.data, experiment.sft, experiment.evaluation
    models = [backbone.checkpoint for backbone in experiment.backbones.values()]
    models += [writer.path for writer in experiment.all_writers]
    models += [judge.path for judge in judges(experiment)]
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
    return found | {task.name: "benchmark" for task in _unmirrored(experiment)}


def mirror(task: str) -> str:
    """What `evaluation.mirrors` calls the data of an lm-eval benchmark."""
    record = of_lm_eval().get(metric(task))
    return (record and record.mirror) or metric(task)


def _unmirrored(experiment: Experiment) -> Iterator[Task]:
    """The tasks of the experiment, its arms and its backbones whose data come from the hub."""
    for evaluation in evaluations(experiment):
        for task in evaluation.tasks:
            if task.kind == "lm_eval":
                here = task.include_path is not None
            else:
                here = not task.name.startswith("real_") or bool(task.file) or mirror(task.name) in evaluation.mirrors
            if not here:
                yield task


def benchmark_sets(experiment: Experiment) -> dict[str, Task]:
    """The hub's data sets behind the benchmarks, as lm-eval's files have them, each with a task that reads it."""
    return {name: task for task in _unmirrored(experiment) for name in data_sets(task) if is_hub_name(name)}


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
