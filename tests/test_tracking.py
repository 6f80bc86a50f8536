"""Records of jobs, and their way into MLflow."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from sso.errors import InputError
from sso.jobs import mlflow_runs, tracking
from sso.jobs.job import MARK, Job
from sso.records import file_digest
from sso.train.settings import Sft
from tests.conftest import REPOSITORY
from tests.processes import until
from workflow import experiment as experiments
from workflow.experiment import Grid
from workflow.shared import text


@contextmanager
def recorded(rule: str, out: Path, stage: str, *given, arm: str | None = None, iteration: int = 0, **wildcards):
    """A run of a job of the workflow's."""
    at = {"backbone": "qwen2", "seed": "0", **wildcards}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, Job(rule, at, str(out), (str(out),), arm=arm, iteration=iteration).mark)
        with tracking.run(out, stage, *given) as run:
            yield run


def work(path: Path, arm: str | None, seed: int = 0, steps: int = 3) -> None:
    """A job that writes a file and logs a few rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with recorded("policy", path, "policy", Sft(steps=steps), {}, seed, arm=arm) as run:
        for step in range(steps):
            run.log(step, {"loss": 1 / (step + 1), "x+:y+>y-/margin": 2.0})
        run.summary["score"] = 0.5
        path.write_text("{}")


def read(path: Path) -> dict:
    return json.loads(tracking.record_path(path).read_text())


def client(results: Path):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=mlflow_runs.default_uri(results))


def runs(results: Path) -> list:
    found = client(results)
    return found.search_runs([found.get_experiment_by_name(results.name).experiment_id], max_results=1000)


def jobs(results: Path) -> list:
    return [run for run in runs(results) if "sso.record" in run.data.tags]


def test_a_record_holds_what_the_job_was(tmp_path: Path):
    out, source = tmp_path / "model", tmp_path / "data.jsonl"
    source.write_text("x")
    with tracking.run(out, "sft", Sft(steps=5), {"data": source}, seed=3) as run:
        out.mkdir()
        (out / "tuning.json").write_text("{}")
        (out / "tokenizer.json").write_text("{}")
        run.log(1, {"loss": 2.5, "bad": math.nan})
        run.summary["loss"] = 2.5
    record = read(out)
    assert record["stage"] == "sft" and record["status"] == "finished" and record["seed"] == 3
    assert record["settings"]["steps"] == 5
    assert record["inputs"]["data"][0] == str(source) and len(record["inputs"]["data"][1]) == 16
    assert record["metrics"] == [[1, {"loss": 2.5, "bad": None}]] and record["summary"] == {"loss": 2.5}
    assert record["output"] == [str(out), file_digest(out)]
    assert record["peak_rss_mb"] > 1 and record["wall_s"] >= 0 and "torch" in record["versions"]


def test_a_failure_is_recorded_and_raised(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), tracking.run(tmp_path / "out", "sft", {}, {}):
        _ = 1 / 0
    record = read(tmp_path / "out")
    assert record["status"] == "failed" and record["error"].startswith("ZeroDivisionError")


def test_no_secret_reaches_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    settings = {"judge": {"base_url": "https://user:hunter2@host/v1"}}
    with pytest.raises(OSError), tracking.run(tmp_path / "out", "judge", settings, {}):
        raise OSError("no answer from https://user:hunter2@host/v1")
    text = tracking.record_path(tmp_path / "out").read_text()
    assert "sk-very" not in text and "hunter2" not in text and "https://***@host/v1" in text


@pytest.mark.parametrize(
    ("job", "tags"),
    [
        (None, {}),
        (Job("data", {}, "o", ("o",)), {}),
        (Job("sft", {"backbone": "qwen2", "seed": "1"}, "o", ("o",)), {"backbone": "qwen2", "seed": "1"}),
        (
            Job("policy", {"backbone": "l", "seed": "0", "run": "odd/name"}, "o", ("o",), arm="v", iteration=2),
            {"backbone": "l", "seed": "0", "arm": "v", "iteration": "2"},
        ),
        (
            Job("sample", {"backbone": "l", "seed": "0", "set": "v2"}, "o", ("o",), iteration=1),
            {"backbone": "l", "seed": "0"},
        ),
        (
            Job("rewardbench", {"backbone": "l", "seed": "0", "reward": "mixed"}, "o", ("o",)),
            {"backbone": "l", "seed": "0", "arm": "mixed", "method": "M"},
        ),
    ],
)
def test_tags_come_from_the_job_and_not_from_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job, tags):
    """By way of a record, as a rule's command writes it."""
    monkeypatch.setenv(MARK, job.mark if job else "")
    with tracking.run(tmp_path / "out", "stage", {}, {}):
        pass
    record = json.loads(tracking.record_path(tmp_path / "out").read_text())
    assert record.get("rule") == (job.rule if job else None)
    path = Path("llama/s7/policy/other/it3.run.json")
    found = mlflow_runs.place(path, record, {"reward/mixed": {"method": "M"}, "mixed": {"method": "another"}})
    assert found == {"path": "llama/s7/policy/other/it3", **tags}


