"""Arena-Hard v0.1: 500 hard prompts, answers compared with gpt-4-0314's in both positions.

A judge gives one of five verdicts a game; a strong one (A>>B) counts three times. The score is the win rate against
the baseline that a Bradley-Terry model of the games predicts (the baseline has 50), its interval the 2.5th to 97.5th
percentile over 100 bootstraps of the games, as in show_result.py of lmarena/arena-hard-auto at v0.1 (the published
intervals resample games, not prompts, so the two games of a prompt count as independent). Reads that repository's
files: questions (uid, prompt) and answers (uid, messages).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.benchmarks import alpaca_eval
from eval.benchmarks.record import Column, Items, Judged, Judging, Load, Rows, Verdicts
from eval.judge import AnswerPair, Judge
from eval.settings import Evaluation
from eval.settings import Judge as JudgeSettings
from sso.errors import InputError
from sso.records import Answer, Query, iter_json_lines, read
from sso.sampling.engine import Engine

STRONG = 3
"""Weight of A>>B and B>>A; every other verdict has 1."""
ROUNDS = 100
SEED = 42
WINS = {"A>>B": (1.0, STRONG), "A>B": (1.0, 1), "A=B": (0.5, 1), "B>A": (0.0, 1), "B>>A": (0.0, STRONG)}
"""Verdict -> (assistant A's win, weight)."""


def read_questions(path: Path) -> list[Query]:
    """Questions in the benchmark's format (uid, prompt; first v0.1 files: question_id, turns) or as our queries."""
    questions = []
    for number, row in iter_json_lines(path):
        try:
            prompt = row.get("prompt") or row["turns"][0]["content"]
            questions.append(Query(id=_name(path, number, row), prompt=prompt))
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(f"{path}:{number}: must have a `prompt`, a text, and a `uid`.") from error
    if not questions:
        raise InputError(f"{path}: holds no question; give at least one.")
    return questions


def read_answers(path: Path) -> list[Answer]:
    """Answers in the benchmark's format (uid, model, messages) or as ours."""
    if "messages" not in next((row for _, row in iter_json_lines(path)), {}):
        return read(path, Answer)
    answers = []
    for number, row in iter_json_lines(path):
        try:
            *prompt, last = row["messages"]
            text = last["content"]
            text = text["answer"] if isinstance(text, dict) else text
            answers.append(Answer(id=_name(path, number, row), prompt=prompt, output=text, model=str(row["model"])))
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(f"{path}:{number}: must have `messages` that end in an answer, and a `model`.") from error
    return answers


def _name(path: Path, number: int, row: dict[str, Any]) -> str:
    for key in ("id", "uid", "question_id"):
        if key in row:
            return str(row[key])
    raise InputError(f"{path}:{number}: must have a `uid`.")


def answer(engine: Engine, questions: list[Query], settings: Evaluation, seed: int, model: str) -> list[Answer]:
    """One greedy answer a question, as the benchmark draws them."""
    greedy = settings.model_copy(update={"temperature": 0.0, "top_p": 1.0})
    return alpaca_eval.answer(engine, questions, greedy, seed, model, "arena_hard")


def comparisons(answers: list[Answer], baseline: list[Answer]) -> list[AnswerPair]:
    """The baseline (a) beside the answer (b) to each of the baseline's prompts."""
    ours = alpaca_eval.aligned(answers, baseline, "arena_hard")
    return [AnswerPair(a.prompt, b.output, a.output) for a, b in zip(ours, baseline, strict=True)]


def judge_games(judge: Judge, answers: list[Answer], baseline: list[Answer]) -> list[dict[str, Any]]:
    """One row a question: id and the verdicts of both games; assistant A is the baseline in the first."""
    games = judge.five_way(comparisons(answers, baseline))
    return [{"id": b.id, "games": list(pair)} for b, pair in zip(baseline, games, strict=True)]


def battles(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The model's win (1, 0.5 or 0) in each game, a strong verdict three times, unreadable ones left out."""
    wins = []
    for row in rows:
        for verdict, model_is_a in zip(row["games"], (False, True), strict=True):
            if verdict is not None:
                win, weight = WINS[verdict]
                wins += [win if model_is_a else 1 - win] * weight
    return np.array(wins)


def win(verdicts: tuple[str | None, str | None]) -> float:
    """Both games of a question as one figure, the model's weighted mean win; NaN where either is unreadable."""
    return math.nan if None in verdicts else float(battles([{"games": verdicts}]).mean())


def win_rate(wins: np.ndarray) -> float:
    """The model's win rate against the baseline in percent, by a Bradley-Terry model of ``wins`` [battles].

    Each battle is two rows, a tie one win each; the fit is scikit-learn's, as the benchmark's. Equal to the weighted
    mean of wins for two models, but for the solver's tolerance. All wins or all losses have no finite fit: 100 or 0.
    """
    if wins.min() == wins.max() and wins[0] != 0.5:
        return 100 * float(wins[0])
    from sklearn.linear_model import LogisticRegression

    # The model is +1, the baseline -1; the strengths' difference is what one column can fit.
    rows = np.concatenate([wins > 0, wins == 1]).astype(int)
    x = np.full((len(rows), 1), math.log(10))
    fit = LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-8).fit(x, rows)
    return 100 / (1 + 10 ** -float(fit.coef_[0, 0]))


def score(rows: Sequence[dict[str, Any]], rounds: int = ROUNDS) -> dict[str, Any]:
    """value with interval (lower, upper) in percent; n prompts, games read, and unreadable ones where there are."""
    wins = battles(rows)
    games = [verdict for row in rows for verdict in row["games"]]
    out: dict[str, Any] = {"value": None, "stderr": None, "n": len(rows), "games": len(games) - games.count(None)}
    if len(wins):
        random = np.random.default_rng(SEED)
        resampled = [win_rate(random.choice(wins, len(wins))) for _ in range(rounds)]
        low, high = np.percentile(resampled, [2.5, 97.5])
        out |= {"value": win_rate(wins), "stderr": float(np.std(resampled, ddof=1))}
        out |= {"lower": float(low), "upper": float(high)}
    return out | ({"unreadable": games.count(None)} if None in games else {})


def judge(by: Judge, settings: JudgeSettings, answers: Sequence[Answer], files: Mapping[str, Path]) -> Verdicts:
    """Two games a question against the baseline's answers."""
    ours, theirs = list(answers), read_answers(files["arena_hard_baseline"])
    rows = judge_games(by, ours, theirs)
    return Verdicts(
        rows,
        {"arena_hard": score(rows) | {"baseline": theirs[0].model}},
        items=comparisons(ours, theirs),
        again=lambda some, draw: [win(verdicts) for verdicts in by.five_way(some, draw)],
        metric="arena_hard",
    )


def items(rows: Rows) -> dict[str, Items]:
    """Scores of prompts in percent, whose mean is the figure: a prompt's games stand or fall together.

    The figure is a ratio, wins over games with a strong verdict as three; a prompt's score is its linear part.
    """
    own = {str(row["id"]): wins for row in rows if len(wins := battles([row]))}
    if not own:
        return {}
    rate = float(np.concatenate([*own.values()]).mean())
    games = sum(map(len, own.values())) / len(own)
    return {"arena_hard": {name: 100 * (rate + float((wins - rate).sum()) / games) for name, wins in own.items()}}


ARENA_HARD = Judged(
    "arena_hard",
    columns={"arena_hard": Column("Arena-Hard")},
    prompts=("arena_hard",),
    files={"arena_hard": "arena_hard.jsonl", "arena_hard_baseline": "arena_hard_baseline.jsonl"},
    reads=("arena_hard", "arena_hard_baseline"),
    read=lambda data: (data / "arena_hard.jsonl", read_questions(data / "arena_hard.jsonl")),
    answer=answer,
    answers="arena_hard_answers",
    read_answers=read_answers,
    inputs=lambda data: {"arena_hard_baseline": data / "arena_hard_baseline.jsonl"},
    judge=judge,
    judged="arena_hard",
    load=Load(500),
    judging=Judging(1000, 3000, 600),
    items=items,
)
BENCHMARKS = (ARENA_HARD,)
