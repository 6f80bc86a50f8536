"""RewardBench v1's definition: subsets, four sections, their weights; and the rewards that it is fed.

A row is won where the chosen response's reward is strictly larger: a tie and a NaN are not. A section is
the mean of its subsets' accuracies, weighted by results/paper/rewardbench_v1.csv (math-prm counts as much
as the six code subsets together); the score is the mean of the four sections. ``aggregate`` is pure;
torch is imported only where rewards are computed (sso/reward_model.py).
"""

import csv
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sso.errors import InputError, first_of
from sso.records import Message
from sso.reward_model import load, reader, rewards
from sso.settings import ROOT

if TYPE_CHECKING:
    from rewardbench.data import TextPair

SECTIONS = {
    "Chat": "rewardbench_chat",
    "Chat Hard": "rewardbench_chat_hard",
    "Safety": "rewardbench_safety",
    "Reasoning": "rewardbench_reasoning",
}
"""RewardBench's four sections and their metric names in results/paper/results.csv."""

WEIGHTS = (
    ROOT / "results/paper/rewardbench_v1.csv",
    *(Path(__file__).with_name(f"sections_{world}.csv") for world in ("micro", "real")),
)
"""The known benchmarks, each a table of section, subset, weight."""

Weights = dict[str, tuple[str, float]]
"""subset -> (section, weight)."""


def read_weights(path: Path) -> Weights:
    """A table of section, subset, weight."""
    with path.open(encoding="utf-8", newline="") as file:
        return {row["subset"]: (row["section"], float(row["weight"])) for row in csv.DictReader(file)}


def weights_for(subsets: Iterable[str]) -> Weights:
    """The weights of the one known benchmark that has all ``subsets``; InputError names the first that none has."""
    subsets = list(dict.fromkeys(subsets))
    tables = [read_weights(path) for path in WEIGHTS]
    for table in tables:
        if all(subset in table for subset in subsets):
            return table
    nearest = max(tables, key=lambda table: sum(subset in table for subset in subsets))
    unknown = next(subset for subset in subsets if subset not in nearest)
    raise InputError(f"unknown RewardBench subset {unknown!r}; the benchmark has: {', '.join(nearest)}.")


def aggregate(rows: Iterable[tuple[str, float, float]], weights: Weights) -> dict[str, Any]:
    """Scores of (subset, reward of chosen, reward of rejected) rows, in percent.

    Returns {"subsets": {name: {"accuracy", "n", "ties", "nan"}}, "sections": {metric: percent or None},
    "rewardbench_avg": percent or None, "missing_subsets": [...]}. A section without any row is None, and
    then so is the average: a mean of fewer sections is another benchmark.
    """
    subsets: dict[str, dict[str, float]] = {}
    for name, chosen, rejected in rows:
        if name not in weights:
            raise InputError(f"unknown RewardBench subset {name!r}; known: {', '.join(weights)}.")
        counts = subsets.setdefault(name, {"wins": 0, "n": 0, "ties": 0, "nan": 0})
        counts["n"] += 1
        counts["wins"] += chosen > rejected
        counts["ties"] += chosen == rejected
        counts["nan"] += math.isnan(chosen) or math.isnan(rejected)
    table = {
        name: {"accuracy": 100 * c["wins"] / c["n"], "n": c["n"], "ties": c["ties"], "nan": c["nan"]}
        for name, c in ((name, subsets[name]) for name in weights if name in subsets)
    }
    sections: dict[str, float | None] = {}
    for section, metric in SECTIONS.items():
        parts = [(weights[name][1], row["accuracy"]) for name, row in table.items() if weights[name][0] == section]
        total = sum(weight for weight, _ in parts)
        sections[metric] = sum(weight * accuracy for weight, accuracy in parts) / total if parts else None
    known = [value for value in sections.values() if value is not None]
    return {
        "subsets": table,
        "sections": sections,
        "rewardbench_avg": sum(known) / len(known) if len(known) == len(SECTIONS) else None,
        "missing_subsets": [name for name in weights if name not in table],
    }


