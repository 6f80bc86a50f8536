"""A source as lm-eval's task objects: the stock tasks, on a mirror's rows handed over in memory or on the hub's data.

Only the folder of the asked benchmark is indexed (an index of all of lm-eval takes 22 s), and rows of a mirror reach
lm-eval without a cache or a lock. Knows nothing of models.
"""

import logging
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eval.benchmarks.record import LmEval, Rows
from eval.settings import Task
from eval.sources import Source, lm_eval_names, names_in
from sso.errors import InputError

TASKS = Path(__file__).with_name("tasks")
"""The micro-world's."""
SEED = 1234
"""Seed of the drawn worked examples and of GPQA's order of options: lm-eval's own default."""


@dataclass
class Ready:
    """A source as lm-eval's task objects."""

    source: Source
    tasks: dict[str, Any]
    rows: dict[str, list[int]]
    """Numbers that each task's rows have in the mirror, by task; a hub's rows are counted over the tasks in order."""
    score: str
    filter: str
    scores: Callable[[Rows], list[float]]
    """Scores of lm-eval's samples, whose mean is the figure."""

    @property
    def shots(self) -> int:
        """Worked examples in each prompt."""
        return next(iter(self.tasks.values())).config.num_fewshot or 0


def build(source: Source, max_new_tokens: int) -> Ready:
    """lm-eval's tasks of a source; no model is needed.

    Raises InputError where worked examples are wanted and there are none, where a row's subject is unknown, where a
    hub's data set can't be had, or for a task that runs code or has no score an item.
    """
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if source.benchmark and source.benchmark.prepare:
        source.benchmark.prepare(source.rows if source.path else None)
    rows: dict[str, list[int]] = defaultdict(list)
    with _seeded():
        tasks = _named(source) if source.benchmark is None else _benchmark(source, rows)
    for name, task in tasks.items():
        task.set_fewshot_seed(seed=SEED)
        _process_once(task)
        if task.OUTPUT_TYPE == "generate_until":
            own = (task.config.generation_kwargs or {}).get("max_gen_toks") if source.benchmark is None else None
            room = source.task.max_new_tokens or own or max_new_tokens
            greedy = {"max_gen_toks": room, "do_sample": False, "temperature": 0.0}
            task.set_config(key="generation_kwargs", value=greedy, update=True)
        if source.path is None:
            start = sum(map(len, rows.values()))
            stop = min(start + len(task.eval_docs), source.task.limit or sys.maxsize)
            rows[name] = list(range(start, stop))
    tasks = {name: task for name, task in tasks.items() if rows[name]}
    if source.benchmark is None:
        score, kept = _scored(source, tasks)
    elif source.real is None:
        metadata = next(iter(tasks.values())).config.metadata
        score, kept = metadata["score"], metadata["filter"]
    else:
        score, kept = source.real.score, source.real.filter
    own = source.benchmark and source.benchmark.scores
    return Ready(source, tasks, dict(rows), score, kept, own or partial(_items, source.name, score))


def _benchmark(source: Source, rows: dict[str, list[int]]) -> dict[str, Any]:
    """lm-eval's tasks of a benchmark; ``rows`` is filled with the numbers of a mirror's rows, by task."""
    benchmark = source.real
    manager, index = _indexed(benchmark)
    given = _given(source)
    specs: list[dict[str, Any]]
    if benchmark and source.path is None:
        specs = [{"task": name, **given} for name in _stock(benchmark, index)]
    else:
        for number, row in enumerate(source.rows):
            name = benchmark.task(row) if benchmark else source.name
            if name not in index:
                raise InputError(
                    f"{source.path}:{number + 1}: lm-eval has no task {name!r} for this row's subject; "
                    "correct or remove it."
                )
            rows[name].append(number)
        specs = [{"task": name, **given, **_local(source, index[name], numbers)} for name, numbers in rows.items()]
    try:
        # Tasks in a group are the way in which lm-eval lays given keys over tasks that it knows by name.
        return manager.load({"group": "run", "task": specs})["tasks"]
    except Exception as error:
        if source.path is not None:
            raise
        raise InputError(
            f"evaluation.tasks: the data of {source.name} can't be had from the hub ({type(error).__name__}); "
            f"give a local copy: evaluation.mirrors.{source.mirror}.test."
        ) from error