def test_every_mark_of_a_job_is_its_own_and_does_not_hang_on_other_arms():
    """Two jobs with one mark would be one line in MLflow; one that changes with other arms would rerun jobs."""
    experiment = experiments.load([REPOSITORY / "config" / "micro.yaml"], {})
    grid = Grid(experiment)
    assert len({job.mark for job in grid}) == len(grid)
    for job in grid:
        assert json.loads(job.mark)["wildcards"] == job.wildcards and job.arm in (None, *experiment.arms)
    turned = experiment.model_copy(update={"arms": dict(reversed(experiment.arms.items()))})
    assert {job.output: job.mark for job in Grid(turned)} == {job.output: job.mark for job in grid}


def test_sync_uploads_each_record_once(tmp_path: Path):
    results = tmp_path / "micro"
    work(results / "qwen2" / "s0" / "policy" / "sso", "sso")
    work(results / "qwen2" / "s0" / "eval" / "sso" / "scores.json", "sso")
    assert mlflow_runs.sync(results) == 2
    assert mlflow_runs.sync(results) == 0
    work(results / "qwen2" / "s0" / "policy" / "sso", "sso")  # ran again
    work(results / "qwen2" / "s0" / "policy" / "pbaa", "pbaa")
    assert mlflow_runs.sync(results) == 2
    found = jobs(results)
    assert len(found) == 4
    # Parents: one an arm of a cell, and all runs of the arm are its children.
    parents = {run.data.tags["sso.group"]: run.info.run_id for run in runs(results) if "sso.group" in run.data.tags}
    assert set(parents) == {"qwen2/s0/sso", "qwen2/s0/pbaa"}
    assert {run.data.tags["mlflow.parentRunId"] for run in found} == set(parents.values())
    scores = next(run for run in found if run.data.tags["path"].endswith("scores.json"))
    assert scores.data.params["steps"] == "3" and scores.data.metrics["score"] == 0.5
    assert [m.value for m in client(results).get_metric_history(scores.info.run_id, "loss")] == [1, 1 / 2, 1 / 3]
    assert scores.data.metrics["xp:yp_over_y-/margin"] == 2.0
    # By reference: nothing is copied.
    output = results / "qwen2" / "s0" / "eval" / "sso" / "scores.json"
    assert (scores.data.tags["output"], scores.data.tags["output.digest"]) == (str(output), file_digest(output))
    assert client(results).list_artifacts(scores.info.run_id) == [] and not (results / "mlartifacts").exists()


