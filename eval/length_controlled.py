"""AlpacaEval 2's length-controlled win rate: what the win rate would be at no length difference.

preference ~ sigmoid(length * tanh(standardised length difference) + difficulty * instruction difficulty + intercept),
read off at no length difference. Which model is fitted depends on what is at hand, and each figure says which:

- `official`: the alpaca-eval package's own fit (metrics/glm_winrate.py) on the hub's `df_gamed.csv`, which holds the
  difficulty of each of the 805 instructions, and annotated rows of two "gamed" baselines that the fit is drawn to.
- `simulated baselines`: the same fit on difficulties alone (a CSV with index and instruction_difficulty), with the
  gamed rows simulated from published figures of the two baselines.
- `no difficulties`: without any, one logistic fit by maximum likelihood, without difficulty and without penalty (the
  package's `length_controlled_minimal` has an L1 penalty that draws rates near zero to 50).
- `raw`: the raw win rate, where there is nothing to fit; `reason` says why.

Value and error are of one fit: an item's influence is the derivative of the value by the item's weight, at the
coefficients of that very fit. value + influence are scores of items whose mean is the value, so length-controlled win
rates have the intervals, pairs and seeds of any other metric. Difficulties can also be fitted anew from annotations of
several models (`fit_difficulty`). Importing alpaca_eval takes 3 s of CPU; only the first two need it. Deterministic:
the package fixes its random state.
"""

import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.benchmarks.alpaca_eval import Row
from eval.statistics import mean_and_error
from sso.config import OFFICIAL_DIFFICULTY
from sso.errors import InputError
from sso.hub import fetch
from sso.records import iter_json_lines

if TYPE_CHECKING:
    import pandas as pd

GAMED = ((2402, -1.5835, 0.8335), (1136, -1.6425, 0.6836))
"""gpt4_1106_preview_verbose and _concise: mean length (leaderboard), and the official coefficients of length and
difficulty (alpaca_eval's repository, metrics/weights/weighted_alpaca_eval_gpt4_turbo/length_controlled_v1)."""
WEIGHT = 0.2 / 2
"""Weight of a gamed baseline's row in the fit, where a row of an own answer weighs 1; alpaca_eval's value."""
OFFICIAL, SIMULATED, NO_DIFFICULTIES, RAW = "official", "simulated baselines", "no difficulties", "raw"


@dataclass(frozen=True)
class Table:
    """What the package would read as df_gamed.csv: the columns that it uses, difficulties by `index`."""

    frame: "pd.DataFrame"
    official: bool
    """Whether the rows of the gamed baselines are the package's own; else they are simulated."""

    def difficulty(self, positions: Sequence[int]) -> np.ndarray:
        """Difficulties of the prompts at these positions of the prompt set."""
        known = self.frame.drop_duplicates("index").set_index("index")["instruction_difficulty"]
        return known.loc[list(positions)].to_numpy(dtype=np.float64)


def read_table(source: str | Path, reference_lengths: Sequence[int]) -> Table:
    """The table of ``source``: `hub` (or its hf:// name), a copy of df_gamed.csv, or a CSV of difficulties.

    The latter has index and instruction_difficulty; ``reference_lengths`` (characters, by position) serve the
    simulation. Raises InputError, also where a prompt has no difficulty.
    """
    import pandas as pd

    path = fetch(OFFICIAL_DIFFICULTY if str(source) == "hub" else str(source))
    try:
        frame = pd.read_csv(path)
    except (ValueError, pd.errors.ParserError) as error:  # not UTF-8, empty, rows of unlike length
        raise InputError(f"{source}: not a readable CSV file ({' '.join(str(error).split())[:160]}).") from error
    if missing := [c for c in ("index", "instruction_difficulty") if c not in frame]:
        raise InputError(f"{source}: lacks the column `{missing[0]}`, which a file of difficulties must have.")
    hard = dict(zip(frame["index"], frame["instruction_difficulty"], strict=True))
    if unknown := [i for i in range(len(reference_lengths)) if not np.isfinite(hard.get(i, np.nan))]:
        raise InputError(
            f"{source}: no difficulty of prompt {unknown[0]} ({len(unknown)} are missing); "
            "give the prompt set's own file."
        )
    if {"preference", "std_delta_len", "not_gamed_baseline"} <= set(frame):
        return Table(frame, True)
    return simulated_baselines([hard[i] for i in range(len(reference_lengths))], reference_lengths)


