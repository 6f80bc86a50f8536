"""What a benchmark is, in one record: what is asked, how answers are made, judged and scored, its column, its cost.

A module of this package holds a benchmark and names its records in `BENCHMARKS`; the rest of the suite finds them
there by name (`eval.benchmarks`). There are two kinds: tasks of lm-eval, and open prompts whose answers are judged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.judge import Judge
    from eval.settings import Evaluation
    from eval.settings import Judge as JudgeSettings
    from sso.records import Answer, Message
    from sso.sampling.engine import Engine

Rows = Sequence[Mapping[str, Any]]
Items = dict[str, float]
"""Item id -> score: what intervals are made of."""


@dataclass(frozen=True)
class Column:
    """How a metric is shown: its heading, digits after the point, and its unit (`%`, `0-1`, `1-10` or a word)."""

    label: str
    digits: int = 1
    unit: str = "%"
    fits: bool = False
    """Whether each figure says of which fit it is."""
    needs: str | None = None
    """`oracle`: only that judge gives it."""


@dataclass(frozen=True)
class Load:
    """Rough means, for the cost model: ``items`` prompts of ``prompt`` tokens with ``new`` tokens drawn, or ``scored``
    continuations, for each. No items: as many as are held out (`data.held_out`). None: as long as the experiment's own
    prompts and responses."""

    items: int
    prompt: float | None = None
    new: float | None = None
    scored: int = 0


@dataclass(frozen=True)
class Judging:
    """Rough means, for the cost model: a judge's requests (for each prompt where `Load` has no items), and tokens that
    it reads and says in each."""

    requests: int
    read: int
    said: int


@dataclass(frozen=True)
class LmEval:
    """A benchmark that lm-eval has: the stock task, or the stock group of subjects, as it is installed.

    A config's task is `real_<name>`, on the hub's data or on a local mirror's, or `micro_<name>`, the micro-world's
    look-alike (eval/tasks/micro_<name>.yaml).
    """

    name: str
    stock: str
    """Name of the stock task; `{}` stands for the subject where there is one task a subject."""
    folder: str
    """Where lm-eval keeps it, under lm_eval/tasks."""
    columns: tuple[str, ...]
    """What each row of a mirror must have."""
    column: Column
    load: Load | None = None
    """What it asks of a model; None: it is not priced, and the plan says so."""
    score: str = "acc"
    filter: str = "none"
    """The metric, and the filter of the reply, whose mean is the benchmark's figure."""
    subject: str | None = None
    """The column that names a row's subject, where the benchmark is a group of stock tasks."""
    subjects: Mapping[str, str] = field(default_factory=dict)
    """A subject's name in the stock task's, where that is not the subject's own with `_` for blanks."""
    first_subject: str = ""
    """The subject of a row that names none."""
    mirror: str | None = None
    """The benchmark whose mirror this one reads too."""
    generative: str | None = None
    """For a benchmark of log-likelihoods: the task for endpoints, which give none."""
    own_examples: bool = False
    """Whether worked examples are part of the stock task, and none come from the mirror."""
    micro: tuple[str, ...] | None = None
    """What each row of a world's look-alike must have; None: there is none."""
    only_world: bool = False
    """Whether it is a world's alone: there is no `real_<name>`."""
    micro_likelihoods: bool = False
    """Whether the look-alike scores options by log-likelihood, which endpoints don't give."""
    prepare: Callable[[Rows | None], None] | None = None
    """Called before lm-eval's tasks are made, with a mirror's rows."""
    scores: Callable[[Rows], list[float]] | None = None
    """Scores of lm-eval's samples, whose mean is the figure; None: each one's ``score``."""

    def task(self, row: Mapping[str, Any]) -> str:
        """The stock task that a mirror's row belongs to."""
        subject = str(row.get(self.subject, self.first_subject)) if self.subject else ""
        return self.stock.replace("{}", self.subjects.get(subject, subject.replace(" ", "_")))


@dataclass(frozen=True)
class Verdicts:
    """What a judge said of one model's answers."""

    rows: list[dict[str, Any]]
    scores: dict[str, dict[str, Any]]
    """Metric -> value, stderr, n."""
    items: list[Any]
    again: Callable[[list[Any], int], list[float]]
    """Judges some of ``items`` once more, as draw 1, 2 ...; a score each."""
    metric: str
    """The metric that ``again`` gives draws of, for their spread."""


@dataclass(frozen=True)
class Judged:
    """A benchmark of open prompts, whose answers are judged."""

    name: str
    columns: Mapping[str, Column]
    """Its columns, by metric."""
    prompts: tuple[str, ...]
    """Files of the data folder, by name without suffix, that prompts may come from: the first that is there."""
    files: Mapping[str, str]
    """What `evaluation.files` may give, and what each is called in the data folder."""
    reads: tuple[str, ...]
    """Files of the data folder that judging reads, where they are there."""
    read: Callable[[Path], tuple[Path, list[Any]]]
    """Data folder -> the file of the prompts, and these; InputError that names file and line."""
    answer: "Callable[[Engine, list[Any], Evaluation, int, str], list[Answer]]"
    """Engine, prompts, decoding, seed and the model's name -> answers."""
    answers: str
    """The answers' file, without suffix."""
    inputs: Callable[[Path], dict[str, Path]]
    """Data folder -> the files that judging needs; one that is not there is told."""
    judge: "Callable[[Judge, JudgeSettings, list[Answer], Mapping[str, Path]], Verdicts]"
    """Judge, its settings, answers and ``inputs`` (with `against`, the SFT model's answers, where they are given) ->
    verdicts."""
    judged: str
    """The verdicts' file, without suffix."""
    load: Load
    judging: Judging
    read_answers: "Callable[[Path], list[Answer]] | None" = None
    """Reads the answers' file; None: it holds records of ours."""
    outline: "Callable[[Any], list[Message]] | None" = None
    """A prompt's whole conversation, which a chat template must take; None: its `prompt`."""
    items: Callable[[Rows], dict[str, Items]] | None = None
    """Rows of ``judged`` -> scores of items by metric."""
    needs_start: bool = False
    """Whether answers are compared with the starting model's own, which so has no figure itself."""
