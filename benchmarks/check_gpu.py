"""What needs a GPU, in one go and one JSON: versions, the tests marked `gpu`, a tiny chain, the step beside trl's.

    python -m benchmarks.check_gpu --out check_gpu.json                   on a card, 8 minutes at most
    python -m benchmarks.check_gpu --wheels DIR                           ... that has torch and no network
    python -m benchmarks.check_gpu --device cpu                           the rehearsal, without a card

Each part is a process with its share of the minutes; what fails or is stopped is told, and the others run. The JSON is
written whole after every part, and the exit code is 1 unless all parts passed. Parts print into logs beside it. This
file imports nothing but Python's own library, so that a bare machine can start it.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

REPOSITORY = Path(__file__).resolve().parent.parent
CHAIN = REPOSITORY / "benchmarks" / "check_gpu.yaml"
PACKAGES = (
    "torch transformers tokenizers accelerate safetensors datasets peft deepspeed trl triton numpy lm_eval alpaca_eval "
    "mlflow snakemake pydantic pandas pytest hypothesis"
).split()
WORKFLOW = ("snakemake", "lm_eval", "alpaca_eval", "mlflow", "pandas", "matplotlib", "sklearn", "openai", "rich")
"""What the whole chain imports; without one of them it is the commands up to a policy."""
GRACE = 10.0
"""Seconds that a stopped part has to write what it knows."""

Facts = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A process and the facts that it leaves."""

    name: str
    share: float
    """Of the minutes: its time limit. All shares are 1 together, so no part takes another's."""
    command: Sequence[str]
    read: Callable[[], Facts] = dict
    """Its facts, also after a failure; `problem` among them makes it one."""
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Report:
    """What is known so far, in one JSON."""

    path: Path
    facts: Facts

    def write(self) -> None:
        """Whole or not at all."""
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(json.dumps(self.facts, indent=1) + "\n", encoding="utf-8")
        part.replace(self.path)

    def run(self, part: Part, minutes: float) -> bool:
        """Run one part, keep its facts; whether it passed."""
        log = Path(f"{self.path}.{part.name}.log")
        limit = 60 * minutes * part.share
        status, code, seconds = execute(part.command, {**os.environ, **part.environment}, limit, log)
        facts: Facts = {"status": status, "seconds": round(seconds, 1), "limit_s": round(limit, 1), "exit_code": code}
        try:
            facts |= part.read()
        except Exception as error:  # what a stopped part left may be anything
            facts["problem"] = f"nothing to read: {type(error).__name__}: {error}"
        if facts.get("problem") and status == "passed":
            facts["status"] = "failed"
        if facts["status"] != "passed":
            facts["tail"] = log.read_text(encoding="utf-8", errors="replace").splitlines()[-60:]
        self.facts["parts"][part.name] = facts
        self.write()
        told = facts.get("problem") or facts.get("told") or ""
        print(f"{part.name:9}{facts['status']:10}{seconds:7.1f} s  {told}", flush=True)
        return facts["status"] == "passed"


