"""What the rule files ask for: paths, settings, threads and resources of each job, by rule and wildcards."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from eval.settings import Evaluation, Judge
from sso.config import Experiment
from sso.jobs.job import Job
from sso.sampling.settings import Decoding, Writer
from sso.settings import ROOT
from workflow.costs import Cost, Costs
from workflow.environments import PYTHON
from workflow.experiment import Grid

SPREAD = ("sft", "generator", "policy", "reward_model")
"""Rules whose jobs may take several machines."""
ASKING = ("principles", "judge", "data_quality")
"""Rules whose jobs may ask an endpoint."""
JUDGES = 2
"""Jobs that ask endpoints at once, where neither a profile nor `--resources` says otherwise."""


class Rules:
    """The jobs of an experiment, as Snakemake's rules see them."""

    def __init__(self, experiment: Experiment):
        self.grid = Grid(experiment)
        self.root, self.data_files, self.targets = self.grid.root, self.grid.data_files, self.grid.targets
        self._costs = Costs(experiment)

    @property
    def asks_endpoints(self) -> bool:
        """Whether any job asks an endpoint."""
        return any(map(asks_an_endpoint, self.grid))

    # Patterns.

    def output(self, name: str) -> str:
        """The path of a rule's output with wildcards in it."""
        return self.grid.paths.pattern(name)

    def log(self, rule: str) -> str:
        """Where a rule's messages go."""
        return self.grid.paths.log(rule)

    def benchmark(self, rule: str) -> str:
        """Where Snakemake writes a job's wall time and peak memory."""
        return self.grid.paths.benchmark(rule)

    def names(self, rule: str, wildcard: str) -> str:
        """A regular expression that matches just the values of a wildcard which a rule's jobs have."""
        return "|".join(map(re.escape, sorted(job.wildcards[wildcard] for job in self.grid.of(rule)))) or "(?!)"

    # Functions of wildcards.

    def inputs(self, rule: str) -> Callable[[Any], Mapping[str, str | list[str]]]:
        """Inputs by name."""
        return lambda wildcards: self.grid.find(rule, wildcards).inputs

    def param(self, rule: str, name: str) -> Callable[[Any], Any]:
        """One of `Job.params`."""
        return lambda wildcards: self.grid.find(rule, wildcards).params[name]

    def mark(self, rule: str) -> Callable[[Any], str]:
        """What tells a command which job it is, for its record (sso/jobs/job.py)."""
        return lambda wildcards: self.grid.find(rule, wildcards).mark

    def priority(self, rule: str) -> Callable[[Any], int]:
        """The longest chain of jobs that waits for this one."""
        return lambda wildcards: self.grid.depth[self.grid.find(rule, wildcards).output]

    def threads(self, rule: str) -> Callable[..., int | str]:
        """Four a GPU, which feed it; a job without is one process."""
        return self._resource(rule, "threads")

    def resources(self, rule: str) -> dict[str, Callable[..., int | str]]:
        """All resources of a rule, by the cost model on the experiment's hardware.

        `gpu` (of all machines), `nodes`, `mem_mb`, `runtime` (minutes, twice the model's; a retry gets as much again).
        For SLURM: `cpus_per_task` and, where a job may take several machines, `tasks` (one a machine) and `mpi` (it
        starts its own steps). Where a job may ask an endpoint: `judges`, 1 if it does; they share its rate limit.
        """
        names = ["gpu", "cpus_per_task", "nodes", *(["tasks", "mpi"] if rule in SPREAD else []), "mem_mb", "runtime"]
        own = {"judges": self._asks(rule)} if rule in ASKING else {}
        return own | {name: self._resource(rule, name) for name in names}

    def _asks(self, rule: str) -> Callable[..., int]:
        return lambda wildcards: int(asks_an_endpoint(self.grid.find(rule, wildcards)))

    def _resource(self, rule: str, name: str) -> Callable[..., int | str]:
        def ask(wildcards: Any, attempt: int = 1) -> int | str:
            cost, minutes = Cost(), 120.0
            if self.grid.experiment.hardware is not None:
                cost = self._costs.of(self.grid.find(rule, wildcards))
                minutes = attempt * (30 + 2 * 60 * cost.wall_hours)
            several, threads = cost.nodes > 1, max(1, 4 * cost.gpus)
            own: dict[str, float | str] = {
                "gpu": cost.gpus,
                "mem_mb": 1000 * cost.host_gb,
                "runtime": minutes,
                "nodes": cost.nodes,
                "threads": threads,
                "tasks": cost.nodes if several else 0,
                "cpus_per_task": threads // cost.nodes,
                "mpi": "srun" if several else "",
            }
            value = own[name]
            return value if isinstance(value, str) else math.ceil(value)

        return ask

    # Environments.

    def environment(self, wildcards: Any) -> str | None:
        """The conda environment file of a job: None, the one that Snakemake runs in, which holds this project."""
        return None

    def engine_environment(self, rule: str) -> Callable[[Any], str | None]:
        """Environment file of a rule that draws text, by job: vLLM has its own, as its pins exclude the project's."""

        def ask(wildcards: Any) -> str | None:
            vllm = draws_with_vllm(self.grid.find(rule, wildcards))
            return str(ROOT / "workflow" / "envs" / "vllm.yaml") if vllm else None

        return ask

    def command(self, rule: str, module: str) -> Callable[[Any], str]:
        """How a rule that draws text starts its command line: as a module for vLLM, in whose environment the project is
        found but not installed."""
        script = {"sso.cli": "sso", "eval": "sso-eval"}[module]
        environment = self.engine_environment(rule)
        return lambda wildcards: f"{PYTHON} -m {module}" if environment(wildcards) else script


def draws_with_vllm(job: Job) -> bool:
    """Whether a job's text is drawn by vLLM."""
    return isinstance(job.settings, Decoding | Evaluation) and job.settings.engine == "vllm"


def asks_an_endpoint(job: Job) -> bool:
    """Whether a job judges or writes by a model behind an endpoint."""
    settings = job.settings
    if isinstance(settings, Evaluation):
        return any(settings.judge_of(name).asks_an_endpoint for name in settings.judged)
    if isinstance(settings, Judge):
        return settings.asks_an_endpoint
    return isinstance(settings, Writer) and settings.endpoint is not None
