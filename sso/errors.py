"""What a user is meant to read: one sentence about bad input, or about a machine that cannot take what is written."""

import errno
import re
from collections.abc import Sequence
from typing import Any

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MACHINE = {
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("the quota is used up", "make room"),
    errno.EFBIG: ("the file is larger than allowed", "raise the limit"),
    errno.EROFS: ("the folder is read-only", "write elsewhere"),
    errno.EACCES: ("no permission", "allow it, or write elsewhere"),
    errno.EIO: ("the disk fails", "look at it"),
}
_OTHER_WORDS = re.compile(r"os error (\d+)|(disk is full)|(readonly database)|(file write failed|unexpected pos)")
"""How safetensors (Rust), SQLite and torch tell of it: none of them raises OSError."""


_ADDRESS = re.compile(r"(?<!\bhf)://[^\s\"]+")
"""Of an address from behind its scheme; one of the hub (hf://OWNER/NAME@COMMIT/FILE) has no user."""
_USER = re.compile(r"^://(?!/).*@")
"""Up to the last `@`: users write passwords with `/`, `?` and `@` as they are."""
_SECRET = re.compile(r"([?&;#][^=&;]*(?:key|token|passw|pwd|secret|sig|auth|credential)[^=&;]*=).*", re.IGNORECASE)
"""In an address's query, with all behind it: an `&` may be the secret's own."""


class InputError(Exception):
    """Bad input: one sentence that names the file, row or key and the way out. CLIs print it and exit with 2."""

    def __str__(self) -> str:
        return printable(without_passwords(super().__str__()))


def printable(text: str) -> str:
    """Text without what a terminal would obey: control characters and changes of direction as `\\x1b`."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape", "backslashreplace").decode(), text)


def without_passwords(text: str) -> str:
    """Text whose addresses have lost user, password, and what their query calls a key, token, password or secret."""
    return _ADDRESS.sub(_without_password, text)


def _without_password(found: re.Match[str]) -> str:
    address = _SECRET.sub(r"\1***", found[0])
    # An `@` in what is taken for a secret's value may end a password instead that looks like a query.
    return "://***" if found[0].count("@") > address.count("@") else _USER.sub("://***@", address)


def masked(values: Any) -> Any:
    """Nested settings, each text of them `without_passwords`."""
    if isinstance(values, dict):
        return {key: masked(value) for key, value in values.items()}
    if isinstance(values, list):
        return [masked(value) for value in values]
    return without_passwords(values) if isinstance(values, str) else values


def first_problem(error: Any) -> tuple[str, str]:
    """The key, dotted, and what is wrong with it, of the first problem in a pydantic ValidationError."""
    first = error.errors()[0]
    return ".".join(str(part) for part in first["loc"]), first["msg"].lower()


def first_of(names: Sequence[str], count: int = 10) -> str:
    """The first names of a list that may be long, printable."""
    return printable(", ".join(names[:count])) + (", ..." if len(names) > count else "")


def of_machine(error: BaseException | None, out: object) -> InputError | None:
    """The sentence for an error, or one that it came from, that means a full, read-only or broken disk; else None.

    Args:
        error: what was raised.
        out: what was being written, where the error does not say.
    """
    while error is not None and not isinstance(error, InputError):
        code = error.errno if isinstance(error, OSError) else _code(str(error))
        if code in _MACHINE:
            reason, way = _MACHINE[code]
            file = getattr(error, "filename", None) or out
            return InputError(f"{file}: {reason}; {way} and run the same command again: what is finished is kept.")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _code(text: str) -> int | None:
    match = _OTHER_WORDS.search(text)
    if match is None:
        return None
    number, full, read_only, _ = match.groups()
    return int(number) if number else errno.ENOSPC if full else errno.EROFS if read_only else errno.EIO
