"""`sso`: one plain command a stage. The workflow calls these; they work as well without it.

`--settings` takes the JSON (or a YAML file) of the settings class that the stage reads.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sso.config import load, schema
from sso.errors import InputError, first_of
from sso.hub import checkpoint
from sso.jobs import tracking
from sso.jobs.command import end_start_up, leave, mapping, run_cli, settings
from sso.jobs.progress import progress
from sso.records import Pair, Principles, Query, Triple, read, write, write_text
from sso.sampling.settings import Sampling, Writer
from sso.settings import Backbone, Data, Preferences, merge
from sso.train.settings import LOSS_NUMBERS, Sft, Training
from sso.worlds.settings import World

LOSS_OPTIONS = {**dict.fromkeys(LOSS_NUMBERS, float), "max_length": int, "layout": str}
"""Settings of a Training that `sso loss` takes one by one."""


def data(args: argparse.Namespace) -> None:
    """The micro-world's files, or real queries in their place."""
    given = args.settings
    count = int(given.get("iterations", 1))
    with tracking.run(args.out, "data", given, {}) as run:
        if given.get("world"):
            from sso.worlds.micro.data import write_all

            run.summary.update(write_all(World.model_validate(given["world"]), args.out, count))
            return
        from sso import hub

        real = Data.model_validate(given["data"])
        queries = hub.queries(real)
        if len(queries) < count:
            raise InputError(f"{real.queries}: {len(queries)} queries are too few for {count} iterations.")
        for t in range(count):
            write(args.out / f"queries{t + 1}.jsonl", queries[t::count])
        write(args.out / "queries_all.jsonl", queries)
        if real.tune:
            write(args.out / "tune.jsonl", read(real.tune, Query))
        for name, source in given.get("files", {}).items():
            found = hub.fetch(source)
            write_text(args.out / name, found.read_text(encoding="utf-8"))
        run.summary["queries"] = len(queries)


def preferences(args: argparse.Namespace) -> None:
    """A set of annotated pairs, whole or one of so many parts."""
    from sso.preferences import load as load_pairs

    with tracking.run(args.out, "preferences", args.settings, {}) as run:
        made, counts = load_pairs(args.settings)
        part, parts = (int(number) for number in args.part.split("/"))
        made = made[part - 1 :: parts]
        run.summary.update(counts | {"pairs": len(made)})
        write(args.out, made)


def sft(args: argparse.Namespace) -> None:
    """A tiny model from scratch, or a base model on dialogues."""
    from sso.jobs import distributed

    if args.settings.data:
        distributed.launch(args.settings, args.argv)
    record = merge(args.backbone.model_dump(), args.settings.model_dump())
    inputs = {"data": args.data} if Path(args.data).is_file() else {}
    with tracking.run(args.out, "sft", record, inputs, args.seed) as run:
        import transformers.trainer  # noqa: F401

        if args.settings.data:
            from sso.train import fine_tune

            end_start_up()
            distributed.start(args.settings)
            run.summary.update(fine_tune.train(args.backbone.checkpoint, args.settings, args.seed, args.out, run.log))
            distributed.stop()
            return
        from sso.train.sft import train

        end_start_up()
        run.summary.update(train(args.backbone, args.settings, Path(args.data), args.seed, args.out, run.log))


def _recorded(args: argparse.Namespace, stage: str, **inputs: Path | None) -> AbstractContextManager[tracking.Run]:
    """The record of a job that may run in shards; these leave none of their own."""
    if args.shard:
        return nullcontext(tracking.Run())
    given = {name: path for name, path in inputs.items() if path}
    return tracking.run(args.out, stage, args.settings, given, args.seed)


