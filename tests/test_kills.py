"""kill -9 at random moments of every stage, over and over; then the tables are those of a run that nobody disturbed."""

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from sso.jobs.job import Job
from tests import processes
from tests.conftest import REPOSITORY
from tests.processes import until
from tests.test_smoke import CONFIG, ROOT, run, tables
from workflow import experiment as experiments
from workflow.experiment import Grid

KILLS_A_RULE = 2
TARGETS = {"group": 4, "snakemake": 4, "shell": 1, "command": 1, "warm": 1}
"""What is killed, and how often beside the others."""


GRID = Grid(experiments.load([CONFIG], {}))


def snakemake(folder: Path, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), "--directory", str(folder)]
    return [*command, "--configfile", str(CONFIG), "--cores", "all", *arguments]


def stages() -> list[list[Job]]:
    """All jobs that run a command, by rule, in the order in which rules can first run."""
    rules: dict[str, list[Job]] = {}
    for job in GRID.in_order():
        if job.rule != "config":
            rules.setdefault(job.rule, []).append(job)
    return list(rules.values())


def log_of(job: Job) -> str:
    """The log of a job, which tells its shell from the others'; the data's are one folder's."""
    return f"logs/{job.output.removeprefix(f'{ROOT}/')}.log"


def victims(target: str, main: int, job: Job, environment: dict[str, str]) -> list[int]:
    """Processes to kill, main ones first."""
    alive = processes.marked(environment)
    if target == "group":
        return [main, *(pid for pid in alive if pid != main)]
    if target == "snakemake":
        return [main]
    if target == "shell":
        return [pid for pid, line in alive.items() if log_of(job) in line]
    if target == "warm":
        return [pid for pid, line in alive.items() if "sso.jobs.warm" in line][:1]
    return [pid for pid, line in alive.items() if f"--out {job.output}" in line and "-c" not in line.split()][:1]


def strike(folder: Path, job: Job, target: str, delay: float, environment: dict[str, str]) -> bool:
    """Start the workflow and kill ``target`` when ``job`` has run for ``delay`` s; whether it was there to be hit."""
    # A job that an earlier attempt has finished runs again, as after a change.
    again = ["--forcerun", job.rule] if (folder / job.output).exists() else []
    command = snakemake(folder, *again, "--", job.outputs[0])
    with (folder / "snakemake.log").open("a") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

    def at_work() -> bool:
        return any(log_of(job) in line for line in processes.marked(environment).values())

    until(lambda: at_work() or process.poll() is not None, 300)
    with suppress(subprocess.TimeoutExpired):
        process.wait(delay)
    struck = victims(target, process.pid, job, environment) if at_work() else []
    for pid in struck:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(300)
    # Nobody is left to write when the next run begins.
    until(lambda: not processes.marked(environment), 10, lambda: (target, processes.marked(environment)))
    if struck and target in ("group", "snakemake"):
        subprocess.run(snakemake(folder, "--unlock"), cwd=folder, capture_output=True, check=True)
    return bool(struck)


@pytest.mark.slow
def test_kills_at_random_moments_of_every_stage_change_no_table(tmp_path: Path):
    chance, kills, missed = random.Random(0), Counter(), 0
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    folder.mkdir()
    run(whole)
    environment = processes.mark()
    try:
        for jobs in stages() * KILLS_A_RULE:
            for attempt in range(8):
                (target,) = chance.choices(list(TARGETS), TARGETS.values())
                job, delay = chance.choice(jobs), chance.uniform(0, 3) / 2**attempt
                if strike(folder, job, target, delay, environment):
                    kills[f"{job.rule} ({target})"] += 1
                    break
                missed += 1
    finally:
        processes.kill_all(environment)
    print(f"{kills.total()} kills, {missed} came after the job's end: {dict(kills)}")
    assert kills.total() == KILLS_A_RULE * len(stages()) >= 30
    assert tables(run(folder)) == tables(whole)
    assert not list((folder / ROOT).rglob(".*.tmp"))
