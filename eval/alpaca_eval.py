"""AlpacaEval 2's comparison: a model's answers against fixed reference answers.

The raw win rate is the mean preference; the length-controlled one is eval/length_controlled.py's.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.judge import Comparison, Judge, OracleJudge, preference, to_json
from eval.settings import Evaluation
from sso.chat import naming
from sso.errors import InputError
from sso.records import Answer, Query

if TYPE_CHECKING:
    from sso.sampling.engine import Engine

Row = dict[str, Any]
"""A line of pairwise.jsonl: id, preference (1: ours wins; None: unread), score, reference_score, length and
reference_length in characters; one a prompt, in order. Statistics of lengths need no id and no scores."""


def mean_and_error(values: Sequence[float | None], scale: float = 1.0) -> dict[str, float | int | None]:
    """Mean with its standard error over items, times ``scale``; None among the values is left out and counted."""
    known = np.array([v for v in values if v is not None], dtype=np.float64) * scale
    error = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None
    out = {"value": float(known.mean()) if len(known) else None, "stderr": error, "n": len(known)}
    return out if len(known) == len(values) else out | {"unreadable": len(values) - len(known)}


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
        raise InputError(f"{what}: no answer to {missing[0]!r} ({count}); make them.")
    return [by_id[reference.id] for reference in references]


def pairwise(judge: Judge, answers: list[Answer], references: list[Answer], draw: int = 0) -> list[Row]:
    """Compare each answer with the reference answer of the same id, in the order of ``references``."""
    ours = aligned(answers, references)
    for answer, reference in zip(ours, references, strict=True):
        if answer.prompt != reference.prompt:
            raise InputError(f"answers: {reference.id!r} answers another prompt than the reference; make them anew.")
    items = [Comparison(r.prompt, a.output, r.output) for a, r in zip(ours, references, strict=True)]
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
