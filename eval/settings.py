"""Settings of evaluation: benchmarks, how answers to them are drawn, and who judges those."""

from collections.abc import Collection
from operator import not_
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from sso.sampling.settings import Endpoint, Vllm
from sso.settings import Settings, hint, merge, sentence


class Judge(Endpoint):
    """Who compares and grades answers: the micro-world's oracle, an endpoint (`openai`), or a reward model."""

    kind: Literal["oracle", "openai", "reward"] = "oracle"
    model: str = "oracle"
    path: str | None = None
    """The reward model: a folder, or its name on the hub."""
    prompts: str | None = None
    """FastChat's judge_prompts.jsonl, in place of the copy that comes with the suite."""
    pairs: int | None = Field(None, ge=1)
    """How many pairs of a set data quality samples; None: all. The paper: 200."""
    repeats: int = Field(1, ge=1)
    """More than one: a subset of the items is judged so often, and the spread is reported."""
    repeat_items: int = Field(40, ge=2)

    @property
    def asks_an_endpoint(self) -> bool:
        """Whether a model behind an OpenAI-compatible endpoint judges: each verdict is a request, which may cost."""
        return self.kind == "openai"

    @model_validator(mode="after")
    def _complete(self) -> "Judge":
        if self.kind == "reward" and self.path is None:
            raise ValueError("`kind: reward` needs `path`, the reward model's folder or its name on the hub")
        if self.kind != "reward" and self.path is not None:
            raise ValueError(f"`path` is the reward model's, but the judge is of `kind: {self.kind}`; leave one out")
        if self.asks_an_endpoint and "model" not in self.model_fields_set:
            raise ValueError("`kind: openai` needs `model`, the name of the endpoint's model")
        return self

    @property
    def title(self) -> str:
        """What tables and scores call it; a reward model is called one, without its commit. A folder `model` says
        nothing, so that its own folder stands before it."""
        if not self.path:
            return self.model
        parts = Path(self.path).parts
        return f"reward model {'/'.join(parts[-2:] if parts[-1] == 'model' else parts[-1:]).partition('@')[0]}"


class Task(Settings):
    """What lm-eval asks; what is left out is the benchmark's own."""

    name: str
    kind: Literal["benchmark", "lm_eval"] = Field("benchmark", exclude_if=lambda kind: kind == "benchmark")
    """`benchmark`: one of eval/benchmarks (`micro_*`, `real_*`); `lm_eval`: any task or group that lm-eval knows by
    ``name``, on its own data."""
    include_path: str | None = Field(None, exclude_if=not_)
    """A folder of one's own task files, for `kind: lm_eval`."""
    metric: str | None = Field(None, exclude_if=not_)
    """What is scored, for `kind: lm_eval`: `acc_norm`, or with a filter `exact_match,strict-match`; None: the task's
    first."""
    file: str | None = None
    """A JSON Lines mirror of its data. Without: `mirrors`, then (micro) the data folder or (real) the hub."""
    limit: int | None = Field(None, ge=1)
    """How many rows are asked, from the first; None: all."""
    num_fewshot: int | None = Field(None, ge=0)
    """Worked examples, as turns of the chat; None: the stock task's number."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Tokens of a reply; None: the evaluation's `max_new_tokens`, or with `kind: lm_eval` the task's own, if any."""

    @model_validator(mode="after")
    def _kinds(self) -> "Task":
        if self.kind == "benchmark" and (self.include_path or self.metric):
            raise ValueError(f"{self.name}: `include_path` and `metric` are for `kind: lm_eval`")
        if self.kind == "lm_eval" and self.file:
            raise ValueError(f"{self.name}: `file` is for benchmarks; a task of lm-eval's names its own data")
        return self


class Mirror(Settings):
    """Local JSON Lines files of one benchmark; docs/evaluation.md has the columns."""

    test: str
    shots: str | None = None
    """Rows to draw worked examples from. None: `train.jsonl` or `dev.jsonl` beside `test`, where there is one."""


def _known_file(name: str) -> str:
    from eval.benchmarks import files

    return _among(name, files(), "file")


def _known_benchmark(name: str) -> str:
    from eval.benchmarks import of_judges

    return _among(name, of_judges(), "judged benchmark")