def _indexed(benchmark: LmEval | None) -> tuple[Any, dict[str, dict[str, Any]]]:
    """lm-eval's manager of a benchmark's folder (None: the micro-world's), and what its tasks' files say, by name."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    folder = Path(lm_eval.tasks.__file__).parent / benchmark.folder if benchmark else TASKS
    manager = TaskManager(include_defaults=False, include_path=str(folder))
    return manager, {name: entry.cfg for name, entry in manager.task_index.items() if entry.kind.name == "TASK"}


def _stock(benchmark: LmEval, index: Mapping[str, Any]) -> list[str]:
    """The stock tasks of a benchmark, of those in an index of its folder."""
    return [name for name in index if re.fullmatch(benchmark.stock.replace("{}", r"\w+"), name)]


def data_sets(task: Task) -> set[str]:
    """What a task, or each of a group's, loads its data by, as its files say: a name on the hub, or `json`."""
    benchmark = Source(task, None, [], []).real
    if benchmark is None:
        return {config["dataset_path"] for config in _configs(task) if "dataset_path" in config}
    _, index = _indexed(benchmark)
    return {index[name]["dataset_path"] for name in _stock(benchmark, index)}


def _named(source: Source) -> dict[str, Any]:
    """Any of lm-eval's tasks or groups, by its name, or one of a folder of one's own."""
    from lm_eval.tasks import TaskManager

    name, own = source.name, source.task.include_path
    file, paths = _place(source.task)
    spec = {"task": name, **_given(source)}
    try:
        try:
            loaded = TaskManager(include_defaults=False, include_path=paths).load({"group": "run", "task": [spec]})
        except KeyError:  # a group of tasks that lie elsewhere: all of lm-eval has to be indexed
            loaded = TaskManager(include_path=own).load({"group": "run", "task": [spec]})
    except Exception as error:
        raise InputError(
            f"evaluation.tasks: {name} ({file}) can't be loaded; see that its data are here or that the hub can be "
            f"reached ({type(error).__name__}: {' '.join(str(error).split())[:200]})."
        ) from error
    for task in loaded["tasks"].values():
        _check_kind(name, task.OUTPUT_TYPE, task.config.unsafe_code)
    return loaded["tasks"]


def _place(task: Task) -> tuple[Path, list[str]]:
    """The file of a task that lm-eval alone knows, and the folders to index for it."""
    own = names_in(Path(task.include_path)) if task.include_path else {}
    if task.name in own:
        return own[task.name], [str(task.include_path)]
    file = lm_eval_names()[task.name]
    return file, [str(file.parent)]


def _configs(task: Task) -> Iterator[dict[str, Any]]:
    """What the files say of a task that lm-eval alone knows, or of a group's members; Python code and files elsewhere
    are passed over."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    index = TaskManager(include_defaults=False, include_path=_place(task)[1]).task_index
    names = [task.name]
    for name in names:  # which grows by the members of groups
        config = index[name].cfg if name in index else None
        if not config or "class" in config:
            continue
        if "output_type" in config:
            yield config
        elif isinstance(members := config.get("task"), list):
            names += [member for member in members if isinstance(member, str) and member not in names]


def check_files(task: Task) -> None:
    """Raise InputError for a task of lm-eval's that runs code, or lacks the asked metric or one that is a mean.

    By its files, without its data: what only a task's Python code knows, or a file elsewhere, is told by `build`.
    """
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY, get_metric_aggregation

    for config in _configs(task):
        _check_kind(task.name, config["output_type"], config.get("unsafe_code", False))
        listed = config.get("metric_list") or [{"metric": m} for m in DEFAULT_METRIC_REGISTRY[config["output_type"]]]
        # Functions stand there as `file.function`.
        means = {}
        for entry in listed:
            metric, how = str(entry["metric"]).rpartition(".")[2], entry.get("aggregation")
            means[metric] = (
                str(how).rpartition(".")[2] if how else getattr(get_metric_aggregation(metric), "__name__", "")
            )
        _metric(task, means, [entry["name"] for entry in config.get("filter_list") or [{"name": "none"}]])


def _check_kind(name: str, output_type: str, unsafe_code: bool) -> None:
    if unsafe_code:
        raise InputError(
            f"evaluation.tasks: {name} runs code that the model writes, which this suite does not do; leave it out."
        )
    if output_type not in ("generate_until", "multiple_choice", "loglikelihood"):
        raise InputError(
            f"evaluation.tasks: {name} is of type {output_type}, which gives no score for each item; leave it out."
        )


def _given(source: Source) -> dict[str, Any]:
    shots = source.task.num_fewshot
    return {} if shots is None else {"num_fewshot": shots}


def _scored(source: Source, tasks: Mapping[str, Any]) -> tuple[str, str]:
    """The metric and the filter of a task of lm-eval's: the asked ones, else its first."""
    for task in tasks.values():
        means = {metric: how.__name__ for metric, how in task.aggregation().items()}
        chosen = _metric(source.task, means, [entry.name for entry in task._filters])
    return chosen


