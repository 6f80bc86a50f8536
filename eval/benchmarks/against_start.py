"""A policy against the model that it started from: which of their answers to held-out prompts a judge prefers.

For prompts of one's own, which have no reference answers: needs a judge and a few prompts that nothing was trained on,
`data.held_out` of them. Answers are greedy. 50 is no change; the starting model itself has no figure. In a world the
oracle tells the same of samples (`sft_wr`, eval/benchmarks/alpaca_eval.py).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.benchmarks import alpaca_eval
from eval.benchmarks.record import Column, Items, Judged, Judging, Load, Rows, Verdicts
from eval.judge import Judge
from eval.settings import AnswerDecoding, Evaluation
from eval.settings import Judge as JudgeSettings
from sso.errors import InputError
from sso.records import Answer, Query, read

if TYPE_CHECKING:
    from sso.sampling.engine import Engine

NAME = "against_start"
METRIC = "start_wr"


def answer(engine: "Engine", queries: list[Query], settings: Evaluation, seed: int, model: str) -> list[Answer]:
    """One answer a query, greedy unless `decoding` gives a temperature.

    Seeds depend on the model's name then: equal random numbers would let a policy close to its start repeat it.
    """
    own = settings.decoding.get(NAME, AnswerDecoding()).temperature
    decoding = settings.model_copy(update={"temperature": own or 0.0, "samples": 1})
    return alpaca_eval.answer(engine, queries, decoding, seed, model, f"{NAME}/{model}")


def compared(by: Judge, answers: Sequence[Answer], start: Sequence[Answer], draw: int = 0) -> list[alpaca_eval.Row]:
    """A row for each of the starting model's answers, with whether ours is the same text: a tie, of which nobody is
    asked."""
    ours = alpaca_eval.aligned(answers, start)
    both = zip(ours, start, strict=True)
    differ = [theirs for own, theirs in both if (own.prompt, own.output) != (theirs.prompt, theirs.output)]
    rows = {row["id"]: row for row in alpaca_eval.pairwise(by, list(answers), differ, draw)} if differ else {}
    tie = {"preference": 0.5, "score": None, "reference_score": None}
    return [
        {**rows[one.id], "identical": False}
        if one.id in rows
        else {"id": one.id, **tie, "length": len(one.output), "reference_length": len(one.output), "identical": True}
        for one in start
    ]


def judge(by: Judge, settings: JudgeSettings, answers: Sequence[Answer], files: Mapping[str, Path]) -> Verdicts:
    """The win rate over the starting model's answers, each pair in both orders.

    Raises InputError where these are not given, or lack an answer.
    """
    if "against" not in files:
        raise InputError(f"{NAME}: give --against, the starting model's answers; or leave it out of `judged`.")
    start = alpaca_eval.aligned(read(files["against"], Answer), answers, str(files["against"]))
    rows = compared(by, answers, start)
    identical = sum(row["identical"] for row in rows)
    return Verdicts(
        rows,
        {METRIC: alpaca_eval.win_rate(rows) | {"identical": identical}},
        items=start,
        again=lambda some, draw: alpaca_eval.preferences(compared(by, answers, some, draw)),
        metric=METRIC,
    )


def items(rows: Rows) -> dict[str, Items]:
    """Preferences of prompts in percent."""
    return {METRIC: {row["id"]: 100 * row["preference"] for row in rows if row["preference"] is not None}}


AGAINST_START = Judged(
    NAME,
    columns={METRIC: Column("win rate against the starting model")},
    prompts=("held_out",),
    files={},
    reads=(),
    read=lambda data: (data / "held_out.jsonl", read(data / "held_out.jsonl", Query)),
    answer=answer,
    answers=f"{NAME}_answers",
    inputs=lambda data: {},
    judge=judge,
    judged=NAME,
    load=Load(0),
    judging=Judging(2, 1000, 250),
    items=items,
    needs_start=True,
)
BENCHMARKS = (AGAINST_START,)
