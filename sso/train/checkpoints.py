"""Checkpoints of a training in progress: what a killed run goes on from.

They lie beside the output, not in it: the workflow empties outputs before a rerun. A checkpoint counts as long as it
has the mark that is written last and removed first, and all files that the mark names: where the optimizer's is gone,
transformers would start a new one without a word. One made with other settings or data is never resumed.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sso.jobs.locks import owned
from sso.records import digest, write_text

SAVED = "saved"
"""Name of the mark in a whole checkpoint."""
KEY = "key.json"


def mark(checkpoint: Path, made_of: str = "") -> None:
    """Say that a checkpoint is whole, of the files that it has now, and what it was made of."""
    files = sorted(str(file.relative_to(checkpoint)) for file in checkpoint.rglob("*") if file.is_file())
    write_text(checkpoint / SAVED, json.dumps({"made_of": made_of, "files": files}))


def made_of(checkpoint: Path) -> str | None:
    """What a whole checkpoint was made of; None: it is not whole."""
    try:
        said = json.loads((checkpoint / SAVED).read_text(encoding="utf-8"))
        return said["made_of"] if all((checkpoint / file).is_file() for file in said["files"]) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def unmark(checkpoint: Path) -> None:
    """Before its files are written over or removed: what a kill leaves of them is not whole."""
    (checkpoint / SAVED).unlink(missing_ok=True)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, its mark first."""
    unmark(checkpoint)
    shutil.rmtree(checkpoint, ignore_errors=True)


def latest(folder: Path) -> Path | None:
    """The whole checkpoint with the most steps."""
    whole = [path for path in folder.glob("checkpoint-*") if made_of(path) is not None]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def resume_from(folder: Path, key: Mapping[str, Any]) -> Path | None:
    """The checkpoint to go on from; empties a folder whose key differs, and removes what is not whole: beside a later
    one, transformers would take new checkpoints for old ones and delete them. Call in one process."""
    known = folder / KEY
    if not known.is_file() or known.read_text(encoding="utf-8", errors="replace") != json.dumps(digest(key)):
        shutil.rmtree(folder, ignore_errors=True)
        write_text(known, json.dumps(digest(key)))
    for part in folder.glob("checkpoint-*"):
        if made_of(part) is None:
            remove(part)
    return latest(folder)


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Keep the folder for this process alone, and remove it when the work inside is done; a failure leaves it for the
    next try. Raises InputError where another process works there."""
    with owned(folder):
        yield
        shutil.rmtree(folder, ignore_errors=True)
