"""Command line of the evaluation: `sso-eval answer|judge|pairs|radar`.

`answer` needs the model (a checkpoint or an endpoint) and makes every reply; `judge` reads the replies and loads no
evaluated model, so judging can be repeated; `pairs` measures a set of preference pairs; `radar` draws MT-Bench.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sso.cli import end_start_up, progress, run_cli
from sso.cli import settings as read_settings
from sso.config import Endpoint, Evaluation, World
from sso.config import Judge as JudgeSettings
from sso.errors import InputError
from sso.records import iter_json_lines, write, write_text


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into that takes ``out``'s place when the work is done."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(out, ignore_errors=True)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def _stored_dtype(model: Path) -> str:
    """The precision a checkpoint was saved in, as its config.json says; float32 where it does not."""
    if not (model / "config.json").is_file():
        raise InputError(f"{model}: no config.json; give the folder of a Hugging Face checkpoint.")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return config.get("dtype") or config.get("torch_dtype") or "float32"


def _answer(args: argparse.Namespace) -> None:
    # Everything is local: a look-up on the hub could only cost time.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from eval import alpaca_eval, arena_hard, harness, judging, mt_bench
    from sso import tracking

    settings = read_settings(Evaluation)(args.settings)
    endpoint = read_settings(Endpoint)(args.endpoint) if args.endpoint else None
    if endpoint and settings.tasks:
        raise InputError(f"task {settings.tasks[0].name}: lm-eval's tasks need a checkpoint; leave `tasks` empty.")
    sources = harness.find(settings.tasks, args.data)
    queries = judging.read_queries(args.data) if settings.pairwise else []
    dialogues = mt_bench.read(args.data / "mt_bench.jsonl") if settings.mt_bench else []
    questions = arena_hard.read_questions(args.data / "arena_hard.jsonl") if settings.arena_hard else []
    dtype = None if endpoint else _stored_dtype(args.model)
    name = args.name or (endpoint.model if endpoint else args.model.name)
    # Only what is read of the data folder, so that the record does not depend on the rest.
    inputs = {} if endpoint else {"model": args.model}
    inputs |= {s.name: s.path for s in sources}
    inputs |= {"eval": judging.queries(args.data)} if queries else {}
    inputs |= {"mt_bench": args.data / "mt_bench.jsonl"} if dialogues else {}
    inputs |= {"arena_hard": args.data / "arena_hard.jsonl"} if questions else {}
    record = settings.model_dump() | ({"endpoint": endpoint.model_dump()} if endpoint else {})
    with tracking.run(args.out, "answer", record, inputs, args.seed) as run, whole_folder(args.out) as out:
        engine: Any
        if endpoint:
            from sso.sampling.endpoint_engine import EndpointEngine

            cache = args.cache or args.out.with_name("answer_replies.db")
            engine = EndpointEngine(endpoint, cache, lambda: progress("answers"))
        else:
            from sso.sampling.transformers_engine import TransformersEngine

            if sources:
                import lm_eval.evaluator
                import lm_eval.models.huggingface  # noqa: F401
            engine = TransformersEngine(args.model, dtype=dtype, batch_size=settings.batch_size)
        end_start_up()
        if queries:
            write(out / "answers.jsonl", alpaca_eval.answer(engine, queries, settings, args.seed, name))
        if dialogues:
            write(out / "mt_bench_answers.jsonl", mt_bench.answer(engine, dialogues, settings, args.seed, name))
        if questions:
            write(out / "arena_hard_answers.jsonl", arena_hard.answer(engine, questions, settings, args.seed, name))
        tasks = {}
        if sources:
            tasks = harness.run(sources, engine.model, engine.tokenizer, settings.batch_size, settings.max_new_tokens)
        _write_json(out / "lm_eval.json", {"tasks": tasks})
        run.summary.update({task: result["value"] for task, result in tasks.items()})
        if endpoint:
            print(_counts("endpoint", engine.client.notes()))
        for task, result in tasks.items():
            if result["truncated"]:
                cut = f"{result['truncated']} of {result['n']} prompts of {task}"
                print(f"warning: {cut} were cut to the model's context.", file=sys.stderr)


def _counts(who: str, notes: Mapping[str, float]) -> str:
    return f"{who}: " + ", ".join(f"{count} {what}" for what, count in notes.items())


def _judge(args: argparse.Namespace) -> None:
    from eval import alpaca_eval, judging
    from eval.judge import make_judge
    from sso import tracking

    settings = read_settings(Evaluation)(args.settings)
    world = read_settings(World)(args.world) if args.world else None
    end_start_up()
    if not (args.answers / "lm_eval.json").is_file():
        raise InputError(f"{args.answers}: no lm_eval.json; make the folder with `sso-eval answer`.")
    inputs = {"answers": args.answers, **judging.inputs(args.data, settings)}
    with tracking.run(args.out, "judge", settings, inputs, args.seed) as run, whole_folder(args.out) as out:
        scores: dict[str, Any] = {}
        judge = None
        if settings.pairwise or settings.mt_bench or settings.arena_hard:
            cache = args.cache or args.out.with_name("judge_replies.db")
            judge = make_judge(settings.judge, world, cache, lambda: progress("judged"))
            scores |= judging.judge_all(judge, args.answers, args.data, settings, out)
        if settings.pairwise and args.length_controlled:
            rows = [row for _, row in iter_json_lines(out / "pairwise.jsonl")]
            difficulty = alpaca_eval.read_difficulty(args.difficulty) if args.difficulty else None
            scores["alpaca_eval2_lc"] = alpaca_eval.length_controlled({"model": rows}, difficulty)["model"]
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
        _write_json(out / "scores.json", scores)
        run.summary.update({n: s["value"] for n, s in scores.items() if s.get("value") is not None})
        print(", ".join(f"{name} {value:.3g}" for name, value in run.summary.items()))
        if judge and judge.notes():
            print(_counts("judge", judge.notes()))


def _pairs(args: argparse.Namespace) -> None:
    from eval import data_quality
    from eval.judge import make_judge
    from sso import tracking

    settings = read_settings(JudgeSettings)(args.settings)
    world = read_settings(World)(args.world) if args.world else None
    end_start_up()
    inputs = {"pairs": args.pairs, "reference": args.reference}
    count = args.sample or settings.pairs
    with tracking.run(args.out, "data_quality", settings, inputs, args.seed if count else None) as run:
        cache = args.cache or args.out.with_name("judge_replies.db")
        judge = make_judge(settings, world, cache, lambda: progress("judged"))
        quality, rows = data_quality.measure(judge, args.pairs, args.reference, count, args.seed)
        write(args.out.with_name(f"{args.out.stem}_pairs.jsonl"), rows)
        _write_json(args.out, quality)
        run.summary.update({n: e["value"] for n, e in quality.items() if isinstance(e, dict)})
        run.summary["equal_pairs"] = quality["equal_pairs"]
        print(", ".join(f"{name} {value:.3g}" for name, value in run.summary.items()))
        if judge.notes():
            print(_counts("judge", judge.notes()))


def _radar(args: argparse.Namespace) -> None:
    from sso.report.radar import draw, read_categories

    labels = args.labels or [path.parent.name for path in args.scores]
    if len(labels) != len(args.scores):
        raise InputError(f"--labels: {len(labels)} for {len(args.scores)} files; give one a file.")
    draw({label: read_categories(path) for label, path in zip(labels, args.scores, strict=True)}, args.out)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    main_parser = argparse.ArgumentParser(prog="sso-eval", description=__doc__.splitlines()[0])
    commands = main_parser.add_subparsers(required=True, metavar="command")
    settings_help = "settings: a JSON object, or a YAML or JSON file"

    answer = commands.add_parser("answer", help="benchmark tasks and answers of one model, in one process")
    model = answer.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=Path, help="folder of a Hugging Face checkpoint")
    model.add_argument("--endpoint", help=f"Endpoint {settings_help}: an OpenAI-compatible endpoint as the model")
    answer.add_argument("--cache", type=Path, help="SQLite file of the endpoint's replies; default: beside --out")
    answer.add_argument("--data", type=Path, required=True, help="data folder: eval.jsonl, mt_bench.jsonl, tasks")
    answer.add_argument("--settings", required=True, help=f"Evaluation {settings_help}")
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
    judge.add_argument("--difficulty", type=Path, help="CSV of instruction difficulties for it")
    judge.add_argument("--seed", type=int, default=0)
    judge.add_argument("--out", type=Path, required=True, help="folder to write")
    judge.set_defaults(func=_judge)

    pairs = commands.add_parser("pairs", help="preference accuracy and on-policyness of preference pairs")
    pairs.add_argument("--pairs", type=Path, required=True, help="JSON Lines with id, prompt, chosen, rejected")
    pairs.add_argument("--reference", type=Path, required=True, help="the SFT model's scores, by `sso reference`")
    pairs.add_argument("--settings", required=True, help=f"Judge {settings_help}")
    pairs.add_argument("--world", help=f"World {settings_help}, for the oracle")
    pairs.add_argument("--cache", type=Path, help="SQLite file of a paid judge's replies; default: beside --out")
    pairs.add_argument("--sample", type=int, help="judge so many pairs, drawn by --seed; default: the settings' or all")
    pairs.add_argument("--seed", type=int, default=0)
    pairs.add_argument("--out", type=Path, required=True, help="data_quality.json to write")
    pairs.set_defaults(func=_pairs)

    radar = commands.add_parser("radar", help="MT-Bench's categories of one or more models as a radar chart")
    radar.add_argument("scores", type=Path, nargs="+", help="scores.json files written by `judge`")
    radar.add_argument("--labels", nargs="+", help="names of the models; default: the files' folders")
    radar.add_argument("--out", type=Path, required=True, help="chart to write: .svg, .png or .pdf")
    radar.set_defaults(func=_radar)
    return main_parser


def main(argv: list[str] | None = None) -> int:
    """Entry point of `sso-eval`; the exit code."""
    return run_cli(parser(), argv)
