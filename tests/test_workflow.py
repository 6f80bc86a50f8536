"""The grid, and what Snakemake makes of it: dry runs, and a run in which stand-ins take the commands' place."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections import Counter
from pathlib import Path

import pytest

from sso.config import load, schema
from sso.errors import InputError
from tests.conftest import REPOSITORY
from workflow import experiment as experiments
from workflow.check import check
from workflow.experiment import Grid
from workflow.rules import Rules

CONFIG = REPOSITORY / "config"


def build(name: str, **given) -> Grid:
    return Grid(experiments.load([CONFIG / name], given))


def seen(grid: Grid) -> dict[str, tuple]:
    """What Snakemake sees of each job, by its output: a job runs again where that changes."""
    return {job.output: (job.rule, job.inputs, job.params, job.mark) for job in grid}


def count(grid: Grid) -> Counter:
    return Counter(job.rule for job in grid)


def snakemake(
    *arguments: str, cwd: Path, python: str = sys.executable, timeout: int = 600
) -> subprocess.CompletedProcess:
    command = [python, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), "--directory", str(cwd), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout)


def planned(result: subprocess.CompletedProcess) -> set[str]:
    """First output of each job of a dry run."""
    assert result.returncode == 0, result.stderr
    return set(re.findall(r"^    output: ([^,\n]+)", result.stdout + result.stderr, re.MULTILINE))


# The grid.


def test_smoke_has_every_rule_of_micro():
    assert set(count(build("smoke.yaml"))) == set(count(build("micro.yaml")))


def test_micro_has_the_jobs_that_its_arms_ask_for():
    arms, rewards = load(CONFIG / "micro.yaml").arms.values(), len(load(CONFIG / "micro.yaml").rewards)
    on_pairs = sum(arm.policy is not None and arm.version == "v2" for arm in arms)
    made = sum(arm.generator is not None for arm in arms)
    # Two backbones, each: base, the arms on pairs, and v1's two of three iterations.
    expected = {
        "config": 1,
        "data": 1,
        "principles": 1 + 3,  # v2, and v1 for three iterations
        "sft": 2,
        "sample": 2 * (2 + 2 * 2),  # v2's and v1's own first, then two more for each v1 arm
        "reference": 2,
        "generator": 2 * made,
        "generated_pairs": 2 * made,
        "pairs": 2 * (on_pairs - made),
        "data_quality": 2 * on_pairs,
        "policy": 2 * (on_pairs + 2 * 3),
        "answer": 2 * (1 + on_pairs + 2 * 3),
        "judge": 2 * (1 + on_pairs + 2 * 3),
        "mix": 2 * rewards,
        "reward_model": 2 * rewards,
        "rewardbench": 2 * rewards,
        "report": 1,
        "mlflow": 1,
    }
    assert count(build("micro.yaml")) == expected


def test_every_input_is_made_by_a_job_or_is_there():
    grid = build("micro.yaml")
    made = {path for job in grid for path in job.outputs}
    for job in grid:
        for path in job.reads():
            assert path in made or Path(path).exists(), f"{job.rule} needs {path}"


def test_beta_of_an_arm_is_in_that_arms_training_alone():
    before = seen(build("micro.yaml"))
    after = seen(build("micro.yaml", arms={"sso": {"policy": {"beta": "0.2"}}}))
    assert before.keys() == after.keys()
    changed = {path for path in before if before[path] != after[path]}
    policies = {f"results/micro/{backbone}/s0/policy/sso" for backbone in ("qwen2", "llama")}
    assert changed == {*policies, "results/micro/config.json"}


def test_names_and_labels_are_no_settings():
    before = seen(build("micro.yaml"))
    after = seen(build("micro.yaml", arms={"sso": {"label": "renamed"}}, rewards={"sso": {"label": "renamed"}}))
    assert {path for path in before if before[path] != after[path]} == {"results/micro/config.json"}


@pytest.mark.parametrize("name", ["micro.yaml", "smoke.yaml", "real_lm.yaml"])
def test_an_arm_less_changes_no_job_of_the_others(name):
    """Nor does one more, then: an arm that is added to a finished run trains itself and nothing else."""
    experiment, whole = load(CONFIG / name), seen(build(name))
    for arm in experiment.arms:
        rewards = {r: None for r, made in experiment.rewards.items() if any(part.arm == arm for part in made.parts)}
        without = seen(build(name, arms={arm: None}, rewards=rewards))
        changed = {whole[path][0] for path in without if without[path] != whole.get(path)}
        # The judge compares with the starting model's answers, if there are any.
        assert changed - {"config", "report", "mlflow"} == ({"judge"} if arm == "base" else set()), arm


def test_an_arm_without_iterations_has_all_queries_though_another_takes_them_in_turns():
    own = {"label": "v1", "version": "v1", "data": "triples", "iterations": 3, "policy": {"objective": "sso_v1"}}
    given = {"model": "DIR", "queries": "prompts.jsonl"}
    alone, beside = build("local_model.yaml", **given), build("local_model.yaml", **given, arms={"v1": own})
    for grid, name in ((alone, "queries1"), (beside, "queries_all")):
        read = {job.inputs["queries"] for job in grid.of("principles") if job.version == "v2"}
        assert read == {grid.data_files[name]}
        there = {path for job in grid for path in job.outputs} | {*grid.data_files.values()}
        assert {path for job in grid if job.arm in ("pbaa", "sso") for path in job.reads()} <= there
    assert {job.inputs["queries"] for job in beside.of("principles") if job.version == "v1"} == {
        beside.data_files[f"queries{number}"] for number in (1, 2, 3)
    }


@pytest.mark.parametrize("arm", ["annotated", "relabelled", "flawless", "good_original", "iterated", "triples"])
def test_what_needs_a_triple_of_each_query_is_refused_where_there_are_fewer(arm):
    """Else it would be trained on PBAA's pairs, or on a part of the queries, under its own name."""
    policy = {"objective": "sso_v1"}
    own = {
        "iterated": {"label": "i", "iterations": 2, "policy": {}},
        "triples": {"label": "t", "data": "triples", "policy": policy},
    }.get(arm, {"label": arm, "data": arm, "policy": {}})
    kept = {name: None for name in load(CONFIG / "micro.yaml").arms if name not in ("base", "pbaa", "sso")}
    fewer = {"data": {"generator_queries": 16}, "rewards": None}
    assert build("micro.yaml", arms=kept, **fewer).of("generated_pairs")
    with pytest.raises(InputError, match=f"arms.own.data: {own.get('data', 'good_bad')} needs triples of all queries"):
        build("micro.yaml", arms={**kept, "own": own}, **fewer)


