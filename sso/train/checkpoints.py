"""Checkpoints of a training in progress: what a killed run goes on from.

They lie beside the output, not in it: the workflow empties outputs before a rerun. A checkpoint counts once it
carries the mark that is written last; one made with other settings or data is never resumed.
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


def latest(folder: Path) -> Path | None:
    """The whole checkpoint with the most steps."""
    whole = [mark.parent for mark in folder.glob(f"checkpoint-*/{SAVED}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def resume_from(folder: Path, key: Mapping[str, Any]) -> Path | None:
    """The checkpoint to go on from; empties a folder whose key differs, and removes what is not whole: beside a later
    one, transformers would take new checkpoints for old ones and delete them. Call in one process."""
    known = folder / KEY
    if not known.is_file() or known.read_text(encoding="utf-8", errors="replace") != json.dumps(digest(key)):
        shutil.rmtree(folder, ignore_errors=True)
        write_text(known, json.dumps(digest(key)))
    for part in folder.glob("checkpoint-*"):
        if not (part / SAVED).is_file():
            shutil.rmtree(part)
    return latest(folder)


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Keep the folder for this process alone, and remove it when the work inside is done; a failure leaves it for the
    next try. Raises InputError where another process works there."""
    with owned(folder):
        yield
        shutil.rmtree(folder, ignore_errors=True)