def test_an_arms_run_spans_its_jobs_and_has_their_scores_by_iteration(tmp_path: Path):
    results = tmp_path / "micro"
    for iteration in (2, 1):
        for part, stage in (("policy/v/it{}", "policy"), ("eval/v/it{}/judged", "judge")):
            out = results / "l/s0" / part.format(iteration)
            with recorded(stage, out, stage, {}, {}, arm="v", iteration=iteration) as run:
                run.summary.update(score=iteration / 2, unscored=float("nan"))
                time.sleep(0.01)
    assert mlflow_runs.sync(results) == 4
    (arm,) = [run for run in runs(results) if "sso.group" in run.data.tags]
    children = [run.info for run in jobs(results)]
    assert arm.info.start_time == min(child.start_time for child in children)
    assert arm.info.end_time == max(child.end_time for child in children) and arm.info.status == "FINISHED"
    assert set(arm.data.metrics) == {"judge/score"} and arm.data.tags["stage"] == "arm"
    history = client(results).get_metric_history(arm.info.run_id, "judge/score")
    assert {point.step: point.value for point in history} == {1: 0.5, 2: 1.0}


def test_an_ablation_is_one_query_and_inputs_are_data_sets(tmp_path: Path):
    experiment = experiments.load([REPOSITORY / "config" / "micro.yaml"], {})
    results = tmp_path / "micro"
    results.mkdir()
    (results / "config.json").write_text(text(experiment))
    source = tmp_path / "pairs.jsonl"
    source.write_text("x")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    for arm in ("sso", "l_plus", "l_minus", "pbaa", "sso_v1"):
        inputs = {"pairs": source, "model": model}
        with recorded("judge", results / f"qwen2/s0/eval/{arm}/judged", "judge", {}, inputs, arm=arm):
            pass
    with recorded("reward_model", results / "qwen2/s0/reward/pbaa/model", "reward", {}, {}, reward="pbaa"):
        pass
    assert mlflow_runs.sync(results) == 6
    store = client(results)
    number = store.get_experiment_by_name("micro").experiment_id

    def found(query: str) -> set[str]:
        return {run.data.tags["arm"] for run in store.search_runs([number], query)}

    # The queries of docs/mlflow.md.
    assert found("tags.stage = 'judge' and tags.version = 'v2' and tags.objective LIKE 'l_%'") == {"l_plus", "l_minus"}
    assert found("tags.arm = 'sso' and tags.backbone = 'qwen2' and tags.seed = '0'") == {"sso"}
    assert found("tags.stage = 'arm' and tags.version = 'v2'") == {"sso", "l_plus", "l_minus", "pbaa"}
    assert found("tags.method = 'pbaa' and tags.stage = 'reward'") == {"pbaa"}
    assert found("tags.stage = 'arm' and tags.base_loss = 'ipo' and tags.version = 'v1'") == {"sso_v1"}
    (run,) = store.search_runs([number], "tags.arm = 'sso' and tags.stage = 'judge'")
    (given,) = run.inputs.dataset_inputs  # a folder is a model: a parameter
    assert (given.dataset.name, given.dataset.digest) == ("pairs.jsonl", file_digest(source))
    assert json.loads(given.dataset.source) == {"uri": str(source)}
    assert given.tags[0].value == "pairs" and run.data.params["input.model"] == file_digest(model)


