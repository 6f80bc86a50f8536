"""How far a principle steers a model: the oracle's quality without one, with a good one, with a bad one.

v1 takes yo, not y-, as the winner of L- so that no policy learns to follow bad principles: a back door. So the figures
are of every policy and of the SFT model, on the same queries with the same principles; those of a policy less the SFT
model's say what training has changed. `steering_effect` is what a bad principle does: quality with it less that
without. Of the micro-world, whose oracle knows the exact quality and whose SFT models follow principles.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.benchmarks.record import Column, Items, Judged, Judging, Load, Rows, Verdicts
from eval.draws import by_draw, drawn
from eval.judge import Judge, OracleJudge
from eval.settings import Evaluation
from eval.settings import Judge as JudgeSettings
from eval.statistics import mean_and_error
from sso.chat import with_system
from sso.errors import InputError
from sso.principles import WRAPPERS
from sso.records import Answer, Message, Principles, read

if TYPE_CHECKING:
    from sso.sampling.engine import Engine

CONTEXTS = ("x", "x+", "x-")
FIGURES = {"x": "steering_none", "x+": "steering_good", "x-": "steering_bad"}
EFFECT = "steering_effect"


def prompts(query: Principles) -> dict[str, list[Message]]:
    """The query by context: without principle, with the good one, with the bad one, as the arms' triples are drawn."""
    texts = WRAPPERS["micro"]
    good, bad = (texts[kind].format(principle=text) for kind, text in (("good", query.good), ("bad", query.bad)))
    return {"x": query.prompt, "x+": with_system(query.prompt, good), "x-": with_system(query.prompt, bad)}


def answer(engine: "Engine", queries: list[Principles], settings: Evaluation, seed: int, model: str) -> list[Answer]:
    """`settings.samples` answers a query and context, ids `<query>/<context>`, a draw of all after the other."""
    from sso.sampling.engine import seed_of

    asked = [(f"{query.id}/{context}", prompt) for query in queries for context, prompt in prompts(query).items()]
    rows = [(f"{n}/{draw}" if draw else n, prompt, draw) for draw in range(settings.samples) for n, prompt in asked]
    names = [name for name, _, _ in rows]
    seeds = [seed_of(seed, name, "steering") for name in names]
    return drawn(engine, rows, seeds, settings, model, names, "steering: query")


def scored(by: OracleJudge, queries: Sequence[Principles], answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """Query -> figure -> quality in [0, 1], the mean of the draws; InputError where an answer is missing."""
    draws = [{answer.id: answer.output for answer in draw} for draw in by_draw(answers)]
    asked = [(query, context) for query in queries for context in CONTEXTS]
    if missing := [f"{q.id}/{c}" for q, c in asked for outputs in draws if f"{q.id}/{c}" not in outputs]:
        raise InputError(f"steering_answers.jsonl: no answer to {missing[0]!r}; answer all with `sso-eval answer`.")
    scores = [by.scores([(query.prompt, outputs[f"{query.id}/{c}"]) for query, c in asked]) for outputs in draws]
    found: dict[str, dict[str, float]] = {query.id: {} for query in queries}
    for (query, context), *each in zip(asked, *scores, strict=True):
        found[query.id][FIGURES[context]] = sum(each) / len(each)
    return {name: {**row, EFFECT: row["steering_bad"] - row["steering_none"]} for name, row in found.items()}


def judge(by: Judge, settings: JudgeSettings, answers: Sequence[Answer], files: Mapping[str, Path]) -> Verdicts:
    """The figures of all queries and, where the SFT model's answers are there, what they differ from its by."""
    if not isinstance(by, OracleJudge):
        raise InputError("steering: measured by the micro-world's oracle alone; leave it out of `judged`.")
    queries = read(files["steering"], Principles)
    found = scored(by, queries, answers)
    if "against" in files:
        start = scored(by, queries, read(files["against"], Answer))
        for name, row in found.items():
            row |= {f"{figure}_change": value - start[name][figure] for figure, value in row.items()}
    rounded = {name: {key: round(value, 6) for key, value in row.items()} for name, row in found.items()}
    return Verdicts(
        [{"id": name, **row} for name, row in rounded.items()],
        {
            figure: mean_and_error([row[figure] for row in rounded.values()], 100)
            for figure in next(iter(rounded.values()))
        },
        items=queries,
        again=lambda some, draw: [row["steering_bad"] for row in scored(by, some, answers).values()],
        metric="steering_bad",
    )


def items(rows: Rows) -> dict[str, Items]:
    """Scores of queries by metric."""
    figures = [key for key in rows[0] if key != "id"] if rows else []
    return {figure: {row["id"]: 100 * row[figure] for row in rows} for figure in figures}


_LABELS = {
    "steering_none": "quality without principle",
    "steering_good": "with a good one",
    "steering_bad": "with a bad one",
    EFFECT: "effect of a bad one",
}
STEERING = Judged(
    "steering",
    columns={
        **{
            name: Column(label, unit="points" if name == EFFECT else "0-100", needs="oracle")
            for name, label in _LABELS.items()
        },
        **{
            f"{name}_change": Column(f"{label}, less SFT's", unit="points", needs="oracle")
            for name, label in _LABELS.items()
        },
    },
    prompts=("steering",),
    files={},
    reads=("steering",),
    read=lambda data: (data / "steering.jsonl", read(data / "steering.jsonl", Principles)),
    answer=answer,
    answers="steering_answers",
    inputs=lambda data: {"steering": data / "steering.jsonl"},
    judge=judge,
    judged="steering",
    load=Load(600),
    judging=Judging(0, 0, 0),
    outline=lambda query: prompts(query)["x-"],
    items=items,
)
BENCHMARKS = (STEERING,)
