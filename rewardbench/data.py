"""What a reward model is scored on: RewardBench's rows; and what both it and training read, comparisons of texts.

Reads files and the hub, and names bad rows. Knows nothing of models, tokens or scores.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from sso import dialogues, preferences, records
from sso.errors import InputError, first_problem
from sso.preferences import Parsed, Preference
from sso.records import Message
from sso.settings import Preferences

HUB_SPLIT = "filtered"
"""The split of allenai/reward-bench that is the benchmark: 2,985 rows of 23 subsets."""
LLMBAR = {
    "Natural": "llmbar-natural",
    "Neighbor": "llmbar-adver-neighbor",
    "GPTInst": "llmbar-adver-GPTInst",
    "GPTOut": "llmbar-adver-GPTOut",
    "Manual": "llmbar-adver-manual",
}
"""LLMBar's files and the RewardBench subsets that they are."""


@dataclass(frozen=True)
class TextPair:
    """One prompt with the response that should win and the one that should lose, as texts."""

    id: str
    prompt: list[Message]
    chosen: str
    rejected: str
    subset: str = ""
    margin: float | None = None
    cut: tuple[str, ...] = ()
    """Which of `chosen` and `rejected` were cut at the limit of tokens when they were drawn."""


class BenchRow(records.Prompted):
    """A row of RewardBench's format; its prompt is a text (one user turn) or a list of messages."""

    subset: str = Field(min_length=1)
    chosen: str
    rejected: str


def text_pair(pair: Preference) -> TextPair:
    """The pair as texts."""
    return TextPair(
        pair.id, pair.prompt, pair.chosen[-1].content, pair.rejected[-1].content, "", pair.margin, tuple(pair.cut)
    )


def read_pairs(path: str | Path) -> Parsed:
    """The pairs of a preference file, and the rows that make none by reason.

    Raises:
        InputError: the file can't be read, or no usable pair is in it.
    """
    return preferences.parse(preferences.file_rows(Path(path)), str(path))


def read_bench(path: str | Path) -> list[TextPair]:
    """RewardBench rows {id, subset, prompt, chosen, rejected}: a file, the data set's name on the hub, or a folder
    with LLMBar's files, which are five of its subsets.

    A benchmark with a bad row is not that benchmark: an empty side or equal sides raise InputError.
    """
    made: list[TextPair] = []
    seen: set[str] = set()
    for number, values in enumerate(_bench_rows(Path(path), str(path)), 1):
        sides = {side: _text(values[side]) for side in preferences.SIDES if side in values}
        values = {**values, "id": str(values.get("id", number - 1)), **sides}
        try:
            row = BenchRow.model_validate(values)
        except ValidationError as error:
            key, problem = first_problem(error)
            raise InputError(f"{path}:{number}: `{key}`: {problem}.") from error
        # The hub's numbers repeat between subsets.
        name = row.id if row.id not in seen else f"{row.subset}/{row.id}"
        if name in seen:
            raise InputError(f"{path}:{number}: id {row.id!r} stands twice in subset {row.subset}; ids must differ.")
        seen.add(name)
        for side in preferences.SIDES:
            if not getattr(row, side).strip():
                raise InputError(f"{path}: row {name!r}: `{side}` is empty; give a text or remove the row.")
        if row.chosen == row.rejected:
            raise InputError(f"{path}: row {name!r}: chosen and rejected are equal; correct or remove the row.")
        made.append(TextPair(name, row.prompt, row.chosen, row.rejected, row.subset))
    if not made:
        raise InputError(f"{path}: holds no record; give at least one.")
    return made


def _text(side: Any) -> Any:
    """The last turn's text where a side is a whole dialogue."""
    try:
        turns = dialogues.messages(side, "assistant") if isinstance(side, list) else []
    except dialogues.LeftOut:  # whose row the caller names
        return side
    return turns[-1].content if turns else side


def _bench_rows(path: Path, name: str) -> Iterable[Mapping[str, Any]]:
    if path.is_file():
        return [value for _, value in records.iter_json_lines(path)]
    if path.is_dir() and all((path / f"{file}.json").is_file() for file in LLMBAR):
        return list(_llmbar(path))
    return preferences.rows(Preferences(path=name, split=HUB_SPLIT))


def _llmbar(folder: Path) -> Iterable[dict[str, Any]]:
    for file, subset in LLMBAR.items():
        for i, row in enumerate(json.loads((folder / f"{file}.json").read_text(encoding="utf-8"))):
            sides = (row["output_1"], row["output_2"])
            chosen, rejected = sides if row["label"] == 1 else sides[::-1]
            yield {
                "id": f"{subset}/{i}",
                "subset": subset,
                "prompt": row["input"],
                "chosen": chosen,
                "rejected": rejected,
            }
