"""Train with each learning rate that is asked for and keep the best on the tuning queries.

Every arm gets the same number of tries; a tuning.json beside the weights tells them all. Other seeds and later
iterations take the choice over. Without a choice to make this is just training.
"""

import argparse
import copy
import json
import tempfile
from pathlib import Path
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
    from sso.chat import describe, load_model, load_tokenizer
    from sso.logprobs import tokenize
    from sso.objective import build
    from sso.sft import save
    from sso.trainer import train

    tries, training = rates(args), args.settings
    tokenizer, start = load_tokenizer(args.model), load_model(args.model)
    samples = tokenize(records, tokenizer, training.max_length)
    key = reference.make_key(args.model, tokenizer, records, training.max_length, training.dtype)
    path = args.reference or args.out.with_name(f"{args.out.name}.reference.safetensors")
    if args.reference is None:
        nodes = build(training).nodes
        scores = reference.score(start, samples, nodes, tokenizer.pad_token_id, key)
        reference.save(scores, path)
    scores = reference.load(path, key)
    results, best = [], None
    for rate in tries:
        model = copy.deepcopy(start) if len(tries) > 1 else start
        with tempfile.TemporaryDirectory() as workspace:
            log = train(model, tokenizer, samples, scores, training, rate, args.seed, Path(workspace))
        result = {"learning_rate": rate, "final_loss": log[-1]["loss"] if log else None}
        if len(tries) > 1:
            result["win_rate"] = win_rate(model, tokenizer, args)
        results.append(result)
        print(f"train: {json.dumps(result)}", flush=True)
        if best is None or result.get("win_rate", 0.0) > results[best[0]].get("win_rate", 0.0):
            best = (len(results) - 1, model, log)
    index, model, log = best
    for row in log:
        run.log(row["step"], {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"})
    run.summary.update({"learning_rate": tries[index], "samples": len(samples), "final_loss": log[-1]["loss"]})
    save(model, tokenizer, args.out)
    choice = {"learning_rate": tries[index], "tries": results, "template": describe(tokenizer)}
    write_text(args.out / "tuning.json", json.dumps(choice, indent=1) + "\n")


def win_rate(model: Any, tokenizer: Any, args: argparse.Namespace) -> float:
    """Share of tuning queries on which the oracle prefers the model's answer to the reference's, ties half."""
    from sso.micro.oracle import Oracle
    from sso.sampling import seed_of
    from sso.sampling.transformers_engine import TransformersEngine

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
