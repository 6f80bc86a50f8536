"""AlpacaEval 2's comparison: a model's answers against fixed reference answers, raw and length-controlled.

The raw win rate is the mean preference. The length-controlled one is alpaca_eval's own GLM
(metrics/glm_winrate.py): preference ~ sigmoid(length * tanh(standardised length difference) + difficulty *
instruction difficulty + intercept), read off at no length difference. Two files of the hub that the package fetches
are replaced:

- The annotations of its two "gamed" baselines, towards which the official fit is regularised, are not at hand: the
  package's variants without that regularisation are used.
- The instruction difficulties exist for AlpacaEval's own 805 prompts only. With ``difficulty`` given (a recovery of
  the official ones, say) the variant `length_controlled_noreg` is fitted; without, `length_controlled_minimal`,
  which has no difficulty term. None are fitted from a model's own annotations: its label would leak into its
  feature.

Importing alpaca_eval takes 3 s of CPU (1.2 s of it SciPy), so the length-controlled rates of many models are made
in one process (`length_controlled`), not in each judge job. Deterministic: the package fixes its random state.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.judge import Comparison, Judge, OracleJudge, preference, to_json
from sso.config import Evaluation
from sso.errors import InputError
from sso.records import Answer, Query

if TYPE_CHECKING:
    from sso.sampling.transformers_engine import TransformersEngine

Row = dict[str, Any]
"""A line of pairwise.jsonl: id, preference (1: ours wins), score, reference_score, length, reference_length."""


def mean_and_error(values: Sequence[float | None], scale: float = 1.0) -> dict[str, float | int | None]:
    """Mean with its standard error over items, times ``scale``; None among the values is left out and counted."""
    known = np.array([v for v in values if v is not None], dtype=np.float64) * scale
    error = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None
    out = {"value": float(known.mean()) if len(known) else None, "stderr": error, "n": len(known)}
    return out if len(known) == len(values) else out | {"unreadable": len(values) - len(known)}


def answer(
    engine: "TransformersEngine", queries: list[Query], settings: Evaluation, seed: int, model: str
) -> list[Answer]:
    """One sampled answer a query."""
    from sso.sampling import seed_of

    generations = engine.generate(
        [query.prompt for query in queries],
        seeds=[seed_of(seed, query.id, "answer") for query in queries],
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
    )
    return [
        Answer(id=query.id, prompt=query.prompt, output=generation.text, model=model)
        for query, generation in zip(queries, generations, strict=True)
    ]


def pairwise(judge: Judge, answers: list[Answer], references: list[Answer], draw: int = 0) -> list[Row]:
    """Compare each answer with the reference answer of the same id, in the order of ``references``."""
    by_id = {answer.id: answer for answer in answers}
    if missing := [r.id for r in references if r.id not in by_id]:
        raise InputError(f"answers: no answer to {missing[0]!r} ({len(missing)} of {len(references)} are missing).")
    for reference in references:
        if by_id[reference.id].prompt != reference.prompt:
            raise InputError(f"answers: {reference.id!r} answers another prompt than the reference; make them anew.")
    ours = [by_id[reference.id] for reference in references]
    items = [Comparison(r.prompt, a.output, r.output) for a, r in zip(ours, references, strict=True)]
    scores: list[float | None] = [None] * (2 * len(items))
    if isinstance(judge, OracleJudge):
        scores = judge.scores([(i.prompt, i.a) for i in items] + [(i.prompt, i.b) for i in items])
        preferred = [preference(a, b) for a, b in zip(scores[: len(items)], scores[len(items) :], strict=True)]
    else:
        preferred = [p.mean for p in judge.pairwise(items, draw)]
    return [
        {
            "id": answer.id,
            "preference": to_json(value),
            "score": score if score is None else round(score, 6),
            "reference_score": against if against is None else round(against, 6),
            "length": len(answer.output),
            "reference_length": len(reference.output),
        }
        for answer, reference, value, score, against in zip(
            ours, references, preferred, scores[: len(items)], scores[len(items) :], strict=True
        )
    ]


def win_rate(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean preference in percent with its standard error over prompts."""
    return mean_and_error([row["preference"] for row in rows], 100)


