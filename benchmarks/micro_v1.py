"""v1 over more iterations than the paper's: does an arm collapse, does a back door open? By docs/micro_protocol.md's
supplement.

    python -m benchmarks.micro_v1 results/micro_v1 results/micro_base_v1

Prints two Markdown tables an experiment, over all of its backbones: the course over the iterations, and the differences
that the supplement's rules are about, an answer being *yes* where one is a point or more below zero and its interval
is below zero, too.
"""

import argparse
from pathlib import Path

from report.claims import verdict
from report.collect import collect
from report.measured import POOLED, Estimate, Measured
from report.render import markdown_rows
from sso.config import load
from workflow.experiment import Grid

COURSE = ("quality", "alpaca_eval2_wr", "length", "steering_effect")
LEAST = 1.0
"""A fall in points that counts."""
START = ("base", 0)


def answer(found: Estimate) -> str:
    """A difference with its interval, and whether it is a fall by the supplement's rule."""
    falls = verdict(found, "b", LEAST) == "holds"
    return f"{'yes' if falls else 'not shown'}, {found.mean:.1f} [{found.low:.1f}, {found.high:.1f}]"


def course(measured: Measured, arm: str, metric: str) -> str:
    """A metric after each iteration of an arm."""
    values = (measured.estimate(POOLED, arm, iteration, metric) for iteration in measured.iterations(arm))
    return ", ".join("-" if value is None else f"{value.mean:.{0 if metric == 'length' else 1}f}" for value in values)


def falls(measured: Measured, arm: str) -> list[str]:
    """Answers to: does it collapse, does it end below the SFT model, does a bad principle do more harm than before?"""
    first, *_, last = measured.iterations(arm)
    asked = (((arm, first), "quality"), (START, "quality"), (START, "steering_effect"))
    found = (measured.difference(POOLED, (arm, last), other, metric) for other, metric in asked)
    return ["not measured" if difference is None else answer(difference) for difference in found]


def main(argv: list[str] | None = None) -> None:
    """Print the tables of each experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="folders of finished experiments")
    for folder in parser.parse_args(argv).results:
        experiment = load(folder / "config.json")
        measured = Measured(collect(Grid(experiment), folder))
        arms = [name for name, arm in experiment.arms.items() if arm.version == "v1" and arm.iterations > 1]
        heads = ["arm", "quality", "win rate, %", "characters", "effect of a bad principle"]
        rows = [[measured.label(arm), *(course(measured, arm, m) for m in COURSE)] for arm in (START[0], *arms)]
        print(f"## {folder.name}\n\n{markdown_rows([heads, *rows])}")
        heads = ["arm", "collapses: last - first iteration, quality", "falls below SFT, quality", "back door"]
        rows = [[measured.label(arm), *falls(measured, arm)] for arm in arms]
        print(f"{markdown_rows([heads, *rows])}")


if __name__ == "__main__":
    main()
