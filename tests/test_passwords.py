"""Passwords and keys in addresses: in no record, config.json, message or command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sso.errors import InputError, masked, without_passwords
from sso.jobs import mlflow_runs, tracking
from tests.conftest import REPOSITORY
from workflow import ending
from workflow import experiment as experiments
from workflow.experiment import Grid

CONFIGS = REPOSITORY / "config"
FORMS = [
    "https://h/v1?api_key=SECRET",
    "https://h/v1?version=1&sig=SECRET&page=1",
    "https://h/#access_token=SECRET",
    "postgresql://h/db?user=u&password=SECRET",
    "postgresql://u:SECRET@h/db",
    "mysql+pymysql://u:SECRET@h:3306/db?ssl=1&token=SECRET",
    "http://u:p@SECRET@h/x",
    "https://SECRET@h",
]
BEGINS, ENDS = "qZ", "Zq"
"""Of each secret: neither a part of it may get out."""
SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_categories=["C", "Z"]), max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(st.sampled_from(FORMS), SECRETS.filter(lambda text: '"' not in text))
@example("postgresql://u:SECRET@h/db", "a/b")
@example("postgresql://u:SECRET@h/db", "a?key=b@c")
@example("https://h/v1?api_key=SECRET", "a@b&c\\")
def test_a_secret_in_an_address_appears_in_no_output(tmp_path: Path, form: str, middle: str):
    secret = BEGINS + middle + ENDS
    uri = form.replace("SECRET", secret)
    judge = {"kind": "openai", "model": "m", "base_url": uri}
    made = experiments.load([CONFIGS / "smoke.yaml"], {"tracking_uri": uri, "evaluation": {"judge": judge}})
    with pytest.raises(OSError), tracking.run(tmp_path / "out", "judge", made.evaluation.judge, {}) as run:
        about = json.dumps(run.about)
        raise OSError(f"no answer from {uri!r}: {uri}")
    record = tracking.record_path(tmp_path / "out").read_text(encoding="utf-8")
    assert json.loads(record)["settings"]["model"] == "m"
    (config,), (mlflow,) = Grid(made).of("config"), Grid(made).of("mlflow")
    (tmp_path / "config.json").write_text(config.params["experiment"], encoding="utf-8")
    assert experiments.load([tmp_path / "config.json"], {}).arms == made.arms  # the report reads it
    told = [
        *ending.commands(made, tmp_path, ""),
        str(InputError(f"{uri}: no server")),
        without_passwords(f"at {uri} ,"),
    ]
    for text in [about, record, config.params["experiment"], json.dumps(mlflow.params), *told]:
        assert BEGINS not in text and ENDS not in text, text


def test_what_is_no_secret_stays():
    plain = [
        "hf://datasets/OWNER/NAME@main/x.json",
        "sqlite:////home/a@b/mlflow.db",
        "http://127.0.0.1:8000/v1?version=2",
        "mail a@b.c of https://h/x, or c@d.e",
    ]
    assert [without_passwords(text) for text in plain] == plain
    for file in sorted(CONFIGS.glob("*.yaml")):
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert masked(values) == values


def test_mlflows_address_goes_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Everybody on the machine can read a command line."""
    seen: dict = {}
    monkeypatch.setattr(subprocess, "Popen", lambda command, **given: seen.update(given, command=command))
    mlflow_runs.start_following(tmp_path, "http://u:hunter2@h")
    assert "hunter2" not in str(seen["command"]) and seen["env"]["MLFLOW_TRACKING_URI"] == "http://u:hunter2@h"
    monkeypatch.undo()
    # The rule, beside a report that is there; Snakemake prints its command and keeps it.
    (tmp_path / "results/smoke/report").mkdir(parents=True)
    uri = f"sqlite:///{tmp_path}/other.db"
    command = [sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), "--directory", str(tmp_path)]
    command += ["--cores", "1", "-p"]
    command += ["--allowed-rules", "mlflow", "--configfile", str(CONFIGS / "smoke.yaml")]
    command += ["--config", f"tracking_uri={uri}", "--", "results/smoke/mlflow.done"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "other.db").is_file() and not (tmp_path / "results/smoke/mlflow.db").exists()
    kept = [file.read_text() for file in (tmp_path / ".snakemake/metadata").iterdir()]
    assert len(kept) == 1 and "sso mlflow-sync --results" in kept[0] and "--tracking-uri" not in kept[0]
