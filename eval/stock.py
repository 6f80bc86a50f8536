"""A source as lm-eval's task objects: the stock tasks, on a mirror's rows handed over in memory or on the hub's data.

Only the folder of the asked benchmark is indexed (an index of all of lm-eval takes 22 s), and rows of a mirror reach
lm-eval without a cache or a lock. Knows nothing of models.
"""

import logging
import random
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.benchmarks import TASKS, Source
from eval.ifeval import NEEDS_PUNKT, load_checkers
from sso.errors import InputError

SEED = 1234
"""Of the drawn worked examples and of GPQA's order of options: lm-eval's own default."""


@dataclass
class Ready:
    """A source as lm-eval's task objects."""

    source: Source
    tasks: dict[str, Any]
    rows: dict[str, list[int]]
    """By task: the number in the mirror of each of its rows. A hub's rows are counted over the tasks in order."""
    score: str
    filter: str

    @property
    def shots(self) -> int:
        """Worked examples in each prompt."""
        return next(iter(self.tasks.values())).config.num_fewshot or 0


def build(source: Source, max_new_tokens: int) -> Ready:
    """lm-eval's tasks of a source; no model is needed.

    Raises InputError where worked examples are wanted and there are none, where a row's subject is unknown, or where
    a hub's data set can't be had.
    """
    import datasets
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    benchmark = source.real
    folder = Path(lm_eval.tasks.__file__).parent / benchmark.folder if benchmark else TASKS
    if source.name.endswith("ifeval"):
        load_checkers([i for r in source.rows for i in r["instruction_id_list"]] if source.path else NEEDS_PUNKT)
    manager = TaskManager(include_defaults=False, include_path=str(folder))
    index = {name: entry.cfg for name, entry in manager.task_index.items() if entry.kind.name == "TASK"}
    shots = source.task.num_fewshot
    given = {} if shots is None else {"num_fewshot": shots}
    specs: list[dict[str, Any]]
    rows: dict[str, list[int]] = defaultdict(list)
    if benchmark and source.path is None:
        names = [name for name in index if re.fullmatch(benchmark.stock.replace("{}", r"\w+"), name)]
        specs = [{"task": name, **given} for name in names]
    else:
        for number, row in enumerate(source.rows):
            name = benchmark.task(row) if benchmark else source.name
            if name not in index:
                raise InputError(f"{source.path}:{number + 1}: lm-eval has no task {name!r} for this row's subject.")
            rows[name].append(number)
        specs = [{"task": name, **given, **_local(source, index[name], numbers)} for name, numbers in rows.items()]
    try:
        # Tasks in a group are the way in which lm-eval lays given keys over tasks that it knows by name.
        tasks = manager.load({"group": "run", "task": specs})["tasks"]
    except Exception as error:
        if source.path is not None:
            raise
        raise InputError(
            f"evaluation.tasks: the data of {source.name} can't be had from the hub ({type(error).__name__}); "
            f"give a local copy: evaluation.mirrors.{source.mirror}.test."
        ) from error
    for name, task in tasks.items():
        task.set_fewshot_seed(seed=SEED)
        _process_once(task)
        if task.OUTPUT_TYPE == "generate_until":
            room = source.task.max_new_tokens or max_new_tokens
            greedy = {"max_gen_toks": room, "do_sample": False, "temperature": 0.0}
            task.set_config(key="generation_kwargs", value=greedy, update=True)
        if source.path is None:
            start = sum(map(len, rows.values()))
            stop = min(start + len(task.eval_docs), source.task.limit or sys.maxsize)
            rows[name] = list(range(start, stop))
    tasks = {name: task for name, task in tasks.items() if rows[name]}
    metadata = next(iter(tasks.values())).config.metadata
    score, kept = (benchmark.score, benchmark.filter) if benchmark else (metadata["score"], metadata["filter"])
    return Ready(source, tasks, dict(rows), score, kept)


def _process_once(task: Any) -> None:
    """Run the task's own preparation of documents now.

    lm-eval runs it at every look at them, and GPQA's shuffles the options by the global generator: without a cache on
    disk the model would be asked one order and scored by another.
    """
    process = task.config.process_docs
    if process is None:
        return
    state = random.getstate()
    random.seed(SEED)
    for split in {task.config.test_split or task.config.validation_split, task.config.fewshot_split} - {None}:
        task.dataset[split] = process(task.dataset[split])
    random.setstate(state)
    task.set_config(key="process_docs", value=None)


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
