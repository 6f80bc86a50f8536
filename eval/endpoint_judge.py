"""A model behind an OpenAI-compatible endpoint as judge, with the prompts of MT-Bench and Arena-Hard.

Grades: FastChat's single-answer prompts, with the reference answers where there are any. Comparisons: FastChat's
pair-v2, both orders. Five-way verdicts: Arena-Hard v0.1. Temperature 0. A reply without a readable verdict, or cut
at the token limit, is asked for once more; if that fails too it is NaN (None) and counted.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from eval.judge import AnswerPair, Grading, Preference
from eval.settings import Judge as JudgeSettings
from eval.verdicts import choice, rating
from sso.endpoint import Client, Completion, Progress, Refused
from sso.errors import InputError
from sso.records import Message, iter_json_lines
from sso.untrusted import Template

PROMPTS = Path(__file__).with_name("prompts.yaml")
PAIR = {"A": 1.0, "B": 0.0, "C": 0.5}
FIVE = ("A>>B", "A>B", "A=B", "B>A", "B>>A")
CONTINUE = "continue your judgment and finish by outputting a final verdict label"
"""Arena-Hard's second request, in the same conversation."""


_EMPTY = object()
"""What a judge says that says nothing."""


class Question(NamedTuple):
    """What is asked, how the reply is read, and what is said after a reply that cannot be read (None: the same)."""

    messages: list[Message]
    read: Callable[[Completion], Any]
    parameters: dict[str, Any]
    again: str | None = None


def said(read: Callable[[str], Any]) -> Callable[[Completion], Any]:
    """``read`` of a reply's text; a reply that was cut did not come to its verdict, and may end in a quotation."""
    return lambda completion: None if completion.finish == "length" else read(completion.text)


def read_prompts(path: str | Path | None = None) -> dict[str, Template]:
    """The suite's prompts by name; those of a FastChat judge_prompts.jsonl go before them."""
    prompts = yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))
    for number, row in iter_json_lines(path) if path else ():
        if not all(isinstance(row.get(key), str) for key in ("name", "system_prompt", "prompt_template")):
            raise InputError(
                f"{path}:{number}: lacks name, system_prompt or prompt_template, which FastChat's judge prompts have."
            )
        prompts[row["name"]] = {"system": row["system_prompt"], "text": row["prompt_template"]}
    return {name: Template(name, **prompt) for name, prompt in prompts.items()}


class EndpointJudge:
    """See `eval.judge.Judge`."""

    scale = "1-10"

    def __init__(self, settings: JudgeSettings, cache: Path, progress: Progress | None = None) -> None:
        self.name, self.client = settings.model, Client(settings, cache, progress)
        self.prompts = read_prompts(settings.prompts)
        self.verdicts = self.unreadable = self.empty = 0

    def pairwise(self, items: Sequence[AnswerPair], draw: int = 0) -> list[Preference]:
        """FastChat's pair-v2, each order a request."""

        def question(item: AnswerPair, a: str, b: str) -> Question:
            prompt = self.prompts["pair-v2"].fill(question=conversation(item.prompt), answer_a=a, answer_b=b)
            return Question(prompt, said(lambda reply: choice(reply, tuple(PAIR))), greedy(2048))

        verdicts = self.ask([q for i in items for q in (question(i, i.a, i.b), question(i, i.b, i.a))], draw)
        values = [math.nan if verdict is None else PAIR[verdict] for verdict in verdicts]
        return [Preference(a, 1 - b) for a, b in zip(values[::2], values[1::2], strict=True)]

    def five_way(self, items: Sequence[AnswerPair], draw: int = 0) -> list[tuple[str | None, str | None]]:
        """Arena-Hard's prompt, each order a request; an unreadable judgment is continued once, as its owners do."""

        def question(item: AnswerPair, a: str, b: str) -> Question:
            fields = {"question_1": conversation(item.prompt), "answer_1": a, "answer_2": b}
            prompt = self.prompts["arena-hard-v0.1"].fill(**fields)
            return Question(prompt, said(lambda reply: choice(reply, FIVE)), greedy(4096), CONTINUE)

        verdicts = self.ask([q for i in items for q in (question(i, i.a, i.b), question(i, i.b, i.a))], draw)
        return list(zip(verdicts[::2], verdicts[1::2], strict=True))

    def grade(self, items: Sequence[Grading], draw: int = 0) -> list[float]:
        """FastChat's single-answer grade."""
        grades = self.ask([Question(self._grading(item), said(rating), greedy(2048)) for item in items], draw)
        return [math.nan if grade is None else grade for grade in grades]

    def notes(self) -> dict[str, int | float]:
        """Requests sent, replies from disk, questions refused by the endpoint, verdicts asked for, and those that could
        not be read, of which so many had an empty reply."""
        told = {"verdicts": self.verdicts, "unreadable": self.unreadable}
        return self.client.notes() | told | ({"empty": self.empty} if self.empty else {})

    def _grading(self, item: Grading) -> list[Message]:
        users = [m.content for m in item.messages if m.role == "user"]
        answers = [m.content for m in item.messages if m.role == "assistant"]
        kind = "single-math-v1" if item.reference else "single-v1"
        # The two-turn prompts hold two turns and no system message.
        if len(users) == len(answers) == 2 and len(item.messages) == 4:
            turns = {"question_1": users[0], "answer_1": answers[0], "question_2": users[1], "answer_2": answers[1]}
            references = dict(zip(("ref_answer_1", "ref_answer_2"), item.reference, strict=False))
            return self.prompts[f"{kind}-multi-turn"].fill(**turns, **references)
        references = {"ref_answer_1": item.reference[len(answers) - 1]} if item.reference else {}
        fields = {"question": conversation(item.messages[:-1]), "answer": answers[-1]}
        return self.prompts[kind].fill(**fields, **references)

    def ask(self, questions: Sequence[Question], draw: int = 0) -> list[Any]:
        """What each question's reply says, or None; at most two requests a question."""

        def one(question: Question) -> Any:
            messages = [m.model_dump() for m in question.messages]
            for attempt in (0, 1):
                number = 2 * draw + attempt
                try:
                    completion = self.client.complete(messages, number, **question.parameters)
                except Refused as error:
                    return error
                found = question.read(completion)
                if found is not None:
                    return found
                if question.again:
                    messages += [
                        {"role": "assistant", "content": completion.text or "-"},
                        {"role": "user", "content": question.again},
                    ]
            return None if completion.text.strip() else _EMPTY

        found = self.client.map(one, questions)
        refusals = [answer for answer in found if isinstance(answer, Refused)]
        if refusals and len(refusals) == len(found):
            raise refusals[0]
        self.empty += sum(answer is _EMPTY for answer in found)
        found = [None if answer is _EMPTY or isinstance(answer, Refused) else answer for answer in found]
        self.verdicts += len(found)
        self.unreadable += found.count(None) - len(refusals)
        return found


def greedy(max_tokens: int) -> dict[str, Any]:
    """How the owners of MT-Bench and Arena-Hard ask their judge."""
    return {"temperature": 0, "max_tokens": max_tokens}


def conversation(messages: list[Message]) -> str:
    """A prompt as text: one message as it is, several each under its role."""
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in messages)
