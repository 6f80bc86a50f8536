"""What a person sees while the workflow runs and at its end."""

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from snakemake.settings.enums import Quietness
from snakemake.settings.types import OutputSettings
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

import snakemake_logger_plugin_sso as plugin
from sso.config import load
from tests.conftest import REPOSITORY
from workflow import ending
from workflow.estimate import Estimate, about
from workflow.experiment import Grid

SMOKE = REPOSITORY / "config" / "smoke.yaml"


class Stream:
    """A logger whose events the plugin shows, and what it has shown."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings):
        self.out = io.StringIO()
        monkeypatch.setattr(sys, "stderr", self.out)
        self.grid = Grid(load(SMOKE), str(folder))
        jobs = {rule: self.grid.of(rule)[0] for rule in ("sft", "policy", "judge")}
        self.jobs = dict(enumerate(jobs.values(), 1))
        self.handler = plugin.LogHandler(OutputSettings(quiet={Quietness.RULES, Quietness.HOST}, **settings), None)
        self.logger = logging.Logger("events")
        self.logger.addHandler(self.handler)

    def follow(self) -> None:
        self.handler.follow(self.jobs, Estimate(self.grid, self.jobs.values(), cores=2))

    def event(self, event: LogEvent | None, text: str | None = "scheduler's words", level=logging.INFO, **more) -> None:
        self.logger.log(level, text, extra={"event": event, **more})

    def log(self, number: int, text: str) -> None:
        path = Path(self.jobs[number].log)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @property
    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()


@pytest.fixture
def stream(tmp_path, monkeypatch):
    made = Stream(tmp_path, monkeypatch)
    yield made
    made.handler.close()


def test_a_finished_job_is_a_line_and_the_schedulers_words_are_none(stream):
    stream.event(None, "Building DAG of jobs...")
    stream.follow()
    stream.event(None, "Select jobs to execute...")
    stream.event(LogEvent.JOB_STARTED, jobs=[1, 2])
    stream.event(LogEvent.JOB_FINISHED, job_id=1)
    stream.event(LogEvent.PROGRESS, None, done=1, total=4)
    stream.event(None, "a warning of Snakemake's", logging.WARNING)
    for number in (2, 3, 0):  # 0: `all`
        stream.event(LogEvent.JOB_FINISHED, job_id=number)
    first, sft, warning, policy, judge = stream.lines
    assert (first, warning) == ("Building DAG of jobs...", "a warning of Snakemake's")
    assert re.fullmatch(r"\[1/3\] sft qwen2 seed 0, 0 s, about \d+ s left", sft)
    assert re.fullmatch(r"\[2/3\] policy qwen2 seed 0 \w+, 0 s, about \d+ s left", policy)
    assert re.fullmatch(r"\[3/3\] judge qwen2 seed 0 base, 0 s", judge)


def test_a_failed_job_is_told_at_once_with_its_last_words(stream):
    stream.follow()
    stream.log(1, "Traceback\nerror: sft.jsonl:3: no reply; give one.\nbye\n")
    stream.event(LogEvent.JOB_STARTED, jobs=[1])
    about_it = {"jobid": 1, "rule_name": "sft", "rule_msg": None, "input": [], "output": [], "log": [], "aux": {}}
    error = {**about_it, "conda_env": None, "shellcmd": "x", "indent": False}
    stream.event(LogEvent.JOB_ERROR, "Error in rule sft, jobid: 1", logging.ERROR, **error)
    log = stream.jobs[1].log
    assert stream.lines == [f"[0/3] failed: sft qwen2 seed 0, 0 s: error: sft.jsonl:3: no reply; give one. [{log}]"]
    # It may run again, as with `retries`.
    stream.event(LogEvent.JOB_STARTED, jobs=[1])
    stream.event(LogEvent.JOB_FINISHED, job_id=1)
    assert stream.lines[-1].startswith("[1/3] sft qwen2 seed 0, 0 s")


def test_an_interrupted_run_says_how_to_go_on_and_a_failed_one_does_not(stream):
    ended = "WorkflowError:\nAt least one job did not complete successfully."
    stream.follow()
    stream.event(LogEvent.JOB_FINISHED, job_id=1)
    stream.event(LogEvent.ERROR, ended, logging.ERROR, exception="WorkflowError")
    assert stream.lines[-1] == "At least one job did not complete successfully."
    stream.event(None, "Terminating processes on user request, this might take some time.")
    stream.handler.close()
    stream.event(LogEvent.ERROR, ended, logging.ERROR, exception="WorkflowError")
    assert stream.lines[-1] == "interrupted: 1 of 3 jobs are done; the same command goes on."


def test_where_rules_are_not_quiet_an_error_is_told_by_snakemake_too(tmp_path, monkeypatch):
    stream = Stream(tmp_path, monkeypatch)
    stream.handler.inner.filters[0].quiet = set()
    stream.follow()
    about_it = {"jobid": 1, "rule_name": "sft", "rule_msg": None, "input": [], "output": [], "log": [], "aux": {}}
    error = {**about_it, "conda_env": None, "shellcmd": "x", "indent": False}
    stream.event(LogEvent.JOB_ERROR, "Error in rule sft, jobid: 1", logging.ERROR, **error)
    assert "Error in rule sft:" in stream.lines
    stream.handler.close()


def test_it_is_never_silent_for_long(stream, monkeypatch):
    """With a second in the place of the fifteen."""
    monkeypatch.setattr(plugin, "EVERY_S", 1.0)
    stream.follow()
    stream.log(1, "loading\nsft: 300/3000, 33.78it/s, 01:19 left, loss 1.1\nsft: 600/3000, 34it/s, 01:10 left\x1b[2J\n")
    stream.event(LogEvent.JOB_STARTED, jobs=[1, 2])
    started, seen = time.monotonic(), []
    while len(seen) < 2:
        assert time.monotonic() - started < 20
        time.sleep(0.1)
        seen = stream.lines
    job = r"sft qwen2 seed 0, \d+ s, 600/3000, 34it/s, 01:10 left\\x1b\[2J; policy qwen2 seed 0 \w+, \d+ s"
    assert all(re.fullmatch(rf"\[0/3\] running; {job}; about \d+ s left", line) for line in seen), seen
    assert time.monotonic() - started < 10
    stream.handler.close()
    count = len(stream.lines)
    time.sleep(2.2)
    assert len(stream.lines) == count


def test_half_a_minute_is_never_without_a_line():
    assert plugin.EVERY_S + 1 < 30  # the thread looks once a second


def test_a_terminal_shows_the_running_jobs_and_is_left_as_it_was(tmp_path):
    code = """
