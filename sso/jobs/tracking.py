"""What every job leaves behind: a record beside its output, and MLflow runs made of the records.

A job writes its record to disk and never talks to a server, so an unreachable MLflow costs no run; ``sync``
uploads what is not there yet. A record holds the job that its rule told of (sso/jobs/job.py). Knows nothing of models.
Records hold no environment variables, and addresses lose their user and password.
"""

import csv
import fcntl
import json
import math
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sso import cards
from sso.errors import InputError, of_machine, printable, without_passwords
from sso.jobs.distributed import is_main
from sso.jobs.job import this_job
from sso.records import digest, file_digest, write_text
from sso.settings import ROOT

SUFFIX = ".run.json"
PACKAGES = ("sso", "torch", "transformers", "tokenizers", "numpy", "pandas", "scikit-learn", "lm_eval", "alpaca_eval")


@dataclass
class Run:
    """One running job; ``summary`` holds its final figures, ``card`` what its output's card is headed by, where only
    the work can tell: a licence."""

    summary: dict[str, float] = field(default_factory=dict)
    card: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[int, dict[str, float | None]]] = field(default_factory=list)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep a row of metrics; what is not finite is kept as null."""
        self.metrics.append((int(step), _finite(values)))


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


def record_path(out: str | Path) -> Path:
    """Where the record of an output lies: beside it, since Snakemake empties folders before a rerun."""
    out = Path(out)
    return out.with_name(out.name + SUFFIX)


@cache
def _git(*arguments: str) -> str | None:
    if not (ROOT / ".git").exists():
        return None  # an installed suite: what it lies in may be somebody else's repository
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def _peak_rss_mb() -> float:
    with suppress(OSError, StopIteration):  # the kernel's other figure starts with that of the process that started us
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


@contextmanager
def run(
    out: str | Path,
    stage: str,
    settings: BaseModel | Mapping[str, Any],
    inputs: Mapping[str, str | Path],
    seed: int | None = None,
) -> Iterator[Run]:
    """Record a job: settings, input digests, times, memory, versions, metrics, and whether it failed.

    Args:
        out: the job's output, a file or a folder; the record is written to ``<out>.run.json``.
        stage: what kind of job it is.
        settings: its settings, JSON-able.
        inputs: files or folders by name; their digests are taken before the work starts.
        seed: its seed.

    Raises:
        whatever the work raises, after the failure has been recorded.
    """
    current, started, wall, cpu = Run(), datetime.now(UTC), time.monotonic(), _cpu_seconds()
    if not is_main():
        yield current
        return
    values = settings.model_dump(mode="json") if isinstance(settings, BaseModel) else dict(settings)
    read = {name: [str(path), file_digest(path) if Path(path).exists() else None] for name, path in inputs.items()}
    status: dict[str, Any] = {"status": "finished"}
    try:
        yield current
    except BaseException as error:
        told = of_machine(error, out) or error
        status = {"status": "failed", "error": printable(without_passwords(f"{type(told).__name__}: {told}"))}
        if told is error:
            raise
        raise told from error
    finally:
        record = {
            "stage": stage,
            **this_job(),
            **status,
            "settings": json.loads(without_passwords(json.dumps(values, default=str))),
            "seed": seed,
            "inputs": read,
            "started": started.isoformat(timespec="milliseconds"),
            "wall_s": round(time.monotonic() - wall, 3),
            "cpu_s": round(_cpu_seconds() - cpu, 3),
            "peak_rss_mb": round(_peak_rss_mb(), 1),
            "git_commit": _git("rev-parse", "HEAD"),
            "git_dirty": None if (changes := _git("status", "--porcelain")) is None else bool(changes),
            "versions": _versions(),
            "summary": _finite(current.summary),
            "output": [str(out), file_digest(out) if "error" not in status and Path(out).exists() else None],
            "metrics": current.metrics,
            **({"card": current.card} if current.card else {}),
        }
        # Where the work's own writing failed, its error is the one to tell.
        with suppress(OSError) if "error" in status else nullcontext():
            write_text(record_path(out), json.dumps(record, ensure_ascii=False) + "\n")
    cards.write(out, record)


# MLflow.


def place(path: Path, record: Mapping[str, Any], arms: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Tags of a record: backbone, seed, arm (or reward model) and iteration of its job, and what the config says of
    the arm. A record without a job has none but its path."""
    at, iteration = record.get("wildcards", {}), record.get("iteration")
    tags = {"path": "/".join(path.parts).removesuffix(SUFFIX)}
    tags |= {key: at[key] for key in ("backbone", "seed") if key in at}
    if name := record.get("arm") or at.get("reward"):
        tags |= {"arm": name, **arms.get(f"reward/{name}" if "reward" in at else name, {})}
    return tags | ({"iteration": str(iteration)} if iteration and record.get("arm") else {})