def read_difficulty(path: Path) -> dict[int, float]:
    """Instruction difficulties by position in the prompt set, from a CSV with index and instruction_difficulty."""
    import csv

    with path.open(encoding="utf-8", newline="") as lines:
        return {int(row["index"]): float(row["instruction_difficulty"]) for row in csv.DictReader(lines)}


def length_controlled(
    annotations: Mapping[str, Sequence[Row]], difficulty: Mapping[int, float] | None = None
) -> dict[str, dict[str, Any]]:
    """Length-controlled win rate in percent of each model, by alpaca_eval's GLM.

    ``annotations``: rows of `pairwise` by model, in the order of the prompt set. stderr is the sandwich standard
    error over prompts of the same logistic model without its (weak) penalty, so it holds the noise of the
    annotations; the package's own figure is only the spread of predictions over prompts, zero without difficulties.
    """
    import warnings
    from unittest import mock

    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package imports pkg_resources
        from alpaca_eval.metrics import glm_winrate

    out = {}
    for model, rows in annotations.items():
        positions = [i for i, row in enumerate(rows) if row["preference"] is not None]
        frame = pd.DataFrame(
            {
                # 1 + p, as the package has it: 2 means that output_2, the model's, wins.
                "preference": [1.0 + rows[i]["preference"] for i in positions],
                # Only the lengths of the outputs matter.
                "output_1": ["x" * rows[i]["reference_length"] for i in positions],
                "output_2": ["x" * rows[i]["length"] for i in positions],
                "generator_1": "reference",
                "generator_2": f"model: {model}",
            },
            index=positions,
        )
        gap = np.array([rows[i]["reference_length"] - rows[i]["length"] for i in positions], dtype=np.float64)
        if len(positions) < 10 or not gap.any() or gap.std() == 0:
            out[model] = win_rate(rows)  # no length differences to control for, or nothing to fit
            continue
        hard = {i: (difficulty or {}).get(i, 0.0) for i in range(len(rows))}
        table = pd.DataFrame({"model": "", "index": list(hard), "instruction_difficulty": list(hard.values())})
        local = io.StringIO(table.to_csv(index=False))
        with (
            mock.patch.object(glm_winrate, "hf_hub_download", return_value=local),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # scikit-learn's on the package's arguments
            metrics = glm_winrate.get_length_controlled_winrate(
                frame,
                glm_name="length_controlled_noreg" if difficulty else "length_controlled_minimal",
                save_weights_dir=None,
                is_add_glm_preference_inplace=False,
                is_warn_extreme_changes=False,
            )
        features = [np.tanh(gap / gap.std(ddof=1)), np.ones(len(gap))]
        if difficulty:
            features.insert(1, np.array([hard[i] for i in positions]))
        out[model] = {
            "value": float(metrics["length_controlled_winrate"]),
            "stderr": 100 * _sandwich_error(np.stack(features, 1), frame["preference"].to_numpy() - 1),
            "n": len(positions),
        }
    return out


def _sandwich_error(x: np.ndarray, y: np.ndarray) -> float:
    """Standard error of mean sigmoid(x0 w), x0 being x with column 0 (length) at zero; x [n, k], y [n] in [0, 1].

    A fractional logistic fit by Newton's method with a slight ridge, and the delta method on its robust covariance.
    """
    n, k = x.shape
    ridge = np.eye(k) * 1e-3
    w = np.zeros(k)
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ w))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + ridge
        step = np.linalg.solve(hessian, x.T @ (y - p) - ridge @ w)
        w += step
        if np.abs(step).max() < 1e-10:
            break
    influence = np.linalg.solve(hessian, (x * (y - p)[:, None]).T).T
    x0 = x.copy()
    x0[:, 0] = 0
    p0 = 1 / (1 + np.exp(-x0 @ w))
    gradient = ((p0 * (1 - p0))[:, None] * x0).mean(0)
    # Difficulties differ over prompts, so does the prediction that is averaged.
    return float(np.sqrt((((influence @ gradient) * n + (p0 - p0.mean())) ** 2).sum()) / n)
