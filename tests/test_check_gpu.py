"""`make check-gpu`, rehearsed on the CPU: every part is run and told, whatever becomes of the others."""

import json
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from benchmarks import check_gpu
from benchmarks.check_gpu import Part, Report, execute, install, marked, probe
from sso.jobs import warm
from tests.conftest import REPOSITORY
from tests.processes import until

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def report(tmp_path) -> Report:
    return Report(tmp_path / "check.json", {"parts": {}})


def known(report: Report) -> dict:
    return json.loads(report.path.read_text())["parts"]


def test_a_part_that_fails_or_takes_too_long_is_told_and_the_others_run(report, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check_gpu, "GRACE", 0.5)
    child = tmp_path / "child"
    forks = f"""
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(child)!r}, "w").write(str(child.pid))
print("sleeps", flush=True)
time.sleep(600)
"""
    parts = {
        "fails": Part("fails", 1, python("print('its reason'); raise SystemExit(3)"), lambda: {"found": 1}),
        "sleeps": Part("sleeps", 0.05, python(forks), lambda: {"half": 2}),
        "absent": Part("absent", 1, ["/no/such/program"]),
        "silent": Part("silent", 1, python(""), lambda: json.loads((tmp_path / "none").read_text())),
        "doubts": Part("doubts", 1, python(""), lambda: {"problem": "nothing was made"}),
        "works": Part("works", 1, python("import os; assert os.environ['A'] == 'b'"), environment={"A": "b"}),
    }
    for name, part in parts.items():
        assert report.run(part, 1) == (name == "works")
        assert list(known(report))[-1] == name  # written after every part
    found = known(report)
    statuses = {name: facts["status"] for name, facts in found.items()}
    assert statuses == dict.fromkeys(parts, "failed") | {"sleeps": "timed out", "works": "passed"}
    assert found["fails"] | {"exit_code": 3, "found": 1, "tail": ["its reason"]} == found["fails"]
    assert found["sleeps"]["half"] == 2 and found["sleeps"]["tail"] == ["sleeps"] and found["sleeps"]["seconds"] < 20
    assert "FileNotFoundError" in found["silent"]["problem"] and found["doubts"]["problem"] == "nothing was made"
    assert "tail" not in found["works"]
    until(lambda: not alive(int(child.read_text())))
    assert "timed out" in capsys.readouterr().out


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


TESTS = """
import os, pytest, signal, time
def test_passes(): pass
def test_fails(): assert 1 == 2
@pytest.mark.skip(reason="needs 2 GPUs, 1 here")
def test_skips(): pass
def test_is_stopped():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(600)
"""


def test_tests_that_are_stopped_tell_what_became_of_those_before(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", str(tmp_path), "-p", "no:cacheprovider", "-c", "/dev/null"]
    kept = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as where a shell has started this in the background
    try:
        status, code, _ = execute([*command, "--junitxml", str(tmp_path / "found.xml")], {}, 120, tmp_path / "log")
    finally:
        signal.signal(signal.SIGINT, kept)
    assert (status, code) == ("failed", 2)
    found = check_gpu.tests_of(tmp_path / "found.xml")
    by_name = {test["test"]: (test["outcome"], test.get("why", "")) for test in found["tests"]}
    assert by_name["test_passes"] == ("passed", "") and by_name["test_skips"] == ("skipped", "needs 2 GPUs, 1 here")
    assert by_name["test_fails"][0] == "failed" and "assert 1 == 2" in by_name["test_fails"][1]
    assert by_name[None][0] == "stopped"
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1) and "problem" not in found


def test_no_test_that_passed_is_a_problem(tmp_path):
    (tmp_path / "found.xml").write_text('<testsuites><testsuite><testcase name="a"><skipped message="no GPU"/>')
    with pytest.raises(SyntaxError):  # a report cut in the middle is told by Report.run
        check_gpu.tests_of(tmp_path / "found.xml")
    whole = '<testsuites><testsuite><testcase name="a"><skipped message="no GPU"/></testcase></testsuite></testsuites>'
    (tmp_path / "found.xml").write_text(whole)
    assert check_gpu.tests_of(tmp_path / "found.xml")["problem"] == "no test passed (0 passed, 0 failed, 1 skipped)"


def wheel(folder: Path, name: str, version: str, tag: str = "py3-none-any") -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as made:
        made.writestr(f"{name}.py", f"version = {version!r}\n")
        made.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        made.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: {tag}\n")
        made.writestr(f"{info}/RECORD", "")


def test_wheels_of_missing_packages_are_installed_and_nothing_is_replaced(tmp_path):
    wheels, target = tmp_path / "wheels", tmp_path / "site"
    wheels.mkdir()
    assert "no wheels" in install(wheels, target)["problem"]
    wheel(wheels, "sso_check_one", "1.0")
    wheel(wheels, "torch", "99.0")
    found = install(wheels, target)
    assert found == {"wheels": 2, "installed": ["sso-check-one"], "refused": {}}
    assert (target / "sso_check_one.py").is_file() and not (target / "torch.py").exists()
    wheel(wheels, "sso_check_two", "1.0", "cp27-cp27m-win32")
    found = install(wheels, tmp_path / "again")
    assert found["installed"] == ["sso-check-one"] and list(found["refused"]) == ["sso-check-two"]
    assert "sso-check-two" in found["problem"] and (tmp_path / "again" / "sso_check_one.py").is_file()