def _metric(task: Task, means: Mapping[str, str], filters: list[str]) -> tuple[str, str]:
    """The asked metric and filter, else the first; ``means``: by metric, the name of what sums its items up."""
    asked, _, kept = (task.metric or "").partition(",")
    metric, own = asked or next(iter(means)), kept or filters[0]
    if metric not in means or own not in filters:
        known = [f"{one},{other}" for one in means for other in filters]
        raise InputError(f"evaluation.tasks: {task.name} has no metric {task.metric!r}; known: {', '.join(known)}.")
    if means[metric] != "mean":
        raise InputError(
            f"evaluation.tasks: {task.name}: {metric} is no mean over items ({means[metric] or 'not known'}), so it "
            f"has no interval here; name another `metric`, of {', '.join(means)}."
        )
    return metric, own


def _items(name: str, score: str, samples: Rows) -> list[float]:
    """Each sample's score."""
    try:
        return [float(sample[score]) for sample in samples]
    except (TypeError, KeyError) as error:
        raise InputError(
            f"evaluation.tasks: {name}: {score} gives no score for each item; name another `metric`."
        ) from error


def _process_once(task: Any) -> None:
    """Run the task's own preparation of documents now.

    lm-eval runs it at every look at them, and GPQA's shuffles the options by the global generator: without a cache on
    disk the model would be asked one order and scored by another.
    """
    process = task.config.process_docs
    if process is None:
        return
    with _seeded():
        for split in sorted(
            {task.config.test_split or task.config.validation_split, task.config.fewshot_split} - {None}
        ):
            task.dataset[split] = process(task.dataset[split])
    task.set_config(key="process_docs", value=None)


@contextmanager
def _seeded() -> Iterator[None]:
    """While open, the global generator starts from SEED, and nothing comes from the cache of data sets on disk, where
    an earlier preparation from another state would be found in the place of this one."""
    import datasets

    state, cached = random.getstate(), datasets.is_caching_enabled()
    random.seed(SEED)
    datasets.disable_caching()
    try:
        yield
    finally:
        random.setstate(state)
        if cached:
            datasets.enable_caching()


def _local(source: Source, config: dict[str, Any], numbers: list[int]) -> dict[str, Any]:
    """Keys that put a mirror's rows in the place of a stock task's data set."""
    from datasets import Dataset

    test = config.get("test_split") or config["validation_split"]
    splits = {test: Dataset.from_list([source.rows[number] for number in numbers])}
    drawn = config.get("fewshot_split")
    count = source.task.num_fewshot if source.task.num_fewshot is not None else config.get("num_fewshot") or 0
    if source.real and drawn and count:
        subject = source.real.subject
        own = subject and source.rows[numbers[0]].get(subject)
        shots = [row for row in source.shots if not subject or row[subject] == own]
        if len(shots) < count:
            raise InputError(
                f"{source.path}: {source.name} takes {count} worked examples{f' of {own}' if own else ''}, but there "
                f"are {len(shots)} in {source.mirror}'s `shots` file (train.jsonl or dev.jsonl beside it): give "
                f"evaluation.mirrors.{source.mirror}.shots, or `num_fewshot: 0`."
            )
        splits[drawn] = Dataset.from_list(shots)
    absent = [key for key in ("training_split", "validation_split", "fewshot_split") if config.get(key) not in splits]
    return {"custom_dataset": lambda **_: splits} | dict.fromkeys(absent)