def simulated_baselines(difficulty: Sequence[float] | np.ndarray, reference_lengths: Sequence[int]) -> Table:
    """Stand-ins for the two gamed baselines' rows, whose annotations only the hub has.

    Their lengths are the reference's times the ratio of the mean lengths, with 10% noise (seed 0); their preferences
    are what their own official coefficients say, without the intercept, which the official fit denies them too. Of
    the official regularisation that keeps where it pulls and about how strongly.
    """
    import pandas as pd

    hard, lengths = np.asarray(difficulty, dtype=np.float64), np.asarray(reference_lengths, dtype=np.float64)
    if len(lengths) < LEAST:
        return Table(pd.DataFrame(), False)  # nothing is fitted to so few
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
        raise InputError(
            f"{path}: not a file of alpaca_eval's annotations ({type(error).__name__}: {error})."
        ) from error


@dataclass(frozen=True)
class Rate:
    """A length-controlled win rate in percent; ``model`` says of which fit, ``reason`` why it is the raw one."""

    value: float | None
    items: dict[int, float]
    """Value + influence by row, where its preference was read; their mean is the value."""
    model: str
    reason: str | None = None
    unreadable: int = 0

    def as_dict(self) -> dict[str, Any]:
        """An entry of scores.json; stderr is the standard error over prompts."""
        out = mean_and_error([*self.items.values()]) | {"model": self.model}
        out |= {"reason": self.reason} if self.reason else {}
        return out | ({"unreadable": self.unreadable} if self.unreadable else {})


LEAST = 10
"""Read annotations below which nothing is fitted; wins and losses below which a length weight of one's own says more
of single answers than of length (of 2 wins in 805 fits make anything between 0 and .25)."""


def length_controlled(rows: Sequence[Row], table: Table | None = None) -> Rate:
    """The length-controlled win rate of one model's annotations, one a prompt in the prompt set's order.

    ``table``: difficulties and gamed rows for the package's model; None: one fit without.
    """
    positions = [i for i, row in enumerate(rows) if row["preference"] is not None]
    preference = np.array([rows[i]["preference"] for i in positions], dtype=np.float64)
    gap = np.array([rows[i]["reference_length"] - rows[i]["length"] for i in positions], dtype=np.float64)

    def rate(scores: np.ndarray, model: str, reason: str | None = None) -> Rate:
        value = float(scores.mean()) if len(scores) else None
        items = dict(zip(positions, map(float, scores), strict=True))
        return Rate(value, items, model, reason, len(rows) - len(positions))

    if reason := _unfit(preference, gap):
        return rate(100 * preference, RAW, reason)
    if not gap.any():
        # Nothing to control for: the fit without difficulties is the raw rate.
        return rate(100 * preference, RAW if table else NO_DIFFICULTIES, "equal lengths" if table else None)
    length = np.tanh(gap / gap.std(ddof=1))
    if length.std() < 0.01:
        # All outputs are far longer, or far shorter: that is not to be told from the intercept.
        return rate(100 * preference, RAW, "no output of about the reference's length")
    if table is None:
        x = np.stack([length, np.ones(len(gap))], 1)
        if min(preference.sum(), (1 - preference).sum()) < LEAST:
            return rate(100 * preference, RAW, f"fewer than {LEAST} wins or losses")
        if _separated(length, preference):
            return rate(100 * preference, RAW, "length and preference are separated")
        fitted = _maximum_likelihood(x, preference)
        return rate(_scores(x, preference, fitted), NO_DIFFICULTIES)
    weights = _package_weights([rows[i] for i in positions], positions, preference, table)
    # The package's intercept of a model whose penalty leaves none is no estimate of its preferences.
    if weights[2] == 0:
        return rate(100 * preference, RAW, "the package's penalty leaves no intercept")
    x = np.stack([length, table.difficulty(positions), np.ones(len(gap))], 1)
    drawn = table.frame[~table.frame["not_gamed_baseline"].astype(bool)]
    columns = [np.tanh(drawn["std_delta_len"]), drawn["instruction_difficulty"], np.zeros(len(drawn))]
    return rate(_scores(x, preference, weights, np.stack(columns, 1)), OFFICIAL if table.official else SIMULATED)


def _unfit(preference: np.ndarray, gap: np.ndarray) -> str | None:
    """Why a model can't be fitted; None where it can."""
    if len(preference) < LEAST:
        return f"fewer than {LEAST} read annotations"
    if preference.min() == preference.max():
        return "all preferences are equal"
    if gap.any() and gap.min() == gap.max():
        return "all length differences are equal"
    return None


