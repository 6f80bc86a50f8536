"""Commands end with their workflow; one workflow works in a folder; a killed one's lock is explained."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sso.jobs import lifeline
from sso.jobs.warm import place as server_name
from tests import processes
from tests.conftest import REPOSITORY
from tests.processes import until

WORKFLOW = """
import os, subprocess, sys
from sso.jobs import lifeline
from sso.jobs.warm import place as server_name
lifeline.name_workflow()
subprocess.run(["bash", "-c", "set -eu; " + sys.argv[1] + " && echo next"])
"""
SLEEP = "import sys, time; from sso import cli; from sso.jobs import warm; cli.print_schema = lambda args: "
SLEEP += "(print('at work', flush=True), time.sleep(600)); "
COMMAND = f"{sys.executable} -c {shlex.quote(SLEEP + 'cli.main()')} schema"
"""A command that lasts until it is killed."""
SERVER = SLEEP + "warm.serve(sys.argv[1], ['sso.cli'])"
ASKING = f"{sys.executable} -m sso schema"
"""The same, where a warm interpreter does the work."""


@pytest.fixture
def environment():
    made = processes.mark()
    yield made
    processes.kill_all(made)


@pytest.fixture
def socket(tmp_path, environment):
    """Socket of a warm interpreter that tells its process id and how many commands are at work."""
    path = tmp_path / "warm" / server_name()
    path.parent.mkdir()
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(path)], cwd=REPOSITORY)
    until(path.exists)
    yield path, server
    server.kill()
    server.wait()


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def start(command: str, environment: dict[str, str]) -> subprocess.Popen:
    """A workflow of one command, which is at work."""
    command = [sys.executable, "-c", WORKFLOW, command]
    workflow = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert workflow.stdout.readline() == b"at work\n"
    return workflow


@pytest.mark.parametrize("killed", ["workflow", "shell"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_command_ends_with_its_workflow_and_with_its_shell(killed, warm, environment, socket):
    path, server = socket
    environment |= {"SSO_WARM": str(path)} if warm else {}
    workflow = start(ASKING if warm else COMMAND, environment)
    (shell,) = children(workflow.pid)
    assert len(children(shell)) == 1 and len(children(server.pid)) == warm
    os.kill(workflow.pid if killed == "workflow" else shell, signal.SIGKILL)
    workflow.wait()
    until(lambda: not processes.marked(environment), 5)
    assert not warm or until(lambda: not children(server.pid), 5)


def test_work_of_a_killed_warm_interpreter_ends_with_it(environment, socket):
    path, server = socket
    workflow = start(ASKING, environment | {"SSO_WARM": str(path)})
    (worker,) = children(server.pid)
    server.kill()
    until(lambda: not Path(f"/proc/{worker}").exists(), 5)
    assert workflow.wait(timeout=10) == 0 and workflow.stdout.read() == b""  # nothing came after the failed command


def test_a_command_of_a_workflow_that_is_gone_does_nothing(tmp_path):
    gone = subprocess.Popen(["sleep", "60"])
    name = lifeline.identity(gone.pid)
    gone.kill()
    gone.wait()
    command = [sys.executable, "-m", "sso", "schema", "--out", str(tmp_path / "schema.json")]
    done = subprocess.run(command, env={**os.environ, lifeline.VARIABLE: name}, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: the workflow that started this command is gone")
    assert not (tmp_path / "schema.json").exists()
    # The same number given to another process is another process.
    recycled = re.sub(r"\d+$", "1", lifeline.identity(os.getpid()))
    assert subprocess.run(command, env={**os.environ, lifeline.VARIABLE: recycled}, capture_output=True).returncode == 1


@pytest.mark.parametrize("name", ["", "another-machine/pid:[1]/1/2", "nonsense"])
def test_what_cannot_be_seen_is_not_waited_for(name, tmp_path):
    command = [sys.executable, "-m", "sso", "schema", "--out", str(tmp_path / "schema.json")]
    assert subprocess.run(command, env={**os.environ, lifeline.VARIABLE: name}).returncode == 0


SNAKEFILE = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(REPOSITORY)!r})
from sso.jobs import lifeline
from sso.jobs.warm import place as server_name
root = Path("results/x")
if locked := lifeline.explain_lock(root, sys.argv[1:]):
    print(f"note: {{locked}}", file=sys.stderr)
rule all:
    default_target: True
    output: "results/x/out"
    shell: "echo at work; test ! -p wait || cat wait; echo done > {{output}}"
onstart:
    lifeline.hold(root)
"""


def test_a_second_workflow_is_refused_and_a_killed_ones_lock_explained(environment, tmp_path):
    """Snakemake's own locks, on a workflow of one job; the real Snakefile makes the same two calls."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    os.mkfifo(tmp_path / "wait")
    options = ["--cores", "1", "--quiet", "all"]

    def snakemake(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "snakemake", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    first = subprocess.Popen([sys.executable, "-m", "snakemake", *options], cwd=tmp_path, env=environment)
    until(lambda: "cat wait" in " ".join(processes.marked(environment).values()))
    second = snakemake(*options)
    busy = f"results/x: another snakemake (process {first.pid}) works there; wait for it, or give another --directory."
    assert second.returncode == 1 and f"note: {busy}" in second.stderr and "Traceback" not in second.stderr
    # Without Snakemake's own lock, as for two that start in the same moment, ours still holds.
    unlocked = snakemake(*options, "--nolock")
    assert unlocked.returncode == 1 and f"error: {busy}" in unlocked.stderr and "Traceback" not in unlocked.stderr
    first.kill()
    first.wait()
    processes.kill_all(environment)
    (tmp_path / "wait").unlink()
    third = snakemake(*options)
    assert third.returncode == 1
    (command,) = re.findall(r"note: results/x: still locked .* clear the lock with `snakemake (.*)`", third.stderr)
    cleared = snakemake(*shlex.split(command))
    assert cleared.returncode == 0 and "note:" not in cleared.stderr
    assert snakemake(*options).returncode == 0 and (tmp_path / "results/x/out").read_text() == "done\n"