def test_versions_are_those_of_this_machine():
    found = probe()
    assert found["torch"] == torch.__version__ and found["packages"]["transformers"] and "problem" not in found
    assert len(found["cards"]) == torch.cuda.device_count()


@no_gpu
def test_a_card_that_is_asked_for_and_not_there_ends_it_at_once(tmp_path):
    assert check_gpu.main(["--device", "cuda", "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "check_gpu.json").read_text())
    assert found["passed"] is False and found["device"] == "cpu"
    assert found["parts"].pop("versions")["problem"] == "no CUDA device; nothing else is run"
    assert found["parts"] == {name: {"status": "not run"} for name in ("tests", "chain", "step")}


def rehearse(out: Path, *arguments: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.check_gpu", "--device", "cpu", "--out", str(out / "check.json")]
    command += ["--only", "scores_and_gradients", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((out / "check.json").read_text())
    assert found["passed"] is True and found["device"] == "cpu" and found["versions"]["cards"] == []
    assert {part["status"] for part in found["parts"].values()} == {"passed"}
    assert not list(out.glob("*.part"))
    return found["parts"]


def test_a_rehearsal_says_that_it_was_the_cpu(tmp_path):
    parts = rehearse(tmp_path, "--parts", "tests", "step")
    assert list(parts) == ["versions", "tests", "step"]
    assert {test["outcome"] for test in parts["tests"]["tests"]} == {"passed"} and parts["tests"]["passed"] == 2
    (table,) = parts["step"]["tables"]
    assert [row["trainer"] for row in table["rows"]] == ["trl", "ours forest"] and table["unit"] == "CPU-s"
    assert all(row["step"] > 0 for row in table["rows"])


@pytest.mark.slow
def test_a_rehearsal_of_every_part(tmp_path):
    parts = rehearse(tmp_path)
    assert list(parts) == ["versions", "tests", "chain", "step"]
    assert parts["chain"]["by"] == "Snakemake" and "v2_table1.md" in parts["chain"]["tables"]
    assert len(parts["chain"]["policies"]) == 2


@pytest.mark.parametrize("made", ["all", "no tables", "no policy", "unfinished: policy"])
def test_a_chain_is_what_it_left(tmp_path, made):
    for path in (".snakemake/a", "results/x/report/tables/v2_table1.md", "results/x/policy/sso/model.safetensors"):
        if (made, path.split("/")[-2]) not in (("no tables", "tables"), ("no policy", "sso")):
            (tmp_path / path).parent.mkdir(parents=True)
            (tmp_path / path).touch()
    status = "failed" if "unfinished" in made else "finished"
    record = {"rule": "policy", "wall_s": 1.5, "status": status}
    (tmp_path / "results" / "sso.run.json").write_text(json.dumps(record))
    found = check_gpu.chain_of(tmp_path)
    assert found.get("problem", "all") == made
    assert (found["by"], found["jobs"], found["seconds_by_rule"]) == ("Snakemake", 1, {"policy": 1.5})


def test_a_card_gets_shapes_that_fill_it():
    def shapes(*about) -> str:
        options = check_gpu.step_options(*about)
        return options[options.index("--shapes") + 1]

    assert (shapes("cuda", 80, []), shapes("cuda", 16, []), shapes("cpu", 0, [])) == ("1.5b", "42m", "0.5m")
    assert shapes("cuda", 80, ["7b"]) == "7b"


@pytest.mark.slow
def test_without_snakemake_the_chain_makes_the_same_policies(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    made = "import sys; from benchmarks.check_gpu import *; sys.exit({}(Path({!r}){}))"
    for how in (("commands", str(tmp_path / "a"), ""), ("chain", str(tmp_path / "b"), ", 2")):
        assert subprocess.run(python(made.format(*how))).returncode == 0
    policies = check_gpu.chain_of(tmp_path / "a")["policies"]
    assert len(policies) == 2 and check_gpu.chain_of(tmp_path / "b")["policies"] == policies
    for policy in policies:
        ours, theirs = (tmp_path / name / policy / "model.safetensors" for name in "ab")
        assert ours.read_bytes() == theirs.read_bytes()


def test_all_tests_marked_gpu_are_collected_slow_ones_too():
    """`-m gpu` stands in for the `-m 'not slow'` of pyproject.toml."""
    assert "tests/test_gpu.py" in marked()

    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", "-m", "gpu"]
    done = subprocess.run([*command, "tests/test_gpu.py"], cwd=REPOSITORY, capture_output=True, text=True)
    found = {line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line}
    names = re.findall(r"^def (test_\w+)", (REPOSITORY / "tests" / "test_gpu.py").read_text(), re.MULTILINE)
    assert {name.partition("[")[0] for name in found} == set(names)
    assert any("zero2" in name for name in found)


def test_make_check_gpu():
    made = subprocess.run(
        ["make", "-n", "check-gpu", "WHEELS=some/where", "OUT=there.json"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    assert "-m benchmarks.check_gpu --out there.json --wheels some/where" in made.stdout
    assert "pip" not in made.stdout  # a bare machine has no network


def test_the_warm_server_leaves_cuda_to_its_forks(tmp_path, monkeypatch):
    """DeepSpeed asks for GPUs when imported; asked through CUDA, a fork could not use one any more."""
    seen = {}
    monkeypatch.setattr(warm.subprocess, "Popen", lambda command, **how: seen.update(how))
    monkeypatch.setattr(warm.tempfile, "mkdtemp", lambda **_: str(tmp_path))
    monkeypatch.setenv("SSO_WARM", "restored afterwards")
    warm.start()
    assert seen["env"]["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"
