"""Where to look further: each arm's logs and run records, and what the records say went wrong on the way.

Links only to files that are there, as addresses from the report's folder; counts are the records' own.
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sso.jobs.grid import Jobs
from sso.jobs.job import Job

HEALTH: dict[str, tuple[tuple[str, ...], str, str | None]] = {
    "fallback principles": (("principles",), "fallbacks", "written"),
    "queries left out, too long": (("sample", "generated_pairs"), "too_long", None),
    "responses cut at the limit of tokens": (("sample", "generated_pairs"), "cut", None),
    "responses cut to fit a training": (("generator", "policy"), "responses_cut", "samples"),
    "records left out of a training": (("generator", "policy"), "records_left_out", "samples"),
    "dialogues left out of SFT": (("sft",), "left_out_dialogues", None),
    "triples left out, responses alike": (("sample",), "left_out_triples", None),
    "pairs left out": (("preferences", "pairs", "generated_pairs"), "left_out_pairs", None),
    "pairs of two equal responses": (("data_quality",), "equal_pairs", None),
    "trainings that moved no weight": (("sft", "generator", "policy", "reward_model"), "moved_nothing", None),
    "pairs without scores": (("data_quality",), "unscored_pairs", None),
    "unreadable verdicts": (("judge", "data_quality"), "unreadable", "verdicts"),
}
"""What can go wrong -> the rules whose records count it, the count's name, and that of what it is part of."""
ALWAYS = {"fallbacks", "cut", "responses_cut", "records_left_out", "unscored_pairs", "equal_pairs"}
ALWAYS |= {"left_out_dialogues", "left_out_triples", "left_out_pairs", "moved_nothing"}
"""Counts that a finished job's record always has where they can be; the others are there only if not zero."""


def health(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each thing that can go wrong: how often, of how many, in how many jobs, and the worst record."""
    rows = []
    for name, (rules, key, whole) in HEALTH.items():
        own = [(record["path"], record.get("summary") or {}) for record in records if record.get("rule") in rules]
        known = [(path, counts[key]) for path, counts in own if key in counts]
        if not known and (not own or key in ALWAYS):
            continue
        parts = [counts[whole] for _, counts in own if whole in counts] if whole else []
        counted = own if key in ALWAYS else known
        total, of = sum(count for _, count in known), sum(parts) if parts and len(parts) == len(counted) else None
        worst = max(known, key=lambda one: one[1], default=("", 0))
        rows.append({"name": name, "count": int(total), "of": of and int(of), "jobs": len(own), "worst": None})
        if total:
            rows[-1]["worst"] = "../" + quote(worst[0])
    return rows


def unreadable(records: Iterable[dict[str, Any]], arms: Collection[str] | None = None) -> str:
    """How many of the judge's verdicts could not be read, of all or of some arms, in words; "" where none could not."""
    own = [record for record in records if arms is None or record.get("arm") in arms]
    row = next((row for row in health(own) if row["name"] == "unreadable verdicts"), None)
    if not row or not row["count"]:
        return ""
    return f"{row['count']}{' of ' + str(row['of']) if row['of'] else ''} verdicts unreadable"


def trail(jobs: Jobs, results: Path) -> list[dict[str, Any]]:
    """A row an arm, and one of what arms share: by backbone its jobs of the first seed with log and record."""
    seed, arms = jobs.experiment.seeds[0], jobs.experiment.arms

    def link(path: str) -> str | None:
        own = Path(path).relative_to(jobs.root)
        return "../" + quote(own.as_posix()) if (results / own).is_file() else None

    def step(job: Job) -> dict[str, Any]:
        name = job.rule.replace("_", " ") + (f" {job.iteration}" if job.iteration else "")
        return {"name": name, "log": link(job.log), "record": link(f"{job.output}.run.json")}

    rows: dict[str | None, dict[str, list[dict[str, Any]]]] = {arm: {} for arm in (*arms, None)}
    for job in jobs.in_order():
        if job.seed in (seed, None) and not job.reward and job.rule not in ("report", "mlflow"):
            made = step(job)
            if made["log"] or made["record"]:
                rows[job.arm].setdefault(job.backbone or "all", []).append(made)
    return [
        {"arm": arm, "label": arms[arm].label if arm else "shared by arms", "backbones": own}
        for arm, own in rows.items()
        if own
    ]
