"""What the models said, to be read by people: some triples, pairs and answers with the judge's verdicts.

The same few queries for every arm: ids are taken in the order of their digests, so the choice looks at no text.
Of the first backbone and seed. Knows the record types and the experiment's jobs, nothing of the page.
"""

import hashlib
import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from eval.benchmarks.against_start import AGAINST_START
from eval.benchmarks.alpaca_eval import ALPACA_EVAL, read_references, references
from eval.benchmarks.record import Judged
from eval.settings import Evaluation
from sso.errors import InputError, first_problem
from sso.jobs.grid import Jobs
from sso.jobs.job import Job
from sso.records import Answer, Message, Pair, RecordT, Triple, iter_json_lines

COUNT = 20
LONGEST = 2000
"""Characters of one text at most; less where there are many."""
BUDGET = 2_000_000
"""Characters of all texts together."""


@dataclass
class Text:
    """One response: who said it, and what the judge made of it."""

    label: str
    text: str
    note: str = ""
    principle: str = ""
    """What it was drawn under."""
    reference: bool = False
    """Whether it is the answer that arms are compared to."""


@dataclass
class Sample:
    """A query with responses to it."""

    id: str
    prompt: str
    texts: list[Text]

    def merged(self) -> list[Text]:
        """The responses, those that are equal in text and principle as one, which names all whose it is; notes that are
        not the same for all are told by name."""
        found: dict[tuple[str, str], dict[str, list[str]]] = {}
        for text in self.texts:
            found.setdefault((text.text, text.principle), {}).setdefault(text.note, []).append(text.label)
        merged = []
        for (said, principle), notes in found.items():
            names = [" · ".join(labels) for labels in notes.values()]
            told = [f"{name}: {note}" for name, note in zip(names, notes, strict=True) if note]
            merged.append(
                Text(" · ".join(names), said, "; ".join(told) if len(notes) > 1 else next(iter(notes)), principle)
            )
        return merged

    @property
    def differs(self) -> str:
        """In what arms differ, beside the reference: `text`, `verdict`, both, or nothing."""
        arms = [text for text in self.texts if not text.reference]
        return " ".join(
            name for name, own in (("text", "text"), ("verdict", "note")) if len({getattr(a, own) for a in arms}) > 1
        )


@dataclass
class Group:
    """Samples of one file, and whose they are."""

    title: str
    source: str
    samples: list[Sample]
    draws: int = 1
    """Of so many answers of an arm, or less, one is shown, the first, and the verdict is their mean."""


@dataclass
class Samples:
    """Everything to read, and of which backbone and seed."""

    backbone: str
    seed: int
    triples: list[Group] = field(default_factory=list)
    pairs: list[Group] = field(default_factory=list)
    """A group an arm."""
    answers: list[Group] = field(default_factory=list)
    """A group a benchmark; its source is told in words."""

    def queries(self) -> list[Sample]:
        """The pairs of all arms by query: each text says whose it is and on which side."""
        found: dict[str, Sample] = {}
        for group in self.pairs:
            for own in group.samples:
                into = found.setdefault(own.id, Sample(own.id, own.prompt, []))
                into.texts += [replace(text, label=f"{group.title}: {text.label}") for text in own.texts]
        return list(found.values())

    def texts(self) -> Iterable[Text]:
        """Every response."""
        return (text for group in self.groups() for sample in group.samples for text in sample.texts)

    def groups(self) -> list[Group]:
        """All of it."""
        return [*self.triples, *self.pairs, *self.answers]


def order(name: str) -> str:
    """What ids are sorted by."""
    return hashlib.sha256(name.encode(errors="replace")).hexdigest()


