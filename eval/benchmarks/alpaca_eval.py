"""AlpacaEval 2 and its look-alike: a model's answers against fixed reference answers.

The raw win rate is the mean preference; the length-controlled one is eval/length_controlled.py's. A prompt may have
several samples (`Evaluation.samples`), whose mean is its score. In the micro-world the same answers are also compared
with the SFT model's own, and the oracle's quality of them stands beside the win rates.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.benchmarks.record import Column, Items, Judged, Judging, Load, Rows, Verdicts
from eval.draws import by_draw, drawn
from eval.judge import AnswerPair, Judge, OracleJudge, preference, to_json
from eval.settings import Evaluation
from eval.settings import Judge as JudgeSettings
from eval.statistics import mean_and_error
from sso.errors import InputError
from sso.records import Answer, Query, read

if TYPE_CHECKING:
    from sso.sampling.engine import Engine

Row = dict[str, Any]
"""A line of pairwise.jsonl: id, preference (1: ours wins; None: unread), score, reference_score, length and
reference_length in characters; one a prompt, in order, with the means of its samples. `sft_preference`: that over the
SFT model's own samples, where these were given. Statistics of lengths need no id and no scores."""


def answer(
    engine: "Engine",
    queries: list[Query],
    settings: Evaluation,
    seed: int,
    model: str,
    purpose: str = "answer",
) -> list[Answer]:
    """`settings.samples` answers a query, a draw of all queries after the other; ``purpose`` tells seeds apart.

    A prompt that the model can't be asked has an empty answer, and is named. Raises InputError where all are such.
    """
    from sso.sampling.engine import seed_of

    asked = [(query, draw) for draw in range(settings.samples) for query in queries]
    rows = [(f"{query.id}/{draw}" if draw else query.id, query.prompt, draw) for query, draw in asked]
    seeds = [seed_of(seed, query.id, f"{purpose}/{draw}" if draw else purpose) for query, draw in asked]
    return drawn(engine, rows, seeds, settings, model, [query.id for query, _ in asked], "query")


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


def averaged(draws: Sequence[list[Row]]) -> list[Row]:
    """One row a prompt out of one a draw, with the means of what is known."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return round(sum(known) / len(known), 6) if known else None

    if len(draws) == 1:
        return draws[0]
    numbers = [key for key in draws[0][0] if key != "id"]
    return [
        {"id": rows[0]["id"], **{key: mean([row[key] for row in rows]) for key in numbers}}
        for rows in zip(*draws, strict=True)
    ]


def against_start(
    judge: OracleJudge, ours: Sequence[Sequence[Answer]], start: Sequence[Sequence[Answer]], prompts: Sequence[Answer]
) -> list[float]:
    """The mean preference of a model's answers over the SFT model's own to each of ``prompts``, by draw and draw.

    A draw of ours is compared with those of other numbers only: equal numbers share their random numbers, and a policy
    close to the SFT model would then mostly repeat it. Raises InputError where no such two are there.
    """
    scored = [
        [judge.scores([(a.prompt, a.output) for a in aligned(draw, prompts, what)]) for draw in draws]
        for what, draws in (("answers", ours), ("the SFT model's answers", start))
    ]
    games = [(a, b) for i, a in enumerate(scored[0]) for j, b in enumerate(scored[1]) if i != j]
    if not games:
        raise InputError(
            "--against: one sample a prompt on both sides, drawn with the same random numbers, can't be compared; "
            "give the SFT model's arm `evaluation: {samples: 2}`."
        )
    wins = [[preference(x, y) for x, y in zip(a, b, strict=True)] for a, b in games]
    return [round(sum(each) / len(each), 6) for each in zip(*wins, strict=True)]


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
    """Win rate, lengths and, where the oracle judges, its quality and the win rate against the SFT model."""
    compare, rate = _comparison(settings)
    draws, theirs = by_draw(answers), read_references(files["reference"])
    rows = averaged([compare(by, draw, theirs) for draw in draws])
    scores = {"alpaca_eval2_wr": rate(rows), "length": mean_and_error([row["length"] for row in rows])}
    if rows[0]["score"] is not None:
        scores["quality"] = mean_and_error([row["score"] for row in rows], 100)
    if isinstance(by, OracleJudge) and "against" in files:
        wins = against_start(by, draws, by_draw(read(files["against"], Answer)), theirs)
        rows = [{**row, "sft_preference": win} for row, win in zip(rows, wins, strict=True)]
        scores["sft_wr"] = mean_and_error(wins, 100)
    return Verdicts(
        rows,
        scores,
        items=theirs,
        again=lambda some, draw: preferences(compare(by, draws[0], some, draw=draw)),
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
    columns = {"alpaca_eval2_wr": ("preference", 100), "sft_wr": ("sft_preference", 100)}
    columns |= {"length": ("length", 1), "quality": ("score", 100)}
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
        "quality": Column("quality by the oracle", 1, "0-100", needs="oracle"),
        "sft_wr": Column("win rate against SFT's samples", needs="oracle"),
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