def test_pairs_are_measured_without_a_judge_too():
    """Every arm on pairs; nobody is asked who was not asked for a sample of them."""
    endpoint = {"kind": "openai", "model": "m"}
    for judge, options in (({}, ["--unjudged"]), (endpoint, ["--unjudged"]), ({**endpoint, "pairs": 9}, [])):
        grid = build("local_model.yaml", model="DIR", queries="prompts.jsonl", evaluation={"judge": judge})
        jobs = {job.arm: job.params["options"] for job in grid.of("data_quality")}
        assert jobs == {"pbaa": options, "sso": options}
    assert all(job.params["options"][-1] != "--unjudged" for job in build("micro.yaml").of("data_quality"))


def test_judge_is_no_setting_of_the_answers():
    before = seen(build("micro.yaml"))
    after = seen(build("micro.yaml", evaluation={"judge": {"kind": "openai", "model": "m"}}))
    assert {before[path][0] for path in before if before[path] != after[path]} == {"config", "judge", "data_quality"}


def test_later_seeds_and_iterations_take_the_first_ones_learning_rate():
    jobs = build("micro_full.yaml").by_output
    first = jobs["results/micro_full/qwen2/s20/policy/sso_v1/it1"]
    assert "--tune" in first.params["options"] and "rate_from" not in first.inputs
    for path in ("s20/policy/sso_v1/it2", "s23/policy/sso_v1/it1", "s23/policy/sso_v1/it3"):
        later = jobs[f"results/micro_full/qwen2/{path}"]
        assert later.inputs["rate_from"] == first.output
        assert "--tune" not in later.params["options"] and "tune" not in later.inputs
    assert jobs["results/micro_full/llama/s24/policy/pbaa"].inputs["rate_from"].endswith("llama/s20/policy/pbaa")


