"""lm-eval on a loaded model or an endpoint: stock tasks, on rows handed over in memory or on the hub's data.

Only the folders of the asked tasks are indexed (the whole of lm-eval takes 22 s), and rows of a mirror reach lm-eval
without a cache or a lock. Every prompt goes through the model's chat template, worked examples as turns; decoding is
greedy. Knows nothing of judges, seeds or files.
"""

import logging
import math
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.benchmarks import TASKS, Source
from eval.ifeval import load_checkers
from sso.errors import InputError

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
        load_checkers(i for row in source.rows or [{}] for i in row.get("instruction_id_list", _ALL))
    manager = TaskManager(include_defaults=False, include_path=str(folder))
    index = {name: entry.cfg for name, entry in manager.task_index.items() if entry.kind.name == "TASK"}
    shots = source.task.num_fewshot
    given = {} if shots is None else {"num_fewshot": shots}
    specs: list[dict[str, Any]]
    rows: dict[str, list[int]] = defaultdict(list)
    if source.path is None:
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
        name = benchmark.mirror or source.name.removeprefix("real_")
        raise InputError(
            f"evaluation.tasks: the data of {source.name} can't be had from the hub ({type(error).__name__}); "
            f"give a local copy: evaluation.mirrors.{name}.test."
        ) from error
    for name, task in tasks.items():
        task.set_fewshot_seed(seed=SEED)
        _process_once(task)
        if task.OUTPUT_TYPE == "generate_until":
            room = source.task.max_new_tokens or max_new_tokens
            task.set_config(key="generation_kwargs", value={"max_gen_toks": room}, update=True)
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


_ALL = ("length_constraints:number_sentences",)
"""The hub's IFEval asks every checker."""


def _local(source: Source, config: dict[str, Any], numbers: list[int]) -> dict[str, Any]:
    """Keys that put a mirror's rows in the place of a stock task's data set."""
    from datasets import Dataset

    test = config.get("test_split") or config["validation_split"]
    splits = {test: Dataset.from_list([source.rows[number] for number in numbers])}
    drawn = config.get("fewshot_split")
    count = source.task.num_fewshot if source.task.num_fewshot is not None else config.get("num_fewshot") or 0
    if drawn and count:
        subject = source.real.subject
        own = source.rows[numbers[0]].get(subject)
        shots = [row for row in source.shots if not subject or row[subject] == own]
        if len(shots) < count:
            name = source.real.mirror or source.name.removeprefix("real_")
            raise InputError(
                f"{source.path}: {source.name} takes {count} worked examples{f' of {own}' if own else ''}, but there "
                f"are {len(shots)} in {name}'s `shots` file (train.jsonl or dev.jsonl beside it): give "
                f"evaluation.mirrors.{name}.shots, or `num_fewshot: 0`."
            )
        splits[drawn] = Dataset.from_list(shots)
    absent = [key for key in ("training_split", "validation_split", "fewshot_split") if config.get(key) not in splits]
    return {"custom_dataset": lambda **_: splits} | dict.fromkeys(absent)


def local(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int) -> "LM":
    """A model in memory as lm-eval sees it. Raises InputError for a tokenizer without a chat template."""
    if not tokenizer.chat_template:
        raise InputError(f"{tokenizer.name_or_path}: the checkpoint has no chat template; use one that has.")
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    for request in ("generate_until", "loglikelihood"):
        setattr(lm, request, partial(getattr(lm, request), disable_tqdm=not sys.stderr.isatty()))
    return lm


def endpoint(url: str, model: str, concurrent: int, replies: Path) -> "LM":
    """An OpenAI-compatible chat endpoint, such as http://127.0.0.1:8000/v1; the key is OPENAI_API_KEY's.

    Each reply goes to the SQLite file ``replies`` as it comes: a request is not sent twice.
    """
    from lm_eval.api.model import CachingLM
    from lm_eval.models.openai_completions import LocalChatCompletion

    class Chat(LocalChatCompletion):
        def parse_generations(self, outputs: Any, **kwargs: Any) -> list[str]:
            # A refusal may have no content; None would shift all later replies in the cache's list.
            return [text or "" for text in super().parse_generations(outputs, **kwargs)]

    address = f"{url.rstrip('/')}/chat/completions"
    lm = Chat(base_url=address, model=model, num_concurrent=concurrent, max_retries=5)
    return CachingLM(lm, str(replies))


def _too_long(lm: Any, task: Any) -> int:
    """How many of a task's prompts, with the option or the room for a reply that follows, exceed the context."""
    requests = {i.doc_id: i.args for i in sorted(task.instances, key=lambda i: len(str(i.args[1])))}.values()
    room = task.config.generation_kwargs["max_gen_toks"] if task.OUTPUT_TYPE == "generate_until" else 0
    texts = [context if room else context + option for context, option in requests]
    encoded = lm.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return sum(len(ids) + room > lm.max_length for ids in encoded)