def principles(args: argparse.Namespace) -> None:
    """A good and a bad principle for every query, by the procedure or by a language model."""
    from sso.principles import write_v1, write_v2
    from sso.sampling import shards
    from sso.sampling.engine import asking, name_missing

    queries, writer, procedural = read(args.queries, Query), args.settings, args.settings.kind == "procedural"
    asked = len(queries) * (1 if args.version == "v1" else 2)
    queries = shards.own(queries, args.shard)
    with (
        _recorded(args, "principles", queries=args.queries, model=args.model) as run,
        nullcontext() if procedural else shards.kept(args, asked, "principles") as engine,
    ):
        if engine is None:
            from sso.worlds.micro.principles import write as write_procedural

            rows = write_procedural(args.world, queries, args.version, args.seed)
        else:
            ask, asked_for = asking(engine, writer, args.seed, lambda: None if args.shard else progress("principles"))
            name = writer.endpoint.model if writer.endpoint else str(args.model)
            rows = write_v1(queries, ask, args.seed, name) if args.version == "v1" else write_v2(queries, ask, name)
        if args.shard:
            return
        if engine is not None:
            queries_of = [name.rpartition("/")[0] for name in asked_for]
            run.summary.update(name_missing(queries_of, list(asked_for.values()), "principles"))
        run.summary["fallbacks"] = sum(r.fallback for r in rows)
        print(f"principles: {len(rows)} pairs by {writer.kind}, {sum(r.fallback for r in rows)} by the fallback")
        write(args.out, rows)


def sample(args: argparse.Namespace) -> None:
    """Triples, or pairs with their reference scores."""
    from sso.preferences import usable
    from sso.sampling import shards
    from sso.sampling.triples import distinct, draw, fitting, pairs_of

    written, responses = read(args.principles, Principles)[: args.limit], args.responses.split(",")
    written, too_long = fitting(shards.own(written, args.shard), args.settings, args.model, args.wrapper, responses)
    if too_long and not args.shard:
        said = f"{len(too_long)} queries are too long for the model's context"
        print(f"warning: left out, {said}: {first_of(too_long)}", file=sys.stderr, flush=True)
    expected = len(written) * len(responses)
    with (
        _recorded(args, "sample", principles=args.principles, model=args.model) as run,
        shards.kept(args, expected, "sample") as engine,
    ):
        show = None if args.shard else progress("sample")
        triples, counts = draw(engine, written, args.settings, args.wrapper, args.seed, responses, show)
        if args.shard:
            return
        if too_long:
            counts["too_long"] = counts.get("too_long", 0) + len(too_long)
        run.summary.update(counts)
        print("sample: " + ", ".join(f"{name} {value:g}" for name, value in counts.items()))
        if args.distinct:
            triples, alike = distinct(triples, responses)
            run.summary.update(alike)
        if args.pairs is None:
            write(args.out, triples)
            return
        pairs, left_out = usable([pair.model_dump() for pair in pairs_of(triples, args.pairs)], str(args.out))
        run.summary.update(left_out)
        if args.reference_out:
            _reference(args.reference_model, pairs, ["pairs"], args.reference_settings, args.reference_out)
        write(args.out, pairs)


def pairs(args: argparse.Namespace) -> None:
    """Pairs out of triples."""
    from sso.preferences import usable
    from sso.sampling.triples import pairs_of

    with tracking.run(args.out, "pairs", {"kind": args.kind}, {"triples": args.triples}) as run:
        rows = (pair.model_dump() for pair in pairs_of(read(args.triples, Triple), args.kind, args.world))
        made, left_out = usable(rows, str(args.out))
        run.summary.update(left_out | {"pairs": len(made)})
        write(args.out, made)


def export(args: argparse.Namespace) -> None:
    """Pairs as a folder for the hub."""
    from sso.export import made_by, write_folder

    with tracking.run(args.out, "export", made_by(args.pairs), {"pairs": args.pairs}) as run:
        run.summary.update(write_folder(args.pairs, args.out))


def _records(path: Path, summary: dict[str, Any] | None = None) -> list[Triple] | list[Pair]:
    """Triples or pairs; rows that were left out are counted in ``summary``."""
    from sso.preferences import triples_or_pairs

    records, left_out = triples_or_pairs(path)
    if summary is not None:
        summary.update(left_out)
    return records


def _reference(model_path: Path, records: list, objectives: list[str], training: Training, out: Path) -> Any:
    from sso import reference
    from sso.chat import load_tokenizer
    from sso.objective import build
    from sso.packing import tokenize

    nodes = {n: None for name in objectives for n in build(training.model_copy(update={"objective": name})).nodes}
    tokenizer = load_tokenizer(model_path)
    end_start_up()
    made = tokenize(records, tokenizer, training.max_length, training.end_cut_responses)
    made.warn(training.max_length)
    key = reference.make_key(model_path, tokenizer, records, made.samples, training)
    model = reference.load_start(model_path, training)
    show = progress("reference")
    return reference.make(model, made.samples, list(nodes), tokenizer.pad_token_id, key, training, out, show)


