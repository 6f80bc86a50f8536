"""About how long jobs take: by the records of an earlier run, else by the cost model; corrected as jobs finish."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean

from sso.jobs.job import Job
from sso.jobs.tracking import record_path
from workflow.arithmetic import Cost
from workflow.costs import Costs
from workflow.experiment import Grid

REACHED, START_S = 1 / 1.5, 2.0
"""Share of this machine's measured rates that the micro-world's jobs reach, and seconds of a job beside its work: both
from one run of config/micro.yaml on 2 cores."""
CALL_S = 0.5
"""Seconds of a job's command before and after what its record counts."""
OVERDUE = 0.1
"""What a job that has taken longer than expected takes still at least: a share of what it took."""
DOUBT = 0.1
"""Share of the whole that has to be done before what was measured says as much as what was expected."""


class Estimate:
    """Times of the jobs to do; seconds.

    Args:
        cores: jobs' cores at once.
        gpus: GPUs at once, where the run limits them.
    """

    def __init__(self, grid: Grid, todo: Iterable[Job], cores: int, gpus: int | None = None):
        self._grid, self._order, costs = grid, list(grid.in_order()), Costs(grid.experiment)
        own, by_rule = _recorded(grid)
        self.expected: dict[str, float] = {}
        """Output -> seconds, before any is measured."""
        self._width: dict[str, float] = {}
        """Output -> the share of all cores, or GPUs, that the job takes."""
        self.recorded = self.known = True
        """Whether all of it is by records; whether there is an estimate: the cost model may not know a checkpoint."""
        here = grid.experiment.hardware is None

        def cost_of(job: Job) -> Cost:
            try:
                return costs.of(job)
            except Exception:  # a shape that can't be read, or a hub that is silent: no reason to stop a run
                self.known = False
                return Cost()

        def by_model(cost: Cost) -> float:
            return 3600 * (cost.hours / REACHED if here else cost.wall_hours) + START_S

        # What was recorded of this run, over what the cost model says of the same jobs.
        thought = sum(by_model(cost_of(job)) for job in grid if here and job.output in own)
        slower = sum(own.values()) / thought if thought else 1.0
        for job in todo:
            path, cost = job.output, Cost() if here and job.rule in by_rule else cost_of(job)
            used = 0 if here else cost.gpus
            self._width[path] = max(max(1, 4 * used) / cores, used / gpus if gpus else 0)
            if job.rule in by_rule:
                self.expected[path] = own.get(path, by_rule[job.rule]) + CALL_S
            else:
                self.recorded = self.recorded and job.rule in ("config", "mlflow")  # which have none
                self.expected[path] = slower * by_model(cost)
        self._measured: dict[str, list[tuple[float, float]]] = defaultdict(list)
        """Rule -> seconds measured and expected of its jobs that are done."""

    def finished(self, job: Job, seconds: float) -> None:
        """Learn from a job that took so long."""
        self._measured[job.rule].append((seconds, self.expected[job.output]))

    def left(self, running: Mapping[str, tuple[float, float]], done: Iterable[str] = ()) -> float:
        """Seconds until the end, where it is `known`: all work over the cores, or the longest chain if that is longer.

        Args:
            running: output -> for how long, and for how long still at least, by its log.
            done: outputs that are there.
        """
        gone, measured = set(done), {rule: [*rows] for rule, rows in self._measured.items()}
        for path, (took, still) in running.items():
            if took + still > self.expected[path]:  # a sign that the others take longer, too
                measured.setdefault(self._grid.by_output[path].rule, []).append((took + still, self.expected[path]))
        left, ends = dict[str, float](), dict[str, float]()
        for job in self._order:
            path = job.output
            if path in self.expected and path not in gone:
                left[path] = self._now(job, measured)
                if path in running:
                    took, still = running[path]
                    left[path] = max(left[path] - took, still, OVERDUE * took if took > self.expected[path] else 0.0)
            before = (self._grid.makers[path].output for path in job.reads() if path in self._grid.makers)
            ends[job.output] = left.get(job.output, 0.0) + max((ends[path] for path in before), default=0.0)
        work = sum(seconds * self._width[path] for path, seconds in left.items())
        return max(work, *ends.values())

    def _now(self, job: Job, measured: Mapping[str, list[tuple[float, float]]]) -> float:
        """A job's seconds, by what the jobs of its rule took, else by what all took."""
        own = measured.get(job.rule) or [both for rows in measured.values() for both in rows]
        # A few short jobs say little of long ones.
        doubt = 0.0 if job.rule in measured else DOUBT * sum(self.expected.values())
        took, thought = (sum(column) for column in zip((doubt, doubt), *own, strict=True))
        return self.expected[job.output] * (took / thought if thought else 1.0)


def _recorded(grid: Grid) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds that finished jobs took before: by output, and the mean by rule."""
    own: dict[str, float] = {}
    by_rule: dict[str, list[float]] = defaultdict(list)
    for job in grid:
        try:
            record = json.loads(record_path(job.output).read_text(encoding="utf-8"))
            if record["status"] == "finished":
                own[job.output] = float(record["wall_s"])
                by_rule[job.rule].append(own[job.output])
        except (OSError, ValueError, LookupError, TypeError):
            continue  # none, or a damaged one: an estimate is not worth an error
    return own, {rule: fmean(seconds) for rule, seconds in by_rule.items()}


def about(seconds: float) -> str:
    """A time as one says it: `40 s`, `5 min`, `7.5 h`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
