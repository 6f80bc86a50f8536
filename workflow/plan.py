"""`sso plan`: what an experiment costs by rule, what can't fit, and the prediction beside a finished run."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sso.errors import InputError
from sso.train.settings import Optimization, Training
from workflow.arithmetic import Cost
from workflow.check import check_tasks
from workflow.costs import Costs, unpriced
from workflow.experiment import Grid

ROOM = 0.9
"""Share of a GPU that a proposal may fill."""
MODEL_RULES = (
    "sft", "principles", "sample", "pairs", "generated_pairs", "reference", "generator", "policy", "answer",
    "judge", "data_quality", "mix", "reward_model", "rewardbench",
)  # fmt: skip


def by_rule(grid: Grid) -> dict[str, list[Cost]]:
    """Costs of all jobs, in the order of the stages."""
    costs = Costs(grid.experiment)
    found: dict[str, list[Cost]] = {rule: [] for rule in ("config", "data", "preferences", "convert", *MODEL_RULES)}
    for job in grid:
        found.setdefault(job.rule, []).append(costs.of(job))
    return {rule: costs for rule, costs in found.items() if costs}


def warnings(grid: Grid) -> Iterator[str]:
    """A line for each rule whose largest job can't fit the machine, and for a disk that is too small."""
    device = grid.experiment.hardware
    if device is None:
        return  # nobody says what it is to fit
    rules = by_rule(grid)
    for rule, costs in rules.items():
        memory, gpus = max(c.memory_gb for c in costs), max(c.gpus for c in costs)
        host = max(c.host_gb for c in costs)
        if memory > device.memory_gb:
            yield (
                f"{rule}: about {memory:.0f} GB on a GPU of {device.memory_gb:.0f} GB; take zero3, more devices, "
                "tensor_parallel, gradient_checkpointing or fewer tokens_per_batch."
            )
        if gpus > device.gpus and rule not in ("generator", "policy", "sft", "reward_model"):
            yield f"{rule}: wants {gpus} GPUs of {device.gpus}; lower its `devices`."
        if host > device.host_memory_gb:
            yield f"{rule}: about {host:.0f} GB of memory on a host of {device.host_memory_gb:.0f} GB."
    disk = _disk([cost for costs in rules.values() for cost in costs])
    if disk > device.disk_gb:
        yield f"disk: about {disk:.0f} GB of {device.disk_gb:.0f} GB; free some, or run fewer arms at a time."


def _disk(costs: list[Cost]) -> float:
    """GB that the jobs leave, and what the largest training keeps while it runs; one at a time is reckoned with."""
    return sum(cost.disk_gb for cost in costs) + max((cost.resuming_gb for cost in costs), default=0)


def totals(grid: Grid) -> dict[str, float]:
    """Sums over all jobs: jobs, tokens, hours, gpu_hours, disk_gb, requests, money (of the judge), gpu_money."""
    costs = [cost for rule in by_rule(grid).values() for cost in rule]
    hours = sum(cost.gpu_hours for cost in costs)
    return {
        "jobs": len(grid),
        "tokens": sum(cost.tokens for cost in costs),
        "hours": sum(cost.hours for cost in costs),
        "gpu_hours": hours,
        "disk_gb": _disk(costs),
        "requests": sum(cost.requests for cost in costs),
        "money": sum(cost.money for cost in costs),
        "gpu_money": hours * Costs(grid.experiment).hardware.price_per_gpu_hour,
    }


def proposals(grid: Grid) -> Iterator[str]:
    """A line for each rule whose trainings could all do without gradient checkpointing.

    Micro-batches are then as small as a sample can get large, for a sample is never split: every response in a context
    of its own, and each of `max_length`.
    """
    device, costs = grid.experiment.hardware, Costs(grid.experiment)
    if device is None:
        return
    by_rule: dict[str, list[tuple[Cost, Cost, int]]] = defaultdict(list)
    for job in grid:
        settings = job.settings
        if isinstance(settings, Optimization) and settings.gradient_checkpointing:
            nodes = len(job.nodes) if isinstance(settings, Training) else 2
            tokens = nodes * settings.max_length
            without = {"gradient_checkpointing": False, "tokens_per_batch": tokens}
            other = replace(job, settings=settings.model_copy(update=without))
            by_rule[job.rule].append((costs.of(job), costs.of(other), tokens))
    for rule, found in by_rule.items():
        memory, tokens = max(after.memory_gb for _, after, _ in found), max(tokens for _, _, tokens in found)
        saved = sum(before.gpu_hours - after.gpu_hours for before, after, _ in found)
        if saved > 0 and memory <= ROOM * device.memory_gb:  # jobs that take no gradient save nothing
            yield (
                f"{rule}: `gradient_checkpointing: false` with `tokens_per_batch: {tokens}` takes about {memory:.0f} "
                f"of {device.memory_gb:.0f} GB and saves {saved:,.1f} GPU-hours."
            )


