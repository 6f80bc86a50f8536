"""The real world's tables of docs/real_lm.md: each arm with its tries, and what tells the arms apart.

    python -m benchmarks.real_lm results/real_lm_cpu

`no answer` counts the answers that the oracle takes for none: less than five words, or a loop. A difference is of one
backbone, with its 95% interval; a try is a learning rate and its win rate on the tuning prompts, the chosen one first.
The last table takes differences of win rates on the first seed by clusters: items with one real prompt, or with one
first constraint, are not independent.
"""

import argparse
from collections.abc import Hashable, Mapping
from pathlib import Path

import numpy as np

from eval.items import read_json
from report.collect import collect
from report.measured import Measured
from report.render import cell, markdown_rows
from sso.config import load
from sso.records import Answer, Query, read
from sso.worlds.real.oracle import ConstraintOracle, is_answer
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
AGAINST = ("base", "pbaa", "sso")


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


def clusters(queries: list[Query]) -> dict[str, dict[str, Hashable]]:
    """Id of a query -> what it shares with others, for each way of sharing: its real prompt, its first constraint."""
    oracle = ConstraintOracle()
    found: dict[str, dict[str, Hashable]] = {"real prompt": {}, "first constraint": {}}
    for query in queries:
        asked, text = oracle.read(query.prompt), query.prompt[-1].content
        found["real prompt"][query.id] = text.rstrip().removesuffix("\n\n".join(one.sentence for one in asked))
        found["first constraint"][query.id] = asked[0].sentence
    return found


def clustered(scores: Mapping[str, float], groups: Mapping[str, Hashable]) -> tuple[float, float, int]:
    """Mean of the scores, half of its 95% interval and the number of clusters: residuals are summed within a cluster,
    t with a degree of freedom less than clusters (Liang and Zeger 1986, with their number's correction)."""
    from scipy.stats import t

    mean = float(np.mean([*scores.values()]))
    sums: dict[Hashable, float] = {}
    for name, score in scores.items():
        sums[groups[name]] = sums.get(groups[name], 0.0) + score - mean
    count = len(sums)
    error = (count / (count - 1) * sum(value**2 for value in sums.values())) ** 0.5 / len(scores)
    return mean, float(t.ppf(0.975, count - 1)) * error, count


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
    print(markdown_rows(rows))

    shared, seed = clusters(read(folder / "data" / "eval.jsonl", Query)), experiment.seeds[0]
    rows = [["a - b, win rate", *(f"by {name} ({len(set(own.values()))})" for name, own in shared.items())]]
    items = {arm: measured.figures([backbone], arm, 0, "alpaca_eval2_wr")[seed][0].items or {} for arm in arms}
    for other in AGAINST:
        for arm in arms:
            if arm == other or other not in arms:
                continue
            difference = {name: score - items[other][name] for name, score in items[arm].items()}
            found = [clustered(difference, own) for own in shared.values()]
            told = (f"{mean:.1f} [{mean - half:.1f}, {mean + half:.1f}]" for mean, half, _ in found)
            rows.append([f"({measured.label(arm)}) - ({measured.label(other)})", *told])
    print(markdown_rows(rows), end="")


if __name__ == "__main__":
    main()