def encode(
    tokenizer: Any,
    pairs: "Sequence[TextPair]",
    max_length: int | None = None,
    end_cut_responses: bool = True,
    read: Callable[[list[Message], str], list[int]] | None = None,
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of prompt and response, chosen and rejected. Nothing is cut: more than ``max_length`` tokens are an
    InputError. A response that was cut when it was drawn has an end of turn only with ``end_cut_responses``; ``read``
    is a model's own way of reading a prompt and a response (`sso.reward_model.reader`)."""
    from sso import chat

    sides: tuple[list[list[int]], list[list[int]]] = ([], [])
    for row in pairs:
        with chat.naming([row.id], "pair"):
            if read:
                made = [read(row.prompt, row.chosen), read(row.prompt, row.rejected)]
            else:
                prompt, ended = chat.encode_prompt(tokenizer, row.prompt), end_cut_responses
                made = [
                    prompt + chat.encode_response(tokenizer, getattr(row, side), ended or side not in row.cut)
                    for side in ("chosen", "rejected")
                ]
        for ids, side in zip(sides, made, strict=True):
            ids.append(side)
            if max_length is not None and len(ids[-1]) > max_length:
                raise InputError(
                    f"pair {row.id!r}: {len(ids[-1])} tokens, but the model's context holds {max_length}; shorten it."
                )
    return sides


def check_prompts(tokenizer: Any, rows: "Sequence[TextPair]") -> None:
    """Raise InputError that names the pair whose prompt the chat template refuses; before a model is loaded."""
    from sso.chat import check_conversations, naming

    with naming([row.id for row in rows], "pair"):
        check_conversations(tokenizer, [row.prompt for row in rows])


Scored = list[tuple[float, float]]
"""What each row's chosen and rejected response are worth."""


def by_reward_model(
    rows: "Sequence[TextPair]", path: str | Path, batch_size: int = 64, dtype: str = "float32"
) -> Scored:
    """The rewards of a Bradley-Terry model."""
    from sso.chat import context_limit, load_tokenizer

    check_prompts(load_tokenizer(path), rows)
    model, tokenizer = load(path, dtype)
    chosen, rejected = encode(tokenizer, rows, context_limit(model.config), read=reader(model, tokenizer))
    values = rewards(model, [*chosen, *rejected], batch_size).tolist()
    return list(zip(values[: len(rows)], values[len(rows) :], strict=True))


def by_policy(
    rows: "Sequence[TextPair]", policy: str | Path, reference: str | Path | None, dtype: str = "float32"
) -> Scored:
    """The implicit reward of a DPO policy, log pi(y|x) - log pi_ref(y|x), summed over tokens, in nats; beta is left
    out, since it ranks nothing. Without a reference: the policy's mean log-probability per token."""
    own, tokens = _logps(rows, policy, dtype)
    base = _logps(rows, reference, dtype)[0] if reference is not None else None
    values = own / tokens if base is None else own - base
    return [tuple(row) for row in values.tolist()]


def _logps(rows: "Sequence[TextPair]", path: str | Path, dtype: str) -> tuple[Any, Any]:
    """log pi(y|x), summed, and tokens of both responses; [rows, 2] each."""
    from sso.chat import context_limit, load_model, load_tokenizer
    from sso.objective import PAIR_NODES
    from sso.packing import tokenize
    from sso.records import Pair
    from sso.reference import score as score_nodes

    tokenizer = load_tokenizer(path)
    check_prompts(tokenizer, rows)
    model = load_model(path, dtype)
    pairs = [Pair(id=row.id, prompt=row.prompt, chosen=row.chosen, rejected=row.rejected) for row in rows]
    limit = context_limit(model.config)
    made = tokenize(pairs, tokenizer, limit)
    if made.cut or made.left_out:
        raise InputError(
            f"pair {[*made.cut, *made.left_out][0]!r}: more than the {limit} tokens of {path}; shorten it."
        )
    scores = score_nodes(model, made.samples, PAIR_NODES, tokenizer.pad_token_id, {"dtype": dtype})
    return scores.logp.double(), scores.tokens.double()


def by_judge(rows: "Sequence[TextPair]", judge: Any) -> Scored:
    """A judge's preference for each side, over both orders (`eval.judge.Judge`); NaN where one could not be read."""
    from eval.judge import AnswerPair

    verdicts = judge.pairwise([AnswerPair(row.prompt, row.chosen, row.rejected) for row in rows])
    return [(verdict.mean, 1 - verdict.mean) for verdict in verdicts]


def write(rows: "Sequence[TextPair]", values: Scored, out: str | Path, scorer: Mapping[str, Any]) -> dict[str, Any]:
    """Aggregate, and write the table with ``scorer`` in it to ``out``, the rows' values beside it (`*_rows.jsonl`).

    What is not a number is named on standard error, and null in the file.
    """
    from sso import records

    weights, out = weights_for(row.subset for row in rows), Path(out)
    both = list(zip(rows, values, strict=True))
    if bad := [row.id for row, pair in both if any(map(math.isnan, pair))]:
        print(f"warning: {len(bad)} rows have no score and count as lost: {first_of(bad)}", file=sys.stderr)
    result = {"scorer": dict(scorer), **aggregate([(row.subset, *pair) for row, pair in both], weights)}
    lines = (
        {"id": row.id, "subset": row.subset}
        | {side: None if math.isnan(v) else v for side, v in zip(("chosen", "rejected"), pair, strict=True)}
        for row, pair in both
    )
    records.write(out.with_name(f"{out.stem}_rows.jsonl"), lines)
    records.write_text(out, json.dumps(result, indent=2) + "\n")
    return result