Column = tuple[str, Callable[[list[Cost]], float], int]
"""A name, what it says of a rule's jobs, and digits after the point."""


def _columns(here: bool) -> list[Column]:
    """Columns of the plan's table; ``here``: with times on this machine, in minutes."""
    if here:
        time: list[Column] = [
            ("CPU-minutes, at least", lambda costs: 60 * sum(c.hours for c in costs), 1),
            ("longest job, min", lambda costs: 60 * max(c.hours for c in costs), 1),
        ]
    else:
        time = [
            ("GPU-hours", lambda costs: sum(c.gpu_hours for c in costs), 1),
            ("longest job, h", lambda costs: max(c.wall_hours for c in costs), 1),
            ("GPU memory, GB", lambda costs: max(c.memory_gb for c in costs), 0),
        ]
    return [
        ("tokens, M", lambda costs: sum(c.tokens for c in costs) / 1e6, 1 if here else 0),
        *time,
        ("requests", lambda costs: sum(c.requests for c in costs), 0),
        ("judge, $", lambda costs: sum(c.money for c in costs), 0),
    ]


def show(grid: Grid, measured: Path | None = None) -> None:
    """Print the plan; with ``measured``, a finished run's folder, the shares of time predicted and measured."""
    from rich.console import Console
    from rich.table import Table

    check_tasks(grid.experiment)  # an unknown one would have no price
    console = Console(width=None if Console().is_terminal else 120)
    device = Costs(grid.experiment).hardware
    here = grid.experiment.hardware is None
    where = device.name if here else f"{device.gpus} x {device.name}"
    table = Table(title=f"{grid.experiment.experiment}: estimates on {where}")
    columns = _columns(here)
    for name in ("rule", "jobs", *(name for name, _, _ in columns)):
        table.add_column(name, justify="left" if name == "rule" else "right")
    for rule, costs in by_rule(grid).items():
        row = [(of(costs), digits) for _, of, digits in columns]
        table.add_row(rule, str(len(costs)), *(f"{value:,.{digits}f}" if value else "" for value, digits in row))
    console.print(table)
    total = totals(grid)
    judge = f"{total['requests']:,} judge requests for about {total['money']:,.0f} $"
    if here:
        said = (
            f"{total['jobs']} jobs, {total['tokens'] / 1e6:,.0f} million tokens, "
            f"at least {60 * total['hours']:,.0f} CPU-minutes of {device.name} "
            f"(arithmetic and memory alone; the config says nothing of `hardware`), {judge}"
        )
    else:
        said = (
            f"{total['jobs']} jobs, {total['tokens'] / 1e9:.2f} billion tokens, {total['gpu_hours']:,.0f} GPU-hours "
            f"(at least {total['gpu_hours'] / device.gpus:,.0f} h on {device.gpus} GPUs), "
            f"{total['disk_gb']:,.0f} GB of disk, {judge}"
            + (f", GPUs {total['gpu_money']:,.0f} $" if total["gpu_money"] else "")
        )
    console.print(said, highlight=False)
    if free := unpriced(grid.experiment):
        console.print(f"not priced, their size is unknown: {', '.join(free)}", highlight=False)
    for line in warnings(grid):
        console.print(f"warning: {line}", highlight=False)
    for line in proposals(grid):
        console.print(f"faster: {line}", highlight=False)
    if grid.experiment.assumed:
        console.print(f"{len(grid.experiment.assumed)} values are assumed where the paper is silent:", highlight=False)
        for key, why in grid.experiment.assumed.items():
            console.print(f"  {key}: {why}", highlight=False, markup=False)
    if measured:
        _compare(console, grid, measured)


def seconds(results: Path) -> dict[str, float]:
    """Wall seconds by rule of a finished run, from its records; one without a rule was not made by the workflow."""
    if not results.is_dir():
        raise InputError(f"{results}: no such folder; give that of a finished run, as results/micro.")
    spent: dict[str, float] = defaultdict(float)
    for path in results.rglob("*.run.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if rule := record.get("rule"):
            spent[rule] += record.get("wall_s") or 0
    return spent


def _compare(console: Any, grid: Grid, results: Path) -> None:
    """Shares, not hours: a CPU is another machine, but what costs how much of the whole should be alike."""
    from rich.table import Table

    spent = seconds(results)
    predicted = {
        rule: sum(c.hours for c in costs)
        for rule, costs in by_rule(grid).items()
        if rule in MODEL_RULES and any(c.tokens for c in costs)
    }
    known = [rule for rule in predicted if spent.get(rule)]
    table = Table(title="share of the model's time, %")
    for name in ("rule", "predicted", "measured", "measured, s"):
        table.add_column(name, justify="left" if name == "rule" else "right")
    whole, all_spent = sum(predicted[r] for r in known), sum(spent[r] for r in known)
    for rule in known:
        table.add_row(
            rule, f"{100 * predicted[rule] / whole:.1f}", f"{100 * spent[rule] / all_spent:.1f}", f"{spent[rule]:.0f}"
        )
    console.print(table)