def _hears_interrupts() -> None:
    """A shell lets what it starts in the background ignore Ctrl-C, and so would all that is started here."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def execute(
    command: Sequence[str], environment: dict[str, str], limit: float, log: Path
) -> tuple[str, int | None, float]:
    """Status, exit code and seconds of a command with all that it starts; past ``limit`` it is asked to end, then
    killed."""
    started = time.monotonic()
    with log.open("wb") as out:
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=REPOSITORY,
                env=environment, start_new_session=True, preexec_fn=_hears_interrupts,
            )  # fmt: skip
        except OSError as error:
            out.write(f"{error}\n".encode())
            return "failed", None, time.monotonic() - started
        try:
            child.wait(limit)
            status = "passed" if child.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "timed out"
            child.send_signal(signal.SIGINT)  # pytest then writes its report
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE)
        finally:
            with suppress(ProcessLookupError):  # its session: all that it started and left
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return status, child.returncode, time.monotonic() - started


# Versions.


def probe() -> Facts:
    """Versions and cards of this machine; what can't be known is None, with the reason where there is one."""
    facts: Facts = {"python": platform.python_version(), "platform": platform.platform(), "cpus": os.cpu_count()}
    facts["packages"] = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            facts["packages"][name] = metadata.version(name)
    facts["tools"] = {name: shutil.which(name) for name in ("nvcc", "c++", "ninja")}
    smi = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError, IndexError):
        facts["driver"] = subprocess.run(smi, capture_output=True, text=True, timeout=20).stdout.split()[0]
    try:
        import torch
    except Exception as error:  # a broken library, too
        return {**facts, "problem": f"torch can't be imported: {error}"}
    facts |= {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    if not torch.cuda.is_available():
        return {**facts, "cards": []}
    with suppress(Exception):
        facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    facts["cards"] = [
        {"name": c.name, "memory_gib": round(c.total_memory / 2**30, 1), "capability": f"{c.major}.{c.minor}"}
        for c in cards
    ]
    return facts


# Wheels.


def canonical(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def install(wheels: Path, target: Path) -> Facts:
    """Install the wheels of distributions that are not there into ``target``. Without dependencies: what they name is
    beside them or installed, and nothing installed (torch) may be replaced."""
    have = {canonical(found.metadata["Name"]) for found in metadata.distributions() if found.metadata["Name"]}
    names = sorted({canonical(path.name.split("-")[0]) for path in wheels.glob("*.whl")})
    missing = [name for name in names if name not in have]
    facts: Facts = {"wheels": len(names), "installed": [], "refused": {}}
    if not names:
        return {**facts, "problem": f"{wheels}: no wheels in there"}
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    pip += ["--find-links", str(wheels), "--target", str(target)]
    if not missing or subprocess.run([*pip, *missing]).returncode == 0:
        return {**facts, "installed": missing}
    for name in missing:  # one of another Python or platform keeps none of the others out
        done = subprocess.run([*pip, "--upgrade", name], capture_output=True, text=True)
        if done.returncode == 0:
            facts["installed"].append(name)
        else:
            facts["refused"][name] = (done.stderr.strip().splitlines() or [""])[-1]
    return {**facts, "problem": f"refused: {', '.join(facts['refused'])}"} if facts["refused"] else facts


# Tests.


def marked() -> list[str]:
    """Test files with tests marked `gpu`; others may import what a bare machine lacks."""
    files = (REPOSITORY / "tests").glob("test_*.py")
    return sorted(str(f.relative_to(REPOSITORY)) for f in files if "pytest.mark.gpu" in f.read_text(encoding="utf-8"))


def tests_of(report: Path) -> Facts:
    """Outcome, seconds and reason of each test, out of pytest's JUnit XML."""
    tests: list[Facts] = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        found = {child.tag: child for child in case}
        tag = next((tag for tag in ("error", "failure", "skipped") if tag in found), None)
        outcome = {"error": "failed", "failure": "failed", "skipped": "skipped", None: "passed"}[tag]
        if case.get("name") is None:  # it ran when pytest was stopped, which pytest's XML tells by leaving its name out
            outcome = "stopped"
        row: Facts = {"test": case.get("name"), "outcome": outcome, "seconds": float(case.get("time", 0))}
        if tag:
            row["why"] = found[tag].get("message", "")[:2000]
        tests.append(row)
    counts = Counter(test["outcome"] for test in tests)
    told = ", ".join(f"{counts[name]} {name}" for name in ("passed", "failed", "skipped"))
    facts: Facts = {**{name: counts[name] for name in ("passed", "failed", "skipped")}, "tests": tests, "told": told}
    return facts if counts["passed"] else {**facts, "problem": f"no test passed ({told})"}


# The chain.


def chain(folder: Path, cores: int) -> int:
    """The chain into ``folder``: Snakemake's, or, where a bare machine lacks it, the same commands up to a policy."""
    from importlib.util import find_spec

    if all(map(find_spec, WORKFLOW)):
        command = [sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), "--cores", str(cores)]
        return subprocess.run([*command, "--directory", str(folder), "--configfile", str(CHAIN)]).returncode
    return commands(folder)


STEPS: dict[str, Callable[[Any], list[str]]] = {
    "data": lambda p: ["data"],
    "sft": lambda p: ["sft", "--data", p["data"], "--backbone", p["backbone"]],
    "principles": lambda p: ["principles", "--queries", p["queries"], "--version", p["version"], *p["options"]],
    "sample": lambda p: [
        "sample", "--model", p["model"], "--principles", p["principles"], "--wrapper", p["wrapper"],
        "--responses", p["responses"], *p["options"],
    ],
    "reference": lambda p: ["reference", "--model", p["model"], "--data", p["data"], "--objectives", p["objectives"]],
    "generator": lambda p: ["train", "--model", p["model"], "--data", p["data"], *p["options"]],
    "generated_pairs": lambda p: [
        "sample", "--model", p["generator"], "--principles", p["principles"], "--wrapper", p["wrapper"],
        "--responses", "y+,y-", "--pairs", "good_bad", "--reference-model", p["model"],
        "--reference-settings", p["scoring"], "--reference-out", p["reference"],
    ],
    "policy": lambda p: ["train", "--model", p["model"], "--data", p["data"], *p["options"]],
}  # fmt: skip
"""The rules' commands (workflow/rules/) from a job's inputs and params."""


def commands(folder: Path) -> int:
    """The jobs up to a policy, one after the other, through a warm interpreter like the workflow's."""
    from sso.jobs import warm
    from workflow import experiment as experiments
    from workflow.experiment import Grid

    grid = Grid(experiments.load([CHAIN], {}))
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    warm.start()
    for job in sorted((job for job in grid if job.rule in STEPS), key=lambda job: -grid.depth[job.output]):
        of = {**job.inputs, **job.params, "reference": job.outputs[-1]}
        out = str(Path(job.outputs[0]).parent) if job.rule == "data" else job.output
        command = [sys.executable, "-m", "sso.cli", *STEPS[job.rule](of), "--settings", of["settings"], "--out", out]
        if job.rule not in ("data", "reference"):
            command += ["--seed", str(of.get("seed", job.seed))]
        print(job.name, flush=True)
        if code := subprocess.run(command, env={**os.environ, "SSO_JOB": job.mark}).returncode:
            return code
    return 0


def chain_of(folder: Path) -> Facts:
    """What the chain left: jobs and their seconds by rule, policies, tables."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.run.json"))]
    seconds: Counter[str] = Counter()
    for record in records:
        seconds[record["rule"]] += record["wall_s"]
    by = "Snakemake" if (folder / ".snakemake").is_dir() else "the commands alone"
    tables = sorted(path.name for path in folder.rglob("report/tables/*.md"))
    policies = [str(path.parent.relative_to(folder)) for path in sorted(folder.rglob("policy/**/model.safetensors"))]
    unfinished = [record["rule"] for record in records if record["status"] != "finished"]
    facts: Facts = {
        "by": by,
        "jobs": len(records),
        "seconds_by_rule": {rule: round(s, 2) for rule, s in seconds.items()},
        "policies": policies,
        "tables": tables,
        "told": f"{len(records)} jobs by {by}, {len(tables)} tables",
    }
    if unfinished:
        return {**facts, "problem": f"unfinished: {', '.join(unfinished)}"}
    if not policies or (by == "Snakemake" and not tables):
        return {**facts, "problem": "no policy" if not policies else "no tables"}
    return facts


# The step.


def step_options(device: str, memory: float, shapes: Sequence[str]) -> list[str]:
    """Arguments of train_step.py: on a card shapes that fill it, on the CPU the smallest that runs."""
    if device == "cpu":
        return ["--shapes", *(shapes or ["0.5m"]), "--samples", "4", "--batch", "2"]
    chosen = shapes or (["1.5b"] if memory >= 40 else ["42m"])
    lengths = ["--system", "20", "60", "--response", "200", "600"]
    return ["--device", "cuda", "--shapes", *chosen, *lengths, "--samples", "64", "--batch", "16", "--tokens", "16384"]


def step_of(path: Path) -> Facts:
    """The tables that were measured, whole or in part."""
    tables = json.loads(path.read_text(encoding="utf-8"))
    told = [
        f"{table['shape']} {row['trainer']} {row['step']:.3g} {table['unit']}"
        for table in tables
        for row in table["rows"]
        if "step" in row
    ]
    failed = [row["trainer"] for table in tables for row in table["rows"] if "error" in row]
    facts: Facts = {"tables": tables, "told": ", ".join(told)}
    return {**facts, "problem": f"failed: {', '.join(failed)}"} if failed else facts


# All of it.


def shims(folder: Path) -> None:
    """The three commands, for a Python in which the project is not installed."""
    folder.mkdir(parents=True)
    for name, module in {"sso": "sso.cli", "sso-eval": "eval.cli", "sso-rewardbench": "rewardbench.cli"}.items():
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n', encoding="utf-8")
        path.chmod(0o755)


def parts(args: argparse.Namespace, work: Path, device: str, cards: Sequence[Facts]) -> list[Part]:
    """The parts that follow the versions."""
    me = [sys.executable, "-m", "benchmarks.check_gpu"]
    junit, step, folder = work / "tests.xml", work / "step.json", work / "chain"
    tests = [sys.executable, "-m", "pytest", *marked(), "-m", "gpu", "-p", "no:cacheprovider", "--junitxml", str(junit)]
    tests += ["--basetemp", str(work / "pytest"), "-rs", *(["-k", args.only] if args.only else [])]
    memory = min((card["memory_gib"] for card in cards), default=0)
    bench = [sys.executable, "benchmarks/train_step.py", "--json", str(step), "--contenders", "trl", "ours forest"]
    cores = str(min(4, os.cpu_count() or 1))
    return [
        Part("tests", 0.35, tests, lambda: tests_of(junit)),
        Part("chain", 0.2, [*me, "--chain", str(folder), cores], lambda: chain_of(folder)),
        Part("step", 0.3, [*bench, *step_options(device, memory, args.shapes)], lambda: step_of(step)),
    ]


def commit() -> str | None:
    """The commit that is checked, with a + where files differ; None outside git."""
    git = ["git", "-C", str(REPOSITORY)]
    with suppress(OSError, subprocess.SubprocessError):
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
        return head + "+" * bool(dirty.strip())
    return None


def check(args: argparse.Namespace, work: Path) -> int:
    """Run the parts one after the other; 0 if all passed."""
    minutes = args.minutes or (20 if args.device == "cpu" else 8)
    wanted = ["wheels", "versions", *args.parts] if args.wheels else ["versions", *args.parts]
    facts: Facts = {
        "device": None,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "minutes": minutes,
        "versions": {},
        "parts": {name: {"status": "not run"} for name in wanted},
        "passed": False,
    }
    out = args.out / "check_gpu.json" if args.out.is_dir() else args.out
    report = Report(out.resolve(), facts)
    report.path.parent.mkdir(parents=True, exist_ok=True)
    report.write()
    # By this name dill, which hashes trl's functions, knows modules from a user's own, which it would look into.
    target, found = work / "site-packages", work / "found.json"
    shims(work / "bin")
    paths = [str(REPOSITORY), str(target), os.environ.get("PYTHONPATH", "")]
    tools = [str(work / "bin"), str(target / "bin"), os.environ.get("PATH", os.defpath)]
    os.environ.update(PYTHONPATH=os.pathsep.join(filter(None, paths)), PATH=os.pathsep.join(tools))
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true", PYTHONUNBUFFERED="1")
    if args.device == "cpu":
        os.environ.update(CUDA_VISIBLE_DEVICES="")

    def read() -> Facts:
        return json.loads(found.read_text(encoding="utf-8"))

    me, ran = [sys.executable, "-m", "benchmarks.check_gpu", "--found", str(found)], []
    if args.wheels:
        where = [str(args.wheels.resolve()), str(target)]
        ran.append(report.run(Part("wheels", 0.1, [*me, "--install", *where], read), minutes))
        found.unlink(missing_ok=True)

    def versions() -> Facts:
        facts["versions"] = read()
        facts["device"] = "cuda" if facts["versions"].get("cards") else "cpu"
        if args.device == "cuda" and facts["device"] == "cpu":
            return {"problem": facts["versions"].get("problem", "no CUDA device") + "; nothing else is run"}
        return {name: facts["versions"][name] for name in ("problem",) if name in facts["versions"]}

    ran.append(report.run(Part("versions", 0.05, [*me, "--probe"], versions), minutes))
    cards = facts["versions"].get("cards", [])
    if args.device == "cuda" and not cards:
        return 1
    facts["device"] = device = "cuda" if cards else "cpu"
    if device == "cpu":
        print("no GPU: a rehearsal on the CPU, which says nothing of one", flush=True)
        os.environ["SSO_GPU_REHEARSAL"] = "1"
    for card in cards:
        print(f"{card['name']}, {card['memory_gib']} GiB", flush=True)
    for part in parts(args, work, device, cards):
        if part.name in args.parts:
            ran.append(report.run(part, minutes))
    facts["passed"] = all(ran)
    report.write()
    print(f"{report.path}: {'all parts passed' if all(ran) else 'not all parts passed'}", flush=True)
    return 0 if all(ran) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    names = ("tests", "chain", "step")
    parser = argparse.ArgumentParser(prog="check_gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("check_gpu.json"))
    parser.add_argument("--wheels", type=Path, help="a folder of wheels; those of missing packages are installed")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto", help="cuda: or nothing is run")
    parser.add_argument("--minutes", type=float, help="for all parts together; 8, with --device cpu 20")
    parser.add_argument("--parts", nargs="+", choices=names, default=list(names))
    parser.add_argument("--only", help="of the tests, as pytest's -k")
    parser.add_argument("--shapes", nargs="+", default=[], help="of train_step.py; by the card's memory if not given")
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--install", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--chain", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.chain:
        return chain(Path(args.chain[0]), int(args.chain[1]))
    if args.probe or args.install:
        args.found.write_text(json.dumps(install(*args.install) if args.install else probe()), encoding="utf-8")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of `execute`, which ends what it started
    with tempfile.TemporaryDirectory(prefix="sso-check-gpu-", ignore_cleanup_errors=True) as work:
        return check(args, Path(work))


if __name__ == "__main__":
    sys.exit(main())
