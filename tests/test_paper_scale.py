"""The configs of the paper's size: jobs a table, costs, GPU claims, several machines, and a run on tiny stand-ins."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from rewardbench.score import read_weights
from sso.cli import main
from sso.config import Hardware, load, parse
from sso.errors import InputError
from sso.sampling.settings import Decoding
from sso.settings import read_yaml
from sso.train.settings import Training
from sso.worlds.settings import MicroWorld
from tests.conftest import REPOSITORY
from tests.openai_server import serving
from tests.test_workflow import count, snakemake
from workflow.arithmetic import OVERHEAD_H, Arithmetic
from workflow.doctor import problems
from workflow.experiment import Grid
from workflow.hub_names import benchmark_sets, hub_names, repositories
from workflow.machine import this_machine
from workflow.plan import proposals, show, totals, warnings
from workflow.rules import ASKING, Rules
from workflow.shapes import Shape

CONFIG = REPOSITORY / "config"


def paper(version: str) -> Grid:
    return Grid(load(CONFIG / f"paper_{version}.yaml"))


def judged(grid: Grid, arms: set[str], backbones: set[str]) -> int:
    """Judge jobs of a table: its arms (all their iterations) on its backbones."""
    return sum(
        job.rule == "judge" and job.wildcards["run"].split("/")[0] in arms and job.wildcards["backbone"] in backbones
        for job in grid
    )


SFT, INSTRUCT = {"llama3_sft", "qwen2_sft"}, {"llama3_instruct", "qwen2_instruct"}
LLAMA31, V1_INSTRUCT = {"llama31_sft", "llama31_instruct"}, {"llama31_instruct", "qwen2_instruct"}


@pytest.mark.parametrize(
    ("version", "table", "arms", "backbones", "expected"),
    [
        ("v2", "1", {"base", "ultrafeedback", "pbaa", "sso"}, SFT | INSTRUCT, 4 * 4),
        ("v2", "3", {"base", "pbaa", "l_plus", "l_minus", "sso"}, {"llama3_sft", "llama3_instruct"}, 5 * 2),
        ("v2", "4", {"base", "l_minus_naive", "sso"}, SFT, 3 * 2),
        ("v2", "5", {"base", "pbaa", "sso", "pbaa_weak", "sso_weak"}, SFT, 5 * 2),
        ("v2", "6", {"base", "ultrafeedback_ipo", "pbaa_ipo", "sso_ipo"}, SFT | INSTRUCT, 4 * 4),
        ("v1", "1", {"base", "ultrafeedback", "pbaa", "sso"}, {"llama31_sft", "qwen2_sft"}, (1 + 3 * 3) * 2),
        ("v1", "2", {"base", "ultrafeedback", "pbaa", "sso"}, V1_INSTRUCT, (1 + 3 * 3) * 2),
        ("v1", "3", {"base", "ultrafeedback_offline", "sso_offline"}, LLAMA31, 3 * 2),
        ("v1", "5", {"base", "sso", "sso_without_w", "sso_without_g", "pbaa"}, {"qwen2_instruct"}, 1 + 4 * 3),
        ("v1", "7", {"base", "sso"}, {"infinity"}, 1 + 3),
        ("v1", "8", {"base", "pbaa_dpo", "sso_dpo"}, V1_INSTRUCT, (1 + 2 * 3) * 2),
        ("v1", "12", {"sso", "sso_without_w", "sso_without_g", "pbaa"}, V1_INSTRUCT, 4 * 3 * 2),
        ("v1", "llama3_full", {"base", "ultrafeedback", "pbaa", "sso"}, {"llama3_sft", "llama3_instruct"}, 10 * 2),
    ],
)
def test_each_table_has_its_jobs(version, table, arms, backbones, expected):
    assert judged(paper(version), arms, backbones) == expected


@pytest.mark.parametrize(
    ("version", "backbone", "expected"), [("v2", "llama3_instruct", 7), ("v1", "llama31_instruct", 3)]
)
def test_reward_models_have_their_jobs_on_one_backbone(version, backbone, expected):
    grid = paper(version)
    jobs = [job for job in grid if job.rule in ("mix", "reward_model", "rewardbench")]
    assert {job.wildcards["backbone"] for job in jobs} == {backbone} and len(jobs) == 3 * expected
    mixed = next(j for j in jobs if j.rule == "mix" and j.wildcards["reward"] == "skywork_sso")
    sources = json.loads(mixed.params["settings"])["sources"]
    assert sources[0]["path"] == "Skywork/Skywork-Reward-Preference-80K-v0.2" and sources[0]["limit"] == 80_000
    # v1's SSO has pairs in the triples of three iterations.
    assert sum(source["limit"] for source in sources[1:]) == 60_000 and len(sources) == {"v2": 2, "v1": 4}[version]
    names = repositories(hub_names(grid.experiment))
    assert names["Skywork/Skywork-Reward-Preference-80K-v0.2"][0] == names["allenai/reward-bench"][0] == "dataset"


@pytest.mark.parametrize(("version", "expected"), [("v2", 7), ("v1", 3)])
def test_reward_tables_have_their_models(version, expected):
    assert count(paper(version))["reward_model"] == count(paper(version))["rewardbench"] == expected


def test_generators_train_on_8k_queries_and_policies_on_60k():
    grid = paper("v2")
    drawn = grid.by_output["results/paper_v2/llama3_sft/s0/triples/v2/triples.jsonl"]
    assert drawn.params["options"] == ["--limit", "8000"]
    pbaa = grid.by_output["results/paper_v2/llama3_sft/s0/pairs/pbaa/pairs.jsonl"]
    assert pbaa.rule == "generated_pairs" and pbaa.params["generator"] == "BAAI/Infinity-Instruct-3M-0625-Llama3-8B"
    sso = grid.by_output["results/paper_v2/llama3_sft/s0/pairs/sso/pairs.jsonl"]
    assert sso.params["generator"] == "results/paper_v2/llama3_sft/s0/generator/sso"
    weak = grid.by_output["results/paper_v2/llama3_sft/s0/generator/sso_weak"]
    assert weak.inputs["data"].endswith("triples/v2_weak/triples.jsonl")


def test_v1_iterations_of_ultrafeedback_read_a_third_each():
    grid = paper("v1")
    second = grid.by_output["results/paper_v1/llama31_sft/s0/policy/ultrafeedback/it2"]
    assert second.inputs["data"] == "results/paper_v1/data/preferences2of3.jsonl"
    assert second.inputs["model"].endswith("policy/ultrafeedback/it1")
    offline = grid.by_output["results/paper_v1/llama31_sft/s0/policy/sso_offline"]
    principles = grid.by_output[grid.by_output[offline.inputs["data"]].inputs["principles"]]
    assert principles.inputs["queries"] == "results/paper_v1/data/queries_all.jsonl"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_paper_configs_dry_run_to_the_end(version, tmp_path):
    config = CONFIG / f"paper_{version}.yaml"
    done = snakemake("-n", "--cores", "8", "--quiet", "rules", "--configfile", str(config), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    jobs = sum(count(paper(version)).values())
    assert f"total {jobs + 1}" in " ".join(said.split())


def test_every_assumed_value_is_a_key_of_the_config():
    values = read_yaml(CONFIG / "paper_v2.yaml")
    with pytest.raises(InputError, match=r"assumed\.trainings\.none: this config has no such key"):
        parse({**values, "assumed": {"trainings.none": "?"}}, "c")


def test_what_vllm_draws_runs_in_its_own_environment():
    ask = Rules(paper("v2").experiment)
    at = {"backbone": "llama3_sft", "seed": 0, "arm": "sso", "set": "v2", "run": "sso", "guidelines": "v2_1"}
    keys = {"principles": ["guidelines"], "sample": ["set"], "generated_pairs": ["arm"], "answer": ["run"]}
    for rule, names in keys.items():
        cell = [] if rule == "principles" else ["backbone", "seed"]
        wildcards = {name: at[name] for name in [*cell, *names]}
        assert ask.engine_environment(rule)(wildcards).endswith("workflow/envs/vllm.yaml")
        module = "eval" if rule == "answer" else "sso.cli"
        assert ask.command(rule, module)(wildcards).endswith(f" python -m {module}")


# Costs.


def test_training_memory_and_hours_by_hand():
    work = Arithmetic(Hardware(tflops=1000, training_mfu=0.5))
    size = Shape(8e9, 32, 4096, 1024, 128_000)
    training = Training(engine="zero3", devices=8, gradient_checkpointing=True)
    cost = work.fit(size, training, 1e9, 4096)
    assert cost.gpu_hours == pytest.approx(8 * (cost.hours + OVERHEAD_H))
    assert cost.hours == pytest.approx(8 * 8e9 * 1e9 / (8 * 1e15 * 0.5) / 3600)
    # 16 bytes a parameter over 8 devices; of a micro-batch a layer's input of all layers, and all of one, whose MLP is
    # four times as wide; a tile's logits in bfloat16 and float32; 4 GB of everything else.
    layer = 26 * 4096 + 8 * 1024 + 8 * 4 * 4096
    states, active = 16 * 8 / 8, (4096 * (2 * 4096 * 32 + layer) + (2 + 4) * 2**28) / 1e9
    assert cost.memory_gb == pytest.approx(states + active + 4)
    assert work.fit(size, training.model_copy(update={"engine": "ddp"}), 1e9, 4096).memory_gb > 128


def test_checkpoints_for_resuming_stand_on_the_disk_once():
    work, size = Arithmetic(Hardware()), Shape(8e9, 32, 4096, 1024, 128_000)

    def kept(engine="zero3", **given) -> float:
        return work.fit(size, Training(engine=engine, devices=8, **given), 1e9, 4096).resuming_gb

    # Two, and the one that is being written: masters and two moments of 4 bytes, weights of 2.
    assert kept(save_steps=25) == pytest.approx(3 * (4 + 4 + 4 + 2) * 8) and kept() == 0
    assert kept("zero2", save_steps=25, lora={"rank": 16}) == pytest.approx(3 * 14 * size.adapted(16) / 1e9)
    values = read_yaml(CONFIG / "paper_v2.yaml")
    never = {name: {**training, "save_steps": 0} for name, training in values["trainings"].items()}
    rewards = {name: {**reward, "save_steps": 0} for name, reward in values["rewards"].items()}
    without = Grid(parse({**values, "trainings": never, "rewards": rewards}, "c"))
    more = totals(paper("v2"))["disk_gb"] - totals(without)["disk_gb"]
    assert more == pytest.approx(3 * 14 * 8.03, rel=0.01)  # of the largest, Llama 3
    small = {**values, "hardware": {**values["hardware"], "disk_gb": totals(without)["disk_gb"] + 1}}
    assert [line for line in warnings(Grid(parse(small, "c"))) if line.startswith("disk: ")]


def test_plan_proposes_to_keep_activations_where_they_fit():
    values = read_yaml(CONFIG / "paper_v2.yaml")
    # A policy's sample has at most twice 2,048 tokens, a generator's four times, a reward model's pair twice 4,096.
    (line,) = proposals(Grid(parse(values, "c")))
    assert line.startswith("policy: `gradient_checkpointing: false` with `tokens_per_batch: 4096` takes about")
    large = {**values, "hardware": {**values["hardware"], "memory_gb": 140}}
    rules = [line.partition(":")[0] for line in proposals(Grid(parse(large, "c")))]
    assert sorted(rules) == ["generator", "policy", "reward_model"]
    small = {**values, "hardware": {**values["hardware"], "memory_gb": 48}}
    assert not list(proposals(Grid(parse(small, "c")))) and not list(proposals(Grid(load("config/micro.yaml"))))


def test_decoding_reads_the_weights_once_a_step():
    work = Arithmetic(Hardware(bandwidth_gbs=1000, decoding_mbu=0.5, sequences=1))
    size = Shape(8e9, 32, 4096, 0, 128_000)
    cost = work.decode(size, Decoding(engine="vllm"), 10, 0, 100)
    assert cost.hours == pytest.approx(10 * 100 * 16e9 / 0.5e12 / 3600)


def test_plan_warns_of_what_cannot_fit():
    values = read_yaml(CONFIG / "paper_v2.yaml")
    whole = Grid(parse(values, "c"))
    assert list(warnings(whole)) == []
    principles = {**values["principles"], "tensor_parallel": 1, "devices": 8}
    assert any(
        line.startswith("principles: about")
        for line in warnings(Grid(parse({**values, "principles": principles}, "c")))
    )
    few = {**values, "hardware": {**values["hardware"], "gpus": 4}}
    assert any("wants 8 GPUs of 4" in line for line in warnings(Grid(parse(few, "c"))))


def test_a_config_that_names_no_hardware_is_planned_for_a_core_of_this_machine(capsys):
    assert main(["plan", "--configfile", "config/micro.yaml"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "CPU-minutes, at least" in said and "GPU" not in said and "H100" not in said
    minutes = float(re.search(r"at least ([\d,]+) CPU-minutes", said)[1].replace(",", ""))
    assert 0 < minutes < 500
    # Lengths are the micro-world's there, and a checkpoint's prompts are as long as the paper's.
    assert this_machine(MicroWorld()).prompt_tokens < this_machine(None).prompt_tokens
    assert not [*warnings(Grid(load("config/micro.yaml")))]


def test_fewer_arms_cost_less():
    values = read_yaml(CONFIG / "paper_v2.yaml")
    arms = {name: values["arms"][name] for name in ("base", "pbaa", "sso")}
    some = totals(Grid(parse({**values, "arms": arms, "rewards": {}, "assumed": {}}, "c")))
    assert 0 < some["gpu_hours"] < totals(paper("v2"))["gpu_hours"]


def test_requests_of_a_served_writer_are_a_whole_number(capsys):
    values = read_yaml(CONFIG / "paper_v2.yaml")
    writer = {"kind": "endpoint", "endpoint": {"model": "m"}}
    served = Grid(parse({**values, "principles": writer, "assumed": {}}, "c"))
    assert totals(served)["requests"] > totals(paper("v2"))["requests"]
    show(served)
    assert re.search(r" \d[\d,]* judge requests", " ".join(capsys.readouterr().out.split()))


def test_doctor_names_each_problem(monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("workflow.doctor.shutil.which", lambda name: None)  # on a cluster GPUs need not be here
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--configfile", str(CONFIG / "paper_v2.yaml")])
    said = capsys.readouterr().out
    assert ended.value.code == 1
    for part in ("hub: ", "key: OPENAI_API_KEY is not set", "GPUs: ", "map names under `local`"):
        assert part in said, said
    assert len(said.splitlines()) == len(set(said.splitlines()))


def test_doctor_asks_a_hub_that_does_not_answer_once(monkeypatch, capsys):
    asked = []

    def session():
        asked.append(1)
        raise ConnectionRefusedError

    def many_times(*_, **given):
        assert given.get("local_files_only"), "asked, and asked again after a pause"
        raise FileNotFoundError

    monkeypatch.setattr("huggingface_hub.get_session", session)
    monkeypatch.setattr("huggingface_hub.snapshot_download", many_times)
    monkeypatch.setattr("huggingface_hub.HfFileSystem.info", many_times)
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", many_times)
    with pytest.raises(SystemExit):
        main(["doctor", "--configfile", str(CONFIG / "paper_v2.yaml")])
    said = capsys.readouterr()
    assert "can't be reached (ConnectionRefusedError); check the network" in said.out and said.err == ""
    assert said.out.count("can't be reached either.") > 10 and len(asked) == 1


def test_doctor_asks_for_the_benchmarks_data_too(tmp_path, monkeypatch):
    from huggingface_hub.errors import GatedRepoError

    closed, asked = {"Idavidrein/gpqa", "meta-llama/Llama-3.1-8B"}, Counter()

    def info(self, name, *, repo_type, **_):
        asked[name, repo_type] += 1
        return SimpleNamespace(gated="auto" if name in closed else False)  # the hub tells it to everyone

    def auth_check(self, name, **_):
        assert name in closed
        raise GatedRepoError("no", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr("huggingface_hub.get_session", lambda: SimpleNamespace(head=lambda *_, **__: None))
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", info)
    monkeypatch.setattr("huggingface_hub.HfApi.auth_check", auth_check)
    monkeypatch.setattr("huggingface_hub.HfFileSystem.info", lambda *_: None)

    def told(version: str, **evaluation) -> list[str]:
        made = Grid(load(CONFIG / f"paper_{version}.yaml", {"evaluation": evaluation}))
        return [line for line in problems(made) if line.startswith("hub: ")]

    model, gpqa = told("v1")
    assert model.startswith("hub: model meta-llama/Llama-3.1-8B@") and "GatedRepoError; accept its terms" in model
    assert gpqa == (
        "hub: dataset Idavidrein/gpqa of real_gpqa: GatedRepoError; accept its terms and `hf auth login`, "
        "or give a copy as evaluation.mirrors.gpqa.test."
    )
    sets = {"Idavidrein/gpqa", "TIGER-Lab/MMLU-Pro", "EleutherAI/hendrycks_math", "openai/gsm8k"}
    assert {(name, "dataset") for name in sets} <= {*asked} and ("cais/mmlu", "dataset") not in asked
    (tmp_path / "gpqa.jsonl").write_text("{}\n")
    assert told("v1", mirrors={"gpqa": {"test": str(tmp_path / "gpqa.jsonl")}}) == [model]
    # So it is for an arm's own tasks, a variant that reads the same mirror, and any task of lm-eval's.
    asked.clear()
    closed.clear()
    assert told("v2", tasks=[{"name": "real_gpqa_cot"}, {"name": "arc_easy", "kind": "lm_eval"}]) == []
    assert ("Idavidrein/gpqa", "dataset") in asked and ("allenai/ai2_arc", "dataset") in asked
    over = {"evaluation": {"tasks": []}, "arms": {"base": {"evaluation": {"tasks": [{"name": "real_mmlu"}]}}}}
    assert [*benchmark_sets(load(CONFIG / "paper_v1.yaml", over))] == ["cais/mmlu"]


def test_doctor_finds_nothing_wrong_with_the_micro_world(capsys):
    assert main(["doctor", "--configfile", str(CONFIG / "micro.yaml")]) == 0
    assert "nothing is missing" in capsys.readouterr().out


def test_doctor_asks_each_endpoint_for_its_model(tmp_path, monkeypatch):
    def endpoints(url: str, writer: str) -> list[str]:
        values, where = read_yaml(CONFIG / "paper_v2.yaml"), {"base_url": url, "key_variable": "JUDGE_KEY"}
        judge = {**read_yaml(CONFIG / "paper.yaml")["evaluation"]["judge"], **where}
        evaluation = {**values["evaluation"], "judge": judge, "judges": {"mt_bench": {"model": "gpt-4"}}}
        served = {"kind": "endpoint", "endpoint": {"model": writer, **where}}
        made = parse({**values, "evaluation": evaluation, "principles": served, "assumed": {}}, "c")
        told = [*problems(Grid(made))]
        assert key not in " ".join(told)
        return [line for line in told if line.startswith(("endpoint: ", "key: "))]

    key = "sk-canary-8c1f4e7d"
    monkeypatch.setenv("JUDGE_KEY", key)
    with serving(tmp_path / "server", models=["gpt-4", "writer"], key=key) as server:
        (gone,) = endpoints(server.url, "writer")  # the judge of AlpacaEval 2, Arena-Hard and the pairs
        assert gone.startswith(f"endpoint: {server.url}: no model 'gpt-4-1106-preview' there (HTTP 404: ")
        told = endpoints(server.url, "none")
        assert gone in told and len(told) == 2 and "no model 'none' there" in " ".join(told)
        assert not [request for request in server.requests if "body" in request]  # nothing that costs
    monkeypatch.setenv("JUDGE_KEY", "sk-another-of-them")
    with serving(tmp_path / "refuses", models=["gpt-4"], key=key) as server:
        assert endpoints(server.url, "writer") == [
            f"endpoint: {server.url}: refuses the key in JUDGE_KEY (HTTP 401); set another."
        ]
    (dead,) = endpoints("http://127.0.0.1:1/v1", "writer")
    assert dead.startswith("endpoint: http://127.0.0.1:1/v1: no server answers there (ConnectError); start it")
    # Offline, which the tests are, nobody elsewhere is asked; nor without a key.
    assert endpoints("http://judge.invalid/v1", "writer") == []
    monkeypatch.delenv("JUDGE_KEY")
    assert len(told := endpoints("http://judge.invalid/v1", "writer")) == 3 and "JUDGE_KEY is not set" in told[0]


@pytest.mark.parametrize("name", ["gpu", "slurm"])
def test_a_profile_keeps_what_it_says_beside_the_default_one(name, tmp_path, monkeypatch):
    from snakemake import cli

    monkeypatch.chdir(REPOSITORY)  # where Snakemake finds profiles/default by itself
    said = yaml.safe_load((REPOSITORY / "workflow" / "profiles" / name / "config.yaml").read_text())
    for key in ("executor", "slurm-status-command"):  # of a plugin
        said.pop(key, None)
    if name == "slurm":
        said["default-resources"] |= {"slurm_account": "me", "slurm_partition": "large"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(said))
    _, got = cli.parse_args(["--profile", str(tmp_path)])
    for key, value in said["default-resources"].items():
        assert got.default_resources[key].raw == value, key
    for key in ("jobs", "retries", "latency-wait", "keep-going", "rerun-incomplete", "show-failed-logs", "scheduler"):
        assert key not in said or getattr(got, key.replace("-", "_")) == said[key], key


def test_a_retry_asks_for_more_time():
    grid = paper("v2")
    at, ask = grid.of("policy")[0].wildcards, Rules(grid.experiment).resources("policy")
    assert ask["runtime"](at, attempt=2) >= 2 * ask["runtime"](at, attempt=1) - 1 > 30
    assert ask["gpu"](at, attempt=2) == ask["gpu"](at)


def test_what_asks_an_endpoint_says_so():
    values = read_yaml(CONFIG / "paper_v2.yaml")
    writer = {"kind": "endpoint", "endpoint": {"model": "m"}}
    asking = Rules(parse({**values, "principles": writer, "assumed": {}}, "c"))
    for rules, expected in (
        (Rules(paper("v2").experiment), {"judge": {1}, "data_quality": {1}, "principles": {0}}),
        (Rules(load(CONFIG / "one_gpu.yaml")), {rule: {0} for rule in ASKING}),
    ):
        for rule in ASKING:
            ask = rules.resources(rule)["judges"]
            assert {ask(job.wildcards) for job in rules.grid.of(rule)} == expected[rule], rule
        assert rules.asks_endpoints == (expected["judge"] == {1})
    assert {asking.resources("principles")["judges"](job.wildcards) for job in asking.grid.of("principles")} == {0, 1}
    assert "judges" not in asking.resources("policy")


# GPUs of one machine.

HOLD = """
import sys, time
from sso.jobs.gpus import claim
print(",".join(claim(int(sys.argv[1]), 5)), flush=True)
time.sleep(60)
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setenv("SSO_GPU_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setenv("SSO_GPU_IDS", "0,1,2,3")
    monkeypatch.setenv("SSO_HAS_GPUS", "")  # what a claim sets goes with the test
    return tmp_path


def hold(number: int) -> tuple[subprocess.Popen, set[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(number)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    return process, set(filter(None, process.stdout.readline().strip().split(",")))


def test_jobs_get_disjoint_gpus_and_a_killed_one_frees_its_own(machine):
    from sso.jobs.gpus import claim

    (first, one), (second, two) = hold(2), hold(1)
    try:
        assert len(one) == 2 and len(two) == 1 and not one & two
        with pytest.raises(InputError, match="no 2 free GPUs"):
            claim(2, wait_s=0.2, poll_s=0.05)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert len(set(claim(2, wait_s=5)) - two) == 2
    finally:
        first.kill(), second.kill()


def test_more_gpus_than_there_are_is_a_sentence(machine):
    from sso.jobs.gpus import claim

    with pytest.raises(InputError, match="wants 5 GPUs, but 4 are here"):
        claim(5)


def test_a_child_that_lives_on_keeps_its_gpus(machine):
    from sso.jobs.gpus import claim

    code = (
        "import os, subprocess, sys; from sso.jobs.gpus import claim; claim(4, 1);"
        "print(subprocess.Popen(['sleep', '30'], close_fds=False, stdout=-3, stderr=-3).pid, flush=True)"
    )
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY).stdout)
    try:
        with pytest.raises(InputError, match="no 1 free"):
            claim(1, wait_s=0.2, poll_s=0.05)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_job_sees_its_gpus_alone_and_a_cluster_decides_for_itself(machine, monkeypatch):
    from sso.jobs.gpus import claim_for_job

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SSO_GPUS", "2")
    claim_for_job()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.setenv("SSO_GPUS", "2")
    claim_for_job()
    assert len(os.environ.pop("CUDA_VISIBLE_DEVICES").split(",")) == 2 and "SSO_GPUS" not in os.environ


@pytest.mark.parametrize("allocation", [None, "17"], ids=["shell", "salloc"])
def test_jobs_share_the_gpus_that_are_visible(allocation, tmp_path, monkeypatch):
    from sso.jobs.gpus import claim_for_job

    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("SSO_HAS_GPUS", "")
    for name in ("SSO_GPU_IDS", "SSO_GPU_LOCKS", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    if allocation:
        monkeypatch.setenv("SLURM_JOB_ID", allocation)
    seen = set()
    for _ in range(2):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
        monkeypatch.setenv("SSO_GPUS", "1")
        claim_for_job()
        seen.add(os.environ["CUDA_VISIBLE_DEVICES"])
    assert seen == {"4", "6"}
    if allocation:  # a job of its own, whose GPUs are numbered from 0 again, does not wait for the first's
        monkeypatch.setenv("SLURM_JOB_ID", "18")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
        monkeypatch.setenv("SSO_GPUS", "1")
        claim_for_job()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"


@pytest.mark.parametrize(
    ("files", "environment", "expected"),
    [
        ("nvidia0 nvidia1 nvidiactl nvidia-uvm", {}, {"0": "0", "1": "1"}),
        # A container's: CUDA counts from 0, the files keep the host's numbers.
        ("nvidia8 nvidia9 nvidia10 nvidia11", {}, {"0": "8", "1": "9", "2": "10", "3": "11"}),
        ("nvidia4 nvidia5", {"SSO_GPU_IDS": "1"}, {"1": "5"}),
        ("nvidia4 nvidia5", {"CUDA_VISIBLE_DEVICES": "GPU-5a,1"}, {"GPU-5a": "GPU-5a", "1": "5"}),
        ("", {"CUDA_VISIBLE_DEVICES": "4,6"}, {"4": "4", "6": "6"}),
        ("", {}, {}),
    ],
)
def test_gpus_are_named_as_cuda_counts_them_and_locked_by_the_hosts_number(
    files, environment, expected, tmp_path, monkeypatch
):
    from sso.jobs import gpus

    for name in ("SSO_GPU_IDS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in files.split():
        (tmp_path / name).touch()
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    assert gpus.known() == expected


def test_containers_of_one_host_do_not_wait_for_each_others_gpus(tmp_path, monkeypatch):
    from sso.jobs import gpus

    monkeypatch.setenv("SSO_GPU_LOCKS", str(tmp_path / "locks"))
    for name in ("SSO_GPU_IDS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for host, wanted in (("0 1", ["0", "1"]), ("2 3", ["0", "1"])):
        (tmp_path / host).mkdir()
        for number in host.split():
            (tmp_path / host / f"nvidia{number}").touch()
        monkeypatch.setattr(gpus, "DEVICES", tmp_path / host)
        assert gpus.claim(2, wait_s=0) == wanted
    assert sorted(path.name for path in (tmp_path / "locks").iterdir()) == [f"{i}.lock" for i in range(4)]
    with pytest.raises(InputError, match="no 1 free GPUs"):  # 2 and 3 are taken
        gpus.claim(1, wait_s=0)


def test_a_job_whose_gpus_torch_does_not_find_ends_before_it_computes(machine, tiny_checkpoint, monkeypatch):
    import torch

    from sso.chat import load_model
    from sso.jobs import distributed, gpus

    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SSO_GPU_REHEARSAL"):
        monkeypatch.delenv(name, raising=False)
    gpus.claim_for_job()
    gpus.check()  # a job without
    monkeypatch.setenv("SSO_GPUS", "2")
    gpus.claim_for_job()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    told = r"^this job has GPUs \(CUDA_VISIBLE_DEVICES: \d,\d\), but torch finds 1 of them; .*\.$"
    for begin in (lambda: distributed.start(Training()), lambda: load_model(tiny_checkpoint)):
        with pytest.raises(InputError, match=told):
            begin()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpus.check()
    # A process that draws on one of them; and a cluster's job, which claims none.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    gpus.check()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv(gpus.HAS, "")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SSO_GPUS", "1")
    gpus.claim_for_job()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="torch finds 0 of them"):
        gpus.check()
    monkeypatch.setenv("SSO_GPU_REHEARSAL", "1")
    gpus.check()


# Several machines: stand-ins for srun and scontrol start each task here.

SRUN = """#!{python}
import os, subprocess, sys
nodes = int(next(a for a in sys.argv if a.startswith("--nodes=")).split("=")[1])
step = dict(os.environ, SLURM_STEP_NODELIST="node[0-1]")
tasks = [subprocess.Popen(sys.argv[5:], env=dict(step, SLURM_NODEID=str(i))) for i in range(nodes)]
sys.exit(max(task.wait() for task in tasks))
"""


def test_a_training_on_two_machines_is_that_of_one(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from sso.records import write
    from sso.settings import Backbone
    from sso.train.run import save
    from sso.worlds.micro.models import build
    from tests.test_training import triple

    save(*build(Backbone(architecture="qwen2", layers=2), 0), tmp_path / "start")
    write(tmp_path / "triples.jsonl", [triple(i) for i in range(12)])
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "srun").write_text(SRUN.format(python=sys.executable))
    (tools / "scontrol").write_text("#!/bin/sh\necho 127.0.0.1\necho 127.0.0.1\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environment = dict(
        os.environ, PATH=f"{tools}:{os.environ['PATH']}", SLURM_JOB_ID="4711", PYTHONPATH=str(REPOSITORY)
    )

    def train(nodes: int) -> Path:
        out = tmp_path / f"out{nodes}"
        own = {"learning_rates": [1e-3], "batch_size": 6, "dtype": "float32", "nodes": nodes, "max_length": 256}
        files = ["--model", tmp_path / "start", "--data", tmp_path / "triples.jsonl", "--out", out]
        command = [sys.executable, "-m", "sso.cli", "train", *map(str, files), "--settings", json.dumps(own)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        if nodes > 1:
            assert "DistributedDataParallel on 2 processes" in done.stdout
        return out

    one, two = (load_file(train(nodes) / "model.safetensors") for nodes in (1, 2))
    for name, tensor in one.items():
        assert (tensor - two[name]).abs().max() < 1e-5, name


def test_several_machines_without_slurm_is_a_sentence(monkeypatch):
    from sso.jobs import distributed

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(InputError, match="there is no srun here"):
        distributed.launch(Training(nodes=2), ["train"])
    assert os.environ.pop(distributed.IN_STEP) == "1"


# Fine-tuning of a base model.


def test_a_base_model_is_fine_tuned_with_a_borrowed_template(tiny_checkpoint, tmp_path):
    import shutil

    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, base)
    (base / "chat_template.jinja").unlink()
    rows = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello there"}]}] * 8
    (tmp_path / "sft.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {
        "data": str(tmp_path / "sft.jsonl"),
        "steps": -1,
        "epochs": 4,
        "batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "dtype": "float32",
        "chat_template": str(tiny_checkpoint),
        "gradient_checkpointing": False,
    }
    backbone = {"path": str(base), "sft": True}
    out = tmp_path / "out"
    command = [
        "sft",
        "--data",
        settings["data"],
        "--backbone",
        json.dumps(backbone),
        "--settings",
        json.dumps(settings),
    ]
    assert main([*command, "--out", str(out)]) == 0
    record = json.loads((tmp_path / "out.run.json").read_text())
    assert record["summary"]["examples"] == 8
    assert (out / "chat_template.jinja").is_file()
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (base, out))
    assert all(not before[name].equal(after[name]) for name in before if "proj" in name)


# The whole of it on stand-ins.


def stand_ins(version: str, folder: Path, checkpoint: Path, url: str) -> dict:
    """A config of the paper's size with every name mapped to tiny local files, 18 queries, no GPU."""
    values = read_yaml(CONFIG / f"paper_{version}.yaml")
    files, rewards, judged = values["evaluation"]["files"], values["rewards"], values["evaluation"]

    def lines(name: str, rows: list[dict]) -> str:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(folder / name)

    def dialogue(prompt: str, answer: str) -> list[dict]:
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]

    queries = [{"id": f"q{i}", "prompt": f"tell me about {word}"} for i, word in enumerate("abcdefghijklmnopqr")]
    pairs = [{**q, "chosen": "a good answer", "rejected": "no"} for q in queries]
    alpaca = [{"instruction": q["prompt"], "output": "words", "generator": "gpt4_1106_preview"} for q in queries[:4]]
    (folder / "reference.json").write_text(json.dumps(alpaca))
    turns = [{"question_id": i, "category": "writing", "turns": ["hello", "and now"]} for i in range(3)]
    arena = [{"uid": f"u{i}", "prompt": q["prompt"]} for i, q in enumerate(queries[:3])]
    baseline = [
        {"uid": row["uid"], "model": "gpt-4-0314", "messages": dialogue(row["prompt"], "words")} for row in arena
    ]
    bench = [
        {"id": str(i), "subset": subset, "prompt": "hello", "chosen": f"yes {i}", "rejected": "no"}
        for i, subset in enumerate(read_weights(REPOSITORY / "results/paper/rewardbench_v1.csv"))
    ]
    mapped = {
        values["data"]["queries"]: lines("queries.jsonl", queries),
        rewards["skywork"]["sources"][0]["path"]: lines(
            "skywork.jsonl", [{**pair, "prompt": f"another {pair['prompt']}"} for pair in pairs]
        ),
        judged["rewardbench"]: lines("rewardbench.jsonl", bench),
        files["reference"]: str(folder / "reference.json"),
        files["mt_bench"]: lines("mt_bench.jsonl", turns),
        files["mt_bench_reference"]: lines(
            "mt_bench_reference.jsonl", [{"question_id": 9, "choices": [{"turns": []}]}]
        ),
        files["arena_hard"]: lines("arena.jsonl", arena),
        files["arena_hard_baseline"]: lines("baseline.jsonl", baseline),
    }
    own = {"devices": 1, "engine": "ddp", "dtype": "float32", "save_steps": 0, "max_length": 2000}
    writers = [values["principles"], *values.get("writers", {}).values()]
    models = [settings["path"] for settings in (*values["backbones"].values(), *writers) if "path" in settings]
    if sft := values.get("sft"):
        mapped[sft["data"]] = lines("sft.jsonl", [{"messages": dialogue(q["prompt"], "words")} for q in queries])
        models.append(sft["chat_template"])
        sft |= own
    values["local"] = mapped | dict.fromkeys(models, str(checkpoint))
    values["data"] |= {"limit": 18, "preferences": {"path": lines("pairs.jsonl", pairs)}}
    if version == "v2":
        values["data"]["generator_queries"] = 8
    small = {"engine": "transformers", "devices": 1, "max_new_tokens": 8, "dtype": "float32", "tensor_parallel": 1}
    for settings in (values["sampling"], *writers):
        settings |= small
    # An untrained model repeats its last token, and equal responses make no triple of v1.
    values["sampling"]["temperature"] = 50
    for training in (*values["trainings"].values(), *rewards.values()):
        training |= {**own, "gradient_checkpointing": False}
    for reward in rewards.values():
        reward |= {"batch_size": 8, "ngram": 0}  # prompts of a few words share them with the benchmark's
    judged |= {
        "tasks": [{"name": "real_gsm8k", "num_fewshot": 0, "max_new_tokens": 8}],
        "mirrors": {"gsm8k": {"test": lines("gsm8k.jsonl", [{"question": "one and one", "answer": "#### 2"}] * 2)}},
        "max_new_tokens": 8,
        "engine": "transformers",
        "batch_size": 8,
    }
    for arm in values["arms"].values():
        if arm.get("evaluation", {}).get("tasks"):
            arm["evaluation"] = {**arm["evaluation"], "tasks": judged["tasks"]}
    judged["judge"] |= {"base_url": url, "pairs": 4}
    return {**values, "experiment": "stand_ins", "hardware": None}


NO_NETWORK = """
import socket
real = socket.socket.connect
def connect(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        open({log!r}, "a").write(repr(address) + "\\n")
        raise OSError("no network in this test")
    return real(self, address)
socket.socket.connect = connect
"""


def printed_rows(version: str) -> dict[str, int]:
    """How many rows the paper's tables have, by our files' names."""
    with (REPOSITORY / "results/paper/results.csv").open(newline="") as file:
        of = {
            (r["table"], r["backbone"], r["method"], r["iteration"])
            for r in csv.DictReader(file)
            if r["version"] == version
        }
    counted = Counter(table for table, *_ in of)
    return {f"{version}_{'table' if t.isdigit() else ''}{t}": count for t, count in counted.items()}


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_papers_grid_runs_to_its_tables_on_stand_ins_without_a_network(
    version, tiny_checkpoint, tmp_path, monkeypatch
):
    site, tried = tmp_path / "site", tmp_path / "tried.log"
    site.mkdir()
    (site / "sitecustomize.py").write_text(NO_NETWORK.format(log=str(tried)))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with serving(tmp_path / "server") as server:
        values = stand_ins(version, tmp_path, tiny_checkpoint, server.url)
        assert hub_names(parse(values, "c")) == {}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
        done = snakemake("--cores", "2", "--configfile", str(tmp_path / "c.yaml"), cwd=tmp_path, timeout=3000)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert not tried.exists(), tried.read_text()
    tables = tmp_path / "results/stand_ins/report/tables"
    wanted = printed_rows(version)
    assert len(wanted) == {"v1": 11, "v2": 6}[version]
    assert {name: len((tables / f"{name}.csv").read_text().splitlines()) - 1 for name in wanted} == wanted