def test_a_policy_is_judged_against_the_answers_of_its_own_starting_model():
    jobs = build("micro_full.yaml").by_output
    for run in ("sso", "pbaa_v1/it3"):
        job = jobs[f"results/micro_full/llama/s22/eval/{run}/judged"]
        assert job.inputs["against"] == "results/micro_full/llama/s22/eval/base/answers" in jobs
        assert job.params["options"][-2:] == ["--against", job.inputs["against"]]
    assert "against" not in jobs["results/micro_full/llama/s22/eval/base/judged"].inputs
    # One sample on both sides has the same random numbers: nothing to compare.
    assert not any("against" in job.inputs for job in build("micro_uniform.yaml"))


def test_each_iteration_samples_with_the_policy_before_it():
    jobs, cell = build("micro.yaml").by_output, "results/micro/qwen2/s0"
    assert jobs[f"{cell}/policy/sso_v1/it1"].inputs["data"] == f"{cell}/triples/v1/triples.jsonl"
    second = jobs[f"{cell}/triples/sso_v1/it2/triples.jsonl"]
    assert second.params["model"] == second.inputs["model"] == f"{cell}/policy/sso_v1/it1"
    assert second.inputs["principles"].endswith("principles/v1_2.jsonl")
    assert jobs[second.inputs["principles"]].inputs["queries"] == "results/micro/data/queries2.jsonl"
    assert jobs[f"{cell}/policy/sso_v1/it2"].params["model"] == f"{cell}/policy/sso_v1/it1"


def test_only_v1_leaves_out_triples_with_equal_responses():
    jobs = [job for job in build("micro.yaml") if job.rule in ("sample", "generated_pairs")]
    given = {job.output: "--distinct" in job.params.get("options", []) for job in jobs}
    assert any(given.values()) and not all(given.values())
    assert given == {path: "v1" in path for path in given}


def test_v1_has_its_own_wrapper_and_each_policy_names_its_own_features():
    grid = build("paper_v1.yaml")
    cell = "results/paper_v1/qwen2_instruct/s0"
    drawn = {job.output: job for job in grid if job.rule == "sample"}
    assert {job.params["wrapper"] for job in drawn.values()} == {"paper_v1"}
    assert {job.params["wrapper"] for job in build("paper_v2.yaml") if job.rule == "sample"} == {"paper"}
    for arm in ("sso", "pbaa"):
        first = grid.by_output[grid.by_output[f"{cell}/policy/{arm}/it1"].inputs["data"]]
        assert first.inputs["principles"] == f"{cell}/principles/v1_1.jsonl"
        for t in (2, 3):
            sample = drawn[f"{cell}/triples/{arm}/it{t}/triples.jsonl"]
            principles = grid.by_output[sample.inputs["principles"]]
            before = f"{cell}/policy/{arm}/it{t - 1}"
            assert principles.output == f"{cell}/principles/{arm}/it{t}.jsonl"
            assert principles.inputs["model"] == sample.inputs["model"] == before
            assert principles.params["options"] == ["--model", before]
            assert principles.inputs["queries"].endswith(f"queries{t}.jsonl")
    # Another writer writes the same for every policy.
    other = build("paper_v1.yaml", principles={"kind": "checkpoint", "path": "org/name"})
    sample = other.by_output[f"{cell}/triples/sso/it2/triples.jsonl"]
    assert sample.inputs["principles"] == "results/paper_v1/principles/v1_2.jsonl"