def some(path: Path, kind: type[RecordT], known: Iterable[str] | None = None) -> dict[str, RecordT]:
    """Up to COUNT records of a file by id, of the ``known`` ids where they are given; {} where there is no file."""
    if not path.is_file():
        return {}
    wanted = None if known is None else set(known)
    rows = ({**row, "id": str(row.get("id", number - 1))} for number, row in iter_json_lines(path))
    chosen = heapq.nsmallest(
        COUNT, (row for row in rows if wanted is None or row["id"] in wanted), key=lambda row: order(row["id"])
    )
    try:
        return {row["id"]: kind.model_validate(row) for row in chosen}
    except ValidationError as error:
        key, _ = first_problem(error)
        raise InputError(f"{path}: holds a record whose `{key}` is broken; make the file again.") from error


def prompt_text(messages: list[Message]) -> str:
    """A prompt's turns; a single user turn stands without its role."""
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in messages)


def collect(jobs: Jobs, results: Path) -> Samples:
    """Triples, pairs and answers that lie under ``results``; what is not there yet is left out."""
    experiment = jobs.experiment
    found = Samples(next(iter(experiment.backbones)), experiment.seeds[0])
    own = {job.output: job for job in jobs if (job.backbone, job.seed) == (found.backbone, found.seed)}

    def place(path: str) -> Path:
        return results / Path(path).relative_to(jobs.root)

    owners: dict[str, list[str]] = {}
    last: dict[str, Job] = {}
    for job in own.values():
        if job.arm is None:
            continue
        label = experiment.arms[job.arm].label
        numbered = f"{label}, iteration {job.iteration}" if job.iteration else label
        for path in job.reads():
            if path in own and own[path].rule == "sample" and label not in owners.setdefault(path, []):
                owners[path].append(label)
        if job.rule in ("pairs", "generated_pairs"):
            group = _pairs(place(job.output), label, results, _guidelines(job, place, experiment.arms[job.arm].data))
            found.pairs += [group] if group.samples else []
        if job.rule == "judge":
            last = {name: other for name, other in last.items() if other.arm != job.arm} | {numbered: job}
    numbers = len({own[path].iteration for path in owners}) > 1
    for path, labels in owners.items():
        title = ", ".join(labels) + (
            f": iteration {own[path].iteration}" if numbers and own[path].version == "v1" else ""
        )
        group = _triples(place(path), title, results)
        found.triples += [group] if group.samples else []
    runs = []
    for label, job in last.items():
        assert isinstance(job.settings, Evaluation), "a job that judges answers"
        answers, start = place(str(job.inputs["answers"])), not job.inputs.get("against")
        runs.append(Run(label, answers, place(job.output), job.settings.samples, start))
    texts = _reference_texts(place(jobs.data_folder))
    for title, benchmark in (("Answers", ALPACA_EVAL), ("Answers to held-out prompts", AGAINST_START)):
        group = _answers(title, benchmark, runs, {} if benchmark.needs_start else texts)
        found.answers += [group] if group.samples else []
    return found


def _triples(path: Path, title: str, results: Path) -> Group:
    rows = some(path, Triple)
    samples = [
        Sample(
            name,
            prompt_text(row.prompt),
            [
                Text("y+, under the good principle", row.chosen, principle=row.system_good),
                Text("y-, under the bad principle", row.rejected, principle=row.system_bad),
                Text("yo, under none", row.original),
            ],
        )
        for name, row in rows.items()
    ]
    return Group(title, path.relative_to(results).as_posix(), samples)


def _guidelines(job: Job, place: Callable[[str], Path], data: str) -> dict[str, tuple[str, str]]:
    """id -> what chosen and rejected were drawn under; empty for pairs without principles."""
    if data not in ("good_bad", "good_original"):
        return {}
    found: dict[str, tuple[str, str]] = {}
    for key, good, bad in (("principles", "good", "bad"), ("triples", "system_good", "system_bad")):
        path = place(str(job.inputs[key])) if key in job.inputs else None
        for _, row in iter_json_lines(path) if path and path.is_file() else ():
            found[str(row.get("id"))] = (row.get(good, ""), row.get(bad, "") if data == "good_bad" else "")
    return found