def reference(args: argparse.Namespace) -> None:
    """Reference scores of the united nodes of some objectives."""
    from sso.jobs import distributed

    # The training's engine says what to compute in; scoring itself is data parallel.
    spread = args.settings.model_copy(update={"engine": "ddp"})
    distributed.launch(spread, args.argv)
    with tracking.run(args.out, "reference", args.settings, {"model": args.model, "data": args.data}) as run:
        distributed.start(spread)
        records = _records(args.data, run.summary)
        scores = _reference(args.model, records, args.objectives.split(","), args.settings, args.out)
        run.summary["nodes"] = len(scores.nodes)
        distributed.stop()


def train(args: argparse.Namespace) -> None:
    """A generator or a policy."""
    from sso.jobs import distributed

    distributed.launch(args.settings, args.argv)
    inputs = {"model": args.model, "data": args.data}
    with tracking.run(args.out, "train", args.settings, inputs, args.seed) as run:
        import transformers.trainer  # noqa: F401

        from sso.train.tuning import Tuning, train_best

        end_start_up()
        given = args.tune and args.world and args.sampling
        train_best(
            args.model,
            _records(args.data, run.summary),
            args.settings,
            args.seed,
            args.out,
            run,
            reference_path=args.reference,
            rate_from=args.rate_from,
            tuning=Tuning(args.tune, args.world, args.sampling) if given else None,
        )


def loss(args: argparse.Namespace) -> None:
    """An objective's terms, one JSON line a sample on standard output; all else goes to standard error."""
    chosen = {name: getattr(args, name) for name in ("objective", "base_loss", *LOSS_OPTIONS)}
    given = {name: value for name, value in chosen.items() if value is not None}
    training = settings(Training)(json.dumps({**args.settings.model_dump(), **given}))
    with redirect_stdout(sys.stderr):
        from sso.chat import load_tokenizer
        from sso.loss import lines
        from sso.objective import build
        from sso.packing import tokenize

        end_start_up()
        objective, tokenizer = build(training), load_tokenizer(args.policy)
        made = tokenize(_records(args.triples), tokenizer, training.max_length, training.end_cut_responses)
        made.warn(training.max_length)
        pad = tokenizer.pad_token_id
        rows = list(lines(args.policy, args.reference, made.samples, pad, objective, args.dtype))
    for row in rows:
        print(json.dumps(row))


def report(args: argparse.Namespace) -> None:
    """Tables and figures."""
    from report import build
    from workflow.experiment import Grid

    experiment = load(args.config)
    with tracking.run(args.out, "report", {"experiment": experiment.experiment}, {"config": args.config}):
        end_start_up()
        build(Grid(experiment), args.results, args.out)


def plan(args: argparse.Namespace) -> None:
    """Jobs, tokens, GPU-hours, memory, disk, judge requests and money, before anything runs."""
    from workflow.experiment import Grid
    from workflow.plan import show

    show(Grid(load(args.configfile)), args.measured)


def doctor(args: argparse.Namespace) -> None:
    """What is missing for a run, a line a problem; exit code 1 where there is one."""
    from workflow.doctor import problems
    from workflow.experiment import Grid

    found = list(problems(Grid(load(args.configfile))))
    for problem in found:
        print(problem)
    if found:
        sys.exit(1)
    print("nothing is missing")


def pin(args: argparse.Namespace) -> None:
    """The config's `revisions`, with the hub's commits of today for what has none, as YAML."""
    import yaml

    from sso import hub
    from workflow.hub_names import hub_names, repositories, unpinned

    experiment = load(args.configfile)
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
    """Records to MLflow."""
    tracking.sync(args.results, args.tracking_uri)


def print_schema(args: argparse.Namespace) -> None:
    """The JSON schema of a config."""
    text = json.dumps(schema(), indent=1) + "\n"
    write_text(args.out, text) if args.out else sys.stdout.write(text)


def parser() -> argparse.ArgumentParser:
    """All commands."""
    top = argparse.ArgumentParser(prog="sso", description=__doc__.splitlines()[0])
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
        ("--reference-model", folder),
        ("--reference-settings", {"type": settings(Training), "default": Training()}),
        ("--reference-out", path),
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
        ("--kind", {"choices": ["good_bad", "good_original", "annotated"], "required": True}),
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
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `sso`."""
    return run_cli(parser(), argv)


if __name__ == "__main__":
    leave(main())