def test_an_arms_wrapper_is_its_writers():
    weak = {"kind": "checkpoint", "path": "org/weak", "wrapper": "micro"}
    jobs = build("paper_v2.yaml", writers={"weak": weak}).by_output
    assert jobs["results/paper_v2/llama3_sft/s0/triples/v2_weak/triples.jsonl"].params["wrapper"] == "micro"
    assert jobs["results/paper_v2/llama3_sft/s0/pairs/sso_weak/pairs.jsonl"].params["wrapper"] == "micro"
    assert jobs["results/paper_v2/llama3_sft/s0/pairs/sso/pairs.jsonl"].params["wrapper"] == "paper"


def test_long_chains_start_first():
    grid = build("micro.yaml")

    def priority(rule, **wildcards):
        return Rules(grid.experiment).priority(rule)({"backbone": "qwen2", "seed": 0, **wildcards})

    assert priority("policy", run="sso_v1/it1") > priority("policy", run="sso")
    assert priority("sft") > priority("sample", set="v1") > priority("answer", run="base")


def test_order_of_jobs_is_the_same_each_time():
    assert list(build("micro.yaml")) == list(build("micro.yaml"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What `check` looks at in a checkpoint; nothing loads it."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def test_a_checkpoint_writes_its_own_principles(checkpoint: Path, tmp_path: Path):
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"prompt": "Hello"}\n')
    experiment = experiments.load([CONFIG / "local_model.yaml"], {"model": str(checkpoint), "queries": str(queries)})
    check(experiment)
    grid = Grid(experiment)
    assert "sft" not in count(grid)
    principles = grid.by_output["results/local_model/local/s0/principles/v2_1.jsonl"]
    assert principles.params["options"] == ["--model", str(checkpoint)]
    assert grid.by_output[grid.data_folder].inputs["queries"] == [str(queries)]


def test_gsm8k_of_a_local_model_is_the_file_given(checkpoint: Path, tmp_path: Path, capsys):
    def tasks(**more) -> list:
        given = {"model": str(checkpoint), "queries": "q.jsonl", **more}
        made = experiments.load([CONFIG / "local_model.yaml"], given)
        return [(task.name, task.file, task.limit) for task in made.evaluation.tasks]

    assert tasks() == []
    assert tasks(gsm8k="test.jsonl") == [("real_gsm8k", "test.jsonl", 8)]
    named = {"tasks": [{"name": "real_ifeval"}, {"name": "real_gsm8k", "limit": 2}]}
    assert tasks(evaluation=named) == [("real_ifeval", None, None), ("real_gsm8k", None, 2)]  # from the hub
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"arms": {"a b": {"label": "x", "data": "none"}}}, "names a folder"),
        ({"rewards": {"sso": {"arm": "base"}}}, "makes no pairs"),
        ({"arms": {"sso": {"policy": {"objective": "sso_v2"}}}}, r"sso_v2 scores .* in x\+, which pairs do not have"),
        ({"arms": {"sso": {"generator": {"max_length": 128}}}}, "share their reference scores"),
        ({"evaluation": {"tasks": [{"name": "real_gsm8k", "file": "nowhere.jsonl"}]}}, "no such file"),
        ({"evaluation": {"mirrors": {"mmlu": {"test": "nowhere.jsonl"}}}}, "mirrors.mmlu: nowhere.jsonl: no such file"),
        (
            {"evaluation": {"tasks": [{"name": "gsm8k"}]}},
            "unknown task 'gsm8k'; for lm-eval's own say `kind: lm_eval`; did you mean `real_gsm8k`",
        ),
        ({"backbones": {"llama": {"architecture": None, "path": "/nowhere/at/all"}}}, "no such folder"),
    ],
)
def test_check_says_in_one_sentence_what_is_wrong(given, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        check(experiments.load([CONFIG / "micro.yaml"], given))
    assert "\n" not in str(error.value)


def test_schema_file_is_that_of_the_settings():
    file = REPOSITORY / "workflow" / "schemas" / "config.schema.json"
    assert json.loads(file.read_text()) == schema(), "run: sso schema > workflow/schemas/config.schema.json"


@pytest.mark.parametrize("file", sorted([*CONFIG.glob("micro*.yaml"), CONFIG / "smoke.yaml"]), ids=lambda f: f.stem)
def test_configs_of_the_micro_world_fit_the_schema(file: Path):
    import jsonschema

    jsonschema.validate(load(file).model_dump(mode="json"), schema())


# Snakemake.


@pytest.mark.parametrize("name", ["smoke.yaml", "micro.yaml"])
def test_dry_run_plans_every_job_of_the_grid(name: str, tmp_path: Path):
    result = snakemake("-n", "--quiet", "host", "--configfile", str(CONFIG / name), cwd=tmp_path)
    grid = build(name)
    assert planned(result) == {*(path for path in grid.by_output if path != grid.data_folder), grid.data_files["sft"]}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config", "experimnt=x"], "unknown key `experimnt`; did you mean `experiment`?"),
        (["--config", "arms={ssso: {policy: {beta: 0.2}}}"], "unknown arm 'ssso'"),
        (["--config", "rewards={sso: {arm: nope}}"], "unknown arm 'nope'"),
        (["--config", "seeds=[0]", "seeds=[1]"], "--config: `seeds` stands twice; leave one out."),
        (["--config", "model=a/b"], "--config model=...: only for configs with a backbone `local`"),
        (["--config", "arms={sso: {policy: {objective: nope}}}"], "unknown objective 'nope'"),
        (["--configfile", str(CONFIG / "local_model.yaml"), "--config", "queries=none.jsonl", "model=a/b"], "no such"),
        (
            ["--configfile", str(CONFIG / "local_model.yaml"), "--config", "queries=bad.jsonl", "model=a/b"],
            "bad.jsonl:2",
        ),
        (["--configfile", str(CONFIG / "local_model.yaml"), "--config", "queries=no.jsonl", "model=a/b"], "`prompt`"),
        (
            ["--configfile", str(CONFIG / "local_model.yaml"), "--config", "queries=q.jsonl", "model=ck"],
            "chat template",
        ),
    ],
)
def test_bad_input_is_told_in_one_sentence_before_any_work(arguments, sentence, tmp_path: Path, checkpoint: Path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n{"prompt":\n')
    (tmp_path / "no.jsonl").write_text('{"promt": "x"}\n')
    (tmp_path / "q.jsonl").write_text('{"prompt": "x"}\n')
    (checkpoint / "chat_template.jinja").unlink()
    checkpoint.rename(tmp_path / "ck")
    result = snakemake("--cores", "1", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    told = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and sentence in told[0]
    assert "Traceback" not in result.stderr and not (tmp_path / "results").exists()


# A run with stand-ins: what runs, in which order and when again, is Snakemake's business and ours, not the models'.

STAND_IN = """#!/bin/bash
# Makes what it is asked for: a file where the name has a suffix, else a folder.
set -eu
echo "$(basename "$0") $*" >> "$STAND_IN_CALLS"
command=$1
while [ $# -gt 0 ]; do
  case "$1" in
    --out)
      mkdir -p "$(dirname "$2")"
      if [ "$command" = data ]; then mkdir -p "$2"; for name in $STAND_IN_DATA; do echo x > "$2/$name"; done
      elif [[ "$(basename "$2")" == *.* ]]; then echo x > "$2"
      else mkdir -p "$2"; echo x > "$2/file"; fi
      shift;;
  esac
  shift
done
if [ "${STAND_IN_S:-}" ]; then sleep "$STAND_IN_S"; echo "done $command" >> "$STAND_IN_CALLS"; fi
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory):
    """A finished smoke run by stand-ins, and a function that calls Snakemake there."""
    root = tmp_path_factory.mktemp("stage")
    venv.create(root / "env", with_pip=False)
    packages = root / "env" / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (packages / "outer.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n{REPOSITORY}\n")
    for name in ("sso", "sso-eval", "sso-rewardbench"):
        (root / "env" / "bin" / name).write_text(STAND_IN)
        (root / "env" / "bin" / name).chmod(0o755)
    os.environ["STAND_IN_CALLS"] = str(root / "calls")
    os.environ["STAND_IN_DATA"] = " ".join(Path(file).name for file in build("smoke.yaml").data_files.values())

    def call(*arguments: str) -> subprocess.CompletedProcess:
        smoke = ["--configfile", str(CONFIG / "smoke.yaml")]
        return snakemake(*smoke, *arguments, cwd=root, python=str(root / "env" / "bin" / "python"))

    # Also the promise that --use-conda runs where there is no conda.
    result = call("--cores", "4", "--use-conda")
    assert result.returncode == 0, result.stderr
    if shutil.which("conda") is None:
        assert result.stderr.count("warning: --use-conda") == 1
    return root, call


def test_after_a_run_there_is_nothing_to_do(stage):
    _, call = stage
    assert planned(call("-n", "--quiet", "host")) == set()


def test_every_job_ran_once(stage):
    root, _ = stage
    calls = (root / "calls").read_text().splitlines()
    # The config is written without a command, and pairs take two: they are made, then scored.
    jobs = count(build("smoke.yaml"))
    assert len(calls) == sum(jobs.values()) - jobs["config"] + jobs["pairs"] + jobs["generated_pairs"]
    for job in build("smoke.yaml"):
        assert (root / job.output).exists()


def test_two_jobs_ask_an_endpoint_at_once(stage, tmp_path, monkeypatch):
    root, _ = stage
    shutil.copytree(root / "results", tmp_path / "results")
    shutil.copytree(root / ".snakemake", tmp_path / ".snakemake")
    monkeypatch.setenv("STAND_IN_CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("STAND_IN_S", "0.5")
    judge = 'evaluation={judge: {kind: openai, model: m, base_url: "http://127.0.0.1:1/v1"}}'
    given = ["--configfile", str(CONFIG / "smoke.yaml"), "--config", judge, "--cores", "4"]
    most = []
    for limit in (["gpu=1"], ["judges=1"]):  # a limit of other resources leaves this one as it is
        rules = ["judge", "data_quality"]
        more = ["--until", *rules, "--forcerun", *rules, "--resources", *limit]
        result = snakemake(*given, *more, cwd=tmp_path, python=str(root / "env" / "bin" / "python"))
        assert result.returncode == 0, result.stderr
        running, at_once = 0, []
        for line in (tmp_path / "calls").read_text().splitlines():
            asks = line.split()[1] in ("judge", "data-quality")
            running += asks * (-1 if line.startswith("done") else 1)
            at_once.append(running)
        jobs = count(build("smoke.yaml"))
        assert len(at_once) == 2 * sum(jobs[rule] for rule in rules) > 8 and running == 0
        most.append(max(at_once))
        (tmp_path / "calls").unlink()
    assert most == [2, 1]


def test_beta_of_one_arm_reruns_its_training_and_what_follows(stage):
    _, call = stage
    plan = planned(call("-n", "--quiet", "host", "--config", "arms={sso: {policy: {beta: 0.2}}}"))
    cell = "results/smoke/qwen2/s0"
    follows = {
        f"{cell}/eval/sso/answers",
        f"{cell}/eval/sso/judged",
        "results/smoke/report",
        "results/smoke/mlflow.done",
    }
    assert plan == {"results/smoke/config.json", f"{cell}/policy/sso", *follows}


def test_beta_of_one_generator_reruns_its_pairs_too(stage):
    _, call = stage
    plan = planned(call("-n", "--quiet", "host", "--config", "arms={sso: {generator: {beta: 0.2}}}"))
    made = [path.removeprefix("results/smoke/qwen2/s0/") for path in plan]
    again = {"generator/sso", "pairs/sso/pairs.jsonl", "policy/sso", "eval/sso/answers", "reward/sso/model"}
    assert again <= set(made)
    assert not [path for path in made if "pbaa" in path or "annotated" in path or "triples" in path or "sft" in path]


def test_data_of_other_settings_are_made_again_though_a_file_of_theirs_is_missing_that_nobody_reads(stage):
    """As after an update of the suite that brought a new file: Snakemake would keep the old ones."""
    root, call = stage
    grid = build("smoke.yaml")
    unread = {*grid.data_files.values()} - {path for job in grid for path in job.reads()}
    file = root / sorted(unread)[0]
    kept = file.read_bytes()
    file.unlink()
    try:
        plan = planned(call("-n", "--quiet", "host", "--config", "world={seed: 3}"))
    finally:
        file.write_bytes(kept)
    assert any(path.startswith("results/smoke/data/") for path in plan) and "results/smoke/qwen2/s0/sft" in plan


def test_touching_the_report_reruns_only_the_report(stage):
    _, call = stage
    plan = planned(call("-n", "--quiet", "host", "--forcerun", "report"))
    assert plan == {"results/smoke/report", "results/smoke/mlflow.done"}


@pytest.mark.parametrize("given", [[], ["--logger", "sso"], ["--resources", "gpu=1"]])
def test_a_run_says_what_it_does_by_the_plugin_and_without_it(stage, given):
    _, call = stage
    result = call("--forcerun", "report", "--cores", "1", *given)
    said = result.stderr.splitlines()
    assert result.returncode == 0 and any(
        re.fullmatch(r"2 jobs, about .* \(an estimate, by .*\)\.", line) for line in said
    )
    lines = [line for line in said if line.startswith("[")]
    assert len(lines) == 2 and re.fullmatch(r"\[1/2\] report, \d+ s, about \d+ s left", lines[0]), result.stderr
    assert re.fullmatch(r"\[2/2\] mlflow, \d+ s", lines[1])
    assert (
        "Select jobs" not in result.stderr and "Finished jobid" not in result.stderr and "steps (" not in result.stderr
    )


@pytest.mark.parametrize("given", [["--quiet"], ["--quiet", "all"], ["--verbose"], ["--workflow-profile", "none"]])
def test_who_asks_for_snakemakes_own_words_or_none_gets_them(stage, given):
    _, call = stage
    result = call("--forcerun", "report", "--cores", "1", "--scheduler", "greedy", *given)
    assert result.returncode == 0, result.stderr
    quiet = given[0] == "--quiet"
    assert ("an estimate" in result.stderr) != quiet
    assert ("steps (100%) done" in result.stderr) == (given == ["--verbose"])
    assert ("[2/2] mlflow" in result.stderr) == (given[0] == "--workflow-profile")
    assert ("rule mlflow:" in result.stderr) == (given[0] == "--workflow-profile")


def test_an_extra_arm_leaves_the_others_alone(stage):
    _, call = stage
    contrast = "{context: x-, winner: yo, loser: y-}"
    generator = "{use: generator, objective: original_over_bad}"
    arm = f"{{label: again, data: good_bad, generator: {generator}, policy: {{use: policy}}}}"
    own = f"objectives={{original_over_bad: [{contrast}]}}"
    plan = planned(call("-n", "--quiet", "host", "--config", f"arms={{extra: {arm}}}", own))
    shared = {"results/smoke/config.json", "results/smoke/report", "results/smoke/mlflow.done"}
    assert plan >= shared and all("/extra" in path for path in plan - shared)


def test_a_reward_model_reads_what_its_sources_are(tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text("{}\n")
    sources = [{"arm": "sso", "weight": 1}, {"arm": "sso_v1", "weight": 3}, {"world": True, "weight": 1}]
    sources.append({"path": str(own), "weight": 1})
    reward = {"label": "mixed", "sources": sources, "base": "org/base", "backbones": ["llama"]}
    grid = build("micro.yaml", rewards={"mixed": reward})
    jobs = {job.rule: job for job in grid if job.wildcards.get("reward") == "mixed"}
    cell = "results/micro/llama/s0"
    drawn = [f"{cell}/triples/{part}/triples.jsonl" for part in ("v1", "sso_v1/it2", "sso_v1/it3")]
    expected = [f"{cell}/pairs/sso/pairs.jsonl", *drawn, "results/micro/data/annotated.jsonl", str(own)]
    settings = json.loads(jobs["mix"].params["settings"])
    assert [source["path"] for source in settings["sources"]] == expected
    assert [source["weight"] for source in settings["sources"]] == [1, 1, 1, 1, 1, 1]
    assert jobs["mix"].inputs["data"] == ["results/micro/data/rewardbench.jsonl", *expected]
    assert jobs["reward_model"].params["model"] == "org/base" and "model" not in jobs["reward_model"].inputs
    assert len([j for j in grid if j.wildcards.get("reward") == "mixed"]) == 3


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({"sources": [{"path": "no/such/file.jsonl"}]}, "no such file"),
        ({"sources": [{"path": "a", "arm": "sso"}]}, "a source is one of"),
        ({"sources": [{"arm": "sso", "weight": 1}, {"arm": "pbaa"}]}, "all have a `weight`, or none"),
        ({"sources": [{"arm": "sso", "weight": 1, "limit": 5}]}, "a `limit` or a `weight`"),
        ({"arm": "sso", "sources": [{"arm": "sso"}]}, "`arm` or `sources`, not both"),
        ({}, "give `arm` or `sources`"),
        ({"arm": "sso", "backbones": ["none"]}, "unknown backbone 'none'"),
    ],
)
def test_bad_rewards_are_named(reward, message):
    with pytest.raises(InputError, match=message):
        check(experiments.load([CONFIG / "micro.yaml"], {"rewards": {"new": {"label": "new", **reward}}}))


# A job that fails.


@pytest.mark.parametrize("profile", ["default", "gpu"])
def test_a_failing_job_says_its_own_sentence_last(profile, checkpoint, tmp_path):
    (tmp_path / "one.jsonl").write_text('{"id": "a", "prompt": "Hello"}\n')
    arms = "{base: {label: base, data: none}, a: {label: a, version: v1, data: triples, iterations: 3, policy: {}}}"
    given = f"--config model={checkpoint} queries={tmp_path / 'one.jsonl'} arms={arms!r}"
    options = ["--workflow-profile", str(REPOSITORY / "workflow" / "profiles" / profile), "--cores", "1"]
    local = ["--configfile", str(CONFIG / "local_model.yaml")]
    result = snakemake(*options, *local, *shlex.split(given), cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    log = "results/local_model/logs/data.log"
    said = f"{tmp_path / 'one.jsonl'}: 1 queries are too few for 3 iterations; give more."
    assert f"failed: data: error: {said} [{log}]" in result.stderr.splitlines(), result.stderr
    assert "done:" not in result.stdout + result.stderr


def test_part_of_a_run_does_not_say_done(tmp_path):
    page = tmp_path / "results/smoke/report/report.html"
    page.parent.mkdir(parents=True)
    page.write_text("of an earlier run")
    result = snakemake("--configfile", str(CONFIG / "smoke.yaml"), "--", "results/smoke/config.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "done:" not in result.stdout + result.stderr and "The page will be" not in result.stderr
    assert "Each job's messages are under results/smoke/logs/." in result.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\nerror: x: no such file; give one.\nb\n", "error: x: no such file; give one."),
        ("Traceback (most recent call last):\n  File\nValueError: no\n", "ValueError: no"),
        ("train: 3/10\n\n", "train: 3/10"),
        ("", "the log is empty; it was ended from outside"),
    ],
)
def test_last_words_of_a_log(text, words, tmp_path):
    from workflow.failures import last_words

    (tmp_path / "log").write_text(text)
    assert last_words(tmp_path / "log") == words
