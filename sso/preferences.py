"""Preference sets as pairs: hub data sets and local files, in the layouts that such sets come in.

Sides are message lists, one message, a text, or a whole dialogue that holds the prompt too (UltraFeedback-binarized,
Skywork-Reward-Preference, RewardBench); messages are {role, content} or ShareGPT's {from, value}; Anthropic's
transcripts ("\\n\\nHuman: ...\\n\\nAssistant: ...") are read as well. A row that makes no pair is left out by name and
counted. Knows nothing of models or tokens.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sso import hub
from sso.config import Preferences
from sso.errors import InputError, first_of
from sso.records import Message, Pair, iter_json_lines

PairT = TypeVar("PairT", bound=Pair)
ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of the roles."""
SIDES = ("chosen", "rejected")
SCORES = ("score_chosen", "score_rejected")
MISSING, EMPTY, EQUAL = "missing side", "empty side", "equal sides"
NO_PROMPT, NO_DIALOGUE, DIFFER = "no prompt", "not a dialogue", "differ before the last turn"
"""Why a row makes no pair."""


class Preference(Pair):
    """A pair with how far apart its sides are, in its set's own units, where the set says so."""

    margin: float | None = None


class Parsed(NamedTuple):
    """The usable pairs, and the ids of the other rows by reason."""

    pairs: list[Preference]
    left_out: dict[str, list[str]]

    @property
    def counts(self) -> dict[str, int]:
        """`pairs`, and rows left out by reason, its words joined by `_`."""
        return {"pairs": len(self.pairs)} | {key.replace(" ", "_"): len(ids) for key, ids in self.left_out.items()}


def load(source: Preferences) -> tuple[list[Preference], dict[str, int]]:
    """The pairs of a preference set, and counts of them and of the rows that were left out.

    What was left out is named on standard error.

    Raises:
        InputError: nothing can be read at ``path``, or no row makes a pair.
    """
    parsed = parse(rows(source), source.path)
    warn(parsed.left_out, source.path)
    return sample(parsed.pairs, source.limit, source.seed), parsed.counts


def warn(left_out: Mapping[str, list[str]], path: str | Path) -> None:
    """A line on standard error for each reason, with the first ids."""
    for reason, ids in left_out.items():
        print(f"warning: {path}: left out {len(ids)} rows ({reason}): {first_of(ids)}", file=sys.stderr)


def rows(source: Preferences) -> Iterable[Mapping[str, Any]]:
    """The rows of a file or a data set as they are."""
    path = Path(source.path)
    if not path.is_file():
        if path.suffix in (".jsonl", ".json", ".gz", ".parquet"):
            raise InputError(f"{path}: no such file; give a preference file or a data set of the hub.")
        return hub.rows(source.path, source.split, subset=source.subset, revision=source.revision)
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        try:
            return parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:120]}).") from error
    if path.suffix == ".json":
        try:
            text = path.read_text(encoding="utf-8")
            values = json.loads(text) if text.lstrip().startswith("[") else None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not valid JSON ({error}).") from error
        if values is not None:
            if any(not isinstance(value, dict) for value in values):
                raise InputError(f"{path}: every element must be an object with `chosen` and `rejected`.")
            return values
    return [value for _, value in iter_json_lines(path)]


def parse(rows: Iterable[Mapping[str, Any]], name: str) -> Parsed:
    """Pairs of rows; ids are the rows' own (`id`, else the number from 0), ``name`` their source where none is given.

    Raises:
        InputError: no row makes a pair.
    """
    parsed, seen = Parsed([], {}), set()
    for number, row in enumerate(rows):
        own = row.get("id")
        key = str(number) if own is None or own == "" else str(own)
        key = f"{key}#{number}" if key in seen else key
        seen.add(key)
        made = pair(row, key, name)
        if isinstance(made, Preference):
            parsed.pairs.append(made)
        else:
            parsed.left_out.setdefault(made, []).append(key)
    if not parsed.pairs:
        why = ", ".join(f"{len(ids)} {reason}" for reason, ids in parsed.left_out.items())
        raise InputError(f"{name}: no usable pair ({why or 'no row'}); rows need `chosen` and `rejected`.")
    return parsed


def pair(row: Mapping[str, Any], key: str, source: str = "") -> Preference | str:
    """The pair of a row, or why it makes none, in a few words that are the same for all such rows."""
    if any(row.get(side) is None or row[side] == [] for side in SIDES):
        return MISSING
    prompt = messages(_prompt(row), "user")
    chosen, rejected = (messages(row[side], "assistant") for side in SIDES)
    if prompt is None or not chosen or not rejected or {chosen[-1].role, rejected[-1].role} != {"assistant"}:
        return NO_DIALOGUE
    if chosen[:-1] != rejected[:-1]:
        return DIFFER
    before = chosen[:-1]
    # A dialogue that begins with the prompt repeats what stands beside it.
    prompt = before if before and before[0].role != "assistant" else [*prompt, *before]
    if not any(message.role == "user" and message.content.strip() for message in prompt):
        return NO_PROMPT
    texts = [chosen[-1].content.strip(), rejected[-1].content.strip()]
    if not all(texts):
        return EMPTY
    if texts[0] == texts[1]:
        return EQUAL
    return Preference(
        id=key,
        prompt=prompt,
        chosen=chosen[-1:],
        rejected=rejected[-1:],
        source=str(row.get("source") or source),
        margin=_margin(row),
    )


def messages(value: Any, role: str) -> list[Message] | None:
    """A dialogue; a text that is no transcript is one turn of ``role``. None: it is no dialogue."""
    if isinstance(value, str):
        return transcript(value) or [Message(role=role, content=value)]
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        return None
    turns = []
    for turn in value:
        if not isinstance(turn, Mapping):
            return None
        who, what = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        who = ROLES.get(who, who) if isinstance(who, str) else who
        if who not in ("system", "user", "assistant") or not isinstance(what, str):
            return None
        turns.append(Message(role=who, content=what))
    return turns


def transcript(text: str) -> list[Message]:
    """The turns of an Anthropic transcript; none where the text does not begin as one."""
    if not text.startswith("\n\nHuman:"):
        return []
    parts = re.split(r"\n\n(Human|Assistant):", text)[1:]
    names = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [Message(role=names[who], content=what.strip()) for who, what in turns]


def _prompt(row: Mapping[str, Any]) -> Any:
    """What stands beside the sides: `prompt`, ShareGPT's `conversations`, or Alpaca's `instruction` and `input`."""
    if isinstance(row.get("instruction"), str) and row["instruction"]:
        return "\n".join(part for part in (row["instruction"], row.get("input")) if isinstance(part, str) and part)
    return row.get("prompt") or row.get("conversations") or []


def _margin(row: Mapping[str, Any]) -> float | None:
    """`margin`, or the difference of the sides' scores."""
    values: list[Any] = [row.get("margin")] if row.get("margin") is not None else [row.get(name) for name in SCORES]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return None
    return float(values[0] if len(values) == 1 else values[0] - values[1])


def sample(pairs: list[PairT], limit: int | None, seed: int) -> list[PairT]:
    """``limit`` of the pairs, in their order; which ones depends on the seed and the ids, not on the other rows."""
    if limit is None or limit >= len(pairs):
        return pairs

    def rank(pair: PairT) -> bytes:
        return hashlib.sha256(f"{seed}/{pair.id}".encode()).digest()

    kept = {pair.id for pair in sorted(pairs, key=rank)[:limit]}
    return [pair for pair in pairs if pair.id in kept]
