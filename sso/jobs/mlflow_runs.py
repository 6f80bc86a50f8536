"""MLflow runs made of the jobs' records, and of the curves of those that are not done yet.

The records are the truth: a run carries its record's digest, so that nothing is uploaded twice. The run of a job at
work grows with its curves, and its record ends it. Knows nothing of models.
"""

import fcntl
import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sso.errors import InputError, masked, printable, without_passwords
from sso.jobs import lifeline
from sso.jobs.tracking import LIVE, SUFFIX, Row
from sso.records import digest, write_text

PLACE = ("backbone", "seed", "arm", "method", "version", "objective", "base_loss")
"""Tags of `place` that all jobs of an arm share."""


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
        arms = masked(json.loads(config.read_text(encoding="utf-8")))["arms"]
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


def sync(results: str | Path, tracking_uri: str | None = None, live: bool = False) -> int | None:
    """Upload what MLflow does not have yet of ``results`` (one experiment's folder): the curves of jobs at work, and
    the records; with ``live`` only those of jobs that were seen at work.

    One run a job, under one parent run an arm of a cell. A run carries its record's digest, so nothing is uploaded
    twice; a job that ran again gets a new run. Returns how many records were new, or None, with a warning on stderr,
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
            uploader = _Uploader(MlflowClient(tracking_uri=uri), results, uri)
            new = uploader.watch() + (0 if live else uploader.upload())
            if new or not live:
                print(f"{new} new runs in MLflow at {without_passwords(uri)}", flush=True)
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


EVERY_S, AT_MOST_S, SHARE = 15.0, 60.0, 0.05
"""Seconds between two looks of `follow`: as many as keep its share of a core below SHARE, within these limits."""


def follow(results: Path, tracking_uri: str | None = None) -> None:
    """Upload the curves of jobs at work under ``results`` until the process is ended; asks MLflow only where there are
    such jobs."""
    os.nice(10)
    seen = False
    while True:
        began, before = time.process_time(), seen
        seen = any(results.rglob(f".*{LIVE}"))
        if seen or before:  # after the last one is gone once more: it left a record, or was killed
            sync(results, tracking_uri, live=True)
        time.sleep(min(max(EVERY_S, (time.process_time() - began) / SHARE), AT_MOST_S))


def start_following(results: Path, tracking_uri: str | None) -> subprocess.Popen:
    """`follow` in a process of its own, which ends with this one; what it says stands in ``results``/logs. The address
    goes by the environment: everybody on the machine can read a command line."""
    log = results / "logs" / "mlflow-live.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sso", "mlflow-sync", "--results", str(results), "--follow"]
    environment = {**os.environ, **({"MLFLOW_TRACKING_URI": tracking_uri} if tracking_uri else {})}
    with log.open("w") as said:  # in a session of its own: Ctrl-C is for the jobs
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        )


@dataclass(frozen=True)
class _Live:
    """The curves of an attempt at a job that has not ended, or was killed (sso/jobs/tracking.py)."""

    path: Path
    """Of the record that it would leave, under the results."""
    about: dict[str, Any]
    rows: list[Row]
    killed: int | None
    """When it last wrote, in ms since the epoch, where its process is gone."""

    @classmethod
    def read(cls, file: Path, results: Path) -> "_Live | None":
        """None where the job has just ended, or the file is broken."""
        try:
            text, written = file.read_text(encoding="utf-8", errors="replace"), file.stat().st_mtime
            about, *rows = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
            gone = lifeline.lives(about["process"] or "") is False
            path = file.relative_to(results).with_name(file.name[1:].removesuffix(LIVE) + SUFFIX)
            return cls(path, about, rows, int(written * 1000) if gone else None)
        except (OSError, ValueError, LookupError, TypeError):
            return None


def _attempt(path: Path, about: Mapping[str, Any]) -> str:
    """A key of one attempt at a job, by its record's path and its start."""
    return digest([str(path), about.get("started")])


