"""Record types, one a stage, each one JSON line that is valid on its own.

``id`` is the query's and is carried through every stage. Pairs are the Hub's conversational preference
format, so they load in any trainer. Files are written under a temporary name and renamed when whole.
"""

import glob
import gzip
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sso.errors import InputError, first_problem, of_machine


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str


class Record(BaseModel):
    """What every stage passes on: an id."""

    model_config = ConfigDict(extra="ignore")
    id: str = Field(min_length=1)


class Prompted(Record):
    """A record with a prompt: messages, or a string that becomes one user turn."""

    prompt: list[Message] = Field(min_length=1)

    @field_validator("prompt", mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return [{"role": "user", "content": value}] if isinstance(value, str) else value


class Query(Prompted):
    """A user query x; ``family`` is set in the micro-world only."""

    family: str = ""


class Principles(Prompted):
    """A good and a bad principle (p+, p-) for one query, with who wrote them."""

    good: str
    bad: str
    features: list[str] = []
    writer: str
    fallback: bool = False


def _is_empty(value: Any) -> bool:
    return not value


Cut = Literal["chosen", "rejected", "original", "second"]
"""A response by its field's name."""


class Triple(Prompted):
    """y+ ~ pi(.|x+), y- ~ pi(.|x-), yo ~ pi(.|x); the system fields are the rendered p+ and p-."""

    system_good: str
    system_bad: str
    chosen: str
    rejected: str
    original: str
    second: str | None = None
    """Another draw of pi(.|x), the material of the annotated control."""
    cut: list[Cut] = Field([], exclude_if=_is_empty)
    """The responses that did not end by themselves when they were drawn: at the token limit, or by a filter."""


class Pair(Prompted):
    """A preference pair in the Hub's conversational format: each side is one turn of the assistant, earlier turns
    stand in the prompt. Files of pairs are read by sso/preferences.py, which brings other layouts to this one."""

    chosen: list[Message] = Field(min_length=1, max_length=1)
    rejected: list[Message] = Field(min_length=1, max_length=1)
    source: str = ""
    cut: list[Cut] = Field([], exclude_if=_is_empty)
    """Which of `chosen` and `rejected` were cut at the limit of tokens, as in a `Triple`."""

    @field_validator("chosen", "rejected", mode="before")
    @classmethod
    def _as_turn(cls, value: Any) -> Any:
        return [{"role": "assistant", "content": value}] if isinstance(value, str) else value

    @field_validator("chosen", "rejected")
    @classmethod
    def _the_assistants(cls, value: list[Message]) -> list[Message]:
        if value[0].role != "assistant":
            raise ValueError(f"must be the assistant's turn, not the {value[0].role}'s")
        return value


class Answer(Prompted):
    """What a model said to a benchmark prompt; ``turn`` counts from 1."""

    output: str
    model: str
    turn: int = 1
    draw: int = Field(0, exclude_if=_is_empty)
    """Number of the sample, where a prompt has several; the ids of those after the first end in `/<draw>`."""
    missing: Literal["refused", "too_long"] | None = Field(None, exclude_if=_is_empty)
    """Why the model could not be asked, where ``output`` is empty for that."""


RecordT = TypeVar("RecordT", bound=Record)


LONGEST_LINE = 64 << 20
"""Bytes of a line beyond which a file is taken for something else than records, and not read on."""


def iter_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object), of a gzipped file too; raises InputError that names file and line."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a JSON Lines file.")
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        lines = iter(lambda: file.readline(LONGEST_LINE + 1), b"")
        while True:
            try:
                line = next(lines, None)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise InputError(f"{path}:{number + 1}: broken gzip file ({error}); fetch it again.") from error
            if line is None:
                return
            number += 1
            if not line.strip():
                continue
            if len(line) > LONGEST_LINE:
                raise InputError(
                    f"{path}:{number}: a line of more than {LONGEST_LINE >> 20} MiB; every line must be one record."
                )
            try:
                value = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise InputError(f"{path}:{number}: not UTF-8 text ({error.reason}); convert the file.") from error
            except (ValueError, RecursionError) as error:  # also numbers and nesting that Python does not take
                said = error.msg if isinstance(error, json.JSONDecodeError) else str(error).partition(":")[0]
                raise InputError(f"{path}:{number}: not valid JSON ({said}); every line must be one object.") from error
            if b"\\u" in line and not _is_text(value):
                raise InputError(
                    f"{path}:{number}: half a character (a lone surrogate, \\ud800 to \\udfff); remove it."
                )
            if not isinstance(value, dict):
                raise InputError(f"{path}:{number}: a {type(value).__name__}, but every line must be a JSON object.")
            yield number, value