def test_an_arms_run_has_its_settings_and_what_is_no_arm_another_stage(tmp_path: Path):
    results = tmp_path / "micro"
    results.mkdir()
    experiment = experiments.load([REPOSITORY / "config" / "micro.yaml"], {})
    (results / "config.json").write_text(text(experiment))
    cell = results / "qwen2/s0"
    work(cell / "sft", None)
    work(cell / "policy/sso", "sso")
    for stage, out in (("judge", "eval/sso/judged"), ("data_quality", "pairs/sso/data_quality")):
        with recorded(stage, cell / out, stage, {}, {}, arm="sso") as run:
            run.summary["score"] = 1.0
    for reward in ("sso", "skywork"):
        with recorded("reward_model", cell / "reward" / reward / "model", "reward", {}, {}, reward=reward):
            pass
    assert mlflow_runs.sync(results) == 6
    store, first = client(results), "tags.stage = 'arm' and tags.version = 'v2' and tags.backbone = 'qwen2'"
    number = store.get_experiment_by_name("micro").experiment_id

    def stages() -> dict[str, set]:
        groups = [run.data.tags for run in runs(results) if "sso.group" in run.data.tags]
        return {
            group: {t["stage"] for t in groups if t["sso.group"] == group} for group in {t["sso.group"] for t in groups}
        }

    assert stages() == {"qwen2/s0": {"shared"}, "qwen2/s0/sso": {"arm"}, "qwen2/s0/skywork": {"rewards"}}
    (arm,) = store.search_runs([number], first)
    beta = {name: str(getattr(experiment.arms["sso"], name).beta) for name in ("generator", "policy")}
    assert {name: arm.data.params[f"{name}.beta"] for name in beta} == beta
    assert arm.data.params["data"] == "good_bad" and arm.data.params["label"] == "SSO"
    # Another beta is another run; what did not run again still counts for it.
    other = experiments.load([REPOSITORY / "config" / "micro.yaml"], {"arms": {"sso": {"policy": {"beta": 0.7}}}})
    (results / "config.json").write_text(text(other))
    with recorded("judge", cell / "eval/sso/judged", "judge", {}, {}, arm="sso") as run:
        run.summary["score"] = 2.0
    assert mlflow_runs.sync(results) == 1 and mlflow_runs.sync(results) == 0
    (arm,) = store.search_runs([number], first)
    assert arm.data.params["policy.beta"] == "0.7" and stages()["qwen2/s0/sso"] == {"arm", "replaced"}
    assert arm.data.metrics == {"judge/score": 2.0, "data_quality/score": 1.0}
    # Without a config nothing is replaced.
    (results / "config.json").unlink()
    assert mlflow_runs.sync(results) == 0 and len(store.search_runs([number], first)) >= 1


def test_a_store_of_before_gets_settings_and_stages(tmp_path: Path):
    results = tmp_path / "micro"
    results.mkdir()
    (results / "config.json").write_text(text(experiments.load([REPOSITORY / "config" / "micro.yaml"], {})))
    store = client(results)
    number = store.create_experiment("micro")
    for name in ("sso", "skywork"):
        store.create_run(number, tags={"sso.group": f"qwen2/s0/{name}", "stage": "arm", "arm": name})
    assert mlflow_runs.sync(results) == 0
    found = {run.data.tags["arm"]: run for run in store.search_runs([number])}
    assert found["sso"].data.params["policy.objective"] == "pairs" and found["sso"].data.tags["stage"] == "arm"
    assert found["skywork"].data.params == {} and found["skywork"].data.tags["stage"] == "rewards"


def test_the_experiments_note_holds_the_verdicts_and_the_page(tmp_path: Path):
    results = tmp_path / "micro"
    work(results / "qwen2/s0/policy/sso", "sso")
    mlflow_runs.sync(results)
    assert "mlflow.note.content" not in client(results).get_experiment_by_name("micro").tags
    (results / "report").mkdir()
    told = {"headline": [], "claims": ["A is B. **holds** (a - b: 1)", "B is C. **not tested** (too few)"]}
    told |= {"ours": ["C is D. **holds** (c - d: 1)"], "counts": ["2 claims of the paper: holds 1", "1 more: holds 1"]}
    (results / "report/told.json").write_text(json.dumps(told))
    mlflow_runs.sync(results)
    tags = client(results).get_experiment_by_name("micro").tags
    assert tags["mlflow.note.content"].splitlines() == [
        f"The page: `{results / 'report/report.html'}`",
        *("", "2 claims of the paper: holds 1.", "", "1 more: holds 1."),
        "",
        "Claims of the paper:",
        "",
        "- A is B. **holds** (a - b: 1)",
        "- B is C. **not tested** (too few)",
        *("", "Claims of our own:", "", "- C is D. **holds** (c - d: 1)"),
    ]
    assert tags["mlflow.experimentKind"] == "custom_model_development"