def _separated(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether a threshold of ``x`` parts wins from losses, so that a logistic fit has no maximum."""
    won, lost = x[y > 0], x[y < 1]
    return bool(lost.max() <= won.min() or won.max() <= lost.min())


def _maximum_likelihood(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coefficients of a logistic fit to y in [0, 1], by Newton's method with halved steps."""
    from scipy.special import expit

    def loss(w: np.ndarray) -> float:
        z = x @ w
        return float((np.logaddexp(0, z) - y * z).sum())

    w = np.zeros(x.shape[1])
    for _ in range(200):
        p = expit(x @ w)
        gradient = x.T @ (y - p)
        step = np.linalg.lstsq((x * (p * (1 - p))[:, None]).T @ x, gradient, rcond=None)[0]
        while loss(w + step) > loss(w) and np.abs(step).max() > 1e-12:
            step /= 2
        w = w + step
        if np.abs(step).max() < 1e-12:
            break
    return w


def _scores(x: np.ndarray, y: np.ndarray, w: np.ndarray, gamed: np.ndarray | None = None) -> np.ndarray:
    """value + influence of each row, in percent; the value is the mean of sigmoid(x0 w), x0 being x at length 0.

    ``x`` [n, k], its first column the length; ``gamed`` rows stand in the curvature with their weight. An L1 penalty
    is linear but at zero, where it holds a coefficient fast: so it adds no curvature, and a coefficient that is zero
    has no influence. The scale of the length differences counts as given.
    """
    from scipy.special import expit

    p, free = expit(x @ w), (w != 0) | (gamed is None)
    rows = x[:, free]
    curvature = (rows * (p * (1 - p))[:, None]).T @ rows
    if gamed is not None:
        q = expit(gamed @ w)
        curvature += WEIGHT * (gamed[:, free] * (q * (1 - q))[:, None]).T @ gamed[:, free]
    x0 = x.copy()
    x0[:, 0] = 0
    p0 = expit(x0 @ w)
    gradient = ((p0 * (1 - p0))[:, None] * x0[:, free]).mean(0)
    influence = len(y) * (rows * (y - p)[:, None]) @ np.linalg.solve(curvature, gradient)
    # Rows are drawn, and difficulties differ over them: so does the prediction that is averaged. Under a penalty the
    # influences have a mean; with the number of rows fixed it drops out.
    return 100 * (p0 + influence - influence.mean())


def _package_weights(rows: Sequence[Row], positions: list[int], preference: np.ndarray, table: Table) -> np.ndarray:
    """The package's coefficients of length, difficulty and intercept."""
    import tempfile
    from unittest import mock

    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package imports pkg_resources
        from alpaca_eval.metrics import glm_winrate

    frame = pd.DataFrame(
        {
            "preference": 1 + preference,
            # Only the lengths of the outputs matter.
            "output_1": ["x" * row["reference_length"] for row in rows],
            "output_2": ["x" * row["length"] for row in rows],
            "generator_1": "reference",
            "generator_2": "model",
        },
        index=positions,
    )
    local = io.StringIO(table.frame.to_csv(index=False))
    with (
        mock.patch.object(glm_winrate, "hf_hub_download", return_value=local),
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # scikit-learn's on the package's arguments
        glm_winrate.get_length_controlled_winrate(
            frame,
            glm_name="length_controlled_v1",
            save_weights_dir=folder,
            is_add_glm_preference_inplace=False,
            is_warn_extreme_changes=False,
        )
        (saved,) = Path(folder).rglob("*.csv")
        weights = pd.read_csv(saved, index_col=0).iloc[0]
    return weights[["np.tanh(std_delta_len)", "instruction_difficulty", "not_gamed_baseline.astype(float)"]].to_numpy()


def check_alike(annotations: Sequence[Sequence[Row]]) -> None:
    """Raises InputError where annotations can't be of the same prompts, or are of too few to fit anything."""
    if len({len(rows) for rows in annotations}) != 1:
        raise InputError("difficulties: the annotation files must hold the same prompts; their numbers of rows differ.")
    if len(annotations[0]) < LEAST:
        raise InputError(
            f"difficulties: the annotation files hold fewer than {LEAST} prompts, too few for a fit; give more."
        )


def fit_difficulty(annotations: Sequence[Sequence[Row]], spread: float = 1.5) -> np.ndarray:
    """Instruction difficulties [prompts] from annotations of several models on the same prompts, in the same order.

    As the benchmark's authors fitted them: one logistic model of all annotations, each model with a length weight and
    an intercept of its own, the difficulty term's weight 1. Few models leave a prompt's difficulty open, so it has a
    normal prior; ``spread`` 1.5 is the standard deviation of the official ones. Raises InputError on unlike files.
    """
    from scipy.optimize import minimize

    check_alike(annotations)
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
