"""Commands about a whole experiment: its plan, its tables, its records."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sso.config import Experiment, load, schema
from sso.jobs import mlflow_runs, tracking
from sso.jobs.command import end_start_up
from sso.records import write_text
from sso.settings import config_file, read_yaml


def with_configs(given: Sequence[str]) -> list[str]:
    """Snakemake's arguments with names of shipped configs as paths.

    Each config is read here first: Snakemake, which reads it too, tells of a bad one by a traceback.
    """
    made, follows = [], False
    for argument in given:
        flag, equals, value = argument.partition("=")
        named = flag in ("--configfile", "--configfiles")
        if named and equals:
            argument = f"{flag}={_readable(value)}"
        elif follows and not argument.startswith("-"):
            argument = _readable(argument)
        follows = (named and not equals) or (follows and not argument.startswith("-"))
        made.append(argument)
    return made


def _readable(name: str) -> str:
    file = config_file(name) or Path(name)
    read_yaml(file)
    return str(file)


def report(args: argparse.Namespace) -> None:
    """Tables and figures."""
    from report import build
    from workflow.experiment import Grid

    experiment = load(args.config)
    with tracking.run(args.out, "report", {"experiment": experiment.experiment}, {"config": args.config}):
        end_start_up()
        build(Grid(experiment), args.results, args.out)


def _given(args: argparse.Namespace) -> Experiment:
    """The experiment of `--configfile` and `--config`, as the workflow reads them."""
    from workflow import arguments, experiment

    return experiment.load([args.configfile], arguments.read([pair for group in args.config for pair in group]))


def plan(args: argparse.Namespace) -> None:
    """Jobs, tokens, GPU-hours, memory, disk, judge requests and money, before anything runs."""
    from workflow.experiment import Grid
    from workflow.plan import show

    show(Grid(_given(args)), args.measured)


def doctor(args: argparse.Namespace) -> None:
    """What is missing for a run, a line a problem; exit code 1 where there is one."""
    from workflow.doctor import problems
    from workflow.experiment import Grid

    found = 0
    for found, problem in enumerate(problems(Grid(_given(args))), 1):  # noqa: B007  # as they come
        print(problem, flush=True)
    if found:
        sys.exit(1)
    print("nothing is missing")


def pin(args: argparse.Namespace) -> None:
    """The config's `revisions`, with the hub's commits of today for what has none, as YAML."""
    import yaml

    from sso import hub
    from workflow.hub_names import hub_names, repositories, unpinned

    experiment = _given(args)
    if args.update:
        wanted = {name: kind for name, (kind, _) in repositories(hub_names(experiment)).items()}
    else:
        wanted = unpinned(experiment)
    text = yaml.safe_dump({"revisions": {**experiment.revisions, **hub.commits(wanted)}}, width=120)
    write_text(args.out, text) if args.out else sys.stdout.write(text)


def table(args: argparse.Namespace) -> None:
    """One table of a run."""
    from report.show import find, show
    from workflow.experiment import Grid

    experiment, results = find(args.experiment, args.config, args.results)
    show(Grid(experiment), results, args.version, args.table, args.format)


def sync(args: argparse.Namespace) -> None:
    """Records to MLflow, or curves as they grow."""
    (mlflow_runs.follow if args.follow else mlflow_runs.sync)(args.results, args.tracking_uri)


def print_schema(args: argparse.Namespace) -> None:
    """The JSON schema of a config."""
    text = json.dumps(schema(), indent=1) + "\n"
    write_text(args.out, text) if args.out else sys.stdout.write(text)
