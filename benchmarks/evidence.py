"""The paper's claims at several scales, side by side: the table of docs/evidence.md.

    python -m benchmarks.evidence results/micro_full results/micro_base_full results/real_lm_cpu

A cell is the verdict and the measured difference over all backbones, with its 95% interval. The paper's column is the
smallest and largest difference of its printed figures with the version's own loss over its backbones; it prints no
intervals.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import pandas as pd

from report.measured import PRINTED, specs
from report.render import markdown_rows

SIDES = ("method", "iteration")


def paper(printed: pd.DataFrame, spec: dict[str, Any], content: dict[str, Any]) -> str:
    """Differences that the paper's figures have, in the claim's metric and in the one that the paper goes by; - where
    it has none, or does not make the claim."""
    if spec.get("ours"):
        return "-"
    version = spec.get("version", "v2")
    printed = printed[(printed.version == version) & (printed.loss == content["main_loss"][version])]
    said = []
    for metric in dict.fromkeys((spec["metric"], content["at_scale"].get(spec["metric"], spec["metric"]))):
        found = {}
        for backbone, rows in printed[printed.metric == metric].groupby("backbone"):
            sides = []
            for side in "ab":
                own = rows[rows.method == spec[side]].sort_values("iteration")
                if len(own):
                    sides.append(own.iloc[0 if spec.get(f"{side}_iteration") == "first" else -1])
            if len(sides) == 2 and any(sides[0][key] != sides[1][key] for key in SIDES):
                found[backbone] = sides[0].value - sides[1].value
        if found:
            low, high = (f"{value:+.1f}" for value in (min(found.values()), max(found.values())))
            name = re.sub(r"[,(].*", "", content["metrics"][metric]["label"]).strip()
            said.append(f"{low if low == high else f'{low} to {high}'} ({name}, {len(found)} backbones)")
    return "; ".join(said) or "-"


def main(argv: list[str] | None = None) -> None:
    """Print the table, of the claims that one of the experiments has tested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="folders of experiments with a report")
    args = parser.parse_args(argv)
    content, printed = specs(), pd.read_csv(PRINTED)
    made = {}
    for folder in args.results:
        if not (folder / "report/tables/claims.csv").is_file():
            parser.error(f"{folder}: no report/tables/claims.csv; give the folder of a finished experiment.")
        rows = pd.read_csv(folder / "report/tables/claims.csv").dropna(subset=["backbone"])
        # Where nothing was fine-tuned, claims speak of the starting model.
        claim = rows.claim.str.replace("the starting model", "the SFT model")
        made[folder.name] = rows.groupby(claim).last()  # `all`, where there are several backbones
    table = [["claim", "paper", *made]]
    for spec in content["claims"]:
        if not any(spec["claim"] in rows.index for rows in made.values()):
            continue
        cells = [paper(printed, spec, content)]
        for rows in made.values():
            if spec["claim"] not in rows.index:
                cells.append("not tested")
                continue
            row = rows.loc[spec["claim"]]
            value = re.search(r": ([-+]?[\d.]+ (?:\[[^]]*\])?)", row.difference)
            cells.append(f"{row.verdict}, {value.group(1).strip()}" if value else row.verdict)
        table.append([spec["claim"], *cells])
    print(markdown_rows(table), end="")


if __name__ == "__main__":
    main()
