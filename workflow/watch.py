"""What the workflow says when it starts, and who tells of its jobs from then on."""

from pathlib import Path
from typing import Any

from snakemake_logger_plugin_sso import LogHandler
from workflow.estimate import Estimate, about
from workflow.experiment import Grid


def quiet(workflow: Any) -> bool:
    """Whether Snakemake was told not to say how far it is, as `--quiet` does."""
    from snakemake.settings.enums import Quietness

    return bool({Quietness.ALL, Quietness.PROGRESS} & set(workflow.output_settings.quiet or ()))


def watch(workflow: Any, grid: Grid) -> LogHandler | None:
    """Say what is about to run, then follow it; None where Snakemake was told to be quiet, or jobs run elsewhere.

    The handler takes the place of Snakemake's own, but of no other that the user chose by `logger`.
    """
    from snakemake.logging import logger

    settings = workflow.output_settings
    if workflow.touch or quiet(workflow):
        return None
    by_name = {(job.rule, frozenset(job.wildcards.items())): job for job in grid}
    asked = {job.jobid: (job.rule.name, frozenset(job.wildcards_dict.items())) for job in workflow.dag.needrun_jobs()}
    jobs = {number: by_name[name] for number, name in asked.items() if name in by_name}
    if not jobs:
        return None
    gpus = workflow.global_resources.get("gpu")
    cores = workflow.cores if workflow.local_exec and workflow.cores else len(jobs)
    estimate = Estimate(grid, jobs.values(), cores, gpus and gpus.value)
    time = "how long the cost model can't say"
    if estimate.known:
        source = "the records of earlier jobs" if estimate.recorded else "the cost model of `sso plan`"
        time = f"about {about(estimate.left({}))} (an estimate, by {source})"
    page = Path(grid.root, "report", "report.html")
    made = f"The page will be {page}; each" if any(job.rule == "report" for job in jobs.values()) else "Each"
    number = "1 job" if len(jobs) == 1 else f"{len(jobs)} jobs"
    logger.info(f"{number}, {time}.\n{made} job's messages are under {grid.root}/logs/.")
    handler = None
    own = next((other for other in logger.handlers if other.name == "DefaultStreamHandler"), None)
    if own and workflow.local_exec and not settings.verbose:
        handler = LogHandler(settings, None)
        logger.removeHandler(own)
        logger.addHandler(handler)
    elif not own and workflow.local_exec:
        handler = next(
            (other for other in workflow.logger_manager.plugin_handlers if isinstance(other, LogHandler)), None
        )
    if handler:
        handler.follow(jobs, estimate)
    return handler