def _needs_oracle(name: str) -> bool:
    from eval.benchmarks import of_judges

    return all(column.needs == "oracle" for column in of_judges()[name].columns.values())


def _needs_start(name: str) -> bool:
    from eval.benchmarks import of_judges

    return of_judges()[name].needs_start


def _known_mirror(name: str) -> str:
    from eval.benchmarks import of_lm_eval

    return _among(name, [name for name, record in of_lm_eval().items() if not record.mirror], "benchmark")


def _among(name: str, known: Collection[str], what: str) -> str:
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; {hint(name, known)}")
    return name


JudgedName = Annotated[str, AfterValidator(_known_benchmark)]
"""A benchmark of open prompts, whose answers are judged."""


class AnswerDecoding(Settings):
    """How one benchmark's answers are drawn; what is left out is as for the others."""

    max_new_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0)
    """Arena-Hard takes 0 only; the categories of MT-Bench that FastChat names keep FastChat's."""
    top_p: float | None = Field(None, gt=0, le=1)


class Evaluation(Vllm):
    """Which benchmarks, and how answers are drawn."""

    engine: Literal["transformers", "vllm"] = "transformers"
    tasks: list[Task] = []
    mirrors: dict[Annotated[str, AfterValidator(_known_mirror)], Mirror] = {}
    """Local files in place of the hub's data sets, by benchmark."""
    files: dict[Annotated[str, AfterValidator(_known_file)], str] = {}
    """The judged benchmarks' own files (docs/evaluation_judges.md): local, or hf://datasets/OWNER/NAME/FILE."""
    difficulty: str | None = None
    """Where the difficulties of AlpacaEval's instructions come from, for the length-controlled win rate: `hub` (the
    official df_gamed.csv), a local or hf:// CSV, or None: one fit without difficulties. The report says which fit
    gave a figure."""
    judged: list[JudgedName] = ["alpaca_eval", "mt_bench"]
    """Benchmarks of open prompts, whose answers are judged (eval/benchmarks)."""
    rewardbench: str = "allenai/reward-bench"
    """Where reward models are scored outside the micro-world: RewardBench on the hub, or a JSON Lines copy of it."""
    batch_size: int = 64
    max_new_tokens: int = 64
    temperature: float = 1.0
    """Sampling temperature of the open-ended answers; lm-eval's tasks decode greedily."""
    top_p: float = 1.0
    samples: int = Field(1, ge=1, exclude_if=lambda samples: samples == 1)
    """Answers to each prompt of AlpacaEval's (and of steering's, in each context); a prompt's score is their mean. Each
    is judged, which may cost."""
    decoding: dict[JudgedName, AnswerDecoding] = {}
    """What one benchmark of open prompts does otherwise."""
    judge: Judge = Judge()
    judges: dict[JudgedName, dict[str, Any]] = {}
    """Settings of one benchmark's judge, laid over `judge`."""

    @model_validator(mode="after")
    def _judges(self) -> "Evaluation":
        if len(set(self.judged)) < len(self.judged):
            raise ValueError("judged: a benchmark is named twice; leave one out")
        for name in dict.fromkeys([*self.judges, *self.judged]):
            try:
                judge = self.judge_of(name)
            except ValidationError as error:
                raise ValueError(sentence(f"judges.{name}", error, Judge)) from None
            if judge.kind != "oracle" and name in self.judged and _needs_oracle(name):
                raise ValueError(f"judged: {name} is measured by the oracle alone; leave it out, or take that judge")
        return self

    @property
    def needs_start(self) -> list[str]:
        """The judged benchmarks that compare with the starting model's own answers."""
        return [name for name in self.judged if _needs_start(name)]

    def drawn_as(self, benchmark: str) -> "Evaluation":
        """These settings with the decoding of one benchmark's answers."""
        own = self.decoding.get(benchmark, AnswerDecoding())
        return self.model_copy(update=own.model_dump(exclude_none=True))

    def judge_of(self, benchmark: str) -> Judge:
        """Who judges a benchmark."""
        return Judge.model_validate(merge(self.judge.model_dump(exclude_unset=True), self.judges.get(benchmark, {})))
