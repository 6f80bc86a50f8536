"""What goes into a reward model and what it is scored on: preference pairs and RewardBench rows.

Reads files and names bad rows. Knows nothing of models, tokens or scores.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from sso import records
from sso.errors import InputError
from sso.records import Message, Pair


@dataclass(frozen=True)
class Comparison:
    """One prompt with the response that should win and the one that should lose, as texts."""

    id: str
    prompt: list[Message]
    chosen: str
    rejected: str
    subset: str = ""


@dataclass(frozen=True)
class Pairs:
    """The usable pairs of a file, and the ids of those left out because a side is empty or both are equal."""

    kept: list[Comparison]
    equal: list[str]
    empty: list[str]


class BenchRow(records.Prompted):
    """A row of RewardBench's format; its prompt is a text (one user turn) or a list of messages."""

    subset: str = Field(min_length=1)
    chosen: str
    rejected: str


def _comparison(path: Path, pair: Pair) -> Comparison:
    """The pair with turns that both sides share moved into the prompt."""
    for side in ("chosen", "rejected"):
        messages = getattr(pair, side)
        if not messages or messages[-1].role != "assistant":
            raise InputError(f"{path}: pair {pair.id!r}: `{side}` must end with an assistant message.")
    if pair.chosen[:-1] != pair.rejected[:-1]:
        raise InputError(f"{path}: pair {pair.id!r}: chosen and rejected may differ in their last message only.")
    return Comparison(pair.id, pair.prompt + pair.chosen[:-1], pair.chosen[-1].content, pair.rejected[-1].content)


def read_pairs(path: str | Path) -> Pairs:
    """Pairs in the Hub's conversational format (`prompt`, `chosen`, `rejected`).

    A model may answer nothing, or the same twice: such a pair teaches nothing and is set aside by id.
    Raises InputError where a key or the final assistant message is missing, or where no usable pair is left.
    """
    path = Path(path)
    pairs = [_comparison(path, pair) for pair in records.read(path, Pair)]
    empty = [p.id for p in pairs if not (p.chosen.strip() and p.rejected.strip())]
    equal = [p.id for p in pairs if p.chosen == p.rejected and p.id not in set(empty)]
    left_out = {*empty, *equal}
    kept = [p for p in pairs if p.id not in left_out]
    if not kept:
        raise InputError(f"{path}: no usable pair: {len(equal)} have equal sides and {len(empty)} an empty side.")
    return Pairs(kept, equal, empty)


def read_bench(path: str | Path) -> list[Comparison]:
    """RewardBench rows {id, subset, prompt, chosen, rejected}.

    A benchmark with a bad row is not that benchmark: an empty side or equal sides raise InputError.
    """
    rows = records.read(path, BenchRow)
    for row in rows:
        for side in ("chosen", "rejected"):
            if not getattr(row, side).strip():
                raise InputError(f"{path}: row {row.id!r}: `{side}` is empty; give a text or remove the row.")
        if row.chosen == row.rejected:
            raise InputError(f"{path}: row {row.id!r}: chosen and rejected are equal; correct or remove the row.")
    return [Comparison(row.id, row.prompt, row.chosen, row.rejected, row.subset) for row in rows]
