"""lm-eval on a loaded model, offline: the tasks of eval/tasks on rows read from local JSON Lines files.

A task is one YAML; its rows are handed to lm-eval in memory, so no cache, lock or hub is involved. Every
prompt goes through the model's chat template, worked examples as turns; decoding is greedy. Knows nothing of
judges or seeds.

IFEval's checkers import NLTK and would download its `punkt_tab` data at import. Here that download is off:
two of the 25 checkers need the data (sentence counts, capital words), none of those that the micro-world uses.
Where one of the two is asked for, `punkt_tab` must lie on NLTK's path.
"""

import logging
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from sso.config import Task
from sso.errors import InputError
from sso.records import iter_json_lines

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TASKS = Path(__file__).parent / "tasks"
COLUMNS = {
    "gsm8k": ("question", "answer"),
    "math": ("problem", "solution"),
    "mmlu": ("subject", "question", "choices", "answer"),
    "mmlu_pro": ("question", "options", "answer_index"),
    "gpqa": ("question", "choices", "answer"),
    "ifeval": ("key", "prompt", "instruction_id_list", "kwargs"),
}
"""What each benchmark's rows must have; a task is `micro_` or `real_` before one of these."""
NEEDS_PUNKT = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
ROOM = 0.95
"""Worked examples are kept where at least this share of the prompts fits into the model's context."""


@dataclass(frozen=True)
class Source:
    """A task with the rows that it runs on."""

    name: str
    benchmark: str
    path: Path
    rows: list[dict[str, Any]]
    shots: list[dict[str, Any]]
    """Rows of train.jsonl beside a mirror, for worked examples; empty where there is none."""


def _rows(path: Path, benchmark: str, limit: int | None) -> list[dict[str, Any]]:
    rows = []
    for number, row in iter_json_lines(path):
        if missing := [column for column in COLUMNS[benchmark] if column not in row]:
            raise InputError(f"{path}:{number}: lacks `{missing[0]}`, which the rows of {benchmark} must have.")
        rows.append({column: row[column] for column in COLUMNS[benchmark]})
        if len(rows) == limit:
            break
    if not rows:
        raise InputError(f"{path}: holds no row.")
    return rows


def find(tasks: list[Task], data: Path | None) -> list[Source]:
    """The rows of every task, checked before any model is loaded.

    A task without `file` finds its rows at ``data``/<benchmark>.jsonl. Raises InputError for an unknown task,
    a missing file, or a row without a column that the task reads.
    """
    sources = []
    for task in tasks:
        benchmark = task.name.removeprefix("micro_").removeprefix("real_")
        if benchmark not in COLUMNS or not (TASKS / f"{task.name}.yaml").is_file():
            known = ", ".join(sorted(path.stem for path in TASKS.glob("*.yaml")))
            raise InputError(f"evaluation.tasks: unknown task {task.name!r}; known: {known}.")
        if task.file is None and data is None:
            raise InputError(f"evaluation.tasks: {task.name} needs `file`, a local JSON Lines mirror of its data.")
        path = Path(task.file) if task.file else Path(data) / f"{benchmark}.jsonl"
        examples = path.with_name("train.jsonl")
        has_shots = task.name.startswith("real_") and path.name != examples.name and examples.is_file()
        shots = _rows(examples, benchmark, None) if has_shots else []
        rows = _rows(path, benchmark, task.limit)
        if benchmark == "ifeval":
            _check_punkt(rows, path)
        sources.append(Source(task.name, benchmark, path, rows, shots))
    if len({source.name for source in sources}) < len(sources):
        raise InputError("evaluation.tasks: a task is named twice.")
    return sources


def _check_punkt(rows: list[dict[str, Any]], path: Path) -> None:
    asked = NEEDS_PUNKT.intersection(i for row in rows for i in row["instruction_id_list"])
    if not asked:
        return
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError as error:
        raise InputError(
            f"{path}: the checker {min(asked)} needs NLTK's punkt_tab data, which is not on this machine; "
            "run `python -m nltk.downloader punkt_tab`, or point NLTK_DATA at a folder that has it."
        ) from error


class _LaterNltk(ModuleType):
    """Stands in for NLTK while the checkers are imported; the real one is loaded when a checker uses it."""

    def __getattr__(self, name: str) -> Any:
        if name == "data" and sys.modules.get("nltk") is self:
            return SimpleNamespace(find=lambda _: None)  # "the data is here": no download
        import nltk

        return getattr(nltk, name)


def _load_checkers() -> None:
    """Import IFEval's checkers without the download that their import tries, and without NLTK's 2 s."""
    real = sys.modules.get("nltk")
    sys.modules["nltk"] = _LaterNltk("nltk")
    try:
        import lm_eval.tasks.ifeval.utils  # noqa: F401
    finally:
        del sys.modules["nltk"]
        if real is not None:
            sys.modules["nltk"] = real


