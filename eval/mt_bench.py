"""MT-Bench: two-turn dialogues, each assistant turn graded 1 to 10.

The second turn is asked after the model's own first answer. A model's score is the mean over both turns of all
dialogues; its standard error treats a dialogue, not a turn, as the unit. Reads the micro-world's file (id, family,
turns) and FastChat's (question_id, category, turns).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.alpaca_eval import mean_and_error
from eval.judge import Judge, to_json
from sso.config import Evaluation
from sso.errors import InputError
from sso.records import Answer, Message, Record, iter_json_lines

if TYPE_CHECKING:
    from sso.sampling.transformers_engine import TransformersEngine


class Dialogue(Record):
    """The user's turns of one dialogue."""

    family: str = ""
    turns: list[str]


def read(path: Path) -> list[Dialogue]:
    """All dialogues of a file; raises InputError that names file and line."""
    dialogues = []
    for number, row in iter_json_lines(path):
        turns = row.get("turns")
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
            raise InputError(f"{path}:{number}: `turns` must be the list of the user's turns.")
        name = str(row.get("id", row.get("question_id", number - 1)))
        dialogues.append(Dialogue(id=name, family=row.get("family", row.get("category", "")), turns=turns))
    if len({d.id for d in dialogues}) < len(dialogues) or not dialogues:
        raise InputError(f"{path}: {'two dialogues have the same id' if dialogues else 'holds no dialogue'}.")
    return dialogues


def answer(
    engine: "TransformersEngine", dialogues: list[Dialogue], settings: Evaluation, seed: int, model: str
) -> list[Answer]:
    """Answers to every turn, ids "<dialogue>/<turn>", turn by turn in batches over dialogues."""
    from sso.sampling import seed_of

    answers: list[Answer] = []
    history: dict[str, list[Message]] = {d.id: [] for d in dialogues}
    for turn in range(1, max(len(d.turns) for d in dialogues) + 1):
        asked = [d for d in dialogues if len(d.turns) >= turn]
        for d in asked:
            history[d.id] = [*history[d.id], Message(role="user", content=d.turns[turn - 1])]
        generations = engine.generate(
            [history[d.id] for d in asked],
            seeds=[seed_of(seed, d.id, f"mt_bench/{turn}") for d in asked],
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
        )
        for d, generation in zip(asked, generations, strict=True):
            answers.append(
                Answer(id=f"{d.id}/{turn}", prompt=history[d.id], output=generation.text, model=model, turn=turn)
            )
            history[d.id] = [*history[d.id], Message(role="assistant", content=generation.text)]
    order = {d.id: i for i, d in enumerate(dialogues)}
    return sorted(answers, key=lambda a: (order[a.id.rpartition("/")[0]], a.turn))


def grade(judge: Judge, answers: list[Answer], families: dict[str, str]) -> list[dict[str, Any]]:
    """One row an answer: id of the dialogue, turn, score (None: the judge's reply was unreadable), family."""
    rows = []
    for a in answers:
        name = a.id.rpartition("/")[0]
        score = judge.grade([*a.prompt, Message(role="assistant", content=a.output)], a.turn)
        rows.append({"id": name, "turn": a.turn, "score": to_json(score), "family": families.get(name, "")})
    return rows


def average(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """value, stderr and n over dialogues; turn_1, turn_2 ... the means of each turn."""
    dialogues: dict[str, list[float]] = {}
    for row in rows:
        dialogues.setdefault(row["id"], []).extend([] if row["score"] is None else [row["score"]])
    out = mean_and_error([sum(s) / len(s) if s else None for s in dialogues.values()])
    for turn in sorted({row["turn"] for row in rows}):
        out[f"turn_{turn}"] = mean_and_error([r["score"] for r in rows if r["turn"] == turn])["value"]
    return out
