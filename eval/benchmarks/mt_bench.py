"""MT-Bench: two-turn dialogues, each assistant turn graded 1 to 10.

Questions, temperatures and grading are FastChat's; math, reasoning and coding are graded against reference answers.
The second turn is asked after the model's own first answer. A model's score is the mean over both turns of all
dialogues; its standard error treats a dialogue, not a turn, as the unit. Reads the micro-world's file (id, family,
turns) and FastChat's (question_id, category, turns).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks.record import Column, Items, Judged, Judging, Load, Rows, Verdicts
from eval.judge import Grading, Judge, to_json
from eval.settings import Evaluation
from eval.settings import Judge as JudgeSettings
from eval.statistics import mean_and_error
from sso.chat import naming
from sso.errors import InputError
from sso.records import Answer, Message, Record, iter_json_lines
from sso.sampling.engine import Engine, Generation, name_missing, seed_of

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""FastChat's, by category; other categories take the setting."""

REFERENCED = ("math", "reasoning", "coding")
"""Categories that are graded against a reference answer."""


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
        name, family = str(row.get("id", row.get("question_id", number - 1))), row.get("family", row.get("category"))
        if not name:
            raise InputError(f"{path}:{number}: `id` is empty; every dialogue must have one.")
        dialogues.append(Dialogue(id=name, family=str(family or ""), turns=turns))
    if len({d.id for d in dialogues}) < len(dialogues) or not dialogues:
        raise InputError(f"{path}: {'two dialogues have the same id' if dialogues else 'holds no dialogue'}.")
    return dialogues


def read_references(path: Path) -> dict[str, tuple[str, ...]]:
    """Reference answers, one a turn, by question_id, from FastChat's reference_answer file."""
    references = {}
    for number, row in iter_json_lines(path):
        try:
            turns = row["choices"][0]["turns"]
            references[str(row["question_id"])] = tuple(str(turn) for turn in turns)
        except (LookupError, TypeError) as error:
            raise InputError(
                f"{path}:{number}: must have `question_id` and `choices[0].turns`, as FastChat's file has."
            ) from error
    return references


def outline(dialogue: Dialogue) -> list[Message]:
    """The whole dialogue up to its last question, with nothing in the answers' places."""
    turns = [[Message(role="user", content=turn), Message(role="assistant", content="")] for turn in dialogue.turns]
    return [message for turn in turns for message in turn][:-1]


def answer(engine: Engine, dialogues: list[Dialogue], settings: Evaluation, seed: int, model: str) -> list[Answer]:
    """Answers to every turn, ids "<dialogue>/<turn>", turn by turn in batches over dialogues of one temperature."""
    answers: list[Answer] = []
    made: list[Generation] = []
    history: dict[str, list[Message]] = {dialogue.id: [] for dialogue in dialogues}
    heat = {dialogue.id: TEMPERATURES.get(dialogue.family, settings.temperature) for dialogue in dialogues}
    for turn in range(1, max(len(dialogue.turns) for dialogue in dialogues) + 1):
        for temperature in sorted(set(heat.values())):
            asked = [d for d in dialogues if len(d.turns) >= turn and heat[d.id] == temperature]
            for dialogue in asked:
                history[dialogue.id] = [*history[dialogue.id], Message(role="user", content=dialogue.turns[turn - 1])]
            with naming([dialogue.id for dialogue in asked], f"mt_bench, turn {turn}: question"):
                generations = engine.generate(
                    [history[dialogue.id] for dialogue in asked],
                    seeds=[seed_of(seed, dialogue.id, f"mt_bench/{turn}") for dialogue in asked],
                    temperature=temperature,
                    top_p=settings.top_p,
                    max_new_tokens=settings.max_new_tokens,
                )
            made += generations
            for dialogue, generation in zip(asked, generations, strict=True):
                about = {"model": model, "turn": turn, "missing": generation.missing}
                answers.append(
                    Answer(id=f"{dialogue.id}/{turn}", prompt=history[dialogue.id], output=generation.text, **about)
                )
                history[dialogue.id] = [*history[dialogue.id], Message(role="assistant", content=generation.text)]
    name_missing([answer.id for answer in answers], made, "answers")
    order = {dialogue.id: i for i, dialogue in enumerate(dialogues)}
    return sorted(answers, key=lambda a: (order[_dialogue(a)], a.turn))


