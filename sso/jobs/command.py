"""What all command lines share: settings as arguments, start-up, and bad input told in a sentence."""

import argparse
import gc
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from sso.errors import InputError, of_machine, printable
from sso.jobs import distributed, gpus, lifeline
from sso.settings import from_yaml, hint, merge, nearest, read_yaml, sentence
from sso.worlds.settings import MicroWorld, RealWorld, kind_of

SettingsT = TypeVar("SettingsT", bound=BaseModel)


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are one sentence each, with the nearest known name; no option may be abbreviated."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        given = sys.argv[1:] if args is None else list(args)
        self._check_options(given)
        return super().parse_known_args(given, namespace)

    def _check_options(self, given: Sequence[str]) -> None:
        """Exit with what an unknown option may mean: argparse would first tell which others are missing."""
        known = self._option_string_actions
        for argument in given:
            name = argument.partition("=")[0]
            if argument == "--" or (self._subparsers and not argument.startswith("-")):
                return  # what follows are values, or another parser's
            if re.fullmatch(r"--[\w-]+", name) and name not in known:
                self.error(f"unknown option {name}; {nearest(name, known) or f'see {self.prog} --help.'}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = f"unknown {action.metavar}" if action.metavar == "command" else "unknown choice"
            known = hint(str(value), [str(choice) for choice in action.choices])
            raise argparse.ArgumentError(None if action.metavar == "command" else action, f"{what} {value!r}; {known}")

    def error(self, message: str) -> NoReturn:
        said = message if message.endswith((".", "?")) else f"{message}; see {self.prog} --help."
        self.exit(2, f"error: {self.prog}: {printable(said)}\n")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for at, (key, _) in enumerate(pairs):
        if key in (earlier for earlier, _ in pairs[:at]):
            raise InputError(f"--settings: `{key}` stands twice; leave one out.")
    return dict(pairs)


def mapping(text: str) -> dict[str, Any]:
    """An argparse type: a JSON object or a YAML file."""
    try:
        given = text.lstrip().startswith("{")
        return json.loads(text, object_pairs_hook=_no_key_twice) if given else read_yaml(text)
    except json.JSONDecodeError as error:
        raise InputError(f"--settings: neither JSON ({error.msg}) nor a file: {text[:80]!r}.") from error


def _checked(values: dict[str, Any], kind: type[SettingsT]) -> SettingsT:
    if "use" in kind.model_fields and values.get("use"):
        raise InputError(f"{kind.__name__} settings: `use` names one of a config's `trainings`; give their keys here.")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(sentence(f"{kind.__name__} settings", error, kind)) from error


def settings(kind: type[SettingsT]) -> Callable[[str], SettingsT]:
    """An argparse type: JSON text or the path of a YAML file, checked as ``kind``."""
    return lambda text: _checked(mapping(text), kind)


def count(text: str) -> int:
    """The argparse type of how many there should be: 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, but must be 1 or more")
    return int(text)


def world(text: str) -> MicroWorld | RealWorld:
    """An argparse type: the settings of a world."""
    values = mapping(text)
    return _checked(values, kind_of(values))


def _assignment(text: str) -> dict[str, Any]:
    """An argparse type: `a.b=VALUE` as {a: {b: VALUE}}."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise InputError(f"--set: {text!r}: give KEY=VALUE, as beta=0.2 or endpoint.model=NAME.")
    made = from_yaml(value, f"--set {key}")
    for part in reversed(key.split(".")):
        made = {part: made}
    return made


def _leaves(values: dict[str, Any], before: str = "") -> Iterator[str]:
    """The dotted keys of a nested mapping."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}"


def add_settings(
    parser: argparse.ArgumentParser, kind: type[BaseModel], default: dict[str, Any] | None = None, what: str = ""
) -> None:
    """Give a command `--settings` and `--set`; `run_cli` makes both one ``kind``, before the command runs.

    ``default`` stands where no `--settings` is given; None: one of both must be. ``what`` tells more of it.
    """
    name = kind.__name__.removesuffix("Settings")
    told = f"{name} settings: a JSON object, or a JSON or YAML file{what}; `sso settings {name}` lists the keys"
    parser.add_argument("--settings", type=mapping, help=told)
    parser.add_argument(
        "--set",
        type=_assignment,
        action="append",
        metavar="KEY=VALUE",
        help="one of the settings (dotted, its value as YAML), over those of --settings; may be repeated",
    )
    parser.set_defaults(settings_kind=kind, settings_default=default)


def _complete(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Make `args.settings` of a command with `add_settings` what it is asked to be."""
    if "settings_kind" not in args:
        return
    args.settings_given = args.settings is not None or bool(args.set)
    if not args.settings_given and args.settings_default is None:
        name = args.settings_kind.__name__.removesuffix("Settings")
        raise InputError(
            f"{parser.prog} {args.command}: give --settings or --set; `sso settings {name}` lists the keys."
        )
    values = args.settings if args.settings is not None else args.settings_default or {}
    set_by: set[str] = set()
    for one in args.set or []:
        if twice := sorted(set_by & (keys := set(_leaves(one)))):
            raise InputError(f"--set: `{twice[0]}` is given twice; leave one out.")
        set_by |= keys
        values = merge(values, one)
    args.settings = _checked(values, args.settings_kind)


def run_cli(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parse and run; bad input is one sentence and exit code 2."""
    lifeline.follow()
    # A quarter of the start-up of torch and transformers is garbage collection of modules that stay.
    gc.disable()
    try:
        gpus.claim_for_job()
        args = parser.parse_args(argv)
        args.argv = sys.argv[1:] if argv is None else argv
        _complete(args, parser)
        args.func(args)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads it, as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
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
