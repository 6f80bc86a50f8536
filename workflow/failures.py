"""What went wrong in a run: of each job that failed its rule, its wildcards, its own last words, and its log.

Snakemake tells these by profile and quietness, or not at all; the grid knows every job's log, and whether its output
is there.
"""

from collections.abc import Iterator
from pathlib import Path

from sso.errors import printable
from workflow.experiment import Grid


def told(grid: Grid, since: float) -> Iterator[str]:
    """A line for each job that has written to its log after ``since`` (seconds since the epoch), but made no output."""
    for job in grid:
        log = Path(job.log)
        made = all(Path(path).exists() for path in job.outputs)
        if not made and log.is_file() and log.stat().st_mtime >= since:
            yield f"failed: {job.name}: {last_words(log)} [{log}]"


def last_words(log: Path) -> str:
    """The last line of a log that tells of an error, else its last line that is not empty."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error:") or "Error" in line.partition(":")[0]]
    return printable((told or lines or ["the log is empty; it was ended from outside"])[-1][:300])
