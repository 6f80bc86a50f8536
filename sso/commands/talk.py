"""`sso chat`: lines from standard input, answered by one or several checkpoints, with and without principles."""

import argparse
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sso.errors import InputError, printable
from sso.jobs.command import end_start_up
from sso.records import Message
from sso.sampling.settings import Sampling

DEFAULTS = {"temperature": 0, "max_new_tokens": 256, "dtype": "float32"}
"""Greedy, and short enough for the context of a micro model."""


def chat(args: argparse.Namespace) -> None:
    """Talk to checkpoints: each model and system message is a conversation of its own; an empty line begins anew."""
    from transformers.utils.logging import disable_progress_bar

    from sso.chat import check_system, load_tokenizer
    from sso.principles import WRAPPERS
    from sso.sampling.engine import make_engine, seed_of
    from sso.worlds.micro.models import CHAT_TEMPLATE

    settings: Sampling = args.settings
    principles = [("good", text) for text in args.principle] + [("bad", text) for text in args.bad_principle]
    wrappers = {}
    for model in args.model:  # before one is loaded
        micro = load_tokenizer(model).chat_template == CHAT_TEMPLATE
        wrappers[model] = WRAPPERS[args.wrapper or ("micro" if micro else "paper")]
        if principles or args.system:
            check_system(model, "this conversation")
    # What stands first in each conversation, by what it is called.
    starts = {}
    for model, name in zip(args.model, _names(args.model), strict=True):
        own = [Message(role="system", content=args.system)] if args.system else []
        starts[name] = (model, own)
        for number, (kind, text) in enumerate(principles, 1):
            system = "\n\n".join(filter(None, (wrappers[model][kind].format(principle=text), args.system)))
            starts[f"{name}, principle {number}"] = (model, [Message(role="system", content=system)])
    disable_progress_bar()
    engines = {model: make_engine(settings, model, Path("unused")) for model in dict.fromkeys(args.model)}
    end_start_up()
    said = {name: list(own) for name, (_, own) in starts.items()}
    for turn, line in enumerate(_lines()):
        if not line.strip():
            said = {name: list(own) for name, (_, own) in starts.items()}
            if sys.stdin.isatty():
                print("(a new conversation)", file=sys.stderr)
            continue
        replies, goes_on = {}, dict(said)
        interrupted = _remembered_interrupts()
        try:
            for name, (model, _) in starts.items():
                asked = [*said[name], Message(role="user", content=line)]
                # One seed for all: what differs is the model's and the principle's doing.
                seed = seed_of(args.seed, str(turn), "chat")
                (made,) = engines[model].generate(
                    [asked], [seed], settings.temperature, settings.top_p, settings.max_new_tokens
                )
                if interrupted:
                    raise KeyboardInterrupt
                if made.missing:
                    print(f"{name}: {made.why}", file=sys.stderr)
                    continue
                replies[name] = printable(made.text) if sys.stdout.isatty() else made.text
                goes_on[name] = [*asked, Message(role="assistant", content=made.text)]
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            print("\n(stopped; the message is taken back)", file=sys.stderr)
            continue
        said = goes_on
        _show(replies, len(starts) > 1)


def _remembered_interrupts() -> list[int]:
    """The Ctrl-Cs from now on: one that comes in a callback of torch or transformers is lost there as an exception."""
    came: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    return came


def _names(models: list[Path]) -> list[str]:
    """The last parts of the paths, as few as tell them apart."""
    for count in range(1, max(len(model.parts) for model in models) + 1):
        names = ["/".join(model.parts[-count:]) for model in models]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"--model: {models[0]} is given twice; leave one out.")


def _lines() -> Iterator[str]:
    """What is typed at a prompt, or piped, a message a line."""
    number = 0
    try:
        if sys.stdin.isatty():
            import readline  # noqa: F401  # input() then edits and remembers lines

            print(
                "A line is a message, an empty one begins anew. Ctrl-C stops an answer, Ctrl-D ends.", file=sys.stderr
            )
            while True:
                if sys.stdout.isatty():
                    yield input("> ")
                else:  # where replies go to a file or pipe the prompt does not
                    print("> ", end="", file=sys.stderr, flush=True)
                    yield input()
        for line in sys.stdin:
            number += 1
            line.encode()  # in a C locale bytes that are no UTF-8 come as lone surrogates
            yield line.rstrip("\r\n")
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr)
    except UnicodeError as error:
        raise InputError(f"standard input: line {number or 1} is not UTF-8; convert it.") from error


def _show(replies: dict[str, str], named: bool) -> None:
    """Side by side on a terminal; a line a reply in a pipe."""
    if not named or not sys.stdout.isatty():
        for name, reply in replies.items():
            print(f"{name}: {reply}" if named else reply, flush=True)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*replies, expand=True)
    table.add_row(*map(Text, replies.values()))
    Console().print(table)
