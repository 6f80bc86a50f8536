"""A folder of answers judged, benchmark by benchmark, with items beside the figures."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from eval import benchmarks, variance
from eval.judge import Judge
from eval.settings import Evaluation
from sso.errors import InputError
from sso.records import Answer, read, write

Scores = dict[str, dict[str, Any]]


def inputs(data: Path, settings: Evaluation) -> dict[str, Path]:
    """The files of a data folder that judging with these settings reads."""
    used: dict[str, Path] = {}
    for name in settings.judged:
        used |= benchmarks.of_judges()[name].inputs(data)
    for path in used.values():
        if not path.is_file():
            raise InputError(
                f"{path}: no such file; put the benchmark's file there (docs/evaluation.md), or leave it out of "
                "`judged`."
            )
    return used


def judge_all(
    judge_of: Callable[[str], Judge],
    answers: Path,
    data: Path,
    settings: Evaluation,
    out: Path,
    against: Path | None = None,
) -> Scores:
    """Scores of the judged benchmarks, each by its own judge; verdicts are written to ``out``.

    ``against``: the SFT model's answers, a folder like ``answers``, for what is told as a difference to them.
    """
    files, spread = inputs(data, settings), {}
    scores: Scores = {}
    for name in settings.judged:
        benchmark, judge = benchmarks.of_judges()[name], settings.judge_of(name)
        path = answers / f"{benchmark.answers}.jsonl"
        said = benchmark.read_answers(path) if benchmark.read_answers else read(path, Answer)
        start = {"against": against / path.name} if against else {}
        verdicts = benchmark.judge(judge_of(name), judge, said, files | start)
        write(out / f"{benchmark.judged}.jsonl", verdicts.rows)
        scores |= verdicts.scores
        if judge.repeats > 1:
            again = partial(verdicts.again, variance.subset(verdicts.items, judge.repeat_items))
            spread[verdicts.metric] = variance.repeat(again, judge.repeats)
    return scores | ({"judge_spread": spread} if spread else {})
