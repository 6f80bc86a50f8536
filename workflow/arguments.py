"""What stands behind Snakemake's `--config`: read as Snakemake reads it, no key twice.

Snakemake takes the last of two equal keys, and of two `--config` the last, without a word.
"""

from collections.abc import Sequence
from typing import Any

from sso.errors import InputError
from sso.settings import from_yaml

FLAGS = ("--config", "-C")


def check(arguments: Sequence[str]) -> None:
    """Raise InputError where a Snakemake command line gives `--config`, or a key of it, twice."""
    groups: list[list[str]] = []
    open_group: list[str] | None = None
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in FLAGS:
            open_group = [value] if equals else []
            groups.append(open_group)
        elif argument.startswith("-"):
            open_group = None
        elif open_group is not None:
            open_group.append(argument)
    if len(groups) > 1:
        raise InputError(
            "--config is given twice, and Snakemake would only take the last: give all KEY=VALUE behind one."
        )
    for group in groups:
        _no_key_twice(group)


def read(entries: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE pairs as the mapping that Snakemake makes of them.

    Raises:
        InputError: one is no such pair, or a key stands twice.
    """
    from snakemake.cli import parse_config

    _no_key_twice(entries)
    try:
        return parse_config(entries)
    except ValueError as error:
        raise InputError(f"--config: {entries}: give KEY=VALUE pairs, as seeds=[0] ({error})") from error


def _no_key_twice(entries: Sequence[str]) -> None:
    keys = [entry.partition("=")[0] for entry in entries]
    for at, entry in enumerate(entries):
        key, _, value = entry.partition("=")
        if key in keys[:at]:
            raise InputError(f"--config: `{key}` stands twice; leave one out.")
        try:
            from_yaml(value, f"--config {key}")
        except InputError as error:  # what else is odd in it Snakemake takes as text
            if "stands twice" in str(error):
                raise
