"""One reading of dialogues: rows of data sets, in the layouts that they come in, as messages.

A dialogue is a list of {role, content} or of ShareGPT's {from, value}, one such turn, an Anthropic transcript
("\\n\\nHuman: ...\\n\\nAssistant: ..."), or a text, which is one turn; contents are texts or lists of text parts.
What stands before an answer is `prompt`, `conversations`, `messages`, `question` or `input`, or Alpaca's `instruction`
and `input` in one turn; before that come Alpaca's `history` and, first of all, a system message: the dialogue's own,
else the column `system`, `system_prompt` or `system_message`. Where LLaMA-Factory, axolotl and trl define a layout it
is read as they define it. A row that cannot be read whole is left out by name and counted.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sso.errors import first_of
from sso.records import Message

ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of the roles."""
SYSTEMS = ("system", "system_prompt", "system_message")
PROMPTS = ("prompt", "conversations", "messages", "question", "input")
DIALOGUES = ("messages", "conversations")
ANSWERS = ("output", "completion", "response")
TOOLS = ("tool", "observation", "function", "function_call", "ipython")
"""Roles of turns that a Message cannot be."""
BESIDE_TEXT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
"""What a turn may hold beside its text."""
COLUMNS = ("tools", "functions", "image", "images", "video", "videos", "audio", "audios")
"""What a row may hold beside its texts."""
NOTHING = ("", "[]", "{}", "null")
"""JSON that says nothing, in columns that hold it as text."""

EMPTY, NO_PROMPT, NO_DIALOGUE = "empty answer", "no prompt", "not a dialogue"
NO_ANSWER, ASSISTANT_FIRST, MORE = "no answer", "assistant first", "tools, media or reasoning"
CONTRADICTION = "another prompt beside the dialogue"
"""Why a row is left out."""

RowT = TypeVar("RowT")


class LeftOut(Exception):
    """Why a row cannot be used, in a few words that are the same for all such rows."""


class Read(NamedTuple):
    """What was made of rows: the usable ones, the ids of the others by reason, and of these the number from 1."""

    made: list[Any]
    left_out: dict[str, list[str]]
    numbers: dict[str, int]


def read(rows: Iterable[Mapping[str, Any]], make: Callable[[Mapping[str, Any], str], Any]) -> Read:
    """``make(row, id)`` of every row; ids are the rows' own (`id`), else the number from 0, and differ."""
    found, seen = Read([], {}, {}), set()
    for number, row in enumerate(rows):
        own = row.get("id")
        key = str(number) if own is None or own == "" else str(own)
        while key in seen:
            key = f"{key}#{number}"
        seen.add(key)
        try:
            found.made.append(make(row, key))
        except LeftOut as why:
            found.left_out.setdefault(str(why), []).append(key)
            found.numbers[key] = number + 1
    return found


def named(ids: Sequence[str], numbers: Mapping[str, int]) -> list[str]:
    """Ids with the rows' numbers where they are known."""
    return [f"{key} (row {numbers[key]})" if key in numbers else key for key in ids]


def warn(left_out: Mapping[str, Sequence[str]], path: str | Path, numbers: Mapping[str, int] | None = None) -> None:
    """A line on standard error for each reason, with the first ids."""
    for reason, ids in left_out.items():
        some = first_of(named(ids, numbers or {}))
        print(f"warning: {path}: left out {len(ids)} rows ({reason}): {some}", file=sys.stderr)


