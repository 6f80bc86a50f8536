"""What a job in a conda environment of its own gets of this one: the suite, which is not installed there, and no more.

Snakemake takes PYTHONPATH from such a job. PATH begins with the commands beside Snakemake's own Python, and there
they stay where conda puts an environment in the place of the one that was active.
"""

import os
from pathlib import Path

SUITE = "SSO_SUITE"
"""The environment variable with the folder to import the suite from; set where Snakemake deploys conda environments."""
PYTHON = f'env ${{{SUITE}:+PYTHONPATH="${SUITE}" PATH="$CONDA_PREFIX/bin:$PATH"}} python'
"""Starts a job's Python in a shell: the conda environment's where there is one. The shell decides, and so the text is
the same with `--use-conda` and without: by another one finished jobs would run again."""
ROOMS = ("sso", "eval", "rewardbench", "report", "workflow")


def suite(home: Path, folder: Path) -> Path:
    """A folder from which the suite is imported, and nothing else is.

    ``home`` where it is the repository. Beside an installed suite lie libraries of other versions than the
    environment's, so that is linked to, package by package, from ``folder``.
    """
    if (home / "Snakefile").is_file():
        return home
    folder.mkdir(parents=True, exist_ok=True)
    for room in ROOMS:
        draft = folder / f".{room}.{os.getpid()}"  # other jobs may be reading the link
        draft.symlink_to(home / room)
        draft.replace(folder / room)
    return folder


def hand_over(deployed: bool) -> None:
    """Let the jobs of this workflow, of which some have conda environments where ``deployed``, find the suite."""
    os.environ.pop(SUITE, None)
    if deployed:
        os.environ[SUITE] = str(suite(Path(__file__).resolve().parents[1], Path(".snakemake", "sso").resolve()))
