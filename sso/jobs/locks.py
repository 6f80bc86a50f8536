"""Who works in a folder: a lock file beside it, with its owner's name and a heartbeat.

Kernel locks end with their process but are not to be trusted on shared file systems, where a cluster's job may live on
after the workflow that sent it. So a lock is a file that only one can create, and that its owner touches as long as it
lives: on the same machine a dead owner is seen at once, on another one when its heart has not beaten for STALE_S.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from sso.errors import InputError
from sso.jobs.lifeline import identity, lives

BEAT_S, STALE_S = 10.0, 120.0
"""Seconds between heartbeats, and after how many without one an owner on another machine is taken for dead."""


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Keep ``folder`` for this process; waits, for STALE_S at most, only to learn whether another's owner lives.

    Raises:
        InputError: another process works there; names it.
    """
    lock = folder.with_name(f"{folder.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    own_claim = json.dumps(
        {
            "process": identity(os.getpid()) or f"?/{os.getpid()}",
            "host": socket.gethostname(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "lock": uuid4().hex,
        }
    )
    seen: tuple[str, float] | None = None
    while not _create(lock, own_claim):
        with suppress(FileNotFoundError):
            found = lock.read_text(encoding="utf-8"), lock.stat().st_mtime
            alive = _alive(found[0])
            if alive or (alive is None and seen and seen[0] == found[0] and seen[1] != found[1]):
                raise InputError(_busy(folder, found[0]))
            if alive is False or _now(lock) - found[1] > STALE_S:
                _break(lock, found[0])
                continue
            seen = seen or found
        time.sleep(BEAT_S / 4)
    done = threading.Event()
    threading.Thread(target=_beat, args=(lock, own_claim, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        if _text(lock) == own_claim:
            lock.unlink(missing_ok=True)


def _create(lock: Path, text: str) -> bool:
    """Whether the lock could be made; it appears with its text in it."""
    draft = lock.with_name(f".{lock.name}.{uuid4().hex}")
    draft.write_text(text, encoding="utf-8")
    try:
        os.link(draft, lock)
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def _alive(owner: str) -> bool | None:
    """Whether a lock's owner lives; None: it is on another machine, or the lock does not tell."""
    try:
        return lives(json.loads(owner)["process"])
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _busy(folder: Path, owner: str) -> str:
    about = json.loads(owner)
    number = about["process"].rpartition("/")[0].rpartition("/")[2]
    where = f"{about['host']}, job {about['job']}," if about["job"] else about["host"]
    return f"{folder}: process {number} on {where} is at work there; let it end, or end it, and run the command again."


def _now(lock: Path) -> float:
    """The time by the clock that stamps files there."""
    probe = lock.with_name(f".{lock.name}.{uuid4().hex}")
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _break(lock: Path, owner: str) -> None:
    """Remove a dead owner's lock, and nobody else's: of several that try, one moves it away."""
    grave = lock.with_name(f".{lock.name}.{uuid4().hex}")
    with suppress(FileNotFoundError):
        lock.rename(grave)
        if _text(grave) != owner:  # another was faster, and holds it now
            with suppress(FileExistsError):
                os.link(grave, lock)
        grave.unlink()


def _text(path: Path) -> str | None:
    with suppress(OSError):
        return path.read_text(encoding="utf-8")
    return None


def _beat(lock: Path, own_claim: str, done: threading.Event) -> None:
    while not done.wait(BEAT_S):
        if (text := _text(lock)) not in (own_claim, None):
            print(f"error: {_busy(lock, text or '')} This process had stood still.", file=sys.stderr, flush=True)
            os._exit(2)
        with suppress(OSError):
            os.utime(lock)
