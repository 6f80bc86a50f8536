"""Command line of the reward models: `sso-rewardbench train|score`."""

import argparse
from pathlib import Path

from sso import tracking
from sso.cli import end_start_up, run_cli, settings
from sso.config import Reward


class RewardSettings(Reward):
    """How to train; what an experiment calls the reward model, and the arm, may lack here."""

    label: str = ""
    arm: str = ""


def _train(args: argparse.Namespace) -> None:
    from rewardbench import data

    how = settings(RewardSettings)(args.settings)
    inputs = {"model": args.model, "pairs": args.pairs}
    with tracking.run(args.out, "reward", how, inputs, args.seed) as run:
        pairs = data.read_pairs(args.pairs)
        run.summary["equal_pairs"] = len(pairs.equal)
        run.summary["empty_pairs"] = len(pairs.empty)
        for name, ids in (("equal sides", pairs.equal), ("an empty side", pairs.empty)):
            if ids:
                shown = ", ".join(ids[:10]) + (", ..." if len(ids) > 10 else "")
                print(f"left out {len(ids)} of {args.pairs} with {name}: {shown}")
        import transformers.trainer  # noqa: F401

        from rewardbench.train import train

        end_start_up()
        train(args.model, pairs, how, args.seed, args.out, run)
        print(", ".join(f"{key} {value:g}" for key, value in run.summary.items()))


def _score(args: argparse.Namespace) -> None:
    from rewardbench.score import score

    inputs = {"model": args.model, "data": args.data}
    with tracking.run(args.out, "rewardbench", {"batch_size": args.batch_size}, inputs) as run:
        result = score(args.model, args.data, args.out, args.batch_size)
        known = {**result["sections"], "rewardbench_avg": result["rewardbench_avg"]}
        run.summary.update({key: value for key, value in known.items() if value is not None})
        print(", ".join(f"{key} {value:.1f}" for key, value in known.items() if value is not None))


def parser() -> argparse.ArgumentParser:
    """Arguments of both commands."""
    main_parser = argparse.ArgumentParser(prog="sso-rewardbench", description=__doc__)
    commands = main_parser.add_subparsers(required=True, metavar="command")

    train = commands.add_parser("train", help="train a Bradley-Terry reward model on preference pairs")
    train.add_argument("--model", type=Path, required=True, help="checkpoint to start from, e.g. the SFT model")
    train.add_argument("--pairs", type=Path, required=True, help="JSON Lines with prompt, chosen, rejected")
    train.add_argument("--settings", required=True, help="Reward settings: a JSON object, or a YAML or JSON file")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--out", type=Path, required=True, help="folder of the reward model")
    train.set_defaults(func=_train)

    score = commands.add_parser("score", help="score a reward model on RewardBench")
    score.add_argument("--model", type=Path, required=True, help="reward model")
    score.add_argument("--data", type=Path, required=True, help="JSON Lines with id, subset, prompt, chosen, rejected")
    score.add_argument("--batch-size", type=int, default=64)
    score.add_argument("--out", type=Path, required=True, help="rewardbench.json to write")
    score.set_defaults(func=_score)
    return main_parser


def main(argv: list[str] | None = None) -> int:
    """Entry of `sso-rewardbench`."""
    return run_cli(parser(), argv)
