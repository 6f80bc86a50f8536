"""The workflow on a real SLURM of at least two nodes with GPUs; skipped where there is none.

    SSO_SLURM="account=NAME partition=NAME" pytest -m slurm

docs/paper_scale.md tells what it needs. Where the nodes only claim to have GPUs, set SSO_GPU_REHEARSAL=1 too.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY

GIVEN = dict(part.split("=", 1) for part in os.environ.get("SSO_SLURM", "").split())
THERE = shutil.which("sbatch") and importlib.util.find_spec("snakemake_executor_plugin_slurm")
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(not (THERE and GIVEN), reason="needs SLURM, snakemake-executor-plugin-slurm and SSO_SLURM"),
]
CONFIG = {
    "extends": str(REPOSITORY / "config" / "smoke.yaml"),
    "experiment": "two_nodes",
    "trainings": {"policy": {"learning_rates": [2.5e-4], "epochs": 1, "nodes": 2, "devices": 1}},
    "arms": {"sso": None, "annotated": None, "sso_v1": None},
    "rewards": {"sso": None, "skywork_sso": None},
    "hardware": {"gpus": 8, "memory_gb": 80},
}


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    profile = yaml.safe_load((REPOSITORY / "workflow" / "profiles" / "slurm" / "config.yaml").read_text())
    profile["default-resources"] |= {f"slurm_{name}": value for name, value in GIVEN.items()}
    (folder / "profile").mkdir(exist_ok=True)
    (folder / "profile" / "config.yaml").write_text(yaml.safe_dump(profile))
    (folder / "two.yaml").write_text(yaml.safe_dump(CONFIG))
    command = [sys.executable, "-m", "snakemake", "--directory", str(folder), "--configfile", str(folder / "two.yaml")]
    command += ["--profile", str(folder / "profile"), *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)


def asked(said: str, rule: str) -> dict[str, str]:
    """What the job of a rule asked SLURM for, by name."""
    number = next(line.split("/")[-1].partition(".log")[0] for line in said.splitlines() if f"rule_{rule}/" in line)
    command = ["sacct", "-n", "-X", "-P", "-j", number, "-o", "reqtres,timelimit,state"]
    resources, limit, state = subprocess.run(command, capture_output=True, text=True).stdout.strip().split("|")
    return dict(part.split("=") for part in resources.split(",")) | {"limit": limit, "state": state}


def test_a_policy_on_two_machines_by_config_alone(tmp_path):
    target = "results/two_nodes/qwen2/s0/policy/pbaa"
    said = start(tmp_path, "--until", "policy").communicate(timeout=1800)[1]
    assert (tmp_path / target / "model.safetensors").is_file(), said
    policy, sample, data = (asked(said, rule) for rule in ("policy", "sample", "data"))
    assert (policy["node"], policy["gres/gpu"], policy["cpu"]) == ("2", "2", "8")
    assert (sample["node"], sample["gres/gpu"], sample["cpu"]) == ("1", "1", "4")
    assert data["node"] == "1" and "gres/gpu" not in data
    assert policy["limit"] == "00:37:00"  # the cost model's, not the cluster's default
    log = (tmp_path / "results/two_nodes/logs/qwen2/s0/policy/pbaa.log").read_text()
    assert "on 2 processes" in log


def test_a_cancelled_job_is_noticed_and_named(tmp_path):
    run = start(tmp_path, "--until", "sft", "--retries", "0")
    running = ["squeue", "-h", "-t", "running", "-o", "%i %k"]
    deadline = time.monotonic() + 300
    while not (lines := [line for line in subprocess.check_output(running, text=True).splitlines() if "sft" in line]):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(1)
    subprocess.run(["scancel", lines[0].split()[0]], check=True)
    start_s = time.monotonic()
    said = run.communicate(timeout=600)[1]
    assert run.returncode == 1 and time.monotonic() - start_s < 120
    assert "failed: sft backbone=qwen2 seed=0: " in said, said
