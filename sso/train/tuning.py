"""Train with each learning rate that is asked for and keep the best on the tuning queries.

Every arm gets the same number of tries; a tuning.json beside the weights tells them all. Other seeds and later
iterations take the choice over. Without a choice to make this is just training.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sso.errors import InputError
from sso.records import Answer, Query, read, write_text
from sso.sampling.settings import Sampling
from sso.train.settings import Training
from sso.worlds.settings import World


@dataclass(frozen=True)
class Tuning:
    """What the tries of several learning rates are told apart by: answers to ``queries``, judged by the oracle."""

    queries: Path
    """File of the queries; tune_reference.jsonl lies beside it."""
    world: World
    sampling: Sampling


def rates(training: Training, rate_from: Path | None, tuning: Tuning | None) -> list[float]:
    """The learning rates to try."""
    if rate_from:
        try:
            return [float(json.loads(rate_from.read_text(encoding="utf-8"))["learning_rate"])]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{rate_from}: not a tuning.json with `learning_rate` ({error}); give the one beside trained weights."
            ) from error
    if len(training.learning_rates) > 1 and tuning is None:
        raise InputError("several learning_rates need --tune, --world and --sampling to choose by; or give one.")
    return training.learning_rates


def train_best(
    model_path: str | Path,
    records: Sequence[Any],
    training: Training,
    seed: int,
    out: Path,
    run: Any,
    *,
    reference_path: Path | None = None,
    rate_from: Path | None = None,
    tuning: Tuning | None = None,
) -> None:
    """`sso train`: reference scores (read, or made beside the output), the tries, the best one saved.

    Args:
        model_path: the checkpoint to start from, which is the reference, too.
        records: triples or pairs.
        training: how, and on which objective.
        seed: of the order of the records and of the tuning queries' answers.
        out: folder of the weights, with tuning.json.
        run: the record that gets losses and counts (sso/jobs/tracking.py).
        reference_path: reference scores that were made before; None: they are made.
        rate_from: a tuning.json whose learning rate is taken over.
        tuning: what to choose one of several learning rates by.
    """
    from sso import reference
    from sso.chat import check_conversations, describe, load_model, load_tokenizer, naming
    from sso.jobs import distributed
    from sso.objective import build
    from sso.packing import check_nodes, tokenize
    from sso.train.preference import fit, what_ran, with_adapters
    from sso.train.run import Growing, curve, kept, last_checkpoint, save_trained, training_arguments

    tries = rates(training, rate_from, tuning)
    objective, tokenizer, main = build(training), load_tokenizer(model_path), distributed.is_main()
    made = tokenize(records, tokenizer, training.max_length, training.end_cut_responses)
    made.warn(training.max_length)
    check_nodes(made.samples, objective.nodes)
    judged_by = tuning if len(tries) > 1 else None
    if judged_by:
        queries = read(judged_by.queries, Query)
        with naming([q.id for q in queries], "query"):
            check_conversations(tokenizer, [q.prompt for q in queries])
    distributed.start(training)
    source = reference.make_key(model_path, tokenizer, records, made.samples, training)
    if objective.base.reference_free:
        scores = None
    elif reference_path:
        scores = reference.load(reference_path, source)
    else:
        beside = out.with_name(f"{out.name}.reference.safetensors")
        pad, start = tokenizer.pad_token_id, reference.load_start(model_path, training)
        scores = reference.make(start, made.samples, objective.nodes, pad, source, training, beside)
        del start  # its memory is the training's
    work = out.with_name(f".{out.name}.work")
    key = {"settings": training.model_dump(), "source": source, "seed": seed}
    results: list[dict[str, Any]] = []
    best = 0
    with kept(work):
        for number, rate in enumerate(tries):
            folder = work / str(rate)
            checkpoint = last_checkpoint(folder, lambda: key, "train")
            arguments = training_arguments(training, rate, seed, folder)
            model = with_adapters(load_model(model_path), training, seed)
            growing = Growing(run, f"rate {rate:g}/" if len(tries) > 1 else "")
            trainer = fit(model, tokenizer, made.samples, scores, objective, arguments, checkpoint, [growing])
            steps = list(curve(trainer.state.log_history))
            result = {"learning_rate": rate, "final_loss": steps[-1][1]["loss"] if steps else None}
            if judged_by:
                result["win_rate"] = win_rate(model, tokenizer, judged_by, seed)
            results.append(result)
            if main:
                print(f"train: {json.dumps(result)} by {what_ran(trainer)}", flush=True)
            if number == 0 or result["win_rate"] > results[best]["win_rate"]:
                best, chosen, log = number, trainer, steps
        save_trained(chosen, training, tokenizer, out, model_path, run.summary)
        if main:
            choice = {"learning_rate": tries[best], "tries": results, "template": describe(tokenizer)}
            write_text(out / "tuning.json", json.dumps(choice, indent=1) + "\n")
    for step, values in log:
        run.log(step, values)
    run.summary.update({"learning_rate": tries[best], **made.counts, "final_loss": results[best]["final_loss"]})
    distributed.stop()


def win_rate(model: Any, tokenizer: Any, tuning: Tuning, seed: int) -> float:
    """Share of tuning queries on which the oracle prefers the model's answer to the reference's, ties half."""
    from sso import worlds
    from sso.sampling.engine import seed_of
    from sso.sampling.transformers_engine import TransformersEngine

    queries = read(tuning.queries, Query)
    references = read(tuning.queries.with_name("tune_reference.jsonl"), Answer)
    oracle, sampling = worlds.oracle(tuning.world), tuning.sampling
    engine = TransformersEngine.of(model.eval(), tokenizer, sampling.batch_size)
    seeds = [seed_of(seed, q.id, "tune") for q in queries]
    made = engine.generate(
        [q.prompt for q in queries], seeds, sampling.temperature, sampling.top_p, sampling.max_new_tokens
    )
    wins = 0.0
    for query, answer, other in zip(queries, made, references, strict=True):
        ours, theirs = oracle.score(query.prompt, answer.text).total, oracle.score(query.prompt, other.output).total
        wins += 1.0 if ours > theirs else 0.5 if ours == theirs else 0.0
    return wins / len(queries)