def _dataset(name: str, read: Sequence[str | None]) -> Any:
    """A file that a job read, as mlflow.data has it: its path and its digest, not its content."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    path, digest = map(str, read)
    dataset = Dataset(name=Path(path).name, digest=digest, source_type="local", source=json.dumps({"uri": path}))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", name)])


def note(results: Path) -> str | None:
    """What an experiment's page in MLflow says, as Markdown: the report's verdict on each claim, the paper's apart from
    ours, and where its page is; None where there is no report."""
    report = results.resolve() / "report"
    try:
        told = json.loads((report / "told.json").read_text(encoding="utf-8"))
        parts = [("Claims of the paper:", told["claims"]), ("Claims of our own:", told.get("ours", []))]
        counts = [line for counted in told.get("counts", []) for line in ("", f"{counted}.")]
    except (OSError, ValueError, LookupError):
        return None
    found = [line for head, said in parts if said for line in ["", head, "", *(f"- {one}" for one in said)]]
    return "\n".join([f"The page: `{report / 'report.html'}`", *counts, *found])


SCORED = ("judge", "data_quality", "rewardbench")
"""Stages whose summaries stand on the arm's own run too, by iteration, so that arms can be compared in one table."""
KIND = "custom_model_development"
"""What MLflow's pages call model training: they then open the table of runs, not that of traces."""


FOLDER = "sso.folder"
"""Tag of every run: the id of the results folder that it is of, since others may have the experiment's name."""


def folder_id(results: Path) -> str:
    """The id of a results folder, made by the first call; it moves with the folder."""
    file = results / ".mlflow.id"
    if not file.exists():
        write_text(file, uuid.uuid4().hex)
    return file.read_text(encoding="utf-8")