def _build(sources: list[Source], max_new_tokens: int) -> dict[str, Any]:
    """lm-eval's task objects by name."""
    from datasets import Dataset
    from lm_eval.tasks import TaskManager

    def dataset(source: Source) -> Callable[..., dict[str, Dataset]]:
        splits = {"test": Dataset.from_list(source.rows)}
        if source.shots:
            splits["train"] = Dataset.from_list(source.shots)
        return lambda **_: splits

    if any(source.benchmark == "ifeval" for source in sources):
        _load_checkers()
    manager = TaskManager(include_defaults=False, include_path=str(TASKS))
    configs = [
        {"task": source.name, "custom_dataset": dataset(source)}
        | ({"fewshot_split": None, "num_fewshot": 0} if source.name == "real_gsm8k" and not source.shots else {})
        for source in sources
    ]
    # A task in a group is the way in which lm-eval lays given keys over a YAML that it knows by name.
    loaded = manager.load({"group": "run", "task": configs})
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=1234)
        if task.OUTPUT_TYPE == "generate_until":
            task.set_config(key="generation_kwargs", value={"max_gen_toks": max_new_tokens}, update=True)
    return loaded


def _too_long(lm: Any, task: Any, requests: list[tuple[str, Any]]) -> int:
    """How many of these prompts, with the option or the room for a reply that follows, exceed the context."""
    room = task.config.generation_kwargs["max_gen_toks"] if task.OUTPUT_TYPE == "generate_until" else 0
    texts = [context if room else context + option for context, option in requests]
    encoded = lm.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return sum(len(ids) + room > lm.max_length for ids in encoded)


def _settle_shots(lm: Any, task: Any) -> None:
    """Drop the worked examples where too many prompts would not fit with them."""
    shots = task.config.num_fewshot
    if not shots:
        return
    requests = []
    for doc in task.eval_docs:
        context = task.fewshot_context(
            doc, shots, apply_chat_template=True, fewshot_as_multiturn=True, chat_template=lm.apply_chat_template
        )
        requests.append((context, max(task.doc_to_choice(doc), key=len) if task.config.doc_to_choice else None))
    task.set_fewshot_seed(seed=1234)
    if _too_long(lm, task, requests) > (1 - ROOM) * len(requests):
        task.set_config(key="num_fewshot", value=0)


def _scores(samples: list[dict[str, Any]], metadata: dict[str, Any]) -> dict[int, float]:
    """Score of each document, whose mean is the task's value.

    IFEval's value is the mean of four accuracies, two of them over instructions, not prompts. A prompt's score is
    its term in the linearised mean (delta method), so value and standard error are those of a plain mean.
    """
    if metadata["score"] != "ifeval":
        return {s["doc_id"]: float(s[metadata["score"]]) for s in samples}
    mean_count = sum(len(s["inst_level_strict_acc"]) for s in samples) / len(samples)
    scores = {s["doc_id"]: 0.0 for s in samples}
    for kind in ("strict", "loose"):
        hits = [hit for s in samples for hit in s[f"inst_level_{kind}_acc"]]
        accuracy = sum(hits) / len(hits)
        for s in samples:
            own = s[f"inst_level_{kind}_acc"]
            instructions = accuracy + (sum(own) - accuracy * len(own)) / mean_count
            scores[s["doc_id"]] += (s[f"prompt_level_{kind}_acc"] + instructions) / 4
    return scores


def run(
    sources: list[Source],
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    batch_size: int,
    max_new_tokens: int,
) -> dict[str, dict[str, Any]]:
    """Run tasks on a model in memory; one entry a task.

    metric: what is scored; value and stderr in [0, 1]; n: documents; n_shot: worked examples; version; truncated:
    prompts cut on the left because the context is too short; metrics: every metric of lm-eval by "name,filter";
    samples: score by document number. Raises InputError for a tokenizer without a chat template, or a model whose
    context leaves no room for a prompt.
    """
    if not sources:
        return {}
    if not tokenizer.chat_template:
        raise InputError(f"{tokenizer.name_or_path}: the checkpoint has no chat template; use one that has.")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    if lm.max_length <= max_new_tokens:
        raise InputError(
            f"evaluation.max_new_tokens: {max_new_tokens} new tokens leave no room for a prompt in the model's "
            f"context of {lm.max_length}."
        )
    for request in ("generate_until", "loglikelihood"):
        setattr(lm, request, partial(getattr(lm, request), disable_tqdm=not sys.stderr.isatty()))
    loaded = _build(sources, max_new_tokens)
    for task in loaded["tasks"].values():
        _settle_shots(lm, task)
    out = evaluate(
        lm=lm,
        task_dict={"tasks": loaded["tasks"], "groups": {}, "group_map": {}},
        bootstrap_iters=0,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
    )
    results = {}
    for name, task in loaded["tasks"].items():
        metadata = task.config.metadata
        samples = [s for s in out["samples"][name] if s["filter"] == metadata["filter"]]
        scores = _scores(samples, metadata)
        n = len(scores)
        value = sum(scores.values()) / n
        variance = sum((score - value) ** 2 for score in scores.values()) / (n - 1) if n > 1 else math.nan
        longest = {i.doc_id: i.args for i in sorted(task.instances, key=lambda i: len(str(i.args[1])))}
        results[name] = {
            "metric": metadata["score"],
            "value": value,
            "stderr": math.sqrt(variance / n) if n > 1 else None,
            "n": n,
            "n_shot": task.config.num_fewshot or 0,
            "version": metadata["version"],
            "truncated": _too_long(lm, task, list(longest.values())),
            "metrics": {
                key: float(metric)
                for key, metric in out["results"][name].items()
                if "," in key and "_stderr" not in key
            },
            "samples": {str(doc): scores[doc] for doc in sorted(scores)},
        }
    return results
