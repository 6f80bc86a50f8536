"""The map between the micro-world's two laws: where does SSO's generator help, and by what?

    python -m benchmarks.micro_map                                about 2 CPU-hours

The share of gross flaws, and how far principles are followed (both numbers at once), each go from world a1's value to
world base's in three steps. Each point is a run of config/micro_map.yaml below results/, which goes on where it was
left. Prints a Markdown table: means over both backbones; intervals are the report's, of one seed's queries alone.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from sso.worlds.micro.world import LAWS

STEPS = (0.0, 0.5, 1.0)
COLUMNS = ("accuracy", "mean_probability", "nll_rejected")


def points() -> Iterator[tuple[str, dict[str, float]]]:
    """The experiments' names and their laws."""
    ends = [LAWS["a1"], LAWS["base"]]
    for follow in STEPS:
        for gross in STEPS:
            shares = {"good": follow, "bad": follow, "gross": gross}
            law = {key: (1 - t) * getattr(ends[0], key) + t * getattr(ends[1], key) for key, t in shares.items()}
            yield f"map_follow{round(100 * follow)}_gross{round(100 * gross)}", {k: round(v, 4) for k, v in law.items()}


def difference(report: Path) -> str:
    """SSO's win rate less PBAA's, over both backbones, with its interval."""
    rows = pd.read_csv(report / "tables" / "comparisons.csv")
    (row,) = rows.query("a == 'SSO' and b == 'PBAA' and metric == 'alpaca_eval2_wr' and backbone == 'all'").itertuples()
    return f"{row.difference:.2f} [{row.low:.2f}, {row.high:.2f}]"


def main() -> None:
    """Run what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", default="all")
    parser.add_argument("--results", type=Path, default=Path("results"))
    args = parser.parse_args()
    heads = ["good, bad, gross", "SSO - PBAA, points", "SFT, %", "PBAA, %", "SSO, %"]
    heads += ["PBAA's pairs, right labels, %", "on-policy pairs, right labels, %"]
    heads += ["accuracy: PBAA", "SSO", "mean probability: PBAA", "SSO", "NLL of y-: PBAA", "SSO"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|", flush=True)
    for name, law in points():
        noise = "{" + ", ".join(f"{key}: {value}" for key, value in law.items()) + "}"
        given = [f"experiment={name}", f"world={{noise: {noise}}}"]
        command = ["snakemake", "--cores", args.cores, "--configfile", "config/micro_map.yaml", "--config", *given]
        subprocess.run([sys.executable, "-m", *command], check=True, stdout=sys.stderr)
        report = args.results / name / "report"
        of = pd.read_csv(report / "results.csv").groupby(["arm", "metric"]).value.mean()
        rates = [f"{of[arm, 'alpaca_eval2_wr']:.1f}" for arm in ("base", "pbaa", "sso", "relabelled", "annotated")]
        rest = [f"{of[arm, metric]:.3f}" for metric in COLUMNS for arm in ("pbaa", "sso")]
        print(
            "| " + " | ".join([", ".join(map(str, law.values())), difference(report), *rates, *rest]) + " |", flush=True
        )


if __name__ == "__main__":
    main()
