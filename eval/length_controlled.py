"""AlpacaEval 2's length-controlled win rate, by the alpaca-eval package's own model (metrics/glm_winrate.py).

preference ~ sigmoid(length * tanh(standardised length difference) + difficulty * instruction difficulty + intercept),
read off at no length difference. The package takes two things from the hub's `df_gamed.csv`: the difficulty of each of
the 805 instructions, and annotated rows of two "gamed" baselines, towards which the fit is drawn. What is at hand
decides:

- `df_gamed.csv`, from the hub or a local copy: the official model.
- Difficulties alone (a CSV with index and instruction_difficulty): the official model, with the gamed rows simulated
  from published figures of the two baselines (`simulated_baselines`).
- Nothing: `length_controlled_minimal`, without a difficulty term.

Difficulties can also be fitted anew from annotations of several models (`fit_difficulty`). Importing alpaca_eval takes
3 s of CPU, so many models are done in one process. Deterministic: the package fixes its random state.
"""

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.alpaca_eval import Row, mean_and_error
from sso.errors import InputError
from sso.records import iter_json_lines

if TYPE_CHECKING:
    import pandas as pd

GAMED = ((2402, -1.5835, 0.8335), (1136, -1.6425, 0.6836))
"""gpt4_1106_preview_verbose and _concise: mean length (leaderboard), and the official coefficients of length and
difficulty (alpaca_eval's repository, metrics/weights/weighted_alpaca_eval_gpt4_turbo/length_controlled_v1)."""
WEIGHT = 0.2 / 2
"""Of a gamed row beside an own one, as the package has it."""


@dataclass(frozen=True)
class Table:
    """What the package would read as df_gamed.csv: the columns that it uses, difficulties by `index`."""

    frame: "pd.DataFrame"
    official: bool
    """False: the rows of the gamed baselines are simulated."""

    def difficulty(self) -> np.ndarray:
        """By position in the prompt set."""
        return self.frame.drop_duplicates("index").set_index("index")["instruction_difficulty"].sort_index().to_numpy()


def read_table(source: str | Path, reference_lengths: Sequence[int]) -> Table:
    """The table of ``source``: `hub`, a copy of df_gamed.csv, or a CSV with index and instruction_difficulty.

    ``reference_lengths`` (characters, by position) serve the simulation. Raises InputError.
    """
    import pandas as pd

    if str(source) == "hub":
        from huggingface_hub import hf_hub_download

        try:
            source = hf_hub_download("tatsu-lab/alpaca_eval", "df_gamed.csv", repo_type="dataset")
        except Exception as error:
            raise InputError(
                f"--difficulty hub: df_gamed.csv of tatsu-lab/alpaca_eval can't be had ({type(error).__name__}); give "
                "a copy of it, or a CSV with index and instruction_difficulty."
            ) from error
    if not Path(source).is_file():
        raise InputError(f"{source}: no such file; give a CSV of instruction difficulties, or `hub`.")
    try:
        frame = pd.read_csv(source)
    except (ValueError, pd.errors.ParserError) as error:  # not UTF-8, empty, rows of unlike length
        raise InputError(f"{source}: no CSV ({' '.join(str(error).split())[:160]}).") from error
    if missing := [c for c in ("index", "instruction_difficulty") if c not in frame]:
        raise InputError(f"{source}: lacks the column `{missing[0]}`.")
    if {"preference", "std_delta_len", "not_gamed_baseline"} <= set(frame):
        return Table(frame, True)
    hard = dict(zip(frame["index"], frame["instruction_difficulty"], strict=True))
    if unknown := [i for i in range(len(reference_lengths)) if i not in hard]:
        raise InputError(f"{source}: no difficulty of prompt {unknown[0]} ({len(unknown)} are missing).")
    return simulated_baselines([hard[i] for i in range(len(reference_lengths))], reference_lengths)


