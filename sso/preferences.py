"""Preference sets as pairs: hub data sets and local files, in the layouts that such sets come in.

`chosen` and `rejected` are answers (a text, a message, a list of one) or whole dialogues that hold the prompt too
(UltraFeedback-binarized, Skywork-Reward-Preference, RewardBench); what stands beside them is read as sso/dialogues.py
says. All turns but the last become the prompt. A row that makes no pair is left out by name and counted. The one
reader of pairs: training, reference scores, reward models and measures take them from here. Knows nothing of models
or tokens.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sso import dialogues, hub
from sso.dialogues import NO_DIALOGUE, LeftOut, warn
from sso.errors import InputError
from sso.jobs.distributed import is_main
from sso.records import Pair, Triple, iter_json_lines
from sso.records import read as read_records
from sso.settings import Preferences

PairT = TypeVar("PairT", bound=Pair)
SIDES = ("chosen", "rejected")
SCORES = ("score_chosen", "score_rejected")
MISSING, EMPTY, EQUAL, DIFFER = "missing side", "empty side", "equal sides", "differ before the last turn"
"""Why a row makes no pair, beside what sso/dialogues.py names."""


class Preference(Pair):
    """A pair with how far apart its sides are, in its set's own units, where the set says so."""

    margin: float | None = None


class Parsed(NamedTuple):
    """The usable pairs; the ids of the other rows by reason, and of these the number from 1."""

    pairs: list[Preference]
    left_out: dict[str, list[str]]
    numbers: dict[str, int]

    @property
    def counts(self) -> dict[str, int]:
        """`pairs`, and rows left out by reason, its words joined by `_`."""
        return {"pairs": len(self.pairs)} | dialogues.counts(self.left_out)


def load(source: Preferences) -> tuple[list[Preference], dict[str, int]]:
    """The pairs of a preference set, and counts of them and of the rows that were left out.

    What was left out is named on standard error.

    Raises:
        InputError: nothing can be read at ``path``, or no row makes a pair.
    """
    parsed = parse(rows(source), source.path)
    warn(parsed.left_out, source.path, parsed.numbers)
    return sample(parsed.pairs, source.limit, source.seed), parsed.counts


def read(path: str | Path) -> tuple[list[Pair], dict[str, int]]:
    """The pairs of a local file, and counts of the rows that were left out, which are named on standard error.

    Raises:
        InputError: the file can't be read, or no row makes a pair.
    """
    return usable(file_rows(Path(path)), str(path))


def usable(rows: Iterable[Mapping[str, Any]], name: str) -> tuple[list[Pair], dict[str, int]]:
    """What `read` returns, from rows in place of a file; messages call them ``name``."""
    parsed = parse(rows, name, source="")
    if is_main():
        warn(parsed.left_out, name, parsed.numbers)
    # Without the margin, which belongs to reward models: the records of a file are then those that were written.
    made = [Pair.model_validate(pair.model_dump()) for pair in parsed.pairs]
    return made, dialogues.counts(parsed.left_out)


def triples_or_pairs(path: Path) -> tuple[list[Triple] | list[Pair], dict[str, int]]:
    """The records of a file, and counts of the rows left out. Triples, told by their keys, are the suite's own format:
    each must be whole."""
    found = file_rows(path)
    return (read_records(path, Triple), {}) if are_triples(found, str(path)) else usable(found, str(path))


def are_triples(found: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether rows are triples; InputError where only some are."""
    own = [number for number, row in enumerate(found, 1) if "system_good" in row]
    if own and len(own) < len(found):
        other = next(number for number, row in enumerate(found, 1) if "system_good" not in row)
        raise InputError(f"{name}: row {own[0]} is a triple and row {other} is none; give a file of one kind.")
    return bool(own)


def rows(source: Preferences) -> Iterable[Mapping[str, Any]]:
    """The rows of a file or a data set as they are."""
    path = Path(source.path)
    if path.is_file() or path.suffix in (".jsonl", ".json", ".gz", ".parquet"):
        return file_rows(path)
    return hub.rows(source.path, source.split, subset=source.subset, revision=source.revision)


def file_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines (gzipped too), JSON or Parquet file as they are.

    Raises:
        InputError: there is no such file, or it is none of these.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a JSON Lines, JSON or Parquet file, or a data set of the hub.")
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
        if values is None and "\n" in text.strip():
            with suppress(ValueError, RecursionError):  # else not one object, but lines
                values = [json.loads(text)]
        if values is not None:
            if any(not isinstance(value, dict) for value in values):
                raise InputError(f"{path}: every element must be an object.")
            return values
    return [value for _, value in iter_json_lines(path)]


def parse(rows: Iterable[Mapping[str, Any]], name: str, source: str | None = None) -> Parsed:
    """Pairs of rows; ids are the rows' own (`id`, else the number from 0). A pair of a row that names no `source` has
    ``source``, by default ``name``.

    Raises:
        InputError: no row makes a pair.
    """
    parsed = Parsed(*dialogues.read(rows, lambda row, key: pair(row, key, name if source is None else source)))
    if not parsed.pairs:
        why = dialogues.why(parsed.left_out, parsed.numbers)
        raise InputError(f"{name}: no usable pair ({why}); rows need `chosen` and `rejected`.")
    return parsed


def pair(row: Mapping[str, Any], key: str, source: str = "") -> Preference:
    """The pair of a row.

    Raises:
        LeftOut: it makes none.
    """
    if any(row.get(side) is None or row[side] == [] for side in SIDES):
        raise LeftOut(MISSING)
    given = dialogues.before(row)
    chosen, rejected = (dialogues.messages(row[side], "assistant") for side in SIDES)
    if not chosen or not rejected or {chosen[-1].role, rejected[-1].role} != {"assistant"}:
        raise LeftOut(NO_DIALOGUE)
    if chosen[:-1] != rejected[:-1]:
        raise LeftOut(DIFFER)
    prompt = dialogues.joined(given, chosen[:-1])
    dialogues.started(prompt)
    if prompt[-1].role != "user":
        raise LeftOut(NO_DIALOGUE)
    texts = [chosen[-1].content.strip(), rejected[-1].content.strip()]
    if not all(texts):
        raise LeftOut(EMPTY)
    if texts[0] == texts[1]:
        raise LeftOut(EQUAL)
    return Preference(
        id=key,
        prompt=prompt,
        chosen=chosen[-1:],
        rejected=rejected[-1:],
        source=str(row.get("source") or source),
        cut=_cut(row),
        margin=_margin(row),
    )


def _cut(row: Mapping[str, Any]) -> list[Any]:
    """The sides that the row says were cut when they were drawn, as the suite's own pairs do."""
    cut = row.get("cut")
    return [side for side in SIDES if side in cut] if isinstance(cut, list) else []


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
