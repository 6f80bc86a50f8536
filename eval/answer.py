"""Everything that one model says: lm-eval's benchmarks and the answers to open prompts, resumable, in one process.

A killed run goes on where it stopped: each finished part lies beside the output folder until that is whole. The model
is loaded when the first part that is missing needs it. Knows nothing of judges.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from eval import benchmarks, harness, stock
from eval import sources as find_sources
from eval.benchmarks import Judged
from eval.settings import Evaluation
from sso.chat import check_conversations, check_whole, load_tokenizer, naming
from sso.errors import InputError, first_of
from sso.hub import checkpoint
from sso.jobs import tracking
from sso.jobs.command import end_start_up
from sso.jobs.progress import progress
from sso.records import digest, whole_folder, write, write_text
from sso.sampling.settings import Endpoint

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from sso.sampling.endpoint_engine import EndpointEngine
    from sso.sampling.engine import Engine
    from sso.sampling.transformers_engine import TransformersEngine


class _Parts:
    """Finished parts of an answer folder, beside it until it is whole."""

    def __init__(self, folder: Path, model: Any):
        self.folder, self.model = folder, model

    def take(self, name: str, settings: Any, make: Callable[[], Any]) -> Any:
        """A part (plain JSON) as an earlier run left it, or made now; made anew for another model, settings or data."""
        key, path = digest([self.model, settings]), self.folder / f"{name}.json"
        with suppress(OSError, ValueError, LookupError, TypeError):  # absent, or damaged: it is made anew
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["key"] == key:
                print(f"{name}: taken over from the run before", file=sys.stderr)
                return stored["part"]
        print(f"{name} ...", file=sys.stderr)
        start = time.monotonic()
        part = make()
        write_text(path, json.dumps({"key": key, "part": part}, ensure_ascii=False))
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
        return part


class Served:
    """A model behind an endpoint, whose replies ``cache`` keeps."""

    def __init__(self, settings: Endpoint, cache: Path):
        self.settings, self.cache = settings, cache

    @property
    def identity(self) -> Any:
        """What tells it from others: its name, its address and how it is asked."""
        return self.settings.model_dump()

    @cached_property
    def engine(self) -> "EndpointEngine":
        """The model for open prompts."""
        from sso.sampling.endpoint_engine import EndpointEngine

        return EndpointEngine(self.settings, self.cache, lambda: progress("answers"))

    @cached_property
    def lm(self) -> "LM":
        """The model for lm-eval, with the same client."""
        from eval.endpoint_lm import EndpointLM

        return EndpointLM(self.engine.client)


class Checkpoint:
    """A checkpoint, loaded when it is first asked."""

    def __init__(self, name: str, settings: Evaluation):
        self.folder, self.settings = checkpoint(name), settings
        self.dtype = _stored_dtype(self.folder)

    @property
    def identity(self) -> Any:
        """What tells it from others: sizes and times of its files."""
        return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(self.folder.iterdir()) if p.is_file()]

    @cached_property
    def engine(self) -> "Engine":
        """The model for open prompts."""
        if self.settings.engine == "vllm":
            from sso.sampling.vllm_engine import VLLMEngine

            return VLLMEngine.of(self.lm.model, self.lm.tokenizer)  # two would not fit a GPU
        return self._local

    @cached_property
    def lm(self) -> "LM":
        """The model for lm-eval."""
        if self.settings.engine == "vllm":
            return harness.vllm(self.folder, self.dtype, self.settings)
        return harness.local(self._local.model, self._local.tokenizer, self.settings.batch_size)

    @cached_property
    def _local(self) -> "TransformersEngine":
        from sso.sampling.transformers_engine import TransformersEngine

        return TransformersEngine(self.folder, dtype=self.dtype, batch_size=self.settings.batch_size)


def _stored_dtype(model: Path) -> str:
    """The precision a checkpoint was saved in, as its config.json says; float32 where it does not."""
    check_whole(model)
    if not (model / "config.json").is_file():
        raise InputError(f"{model}: no config.json; give the folder of a Hugging Face checkpoint.")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return config.get("dtype") or config.get("torch_dtype") or "float32"


class Asked(NamedTuple):
    """A benchmark of open prompts with its prompts, their file, and how they are answered."""

    benchmark: Judged
    path: Path
    prompts: list[Any]
    decoding: Evaluation


def _open(settings: Evaluation, data: Path) -> Iterator[Asked]:
    for name in settings.judged:
        benchmark = benchmarks.of_judges()[name]
        yield Asked(benchmark, *benchmark.read(data), settings.drawn_as(name))


def answer(
    model: str | Endpoint, data: Path | None, settings: Evaluation, seed: int, out: Path, name: str | None, cache: Path
) -> None:
    """Write the answers of the open benchmarks (*answers.jsonl), lm_eval.json and items/<task>.jsonl under ``out``.

    ``data`` holds the open benchmarks' prompts and the micro-world's benchmarks. Raises InputError for bad settings or
    files before a model is loaded.
    """
    if data is None and settings.judged:
        raise InputError("--data: give the folder of the judged benchmarks' prompts, or `judged: []`.")
    sources = find_sources.find(settings, data, isinstance(model, Endpoint))
    if isinstance(model, str) and Path(model).is_dir() and all(source.path for source in sources):
        # Everything is local: a look-up on the hub could only cost time.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    opened = list(_open(settings, data)) if data else []
    subject = Checkpoint(model, settings) if isinstance(model, str) else Served(model, cache)
    name = name or Path(model if isinstance(model, str) else model.model).name
    record = settings.model_dump() | ({} if isinstance(model, str) else {"endpoint": model.model_dump()})
    # Only what is read of the data folder, so that the record does not depend on the rest.
    inputs = {"model": subject.folder} if isinstance(subject, Checkpoint) else {}
    inputs |= {s.name: s.path for s in sources if s.path}
    inputs |= {s.name: Path(s.task.include_path) for s in sources if s.task.include_path}
    inputs |= {asked.path.stem: asked.path for asked in opened}
    unfinished = out.with_name(f".{out.name}.partial")
    parts = _Parts(unfinished, [subject.identity, name, seed])

    def ask(asked: Asked) -> list[dict[str, Any]]:
        said = asked.benchmark.answer(subject.engine, asked.prompts, asked.decoding, seed, name)
        return [answer.model_dump() for answer in said]

    def evaluate(group: list[stock.Ready]) -> dict[str, dict[str, Any]]:
        lm, before = subject.lm, getattr(subject.lm, "model_cpu_s", 0.0)
        start = time.process_time()
        results = harness.run(group, lm)
        inside = getattr(lm, "model_cpu_s", 0.0) - before
        spent["model_cpu_s"] += inside
        spent["harness_cpu_s"] += time.process_time() - start - inside
        return results

    with tracking.run(out, "answer", record, inputs, seed) as run, whole_folder(out) as folder:
        # All tasks are made before any runs: what is wrong with the last one is not told after hours.
        started = time.process_time()
        ready = [stock.build(source, settings.max_new_tokens) for source in sources]
        if isinstance(subject, Served):
            _check_generative(ready)
        if isinstance(subject, Checkpoint):
            _check_prompts(subject.folder, opened)
        spent = {"harness_cpu_s": time.process_time() - started, "model_cpu_s": 0.0}
        if sources:
            import lm_eval.evaluator
            import lm_eval.models.huggingface  # noqa: F401
        end_start_up()
        for asked in opened:
            decoding, file = asked.decoding, asked.benchmark.answers
            said = [decoding.temperature, decoding.top_p, decoding.max_new_tokens, decoding.samples, asked.prompts]
            rows = parts.take(file, said, partial(ask, asked))
            for row in rows:
                if why := row.get("missing"):
                    run.summary[f"{file}_{why}"] = run.summary.get(f"{file}_{why}", 0) + 1
            write(folder / f"{file}.jsonl", rows)
        tasks: dict[str, dict[str, Any]] = {}
        for title, group in _groups(ready).items():
            key = [[g.source.task, settings.max_new_tokens, g.source.rows, g.source.shots] for g in group]
            tasks |= parts.take(title, [version("lm_eval"), key], partial(evaluate, group))
        for task, result in tasks.items():
            write(folder / "items" / f"{task}.jsonl", result.pop("items"))
            if refused := result.get("refused"):
                run.summary[f"{task}_refused"] = len(refused)
                print(f"warning: {len(refused)} prompts of {task} refused: {first_of(refused)}", file=sys.stderr)
            if result["truncated"]:
                cut = f"{result['truncated']} of {result['n']} prompts of {task}"
                print(f"warning: {cut} were cut to the model's context.", file=sys.stderr)
        if isinstance(subject, Served):
            print("endpoint: " + ", ".join(f"{count} {what}" for what, count in subject.engine.client.notes().items()))
        write_text(folder / "lm_eval.json", json.dumps({"tasks": tasks}, ensure_ascii=False, indent=1) + "\n")
        run.summary.update({task: result["value"] for task, result in tasks.items()} | (spent if tasks else {}))
    shutil.rmtree(unfinished, ignore_errors=True)


def _check_prompts(model: Path, opened: list[Asked]) -> None:
    """Raise InputError that names the prompt, where the model's chat template refuses one; no model is loaded."""
    tokenizer = load_tokenizer(model)
    for asked in opened:
        outline = asked.benchmark.outline or (lambda query: query.prompt)
        with naming([prompt.id for prompt in asked.prompts], f"{asked.path.stem}: prompt"):
            check_conversations(tokenizer, [outline(prompt) for prompt in asked.prompts])


def _check_generative(ready: list[stock.Ready]) -> None:
    """Raise InputError for a task of lm-eval's that an endpoint can't be asked."""
    for one in ready:
        if any(task.OUTPUT_TYPE != "generate_until" for task in one.tasks.values()):
            raise InputError(
                f"evaluation.tasks: {one.source.name} needs log-likelihoods, which a chat endpoint does not "
                "give: leave it out."
            )


def _groups(ready: list[stock.Ready]) -> dict[str, list[stock.Ready]]:
    """What runs in one go, by title: the micro-world's tasks together, a real benchmark alone."""
    groups: dict[str, list[stock.Ready]] = {}
    for one in ready:
        world = one.source.benchmark is not None and one.source.real is None
        groups.setdefault("micro" if world else one.source.name, []).append(one)
    return groups