def simulated_baselines(difficulty: Sequence[float] | np.ndarray, reference_lengths: Sequence[int]) -> Table:
    """Stand-ins for the two gamed baselines' rows, whose annotations only the hub has.

    Their lengths are the reference's times the ratio of the mean lengths, with 10% noise (seed 0); their preferences
    are what their own official coefficients say, without the intercept, which the official fit denies them too. Of
    the official regularisation that keeps where it pulls and about how strongly.
    """
    import pandas as pd

    hard, lengths = np.asarray(difficulty, dtype=np.float64), np.asarray(reference_lengths, dtype=np.float64)
    rng, frames = np.random.default_rng(0), []
    for mean_length, length_weight, difficulty_weight in GAMED:
        own = lengths * mean_length / lengths.mean() * np.exp(0.1 * rng.normal(size=len(lengths)))
        gap = (lengths - own) / (lengths - own).std(ddof=1)
        preference = 1 / (1 + np.exp(-length_weight * np.tanh(gap) - difficulty_weight * hard))
        columns = {"index": range(len(hard)), "preference": preference, "std_delta_len": gap}
        frames.append(pd.DataFrame({"model": "", **columns, "instruction_difficulty": hard}))
    return Table(pd.concat(frames).assign(not_gamed_baseline=False), False)