def _pairs(path: Path, title: str, results: Path, guidelines: dict[str, tuple[str, str]]) -> Group:
    judged = path.with_name("data_quality_pairs.jsonl")
    verdicts = {str(row["id"]): row for _, row in iter_json_lines(judged)} if judged.is_file() else {}
    samples = []
    for name, row in some(path, Pair, verdicts or None).items():
        verdict = _hit(verdicts[name]) if name in verdicts else "not judged"
        chosen, rejected = (prompt_text(side) for side in (row.chosen, row.rejected))
        good, bad = guidelines.get(name, ("", ""))
        said = [Text("chosen", chosen, verdict, good), Text("rejected", rejected, principle=bad)]
        samples.append(Sample(name, prompt_text(row.prompt), said))
    return Group(title, path.relative_to(results).as_posix(), samples)


def _hit(row: dict[str, Any]) -> str:
    """A verdict on a pair in words."""
    said: dict[float | None, str] = {
        1.0: "judge: prefers this one",
        0.5: "judge: a tie",
        0.0: "judge: prefers the rejected one",
    }
    text = said.get(row.get("hit"), "judge: unreadable")
    return text if row.get("agree") in (True, None) else f"{text}; the two orders disagree"


class Run(NamedTuple):
    """An arm's answers and what was judged of them."""

    label: str
    answers: Path
    judged: Path
    draws: int
    """Answers to each prompt."""
    start: bool
    """Whether it is compared with nobody's answers, as the starting model is."""


def _answers(title: str, of: Judged, runs: Sequence[Run], references: dict[str, str]) -> Group:
    """Every arm's answer to the same queries of a benchmark, with the judge's preference over the reference: a given
    one, or the starting model's own answer."""
    group = Group(title, f"{of.answers}.jsonl and {of.judged}.jsonl of each arm's eval folder", [])
    for run in runs:
        path = run.judged / f"{of.judged}.jsonl"
        verdicts = {str(row["id"]): row for _, row in iter_json_lines(path)} if path.is_file() else {}
        # Of several samples a prompt the first, whose id is the prompt's own.
        known = [sample.id for sample in group.samples] or verdicts or None
        rows = some(run.answers / f"{of.answers}.jsonl", Answer, known)
        if not group.samples:
            for name, row in rows.items():
                given = [Text("reference", references[name], reference=True)] if name in references else []
                group.samples.append(Sample(name, prompt_text(row.prompt), given))
        draws, start = 1 if of.needs_start else run.draws, of.needs_start and run.start
        for sample in group.samples:
            if sample.id in rows:
                said = "the reference" if start else _preference(verdicts.get(sample.id, {}), draws)
                sample.texts.append(Text(run.label, rows[sample.id].output, said, reference=start))
        if draws > 1 and rows:
            group.draws = max(group.draws, draws)
    return group


def _reference_texts(data: Path) -> dict[str, str]:
    """id -> the reference answer, where the data folder has them."""
    path = references(data)
    return {row.id: row.output for row in read_references(path)} if path.is_file() else {}


def _preference(row: dict[str, Any], draws: int) -> str:
    """A verdict on an answer, or on the mean of ``draws`` answers, in words: how far the judge prefers it over the
    reference."""
    preference = row.get("preference")
    if preference is None:
        return "not judged" if not row else "judge: unreadable"
    judge = "judge" if draws == 1 else f"judge, mean of {draws} draws"
    if preference == 0.5:
        return f"{judge}: a tie with the reference"
    return f"{judge}: {'over' if preference > 0.5 else 'below'} the reference ({preference:.2g})"


def cut(samples: Samples) -> int:
    """Cut all texts to a common length so that the page stays small; returns it."""
    texts = list(samples.texts())
    limit = min(LONGEST, max(200, BUDGET // max(len(texts), 1)))
    for text in texts:
        text.text, text.note = _short(text.text, limit), _short(text.note, limit)
        text.principle = _short(text.principle, limit)
    for sample in (sample for group in samples.groups() for sample in group.samples):
        sample.prompt = _short(sample.prompt, limit)
    return limit


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]} […{len(text) - limit} more characters]"
