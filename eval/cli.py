"""Command line of the evaluation: `sso-eval answer|judge|compare|winrate|data-quality|radar`.

`answer` needs the model (a checkpoint or an endpoint) and makes every reply; `judge` reads the replies and loads no
evaluated model, so judging can be repeated; `compare` sets two such folders against each other; `winrate` reads
annotation files of alpaca_eval; `data-quality` measures a set of preference pairs; `radar` draws MT-Bench.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.settings import Evaluation
from eval.settings import Judge as JudgeSettings
from sso.errors import InputError
from sso.jobs.command import Parser, add_settings, completion, count, end_start_up, run_cli
from sso.jobs.command import settings as read_settings
from sso.jobs.command import world as read_world
from sso.jobs.progress import progress
from sso.records import iter_json_lines, new_file, new_folder, whole_folder, write, write_text
from sso.sampling.settings import Endpoint


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def _answer(args: argparse.Namespace) -> None:
    from eval import answer, sources

    if not args.settings_given and args.suite is None:
        raise InputError("sso-eval answer: give --settings, --suite, or both.")
    settings = args.settings
    if args.suite:
        settings = settings.model_copy(update={"tasks": sources.suite(args.suite, bool(args.endpoint))})
    if args.model is None and not args.endpoint:
        raise InputError("sso-eval answer: give --model, or --endpoint.")
    cache = args.cache or args.out.with_name("answer_replies.db")
    answer.answer(_endpoint(args) or args.model, args.data, settings, args.seed, args.out, args.name, cache)


def _endpoint(args: argparse.Namespace) -> Endpoint | None:
    """The endpoint that is to be evaluated: a URL with --model for the name, or whole settings."""
    if not args.endpoint:
        return None
    if not args.endpoint.startswith(("http://", "https://")):
        return read_settings(Endpoint)(args.endpoint)
    if args.model is None:
        raise InputError("--endpoint: a URL needs --model, the name that the server knows the model by.")
    return Endpoint(model=args.model, base_url=args.endpoint)


def _counts(who: str, notes: Mapping[str, float]) -> str:
    return f"{who}: " + ", ".join(f"{count} {what}" for what, count in notes.items())


def _judge(args: argparse.Namespace) -> None:
    from eval import benchmarks, judging
    from eval.benchmarks.alpaca_eval import read_references
    from eval.items import answer_items, bounded, column
    from eval.judge import Judge, make_judge
    from eval.statistics import mean_interval
    from sso.jobs import tracking

    settings = args.settings
    world = read_world(args.world) if args.world else None
    end_start_up()
    if not (args.answers / "lm_eval.json").is_file():
        raise InputError(f"{args.answers}: no lm_eval.json; make the folder with `sso-eval answer`.")
    inputs = {"answers": args.answers, **judging.inputs(args.data, settings)}
    inputs |= {"against": args.against} if args.against else {}
    table = None
    lengths = args.length_controlled and "alpaca_eval" in settings.judged
    if lengths and (hard := args.difficulty or settings.difficulty):
        from eval.length_controlled import read_table

        table = read_table(hard, [len(r.output) for r in read_references(inputs["reference"])])
    with tracking.run(args.out, "judge", settings, inputs, args.seed) as run, whole_folder(args.out) as out:
        scores: dict[str, Any] = {}
        judges: dict[str, Judge] = {}
        cache = args.cache or args.out.with_name("judge_replies.db")

        def judge_of(benchmark: str) -> Judge:
            # One for all benchmarks that have the same: its counts and its budget are theirs together.
            own = settings.judge_of(benchmark)
            key = own.model_dump_json()
            if key not in judges:
                judges[key] = make_judge(own, world, cache, lambda: progress("judged"))
            return judges[key]

        if settings.judged:
            scores |= judging.judge_all(judge_of, args.answers, args.data, settings, out, args.against)
        if lengths:
            from eval.length_controlled import length_controlled

            rows = [row for _, row in iter_json_lines(out / "pairwise.jsonl")]
            scores["alpaca_eval2_lc"] = length_controlled(rows, table).as_dict()
        tasks = json.loads((args.answers / "lm_eval.json").read_text(encoding="utf-8"))["tasks"]
        for task, result in tasks.items():
            error = result["stderr"]
            scores[benchmarks.metric(task)] = {
                "value": 100 * result["value"],
                "stderr": None if error is None else 100 * error,
                "n": result["n"],
            }
        for judge in judges.values():
            if (notes := judge.notes()) or judge.scale == "reward":
                scores["judge" if len(judges) == 1 else f"judge {judge.name}"] = {"name": judge.name, **notes}
        for name, items in answer_items(out, args.answers).items():
            if name not in scores:
                continue  # grades on a reward's scale are another metric, of no known ends
            interval = bounded(column(name).unit, mean_interval([list(items.values())]))
            scores[name] |= {"low": interval.low, "high": interval.high}
        _write_json(out / "scores.json", scores)
        run.summary.update({n: s["value"] for n, s in scores.items() if s.get("value") is not None})
        alike = [entry["identical"] for entry in scores.values() if "identical" in entry]
        run.summary.update({"identical": sum(alike)} if alike else {})
        told = [notes for judge in judges.values() if "unreadable" in (notes := judge.notes())]
        run.summary.update({name: sum(n[name] for n in told) for name in ("verdicts", "unreadable") if told})
        print(", ".join(f"{name} {value:.3g}" for name, value in run.summary.items()))
        for judge in judges.values():
            if judge.notes():
                print(_counts("judge" if len(judges) == 1 else f"judge {judge.name}", judge.notes()))


def _winrate(args: argparse.Namespace) -> None:
    from eval.benchmarks.alpaca_eval import win_rate
    from eval.length_controlled import (
        Table,
        check_alike,
        fit_difficulty,
        length_controlled,
        read_annotations,
        read_table,
    )
    from eval.length_controlled import simulated_baselines as simulated
    from eval.statistics import mean_and_error

    files = {path.stem: read_annotations(path) for path in args.annotations}
    if len(files) < len(args.annotations):
        raise InputError("sso-eval winrate: two files have the same name, which names the model here; rename one.")
    table: dict[str, Table] = {}
    lengths = {name: [row["reference_length"] for row in rows] for name, rows in files.items()}
    if args.difficulty == "refit":
        if len(files) < 2:
            raise InputError("--difficulty refit: difficulties come from other models' annotations; give more files.")
        check_alike([*files.values()])
        others = {name: [rows for other, rows in files.items() if other != name] for name in files}
        table = {name: simulated(fit_difficulty(others[name]), lengths[name]) for name in files}
    else:
        table = {n: read_table(args.difficulty, lengths[n]) for n in files if args.difficulty}
    controlled = {name: length_controlled(rows, table.get(name)).as_dict() for name, rows in files.items()}
    rates: dict[str, dict[str, Any]] = {
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
        if raw["value"] is None:
            print(f"{name}: no readable preference in {raw.get('unreadable', 0)} annotations")
            continue
        model = ": ".join(filter(None, (lc["model"], lc.get("reason"))))
        print(
            f"{name}: raw {_with_error(raw)}, length-controlled {_with_error(lc)} ({model}), "
            f"mean length {rate['length']:.0f}, n {raw['n']}"
        )


def _with_error(entry: Mapping[str, Any]) -> str:
    """`value ± stderr`; one item has no error."""
    return f"{entry['value']:.2f}" + ("" if entry["stderr"] is None else f" ± {entry['stderr']:.2f}")


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


def _data_quality(args: argparse.Namespace) -> None:
    from eval import data_quality
    from eval.judge import make_judge
    from sso.jobs import tracking

    settings = args.settings
    world = read_world(args.world) if args.world else None
    end_start_up()
    inputs = {"pairs": args.pairs, "reference": args.reference}
    count = args.sample or settings.pairs
    with tracking.run(args.out, "data_quality", settings, inputs, args.seed if count else None) as run:
        cache = args.cache or args.out.with_name("judge_replies.db")
        judge = None if args.unjudged else make_judge(settings, world, cache, lambda: progress("judged"))
        quality, rows = data_quality.measure(judge, args.pairs, args.reference, count, args.seed)
        if judge:
            write(args.out.with_name(f"{args.out.stem}_pairs.jsonl"), rows)
        _write_json(args.out, quality)
        known = {n: e["value"] for n, e in quality.items() if isinstance(e, dict)}
        run.summary.update({name: value for name, value in known.items() if value is not None})
        counts = ("equal_pairs", "unscored_pairs", "left_out_pairs", "verdicts", "unreadable")
        run.summary.update({name: quality[name] for name in counts if name in quality})
        if quality["unscored_pairs"]:
            print(f"warning: {quality['unscored_pairs']} pairs have no reference scores: too long.", file=sys.stderr)
        print(", ".join(f"{name} {value:.3g}" for name, value in run.summary.items()))
        if judge and judge.notes():
            print(_counts("judge", judge.notes()))


def _radar(args: argparse.Namespace) -> None:
    from report.radar import draw, read_categories

    labels = args.labels or [path.parent.name for path in args.scores]
    if len(labels) != len(args.scores):
        raise InputError(f"--labels: {len(labels)} labels for {len(args.scores)} files; give one for each file.")
    draw({label: read_categories(path) for label, path in zip(labels, args.scores, strict=True)}, args.out)


def add_commands(to: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Give a parser all commands; returns it."""
    commands = to.add_subparsers(required=True, metavar="command", dest="command")
    settings_help = "settings: a JSON object, or a YAML or JSON file"

    answer = commands.add_parser("answer", help="benchmark tasks and answers of one model, in one process")
    answer.add_argument("--model", help="folder or hub name of a checkpoint; with --endpoint URL, its model's name")
    answer.add_argument("--suite", choices=["v1", "v2"], help="lm-eval's benchmarks of a paper version, as tasks")
    answer.add_argument("--endpoint", help=f"an OpenAI-compatible server: its base URL, or Endpoint {settings_help}")
    answer.add_argument("--cache", type=new_file, help="SQLite file of an endpoint's replies; default: beside --out")
    answer.add_argument("--data", type=Path, help="data folder: eval.jsonl, mt_bench.jsonl, arena_hard.jsonl, tasks")
    add_settings(answer, Evaluation, {"judged": [], "batch_size": 8}, "; default with --suite: its tasks alone")
    answer.add_argument("--seed", type=int, default=0, help="of all draws and orders (default: 0)")
    answer.add_argument("--name", help="what the answers call the model; default: the folder's name")
    answer.add_argument("--out", type=new_folder, required=True, help="folder to write")
    answer.set_defaults(func=_answer)

    judge = commands.add_parser("judge", help="score a folder of answers; loads no model")
    judge.add_argument("--answers", type=Path, required=True, help="folder written by `answer`")
    judge.add_argument("--data", type=Path, required=True, help="data folder: reference.jsonl, mt_bench.jsonl")
    add_settings(judge, Evaluation)
    judge.add_argument("--world", help="settings of a world, JSON or a file, for its oracle")
    judge.add_argument("--against", type=Path, help="the SFT model's answers, a folder too: adds differences to it")
    judge.add_argument("--cache", type=new_file, help="SQLite file of a paid judge's replies; default: beside --out")
    judge.add_argument("--length-controlled", action="store_true", help="add the length-controlled win rate (3 s)")
    judge.add_argument("--difficulty", help="for it: CSV of difficulties, df_gamed.csv, or `hub`")
    judge.add_argument("--seed", type=int, default=0, help="of all draws and orders (default: 0)")
    judge.add_argument("--out", type=new_folder, required=True, help="folder to write")
    judge.set_defaults(func=_judge)

    compare = commands.add_parser(
        "compare", help="which benchmarks of two arms differ, and whether by more than chance"
    )
    compare.add_argument("a", type=Path, help="folder of a run: of `answer`, of `judge`, or the one that holds both")
    compare.add_argument("b", type=Path, help="the run to compare with, on the same items")
    compare.add_argument("--seed", nargs=2, action="append", type=Path, metavar=("A", "B"), help="another seed's pair")
    compare.add_argument("--out", type=new_file, help="JSON file to write")
    compare.set_defaults(func=_compare)

    winrate = commands.add_parser("winrate", help="raw and length-controlled win rates of annotation files")
    winrate.add_argument("annotations", nargs="+", type=Path, help="alpaca_eval's annotations.json, or pairwise.jsonl")
    winrate.add_argument("--difficulty", help="CSV of difficulties, df_gamed.csv, `hub`, or `refit` (from the others)")
    winrate.add_argument("--out", type=new_file, help="JSON file to write")
    winrate.set_defaults(func=_winrate)

    pairs = commands.add_parser(
        "data-quality", aliases=["pairs"], help="preference accuracy and on-policyness of preference pairs"
    )
    pairs.add_argument("--pairs", type=Path, required=True, help="JSON Lines with id, prompt, chosen, rejected")
    pairs.add_argument("--reference", type=Path, required=True, help="the SFT model's scores, by `sso reference`")
    add_settings(pairs, JudgeSettings)
    pairs.add_argument("--world", help="settings of a world, JSON or a file, for its oracle")
    pairs.add_argument("--cache", type=new_file, help="SQLite file of a paid judge's replies; default: beside --out")
    pairs.add_argument(
        "--sample", type=count, help="judge so many pairs, drawn by --seed; default: the settings' or all"
    )
    pairs.add_argument("--seed", type=int, default=0, help="of all draws and orders (default: 0)")
    pairs.add_argument("--unjudged", action="store_true", help="ask no judge: all but the accuracy needs none")
    pairs.add_argument("--out", type=new_file, required=True, help="data_quality.json to write")
    pairs.set_defaults(func=_data_quality)

    radar = commands.add_parser("radar", help="MT-Bench's categories of one or more models as a radar chart")
    radar.add_argument("scores", type=Path, nargs="+", help="scores.json files written by `judge`")
    radar.add_argument("--labels", nargs="+", help="names of the models; default: the files' folders")
    radar.add_argument("--out", type=new_file, required=True, help="chart to write: .svg, .png or .pdf")
    radar.set_defaults(func=_radar)
    return to


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = Parser(prog="sso-eval", description=__doc__.splitlines()[0])
    completion(top)
    return add_commands(top)


def main(argv: list[str] | None = None) -> int:
    """Entry point of `sso-eval`; the exit code."""
    return run_cli(parser(), argv)