def arm_tags(config: Path) -> dict[str, dict[str, str]]:
    """By arm, and by `reward/<name>`, what a config.json says of it: method, version, and the objective and base loss
    that tell it from the others, which are its generator's where it has one. Empty where there is no such file."""
    try:
        experiment = json.loads(config.read_text(encoding="utf-8"))
        arms, rewards = experiment["arms"], experiment["rewards"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    tags = {}
    for name, arm in arms.items():
        training = arm["generator"] or arm["policy"] or {}
        own = {key: training[key] for key in ("objective", "base_loss") if key in training}
        tags[name] = {"method": arm["method"] or arm["label"], "version": arm["version"], **own}
    # A reward model on a mixture is no arm's; its method says which sets it read.
    own = {
        name: tags.get(reward["arm"]) or {"method": reward["method"] or reward["label"], "version": reward["version"]}
        for name, reward in rewards.items()
    }
    return tags | {f"reward/{name}": about for name, about in own.items()}


def arm_settings(config: Path) -> dict[str, dict[str, str]]:
    """By arm, what a config.json sets for it, as MLflow params; {} where there is no such file."""
    try:
        arms = json.loads(without_passwords(config.read_text(encoding="utf-8")))["arms"]
        return {name: {_name(key): value for key, value in _flat(arm).items()} for name, arm in arms.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _name(name: str) -> str:
    """A name that MLflow takes: `x+:y+>y-/margin` becomes `xp:yp_over_y-/margin`."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("+", "p").replace(">", "_over_"))


def _flat(settings: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow params: dotted names, values as text."""
    if not isinstance(settings, dict):
        return {prefix: str(settings)[:6000]} if prefix else {}
    flat: dict[str, str] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def default_uri(results: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else an SQLite file in the experiment's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{results.resolve()}/mlflow.db"


def sync(results: str | Path, tracking_uri: str | None = None) -> int | None:
    """Upload the records under ``results`` (one experiment's folder) that MLflow does not have yet.

    One run a job, under one parent run an arm of a cell. A run carries its record's digest, so nothing is uploaded
    twice; a job that ran again gets a new run. Returns how many runs were new, or None, with a warning on stderr,
    when MLflow can't be reached: the records stay and a later call uploads them. Raises InputError where there is no
    such folder.
    """
    results = Path(results)
    if not results.is_dir():
        raise InputError(f"{results}: no such folder; give that of a run, as results/micro.")
    uri = tracking_uri or default_uri(results)
    # An absent server is told in seconds, not after minutes of retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true")
    import logging

    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # One at a time, so that two calls neither upload twice nor take the other's unfinished runs for broken ones.
    with (results / ".mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            new = _Uploader(MlflowClient(tracking_uri=uri), results, uri).upload()
            print(f"{new} new runs in MLflow at {without_passwords(uri)}")
            return new
        except (MlflowException, SQLAlchemyError, OSError) as error:
            if getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
                raise  # our mistake, which waiting does not mend
            reason = printable(without_passwords(str(error).splitlines()[0])[:200])
            print(
                f"warning: MLflow at {without_passwords(uri)} can't be used ({reason}); "
                f"`sso mlflow-sync --results {results}` uploads the records later.",
                file=sys.stderr,
            )
            return None


def _dataset(name: str, read: Sequence[str | None]) -> Any:
    """A file that a job read, as mlflow.data has it: its path and its digest, not its content."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    path, digest = map(str, read)
    dataset = Dataset(name=Path(path).name, digest=digest, source_type="local", source=json.dumps({"uri": path}))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", name)])


def note(results: Path) -> str | None:
    """What an experiment's page in MLflow says, as Markdown: the report's verdict on each claim, and where its page
    is; None where there is no report."""
    report = results.resolve() / "report"
    try:
        with (report / "tables" / "claims.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        last = {row["claim"]: row for row in rows}  # that over all backbones, where there are several
    except (OSError, ValueError, LookupError):
        return None
    found = [f"- {row['claim']} **{row['verdict']}** ({row['difference'] or row['test']})" for row in last.values()]
    return "\n".join([f"The page: `{report / 'report.html'}`", "", "Claims of the paper:", "", *found])


SCORED = ("judge", "data_quality", "rewardbench")
"""Stages whose summaries stand on the arm's own run too, by iteration, so that arms can be compared in one table."""
KIND = "custom_model_development"
"""What MLflow's pages call model training: they then open the table of runs, not that of traces."""


class _Uploader:
    """One call of ``sync``."""

    def __init__(self, client: Any, results: Path, uri: str):
        self.client, self.results, self.arms = client, results, arm_tags(results / "config.json")
        self.settings = arm_settings(results / "config.json")
        name = results.resolve().name
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            # MLflow would put a local store's artifacts into the current folder.
            local = {"artifact_location": (results.resolve() / "mlartifacts").as_uri()} if "sqlite:" in uri else {}
            self.experiment = client.create_experiment(name, **local)
        else:
            self.experiment = experiment.experiment_id
        self.about = experiment.tags if experiment else {}
        self.known: set[str] = set()
        self.parents: dict[str, str] = {}
        self.ends: dict[str, int] = {}
        """End of each parent run by its id, in ms since the epoch."""
        self.fresh: set[str] = set()
        """Parent runs that this call made."""
        for known in self._runs():
            tags = known.data.tags
            if "sso.group" in tags:
                self._take(known)
            elif "sso.record" in tags:
                self.known.add(tags["sso.record"])
            elif "sso.uploading" in tags:  # a call that was killed half-way
                client.delete_run(known.info.run_id)

    def _runs(self) -> Iterator[Any]:
        token = None
        while True:
            page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _take(self, run: Any) -> None:
        """A parent run of an earlier call: goes on, unless its arm's settings are others now, which no run can take."""
        group, number = run.data.tags["sso.group"], run.info.run_id
        wanted, there = self._params(group), run.data.params
        # Without the config nobody knows what has changed.
        stage = "replaced" if self.settings and there.items() - wanted.items() else self._stage(group)
        if run.data.tags.get("stage") != stage:
            self.client.set_tag(number, "stage", stage)
        if stage != "replaced":
            self._settle(number, group, there)
            self.parents[group], self.ends[number] = number, run.info.end_time or 0

    def _stage(self, group: str) -> str:
        """`arm`; `rewards`, of reward models that are not called as an arm; `shared`, of what arms share."""
        name = _arm_of(group)
        return "shared" if name is None else "arm" if name in self.arms or not self.arms else "rewards"

    def _params(self, group: str) -> dict[str, str]:
        """An arm's settings; {} for another group."""
        return self.settings.get(_arm_of(group) or "", {})

    def _settle(self, number: str, group: str, there: Mapping[str, str]) -> None:
        """Give an arm's run those of its settings that are not ``there``."""
        from mlflow.entities import Param

        params = [Param(key, value) for key, value in self._params(group).items() if key not in there]
        for at in range(0, len(params), 100):
            self.client.log_batch(number, params=params[at : at + 100])

    def upload(self) -> int:
        new: list[tuple[Path, dict[str, Any], str]] = []
        old: list[tuple[Path, dict[str, Any], str]] = []
        for path in sorted(self.results.rglob("*" + SUFFIX)):
            relative = path.relative_to(self.results)
            content = path.read_text(encoding="utf-8", errors="replace")
            key = digest([str(relative), content])
            try:
                (old if key in self.known else new).append((relative, json.loads(content), key))
            except ValueError as error:
                print(f"warning: {path}: no record ({error}); run its job again.", file=sys.stderr)
        for relative, record, key in sorted(new, key=lambda item: item[1]["started"]):
            self._upload(relative, record, key)
        for relative, record, _ in old:  # what still stands of a replaced arm
            tags = place(relative, record, self.arms)
            if (parent := self.parents.get(_group(tags))) in self.fresh:
                self._score(parent, record, tags)
        about = {"mlflow.experimentKind": KIND, "mlflow.note.content": note(self.results)}
        for key, text in about.items():
            if text and self.about.get(key) != text:
                self.client.set_experiment_tag(self.experiment, key, text)
        return len(new)

    def _parent(self, tags: Mapping[str, str], start: int, end: int) -> str:
        """The run of an arm, which lasts from its first job's start to its last job's end."""
        group = _group(tags)
        if group not in self.parents:
            kept = {key: value for key, value in tags.items() if key not in ("path", "iteration")}
            marks = {"sso.group": group, "stage": self._stage(group), **kept}
            made = self.client.create_run(self.experiment, start_time=start, run_name=group, tags=marks)
            self.parents[group] = made.info.run_id
            self.fresh.add(made.info.run_id)
            self._settle(made.info.run_id, group, {})
        parent = self.parents[group]
        if end > self.ends.get(parent, 0):
            self.client.set_terminated(parent, end_time=end)
            self.ends[parent] = end
        return parent

    def _upload(self, path: Path, record: dict[str, Any], key: str) -> None:
        from mlflow.entities import Metric, Param, RunTag

        start, end = _times(record)
        tags = place(path, record, self.arms)
        parent = self._parent(tags, start, end)
        marks = {
            "mlflow.parentRunId": parent,
            "sso.uploading": key,
            "stage": record["stage"],
            **tags,
            **{f"sso.version.{name}": value for name, value in record["versions"].items()},
            "sso.git_commit": str(record["git_commit"]),
            "sso.git_dirty": str(record["git_dirty"]),
        }
        if record.get("output"):  # by reference: models and tables stay where they are
            marks |= {"output": record["output"][0], "output.digest": str(record["output"][1])}
        if "error" in record:
            marks["error"] = record["error"][:500]
        name = f"{record['stage']} {tags['path']}"
        run_id = self.client.create_run(self.experiment, start_time=start, tags=marks, run_name=name).info.run_id

        given = {**_flat(record["settings"]), **{f"input.{k}": str(v[1]) for k, v in record["inputs"].items()}}
        params = [Param(_name(k), v) for k, v in {**given, "seed": str(record["seed"])}.items()]
        own = {f"job.{k}": record[k] for k in ("wall_s", "cpu_s", "peak_rss_mb")}
        rows = [*record["metrics"], (0, {**record["summary"], **own})]
        values = [(_name(k), v, at, step) for at, (step, row) in enumerate(rows, start) for k, v in row.items()]
        metrics = [Metric(*value) for value in values if value[1] is not None]
        for at in range(0, len(params), 100):
            self.client.log_batch(run_id, params=params[at : at + 100])
        for at in range(0, len(metrics), 1000):
            self.client.log_batch(run_id, metrics=metrics[at : at + 1000])
        self._score(parent, record, tags)
        self.client.log_inputs(
            run_id, [_dataset(*item) for item in record["inputs"].items() if Path(item[1][0]).suffix]
        )
        self.client.set_terminated(run_id, "FINISHED" if record["status"] == "finished" else "FAILED", end)
        self.client.log_batch(run_id, tags=[RunTag("sso.record", key)])

    def _score(self, parent: str, record: dict[str, Any], tags: Mapping[str, str]) -> None:
        """A job's scores on its arm's own run."""
        from mlflow.entities import Metric

        if record["stage"] in SCORED:
            step, scores, end = int(tags.get("iteration", 0)), record["summary"], _times(record)[1]
            named = {_name(f"{record['stage']}/{k}"): v for k, v in scores.items() if v is not None}
            self.client.log_batch(parent, metrics=[Metric(k, v, end, step) for k, v in named.items()])


def _times(record: Mapping[str, Any]) -> tuple[int, int]:
    """Start and end of a job, in ms since the epoch."""
    start = int(datetime.fromisoformat(record["started"]).timestamp() * 1000)
    return start, start + int(record["wall_s"] * 1000)


def _group(tags: Mapping[str, str]) -> str:
    """The name of the run that a job's run stands under: `qwen2/s0/sso`, `qwen2/s0` or `shared`."""
    seed = [f"s{tags['seed']}"] if "seed" in tags else []
    return "/".join([tags.get("backbone", "shared"), *seed, *([tags["arm"]] if "arm" in tags else [])])


def _arm_of(group: str) -> str | None:
    """The arm or reward model of a group; None for what arms share."""
    parts = group.split("/")
    return parts[2] if len(parts) == 3 else None
