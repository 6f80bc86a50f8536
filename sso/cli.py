"""`sso`: one plain command a stage. The workflow calls these; they work as well without it.

`--settings` takes the JSON (or a YAML file) of the settings class that the stage reads. `sso eval ...` and
`sso rewardbench ...` are `sso-eval ...` and `sso-rewardbench ...`.
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
from sso.commands.data import data, export, pairs, preferences, principles, sample
from sso.commands.experiment import doctor, pin, plan, print_schema, report, sync, table
from sso.commands.training import LOSS_OPTIONS, loss, reference, sft, train
from sso.hub import checkpoint
from sso.jobs.command import completion, leave, mapping, run_cli, settings
from sso.sampling.settings import Sampling, Writer
from sso.settings import ROOT, Backbone, Preferences
from sso.train.settings import Sft, Training
from sso.worlds.settings import World

ROOMS = {"eval": eval_cli, "rewardbench": rewardbench_cli}
"""Command lines of their own that are commands of this one, too."""


def parser() -> argparse.ArgumentParser:
    """All commands."""
    top = argparse.ArgumentParser(prog="sso", description=__doc__.splitlines()[0])
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    completion(top)
    commands = top.add_subparsers(required=True, metavar="command")

    def add(name: str, func: Callable, help: str, *options: tuple[str | list[str], dict[str, Any]]) -> None:
        command = commands.add_parser(name, help=help)
        for flags, keywords in options:
            command.add_argument(*([flags] if isinstance(flags, str) else flags), **keywords)
        command.set_defaults(func=func)

    path, required = {"type": Path}, {"type": Path, "required": True}
    seed = ("--seed", {"type": int, "default": 0})
    out, source = ("--out", required), ("--data", required)
    folder: dict[str, Any] = {"type": checkpoint, "help": "folder of a checkpoint, or OWNER/NAME[@REVISION] on the hub"}
    model = ("--model", {**folder, "required": True})
    world = ("--world", {"type": settings(World)})
    sampling = {"type": settings(Sampling)}
    # Of the processes that share the work, which the command starts itself.
    shard = ("--shard", {"help": argparse.SUPPRESS})

    def own(kind: type[BaseModel]) -> tuple[str, dict[str, Any]]:
        return "--settings", {"type": settings(kind), "required": True, "help": f"JSON or YAML file of {kind.__name__}"}

    add(
        "data",
        data,
        "query sets, SFT corpus and micro benchmarks",
        ("--settings", {"type": mapping, "required": True}),
        out,
    )
    add(
        "sft",
        sft,
        "train a tiny model from scratch, or a base model on dialogues",
        ("--data", {"required": True, "help": "JSON Lines with `messages`, or a data set of the hub"}),
        ("--backbone", {"type": settings(Backbone), "required": True}),
        own(Sft),
        seed,
        out,
    )
    add(
        "principles",
        principles,
        "a good and a bad principle for every query",
        ("--queries", required),
        ("--version", {"choices": ["v1", "v2"], "default": "v2"}),
        own(Writer),
        world,
        ("--model", folder),
        shard,
        seed,
        out,
    )
    add(
        "sample",
        sample,
        "draw y+, y- and yo; with --pairs, write pairs",
        ("--model", {**folder, "help": f"{folder['help']}; not with an endpoint, whose settings name its model"}),
        ("--principles", required),
        own(Sampling),
        ("--wrapper", {"choices": ["micro", "paper", "paper_v1"], "default": "paper"}),
        ("--responses", {"default": "y+,y-,yo,second", "help": "which of y+,y-,yo,second to draw"}),
        ("--distinct", {"action": "store_true", "help": "leave out triples with equal responses, as v1 does"}),
        ("--pairs", {"choices": ["good_bad"]}),
        ("--limit", {"type": int, "help": "only the first so many queries"}),
        shard,
        seed,
        out,
    )
    add(
        "preferences",
        preferences,
        "a set of annotated pairs, from the hub or a file",
        own(Preferences),
        ("--part", {"default": "1/1", "help": "1/3: the first of three parts"}),
        out,
    )
    add(
        "pairs",
        pairs,
        "preference pairs out of triples",
        ("--triples", required),
        ("--kind", {"choices": ["good_bad", "good_original", "annotated", "relabelled", "flawless"], "required": True}),
        world,
        out,
    )
    add(
        "export",
        export,
        "pairs as a folder for the hub: parquet and a dataset card",
        ("--pairs", required),
        out,
    )
    add(
        "reference",
        reference,
        "score responses under the reference model, once",
        model,
        source,
        ("--objectives", {"required": True, "help": "comma list; their nodes are united"}),
        own(Training),
        out,
    )
    add(
        "train",
        train,
        "train a generator or a policy",
        model,
        source,
        own(Training),
        ("--reference", path),
        ("--tune", {"type": Path, "help": "queries on which the best of several learning rates is chosen"}),
        world,
        ("--sampling", sampling),
        ("--rate-from", {"type": Path, "help": "a tuning.json whose choice is taken over"}),
        seed,
        out,
    )
    add(
        "loss",
        loss,
        "an objective's terms, one JSON line a sample",
        ("--policy", {**folder, "required": True}),
        ("--reference", {**folder, "required": True}),
        ("--triples", {**required, "help": "triples, or pairs for objectives in context x"}),
        ("--dtype", {"choices": ["float32", "bfloat16", "float64"], "default": "float32"}),
        ("--settings", {"type": settings(Training), "default": Training(), "help": "JSON or YAML file of Training"}),
        ("--objective", {"required": True}),
        (["--base", "--base-loss"], {"dest": "base_loss"}),
        *(("--" + name.replace("_", "-"), {"type": kind}) for name, kind in LOSS_OPTIONS.items()),
    )
    add("report", report, "tables and figures", ("--config", required), ("--results", required), out)
    add(
        "table",
        table,
        "print one of the paper's tables with the figures of a run",
        ("--experiment", {"help": "a folder in results/"}),
        ("--config", {**path, "help": "the experiment's config file, in place of --experiment"}),
        ("--results", {**path, "help": "the experiment's folder; default: results/<experiment>"}),
        ("--version", {"choices": ["v1", "v2"], "default": "v2"}),
        ("--table", {"required": True, "help": "its number in the paper, or figure3, instruct_full, llama3_full"}),
        ("--format", {"choices": ["terminal", "markdown", "latex", "csv"], "default": "terminal"}),
    )
    add("mlflow-sync", sync, "bring the runs' records to MLflow", ("--results", required), ("--tracking-uri", {}))
    configfile = ("--configfile", {**required, "help": "an experiment, as Snakemake's"})
    measured = {"type": Path, "help": "results folder of a finished run: the model's share of time beside the measured"}
    add("plan", plan, "what an experiment costs, before anything runs", configfile, ("--measured", measured))
    add("doctor", doctor, "what is missing for a run: packages, GPUs, disk, models, data, keys", configfile)
    add(
        "pin",
        pin,
        "the commits of what a config takes from the hub, as its `revisions`",
        configfile,
        ("--update", {"action": "store_true", "help": "ask again for what is pinned"}),
        ("--out", {**path, "help": "a YAML file; default: standard output"}),
    )
    add("schema", print_schema, "JSON schema of the config", ("--out", path))
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
        os.execv(
            sys.executable, [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), *given[1:]]
        )
    return run_cli(parser(), given)


if __name__ == "__main__":
    leave(main())
