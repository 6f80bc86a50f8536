"""Paid replies on disk, and what they cost: one SQLite file, safe with several threads and processes at once.

A reply is written the moment it comes, so a killed run pays nothing twice. The ledger counts every request that
was sent and every token that was reported, for as long as the file lives: a budget holds across restarts. Holds no
key and no address with a password in it.
"""

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sso.errors import InputError, of_machine

_TABLES = """
CREATE TABLE IF NOT EXISTS completions (
    key TEXT PRIMARY KEY, endpoint TEXT NOT NULL, model TEXT NOT NULL, parameters TEXT NOT NULL,
    prompt TEXT NOT NULL, draw INTEGER NOT NULL, reply TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS ledger (
    endpoint TEXT NOT NULL, model TEXT NOT NULL, requests INTEGER NOT NULL DEFAULT 0,
    prompt_tokens INTEGER NOT NULL DEFAULT 0, completion_tokens INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (endpoint, model));
"""
_PATIENCE_S = 60


@dataclass(frozen=True)
class Spent:
    """What an endpoint's model was asked so far: requests, and the tokens that it reported."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Replies:
    """The replies and the ledger of one (endpoint, model)."""

    def __init__(self, path: Path, endpoint: str, model: str):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.account, self.lock = path, (endpoint, model), threading.Lock()
        self.connection = sqlite3.connect(path, timeout=_PATIENCE_S, check_same_thread=False)
        with self._transaction() as connection:
            # The write-ahead log spares an fsync a reply; what is committed outlives kill -9 of the process.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(_TABLES)
            connection.execute("INSERT OR IGNORE INTO ledger (endpoint, model) VALUES (?, ?)", self.account)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection for one thread at a time, committed at the end; InputError names the file where it fails."""
        try:
            with self.lock, self.connection:
                yield self.connection
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                told = InputError(f"{self.path}: another process has kept it locked for {_PATIENCE_S} s; try again.")
            else:
                told = of_machine(error, self.path) or InputError(
                    f"{self.path}: no sound file of replies ({error}); restore it, or move it away and run the same "
                    "command again: what it held is asked anew."
                )
            raise told from error

    def get(self, key: str) -> dict[str, Any] | None:
        """The reply kept under a key, or None."""
        with self._transaction() as connection:
            row = connection.execute("SELECT reply FROM completions WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, key: str, parameters: str, prompt: str, draw: int, reply: dict[str, Any]) -> None:
        """Keep a reply and book its `prompt_tokens` and `completion_tokens`."""
        row = (key, *self.account, parameters, prompt, draw, json.dumps(reply, ensure_ascii=False))
        tokens = (reply["prompt_tokens"] or 0, reply["completion_tokens"] or 0)
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO completions VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            connection.execute(
                "UPDATE ledger SET prompt_tokens = prompt_tokens + ?, completion_tokens = completion_tokens + ?"
                " WHERE endpoint = ? AND model = ?",
                (*tokens, *self.account),
            )

    def book_request(self, limit: int | None) -> bool:
        """Count one request that is about to be sent; False, and nothing counted, where ``limit`` is reached."""
        with self._transaction() as connection:
            cursor = connection.execute(
                "UPDATE ledger SET requests = requests + 1 WHERE endpoint = ? AND model = ? AND (? OR requests < ?)",
                (*self.account, limit is None, limit),
            )
        return cursor.rowcount == 1

    def spent(self) -> Spent:
        """All that was asked of this endpoint's model through this file."""
        with self._transaction() as connection:
            return Spent(
                *connection.execute(
                    "SELECT requests, prompt_tokens, completion_tokens FROM ledger WHERE endpoint = ? AND model = ?",
                    self.account,
                ).fetchone()
            )
