"""The warm interpreter answers like a command that was started by itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sso.jobs import warm
from tests.conftest import REPOSITORY
from tests.processes import until


class Socket(type(Path())):
    """A server's path that knows its process."""

    pid: int


SERVER = "import sys; from sso.jobs import warm; warm.serve(sys.argv[1], ['sso.cli', 'not_installed.here'])"


@pytest.fixture
def socket(tmp_path):
    path = Socket(tmp_path / "warm" / warm.place())
    path.parent.mkdir()
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(path)], cwd=REPOSITORY)
    while not path.exists():
        assert server.poll() is None
        time.sleep(0.02)
    path.pid = server.pid
    yield path
    server.kill()
    server.wait()


def command(socket: Path | None, *arguments: str, **keywords) -> subprocess.CompletedProcess:
    environment = {**os.environ, **({"SSO_WARM": str(socket)} if socket else {})}
    return subprocess.run(
        [sys.executable, "-m", "sso", *arguments], capture_output=True, text=True, env=environment, **keywords
    )


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_output_exit_code_and_folder_are_the_same(socket, tmp_path):
    for arguments in (["schema"], ["data", "--settings", "{}", "--out", "d"], ["nonsense"], ["report"]):
        cold, asked = (command(s, *arguments, cwd=tmp_path) for s in (None, socket))
        assert (asked.returncode, asked.stdout) == (cold.returncode, cold.stdout)
        assert asked.stderr.splitlines()[-1:] == cold.stderr.splitlines()[-1:]
    command(socket, "schema", "--out", "schema.json", cwd=tmp_path)
    assert (tmp_path / "schema.json").is_file()


def test_bad_input_is_one_sentence_and_two(socket, tmp_path):
    result = command(socket, "pairs", "--triples", "none.jsonl", "--kind", "good_bad", "--out", "p.jsonl", cwd=tmp_path)
    assert result.returncode == 2 and result.stderr == (
        "error: none.jsonl: no such file; give the path of a JSON Lines file.\n"
    )


def test_a_command_that_dies_while_asking_leaves_the_server_answering(socket, tmp_path):
    import socket as sockets

    for half in (b"", b"\0\0", b"\0\0\0\x20{"):
        with sockets.socket(sockets.AF_UNIX) as connection:
            connection.connect(str(socket))
            connection.sendall(half)
    assert command(socket, "schema", cwd=tmp_path, timeout=60).returncode == 0
    assert socket.exists()  # gone with the server, whose work the command would have done itself


def test_without_a_server_the_command_does_the_work_itself(tmp_path):
    assert command(tmp_path / "nobody" / warm.place(), "schema").returncode == 0


@pytest.mark.parametrize("elsewhere", ["another environment", "a cluster's job"])
def test_a_command_of_another_place_is_not_served(elsewhere, socket, monkeypatch):
    monkeypatch.setenv("SSO_WARM", str(socket))
    monkeypatch.setattr(sys, "argv", ["sso", "schema"])
    until(lambda: warm.forward("sso") == 0)  # the socket is there before it listens
    if elsewhere == "another environment":
        monkeypatch.setattr(sys, "prefix", "/another/environment")
    else:
        monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert warm.forward("sso") is None


def test_a_child_dies_with_its_command(socket, tmp_path):
    fifo = tmp_path / "fifo.jsonl"
    os.mkfifo(fifo)  # reading it waits for ever
    environment = {**os.environ, "SSO_WARM": str(socket)}
    arguments = ["--data", str(fifo), "--backbone", '{"architecture": "qwen2"}', "--settings", "{}", "--out", "m"]
    asking = subprocess.Popen(
        [sys.executable, "-m", "sso", "sft", *arguments],
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not children(socket.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    asking.send_signal(signal.SIGKILL)
    asking.wait()
    while children(socket.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
