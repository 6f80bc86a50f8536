"""A reward model at work: the best of n answers; and, where the micro-world's oracle is there, how right it is.

Two measures against the oracle: the quality of what is picked out of 1, 2, 4, ... answers, beside the oracle's own
pick and a random one; and how often the answer with the larger reward is the better one, by the gap between the two
rewards (a calibrated Bradley-Terry model is right with probability sigmoid(gap)). Knows nothing of training.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sso.chat import naming
from sso.records import Answer, Query
from sso.sampling.engine import Engine, Show, name_missing, seed_of
from sso.sampling.settings import Sampling

BINS = 8
"""Bins of the calibration, each with as many pairs."""


def draw(
    engine: Engine, queries: Sequence[Query], sampling: Sampling, n: int, seed: int, progress: Show | None = None
) -> list[list[str]]:
    """n answers to each query, [queries][n]; more answers leave the first ones as they are."""
    seeds = [seed_of(seed, query.id, f"best {i}") for query in queries for i in range(n)]
    conversations = [query.prompt for query in queries for _ in range(n)]
    with naming([query.id for query in queries for _ in range(n)], "query"):
        made = engine.generate(
            conversations, seeds, sampling.temperature, sampling.top_p, sampling.max_new_tokens, progress
        )
    name_missing([query.id for query in queries for _ in range(n)], made, "answers")
    return [[g.text for g in made[i : i + n]] for i in range(0, len(made), n)]


def scores(judge: Any, queries: Sequence[Query], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """What an `eval.judge.ScoringJudge` says of all answers, [queries, n]."""
    items = [(query.prompt, text) for query, texts in zip(queries, answers, strict=True) for text in texts]
    return np.array(judge.scores(items), dtype=float).reshape(len(queries), -1)


def best(queries: Sequence[Query], answers: Sequence[Sequence[str]], rewards: np.ndarray, name: str) -> list[Answer]:
    """The answer with the largest reward to each query, the first of equals."""
    picked = rewards.argmax(1)
    return [
        Answer(id=query.id, prompt=query.prompt, output=texts[i], model=name)
        for query, texts, i in zip(queries, answers, picked, strict=True)
    ]


def curve(rewards: np.ndarray, quality: np.ndarray) -> list[dict[str, Any]]:
    """Mean true quality of the pick out of the first 1, 2, 4, ... answers, by reward, by quality itself, at random.

    ``stderr`` is of the pick by reward, over queries; None for one query.
    """
    rows: list[dict[str, Any]] = []
    n = 1
    while n <= rewards.shape[1]:
        picked = np.take_along_axis(quality, rewards[:, :n].argmax(1)[:, None], 1)[:, 0]
        rows.append(
            {
                "n": n,
                "reward": float(picked.mean()),
                "stderr": float(picked.std(ddof=1) / len(picked) ** 0.5) if len(picked) > 1 else None,
                "oracle": float(quality[:, :n].max(1).mean()),
                "random": float(quality[:, :n].mean()),
            }
        )
        n *= 2
    return rows


def calibration(rewards: np.ndarray, quality: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """How often the larger reward is the better answer, by the rewards' gap.

    Pairs are answers 1 and 2, 3 and 4, ... of a query, so that none is used twice; equally good ones are left out,
    and equal rewards count as wrong.
    """
    pairs = rewards.shape[1] // 2
    gap, better = ((x[:, 0 : 2 * pairs : 2] - x[:, 1 : 2 * pairs : 2]).ravel() for x in (rewards, quality))
    gap, better = gap[np.abs(better) > 1e-9], better[np.abs(better) > 1e-9]
    right = np.sign(gap) == np.sign(better)
    parts = np.array_split(np.argsort(np.abs(gap)), max(1, min(bins, len(gap))))
    return [
        {
            "gap": float(np.abs(gap[part]).mean()),
            "expected": float((1 / (1 + np.exp(-np.abs(gap[part])))).mean()),
            "agreement": float(right[part].mean()),
            "n": len(part),
        }
        for part in parts
        if len(part)
    ]


def plot(result: dict[str, Any], out: Path) -> None:
    """Both measures as an SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    bins = result["calibration"]
    # Wald's interval is good enough for a picture of hundreds of pairs a bin.
    errors = [1.96 * (b["agreement"] * (1 - b["agreement"]) / b["n"]) ** 0.5 for b in bins]
    left.errorbar([b["gap"] for b in bins], [b["agreement"] for b in bins], errors, fmt="o", label="measured")
    gaps = np.linspace(0, 1.05 * max((b["gap"] for b in bins), default=1.0), 100)
    left.plot(gaps, 1 / (1 + np.exp(-gaps)), "k--", linewidth=1, label="sigmoid(gap)")
    left.set(xlabel="gap between two rewards", ylabel="agreement with the oracle", ylim=(0.4, 1.02))
    left.legend()
    rows = result["best_of_n"]
    labels = {
        "oracle": ("k:", "the oracle's pick"),
        "reward": ("o-", "the reward model's"),
        "random": ("k--", "random"),
    }
    for name, (style, label) in labels.items():
        right.plot([r["n"] for r in rows], [r[name] for r in rows], style, label=label)
    right.set(xlabel="answers to pick from", ylabel="oracle score of the pick", xscale="log")
    right.set_xticks([r["n"] for r in rows], [str(r["n"]) for r in rows], minor=False)
    right.minorticks_off()
    right.legend()
    with rc_context({"svg.hashsalt": "sso"}):
        figure.savefig(out, metadata={"Date": None})
