"""AlpacaEval 2 and its look-alike: a model's answers against fixed reference answers.

The raw win rate is the mean preference; the length-controlled one is eval/length_controlled.py's.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.benchmarks.record import Column, Items, Judged, Judging, Load, Rows, Verdicts
from eval.judge import AnswerPair, Judge, OracleJudge, preference, to_json
from eval.settings import Evaluation
from eval.settings import Judge as JudgeSettings
from eval.statistics import mean_and_error
from sso.chat import naming
from sso.errors import InputError
from sso.records import Answer, Query, read

if TYPE_CHECKING:
    from sso.sampling.engine import Engine

Row = dict[str, Any]
"""A line of pairwise.jsonl: id, preference (1: ours wins; None: unread), score, reference_score, length and
reference_length in characters; one a prompt, in order. Statistics of lengths need no id and no scores."""


def answer(
    engine: "Engine",
    queries: list[Query],
    settings: Evaluation,
    seed: int,
    model: str,
    purpose: str = "answer",
) -> list[Answer]:
    """One sampled answer a query; ``purpose`` tells its seed from those of other draws.

    A prompt that the model can't be asked has an empty answer, and is named. Raises InputError where all are such.
    """
    from sso.sampling.engine import name_missing, seed_of

    with naming([query.id for query in queries], "query"):
        generations = engine.generate(
            [query.prompt for query in queries],
            seeds=[seed_of(seed, query.id, purpose) for query in queries],
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
        )
    name_missing([query.id for query in queries], generations, "answers")
    return [
        Answer(id=query.id, prompt=query.prompt, output=generation.text, model=model, missing=generation.missing)
        for query, generation in zip(queries, generations, strict=True)
    ]


def aligned(answers: Sequence[Answer], references: Sequence[Answer], what: str = "answers") -> list[Answer]:
    """The answers in the order of the references of the same ids; raises InputError where one is missing."""
    by_id = {answer.id: answer for answer in answers}
    if missing := [r.id for r in references if r.id not in by_id]:
        count = f"{len(missing)} of {len(references)} are missing"
        raise InputError(f"{what}: no answer to {missing[0]!r} ({count}); answer all prompts with `sso-eval answer`.")
    return [by_id[reference.id] for reference in references]


def pairwise(judge: Judge, answers: list[Answer], references: list[Answer], draw: int = 0) -> list[Row]:
    """Compare each answer with the reference answer of the same id, in the order of ``references``."""
    ours = aligned(answers, references)
    for answer, reference in zip(ours, references, strict=True):
        if answer.prompt != reference.prompt:
            raise InputError(
                f"answers: {reference.id!r} answers another prompt than the reference; answer these prompts anew."
            )
    items = [AnswerPair(r.prompt, a.output, r.output) for a, r in zip(ours, references, strict=True)]
    scores: Sequence[float | None] = [None] * (2 * len(items))
    if isinstance(judge, OracleJudge):
        scores = found = judge.scores([(i.prompt, i.a) for i in items] + [(i.prompt, i.b) for i in items])
        preferred = [preference(a, b) for a, b in zip(found[: len(items)], found[len(items) :], strict=True)]
    else:
        preferred = [p.mean for p in judge.pairwise(items, draw)]
    return [
        {
            "id": answer.id,
            "preference": to_json(value),
            "score": score if score is None else round(score, 6),
            "reference_score": against if against is None else round(against, 6),
            "length": len(answer.output),
            "reference_length": len(reference.output),
        }
        for answer, reference, value, score, against in zip(
            ours, references, preferred, scores[: len(items)], scores[len(items) :], strict=True
        )
    ]


def win_rate(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean preference in percent with its standard error over prompts."""
    return mean_and_error([row["preference"] for row in rows], 100)


# The data folder.


def references(data: Path) -> Path:
    """AlpacaEval's reference outputs: reference.jsonl (our records), or reference.json as AlpacaEval has them."""
    official = data / "reference.json"
    return official if official.is_file() else data / "reference.jsonl"


def read_references(path: Path) -> list[Answer]:
    """Reference outputs; AlpacaEval's own file is a list of {instruction, output, generator}, its ids the positions."""
    if path.suffix == ".jsonl":
        return read(path, Answer)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [
            Answer(id=str(i), prompt=row["instruction"], output=row["output"], model=row["generator"])
            for i, row in enumerate(rows)
        ]
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path}: must be a list of objects with `instruction`, `output` and `generator`.") from error


def _queries(data: Path) -> Path:
    """The file that AlpacaEval's prompts are in: reference.json where it is there, else eval.jsonl."""
    path = references(data)
    return path if path.suffix == ".json" else data / "eval.jsonl"


def read_queries(data: Path) -> tuple[Path, list[Query]]:
    """The prompts, and their file."""
    path = _queries(data)
    if path.suffix == ".jsonl":
        return path, read(path, Query)
    return path, [Query(id=r.id, prompt=r.prompt) for r in read_references(path)]


# Judging.


def judge(by: Judge, settings: JudgeSettings, answers: Sequence[Answer], files: Mapping[str, Path]) -> Verdicts:
    """Win rate, lengths and, where the oracle judges, its score."""
    compare, rate = _comparison(settings)
    ours, theirs = list(answers), read_references(files["reference"])
    rows = compare(by, ours, theirs)
    scores = {"alpaca_eval2_wr": rate(rows), "length": mean_and_error([row["length"] for row in rows])}
    if rows[0]["score"] is not None:
        scores["oracle_score"] = mean_and_error([row["score"] for row in rows])
    return Verdicts(
        rows,
        scores,
        items=theirs,
        again=lambda some, draw: preferences(compare(by, ours, some, draw=draw)),
        metric="alpaca_eval2_wr",
    )


def _comparison(settings: JudgeSettings) -> tuple[Callable[..., list[Row]], Callable[..., dict[str, Any]]]:
    """How answers are compared and how a win rate is made of that: the package's ways where an endpoint judges."""
    if settings.asks_an_endpoint:
        from eval import alpaca_annotator

        return alpaca_annotator.annotate, alpaca_annotator.raw_win_rate
    return pairwise, win_rate


def preferences(rows: list[Row]) -> list[float]:
    """The rows' preferences, NaN where unreadable."""
    return [float("nan") if row["preference"] is None else row["preference"] for row in rows]


def items(rows: Rows) -> dict[str, Items]:
    """Scores of prompts by metric, from the rows of pairwise.jsonl."""
    columns = {"alpaca_eval2_wr": ("preference", 100), "length": ("length", 1), "oracle_score": ("score", 1)}
    return {
        metric: {row["id"]: scale * row[column] for row in rows if row.get(column) is not None}
        for metric, (column, scale) in columns.items()
    }


ALPACA_EVAL = Judged(
    "alpaca_eval",
    columns={
        "alpaca_eval2_lc": Column("AlpacaEval 2 LC", fits=True),
        "alpaca_eval2_wr": Column("AlpacaEval 2 WR"),
        "length": Column("length", 0, "characters"),
        "oracle_score": Column("oracle score", 3, "0-1", needs="oracle"),
    },
    prompts=("eval", "reference"),
    files={"reference": "reference.json"},
    reads=("eval", "reference"),
    read=read_queries,
    answer=answer,
    answers="answers",
    inputs=lambda data: {"reference": references(data)},
    judge=judge,
    judged="pairwise",
    load=Load(805),
    judging=Judging(805, 1300, 1),
    items=items,
)
BENCHMARKS = (ALPACA_EVAL,)
