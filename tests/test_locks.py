"""One process works in a folder; a dead one's lock is taken over, a living one's owner is named."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sso.errors import InputError
from sso.jobs import locks
from tests.conftest import REPOSITORY

HOLD = """
import sys, time
from pathlib import Path
from sso.jobs.locks import owned
with owned(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(folder: Path, seconds: float = 600) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def elsewhere(folder: Path) -> Path:
    """A lock whose owner is on another machine."""
    lock = folder.with_name(f"{folder.name}.lock")
    about = {"process": "another-boot/pid:[1]/4711/99", "host": "n2", "job": "17", "lock": "x"}
    lock.write_text(json.dumps(about))
    return lock


def test_a_second_process_is_told_who_works_there(tmp_path):
    first = holder(tmp_path / ".policy.work")
    try:
        assert first.stdout.readline() == "mine\n"
        with pytest.raises(InputError, match=rf"\.policy\.work: process {first.pid} on .* is at work there; "):
            locks.owned(tmp_path / ".policy.work").__enter__()
        with locks.owned(tmp_path / ".another.work"):
            pass
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_the_lock_of_an_ended_process_is_free_at_once(end, tmp_path):
    first = holder(tmp_path / "work", 600 if end else 0)
    assert first.stdout.readline() == "mine\n"
    if end:
        first.send_signal(end)
    first.wait()
    start = time.monotonic()
    with locks.owned(tmp_path / "work"):
        assert time.monotonic() - start < locks.BEAT_S / 4
        assert len(list(tmp_path.iterdir())) == 1  # the lock, no drafts
    assert not list(tmp_path.iterdir())


def test_an_owner_on_another_machine_lives_as_long_as_its_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_S", 0.2)
    monkeypatch.setattr(locks, "STALE_S", 1.0)
    lock, done = elsewhere(tmp_path / "work"), threading.Event()

    def beat() -> None:
        while not done.wait(0.1):
            os.utime(lock)

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        with pytest.raises(InputError, match=r"process 4711 on n2, job 17, is at work there"):
            locks.owned(tmp_path / "work").__enter__()
    finally:
        done.set()
        heart.join()
    start = time.monotonic()
    with locks.owned(tmp_path / "work"):  # it has stopped
        assert 0.3 < time.monotonic() - start < 5


def test_of_many_that_find_a_dead_lock_one_gets_it(tmp_path):
    lock = elsewhere(tmp_path / "work")
    os.utime(lock, (1, 1))
    processes = [holder(tmp_path / "work", 3) for _ in range(6)]
    ends = [process.communicate() for process in processes]
    assert sorted(out for out, _ in ends) == [""] * 5 + ["mine\n"], ends
    assert not list(tmp_path.iterdir())


def test_one_that_stood_still_too_long_ends_when_another_has_its_lock(tmp_path, monkeypatch):
    command = HOLD.replace("import sys, time", "import sys, time; from sso.jobs import locks; locks.BEAT_S = 0.1")
    first = subprocess.Popen(
        [sys.executable, "-c", command, str(tmp_path / "work"), "60"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert first.stdout.readline() == "mine\n"
    elsewhere(tmp_path / "work")
    _, said = first.communicate(timeout=30)
    assert first.returncode == 2 and "process 4711 on n2, job 17, is at work there" in said