import logging, time
from pathlib import Path
from snakemake.settings.types import OutputSettings
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_logger_plugin_sso import LogHandler
from sso.config import load
from workflow.estimate import Estimate
from workflow.experiment import Grid
grid = Grid(load("config/smoke.yaml"), LOGS)
jobs = dict(enumerate(grid.of("sft", "policy"), 1))
log = Path(jobs[1].log)
log.parent.mkdir(parents=True)
log.write_text("sft: 900/3000, 34.7it/s, 01:00 left")
handler, logger = LogHandler(OutputSettings(), None), logging.Logger("events")
logger.addHandler(handler)
handler.follow(jobs, Estimate(grid, jobs.values(), 2))
logger.info("", extra=dict(event=LogEvent.JOB_STARTED, jobs=[1]))
time.sleep(2.5)
logger.warning("careful")
logger.info("", extra=dict(event=LogEvent.JOB_FINISHED, job_id=1))
handler.close()
print("after")
"""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code.replace("LOGS", repr(str(tmp_path)))]
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=REPOSITORY)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
    assert child.wait() == 0, shown.decode()
    text = shown.decode()
    assert re.search(r"  sft qwen2 seed 0, [12] s, 900/3000, 34.7it/s, 01:00 left\s", text)
    assert "careful" in text and re.search(r"\[1/\d\] sft qwen2 seed 0, [23] s, about", text)
    # The cursor is there again, and nothing is drawn any more.
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l") and text.rstrip().endswith("after")


def test_snakemake_knows_the_plugin_by_name():
    assert LoggerPluginRegistry().get_plugin("sso").log_handler is plugin.LogHandler


# Estimates.


def test_records_come_before_the_cost_model_and_measured_times_before_both(tmp_path):
    grid = Grid(load(SMOKE), str(tmp_path))
    jobs, (report,) = grid.of("judge"), grid.of("report")
    by_model = Estimate(grid, [*jobs, report], cores=1)
    assert by_model.known and not by_model.recorded
    for job, seconds in zip(jobs[1:], (20, 40, 60, 80), strict=True):
        record = Path(f"{job.output}.run.json")
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({"status": "finished", "wall_s": seconds}))
    recorded = Estimate(grid, jobs, cores=1)
    assert recorded.recorded and recorded.left({}) == pytest.approx(250, abs=5)  # the first by the others' mean
    assert Estimate(grid, jobs, cores=2).left({}) == pytest.approx(125, abs=5)
    # A rule without a record is as much slower than the model says as those with one are.
    slower = Estimate(grid, [report], cores=1).expected[report.output] / by_model.expected[report.output]
    assert slower == pytest.approx(200 / sum(by_model.expected[job.output] for job in jobs[1:]))
    done = {job.output for job in jobs[:4]}
    assert recorded.left({jobs[4].output: (30, 0)}, done) == pytest.approx(50, abs=2)
    recorded.finished(jobs[0], 100)  # twice as long as expected
    assert recorded.left({}, done) == pytest.approx(160, abs=5)


def test_a_job_that_is_slow_says_so_of_itself_and_of_others(tmp_path):
    grid = Grid(load(SMOKE), str(tmp_path))
    first, second = jobs = grid.of("judge")[:2]
    estimate = Estimate(grid, jobs, cores=1)
    expected = estimate.expected[first.output]
    assert estimate.left({first.output: (expected, 3 * expected)}) == pytest.approx(7 * expected)
    assert estimate.left({first.output: (expected / 4, 0)}) == pytest.approx(1.75 * expected)
    overdue = estimate.left({first.output: (4 * expected, 0)}, [second.output])
    assert overdue == pytest.approx(0.4 * expected)  # never "now"


@pytest.mark.parametrize(
    ("said", "seconds"), [("300/3000", 900), ("2700/3000", 11.1), ("1/3000", 0), ("", 0), ("0/0", 0)]
)
def test_a_log_says_how_long_a_job_takes_still(said, seconds, tmp_path):
    log = tmp_path / "log"
    log.write_text(f"sft: {said}, 3it/s, 01:00 left\n" if said else "loading\n")
    os.utime(log, (1100, 1100))  # a hundred seconds after the job had started
    assert plugin.still(log, 1000, 1100) == pytest.approx(seconds, abs=0.1)
    assert plugin.still(log, 1000, 1105) == pytest.approx(max(seconds - 5, 0), abs=0.1)


def test_a_chain_takes_as_long_as_its_jobs_on_any_number_of_cores(tmp_path):
    grid = Grid(load(SMOKE), str(tmp_path))
    chain = grid.of("sft", "answer", "judge", "report")
    estimate = Estimate(grid, chain, cores=1000)
    first = {rule: estimate.expected[grid.of(rule)[0].output] for rule in ("sft", "answer", "judge", "report")}
    assert estimate.left({}) >= sum(first.values()) - 0.01


def test_an_unknown_shape_costs_the_estimate_and_not_the_run(tmp_path):
    from workflow import experiment as experiments

    (tmp_path / "config.json").write_text("{}")
    given = {"model": str(tmp_path), "queries": "q.jsonl"}
    grid = Grid(experiments.load([REPOSITORY / "config" / "local_model.yaml"], given), str(tmp_path))
    assert not Estimate(grid, list(grid), 2).known


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "1 s"), (40, "40 s"), (330, "6 min"), (27000, "7.5 h")])
def test_times_are_said_as_one_says_them(seconds, said):
    assert about(seconds) == said


# The end.

SAID = ['WR, (SSO) - (PBAA): 1.0 [-0.3, 2.4] (all backbones): "SSO improves on PBAA." not distinguishable', "two"]


def page(root: Path, said: list[str] | None) -> Path:
    (root / "report").mkdir(parents=True)
    (root / "report" / "report.html").write_text("")
    if said is not None:
        (root / "report" / "told.json").write_text(json.dumps({"headline": said}))
    return root


def test_the_end_says_the_reports_figures_its_page_and_what_to_type(tmp_path):
    root = page(tmp_path / "results" / "micro", SAID)
    experiment = load(REPOSITORY / "config" / "micro.yaml")
    lines = list(ending.told(experiment, root, str(Path(sys.executable).parent)))
    assert lines[0] == f"done: {root / 'report' / 'report.html'}"
    assert lines[1].startswith("a simulated world, tiny models, judged by its oracle")
    assert lines[2:4] == [f"  {said}" for said in SAID]
    table = f"sso table --experiment micro --results {root} --version v2 --table 1"
    ui = f"mlflow ui --backend-store-uri sqlite:///{root}/mlflow.db --host 127.0.0.1"
    assert lines[4:] == ["next:", f"  {table}", f"  {ui}"]
    assert list(ending.told(experiment, root, "", brief=True)) == lines[:1]
    # Where the shell does not find this environment's commands, they are named by their place.
    elsewhere = list(ending.told(experiment, root, "/nowhere"))
    assert elsewhere[-2].strip().startswith(str(Path(sys.executable).parent / "sso"))
    here = str(Path(sys.executable).parent)
    # The first table that has figures; none where no table has.
    own = list(ending.commands(experiment, root, here, ["v2_against_start", "v2_figure3"]))
    assert own[0].endswith("--version v2 --table against_start") and len(own) == 2
    assert [line.split()[0] for line in ending.commands(experiment, root, here, [])] == ["mlflow"]
    kept = ending.commands(experiment, Path("results/micro"), here)
    assert next(kept) == "sso table --experiment micro --version v2 --table 1"


@pytest.mark.parametrize("said", [None, []])
def test_an_end_without_figures(said, tmp_path):
    lines = list(ending.told(load(SMOKE), page(tmp_path, said), ""))
    assert lines[1] == "no headline figure has an interval here; the page says why, claim by claim."
    assert lines[2] == "next:" and len(lines) == 5


def test_a_run_without_a_page_has_no_end_to_tell(tmp_path):
    assert list(ending.told(load(SMOKE), tmp_path, "")) == []
