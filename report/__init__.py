"""The report of one experiment: results.csv, tables, charts, and one page that holds them all."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sso import records
from sso.config import Experiment
from sso.jobs.grid import Jobs


def build(jobs: Jobs, results: Path, out: Path) -> None:
    """Write the report of an experiment's jobs to ``out``, whole or not at all, from what lies under ``results``.

    results.csv, told.json, tables/*.{md,csv,tex}, figures/*.{png,svg} depend on the figures alone; commit and times
    stand in provenance.json, report.md and report.html only.
    """
    from report import claims, figures, first, page, render, samples, tables, trail
    from report.collect import collect
    from report.measured import Measured

    results, out, experiment = Path(results), Path(out), jobs.experiment
    measured = Measured(collect(jobs, results))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch) / "report"
        frame = measured.collected.frame()
        records.write_text(folder / "results.csv", frame.to_csv(index=False, lineterminator="\n"))
        pages = {}
        claimed = claims.claims(measured)
        pages["claims"] = claims.claims_markdown(measured, claimed)
        records.write_text(folder / "tables/claims.csv", claims.claims_csv(claimed))
        made = {name: tables.table(measured, name) for name in measured.content["tables"]}
        told = first.told(measured, claimed, made)
        records.write_text(folder / "told.json", json.dumps(told, ensure_ascii=False, indent=1) + "\n")
        for name, table in made.items():
            pages[name] = render.markdown(measured, table)
            records.write_text(folder / f"tables/{name}.csv", render.table_csv(measured, table))
            records.write_text(folder / f"tables/{name}.tex", render.latex(measured, table))
        found = claims.comparisons(measured)
        pages["comparisons"] = claims.comparisons_markdown(measured, found)
        records.write_text(folder / "tables/comparisons.csv", claims.comparisons_csv(found))
        for name, text in pages.items():
            records.write_text(folder / f"tables/{name}.md", text)
        drawn = figures.draw(measured, folder / "figures")
        provenance = _provenance(measured.collected)
        records.write_text(folder / "provenance.json", json.dumps(provenance, indent=2) + "\n")
        shown = {name: text for name, text in pages.items() if name not in made or made[name].applies}
        records.write_text(folder / "report.md", _page(experiment, shown, drawn, provenance))
        charts = {name: (folder / f"figures/{name}.svg").read_text(encoding="utf-8") for name in drawn}
        read = samples.collect(jobs, results)
        trails = trail.trail(jobs, results)
        html = page.html(measured, made, claimed, found, charts, read, provenance, trails)
        records.write_text(folder / "report.html", html)
        shutil.rmtree(out, ignore_errors=True)
        folder.replace(out)


def _provenance(collected: Any) -> dict[str, Any]:
    """Config, commits, versions and seeds, and per stage the jobs, times (s) and peak memory (MB)."""
    stages: dict[str, dict[str, float]] = {}
    for job in collected.records:
        row = stages.setdefault(job.get("stage", "?"), {"jobs": 0, "wall_s": 0.0, "cpu_s": 0.0, "peak_rss_mb": 0.0})
        row["jobs"] += 1
        row["wall_s"] += job.get("wall_s") or 0.0
        row["cpu_s"] += job.get("cpu_s") or 0.0
        row["peak_rss_mb"] = max(row["peak_rss_mb"], job.get("peak_rss_mb") or 0.0)
    experiment = collected.experiment
    return {
        "experiment": experiment.experiment,
        "config_digest": records.digest(experiment.model_dump()),
        "seeds": experiment.seeds,
        "git_commits": sorted({str(job.get("git_commit")) for job in collected.records if job.get("git_commit")}),
        "git_dirty": any(job.get("git_dirty") for job in collected.records),
        "versions": {k: v for job in collected.records for k, v in (job.get("versions") or {}).items()},
        "stages": stages,
    }


def _page(experiment: Experiment, pages: dict[str, str], drawn: Sequence[str], provenance: dict[str, Any]) -> str:
    from report.figures import CHARTS
    from report.render import markdown_rows

    parts = [f"# {experiment.title or experiment.experiment}\n"]
    parts.append("Every figure with its file: [results.csv](results.csv). Each table is in `tables/` as CSV too.\n")
    parts += pages.values()
    for name in drawn:
        parts.append(f"## {CHARTS[name].title}\n\n![{CHARTS[name].title}](figures/{name}.png)\n")
    dirty = " (with uncommitted changes)" if provenance["git_dirty"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    if experiment.assumed:
        parts.append("## Assumed, where the paper is silent\n")
        parts.append("".join(f"- `{key}`: {why}\n" for key, why in experiment.assumed.items()))
    parts.append("## Provenance\n")
    parts.append(
        f"- config digest {provenance['config_digest']}, seeds {', '.join(map(str, provenance['seeds']))}\n"
        f"- commit: {', '.join(provenance['git_commits']) or 'unknown'}{dirty}\n- versions: {versions or 'unknown'}\n"
    )
    lines = [["stage", "jobs", "wall time, s", "CPU time, s", "peak memory of a job, MB"]]
    for stage, row in provenance["stages"].items():
        lines.append([stage, *(f"{row[key]:.0f}" for key in ("jobs", "wall_s", "cpu_s", "peak_rss_mb"))])
    if len(lines) > 1:
        parts.append(markdown_rows(lines))
    return "\n".join(parts)
