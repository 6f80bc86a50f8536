"""A folder of answers judged: AlpacaEval 2, MT-Bench and Arena-Hard, with items beside the figures.

Knows which file of a data folder belongs to which benchmark; every benchmark's own rules are in its module.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval import alpaca_eval, mt_bench, variance
from eval.judge import Comparison, Judge
from eval.settings import Evaluation, Open
from eval.settings import Judge as JudgeSettings
from sso.errors import InputError
from sso.records import Answer, Query, read, write

Scores = dict[str, dict[str, Any]]


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
        raise InputError(f"{path}: no list of objects with instruction, output and generator.") from error


def queries(data: Path) -> Path:
    """The file that AlpacaEval's prompts are in: reference.json where it is there, else eval.jsonl."""
    path = references(data)
    return path if path.suffix == ".json" else data / "eval.jsonl"


def read_queries(data: Path) -> list[Query]:
    """AlpacaEval's prompts."""
    path = queries(data)
    if path.suffix == ".jsonl":
        return read(path, Query)
    return [Query(id=r.id, prompt=r.prompt) for r in read_references(path)]


def inputs(data: Path, settings: Evaluation) -> dict[str, Path]:
    """The files of a data folder that judging with these settings reads."""
    used = {"reference": references(data)} if settings.pairwise else {}
    used |= {"mt_bench": data / "mt_bench.jsonl"} if settings.mt_bench else {}
    reference = data / "mt_bench_reference.jsonl"
    used |= {"mt_bench_reference": reference} if settings.mt_bench and reference.is_file() else {}
    used |= {"arena_hard_baseline": data / "arena_hard_baseline.jsonl"} if settings.arena_hard else {}
    for path in used.values():
        if not path.is_file():
            raise InputError(
                f"{path}: no such file; put the benchmark's file there (docs/evaluation.md), or switch it off."
            )
    return used


def judge_all(judge_of: Callable[[Open], Judge], answers: Path, data: Path, settings: Evaluation, out: Path) -> Scores:
    """Scores of the judged benchmarks, each by its own judge; items are written to ``out``."""
    files, scores, spread = inputs(data, settings), {}, {}

    def again(name: str, how: JudgeSettings, items: list[Any], judged: Callable[[list[Any], int], list[float]]) -> None:
        if how.repeats > 1:
            some = variance.subset(items, how.repeat_items)
            spread[name] = variance.repeat(lambda draw: judged(some, draw), how.repeats)

    if settings.pairwise:
        judge, how = judge_of("alpaca_eval"), settings.judge_of("alpaca_eval")
        ours, theirs = read(answers / "answers.jsonl", Answer), read_references(files["reference"])
        compare, rate = _alpaca_eval(how.kind)
        rows = compare(judge, ours, theirs)
        write(out / "pairwise.jsonl", rows)
        scores["alpaca_eval2_wr"] = rate(rows)
        scores["length"] = alpaca_eval.mean_and_error([row["length"] for row in rows])
        if rows[0]["score"] is not None:
            scores["oracle_score"] = alpaca_eval.mean_and_error([row["score"] for row in rows])
        again("alpaca_eval2_wr", how, theirs, lambda some, draw: preferences(compare(judge, ours, some, draw=draw)))
    if settings.mt_bench:
        grader, how = judge_of("mt_bench"), settings.judge_of("mt_bench")
        families = {d.id: d.family for d in mt_bench.read(files["mt_bench"])}
        held = mt_bench.read_references(files["mt_bench_reference"]) if "mt_bench_reference" in files else {}
        # The oracle and reward models use no reference answers.
        known = held if how.kind == "openai" else None
        turns = read(answers / "mt_bench_answers.jsonl", Answer)
        grades = mt_bench.grade(grader, turns, families, known)
        write(out / "mt_bench.jsonl", grades)
        # A reward has no scale of 1 to 10, so it must not stand in MT-Bench's column.
        name = "mt_bench" if grader.scale == "1-10" else "mt_bench_reward"
        scores[name] = mt_bench.average(grades)
        again(name, how, turns, lambda some, draw: grader.grade(mt_bench.gradings(some, families, known), draw))
    if settings.arena_hard:
        from eval import arena_hard

        referee, how = judge_of("arena_hard"), settings.judge_of("arena_hard")
        ours = arena_hard.read_answers(answers / "arena_hard_answers.jsonl")
        theirs = arena_hard.read_answers(files["arena_hard_baseline"])
        rows = arena_hard.judge_games(referee, ours, theirs)
        write(out / "arena_hard.jsonl", rows)
        scores["arena_hard"] = arena_hard.score(rows) | {"baseline": theirs[0].model}
        items = arena_hard.comparisons(ours, theirs)

        def wins(some: list[Comparison], draw: int) -> list[float]:
            return [arena_hard.win(verdicts) for verdicts in referee.five_way(some, draw)]

        again("arena_hard", how, items, wins)
    return scores | ({"judge_spread": spread} if spread else {})


def _alpaca_eval(kind: str) -> tuple[Callable[..., list[alpaca_eval.Row]], Callable[..., dict[str, Any]]]:
    """Comparison and win rate: the package's where an endpoint judges, else the judge's own comparison."""
    if kind == "openai":
        from eval import alpaca_annotator

        return alpaca_annotator.annotate, alpaca_annotator.raw_win_rate
    return alpaca_eval.pairwise, alpaca_eval.win_rate


def preferences(rows: list[alpaca_eval.Row]) -> list[float]:
    """The rows' preferences, NaN where unreadable."""
    return [float("nan") if row["preference"] is None else row["preference"] for row in rows]
