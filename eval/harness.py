"""lm-eval's tasks on a loaded model or an endpoint (`endpoint_lm`).

Every prompt goes through the model's chat template, worked examples as turns; decoding is greedy. Knows nothing of
judges, seeds or files.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from eval.stock import Ready
from sso.errors import InputError
from sso.jobs.progress import Bar
from sso.sampling.settings import Vllm

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOGETHER = 4096
"""Requests that lm-eval hands to vLLM at once. What vLLM says of each prompt token is kept until all of them are done:
0.4 MB for 700 tokens, so 23 GB for the 56,168 requests of MMLU, which lm-eval would hand over together."""


def local(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int) -> "LM":
    """A model in memory as lm-eval sees it; its `model_cpu_s` counts the CPU-seconds in the model itself.

    Raises InputError for a tokenizer without a chat template.
    """
    if not tokenizer.chat_template:
        raise InputError(f"{tokenizer.name_or_path}: the checkpoint has no chat template; use one that has.")
    from lm_eval.models import huggingface

    from sso.chat import stop_ids
    from sso.sampling.transformers_engine import stated

    huggingface.tqdm = Bar  # lines in a log file
    # A prompt is what the template renders, as in training and sampling: no token is added to it.
    lm = huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=False)
    lm.model_cpu_s = 0.0
    stop = stop_ids(tokenizer, model.generation_config.eos_token_id)

    def timed(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        with stated(model, stop, tokenizer.pad_token_id):
            out = call(*args, **kwargs)
        lm.model_cpu_s += time.process_time() - start
        return out

    for name in ("_model_generate", "_model_call"):
        setattr(lm, name, partial(timed, getattr(lm, name)))
    return lm


def vllm(path: Path, dtype: str, settings: Vllm) -> "LM":
    """A checkpoint in vLLM as lm-eval sees it; prompts and replies go through the suite's own tokenizer."""
    from sso.chat import load_tokenizer, save_tokenizer
    from sso.sampling.vllm_engine import importing, llm_arguments, vllm_stop_ids

    tokenizer = load_tokenizer(path)
    folder = TemporaryDirectory()
    with importing(path):
        from lm_eval.models import vllm_causallms

        vllm_causallms.tqdm = Bar  # lines in a log file
        # vLLM decodes replies, by a tokenizer that it loads itself: in a folder without a model's config.json no
        # class is put in the place of tokenizer.json.
        save_tokenizer(tokenizer, Path(folder.name))
        arguments = llm_arguments(path, dtype, settings)
        lm = vllm_causallms.VLLM(
            pretrained=arguments.pop("model"),
            tokenizer=folder.name,
            add_bos_token=False,
            batch_size=TOGETHER,
            **arguments,
        )
    lm.tokenizer, lm.tokenizer_folder = tokenizer, folder  # which is there as long as the model is
    stop, as_asked = vllm_stop_ids(lm.model, tokenizer), lm.modify_gen_kwargs

    def asked(*args: Any, **kwargs: Any) -> Any:
        decoding, until, room = as_asked(*args, **kwargs)
        return {**decoding, "stop_token_ids": stop}, until, room

    lm.modify_gen_kwargs = asked
    return lm


def _too_long(lm: Any, task: Any) -> int:
    """How many of a task's prompts, with the option or the room for a reply that follows, exceed the context."""
    requests = {i.doc_id: i.args for i in sorted(task.instances, key=lambda i: len(str(i.args[1])))}.values()
    room = task.config.generation_kwargs["max_gen_toks"] if task.OUTPUT_TYPE == "generate_until" else 0
    texts = [context if room else context + option for context, option in requests]
    encoded = lm.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return sum(len(ids) + room > lm.max_length for ids in encoded)


def run(ready: list[Ready], lm: "LM") -> dict[str, dict[str, Any]]:
    """Run tasks in one go; one entry a source, by name.

    metric and filter: what is scored; value and stderr in [0, 1]; n: documents; n_shot: worked examples;
    max_new_tokens; version: of the task in lm-eval; lm_eval: its own; truncated: prompts cut on the left because the
    context is too short (None: an endpoint does not tell); refused, where there are any: numbers of the rows whose
    requests an endpoint refused, their replies counting as empty; metrics: every metric of lm-eval by "name,filter";
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
                    f"the model's context of {lm.max_length}; lower it."
                )
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
    results = {one.source.name: _result(one, out, None if hosted else partial(_too_long, lm)) for one in ready}
    for one in ready:
        refused = {name: getattr(lm, "refused", {}).get(name, ()) for name in one.tasks}
        if any(refused.values()):
            results[one.source.name]["refused"] = [str(one.rows[n][i]) for n in refused for i in sorted(refused[n])]
    return results


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
    scores = one.scores(samples)
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
        "version": (task.config.metadata or {}).get("version"),
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
        by = {name: one.scores([s for s in out["samples"][name] if s["filter"] == one.filter]) for name in counts}
        result["subjects"] = {name: {"value": sum(v) / len(v), "n": len(v)} for name, v in sorted(by.items())}
    return result


def _reply(sample: dict[str, Any]) -> str | int:
    """What the filter left of the reply; of several options the likeliest one's number."""
    left = sample["filtered_resps"]
    if isinstance(left[0], str):
        return left[0]
    return max(range(len(left)), key=lambda i: left[i][0])