def _scores(samples: list[dict[str, Any]], score: str) -> list[float]:
    """Score of each sample, whose mean is the benchmark's figure.

    IFEval's figure is the mean of four accuracies, two of them over instructions, not prompts. A prompt's score is
    its term in the linearised mean (delta method), so value and standard error are those of a plain mean.
    """
    if score != "ifeval":
        return [float(s[score]) for s in samples]
    mean_count = sum(len(s["inst_level_strict_acc"]) for s in samples) / len(samples)
    scores = [0.0] * len(samples)
    for kind in ("strict", "loose"):
        hits = [hit for s in samples for hit in s[f"inst_level_{kind}_acc"]]
        accuracy = sum(hits) / len(hits)
        for i, s in enumerate(samples):
            own = s[f"inst_level_{kind}_acc"]
            instructions = accuracy + (sum(own) - accuracy * len(own)) / mean_count
            scores[i] += (s[f"prompt_level_{kind}_acc"] + instructions) / 4
    return scores


def run(ready: list[Ready], lm: "LM") -> dict[str, dict[str, Any]]:
    """Run tasks in one go; one entry a source, by name.

    metric and filter: what is scored; value and stderr in [0, 1]; n: documents; n_shot: worked examples;
    max_new_tokens; version: of the task in lm-eval; lm_eval: its own; truncated: prompts cut on the left because the
    context is too short (None: an endpoint does not tell); metrics: every metric of lm-eval by "name,filter";
    subjects: value and n of each stock task of a group; samples: score by row number; items: for each, its document's
    digest and what the filter made of the reply. Raises InputError where the context leaves no room for a prompt.
    """
    if not ready:
        return {}
    from lm_eval.evaluator import evaluate

    hosted = hasattr(lm, "tokenizer") and lm.tokenizer is None
    for one in [] if hosted else ready:
        for task in one.tasks.values():
            room = task.config.generation_kwargs["max_gen_toks"] if task.OUTPUT_TYPE == "generate_until" else 0
            if lm.max_length <= room:
                raise InputError(
                    f"evaluation.max_new_tokens: {room} new tokens of {one.source.name} leave no room for a prompt in "
                    f"the model's context of {lm.max_length}."
                )
    try:
        out = evaluate(
            lm=lm,
            task_dict={
                "tasks": {name: task for one in ready for name, task in one.tasks.items()},
                "groups": {},
                "group_map": {},
            },
            samples=_limited(ready),
            bootstrap_iters=0,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
        )
    except Exception as error:
        if not hosted:
            raise
        status = getattr(getattr(error, "response", None), "status_code", getattr(error, "status", None))
        raise InputError(
            f"--endpoint: the server fails on {ready[0].source.name} ({type(error).__name__}"
            f"{f', status {status}' if status else ''}); the same command later asks only what is still missing."
        ) from error
    return {one.source.name: _result(one, out, None if hosted else partial(_too_long, lm)) for one in ready}


def _limited(ready: list[Ready]) -> dict[str, list[int]] | None:
    """The documents of each task of a hub's data set that has a limit."""
    limited = [one for one in ready if one.source.path is None and one.source.task.limit]
    return {name: list(range(len(one.rows[name]))) for one in limited for name in one.tasks} or None


def _result(one: Ready, out: dict[str, Any], too_long: Callable[[Any], int] | None) -> dict[str, Any]:
    samples, numbers = [], []
    for name in one.tasks:
        own = sorted((s for s in out["samples"][name] if s["filter"] == one.filter), key=lambda s: s["doc_id"])
        samples += own
        numbers += [one.rows[name][s["doc_id"]] for s in own]
    scores = _scores(samples, one.score)
    n = len(scores)
    value = sum(scores) / n
    variance = sum((score - value) ** 2 for score in scores) / (n - 1) if n > 1 else math.nan
    task = next(iter(one.tasks.values()))
    counts = {name: len(one.rows[name]) for name in one.tasks}
    metrics = {
        key: sum(out["results"][name][key] * count for name, count in counts.items()) / n
        for key in out["results"][task.task_name]
        if "," in key and "_stderr" not in key
    }
    items = sorted(zip(numbers, scores, samples, strict=True), key=lambda item: item[0])
    room = task.config.generation_kwargs["max_gen_toks"] if task.OUTPUT_TYPE == "generate_until" else None
    result = {
        "metric": one.score,
        "filter": one.filter,
        "value": value,
        "stderr": math.sqrt(variance / n) if n > 1 else None,
        "n": n,
        "n_shot": one.shots,
        "max_new_tokens": room,
        "chat_template": True,
        "version": task.config.metadata["version"],
        "lm_eval": version("lm_eval"),
        "truncated": sum(too_long(t) for t in one.tasks.values()) if too_long else None,
        "metrics": {key: float(metric) for key, metric in metrics.items()},
        "samples": {str(number): score for number, score, _ in items},
        "items": [
            {"id": str(number), "doc": s["doc_hash"][:16], "score": score, "reply": _reply(s)}
            for number, score, s in items
        ],
    }
    if len(counts) > 1:
        by = {
            name: _scores([s for s in out["samples"][name] if s["filter"] == one.filter], one.score) for name in counts
        }
        result["subjects"] = {name: {"value": sum(v) / len(v), "n": len(v)} for name, v in sorted(by.items())}
    return result


def _reply(sample: dict[str, Any]) -> str | int:
    """What the filter left of the reply; of several options the likeliest one's number."""
    left = sample["filtered_resps"]
    if isinstance(left[0], str):
        return left[0]
    return max(range(len(left)), key=lambda i: left[i][0])