HELD = """
import sys, time
from pathlib import Path
from sso.cli import main
from sso.jobs import tracking

tracking.FLUSH_S, grow, go = 0, tracking.Run.grow, Path(sys.argv[1])

def held(run, step, values):
    grow(run, step, values)
    while step == 7 and not go.exists():
        time.sleep(0.02)

tracking.Run.grow = held
sys.exit(main(sys.argv[2:]))
"""


def test_mlflow_shows_a_trainings_curves_while_it_runs_once_and_that_it_was_killed(tmp_path: Path):
    results = tmp_path / "micro"
    out, go, record = results / "qwen2/s0/sft", tmp_path / "go", results / "qwen2/s0/sft.run.json"
    out.parent.mkdir(parents=True)
    turns = [{"role": "user", "content": "who ?"}, {"role": "assistant", "content": "me ."}]
    (tmp_path / "sft.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    settings = json.dumps({"steps": 12, "batch_size": 1})
    command = [sys.executable, "-c", HELD, str(go), "sft", "--data", str(tmp_path / "sft.jsonl"), "--out", str(out)]
    command += ["--backbone", '{"architecture": "llama", "layers": 1}', "--settings", settings]
    job = Job("sft", {"backbone": "qwen2", "seed": "0"}, str(out), (str(out),))
    environment = {**os.environ, MARK: job.mark}

    def points(run) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in client(results).get_metric_history(run.info.run_id, "loss")]

    def told() -> list:
        """The runs of jobs after another look, the newest first."""
        assert mlflow_runs.sync(results, live=True) is not None
        return [run for run in runs(results) if "sso.live" in run.data.tags]

    def start() -> subprocess.Popen:
        process = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=-2)

        def shown() -> bool:
            text = tracking.live_path(out).read_text() if tracking.live_path(out).exists() else ""
            return f"/{process.pid}/" in text and text.count("\n") == 8

        until(lambda: process.poll() or shown(), 120)
        assert process.poll() is None, process.stdout.read()
        return process

    killed = start()
    try:
        (run,) = told()
        assert (run.info.status, run.data.tags["path"], run.data.params["steps"]) == ("RUNNING", "qwen2/s0/sft", "12")
        assert [step for step, _ in points(run)] == [*range(1, 8)] and not record.exists()
    finally:
        killed.kill()
        killed.communicate()
    (run,) = told()
    assert run.info.status == "KILLED" and run.data.tags["error"] == "killed: it ended without a record"
    again = start()
    try:
        told()
        run, other = told()
        assert (run.info.status, other.info.status) == ("RUNNING", "KILLED")
        go.touch()
        assert again.wait(120) == 0
    finally:
        again.kill()
        again.communicate()
    done, other = told()
    assert (done.info.run_id, done.info.status, other.info.status) == (run.info.run_id, "FINISHED", "KILLED")
    whole = json.loads(record.read_text())["metrics"]
    assert points(done) == [(step, row["loss"]) for step, row in whole] and len(whole) == 12
    assert len(points(other)) == 7 and not tracking.live_path(out).exists()
    # The record adds nothing to what was seen, and so does another look.
    assert mlflow_runs.sync(results) == 0 and len(told()) == 2 and points(done) == points(told()[0])
    assert done.data.tags["sso.record"] and done.data.tags["output.digest"] == file_digest(out)
    arm = next(run for run in runs(results) if run.data.tags.get("sso.group") == "qwen2/s0")
    assert {run.data.tags["mlflow.parentRunId"] for run in told()} == {arm.info.run_id}
    assert arm.info.status == "FINISHED" and "sso.fresh" not in arm.data.tags


