"""Do two arms differ, benchmark by benchmark, by more than chance? On the same items, with seeds as a second level.

Reads what `answer` and `judge` left. One seed: p is the paired permutation test's. Several: that of the two-way
interval of seeds and items, which holds the noise of seeds too. The verdict goes by Holm's adjustment over all
benchmarks shown.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval import benchmarks
from eval.items import answer_items, bounded, column
from eval.statistics import Interval, holm, mcnemar_p, mean_interval, paired_difference, permutation_p
from sso.errors import InputError
from sso.records import iter_json_lines

if TYPE_CHECKING:
    from rich.table import Table

LEVEL = 0.05


@dataclass(frozen=True)
class BenchmarkDifference:
    """One benchmark of two arms. mcnemar: None where scores are not 0 and 1, or there are several seeds."""

    benchmark: str
    a: Interval
    b: Interval
    difference: Interval
    """a - b; its n counts the items of all seeds."""
    permutation: float
    mcnemar: float | None
    p: float
    holm: float = 1.0

    @property
    def differs(self) -> bool:
        """Whether the arms differ by more than chance."""
        return self.holm < LEVEL


def _folders(run: Path) -> tuple[Path, Path]:
    """Folders of judgements and of answers: those of a run, or the given one and its sibling."""
    if (run / "answers").is_dir() or (run / "judged").is_dir():
        return run / "judged", run / "answers"
    if (run / "lm_eval.json").is_file():
        return run.with_name("judged") if run.name == "answers" else run, run
    if (run / "scores.json").is_file():
        return run, run.with_name("answers")
    raise InputError(
        f"{run}: holds no scores; give a run's folder, or one that `sso-eval answer` or `sso-eval judge` wrote."
    )


def _documents(answers: Path) -> dict[str, dict[str, str]]:
    """Digest of each item's document, by benchmark, where the answers tell it."""
    return {
        benchmarks.metric(path.stem): {r["id"]: r["doc"] for _, r in iter_json_lines(path)}
        for path in sorted((answers / "items").glob("*.jsonl"))
    }


def _paired(a: Path, b: Path) -> dict[str, dict[str, tuple[float, float]]]:
    """Scores of both arms by benchmark and item, of the items that both have."""
    (judged_a, answers_a), (judged_b, answers_b) = _folders(a), _folders(b)
    left, right = answer_items(judged_a, answers_a), answer_items(judged_b, answers_b)
    asked_a, asked_b = _documents(answers_a), _documents(answers_b)
    out = {}
    for benchmark in [name for name in left if name in right]:
        common = [item for item in left[benchmark] if item in right[benchmark]]
        for item in common:
            one, other = (asked.get(benchmark, {}).get(item) for asked in (asked_a, asked_b))
            if one and other and one != other:
                raise InputError(
                    f"{b}: item {item} of {benchmark} is another question than in {a}; evaluate both on one file."
                )
        if common:
            out[benchmark] = {item: (left[benchmark][item], right[benchmark][item]) for item in common}
    if not out:
        raise InputError(f"{a} and {b} have no scored item in common; evaluate both on the same benchmarks.")
    return out


def compare(pairs: Sequence[tuple[Path, Path]]) -> list[BenchmarkDifference]:
    """Arms A and B, one pair of folders a seed, on every benchmark that all folders have.

    Raises InputError where folders hold no scores, or scores of other questions.
    """
    folders = [(a.resolve(), b.resolve()) for a, b in pairs]
    for left, right in folders:
        if left == right:
            raise InputError(f"{left} and {right} are one folder; give the runs of two arms.")
        if folders.count((left, right)) > 1:
            raise InputError(
                f"{left} and {right} are given twice, which would count one seed as two; give another seed's."
            )
    seeds = [_paired(a, b) for a, b in pairs]
    shared = [name for name in seeds[0] if all(name in seed for seed in seeds)]
    if not shared:
        raise InputError("the seeds' folders have no benchmark in common; evaluate all seeds on the same ones.")
    found: list[BenchmarkDifference] = []
    for benchmark in shared:
        items = list(seeds[0][benchmark])
        if any(seed[benchmark].keys() != set(items) for seed in seeds):
            raise InputError(f"{benchmark}: the seeds hold different items; evaluate all on one file.")
        a, b = ([[seed[benchmark][item][arm] for item in items] for seed in seeds] for arm in (0, 1))
        binary = len(seeds) == 1 and {*a[0], *b[0]} <= {0.0, 100.0}
        permutation, difference, unit = permutation_p(a, b), paired_difference(a, b), column(benchmark).unit
        found.append(
            BenchmarkDifference(
                benchmark,
                bounded(unit, mean_interval(a)),
                bounded(unit, mean_interval(b)),
                bounded(unit, difference, difference=True),
                permutation,
                mcnemar_p([x / 100 for x in a[0]], [x / 100 for x in b[0]]) if binary else None,
                permutation if len(seeds) == 1 or difference.p is None else difference.p,
            )
        )
    adjusted = holm({c.benchmark: c.p for c in found})
    return [replace(c, holm=adjusted[c.benchmark]) for c in found]


def as_json(comparisons: list[BenchmarkDifference]) -> list[dict[str, Any]]:
    """Plain values, one entry a benchmark."""
    return [asdict(c) | {"differs": c.differs} for c in comparisons]


def as_table(comparisons: list[BenchmarkDifference], names: tuple[str, str]) -> "Table":
    """The comparison as a table for a terminal."""
    from rich.table import Table

    seeds = comparisons[0].a.seeds
    over = f"items and {seeds} seeds, p by two-way t" if seeds > 1 else "items of one seed, p by permutation"
    table = Table(title=f"A = {names[0]}, B = {names[1]}; 95% intervals over {over}")
    heads = ("", "n", "A", "B", "A - B", "p", "p McNemar", "p Holm", f"differs (Holm < {LEVEL})")
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i == 0 else "right", no_wrap=True)
    for row in comparisons:
        cells = [
            f"{i.mean:.2f}" + ("" if i.low is None else f" [{i.low:.2f}, {i.high:.2f}]")
            for i in (row.a, row.b, row.difference)
        ]
        count = str(row.a.n) if seeds == 1 else f"{row.a.n // seeds} x {seeds}"
        mcnemar = "" if row.mcnemar is None else f"{row.mcnemar:.3g}"
        verdict = ("A higher" if row.difference.mean > 0 else "B higher") if row.differs else "no"
        table.add_row(row.benchmark, count, *cells, f"{row.p:.3g}", mcnemar, f"{row.holm:.3g}", verdict)
    return table
