"""Command line of the reward models: `sso-rewardbench mix|train|score|best-of-n`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from eval.settings import Judge
from rewardbench.settings import Mixture, Reward
from sso import dialogues, preferences, records
from sso.hub import checkpoint
from sso.jobs import tracking
from sso.jobs.command import Parser, add_settings, completion, count, end_start_up, leave, run_cli, settings
from sso.jobs.command import world as read_world
from sso.jobs.progress import progress
from sso.sampling.settings import Sampling


class RewardSettings(Reward):
    """How to train; what an experiment calls the reward model may lack here."""

    label: str = ""


def _mix(args: argparse.Namespace) -> None:
    from rewardbench.data import read_bench
    from rewardbench.mix import mix

    mixture = args.settings
    inputs = {f"source{i}": source.path for i, source in enumerate(mixture.parts) if source.path}
    with tracking.run(args.out, "mix", mixture, {**inputs, "bench": args.bench}) as run:
        mixed = mix(mixture, read_bench(args.bench) if mixture.ngram else [])
        for entry in mixed.report:
            preferences.warn(entry["left_out"], entry["source"], entry["row_numbers"])
            wanted = entry["asked"] or entry["usable"]
            if entry["taken"] < wanted:
                print(f"warning: {entry['source']}: {wanted} pairs asked for, {entry['taken']} there", file=sys.stderr)
            for key, count in dialogues.counts(entry["left_out"]).items():
                run.summary[key] = run.summary.get(key, 0) + count
        run.summary["pairs"] = len(mixed.pairs)
        records.write_text(args.out.with_suffix(".report.json"), json.dumps(mixed.report, indent=1) + "\n")
        records.write(args.out, mixed.pairs)
        print(f"mix: {len(mixed.pairs)} pairs of {len(mixed.report)} sources")


def _train(args: argparse.Namespace) -> None:
    from rewardbench import data
    from sso.jobs import distributed

    reward = args.settings
    distributed.launch(reward, args.argv, "rewardbench.cli")
    inputs = {"model": args.model, "pairs": args.pairs}
    with tracking.run(args.out, "reward", reward, inputs, args.seed) as run:
        pairs, left_out, numbers = data.read_pairs(args.pairs)
        if distributed.is_main():
            preferences.warn(left_out, args.pairs, numbers)
        run.summary.update(dialogues.counts(left_out))
        import transformers.trainer  # noqa: F401

        from rewardbench.train import train

        end_start_up()
        train(args.model, [data.text_pair(pair) for pair in pairs], reward, args.seed, args.out, run)
        print(", ".join(f"{key} {value:g}" for key, value in run.summary.items()))


def _score(args: argparse.Namespace) -> None:
    from rewardbench import score
    from rewardbench.data import read_bench

    given = {"model": args.model, "policy": args.policy, "reference": args.reference, "data": args.data}
    settings = {"dtype": args.dtype, "judge": args.judge and args.judge.model_dump()}
    with tracking.run(args.out, "rewardbench", settings, {k: v for k, v in given.items() if v}) as run:
        rows = read_bench(args.data)
        score.weights_for(row.subset for row in rows)  # before a model is loaded, or a judge paid
        scorer: dict[str, Any]
        if args.judge:
            from eval.judge import make_judge

            judge = make_judge(args.judge, args.world, args.out.with_name(f"{args.out.stem}_judge.sqlite"))
            values, scorer = score.by_judge(rows, judge), {"kind": "judge", "name": judge.name}
            scorer |= judge.notes()
        elif args.policy:
            values = score.by_policy(rows, args.policy, args.reference, args.dtype)
            scorer = {"kind": "implicit reward" if args.reference else "mean log-probability"}
        else:
            values = score.by_reward_model(rows, args.model, args.batch_size, args.dtype)
            scorer = {"kind": "reward model"}
        result = score.write(rows, values, args.out, scorer)
        known = {**result["sections"], "rewardbench_avg": result["rewardbench_avg"]}
        run.summary.update({key: value for key, value in known.items() if value is not None})
        for name, row in result["subsets"].items():
            noted = [f"{row[key]} {key}" for key in ("ties", "nan") if row[key]]
            print(f"{name}: {row['accuracy']:.1f} of {row['n']} rows" + (f" ({', '.join(noted)})" if noted else ""))
        print(", ".join(f"{key} {value:.1f}" for key, value in known.items() if value is not None))


def _best_of_n(args: argparse.Namespace) -> None:
    from eval.judge import OracleJudge, RewardJudge
    from rewardbench import best_of_n
    from sso.chat import check_conversations, load_tokenizer, naming
    from sso.sampling.engine import make_engine

    inputs = {"model": args.model, "queries": args.queries, **({"policy": args.policy} if args.policy else {})}
    with tracking.run(args.out, "best_of_n", args.settings, inputs, args.seed) as run:
        queries = records.read(args.queries, records.Query)[: args.limit]
        cache = args.out.with_name(f"{args.out.stem}_replies.db")
        for path in filter(None, (args.model, args.policy)):
            with naming([query.id for query in queries], f"{path}: query"):
                check_conversations(load_tokenizer(path), [query.prompt for query in queries])
        judge, engine = RewardJudge(args.model), make_engine(args.settings, args.policy, cache)
        end_start_up()
        answers = best_of_n.draw(engine, queries, args.settings, args.n, args.seed, progress("answers"))
        rewards = best_of_n.scores(judge, queries, answers)
        if args.world:
            quality = best_of_n.scores(OracleJudge(args.world), queries, answers)
            result = {
                "best_of_n": best_of_n.curve(rewards, quality),
                "calibration": best_of_n.calibration(rewards, quality),
            }
            records.write_text(args.out.with_suffix(".report.json"), json.dumps(result, indent=1) + "\n")
            best_of_n.plot(result, args.out.with_suffix(".svg"))
            for row in result["best_of_n"]:
                print(", ".join(f"{key} {value:.3g}" for key, value in row.items() if value is not None))
            run.summary.update({f"oracle_score_best_of_{row['n']}": row["reward"] for row in result["best_of_n"]})
        run.summary["reward"] = float(rewards.max(1).mean())
        records.write(args.out, best_of_n.best(queries, answers, rewards, f"best of {args.n}"))


def add_commands(to: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Give a parser all commands; returns it."""
    commands = to.add_subparsers(required=True, metavar="command", dest="command")

    mix = commands.add_parser("mix", help="preference sets into one, without repeats and without the benchmark")
    add_settings(mix, Mixture)
    mix.add_argument("--bench", required=True, help="RewardBench: a file or its name on the hub")
    mix.add_argument(
        "--out", type=records.new_file, required=True, help="pairs.jsonl; what was left out goes to pairs.report.json"
    )
    mix.set_defaults(func=_mix)

    train = commands.add_parser("train", help="train a Bradley-Terry reward model on preference pairs")
    train.add_argument("--model", type=checkpoint, required=True, help="checkpoint to start from, e.g. the SFT model")
    train.add_argument("--pairs", type=Path, required=True, help="a preference set as a file")
    add_settings(train, RewardSettings)
    train.add_argument("--seed", type=int, default=0, help="of all draws and orders (default: 0)")
    train.add_argument("--out", type=records.new_folder, required=True, help="folder of the reward model")
    train.set_defaults(func=_train)

    score = commands.add_parser("score", help="score a reward model, a policy or a judge on RewardBench")
    who = score.add_mutually_exclusive_group(required=True)
    who.add_argument("--model", type=checkpoint, help="reward model")
    who.add_argument("--policy", type=checkpoint, help="DPO policy, by its implicit reward against --reference")
    who.add_argument("--judge", type=settings(Judge), help="a JSON object or a YAML file of Judge")
    score.add_argument("--reference", type=checkpoint, help="the model that the policy's training started from")
    score.add_argument("--world", type=read_world, help="for the oracle")
    score.add_argument("--data", required=True, help="JSON Lines with id, subset, prompt, chosen, rejected; a hub name")
    score.add_argument("--batch-size", type=count, default=64, help="conversations at once (default: 64)")
    score.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    score.add_argument("--out", type=records.new_file, required=True, help="rewardbench.json to write")
    score.set_defaults(func=_score)

    best = commands.add_parser("best-of-n", help="answers of a policy, the best of n by a reward model")
    best.add_argument("--model", type=checkpoint, required=True, help="reward model")
    best.add_argument("--policy", type=checkpoint, help="who answers; an endpoint's settings name it themselves")
    best.add_argument("--queries", type=Path, required=True, help="JSON Lines with `prompt`")
    best.add_argument("--limit", type=count, help="only the first queries")
    best.add_argument("--n", type=count, default=16, help="answers to choose from (default: 16)")
    add_settings(best, Sampling, default={})
    best.add_argument("--world", type=read_world, help="its oracle says how right the reward model is, and a plot")
    best.add_argument("--seed", type=int, default=0, help="of all draws and orders (default: 0)")
    best.add_argument("--out", type=records.new_file, required=True, help="JSON Lines of the best answers")
    best.set_defaults(func=_best_of_n)
    return to


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = Parser(prog="sso-rewardbench", description=__doc__)
    completion(top)
    return add_commands(top)


def main(argv: list[str] | None = None) -> int:
    """Entry of `sso-rewardbench`."""
    return run_cli(parser(), argv)


if __name__ == "__main__":
    leave(main())
