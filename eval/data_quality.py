"""Two measures of a pair set (figure 3): does the judge agree with it, and how on-policy is it.

Agreement is measured on a sample of the pairs, each judged in both orders: the pairs whose ids have the lowest seeded
digests, so arms with the same queries are judged on the same ones, whatever else they lack. A pair counts as hit
where the judge prefers the chosen response on the whole, as half where the orders cancel out or tie.

On-policyness is what the SFT model thinks of chosen and rejected without any principle: the mean over all responses
of exp(average log-probability per token), and the nats per token of each side. Both are averages over responses,
each response counting once whatever its length. Reads log-probabilities from reference.safetensors; no torch.

Pairs that training leaves out are left out here too and counted, with those that never came into the file, as the
record beside it tells; of all these, the ones of two equal responses are told apart.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from eval.judge import AnswerPair, Judge, to_json
from eval.statistics import mean_and_error
from sso.errors import InputError
from sso.jobs.tracking import record_path
from sso.objective import PAIR_NODES
from sso.preferences import read, sample
from sso.records import Pair


def judged(judge: Judge, pairs: list[Pair], draw: int = 0) -> list[dict[str, Any]]:
    """One row a pair: id, the judge's preference for the chosen side shown first and second, and the hit.

    None stands for an unreadable verdict; ``hit`` and ``agree`` are None where either order is.
    """
    items = [AnswerPair(p.prompt, p.chosen[-1].content, p.rejected[-1].content) for p in pairs]
    rows = []
    for pair, preference in zip(pairs, judge.pairwise(items, draw), strict=True):
        mean, first, second = map(to_json, (preference.mean, *preference))
        # A judge that follows the position prefers each side once: 0.5 on the whole, which is a tie.
        hit = mean if mean is None else 1.0 if mean > 0.5 else 0.0 if mean < 0.5 else 0.5
        agree = None if mean is None else first == second
        rows.append({"id": pair.id, "hit": hit, "first": first, "second": second, "agree": agree})
    return rows


def accuracy(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of pairs whose chosen response the judge prefers; ties count half and are reported.

    ``agreement``: share of pairs that got the same verdict in both orders, of those with two readable ones.
    """
    hits = [row["hit"] for row in rows]
    agreed = mean_and_error([row["agree"] for row in rows if row["agree"] is not None])
    return mean_and_error(hits) | {"ties": hits.count(0.5), "agreement": agreed["value"]}


def _averages(path: Path, pairs: list[Pair]) -> dict[str, np.ndarray]:
    """Average log-probability per token of y+ and y- in context x, [scored pairs] each, in the order of ``pairs``.

    `sso reference` leaves out what is too long for a row.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise InputError(f"{path}: no such file; make it with `sso reference`.")
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        logp, tokens = file.get_tensor("logp"), file.get_tensor("tokens")
    rows = {name: i for i, name in enumerate(json.loads(metadata["ids"]))}
    nodes = [tuple(node) for node in json.loads(metadata["nodes"])]
    order = [rows[p.id] for p in pairs if p.id in rows]
    out: dict[str, np.ndarray] = {}
    if not order:
        raise InputError(f"{path}: holds no score of pair {pairs[0].id!r} or any other; make it anew from these pairs.")
    for node in PAIR_NODES:
        if node not in nodes:
            raise InputError(f"{path}: lacks {node[1]} in context {node[0]}; make it with the objective `pairs`.")
        column = nodes.index(node)
        count = tokens[order, column].astype(np.float64)
        out[node[1]] = logp[order, column].astype(np.float64) / np.maximum(count, 1)
    return out


def measure(
    judge: Judge | None, pairs_path: Path, reference: Path, count: int | None = None, seed: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The whole of data_quality.json, and the rows of `judged` for paired tests; ``count`` pairs are judged.

    Without a judge there are no such rows, and no accuracy.
    """
    pairs, left_out = read(pairs_path)
    earlier = _left_out(pairs_path)
    average = _averages(reference, pairs)  # before the judge, who may want money
    rows = judged(judge, sample(pairs, count, seed)) if judge else []
    lengths = {side: [len(getattr(p, side)[-1].content) for p in pairs] for side in ("chosen", "rejected")}
    quality = {
        **({"accuracy": accuracy(rows)} if judge else {}),
        "mean_probability": mean_and_error(np.exp(np.stack([*average.values()])).mean(0).tolist()),
        "nll_chosen": mean_and_error((-average["y+"]).tolist()),
        "nll_rejected": mean_and_error((-average["y-"]).tolist()),
        "length_chosen": mean_and_error(lengths["chosen"]),
        "length_rejected": mean_and_error(lengths["rejected"]),
        "unscored_pairs": len(pairs) - len(average["y+"]),
        "cut_pairs": sum(bool(p.cut) for p in pairs),
        "equal_pairs": left_out.get("equal_sides", 0) + earlier.get("equal_sides", 0),
    }
    bad = [name for name, entry in quality.items() if isinstance(entry, dict) and not _finite(entry["value"])]
    if bad:
        raise InputError(f"{reference}: {bad[0]} is not a number; the model that scored these pairs is broken.")
    said = {"judge": judge.name} | judge.notes() if judge else {"judge": None}
    return quality | {"left_out_pairs": sum(left_out.values()) + earlier.get("left_out_pairs", 0)} | said, rows


def _left_out(pairs: Path) -> dict[str, int]:
    """What the job that made a file of pairs left out, by its record; {} where there is none."""
    try:
        summary = json.loads(record_path(pairs).read_text(encoding="utf-8"))["summary"]
        return {name: int(summary[name]) for name in ("equal_sides", "left_out_pairs") if name in summary}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _finite(value: float | None) -> bool:
    return value is None or math.isfinite(value)
