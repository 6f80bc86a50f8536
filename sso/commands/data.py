"""Commands that make data: queries, annotated pairs, principles, triples, pairs."""

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from pydantic import Field, model_validator

from sso.errors import InputError, first_of
from sso.jobs import tracking
from sso.jobs.progress import progress
from sso.records import Principles, Query, Triple, read, write, write_text
from sso.settings import Data, Settings
from sso.worlds.settings import World


class DataSource(Settings):
    """Where `sso data` takes queries from: a world with an oracle, or real ones in its place."""

    world: World | None = None
    data: Data = Data()
    files: dict[str, str] = {}
    """Name in the folder -> where a judged benchmark's own file is from: a path, or hf://datasets/OWNER/NAME/FILE."""
    iterations: int = Field(1, ge=1)
    """Parts of the queries, one an iteration."""

    @model_validator(mode="after")
    def _one_source(self) -> "DataSource":
        if self.world is None and self.data.queries is None:
            raise ValueError("give either `world` (one with an oracle) or `data.queries` (a JSON Lines file)")
        return self


def data(args: argparse.Namespace) -> None:
    """A world's files, or real queries in their place."""
    given: DataSource = args.settings
    count = given.iterations
    with tracking.run(args.out, "data", given.model_dump(exclude_unset=True), {}) as run:
        if given.world:
            from sso import worlds

            run.summary.update(worlds.write_all(given.world, args.out, count))
            return
        from sso import hub

        real = given.data
        queries, held_out = hub.queries(real)
        if len(queries) < count:
            raise InputError(f"{real.queries}: {len(queries)} queries are too few for {count} iterations; give more.")
        for t in range(count):
            write(args.out / f"queries{t + 1}.jsonl", queries[t::count])
        write(args.out / "queries_all.jsonl", queries)
        if real.held_out:
            write(args.out / "held_out.jsonl", held_out)
        if real.tune:
            write(args.out / "tune.jsonl", read(real.tune, Query))
        for name, source in given.files.items():
            found = hub.fetch(source)
            write_text(args.out / name, found.read_text(encoding="utf-8"))
        run.summary |= {"queries": len(queries)} | ({"held_out": len(held_out)} if real.held_out else {})


def preferences(args: argparse.Namespace) -> None:
    """A set of annotated pairs, whole or one of so many parts."""
    from sso.preferences import load as load_pairs

    with tracking.run(args.out, "preferences", args.settings, {}) as run:
        made, counts = load_pairs(args.settings)
        part, parts = (int(number) for number in args.part.split("/"))
        made = made[part - 1 :: parts]
        if part == 1:  # a row that is left out belongs to no part, and is counted once
            left_out = sum(count for name, count in counts.items() if name != "pairs")
            run.summary.update(counts | {"left_out_pairs": left_out})
        run.summary["pairs"] = len(made)
        write(args.out, made)


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
            from sso import worlds

            rows = worlds.principles(args.world, queries, args.version, args.seed)
        else:
            ask, asked_for = asking(engine, writer, args.seed, lambda: None if args.shard else progress("principles"))
            name = writer.endpoint.model if writer.endpoint else str(args.model)
            rows = write_v1(queries, ask, args.seed, name) if args.version == "v1" else write_v2(queries, ask, name)
        if args.shard:
            return
        if engine is not None:
            queries_of = [name.rpartition("/")[0] for name in asked_for]
            run.summary.update(name_missing(queries_of, list(asked_for.values()), "principles"))
        run.summary |= {"written": len(rows), "fallbacks": sum(r.fallback for r in rows)}
        print(f"principles: {len(rows)} pairs by {writer.kind}, {sum(r.fallback for r in rows)} by the fallback")
        write(args.out, rows)


def _recorded(args: argparse.Namespace, stage: str, **inputs: Path | None) -> AbstractContextManager[tracking.Run]:
    """The record of a job that may run in shards; these leave none of their own."""
    if args.shard:
        return nullcontext(tracking.Run())
    given = {name: path for name, path in inputs.items() if path}
    return tracking.run(args.out, stage, args.settings, given, args.seed)


def sample(args: argparse.Namespace) -> None:
    """Triples, or pairs made of them."""
    from sso.sampling import shards
    from sso.sampling.triples import distinct, draw, drawn, fitting, pairs_of

    written, responses = read(args.principles, Principles)[: args.limit], args.responses.split(",")
    # Before the shard takes its own: one of which nothing can be used draws nothing, and is no failure.
    written, too_long = fitting(written, args.settings, args.model, args.wrapper, responses)
    if args.shard:
        with shards.kept(args, 0, "sample") as engine:
            drawn(engine, shards.own(written, args.shard), args.settings, args.wrapper, args.seed, responses)
        return
    if too_long:
        said = f"{len(too_long)} queries are too long for the model's context"
        print(f"warning: left out, {said}: {first_of(too_long)}", file=sys.stderr, flush=True)
    expected = len(written) * len(responses)
    with (
        _recorded(args, "sample", principles=args.principles, model=args.model) as run,
        shards.kept(args, expected, "sample") as engine,
    ):
        triples, counts = draw(engine, written, args.settings, args.wrapper, args.seed, responses, progress("sample"))
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
        pairs, left_out = pairs_of(triples, args.pairs, str(args.out))
        run.summary.update(left_out)
        write(args.out, pairs)


def pairs(args: argparse.Namespace) -> None:
    """Pairs out of triples."""
    from sso.sampling.triples import pairs_of

    with tracking.run(args.out, "pairs", {"kind": args.kind}, {"triples": args.triples}) as run:
        made, counts = pairs_of(read(args.triples, Triple), args.kind, str(args.triples), args.world)
        run.summary.update(counts)
        write(args.out, made)


def export(args: argparse.Namespace) -> None:
    """Pairs as a folder for the hub."""
    from sso.export import made_by, write_folder

    with tracking.run(args.out, "export", made_by(args.pairs), {"pairs": args.pairs}) as run:
        run.summary.update(write_folder(args.pairs, args.out))
