"""Command line of the evaluation: `sso-eval answer|judge|compare|winrate|pairs`.

`answer` needs the model and makes every reply; `judge` reads the replies and loads no model, so judging can be
repeated; `compare` sets two such folders against each other; `winrate` reads annotation files of alpaca_eval; `pairs`
measures a set of preference pairs.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sso.cli import end_start_up, run_cli
from sso.cli import settings as read_settings
from sso.config import Evaluation, World
from sso.config import Judge as JudgeSettings
from sso.errors import InputError
from sso.records import Answer, read, whole_folder, write, write_text


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def _answer(args: argparse.Namespace) -> None:
    from eval import answer, benchmarks

    if args.settings is None and args.suite is None:
        raise InputError("sso-eval answer: give --settings, --suite, or both.")
    settings = read_settings(Evaluation)(args.settings or '{"pairwise": false, "mt_bench": false, "batch_size": 8}')
    if args.suite:
        settings = settings.model_copy(update={"tasks": benchmarks.suite(args.suite, bool(args.endpoint))})
    answer.answer(args.model, args.data, settings, args.seed, args.out, args.name, args.endpoint)


def _judge(args: argparse.Namespace) -> None:
    from eval import alpaca_eval, mt_bench
    from eval.judge import make_judge
    from eval.statistics import mean_interval
    from sso import tracking
    from sso.report.collect import answer_items

    settings = read_settings(Evaluation)(args.settings)
    world = read_settings(World)(args.world) if args.world else None
    end_start_up()
    if not (args.answers / "lm_eval.json").is_file():
        raise InputError(f"{args.answers}: no lm_eval.json; make the folder with `sso-eval answer`.")
    inputs = {"answers": args.answers}
    inputs |= {"reference": args.data / "reference.jsonl"} if settings.pairwise else {}
    inputs |= {"mt_bench": args.data / "mt_bench.jsonl"} if settings.mt_bench else {}
    with tracking.run(args.out, "judge", settings, inputs, args.seed) as run, whole_folder(args.out) as out:
        scores: dict[str, Any] = {}
        judge = None
        if settings.pairwise or settings.mt_bench:
            judge = make_judge(settings.judge, world, args.cache or args.out.with_name("judge_replies.db"))
        if settings.pairwise:
            answers = read(args.answers / "answers.jsonl", Answer)
            rows = alpaca_eval.pairwise(judge, answers, read(args.data / "reference.jsonl", Answer))
            write(out / "pairwise.jsonl", rows)
            scores["alpaca_eval2_wr"] = alpaca_eval.win_rate(rows)
            if args.length_controlled:
                from eval.length_controlled import length_controlled, read_table

                lengths = [row["reference_length"] for row in rows]
                table = read_table(args.difficulty, lengths) if args.difficulty else None
                scores["alpaca_eval2_lc"] = length_controlled({"model": rows}, table)["model"]
            scores["length"] = alpaca_eval.mean_and_error([row["length"] for row in rows])
            if rows[0]["score"] is not None:
                scores["oracle_score"] = alpaca_eval.mean_and_error([row["score"] for row in rows])
        if settings.mt_bench:
            families = {d.id: d.family for d in mt_bench.read(args.data / "mt_bench.jsonl")}
            grades = mt_bench.grade(judge, read(args.answers / "mt_bench_answers.jsonl", Answer), families)
            write(out / "mt_bench.jsonl", grades)
            scores["mt_bench"] = mt_bench.average(grades)
        tasks = json.loads((args.answers / "lm_eval.json").read_text(encoding="utf-8"))["tasks"]
        for task, result in tasks.items():
            name = task.removeprefix("micro_").removeprefix("real_")
            error = result["stderr"]
            scores[name] = {
                "value": 100 * result["value"],
                "stderr": None if error is None else 100 * error,
                "n": result["n"],
            }
        if judge and judge.notes():
            scores["judge"] = {"name": judge.name, **judge.notes()}
        for name, items in answer_items(out, args.answers).items():
            interval = mean_interval([list(items.values())])
            scores[name] |= {"low": interval.low, "high": interval.high}
        _write_json(out / "scores.json", scores)
        run.summary.update({n: s["value"] for n, s in scores.items() if s.get("value") is not None})
        print(", ".join(f"{name} {value:.3g}" for name, value in run.summary.items()))


def _winrate(args: argparse.Namespace) -> None:
    from eval.alpaca_eval import mean_and_error, win_rate
    from eval.length_controlled import fit_difficulty, length_controlled, read_annotations, read_table
    from eval.length_controlled import simulated_baselines as simulated

    files = {path.stem: read_annotations(path) for path in args.annotations}
    if len(files) < len(args.annotations):
        raise InputError("sso-eval winrate: two files have the same name, which names the model here.")
    lengths = {name: [row["reference_length"] for row in rows] for name, rows in files.items()}
    if args.difficulty == "refit":
        if len(files) < 2:
            raise InputError("--difficulty refit: difficulties come from other models' annotations; give more files.")
        others = {name: [rows for other, rows in files.items() if other != name] for name in files}
        table = {name: simulated(fit_difficulty(others[name]), lengths[name]) for name in files}
    else:
        table = {n: read_table(args.difficulty, lengths[n]) for n in files} if args.difficulty else None
    controlled = length_controlled(files, table)
    rates = {
        name: {
            "raw": win_rate(rows),
            "length_controlled": controlled[name],
            "length": mean_and_error([row["length"] for row in rows])["value"],
        }
        for name, rows in files.items()
    }
    if args.out:
        _write_json(args.out, rates)
    for name, rate in rates.items():
        raw, lc = rate["raw"], rate["length_controlled"]
        print(
            f"{name}: raw {raw['value']:.2f} ± {raw['stderr']:.2f}, length-controlled {lc['value']:.2f} ± "
            f"{lc['stderr']:.2f} ({lc['model']}), mean length {rate['length']:.0f}, n {raw['n']}"
        )


def _compare(args: argparse.Namespace) -> None:
    from rich.console import Console

    from eval import compare

    pairs = [(args.a, args.b), *map(tuple, args.seed or [])]
    comparisons = compare.compare(pairs)
    if args.out:
        _write_json(args.out, compare.as_json(comparisons))
    # Piped, rich would cut the table to 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(compare.as_table(comparisons, (str(args.a), str(args.b))))


def _pairs(args: argparse.Namespace) -> None:
    from eval import data_quality
    from eval.judge import make_judge
    from sso import tracking

    settings = read_settings(JudgeSettings)(args.settings)
    world = read_settings(World)(args.world) if args.world else None
    end_start_up()
    inputs = {"pairs": args.pairs, "reference": args.reference}
    with tracking.run(args.out, "data_quality", settings, inputs) as run:
        judge = make_judge(settings, world, args.cache or args.out.with_name("judge_replies.db"))
        quality = data_quality.measure(judge, args.pairs, args.reference)
        _write_json(args.out, quality)
        run.summary.update({n: e["value"] for n, e in quality.items() if isinstance(e, dict)})
        run.summary["equal_pairs"] = quality["equal_pairs"]
        print(", ".join(f"{name} {value:.3g}" for name, value in run.summary.items()))


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    main_parser = argparse.ArgumentParser(prog="sso-eval", description=__doc__.splitlines()[0])
    commands = main_parser.add_subparsers(required=True, metavar="command")
    settings_help = "settings: a JSON object, or a YAML or JSON file"

    answer = commands.add_parser("answer", help="benchmark tasks and answers of one model, in one process")
    answer.add_argument("--model", required=True, help="folder or hub name of a checkpoint; an endpoint's model name")
    answer.add_argument("--suite", choices=["v1", "v2"], help="lm-eval's benchmarks of a paper version, as tasks")
    answer.add_argument("--endpoint", help="base URL of an OpenAI-compatible server; its key is OPENAI_API_KEY's")
    answer.add_argument("--data", type=Path, help="data folder: eval.jsonl, mt_bench.jsonl, micro tasks")
    answer.add_argument("--settings", help=f"Evaluation {settings_help}; default with --suite: its tasks alone")
    answer.add_argument("--seed", type=int, default=0)
    answer.add_argument("--name", help="what the answers call the model; default: the folder's name")
    answer.add_argument("--out", type=Path, required=True, help="folder to write")
    answer.set_defaults(func=_answer)

    judge = commands.add_parser("judge", help="score a folder of answers; loads no model")
    judge.add_argument("--answers", type=Path, required=True, help="folder written by `answer`")
    judge.add_argument("--data", type=Path, required=True, help="data folder: reference.jsonl, mt_bench.jsonl")
    judge.add_argument("--settings", required=True, help=f"Evaluation {settings_help}")
    judge.add_argument("--world", help=f"World {settings_help}, for the oracle")
    judge.add_argument("--cache", type=Path, help="SQLite file of a paid judge's replies; default: beside --out")
    judge.add_argument("--length-controlled", action="store_true", help="add the length-controlled win rate (3 s)")
    judge.add_argument("--difficulty", help="for it: CSV of difficulties, df_gamed.csv, or `hub`")
    judge.add_argument("--seed", type=int, default=0)
    judge.add_argument("--out", type=Path, required=True, help="folder to write")
    judge.set_defaults(func=_judge)

    compare = commands.add_parser(
        "compare", help="which benchmarks of two arms differ, and whether by more than chance"
    )
    compare.add_argument("a", type=Path, help="folder of a run: of `answer`, of `judge`, or the one that holds both")
    compare.add_argument("b", type=Path, help="the run to compare with, on the same items")
    compare.add_argument("--seed", nargs=2, action="append", type=Path, metavar=("A", "B"), help="another seed's pair")
    compare.add_argument("--out", type=Path, help="JSON file to write")
    compare.set_defaults(func=_compare)

    winrate = commands.add_parser("winrate", help="raw and length-controlled win rates of annotation files")
    winrate.add_argument("annotations", nargs="+", type=Path, help="alpaca_eval's annotations.json, or pairwise.jsonl")
    winrate.add_argument("--difficulty", help="CSV of difficulties, df_gamed.csv, `hub`, or `refit` (from the others)")
    winrate.add_argument("--out", type=Path, help="JSON file to write")
    winrate.set_defaults(func=_winrate)

    pairs = commands.add_parser("pairs", help="preference accuracy and on-policyness of preference pairs")
    pairs.add_argument("--pairs", type=Path, required=True, help="JSON Lines with id, prompt, chosen, rejected")
    pairs.add_argument("--reference", type=Path, required=True, help="the SFT model's scores, by `sso reference`")
    pairs.add_argument("--settings", required=True, help=f"Judge {settings_help}")
    pairs.add_argument("--world", help=f"World {settings_help}, for the oracle")
    pairs.add_argument("--cache", type=Path, help="SQLite file of a paid judge's replies; default: beside --out")
    pairs.add_argument("--out", type=Path, required=True, help="data_quality.json to write")
    pairs.set_defaults(func=_pairs)
    return main_parser


def main(argv: list[str] | None = None) -> int:
    """Entry point of `sso-eval`; the exit code."""
    return run_cli(parser(), argv)
