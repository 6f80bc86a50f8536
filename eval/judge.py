"""Judges behind one protocol: which of two answers is better, and how good one answer is.

The oracle knows the micro-world exactly and costs nothing; `OpenAIJudge` asks a model behind an
OpenAI-compatible endpoint and keeps every reply on disk. Callers know only the protocol.
"""

import math
import os
import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sso.config import Judge as JudgeSettings
from sso.config import World
from sso.errors import InputError
from sso.records import Message, digest

if TYPE_CHECKING:
    from sso.micro.oracle import Oracle

TIE = 1e-9
"""Oracle scores closer than this are a tie: the same features summed in floating point."""


class Judge(Protocol):
    """Compares two answers, or grades one."""

    name: str

    def pairwise(self, prompt: list[Message], answer_a: str, answer_b: str) -> float:
        """Preference for ``answer_a`` in [0, 1]; NaN where the judge's reply could not be read."""

    def grade(self, messages: list[Message], turn: int = 1) -> float:
        """Grade of the last assistant turn, 1 to 10; ``turn`` counts from 1. NaN as above."""

    def notes(self) -> dict[str, int]:
        """What a reader of the scores must know, e.g. how many replies could not be read."""


class OracleJudge:
    """The micro-world's exact oracle.

    Pairwise: 1, 0 or 0.5 by the exact scores. A grade is 1 + 9 * score, not rounded: MT-Bench's whole numbers
    are a habit of judge models, and rounding would only add noise.
    """

    name = "oracle"

    def __init__(self, world: World | None = None, oracle: "Oracle | None" = None):
        if oracle is None:
            from sso.micro.oracle import Oracle

            oracle = Oracle(world or World())
        self.oracle = oracle

    def score(self, prompt: list[Message], answer: str) -> float:
        """Exact quality in [0, 1]."""
        return self.oracle.score(prompt, answer).total

    def pairwise(self, prompt: list[Message], answer_a: str, answer_b: str) -> float:
        """1, 0 or 0.5 by the exact scores."""
        return preference(self.score(prompt, answer_a), self.score(prompt, answer_b))

    def grade(self, messages: list[Message], turn: int = 1) -> float:
        """1 + 9 * score of the last turn."""
        return 1 + 9 * self.score(messages[:-1], messages[-1].content)

    def notes(self) -> dict[str, int]:
        """Nothing: every answer can be judged."""
        return {}


def preference(score_a: float, score_b: float) -> float:
    """1 where a is better, 0 where b is, 0.5 for a tie."""
    return 0.5 if abs(score_a - score_b) < TIE else float(score_a > score_b)


PAIRWISE = """Two assistants answered the same request. Decide which answer serves the user better: does it do \
what was asked, is it correct, clear and safe? Neither the order of the answers nor their length is a merit.

[Request]
{prompt}

[Answer A]
{a}

[Answer B]
{b}

Give your reasons in a sentence or two, then close with exactly one of [[A]], [[B]] or [[tie]]."""

GRADE = """Below is a conversation. Grade the assistant's last reply (turn {turn}) from 1, useless, to 10, \
excellent: does it do what was asked, is it correct, clear and safe? Its length is no merit.

{conversation}

Give your reasons in a sentence or two, then close with the grade as a number in double brackets, e.g. [[7]]."""


class Replies:
    """Judge replies on disk, keyed by a digest; safe with several processes at once."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.connection = sqlite3.connect(path, timeout=60)
        with self.connection:
            self.connection.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")

    def get(self, key: str) -> str | None:
        """The reply, or None where it was never asked for."""
        row = self.connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def put(self, key: str, reply: str) -> None:
        """Keep a reply at once, so that a killed run pays nothing twice."""
        with self.connection:
            self.connection.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, reply))


class OpenAIJudge:
    """A model behind an OpenAI-compatible endpoint; the key comes from OPENAI_API_KEY alone.

    Both orders of a pair are asked and averaged. A reply that cannot be read is asked for once more; if that fails
    too the answer is NaN and counted (`notes`), and the pair's other order stands alone. The wording is this
    project's own, so its figures are not those of AlpacaEval's or MT-Bench's judge. Temperature 0; the client
    retries with growing pauses.
    """

    VERDICTS = {"a": 1.0, "b": 0.0, "tie": 0.5}

    def __init__(self, model: str, base_url: str | None, cache: Path, max_retries: int = 5):
        key = os.environ.get("OPENAI_API_KEY")
        if not key:
            raise InputError("judge.kind: the openai judge reads its key from OPENAI_API_KEY, which is not set.")
        from openai import OpenAI

        self.name = model
        self.base_url = base_url
        self.client = OpenAI(api_key=key, base_url=base_url, max_retries=max_retries)
        self.replies = Replies(cache)
        self.asked = self.unreadable = 0

    def _ask(self, prompt: str, pattern: str) -> str | None:
        """The last match of ``pattern`` in the model's reply; None if two replies have none."""
        for attempt in (0, 1):
            key = digest(["openai", self.base_url, self.name, prompt, attempt])
            reply = self.replies.get(key)
            if reply is None:
                self.asked += 1
                completion = self.client.chat.completions.create(
                    model=self.name, messages=[{"role": "user", "content": prompt}], temperature=0, seed=attempt
                )
                reply = completion.choices[0].message.content or ""
                self.replies.put(key, reply)
            if found := re.findall(pattern, reply, re.IGNORECASE):
                return found[-1].lower()
        self.unreadable += 1
        return None

    def pairwise(self, prompt: list[Message], answer_a: str, answer_b: str) -> float:
        """Mean over both orders of the verdicts that could be read."""
        request, found = _conversation(prompt), []
        for first, second, swapped in ((answer_a, answer_b, False), (answer_b, answer_a, True)):
            verdict = self._ask(PAIRWISE.format(prompt=request, a=first, b=second), r"\[\[(A|B|tie)\]\]")
            if verdict is not None:
                found.append(1 - self.VERDICTS[verdict] if swapped else self.VERDICTS[verdict])
        return sum(found) / len(found) if found else math.nan

    def grade(self, messages: list[Message], turn: int = 1) -> float:
        """1 to 10."""
        prompt = GRADE.format(conversation=_conversation(messages), turn=turn)
        grade = self._ask(prompt, r"\[\[\s*(10|[1-9](?:\.\d+)?)\s*(?:/\s*10)?\s*\]\]")
        return math.nan if grade is None else min(10.0, float(grade))

    def notes(self) -> dict[str, int]:
        """Requests sent, and questions that two replies left without a readable verdict."""
        return {"asked": self.asked, "unreadable": self.unreadable}


def _conversation(messages: list[Message]) -> str:
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"[{message.role.capitalize()}]\n{message.content}" for message in messages)


def make_judge(settings: JudgeSettings, world: World | None, cache: Path) -> Judge:
    """The judge that the settings name; ``cache`` is where a paid judge keeps its replies."""
    if settings.kind == "oracle":
        if world is None:
            raise InputError("judge.kind: the oracle judges only the micro-world; give --world, or another judge.")
        return OracleJudge(world)
    return OpenAIJudge(settings.model, settings.base_url, cache)


def to_json(value: float) -> float | None:
    """NaN has no JSON: None stands for a reply that could not be read."""
    return None if math.isnan(value) else round(value, 6)
