"""Preference pairs as a folder that can be pushed to the hub as it is: parquet, and a card (`sso.cards`)."""

import json
from pathlib import Path
from typing import Any

from sso.cards import PARQUET
from sso.jobs.tracking import record_path
from sso.preferences import read
from sso.records import whole_folder


def write_folder(pairs: Path, out: Path) -> dict[str, int]:
    """Write the pairs to ``out``, whole or not at all, in their order; returns how many, and rows left out by reason.

    The columns are a Pair's own: `id`, `prompt`, `chosen` and `rejected` as lists of messages, `source`, and `cut`
    where a response was.
    """
    from datasets import Dataset

    made, left_out = read(pairs)
    rows = [pair.model_dump() for pair in made]
    if any(pair.cut for pair in made):  # a column of the first row is a column of all
        rows = [{**row, "cut": pair.cut} for row, pair in zip(rows, made, strict=True)]
    with whole_folder(out) as folder:
        (folder / PARQUET).parent.mkdir()
        Dataset.from_list(rows).to_parquet(str(folder / PARQUET))
    return left_out | {"pairs": len(rows)}


def made_by(pairs: Path) -> dict[str, Any]:
    """Stage and settings of the job that made a file of pairs, by the record beside it; {} where there is none."""
    try:
        record = json.loads(record_path(pairs).read_text(encoding="utf-8"))
        return {"made_by": record["stage"], **record["settings"]}
    except (OSError, ValueError, KeyError):
        return {}