def gradings(
    answers: list[Answer], families: Mapping[str, str], references: Mapping[str, tuple[str, ...]] | None = None
) -> list[Grading]:
    """What a judge is asked about each answer.

    ``references`` by dialogue, for the categories that have them; None: the judge needs none (the oracle). Raises
    InputError where one is missing: without it the figure would be another benchmark's.
    """
    out = []
    for answer in answers:
        name = _dialogue(answer)
        reference: tuple[str, ...] = ()
        if references is not None and families.get(name) in REFERENCED:
            reference = references.get(name, ())
            if len(reference) < answer.turn:
                raise InputError(
                    f"mt_bench_reference.jsonl: no reference answer to question {name!r}, turn {answer.turn}; add it."
                )
        out.append(Grading([*answer.prompt, Message(role="assistant", content=answer.output)], reference))
    return out


def grade(
    judge: Judge,
    answers: list[Answer],
    families: Mapping[str, str],
    references: Mapping[str, tuple[str, ...]] | None = None,
) -> list[dict[str, Any]]:
    """One row an answer: id of the dialogue, turn, score (None: the judge's reply was unreadable), family."""
    scores = judge.grade(gradings(answers, families, references))
    return [
        {"id": name, "turn": answer.turn, "score": to_json(score), "family": families.get(name, "")}
        for answer, score in zip(answers, scores, strict=True)
        for name in [_dialogue(answer)]
    ]


def _dialogue(answer: Answer) -> str:
    return answer.id.rpartition("/")[0]


def dialogues(rows: Rows) -> dict[str, float | None]:
    """The mean grade of each dialogue's turns; None where any turn's is unreadable, since second turns are harder."""
    turns: dict[str, list[float | None]] = {}
    for row in rows:
        turns.setdefault(str(row["id"]), []).append(row["score"])
    means: dict[str, float | None] = {}
    for name, scores in turns.items():
        known = [score for score in scores if score is not None]
        means[name] = sum(known) / len(known) if len(known) == len(scores) else None
    return means


def average(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """value, stderr and n over dialogues; turn_1, turn_2 ... and `categories` hold the means of each."""
    out: dict[str, Any] = mean_and_error([*dialogues(rows).values()])
    for turn in sorted({row["turn"] for row in rows}):
        out[f"turn_{turn}"] = mean_and_error([r["score"] for r in rows if r["turn"] == turn])["value"]
    out["categories"] = {
        family: mean_and_error([r["score"] for r in rows if r["family"] == family])["value"]
        for family in dict.fromkeys(row["family"] for row in rows)
    }
    return out


def _files(data: Path) -> dict[str, Path]:
    references = data / "mt_bench_reference.jsonl"
    known = {"mt_bench_reference": references} if references.is_file() else {}
    return {"mt_bench": data / "mt_bench.jsonl", **known}


def judge(by: Judge, settings: JudgeSettings, answers: Sequence[Answer], files: Mapping[str, Path]) -> Verdicts:
    """Grades of all turns. A reward has no scale of 1 to 10, so it does not stand in MT-Bench's column."""
    families = {dialogue.id: dialogue.family for dialogue in read(files["mt_bench"])}
    held = read_references(files["mt_bench_reference"]) if "mt_bench_reference" in files else {}
    # The oracle and reward models use no reference answers.
    known = held if settings.asks_an_endpoint else None
    turns = list(answers)
    rows = grade(by, turns, families, known)
    metric = "mt_bench" if by.scale == "1-10" else "mt_bench_reward"
    return Verdicts(
        rows,
        {metric: average(rows)},
        items=turns,
        again=lambda some, draw: by.grade(gradings(some, families, known), draw),
        metric=metric,
    )


def items(rows: Rows) -> dict[str, Items]:
    """Scores of dialogues: the turns of one stand or fall together."""
    return {"mt_bench": {name: score for name, score in dialogues(rows).items() if score is not None}}


MT_BENCH = Judged(
    "mt_bench",
    columns={"mt_bench": Column("MT-Bench", 2, "1-10")},
    prompts=("mt_bench",),
    files={"mt_bench": "mt_bench.jsonl", "mt_bench_reference": "mt_bench_reference.jsonl"},
    reads=("mt_bench", "mt_bench_reference"),
    read=lambda data: (data / "mt_bench.jsonl", read(data / "mt_bench.jsonl")),
    answer=answer,
    answers="mt_bench_answers",
    inputs=_files,
    judge=judge,
    judged="mt_bench",
    load=Load(160),
    judging=Judging(160, 1500, 250),
    outline=outline,
    items=items,
)
BENCHMARKS = (MT_BENCH,)
