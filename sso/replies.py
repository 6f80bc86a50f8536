"""Paid replies on disk, and what they cost: one SQLite file, safe with several threads and processes at once.

A reply is written the moment it comes, so a killed run pays nothing twice. The ledger counts every request that
was sent and every token that was reported, for as long as the file lives: a budget holds across restarts. Holds no
key and no address with a password in it.
"""

import json
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TABLES = """
CREATE TABLE IF NOT EXISTS completions (
    key TEXT PRIMARY KEY, endpoint TEXT NOT NULL, model TEXT NOT NULL, parameters TEXT NOT NULL,
    prompt TEXT NOT NULL, draw INTEGER NOT NULL, reply TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS ledger (
    endpoint TEXT NOT NULL, model TEXT NOT NULL, requests INTEGER NOT NULL DEFAULT 0,
    prompt_tokens INTEGER NOT NULL DEFAULT 0, completion_tokens INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (endpoint, model));
"""


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
        # Commits happen in `with self.connection`, under the lock: one thread at a time.
        self.connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
        # The write-ahead log spares an fsync a reply; what is committed outlives kill -9 of the process.
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = NORMAL")
        self.connection.executescript(_TABLES)
        with self.connection:
            self.connection.execute("INSERT OR IGNORE INTO ledger (endpoint, model) VALUES (?, ?)", self.account)

    def get(self, key: str) -> dict[str, Any] | None:
        """The reply kept under a key, or None."""
        with self.lock:
            row = self.connection.execute("SELECT reply FROM completions WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, key: str, parameters: str, prompt: str, draw: int, reply: dict[str, Any]) -> None:
        """Keep a reply and book its `prompt_tokens` and `completion_tokens`."""
        row = (key, *self.account, parameters, prompt, draw, json.dumps(reply, ensure_ascii=False))
        tokens = (reply["prompt_tokens"] or 0, reply["completion_tokens"] or 0)
        with self.lock, self.connection:
            self.connection.execute("INSERT OR REPLACE INTO completions VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            self.connection.execute(
                "UPDATE ledger SET prompt_tokens = prompt_tokens + ?, completion_tokens = completion_tokens + ?"
                " WHERE endpoint = ? AND model = ?",
                (*tokens, *self.account),
            )

    def book_request(self, limit: int | None) -> bool:
        """Count one request that is about to be sent; False, and nothing counted, where ``limit`` is reached."""
        with self.lock, self.connection:
            cursor = self.connection.execute(
                "UPDATE ledger SET requests = requests + 1 WHERE endpoint = ? AND model = ? AND (? OR requests < ?)",
                (*self.account, limit is None, limit),
            )
        return cursor.rowcount == 1

    def spent(self) -> Spent:
        """All that was asked of this endpoint's model through this file."""
        with self.lock:
            return Spent(
                *self.connection.execute(
                    "SELECT requests, prompt_tokens, completion_tokens FROM ledger WHERE endpoint = ? AND model = ?",
                    self.account,
                ).fetchone()
            )
