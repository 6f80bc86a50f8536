"""Train with each learning rate that is asked for and keep the best on the tuning queries.

Every arm gets the same number of tries; a tuning.json beside the weights tells them all. Other seeds and later
iterations take the choice over. Without a choice to make this is just training.
"""

import argparse
import json
from typing import Any

from sso.errors import InputError
from sso.records import Answer, Query, read, write_text


def rates(args: argparse.Namespace) -> list[float]:
    """The learning rates to try."""
    if args.rate_from:
        try:
            return [float(json.loads(args.rate_from.read_text(encoding="utf-8"))["learning_rate"])]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{args.rate_from}: no tuning.json with `learning_rate` ({error}).") from error
    tries = args.settings.learning_rates
    if len(tries) > 1 and not (args.tune and args.world and args.sampling):
        raise InputError("several learning_rates need --tune, --world and --sampling to choose by; or give one.")
    return tries


def train_best(args: argparse.Namespace, records: list[Any], run: Any) -> None:
    """`sso train`: reference scores (read, or made beside the output), the tries, the best one saved."""
    from sso import reference
    from sso.chat import check_conversations, describe, load_model, load_tokenizer, naming
    from sso.jobs import distributed
    from sso.objective import build
    from sso.packing import tokenize
    from sso.train.preference import fit, what_ran, with_adapters
    from sso.train.run import kept, last_checkpoint, save_trained, training_arguments

    tries, training = rates(args), args.settings
    objective, tokenizer, main = build(training), load_tokenizer(args.model), distributed.is_main()
    made = tokenize(records, tokenizer, training.max_length, training.end_cut_responses)
    made.warn(training.max_length)
    if len(tries) > 1:
        queries = read(args.tune, Query)
        with naming([q.id for q in queries], "query"):
            check_conversations(tokenizer, [q.prompt for q in queries])
    distributed.start(training)
    source = reference.make_key(args.model, tokenizer, records, made.samples, training)
    if objective.base.reference_free:
        scores = None
    elif args.reference:
        scores = reference.load(args.reference, source)
    else:
        out = args.out.with_name(f"{args.out.name}.reference.safetensors")
        pad, start = tokenizer.pad_token_id, reference.load_start(args.model, training)
        scores = reference.make(start, made.samples, objective.nodes, pad, source, training, out)
        del start  # its memory is the training's
    work = args.out.with_name(f".{args.out.name}.work")
    key = {"settings": training.model_dump(), "source": source, "seed": args.seed}
    results: list[dict[str, Any]] = []
    best = 0
    with kept(work):
        for number, rate in enumerate(tries):
            folder = work / str(rate)
            checkpoint = last_checkpoint(folder, lambda: key, "train")
            how = training_arguments(training, rate, args.seed, folder)
            model = with_adapters(load_model(args.model), training, args.seed)
            trainer = fit(model, tokenizer, made.samples, scores, objective, how, checkpoint)
            steps = [row for row in trainer.state.log_history if "loss" in row]
            result = {"learning_rate": rate, "final_loss": steps[-1]["loss"] if steps else None}
            if len(tries) > 1:
                result["win_rate"] = win_rate(model, tokenizer, args)
            results.append(result)
            if main:
                print(f"train: {json.dumps(result)} by {what_ran(trainer)}", flush=True)
            if number == 0 or result["win_rate"] > results[best]["win_rate"]:
                best, chosen, log = number, trainer, steps
        save_trained(chosen, training, tokenizer, args.out)
        if main:
            choice = {"learning_rate": tries[best], "tries": results, "template": describe(tokenizer)}
            write_text(args.out / "tuning.json", json.dumps(choice, indent=1) + "\n")
    for row in log:
        run.log(row["step"], {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"})
    run.summary.update({"learning_rate": tries[best], **made.counts, "final_loss": results[best]["final_loss"]})
    distributed.stop()


def win_rate(model: Any, tokenizer: Any, args: argparse.Namespace) -> float:
    """Share of tuning queries on which the oracle prefers the model's answer to the reference's, ties half."""
    from sso.sampling.engine import seed_of
    from sso.sampling.transformers_engine import TransformersEngine
    from sso.worlds.micro.oracle import Oracle

    queries, references = read(args.tune, Query), read(args.tune.with_name("tune_reference.jsonl"), Answer)
    oracle, sampling = Oracle(args.world), args.sampling
    engine = TransformersEngine.of(model.eval(), tokenizer, sampling.batch_size)
    seeds = [seed_of(args.seed, q.id, "tune") for q in queries]
    made = engine.generate(
        [q.prompt for q in queries], seeds, sampling.temperature, sampling.top_p, sampling.max_new_tokens
    )
    wins = 0.0
    for query, answer, other in zip(queries, made, references, strict=True):
        ours, theirs = oracle.score(query.prompt, answer.text).total, oracle.score(query.prompt, other.output).total
        wins += 1.0 if ours > theirs else 0.5 if ours == theirs else 0.0
    return wins / len(queries)
