"""What every job leaves behind: a record beside its output, and while it runs the curves that it has so far.

A job writes to disk and never talks to a server, so an unreachable MLflow costs no run; sso/jobs/mlflow_runs.py
uploads what is not there yet. A record holds the job that its rule told of (sso/jobs/job.py). Knows nothing of models.
Records hold no environment variables, and addresses lose their passwords.
"""

import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sso import cards
from sso.errors import masked, of_machine, printable, without_passwords
from sso.jobs.distributed import is_main
from sso.jobs.job import this_job
from sso.jobs.lifeline import identity
from sso.records import file_digest, write_text
from sso.settings import ROOT

SUFFIX, LIVE = ".run.json", ".live.jsonl"
FLUSH_S = 10.0
"""Seconds between two writings of a running job's curves."""
PACKAGES = ("sso", "torch", "transformers", "tokenizers", "numpy", "pandas", "scikit-learn", "lm_eval", "alpaca_eval")

Row = tuple[int, dict[str, float | None]]
"""A step and its metrics; what is not finite is null."""


@dataclass
class Run:
    """One running job; ``summary`` holds its final figures, ``card`` what its output's card is headed by, where only
    the work can tell: a licence; ``live`` is the file of its curves until it is done."""

    summary: dict[str, float] = field(default_factory=dict)
    card: dict[str, str] = field(default_factory=dict)
    metrics: list[Row] = field(default_factory=list)
    live: Path | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    """The first line of ``live``: what its record will hold that is known before the work."""
    grown: list[Row] = field(default_factory=list)
    """Rows that `grow` got."""
    _written: int = 0
    _since: float = field(default_factory=time.monotonic)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep a row of metrics; what is not finite is kept as null."""
        self.metrics.append((int(step), _finite(values)))

    def grow(self, step: int, values: Mapping[str, float]) -> None:
        """Show a row while the work goes on, within FLUSH_S; the record keeps `log`'s rows, and these if it fails."""
        self.grown.append((int(step), _finite(values)))
        if self.live is None or time.monotonic() - self._since < FLUSH_S:
            return
        lines = [*([] if self._written else [self.about]), *self.grown[self._written :]]
        with suppress(OSError):  # nobody's work ends for this
            self.live.parent.mkdir(parents=True, exist_ok=True)
            with self.live.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            self._written = len(self.grown)
        self._since = time.monotonic()


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


def record_path(out: str | Path) -> Path:
    """Where the record of an output lies: beside it, since Snakemake empties folders before a rerun."""
    out = Path(out)
    return out.with_name(out.name + SUFFIX)


def live_path(out: str | Path) -> Path:
    """Where the curves of a running job stand, a JSON line each: what is known of it, then [step, metrics]."""
    out = Path(out)
    return out.with_name(f".{out.name}{LIVE}")


@cache
def _git(*arguments: str) -> str | None:
    if not (ROOT / ".git").exists():
        return None  # an installed suite: what it lies in may be somebody else's repository
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def _peak_rss_mb() -> float:
    with suppress(OSError, StopIteration):  # the kernel's other figure starts with that of the process that started us
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


@contextmanager
def run(
    out: str | Path,
    stage: str,
    settings: BaseModel | Mapping[str, Any],
    inputs: Mapping[str, str | Path],
    seed: int | None = None,
) -> Iterator[Run]:
    """Record a job: settings, input digests, times, memory, versions, metrics, and whether it failed.

    Args:
        out: the job's output, a file or a folder; the record is written to ``<out>.run.json``.
        stage: what kind of job it is.
        settings: its settings, JSON-able.
        inputs: files or folders by name; their digests are taken before the work starts.
        seed: its seed.

    Raises:
        whatever the work raises, after the failure has been recorded.
    """
    started, wall, cpu = datetime.now(UTC), time.monotonic(), _cpu_seconds()
    if not is_main():
        yield Run()
        return
    values = settings.model_dump(mode="json") if isinstance(settings, BaseModel) else dict(settings)
    read = {name: [str(path), file_digest(path) if Path(path).exists() else None] for name, path in inputs.items()}
    about = {
        "stage": stage,
        **this_job(),
        "settings": masked(json.loads(json.dumps(values, default=str))),
        "seed": seed,
        "inputs": read,
        "started": started.isoformat(timespec="milliseconds"),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if (changes := _git("status", "--porcelain")) is None else bool(changes),
        "versions": _versions(),
    }
    live = live_path(out)
    live.unlink(missing_ok=True)  # of one that was killed
    current = Run(live=live, about={**about, "process": identity(os.getpid())})
    status: dict[str, Any] = {"status": "finished"}
    try:
        yield current
    except BaseException as error:
        told = of_machine(error, out) or error
        status = {"status": "failed", "error": printable(without_passwords(f"{type(told).__name__}: {told}"))}
        if told is error:
            raise
        raise told from error
    finally:
        record = {
            **about,
            **status,
            "wall_s": round(time.monotonic() - wall, 3),
            "cpu_s": round(_cpu_seconds() - cpu, 3),
            "peak_rss_mb": round(_peak_rss_mb(), 1),
            "summary": _finite(current.summary),
            "output": [str(out), file_digest(out) if "error" not in status and Path(out).exists() else None],
            "metrics": current.metrics or (current.grown if "error" in status else []),
            **({"card": current.card} if current.card else {}),
        }
        # Where the work's own writing failed, its error is the one to tell.
        with suppress(OSError) if "error" in status else nullcontext():
            write_text(record_path(out), json.dumps(record, ensure_ascii=False) + "\n")
        with suppress(OSError):
            live.unlink(missing_ok=True)
    cards.write(out, record)