def read_annotations(path: Path) -> list[Row]:
    """Rows of an annotation file: alpaca_eval's annotations.json, or pairwise.jsonl of `sso-eval judge`."""
    if path.suffix == ".jsonl":
        return [row for _, row in iter_json_lines(path)]
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [
            {
                # The package has 1..2, where 2 means that output_2, the model's, wins, and 0 for a draw.
                "preference": None if e["preference"] is None else (e["preference"] or 1.5) - 1,
                "length": len(e["output_2"]),
                "reference_length": len(e["output_1"]),
            }
            for e in entries
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no annotations of alpaca_eval ({type(error).__name__}: {error}).") from error


def length_controlled(
    annotations: Mapping[str, Sequence[Row]], table: Table | Mapping[str, Table] | None = None
) -> dict[str, dict[str, Any]]:
    """Length-controlled win rate in percent of each model; ``table`` of all, or one a model.

    stderr is the sandwich standard error over prompts of the same weighted logistic model without its (weak) penalty,
    so it holds the noise of the annotations; the package's own figure is only the spread of predictions over prompts.
    A model without length differences, or with fewer than 10 read annotations, gets its raw win rate.
    """
    from unittest import mock

    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package imports pkg_resources
        from alpaca_eval.metrics import glm_winrate

    out = {}
    for model, rows in annotations.items():
        positions = [i for i, row in enumerate(rows) if row["preference"] is not None]
        preference = np.array([rows[i]["preference"] for i in positions], dtype=np.float64)
        gap = np.array([rows[i]["reference_length"] - rows[i]["length"] for i in positions], dtype=np.float64)
        if len(positions) < 10 or not gap.any() or gap.std() == 0:
            out[model] = mean_and_error(preference.tolist(), 100) | {"model": "raw"}
            continue
        frame = pd.DataFrame(
            {
                "preference": 1 + preference,
                # Only the lengths of the outputs matter.
                "output_1": ["x" * rows[i]["reference_length"] for i in positions],
                "output_2": ["x" * rows[i]["length"] for i in positions],
                "generator_1": "reference",
                "generator_2": f"model: {model}",
            },
            index=positions,
        )
        own = table.get(model) if isinstance(table, Mapping) else table
        read = own.frame if own else pd.DataFrame({"model": "", "index": range(len(rows)), "instruction_difficulty": 0})
        local = io.StringIO(read.to_csv(index=False))
        with mock.patch.object(glm_winrate, "hf_hub_download", return_value=local), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn's on the package's arguments
            metrics = glm_winrate.get_length_controlled_winrate(
                frame,
                glm_name="length_controlled_v1" if own else "length_controlled_minimal",
                save_weights_dir=None,
                is_add_glm_preference_inplace=False,
                is_warn_extreme_changes=False,
            )
        features = [np.tanh(gap / gap.std(ddof=1)), np.ones(len(gap))]
        prior = None
        if own:
            features.insert(1, own.difficulty()[positions])
            drawn = own.frame[~own.frame["not_gamed_baseline"].astype(bool)]
            columns = [np.tanh(drawn["std_delta_len"]), drawn["instruction_difficulty"], np.zeros(len(drawn))]
            prior = (np.stack(columns, 1), drawn["preference"].to_numpy(dtype=np.float64))
        kind = ("official" if own.official else "simulated baselines") if own else "minimal"
        out[model] = {
            "value": float(metrics["length_controlled_winrate"]),
            "stderr": 100 * _sandwich_error(np.stack(features, 1), preference, prior),
            "n": len(positions),
            "model": kind,
        }
    return out


def _sandwich_error(x: np.ndarray, y: np.ndarray, prior: tuple[np.ndarray, np.ndarray] | None = None) -> float:
    """Standard error of mean sigmoid(x0 w), x0 being x with column 0 (length) at zero; x [n, k], y [n] in [0, 1].

    A fractional logistic fit by Newton's method with a slight ridge, drawn to the rows ``prior``, and the delta method
    on its robust covariance.
    """
    n, k = x.shape
    rows, labels, weights = x, y, np.ones(n)
    if prior is not None:
        rows, labels = np.concatenate([x, prior[0]]), np.concatenate([y, prior[1]])
        weights = np.concatenate([weights, np.full(len(prior[1]), WEIGHT)])
    ridge = np.eye(k) * 1e-3
    w = np.zeros(k)
    for _ in range(50):
        p = 1 / (1 + np.exp(-rows @ w))
        hessian = (rows * (weights * p * (1 - p))[:, None]).T @ rows + ridge
        step = np.linalg.solve(hessian, rows.T @ (weights * (labels - p)) - ridge @ w)
        w += step
        if np.abs(step).max() < 1e-10:
            break
    influence = np.linalg.solve(hessian, (x * (y - p[:n])[:, None]).T).T
    x0 = x.copy()
    x0[:, 0] = 0
    p0 = 1 / (1 + np.exp(-x0 @ w))
    gradient = ((p0 * (1 - p0))[:, None] * x0).mean(0)
    # Difficulties differ over prompts, so does the prediction that is averaged.
    return float(np.sqrt((((influence @ gradient) * n + (p0 - p0.mean())) ** 2).sum()) / n)


def fit_difficulty(annotations: Sequence[Sequence[Row]], spread: float = 1.5) -> np.ndarray:
    """Instruction difficulties [prompts] from annotations of several models on the same prompts, in the same order.

    As the benchmark's authors fitted them: one logistic model of all annotations, each model with a length weight and
    an intercept of its own, the difficulty term's weight 1. Few models leave a prompt's difficulty open, so it has a
    normal prior; ``spread`` 1.5 is the standard deviation of the official ones. Raises InputError on unlike files.
    """
    from scipy.optimize import minimize

    if len({len(rows) for rows in annotations}) != 1:
        raise InputError("difficulties: the annotation files must hold the same prompts; their numbers of rows differ.")
    prefer = np.array([[np.nan if r["preference"] is None else r["preference"] for r in rows] for rows in annotations])
    gap = np.array([[r["reference_length"] - r["length"] for r in rows] for rows in annotations], dtype=np.float64)
    known = ~np.isnan(prefer)
    models, prompts = prefer.shape
    length = np.tanh(gap / np.maximum(gap.std(1, ddof=1), 1e-9)[:, None])

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        slope, intercept, hard = w[:models], w[models : 2 * models], w[2 * models :]
        z = slope[:, None] * length + intercept[:, None] + hard
        p = 1 / (1 + np.exp(-z))
        off = np.where(known, p - prefer, 0)
        value = np.where(known, np.logaddexp(0, z) - np.nan_to_num(prefer) * z, 0).sum()
        gradient = np.concatenate([(off * length).sum(1), off.sum(1), off.sum(0) + hard / spread**2])
        return value + (hard**2).sum() / (2 * spread**2), gradient

    return minimize(loss, np.zeros(2 * models + prompts), jac=True, method="L-BFGS-B").x[2 * models :]