class _Uploader:
    """One call of ``sync``, which holds the folder's lock."""

    def __init__(self, client: Any, results: Path, uri: str):
        self.client, self.results, self.arms = client, results, arm_tags(results / "config.json")
        self.settings = arm_settings(results / "config.json")
        name, self.folder = results.resolve().name, folder_id(results)
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
        """Parent runs that lack what still stands of the arm's that they replace."""
        self.growing: dict[str, Any] = {}
        """Runs without a record by `_attempt`: of jobs at work, killed or just done."""
        found = [*self._runs()]
        self._adopt([run for run in found if FOLDER not in run.data.tags], uri)
        for known in found:
            tags = known.data.tags
            if tags.get(FOLDER) != self.folder:
                continue
            if "sso.group" in tags:
                self._take(known)
            elif "sso.record" in tags:
                self.known.add(tags["sso.record"])
            elif "sso.live" in tags:
                self.growing[tags["sso.live"]] = known
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

    def _adopt(self, older: Sequence[Any], uri: str) -> None:
        """Tag the runs of before that are of this folder: all, where the store lies in it; else those of its records
        and jobs at work, and their parents."""
        if not older:
            return
        ours = older
        if uri != f"sqlite:///{self.results.resolve()}/mlflow.db":
            marks = {mark for path in self.results.rglob("*" + SUFFIX) for mark in self._marks(path)}
            found = filter(None, [_Live.read(file, self.results) for file in self.results.rglob(f".*{LIVE}")])
            marks |= {_attempt(live.path, live.about) for live in found}
            keys = ("sso.record", "sso.live", "sso.uploading")
            jobs = [run for run in older if not marks.isdisjoint(run.data.tags.get(key) for key in keys)]
            parents = {run.data.tags.get("mlflow.parentRunId") for run in jobs}
            ours = [*jobs, *(run for run in older if run.info.run_id in parents)]
        for run in ours:
            self.client.set_tag(run.info.run_id, FOLDER, self.folder)
            run.data.tags[FOLDER] = self.folder

    def _marks(self, path: Path) -> tuple[str, str]:
        """What a run of a record has in one of its tags."""
        relative = path.relative_to(self.results)
        key, record = self._record(relative)
        return key, _attempt(relative, record)

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
            if "sso.fresh" in run.data.tags:
                self.fresh.add(number)

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

    def watch(self) -> int:
        """Let the runs of jobs at work grow, and end those whose jobs have ended; returns how many left a record."""
        # Before the records: a job writes its own first, then removes this file.
        found = filter(None, [_Live.read(file, self.results) for file in sorted(self.results.rglob(f".*{LIVE}"))])
        at_work, new = {_attempt(live.path, live.about): live for live in found}, 0
        for attempt in {**self.growing, **at_work}:
            live = at_work.get(attempt)
            run: Any = self.growing.get(attempt)
            path = live.path if live else Path(run.data.tags["path"] + SUFFIX)
            key, record = self._record(path)
            if record and _attempt(path, record) == attempt:
                if run:
                    self._upload(path, record, key)
                    self.known.add(key)
                    new += 1
            elif run and run.info.status != "RUNNING":
                continue  # was told before
            elif live:
                self._grow(run, live, attempt)
            else:
                self._end(run.info.run_id, run.data.tags, int(time.time() * 1000))
        if at_work:
            self._describe()
        return new

    def _grow(self, run: Any, live: _Live, attempt: str) -> None:
        """Give the run of a job at work the rows that it lacks; a new one where ``run`` is None."""
        from mlflow.entities import RunTag

        start, _ = _times(live.about)
        tags = place(live.path, live.about, self.arms)
        run_id = run.info.run_id if run else self._begin(live.path, live.about, tags, {"sso.live": attempt})
        rows = int(run.data.tags.get("sso.live.rows", 0)) if run else 0
        self._log(run_id, live.rows[rows:], start, rows)
        self.client.log_batch(run_id, tags=[RunTag("sso.live.rows", str(len(live.rows)))])
        if live.killed:
            self._end(run_id, tags, live.killed)

    def _end(self, run_id: str, tags: Mapping[str, str], end: int) -> None:
        """End the run of a job that was killed."""
        self.client.set_tag(run_id, "error", "killed: it ended without a record")
        self.client.set_terminated(run_id, "KILLED", end)
        self._parent(tags, end, end)

    def _record(self, path: Path) -> tuple[str, dict[str, Any]]:
        """A record's key and what it holds; {} where there is none."""
        try:
            content = (self.results / path).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return "", {}
        try:
            return digest([str(path), content]), json.loads(content)
        except ValueError as error:
            print(f"warning: {self.results / path}: no record ({error}); run its job again.", file=sys.stderr)
            return "", {}

    def upload(self) -> int:
        new: list[tuple[Path, dict[str, Any], str]] = []
        old: list[tuple[Path, dict[str, Any], str]] = []
        for path in sorted(self.results.rglob("*" + SUFFIX)):
            relative = path.relative_to(self.results)
            key, record = self._record(relative)
            if record:
                (old if key in self.known else new).append((relative, record, key))
        for relative, record, key in sorted(new, key=lambda item: item[1]["started"]):
            self._upload(relative, record, key)
        for relative, record, _ in old:  # what still stands of a replaced arm
            tags = place(relative, record, self.arms)
            if (parent := self.parents.get(_group(tags))) in self.fresh:
                self._score(parent, record, tags)
        for parent in self.fresh:
            self.client.delete_tag(parent, "sso.fresh")
        self._describe()
        return len(new)

    def _describe(self) -> None:
        """Say what the experiment is, and what its report found."""
        about = {"mlflow.experimentKind": KIND, "mlflow.note.content": note(self.results)}
        for key, text in about.items():
            if text and self.about.get(key) != text:
                self.client.set_experiment_tag(self.experiment, key, text)

    def _parent(self, tags: Mapping[str, str], start: int, end: int) -> str:
        """The run of an arm, which lasts from its first job's start to its last job's end."""
        group = _group(tags)
        if group not in self.parents:
            # Of a job's run in MLflow its own tags come along, too.
            kept = {key: value for key, value in tags.items() if key in PLACE}
            marks = {FOLDER: self.folder, "sso.group": group, "sso.fresh": "", "stage": self._stage(group), **kept}
            made = self.client.create_run(self.experiment, start_time=start, run_name=group, tags=marks)
            self.parents[group] = made.info.run_id
            self.fresh.add(made.info.run_id)
            self._settle(made.info.run_id, group, {})
        parent = self.parents[group]
        if end > self.ends.get(parent, 0):
            self.client.set_terminated(parent, end_time=end)
            self.ends[parent] = end
        return parent

    def _begin(self, path: Path, about: Mapping[str, Any], tags: Mapping[str, str], mark: Mapping[str, str]) -> str:
        """A new run of a job, with its settings; ``mark`` says why it is not done. Returns its id."""
        start, _ = _times(about)
        marks = {
            FOLDER: self.folder,
            "mlflow.parentRunId": self._parent(tags, start, 0),
            **mark,
            "stage": about["stage"],
            **tags,
            **{f"sso.version.{name}": value for name, value in about["versions"].items()},
            "sso.git_commit": str(about["git_commit"]),
            "sso.git_dirty": str(about["git_dirty"]),
        }
        name = f"{about['stage']} {tags['path']}"
        made = self.client.create_run(self.experiment, start_time=start, tags=marks, run_name=name).info.run_id
        self._set(made, about)
        return made

    def _set(self, run_id: str, about: Mapping[str, Any]) -> None:
        """Give a run its job's settings; again is no harm."""
        from mlflow.entities import Param

        given = {**_flat(about["settings"]), **{f"input.{k}": str(v[1]) for k, v in about["inputs"].items()}}
        params = [Param(_name(k), v) for k, v in {**given, "seed": str(about["seed"])}.items()]
        for at in range(0, len(params), 100):
            self.client.log_batch(run_id, params=params[at : at + 100])

    def _log(self, run_id: str, rows: Sequence[Row], start: int, first: int = 0) -> None:
        """Give a run rows of metrics, of which the first is its job's ``first``.

        A row's time is its number: MLflow takes equal points for one, so that a row may be sent again.
        """
        from mlflow.entities import Metric

        numbered = enumerate(rows, start + first)
        values = [(k, v, at, step) for at, (step, row) in numbered for k, v in row.items()]
        metrics = [Metric(_name(name), v, at, step) for name, v, at, step in values if v is not None]
        for at in range(0, len(metrics), 1000):
            self.client.log_batch(run_id, metrics=metrics[at : at + 1000])

    def _upload(self, path: Path, record: dict[str, Any], key: str) -> None:
        from mlflow.entities import RunTag

        start, end = _times(record)
        tags = place(path, record, self.arms)
        if known := self.growing.get(_attempt(path, record)):
            run_id = known.info.run_id
            self._set(run_id, record)  # whoever began it may have been killed
        else:
            run_id = self._begin(path, record, tags, {"sso.uploading": key})
        parent = self._parent(tags, start, end)
        own = {f"job.{k}": record[k] for k in ("wall_s", "cpu_s", "peak_rss_mb")}
        self._log(run_id, [*record["metrics"], (0, {**record["summary"], **own})], start)
        self._score(parent, record, tags)
        self.client.log_inputs(
            run_id, [_dataset(*item) for item in record["inputs"].items() if Path(item[1][0]).suffix]
        )
        self.client.set_terminated(run_id, "FINISHED" if record["status"] == "finished" else "FAILED", end)
        marks = {"sso.record": key}
        if record.get("output"):  # by reference: models and tables stay where they are
            marks |= {"output": record["output"][0], "output.digest": str(record["output"][1])}
        if "error" in record:
            marks["error"] = record["error"][:500]
        self.client.log_batch(run_id, tags=[RunTag(*mark) for mark in marks.items()])

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
    return start, start + int(record.get("wall_s", 0) * 1000)


def _group(tags: Mapping[str, str]) -> str:
    """The name of the run that a job's run stands under: `qwen2/s0/sso`, `qwen2/s0` or `shared`."""
    seed = [f"s{tags['seed']}"] if "seed" in tags else []
    return "/".join([tags.get("backbone", "shared"), *seed, *([tags["arm"]] if "arm" in tags else [])])


def _arm_of(group: str) -> str | None:
    """The arm or reward model of a group; None for what arms share."""
    parts = group.split("/")
    return parts[2] if len(parts) == 3 else None
