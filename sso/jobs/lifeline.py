"""Who is alive: a job ends with the workflow that started it, and one workflow works in a folder at a time.

A killed Snakemake leaves its shells and their commands running; they would go on writing while the next run starts.
So the workflow names itself in the environment, and each command ends itself when that process is gone. Linux only:
elsewhere nothing is watched. Knows nothing of what the commands do.
"""

import ctypes
import fcntl
import os
import select
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TextIO

VARIABLE = "SSO_WORKFLOW"
"""Environment variable with the `identity` of the process that commands end with."""

_PR_SET_PDEATHSIG = 1
_held: list[TextIO] = []
"""Open for as long as the process lives, and so are their locks."""


def identity(pid: int) -> str | None:
    """A process's name that is never given twice: machine, namespace, number and start; None where it is gone."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        if stat[0] in "ZX":
            return None
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}/{pid}/{stat[19]}"
    except OSError:
        return None


def lives(name: str) -> bool | None:
    """Whether the process of an `identity` lives; None: it is on another machine, or this is no such name."""
    machine, _, process = name.rpartition("/")[0].rpartition("/")
    here = (identity(os.getpid()) or "").rpartition("/")[0].rpartition("/")[0]
    return identity(int(process)) == name if machine == here and process.isdecimal() else None


def name_workflow() -> None:
    """Let commands started from here end with this process."""
    me = identity(os.getpid())
    if me:
        os.environ[VARIABLE] = me


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def follow(last: Callable[[], object] = lambda: None) -> None:
    """End this process with the workflow that it belongs to, and with the shell in between; else do nothing.

    A workflow on another machine, or in another container, can't be seen and is not waited for. ``last`` is called
    before the end where the workflow was gone first.
    """
    name = os.environ.get(VARIABLE, "")
    machine, _, process = name.rpartition("/")[0].rpartition("/")
    me = identity(os.getpid())
    if not process or me is None or me.rpartition("/")[0].rpartition("/")[0] != machine:
        return
    die_with_parent()
    try:
        handle = os.pidfd_open(int(process))
    except ProcessLookupError:
        handle = None
    # Asked after it was opened: the number may have been given to another process before.
    if handle is None or identity(int(process)) != name:
        sys.exit("error: the workflow that started this command is gone; nothing was done.")
    threading.Thread(target=_end_with, args=(handle, last), daemon=True).start()


def _end_with(handle: int, last: Callable[[], object]) -> None:
    select.select([handle], [], [])
    last()
    os.kill(os.getpid(), signal.SIGKILL)


def hold(root: Path) -> None:
    """Keep the experiment's folder for this process while it lives; exits where another one has it, or it can't be
    written."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = _lock_file(root).open("a+", encoding="ascii")
    except OSError as error:
        sys.exit(f"error: {root}: can't be written ({error.strerror}); make room or give another --directory.")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"error: {_busy(root)}")
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    _held.append(file)


def _lock_file(root: Path) -> Path:
    return root / ".workflow.lock"


def _busy(root: Path) -> str:
    process = _lock_file(root).read_text(encoding="ascii").strip() or "?"
    return f"{root}: another snakemake (process {process}) works there; wait for it, or give another --directory."


def explain_lock(root: Path, arguments: Iterable[str]) -> str | None:
    """A sentence about Snakemake's lock on the experiment's folder, if there is one: who holds it, or how to clear it.

    Args:
        root: the experiment's folder.
        arguments: of this call of snakemake; with `--unlock` there is nothing to explain.
    """
    arguments = list(arguments)
    locks = Path(".snakemake/locks").glob("*.lock")
    if "--unlock" in arguments or not any(f"{root}/" in lock.read_text(encoding="utf-8") for lock in locks):
        return None
    try:
        with _lock_file(root).open(encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _busy(root)
    except OSError:
        pass
    command = shlex.join(["snakemake", "--unlock", *arguments])
    return (
        f"{root}: still locked by a run that was killed; clear the lock with `{command}`, then run again: "
        "finished jobs stay."
    )
