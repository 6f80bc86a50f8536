"""End to end: every rule runs for real on config/smoke.yaml, in a folder of its own. Minutes; uses all cores."""

import json
import re
import shlex
import subprocess
import sys
import time
from html import escape
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from workflow import experiment as experiments
from workflow.experiment import Grid

CONFIG = REPOSITORY / "config" / "smoke.yaml"
ROOT = Path("results") / "smoke"


def command(folder: Path, *arguments: str) -> list[str]:
    start = [sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), "--directory", str(folder)]
    return [*start, "--configfile", str(CONFIG), *arguments]


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(folder, *arguments), cwd=folder, capture_output=True, text=True, timeout=1200)


def run(folder: Path) -> Path:
    """A run; what it says lies beside its results as `said.json`, each line with the second when it came."""
    started, words = time.monotonic(), command(folder, "--cores", "all")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(words, cwd=folder, **pipes) as process:
        said = [(time.monotonic() - started, line.rstrip("\n")) for line in process.stdout]
    assert process.returncode == 0, "\n".join(line for _, line in said)
    print(f"smoke run: {time.monotonic() - started:.0f} s")
    (folder / "said.json").write_text(json.dumps(said))
    return folder


def tables(folder: Path) -> dict[str, bytes]:
    """All tables and charts, as bytes; report.md and report.html show them again, beside the jobs' times."""
    report = folder / ROOT / "report"
    files = [report / "results.csv", *sorted((report / "tables").iterdir()), *sorted((report / "figures").iterdir())]
    return {str(file.relative_to(report)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("smoke"))


def test_every_job_left_its_output_and_a_record_of_success(smoke: Path):
    grid = Grid(experiments.load([CONFIG], {}))
    for job in grid:
        assert (smoke / job.output).exists(), job.output
    records = {p: json.loads(p.read_text()) for p in (smoke / ROOT).rglob("*.run.json")}
    assert {record["status"] for record in records.values()} == {"finished"}
    told = {(record["rule"], frozenset(record["wildcards"].items())) for record in records.values()}
    assert told == {
        (job.rule, frozenset(job.wildcards.items())) for job in grid if job.rule not in ("config", "mlflow")
    }
    recorded = {job.output for job in grid if (smoke / f"{job.output}.run.json").is_file()}
    assert {job.rule for job in grid if job.output not in recorded} <= {"config", "report", "mlflow"}


def test_the_run_says_which_job_is_done_and_is_never_silent(smoke: Path):
    said = json.loads((smoke / "said.json").read_text())
    lines, jobs = [line for _, line in said], len(Grid(experiments.load([CONFIG], {})))
    begin = next(at for at, line in enumerate(lines) if line.startswith(f"{jobs} jobs, about "))
    assert lines[begin + 1].startswith(f"The page will be {ROOT / 'report' / 'report.html'}; ")
    done = [line for line in lines if re.match(r"\[\d+/\d+\] (?!running)", line)]
    assert [line.partition("]")[0] for line in done] == [f"[{n}/{jobs}" for n in range(1, jobs + 1)]
    told = re.compile(r"\[\d+/\d+\] \w+( [^,]+)?, \d+ s(, about \d+ (s|min) left)?")
    assert all(told.fullmatch(line) for line in done), done
    assert any(" policy qwen2 seed 0 sso, " in line for line in done)
    times = [second for second, _ in said[begin:]]
    assert max(after - before for before, after in pairwise(times)) < 30


def test_the_end_of_the_run_names_the_page_and_a_command_that_works(smoke: Path):
    lines = [line for _, line in json.loads((smoke / "said.json").read_text())]
    end = lines[lines.index(f"done: {smoke / ROOT / 'report' / 'report.html'}") :]
    table, ui = (line.strip() for line in end[end.index("next:") + 1 :][:2])
    words = shlex.split(table)
    assert Path(words[0]).name == "sso" and "mlflow ui --backend-store-uri sqlite:////" in ui
    shown = subprocess.run([sys.executable, "-m", "sso", *words[1:]], capture_output=True, text=True, cwd="/")
    assert shown.returncode == 0 and "SFT" in shown.stdout, shown.stderr


def test_a_table_of_ours_is_there(smoke: Path):
    found = tables(smoke)
    assert "tables/v2_table1.md" in found and (smoke / ROOT / "report" / "report.md").is_file()
    rows = found["results.csv"].decode().splitlines()
    assert any("alpaca_eval2_wr" in row for row in rows) and any("gsm8k" in row for row in rows)


def test_the_page_holds_what_the_jobs_made(smoke: Path):
    """Charts that need training records and categories, and samples of every kind, with verdicts."""
    report = smoke / ROOT / "report"
    charts = {path.stem for path in (report / "figures").glob("*.svg")}
    assert charts == {"figure3", "ablation", "v1_iterations", "categories", "training"}
    page = (report / "report.html").read_text(encoding="utf-8")
    pairs = map(json.loads, (smoke / ROOT / "qwen2/s0/pairs/sso/pairs.jsonl").read_text().splitlines())
    assert sum(escape(pair["chosen"][0]["content"]) in page for pair in pairs) >= 20
    assert "20 pairs of each of" in page and "20 triples" in page and "20 queries" in page
    assert "under: " in page and "a picture only" in page
    assert "judge: prefers" in page and "the reference (" in page
    assert all(f">{stage}</th>" in page for stage in ("sft", "sample", "train", "answer", "judge"))


def test_snakemakes_own_report(smoke: Path):
    out = smoke / "snakemake.html"
    result = snakemake(smoke, "--report", str(out))
    assert result.returncode == 0, result.stderr
    page = out.read_text(encoding="utf-8")
    for category in ("Report", "Scores", "Pairs", "Reward models"):
        assert f'"{category}"' in page
    assert "how on-policy they are" in page and "reproduced: queries, principles, triples" in page
    assert len(page) < 8_000_000


def test_mlflow_has_a_run_of_every_record(smoke: Path):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{smoke / ROOT}/mlflow.db")
    experiment = client.get_experiment_by_name("smoke").experiment_id
    uploaded = [r for r in client.search_runs([experiment], max_results=1000) if "sso.record" in r.data.tags]
    assert len(uploaded) == len(list((smoke / ROOT).rglob("*.run.json")))
    losses = [r for r in uploaded if r.data.tags["stage"] in ("train", "generator", "policy")]
    assert losses and all(r.data.metrics for r in losses)


def test_there_is_nothing_left_to_do(smoke: Path):
    result = snakemake(smoke, "-n")
    assert result.returncode == 0 and "Nothing to be done" in result.stdout + result.stderr


def test_a_changed_beta_reruns_its_arm_alone(smoke: Path):
    result = snakemake(smoke, "-n", "--quiet", "host", "--config", "arms={sso: {policy: {beta: 0.2}}}")
    plan = re.findall(r"^    output: ([^,\n]+)", result.stdout + result.stderr, re.MULTILINE)
    cell = f"{ROOT}/qwen2/s0"
    arm = [f"{cell}/policy/sso", f"{cell}/eval/sso/answers", f"{cell}/eval/sso/judged"]
    assert sorted(plan) == sorted([*arm, f"{ROOT}/config.json", f"{ROOT}/report", f"{ROOT}/mlflow.done"])


def test_the_same_config_and_seed_give_the_same_bytes(smoke: Path, tmp_path: Path):
    again = run(tmp_path)
    assert tables(again) == tables(smoke)