def test_a_job_that_left_nothing_of_an_arm_that_is_another_now(tmp_path: Path):
    """Its own name and stage had become those of the new arm's run, which MLflow refuses."""
    results = tmp_path / "micro"
    path = tracking.live_path(results / "qwen2/s0/generator/sso")
    path.parent.mkdir(parents=True)
    about = {"stage": "train", "wildcards": {"backbone": "qwen2", "seed": "0"}, "arm": "sso", "process": "", "seed": 0}
    about |= {"started": "2026-01-01T00:00:00+00:00", "settings": {}, "inputs": {}, "versions": {}}
    path.write_text(json.dumps({**about, "git_commit": None, "git_dirty": None}) + "\n")
    for beta in (0.5, 0.7):
        made = experiments.load([REPOSITORY / "config" / "micro.yaml"], {"arms": {"sso": {"policy": {"beta": beta}}}})
        (results / "config.json").write_text(text(made))
        assert mlflow_runs.sync(results, live=True) == 0
        path.unlink(missing_ok=True)
    (job,) = [run for run in runs(results) if "sso.live" in run.data.tags]
    assert job.info.status == "KILLED"
    arms = {run.data.tags["stage"]: run for run in runs(results) if run.data.tags.get("sso.group") == "qwen2/s0/sso"}
    assert set(arms) == {"arm", "replaced"} and arms["arm"].info.run_name == "qwen2/s0/sso"
    assert arms["arm"].data.params["policy.beta"] == "0.7" and "sso.live" not in arms["arm"].data.tags


def test_two_folders_of_one_name_leave_each_others_runs_alone(tmp_path: Path):
    """On one server: each call deleted the other's half-uploaded runs, ended its running ones and took its parents."""
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/shared.db"
    store, folders = MlflowClient(tracking_uri=uri), [tmp_path / name / "micro" for name in ("mine", "theirs")]

    def found() -> list:
        return store.search_runs([store.get_experiment_by_name("micro").experiment_id])

    def of(folder: Path) -> dict[str, list]:
        """Its runs: parents, and jobs by their paths."""
        own = [run for run in found() if run.data.tags["sso.folder"] == (folder / ".mlflow.id").read_text()]
        return {
            path: [run for run in own if run.data.tags.get("path", "parent") == path]
            for path in {run.data.tags.get("path", "parent") for run in own}
        }

    for folder in folders:
        work(folder / "qwen2/s0/policy/sso", "sso")
        live = tracking.live_path(folder / "qwen2/s0/generator/sso")
        live.parent.mkdir(parents=True)
        about = {"stage": "train", "wildcards": {"backbone": "qwen2", "seed": "0"}, "arm": "sso", "seed": 0}
        about |= {"started": f"2026-01-01T00:00:0{folders.index(folder)}+00:00", "settings": {}, "inputs": {}}
        about |= {"versions": {}, "git_commit": None, "git_dirty": None, "process": tracking.identity(os.getpid())}
        live.write_text(json.dumps(about) + "\n")
        assert mlflow_runs.sync(folder, uri) == 1
    (parent,) = of(folders[1])["parent"]
    half = {"sso.folder": parent.data.tags["sso.folder"], "sso.uploading": "k", "path": "half"}
    store.create_run(parent.info.experiment_id, tags=half)
    assert mlflow_runs.sync(folders[0], uri) == 0
    for folder in folders:
        (parent,) = of(folder)["parent"]
        jobs = of(folder)["qwen2/s0/policy/sso"] + of(folder)["qwen2/s0/generator/sso"]
        assert [run.data.tags["mlflow.parentRunId"] for run in jobs] == [parent.info.run_id] * 2
        assert [run.info.status for run in jobs] == ["FINISHED", "RUNNING"]
    assert len(of(folders[1])["half"]) == 1
    assert mlflow_runs.sync(folders[1], uri) == 0 and "half" not in of(folders[1])
    # Runs of before have no tag: those of a folder's own records are known again, with their parents.
    count = len(found())
    for run in found():
        store.delete_tag(run.info.run_id, "sso.folder")
    assert [mlflow_runs.sync(folder, uri) for folder in folders] == [0, 0]
    assert len(found()) == count and all(sum(map(len, of(folder).values())) == 3 for folder in folders)


def test_a_failed_jobs_record_keeps_the_curve_that_it_had(tmp_path: Path):
    with pytest.raises(ValueError), tracking.run(tmp_path / "sft", "sft", {}, {}) as run:
        run.grow(1, {"loss": math.inf})
        raise ValueError("diverged")
    assert read(tmp_path / "sft")["metrics"] == [[1, {"loss": None}]]


