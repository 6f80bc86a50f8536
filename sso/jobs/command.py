"""What all command lines share: settings as arguments, start-up, and bad input told in a sentence."""

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from sso.errors import InputError, of_machine
from sso.jobs import distributed, gpus, lifeline
from sso.settings import read_yaml, sentence

SettingsT = TypeVar("SettingsT", bound=BaseModel)


def mapping(text: str) -> dict[str, Any]:
    """An argparse type: a JSON object or a YAML file."""
    try:
        return json.loads(text) if text.lstrip().startswith("{") else read_yaml(text)
    except json.JSONDecodeError as error:
        raise InputError(f"--settings: neither JSON ({error.msg}) nor a file: {text[:80]!r}.") from error


def settings(kind: type[SettingsT]) -> Callable[[str], SettingsT]:
    """An argparse type: JSON text or the path of a YAML file, checked as ``kind``."""

    def convert(text: str) -> SettingsT:
        try:
            return kind.model_validate(mapping(text))
        except ValidationError as error:
            raise InputError(sentence(f"{kind.__name__} settings", error, kind)) from error

    return convert


def run_cli(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parse and run; bad input is one sentence and exit code 2."""
    lifeline.follow()
    # A quarter of the start-up of torch and transformers is garbage collection of modules that stay.
    gc.disable()
    try:
        gpus.claim_for_job()
        args = parser.parse_args(argv)
        args.argv = sys.argv[1:] if argv is None else argv
        args.func(args)
    except (InputError, OSError) as error:
        told = error if isinstance(error, InputError) else of_machine(error, parser.prog)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 2
    return 0


class _Completion(argparse.Action):
    """`--print-completion bash|zsh|tcsh`: a script for the shell to read."""

    def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, option: str | None = None) -> NoReturn:
        import shtab

        print(shtab.complete(parser, shell))
        parser.exit()


def completion(parser: argparse.ArgumentParser) -> None:
    """Give a command line `--print-completion`."""
    shells = ["bash", "zsh", "tcsh"]
    parser.add_argument("--print-completion", choices=shells, action=_Completion, help="for `source <(...)`, then exit")


def leave(code: int) -> NoReturn:
    """Exit with ``code``; at once, where this is one of several processes.

    The threads of gloo, NCCL and DeepSpeed outlive their group, and an interpreter that is taken down under them now
    and then aborts: a training that has written all it had to is then told as failed.
    """
    if os.environ.keys() >= set(distributed.LAUNCHED):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def end_start_up() -> None:
    """Call after the heavy imports: what was loaded is never collected, the rest as usual."""
    gc.freeze()
    gc.enable()
