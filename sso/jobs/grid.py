"""All jobs of an experiment: found by output, by rule, by who makes what; ordered by who waits for whom."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from sso.config import Experiment
from sso.errors import InputError
from sso.jobs.job import Job


class Jobs:
    """All jobs of an experiment, which lie under ``root``.

    Args:
        data_files: the files of the ``data_folder``, by name without suffix.
    """

    def __init__(
        self, experiment: Experiment, root: str, jobs: Sequence[Job], data_folder: str, data_files: Mapping[str, str]
    ):
        self.experiment, self.root, self.data_folder, self.data_files = experiment, root, data_folder, data_files
        self.by_output = {job.output: job for job in jobs}
        self._by_name = {(job.rule, frozenset(job.wildcards.items())): job for job in jobs}

    def __iter__(self) -> Iterator[Job]:
        return iter(self.by_output.values())

    def __len__(self) -> int:
        return len(self.by_output)

    def of(self, *rules: str) -> list[Job]:
        """The jobs of some rules."""
        return [job for job in self if job.rule in rules]

    def find(self, rule: str, wildcards: Mapping[str, Any]) -> Job:
        """The job of a rule; raises InputError for one that the config does not have."""
        found = self._by_name.get((rule, frozenset((key, str(value)) for key, value in wildcards.items())))
        if found is None:
            raise InputError(
                f"{rule}: the config has no job of {dict(wildcards)}; `snakemake -n` lists the jobs that it has."
            )
        return found

    @cached_property
    def makers(self) -> dict[str, Job]:
        """Every output -> the job that makes it."""
        return {path: job for job in self for path in job.outputs}

    @cached_property
    def depth(self) -> dict[str, int]:
        """Output -> the longest chain of jobs that waits for it."""
        depth: dict[str, int] = {}
        for job in reversed(list(self.in_order())):
            depth.setdefault(job.output, 0)
            for before in self._needed(job):
                depth[before.output] = max(depth.get(before.output, 0), depth[job.output] + 1)
        return depth

    def _needed(self, job: Job) -> Iterable[Job]:
        return (self.makers[path] for path in job.reads() if path in self.makers)

    def in_order(self) -> Iterable[Job]:
        """Jobs, each after those that it needs."""
        ordered: dict[str, Job] = {}

        def visit(job: Job) -> None:
            if job.output not in ordered:
                for before in self._needed(job):
                    visit(before)
                ordered[job.output] = job

        for job in self:
            visit(job)
        return ordered.values()
