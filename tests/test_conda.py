"""Jobs with a conda environment of their own: its Python, its libraries, and the suite from here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import conda as fake
from tests.conftest import REPOSITORY
from workflow.environments import PYTHON, ROOMS, SUITE, suite


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("deployed", [True, False])
def test_a_job_is_started_by_the_python_of_its_conda_environment_or_of_this_one(shell, deployed, tmp_path):
    """As level 1 of conda leaves it: this environment's commands before the other's."""
    for name in ("venv", "a b/env"):
        script(tmp_path / name / "bin" / "python", f'echo "{name}|$PYTHONPATH|$*"; command -v tool')
        script(tmp_path / name / "bin" / "tool", "true")
    path = os.pathsep.join([f"{tmp_path}/venv/bin", f"{tmp_path}/a b/env/bin", os.environ["PATH"]])
    given = {"PATH": path, "CONDA_PREFIX": f"{tmp_path}/a b/env"} | (
        {SUITE: "/the suite's"} if deployed else {"PYTHONPATH": "/here"}
    )
    command = ["bash", "-c", f"set -euo pipefail; {PYTHON} -m sso.cli 'x y'"]
    if shell == "sh":
        command = ["sh", "-c", f"set -eu; {PYTHON} -m sso.cli 'x y'"]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=True)
    where, text = ("a b/env", "a b/env|/the suite's|") if deployed else ("venv", "venv|/here|")
    assert done.stdout == f"{text}-m sso.cli x y\n{tmp_path}/{where}/bin/tool\n"


def test_an_installed_suite_is_handed_over_without_what_lies_beside_it(tmp_path):
    site = tmp_path / "site-packages"
    for name in (*ROOMS, "transformers"):
        (site / name).mkdir(parents=True)
    (site / "sso" / "settings.py").touch()
    for _ in range(2):  # also where a run was before
        folder = suite(site, tmp_path / "work" / ".snakemake" / "sso")
    assert sorted(path.name for path in folder.iterdir()) == sorted(ROOMS)
    assert (folder / "sso" / "settings.py").resolve() == site / "sso" / "settings.py"
    (site / "Snakefile").touch()
    assert suite(site, tmp_path / "unused") == site and not (tmp_path / "unused").exists()


def test_with_use_conda_vllm_runs_in_its_own_environment_from_any_folder(tiny_checkpoint, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "mine.yaml").write_text(fake.config(tiny_checkpoint))
    line = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--directory", str(work)]
    line += ["--configfile", str(tmp_path / "mine.yaml"), "--cores", "1", "--until", "principles"]
    environment = fake.environment(tmp_path)
    done = subprocess.run([*line, "--use-conda"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (python, command), package, libraries, path = fake.started(work / "results/mine")
    assert python.startswith(f"{work}/.snakemake/conda/") and command.startswith("-m sso.cli principles --queries ")
    assert Path(package).parent == REPOSITORY / "sso" and not libraries
    assert path.partition(os.pathsep)[0] == str(Path(python).parent)
    # What was made in an environment is not made again without.
    again = subprocess.run([*line, "-n"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "rule principles" not in again.stdout + again.stderr and again.returncode == 0, again.stderr
