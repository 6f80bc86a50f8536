"""Processes of a test, found by a mark in their environment, which children and forks inherit."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

VARIABLE = "SSO_TEST_MARK"


def mark() -> dict[str, str]:
    """An environment with a mark of its own."""
    return {**os.environ, VARIABLE: uuid4().hex}


def marked(environment: dict[str, str]) -> dict[int, str]:
    """Living processes that were started with this environment, with their command lines."""
    wanted, found = f"{VARIABLE}={environment[VARIABLE]}".encode(), {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                if wanted in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def until(condition: Callable[[], object], seconds: float = 60, show: Callable[[], object] = str) -> object:
    """What the condition gives once it holds; where it does not in time, an AssertionError with what ``show`` gives."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {show()}"
        time.sleep(0.02)
    return value


def kill_all(environment: dict[str, str]) -> None:
    """End what a test has left."""
    for pid in marked(environment):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