@pytest.mark.slow
def test_a_server_that_comes_later_gets_everything_once(tmp_path: Path, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    for arm in ("sso", "pbaa"):
        work(tmp_path / "micro" / "qwen2" / "s0" / "policy" / arm, arm)
    assert mlflow_runs.sync(tmp_path / "micro", uri) is None
    assert "`sso mlflow-sync" in capsys.readouterr().err
    command = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path)]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: mlflow_runs.sync(tmp_path / "micro", uri) == 2, 180)
        assert mlflow_runs.sync(tmp_path / "micro", uri) == 0
        from mlflow.tracking import MlflowClient

        there = MlflowClient(tracking_uri=uri)
        found = there.search_runs([there.get_experiment_by_name("micro").experiment_id])
        assert len(found) == 4 and len([run for run in found if "sso.record" in run.data.tags]) == 2
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_a_failed_job_is_a_failed_run(tmp_path: Path):
    with pytest.raises(ValueError), tracking.run(tmp_path / "sft", "sft", {}, {}):
        raise ValueError("diverged")
    mlflow_runs.sync(tmp_path)
    (run,) = jobs(tmp_path)
    assert run.info.status == "FAILED" and "diverged" in run.data.tags["error"]


def test_a_killed_upload_leaves_no_second_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    work(tmp_path / "sft", "sso")
    with monkeypatch.context() as patch:
        patch.setattr(
            "mlflow.tracking.MlflowClient.log_batch", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            mlflow_runs.sync(tmp_path)
    assert jobs(tmp_path) == []
    assert mlflow_runs.sync(tmp_path) == 1
    assert len(runs(tmp_path)) == 2  # the job and its parent


def _work_in(folder: str) -> None:
    for name in range(5):
        work(Path(folder) / "qwen2" / "s0" / "policy" / f"arm{name}", f"arm{name}", steps=500)


def _sync_in(folder: str) -> int:
    return mlflow_runs.sync(folder)


def test_eight_processes_record_and_upload_at_once(tmp_path: Path):
    """Five hundred metric rows a job, batched: seconds, not minutes; nothing lost, nothing twice."""
    folders = [tmp_path / f"part{i}" for i in range(8)]
    with ProcessPoolExecutor(8) as pool:
        list(pool.map(_work_in, map(str, folders)))
        everything = tmp_path / "all"
        everything.mkdir()
        for folder in folders:
            folder.rename(everything / folder.name)
        started = time.monotonic()
        new = list(pool.map(_sync_in, [str(everything)] * 8))
    assert sum(new) == 40 and len(jobs(everything)) == 40
    for run in jobs(everything):
        history = client(everything).get_metric_history(run.info.run_id, "loss")
        assert [m.value for m in history] == [1 / (step + 1) for step in range(500)]
    assert time.monotonic() - started < 120


def test_an_absent_server_costs_a_warning(tmp_path: Path, capsys):
    work(tmp_path / "sft", "sso")
    with socket.socket() as taken:  # a port on which nobody answers
        taken.bind(("127.0.0.1", 0))
        uri = f"http://user:hunter2@127.0.0.1:{taken.getsockname()[1]}"
        assert mlflow_runs.sync(tmp_path, uri) is None
    warning = capsys.readouterr().err.strip().splitlines()
    assert sum(line.startswith("warning: MLflow") for line in warning) == 1
    assert "hunter2" not in "".join(line for line in warning if line.startswith("warning: MLflow"))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere: no such folder; give that of a run"):
        mlflow_runs.sync(tmp_path / "nowhere")


def test_the_environments_address_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = f"sqlite:///{tmp_path}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    work(tmp_path / "micro" / "sft", "sso")
    assert mlflow_runs.sync(tmp_path / "micro") == 1
    assert (tmp_path / "other.db").is_file() and not (tmp_path / "micro" / "mlflow.db").exists()
