"""The wheel: built, installed without the repository, and used from another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

from tests import conda
from tests.conftest import REPOSITORY

LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".snakemake", ".*_cache", "__pycache__", "*.egg-info", "build")


CLEAN = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SSO_JOB")}


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory) -> Path:
    """The commands of a fresh environment that has the wheel, and what it depends on, but not this repository."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(REPOSITORY, source, symlinks=True, ignore=LEFT_OUT)
    shutil.rmtree(source / "results", ignore_errors=True)
    shutil.copytree(REPOSITORY / "results" / "paper", source / "results" / "paper")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True, env=CLEAN)
    shutil.rmtree(source)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, env=CLEAN)
    # What the suite depends on comes from this environment; .pth files there, and so this repository, are not read.
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env" / "bin"


@pytest.fixture
def run(bin_folder, tmp_path):
    """Run a command of the environment in an empty folder; returns what it printed."""

    def call(command: str, *arguments: object) -> str:
        line = [str(bin_folder / command), *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=CLEAN)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def test_the_wheel_is_what_runs_and_knows_its_version(run, bin_folder):
    where = run("python", "-c", "import sso, eval, report, workflow; print(sso.__file__, sso.__version__)")
    assert where.startswith(str(bin_folder.parent))
    assert run("sso", "--version") == run("python", "-m", "sso", "--version") == f"sso {where.split()[1]}\n"


def test_an_experiment_is_planned_trained_and_run_outside_the_repository(run, tmp_path):
    assert "jobs" in run("sso", "plan", "--configfile", "config/paper_v2.yaml")
    (tmp_path / "mine.yaml").write_text("extends: smoke\nexperiment: mine\n")
    assert "rewardbench" in run("sso", "run", "-n", "--configfile", "mine.yaml", "--cores", "1")
    # The first jobs for real: the world's data and a tiny model.
    run("sso", "run", "--configfile", "mine.yaml", "--cores", "2", "--until", "principles", "sft", "--quiet", "all")
    model, data = tmp_path / "results/mine/qwen2/s0/sft", tmp_path / "pairs.jsonl"
    data.write_text('{"id": "a", "prompt": "What is 1 plus 1?", "chosen": "2.", "rejected": "3."}\n')
    settings = '{"objective": "pairs", "dtype": "float32", "batch_size": 1}'
    run("sso", "train", "--model", model, "--data", data, "--settings", settings, "--out", tmp_path / "policy")
    assert (tmp_path / "policy" / "model.safetensors").is_file()
    record = (tmp_path / "policy.run.json").read_text()
    assert '"git_commit": null' in record  # the wheel lies in no repository of ours


def test_the_conda_environment_of_a_job_gets_the_installed_suite_and_not_its_libraries(
    bin_folder, tiny_checkpoint, tmp_path
):
    (tmp_path / "mine.yaml").write_text(conda.config(tiny_checkpoint))
    line = [str(bin_folder / "sso"), "run", "--use-conda", "--configfile", "mine.yaml", "--cores", "1"]
    environment = {
        name: value for name, value in conda.environment(tmp_path).items() if name in {*CLEAN, "CONDA_PREFIX"}
    }
    done = subprocess.run(
        [*line, "--until", "principles"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (python, _), package, libraries, _ = conda.started(tmp_path / "results/mine")
    assert python.startswith(f"{tmp_path}/.snakemake/conda/") and not libraries
    assert package.startswith(f"{tmp_path}/.snakemake/") and Path(package).resolve().is_relative_to(bin_folder.parent)


def test_the_example_runs_outside_the_repository(run, tmp_path):
    shutil.copy(REPOSITORY / "examples" / "train_sso.py", tmp_path)
    run("python", "train_sso.py")


def test_every_package_is_in_the_wheel():
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    here = {".".join(path.parent.relative_to(REPOSITORY).parts) for path in REPOSITORY.glob("*/**/*.py")}
    rooms = ("sso", "eval", "rewardbench", "report", "workflow", "snakemake_logger_plugin_sso")
    assert set(listed) - {"sso._data"} == {name for name in here if name.split(".")[0] in rooms} - {"workflow.envs"}