def counts(left_out: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Rows left out by reason, its words joined by `_`, for the run's record."""
    return {re.sub(r"\W+", "_", reason): len(ids) for reason, ids in left_out.items()}


def why(left_out: Mapping[str, Sequence[str]], numbers: Mapping[str, int]) -> str:
    """What was left out in a few words, where nothing is left: the first row of each reason."""
    return ", ".join(f"{len(ids)} {name}: {named(ids, numbers)[0]}" for name, ids in left_out.items()) or "no row"


def dialogue(row: Mapping[str, Any]) -> list[Message]:
    """A whole dialogue to be trained on, with one answer or more: `messages` or `conversations`, else a prompt and
    its answer in `output` (Alpaca), `completion` (trl) or `response`.

    Raises:
        LeftOut: it is none, or more than text.
    """
    whole = any(row.get(name) for name in DIALOGUES)
    turns = before(row, whole)
    if not whole:
        answer = next((row[name] for name in ANSWERS if row.get(name)), None)
        turns += [] if answer is None else messages(answer, "assistant")
    started(turns)
    answers = [turn for turn in turns if turn.role == "assistant"]
    if not answers:
        raise LeftOut(NO_ANSWER)
    if not all(turn.content.strip() for turn in answers):
        raise LeftOut(EMPTY)
    return turns


def before(row: Mapping[str, Any], whole: bool = False) -> list[Message]:
    """The turns that stand in a row before its answer; ``whole``: its dialogue, answers and all.

    They are a system message, history, and Alpaca's `instruction` or else the first column that holds something.
    """
    if any(row.get(name) and row[name] not in NOTHING for name in COLUMNS):
        raise LeftOut(MORE)
    if not whole and isinstance(row.get("instruction"), str) and row["instruction"]:
        parts = (row["instruction"], row.get("input"))
        turns = messages("\n".join(part for part in parts if isinstance(part, str) and part), "user")
    else:
        names = DIALOGUES if whole else PROMPTS
        turns = messages(next((row[name] for name in names if row.get(name)), []), "user")
    if not whole and turns and turns[-1].role == "assistant" and not turns[-1].content.strip():
        del turns[-1]  # "\n\nAssistant:" at the end of a prompt only opens the answer
    system, turns = split(turns)
    column = next((row[name] for name in SYSTEMS if row.get(name)), "")
    if not isinstance(column, str):
        raise LeftOut(NO_DIALOGUE)
    if not system and column.strip():
        system = [Message(role="system", content=column)]
    return [*system, *_history(row.get("history")), *turns]


def split(turns: list[Message]) -> tuple[list[Message], list[Message]]:
    """The system message that leads, if there is one, and the rest."""
    count = 1 if turns and turns[0].role == "system" else 0
    return turns[:count], turns[count:]


def joined(given: list[Message], own: list[Message]) -> list[Message]:
    """The turns before an answer, where a row has some beside its answers (``given``) and some within (``own``):
    one of them holds the other or goes on where it ends. The system message within comes first.

    Raises:
        LeftOut: they are two different prompts.
    """
    (system, given), (within, own) = split(given), split(own)
    system = within or system
    first, second = ([(turn.role, turn.content.strip()) for turn in turns] for turns in (given, own))
    if not second or first[-len(second) :] == second:
        return [*system, *given]
    answered = len(first) == len(second) + 1 and first[: len(second)] == second and first[-1][0] == "assistant"
    if not first or second[: len(first)] == first or second[-len(first) :] == first or answered:
        return [*system, *own]
    if first[-1][0] != second[0][0]:
        return [*system, *given, *own]
    raise LeftOut(CONTRADICTION)


def started(turns: list[Message]) -> None:
    """Raises LeftOut where no user says anything, or where the assistant speaks first."""
    if not any(turn.role == "user" and turn.content.strip() for turn in turns):
        raise LeftOut(NO_PROMPT)
    if split(turns)[1][0].role == "assistant":
        raise LeftOut(ASSISTANT_FIRST)


def messages(value: Any, role: str) -> list[Message]:
    """A dialogue; a text that is no transcript is one turn of ``role``, and a system turn without content is none.

    Raises:
        LeftOut: it is no dialogue, or holds more than text.
    """
    if isinstance(value, str):
        return transcript(value) or [Message(role=role, content=value)]
    if not isinstance(value, list | Mapping):
        raise LeftOut(NO_DIALOGUE)
    turns = []
    for turn in [value] if isinstance(value, Mapping) else value:
        if not isinstance(turn, Mapping):
            raise LeftOut(NO_DIALOGUE)
        who, what = turn.get("role") or turn.get("from"), turn.get("content")
        who = ROLES.get(who, who) if isinstance(who, str) else None
        what = _text(turn.get("value") if what is None else what)
        if who in TOOLS or any(turn.get(name) for name in BESIDE_TEXT):
            raise LeftOut(MORE)
        if who == "system" and what is None:
            continue
        if who not in ("system", "user", "assistant") or not isinstance(what, str):
            raise LeftOut(NO_DIALOGUE)
        turns.append(Message(role=who, content=what))
    return turns


def transcript(text: str) -> list[Message]:
    """The turns of an Anthropic transcript; none where the text does not begin as one."""
    if not text.startswith("\n\nHuman:"):
        return []
    parts = re.split(r"\n\n(Human|Assistant):", text)[1:]
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [Message(role="user" if who == "Human" else "assistant", content=what.strip()) for who, what in turns]


def _text(content: Any) -> Any:
    """The text of a list of text parts; anything else as it is."""
    if not isinstance(content, list) or not content or not all(isinstance(part, Mapping) for part in content):
        return content
    if any(part.get("type", "text") != "text" or not isinstance(part.get("text"), str) for part in content):
        raise LeftOut(MORE)
    return "".join(part["text"] for part in content)


def _history(value: Any) -> list[Message]:
    """Earlier rounds: Alpaca's [[instruction, answer], ...], or messages."""
    if not value:
        return []
    if isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value):
        return messages(value, "user")
    if not isinstance(value, list):
        raise LeftOut(NO_DIALOGUE)
    turns: list[Message] = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise LeftOut(NO_DIALOGUE)
        turns += [Message(role="user", content=pair[0]), Message(role="assistant", content=pair[1])]
    return turns
