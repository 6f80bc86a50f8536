"""Files and prompts from the Hugging Face hub or from local copies; the one place that asks the hub for data files.

A source is a local path, a data set's name, or one file as `hf://datasets/OWNER/NAME[@REVISION]/FILE`. Nothing is
executed: data sets are read from their files, never by a script.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sso.errors import InputError
from sso.records import Query, read
from sso.settings import Data


def fetch(source: str) -> Path:
    """The local path of a file, from the hub's cache if it is a hub's.

    Raises:
        InputError: there is no such file, or the hub can't be reached.
    """
    if not source.startswith("hf://"):
        if not Path(source).is_file():
            raise InputError(f"{source}: no such file; give a local one or hf://datasets/OWNER/NAME/FILE.")
        return Path(source)
    from huggingface_hub import HfFileSystem, hf_hub_download

    try:
        place: Any = HfFileSystem().resolve_path(source)  # in a repository; buckets have no revision
        return Path(
            hf_hub_download(place.repo_id, place.path_in_repo, repo_type=place.repo_type, revision=place.revision)
        )
    except Exception as error:
        raise _unreachable(source, error) from error


def rows(
    source: str, split: str, limit: int | None = None, subset: str | None = None, revision: str | None = None
) -> Any:
    """A data set of the hub, or of a local folder or JSON Lines or parquet file, as `datasets.Dataset`.

    ``subset`` is its configuration and ``revision`` a commit, of the hub's sets, which may stand as NAME@COMMIT too.
    """
    from datasets import load_dataset

    path = Path(source)
    try:
        if path.is_file():
            kind = "parquet" if path.suffix == ".parquet" else "json"
            found = load_dataset(kind, data_files=str(path), split="train")
        else:
            name, _, commit = (source, "", "") if path.exists() else source.partition("@")
            found = load_dataset(name, subset, split=split, revision=revision or commit or None)
    except Exception as error:
        raise _unreachable(source, error) from error
    return found.select(range(min(limit, len(found)))) if limit else found


def queries(data: Data) -> tuple[list[Query], list[Query]]:
    """The prompts that are trained on, and those that are held out, fewer than `held_out` where there are fewer.

    Of a file, or a column of a hub's data set, a prompt that occurs again left out.

    Raises:
        InputError: the data set has no such column, or it can't be reached.
    """
    found = _all_queries(data)
    trained, rest = found[: data.limit], found[data.limit :] if data.limit else []
    known, others = set(map(_said, trained)), dict[tuple[tuple[str, str], ...], Query]()
    for query in rest:
        if _said(query) not in known:
            others.setdefault(_said(query), query)
    return trained, list(others.values())[: data.held_out]


def _said(query: Query) -> tuple[tuple[str, str], ...]:
    """What two rows with the same prompt have in common."""
    return tuple((message.role, message.content.strip()) for message in query.prompt)


def _all_queries(data: Data) -> list[Query]:
    assert data.queries is not None, "without them the queries are the micro-world's"
    if Path(data.queries).is_file():
        return read(data.queries, Query)
    found = rows(data.queries, data.split)
    if data.column not in found.column_names:
        known = ", ".join(found.column_names)
        raise InputError(f"{data.queries}: no column {data.column!r}; set data.column to one of: {known}.")
    prompts = dict.fromkeys(prompt for prompt in found[data.column] if isinstance(prompt, str) and prompt.strip())
    wanted = data.limit and data.limit + data.held_out
    made = [Query(id=hashlib.sha256(p.encode()).hexdigest()[:16], prompt=p) for p in list(prompts)[:wanted]]
    print(f"queries: {len(made)} of {len(found)} rows of {data.queries}; repeated and empty prompts are left out")
    return made


def commits(names: Mapping[str, str]) -> dict[str, str]:
    """The commits that the hub's main branches have now, by repository.

    Args:
        names: repository -> `model`, `dataset` or `space`.

    Raises:
        InputError: the hub can't be reached, or lets this user not read one of them.
    """
    from huggingface_hub import HfApi

    found, api = {}, HfApi()
    for name, kind in names.items():
        try:
            found[name] = str(api.repo_info(name, repo_type=kind, timeout=20).sha)
        except Exception as error:
            raise _unreachable(name, error) from error
    return found


def _unreachable(source: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:120]
    return InputError(
        f"{source}: neither here nor to be had from the hub ({type(error).__name__}: {reason}); "
        f"map its name to a local copy under `local`."
    )


def checkpoint(name: str | Path) -> Path:
    """The folder of a checkpoint: a local one, or a hub's `OWNER/NAME[@REVISION]`, fetched without code or pickles.

    Raises:
        InputError: there is no such folder, and it can be no name on the hub or is not to be had from there.
    """
    text = str(name)
    if Path(text).is_dir():
        return Path(text)
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise InputError(f"{text}: no such folder; give a checkpoint's folder or its name on the hub.")
    from huggingface_hub import snapshot_download

    repository, _, revision = text.partition("@")
    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except Exception as error:
        raise _unreachable(text, error) from error
