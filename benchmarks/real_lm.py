"""The real world's tables of docs/real_lm.md: each arm with its tries, and what tells the arms apart.

    python -m benchmarks.real_lm results/real_lm_cpu

`no answer` counts the answers that the oracle takes for none: less than five words, or a loop. A difference is of one
backbone, with its 95% interval; a try is a learning rate and its win rate on the tuning prompts, the chosen one first.
"""

import argparse
from pathlib import Path

from eval.items import read_json
from report.collect import collect
from report.measured import Measured
from report.render import cell, markdown_rows
from sso.config import load
from sso.records import Answer, read
from sso.worlds.real.oracle import is_answer
from workflow.experiment import Grid

COLUMNS = {
    "alpaca_eval2_wr": ("win rate, %", 1),
    "quality": ("quality", 1),
    "accuracy": ("pair accuracy", 3),
    "mean_probability": ("mean probability", 3),
    "nll_rejected": ("NLL of y-", 2),
    "ifeval": ("IFEval, %", 1),
    "steering_effect": ("effect of a bad principle", 1),
}
AGAINST = ("base", "pbaa")


def tries(folder: Path) -> str:
    """The learning rate of trained weights, and the others that were tried."""
    if not (folder / "tuning.json").is_file():
        return ""
    tuning = read_json(folder / "tuning.json")
    found = {t["learning_rate"]: t.get("win_rate") for t in tuning["tries"]}
    order = sorted(found, key=lambda rate: rate != tuning["learning_rate"])
    return ", ".join(f"{rate:g}" + ("" if found[rate] is None else f" ({100 * found[rate]:.1f})") for rate in order)


def no_answer(answers: Path) -> str:
    """How many answers are none, of all."""
    rows = read(answers, Answer)
    return f"{sum(not is_answer(row.output) for row in rows)} of {len(rows)}"


def main(argv: list[str] | None = None) -> None:
    """Print the tables of the experiment's first backbone; answers and tries are the first seed's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of an experiment in the real world, finished or not")
    folder = parser.parse_args(argv).results
    if not (folder / "config.json").is_file():
        parser.error(f"{folder}: no config.json; give the folder of an experiment.")
    experiment = load(folder / "config.json")
    measured = Measured(collect(Grid(experiment), folder))
    backbone, seeds = next(iter(experiment.backbones)), len(experiment.seeds)
    at = folder / backbone / f"s{experiment.seeds[0]}"
    arms = [name for name in sorted(experiment.arms, key="base".__ne__) if (at / "eval" / name / "judged").is_dir()]

    rows = [["arm (pairs)", "learning rate (win rate)", *(name for name, _ in COLUMNS.values()), "no answer"]]
    for arm in arms:
        found = {metric: measured.estimate(backbone, arm, 0, metric) for metric in COLUMNS}
        label, pairs = measured.label(arm), found["accuracy"]
        answers = at / "eval" / arm / "answers" / "answers.jsonl"
        rows.append(
            [
                f"{label} ({pairs.n})" if pairs else label,
                tries(at / "policy" / arm),
                *(cell(one, COLUMNS[metric][1], seeds) if one else "" for metric, one in found.items()),
                no_answer(answers),
            ]
        )
    print(markdown_rows(rows))

    asked = [(other, metric) for other in AGAINST if other in arms for metric in ("alpaca_eval2_wr", "quality")]
    rows = [["arm", *(f"{COLUMNS[metric][0]} - {measured.label(other)}'s" for other, metric in asked)]]
    for arm in arms:
        differences = [
            measured.difference(backbone, (arm, 0), (other, 0), metric) if arm != other else None
            for other, metric in asked
        ]
        rows.append([measured.label(arm), *(cell(one, 1, seeds) if one else "" for one in differences)])
    print(markdown_rows(rows), end="")


if __name__ == "__main__":
    main()