def _is_text(value: Any) -> bool:
    """Whether JSON holds whole characters only, so that it can be written again."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def read(path: str | Path, kind: type[RecordT]) -> list[RecordT]:
    """All records of a file. A row without an ``id`` gets its line's number from 0; ids must differ."""
    return checked(iter_json_lines(path), kind, str(path))


def checked(
    rows: Iterable[tuple[int, dict[str, Any]]], kind: type[RecordT], name: str, unit: str = "line"
) -> list[RecordT]:
    """`read` of rows with their numbers from 1; messages call them ``name``:NUMBER, and the ``unit`` that it counts."""
    records: list[RecordT] = []
    seen: dict[str, int] = {}
    for number, value in rows:
        own = value.get("id")
        value = {**value, "id": str(number - 1 if own is None else own)}
        try:
            record = kind.model_validate(value)
        except ValidationError as error:
            key, problem = first_problem(error)
            raise InputError(f"{name}:{number}: `{key}`: {problem}.") from error
        if record.id in seen:
            raise InputError(
                f"{name}:{number}: id {record.id!r} stands in {unit} {seen[record.id]} too; ids must differ."
            )
        seen[record.id] = number
        records.append(record)
    if not records:
        raise InputError(f"{name}: holds no record; give at least one.")
    return records


def _temporary(path: Path) -> Path:
    """A name beside ``path`` for what is being written; what killed writers left there is removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        try:
            os.kill(int(left.name.split(".")[-2]), 0)
        except ProcessLookupError:
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        except (ValueError, PermissionError):
            continue
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def new_file(text: str) -> Path:
    """An argparse type: a file to be written, told before any work if it can't be."""
    return _writable(Path(text), Path.is_dir, "a folder stands there; give the name of a file")


def new_folder(text: str) -> Path:
    """An argparse type: a folder to be written, told before any work if it can't be."""
    return _writable(
        Path(text), lambda path: path.exists() and not path.is_dir(), "no folder, but a file; give another name"
    )


def _writable(path: Path, in_the_way: Callable[[Path], bool], why: str) -> Path:
    """The path, where a file can be made: permissions alone don't tell it, least of all to root.

    Raises:
        InputError: it can't be, or something else has the name.
    """
    if in_the_way(path):
        raise InputError(f"{path}: {why}.")
    above = path if path.is_dir() else next(folder for folder in path.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=above):
            return path
    except OSError as error:
        error.filename = None  # of a file that nobody asked for
        if told := of_machine(error, path):
            raise told from error
        raise InputError(f"{path}: nothing can be written in {above} ({error.strerror}); write elsewhere.") from error


def plain_modes(path: Path) -> None:
    """Give a file, or a folder and what is in it, the modes that the umask gives: safetensors makes its files for their
    owner alone, whom colleagues on a shared disk are not."""
    mask = os.umask(0o077)
    os.umask(mask)
    for one in (path, *path.rglob("*")):
        one.chmod((0o777 if one.is_dir() else 0o666) & ~mask)


def write_text(path: str | Path, text: str) -> None:
    """Write a file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name with nothing under it
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into that takes ``out``'s place when the work is done."""
    temporary = _temporary(out)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        plain_modes(temporary)
        shutil.rmtree(out, ignore_errors=True)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(path: str | Path, records: Iterable[BaseModel | dict[str, Any]]) -> None:
    """Write records as JSON Lines, whole or not at all."""
    rows = (r.model_dump(exclude_defaults=False) if isinstance(r, BaseModel) else r for r in records)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def digest(value: Any) -> str:
    """Sixteen hex digits of a JSON-able value, a record or a list of them: the key of caches and provenance."""

    def plain(item: Any) -> Any:
        return item.model_dump() if isinstance(item, BaseModel) else item

    encoder = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=plain)
    return hashlib.sha256(encoder.encode(value).encode()).hexdigest()[:16]


def file_digest(path: str | Path) -> str:
    """Sixteen hex digits of a file's bytes, or of all files of a folder by name but its card, which tells of them."""
    path, digester = Path(path), hashlib.sha256()
    inside = [] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and p != path / "README.md")
    for file in [path] if path.is_file() else inside:
        digester.update(file.name.encode())
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digester.update(block)
    return digester.hexdigest()[:16]
