"""What a person sees while the workflow runs: a line a finished job, and of a long one how far it is.

A Snakemake logger, which workflow/watch.py puts in the place of Snakemake's own; where this package is installed, a
profile can name it, too (`logger: sso`). It takes the scheduler's lines away; everything else, errors above all, is
shown as Snakemake would. Snakemake loads each plugin whenever it starts, for any workflow: so nothing else of this
project is imported before a run of its own is followed.
"""

import logging
import re
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

    from sso.jobs.job import Job
    from workflow.estimate import Estimate

EVERY_S = 15.0
"""Silence, in seconds, after which a line tells of the running jobs."""
SHOWN = 3, 8
"""Running jobs that a line, and a terminal, tell of."""
SAYS = 0.05
"""Share of a job that has to be done before its rate says how long the rest takes."""
TAIL = 4096
"""Bytes of a log's end that are read."""
_SCHEDULER = (LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED, LogEvent.PROGRESS)
_STEP = re.compile(r"\w+: (\d+/\d+, .* left.*)")
"""A line of sso/jobs/progress.py."""
_INTERRUPTED, _UNFINISHED = "Terminating processes on user request", "At least one job did not complete successfully"
"""What Snakemake says at a SIGINT or SIGTERM, and when it ends with jobs undone."""


class LogHandler(LogHandlerBase):
    """Snakemake's own output until `follow` is called; then a line a job."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter

        s: Any = self.common_settings
        self.inner: Any = ColorizingTextHandler(
            nocolor=s.nocolor,
            stream=sys.stdout if s.stdout else sys.stderr,
            formatter=DefaultFormatter(s.quiet, s.show_failed_logs),
            filter=DefaultFilter(s.quiet, s.debug_dag, s.verbose, s.dryrun, s.printshellcmds),
        )
        self._jobs: Mapping[int, Job] = {}
        self._running: dict[int, float] = {}
        """Number of a job -> when it started, seconds since the epoch."""
        self._done: list[int] = []
        self._interrupted = False
        self._live: Live | None = None
        self._ended = threading.Event()

    def follow(self, jobs: "Mapping[int, Job]", estimate: "Estimate") -> None:
        """Tell of the jobs from now on, by their numbers in Snakemake; starts a thread that ends with `close`."""
        with self._guard:
            self._jobs, self._estimate, self._last = jobs, estimate, time.monotonic()
            if self.inner.is_tty:
                from rich.console import Console
                from rich.live import Live

                console = Console(file=self.inner.stream, no_color=self.common_settings.nocolor)
                if not console.is_dumb_terminal:
                    self._live = Live(
                        console=console, auto_refresh=False, transient=True, redirect_stdout=sys.stdout.isatty()
                    )
                    self._live.start()
                    self.inner.setStream(sys.stderr)  # rich's, which prints above what is live
        threading.Thread(target=self._beat, daemon=True).start()

    @property
    def _guard(self) -> Any:
        assert self.lock is not None, "logging makes it"
        return self.lock

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record, or what a person wants to know of it; called with the handler's lock held."""
        try:
            self._show(record)
        except BrokenPipeError:
            raise
        except Exception:
            self.handleError(record)  # logging's way: a line that can't be shown ends no run

    def _show(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        self._last = time.monotonic()
        if not self._jobs:
            self.inner.handle(record)
        elif event == LogEvent.JOB_STARTED:
            self._running |= dict.fromkeys(record.__dict__["jobs"], record.created)
        elif event == LogEvent.JOB_FINISHED:
            self._finish(record.__dict__["job_id"], record.created)
        elif event == LogEvent.JOB_ERROR:
            self._fail(record.__dict__["jobid"], record.created)
            self.inner.handle(record)
        elif event not in _SCHEDULER and record.msg != "Select jobs to execute...":
            self._interrupted |= str(record.msg).startswith(_INTERRUPTED)
            self.inner.handle(record)
            if self._interrupted and _UNFINISHED in str(record.msg):
                count = f"{len(self._done)} of {len(self._jobs)} jobs are done"
                self._say(f"interrupted: {count}; the same command goes on.", logging.WARNING)

    def close(self) -> None:
        """End the thread and what is live; the terminal is left as it was."""
        self._ended.set()
        with self._guard:
            if self._live:
                self._live.stop()
                self.inner.setStream(self._live.console.file)
                self._live = None
        super().close()

    def _finish(self, number: int, now: float) -> None:
        started, job = self._running.pop(number, now), self._jobs.get(number)
        if job:  # `all` is none of ours
            self._done.append(number)
            self._estimate.finished(job, now - started)
            self._say(", ".join([f"{self._count} {label(job)}", f"{now - started:.0f} s", *self._left(now)]))

    def _fail(self, number: int, now: float) -> None:
        from workflow.failures import last_words

        started, job = self._running.pop(number, now), self._jobs.get(number)
        if job:
            log = Path(job.log)
            words = last_words(log) if log.is_file() else "it left no log"
            self._say(f"{self._count} failed: {label(job)}, {now - started:.0f} s: {words} [{log}]", logging.ERROR)

    def _say(self, text: str, level: int = logging.INFO) -> None:
        self._last = time.monotonic()
        self.inner.handle(
            logging.makeLogRecord({"msg": text, "levelno": level, "levelname": logging.getLevelName(level)})
        )

    @property
    def _count(self) -> str:
        return f"[{len(self._done)}/{len(self._jobs)}]"

    def _left(self, now: float) -> list[str]:
        from workflow.estimate import about

        if not self._estimate.known or len(self._done) == len(self._jobs):
            return []

        running = {
            self._jobs[n].output: (now - at, still(Path(self._jobs[n].log), at, now))
            for n, at in self._running.items()
            if n in self._jobs
        }
        return [f"about {about(self._estimate.left(running, (self._jobs[n].output for n in self._done)))} left"]

    def _beat(self) -> None:
        while not self._ended.wait(1):
            with self._guard:
                if self._ended.is_set():
                    return
                if self._live:
                    self._live.update(self._picture(), refresh=True)
                elif time.monotonic() - self._last >= EVERY_S:
                    now = time.time()
                    self._say("; ".join([f"{self._count} running", *self._states(now, SHOWN[0]), *self._left(now)]))

    def _picture(self) -> "Text":
        from rich.text import Text

        now = time.time()
        lines = [" ".join([self._count, *self._left(now)]), *(f"  {state}" for state in self._states(now, SHOWN[1]))]
        return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")

    def _states(self, now: float, shown: int) -> list[str]:
        """The jobs that have run longest, and how far their logs say that they are."""
        known = [(number, at) for number, at in self._running.items() if number in self._jobs]
        states = [
            ", ".join(filter(None, [f"{label(self._jobs[n])}, {now - at:.0f} s", step(Path(self._jobs[n].log))]))
            for n, at in sorted(known, key=lambda item: item[1])[:shown]
        ]
        more = len(known) - len(states)
        return [*states, *([f"{more} more"] if more else [])] or ["no job; Snakemake is at work"]


def step(log: Path) -> str:
    """How far a job is, by the last line of progress in its log; empty where there is none."""
    from sso.errors import printable

    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        found = _STEP.findall(file.read().decode("utf-8", "replace").replace("\r", "\n"))
        return printable(found[-1][:100]) if found else ""
    return ""


def still(log: Path, started: float, now: float) -> float:
    """Seconds that what a job is at takes still, by the share that its log says is done; 0 where that is too little."""
    with suppress(OSError, ZeroDivisionError):
        done, total = map(int, (step(log) or "0/1,").partition(",")[0].split("/"))
        if done / total >= SAYS:
            at = log.stat().st_mtime
            return max((at - started) * (total / done - 1) - (now - at), 0.0)
    return 0.0


def label(job: "Job") -> str:
    """A job as one says it: `policy qwen2 seed 0 sso`."""
    rest = [value for key, value in job.wildcards.items() if key not in ("backbone", "seed")]
    seed = [] if job.seed is None else [f"seed {job.seed}"]
    return " ".join([job.rule, *([job.backbone] if job.backbone else []), *seed, *rest])
