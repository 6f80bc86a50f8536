"""IFEval: instructions that a program can check."""

from dataclasses import replace

from eval.benchmarks.record import Column, LmEval, Load, Rows
from sso.worlds.real.checkers import NEEDS_PUNKT, load_checkers


def prepare(rows: Rows | None) -> None:
    """Import the checkers, with what these rows need, or all where they are not known yet."""
    load_checkers(NEEDS_PUNKT if rows is None else [name for row in rows for name in row["instruction_id_list"]])


def scores(samples: Rows) -> list[float]:
    """A prompt's term in the mean of four accuracies, of which two are over instructions, not prompts.

    It is linearised (delta method), so that value and standard error are those of a plain mean.
    """
    mean_count = sum(len(s["inst_level_strict_acc"]) for s in samples) / len(samples)
    found = [0.0] * len(samples)
    for kind in ("strict", "loose"):
        hits = [hit for s in samples for hit in s[f"inst_level_{kind}_acc"]]
        accuracy = sum(hits) / len(hits)
        for i, s in enumerate(samples):
            own = s[f"inst_level_{kind}_acc"]
            instructions = accuracy + (sum(own) - accuracy * len(own)) / mean_count
            found[i] += (s[f"prompt_level_{kind}_acc"] + instructions) / 4
    return found


COLUMNS = ("key", "prompt", "instruction_id_list", "kwargs")
IFEVAL = LmEval(
    "ifeval",
    stock="ifeval",
    folder="ifeval",
    columns=COLUMNS,
    column=Column("IFEval"),
    load=Load(541, 60, 400),
    score="ifeval",
    own_examples=True,
    micro=COLUMNS,
    prepare=prepare,
    scores=scores,
)
NEW_KINDS = replace(IFEVAL, name="ifeval_new_kinds", column=Column("IFEval, new kinds"), load=None, only_world=True)
"""The same on constraints of kinds that nothing was trained on, which only the real world has (docs/real_lm.md)."""
BENCHMARKS = (IFEVAL, NEW_KINDS)
